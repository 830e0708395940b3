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
# # Where the paper needs a reading
#
# Most statements of *Backpropagation from KL Projections* hold as printed. A few need a reading
# before they can be computed, and two fail when taken word for word. `klprojax.checks` computes a
# residual for every one of them against something that shares no code with the claim, and lists the
# failing readings beside the ones that hold. A statement that is *expected* to fail and did not
# would be reported as an error too.

# %%
import jax
import matplotlib.pyplot as plt
import numpy as np

from klprojax.checks import registered_checks, run_checks

jax.config.update("jax_enable_x64", True)

# %% [markdown]
# ## All readings that are not "as printed"

# %%
read = [entry for entry in registered_checks() if entry.reading != "as printed"]
checks = list(run_checks([entry.name for entry in read]))
for check in checks:
    verdict = "holds" if check.holds else "fails"
    expected = "as expected" if check.as_expected else "NOT AS EXPECTED"
    print(f"{check.statement:22s} {check.reading:42s} {verdict} {check.residual:.1e} ({expected})")
assert all(check.as_expected for check in checks)
assert {check.holds for check in checks} == {True, False}

# %% [markdown]
# ### Proposition 3.1 (ii): fixed points
#
# *Printed:* fixed points of normalised belief propagation are fixed points of
# $\mathcal T_{\mathrm{Proj}}$. *Literally:* give every copy of variable $i$ the belief $b_i$. The
# I-projection onto agreement multiplies the copies, and the result is $b_i^{K_i}$, normalised, for
# $K_i$ copies. *The reading that holds:* the corrected map $(q, \sigma, \tau) \mapsto
# (q', \sigma', \tau')$ of the same section fixes them; $\sigma$ and $\tau$ hold the messages.
#
# ### Theorem 4.6: the tables of section 4.3
#
# *Literally:* one table a region, agreement as a geometric mean over a region's nodes. Completeness
# puts a sum and its products in one region, so components are averaged that ought to be mixed. *The
# reading that holds:* one binary activation a node; the two projections on that graph give exact
# marginals.
#
# ### Remark 4.7: a condition, not an ornament
#
# Without decomposability log-derivatives are not marginals. It is listed as a negative control.
#
# ### Corollary 3.4: projections
#
# The differential of a local projection is the limit of its readout as the precision ratio $\rho$
# tends to zero, with relative error $O(\rho)$. At a finite ratio it is a damped Gauss-Newton step.
#
# ## How far off are the literal readings?
#
# Not a matter of rounding: over random instances the literal residuals spread over
# $10^{-2}$ to $1$, and the right readings stay at rounding.

# %%
pairs = {
    "Proposition 3.1 (ii)": ("proposition_3_1_ii_literal", "proposition_3_1_ii_corrected"),
    "Theorem 4.6": ("theorem_4_6_literal", "theorem_4_6"),
}
functions = {entry.name: entry.function for entry in registered_checks()}
figure, axis = plt.subplots(figsize=(7, 3), layout="constrained")
for row, (literal, right) in enumerate(pairs.values()):
    for label, which, color, shift in (
        ("literal", literal, "C3", -0.1),
        ("read", right, "C2", 0.1),
    ):
        residuals = [max(functions[which](seed=seed).residual, 1e-17) for seed in range(4)]
        axis.semilogx(
            residuals,
            np.full(4, row + shift),
            "o",
            color=color,
            alpha=0.7,
            label=label if row == 0 else None,
        )
        if label == "literal":
            assert min(residuals) > 1e-3
        else:
            assert max(residuals) < 1e-10
axis.set_yticks(range(len(pairs)), list(pairs))
axis.set_ylim(-0.6, len(pairs) - 0.4)
axis.set_xlabel("residual")
axis.legend()

# %% [markdown]
# The whole list, with its tolerances: `klprojax verify`, or `klprojax verify --json OUT` for other
# programs.
