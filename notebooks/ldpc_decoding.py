# ---
# jupyter:
#   jupytext:
#     formats: py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Decoding low-density parity checks
#
# A code is the set of bit words that satisfy some parity checks. As a factor graph: one variable a
# bit, one parity factor a check, and what the channel says about each bit as evidence. Decoding is
# belief propagation on that graph (section 3.1, on a graph with loops, so an approximation of
# $\mathcal T_{\mathrm{Proj}}$). The parity factor's messages have a closed form, linear in the
# number of bits, so no table over a check's $2^6$ words is built.

# %%
import matplotlib.pyplot as plt
import numpy as np

import klprojax
from klprojax.codes import (
    GaussianChannel,
    ParityCheckCode,
    decode,
    plot_word_error_curve,
    word_error_curve,
)

# %% [markdown]
# ## A regular code: 252 bits, each in 3 checks of 6 bits

# %%
code = ParityCheckCode.regular(252, 3, 6, seed=0)
print(f"{code.num_variables} bits, {code.num_checks} checks, rate {code.rate:.3f}")

# %% [markdown]
# ## One word, iteration by iteration
#
# The word of zeros is sent as $+1$s through white Gaussian noise. On such a channel the decoder
# errs on every codeword alike, so zeros stand for all.

# %%
channel = GaussianChannel(2.0, code.rate)
rng = np.random.default_rng(0)
received = channel.transmit(rng, np.zeros((code.num_variables, 1), np.uint8)).astype(np.float32)
log_odds = channel.log_odds(received)
counts = [0, 1, 2, 3, 5, 8, 12]
wrong = []
for steps in counts:
    found = decode(code, log_odds, steps) if steps else None
    bits = np.asarray(received < 0) if found is None else np.asarray(found.words)
    wrong.append(int(bits.sum()))
print("wrong bits after", counts, "iterations:", wrong)
assert wrong[0] > 0
assert wrong[-1] == 0

# %% [markdown]
# `decode` is a fast engine for this one graph. The general solver gives the same beliefs on the
# same graph, with the code's factors as `Parity` rules:

# %%
solution = klprojax.infer(
    code.graph,
    code.log_potentials,
    klprojax.BeliefPropagation(tolerance=0.0),
    log_evidence=code.log_evidence(log_odds[:, 0]),
    max_steps=5,
    throw=False,
)
beliefs = np.asarray(solution.beliefs[0])
fixed = decode(code, log_odds, 5, early_stop=False)
odds = np.asarray(fixed.log_odds[:, 0])
# Log-odds are log p(0)/p(1).
difference = np.abs(beliefs[:, 0] - 1 / (1 + np.exp(-odds))).max()
print(f"largest difference of a bit's probability after 5 iterations: {difference:.1e}")
assert difference < 1e-4

# %% [markdown]
# ## Word-error rate against noise
#
# Sum-product uses the exact marginals of each check; max-product (min-sum) its maxima, which need
# no logarithms and cost some tenths of a decibel. Bars are standard errors.

# %%
channels = [GaussianChannel(db, code.rate) for db in (1.0, 1.75, 2.5)]
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.5), layout="constrained")
left.plot(counts, wrong, "o-")
left.set(xlabel="iteration", ylabel="wrong bits", title="one word at 2 dB")
curves = {}
for semiring in ("sum", "max"):
    curves[semiring] = word_error_curve(
        code, channels, 256, seed=0, max_steps=40, semiring=semiring, progress=False
    )
    plot_word_error_curve(curves[semiring], right, label=f"{semiring}-product")
right.legend()
for semiring, rates in curves.items():
    print(semiring, [round(rate.word_error_rate, 3) for rate in rates])
assert curves["sum"][0].word_error_rate > 5 * curves["sum"][-1].word_error_rate
assert curves["max"][1].word_error_rate > curves["sum"][1].word_error_rate
