"""Word-error rates by simulation, and their plot."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from ._channels import AbstractChannel, BinarySymmetricChannel
from ._code import ParityCheckCode
from ._decode import decode

_BATCH = 1000


@dataclass(frozen=True)
class ErrorRate:
    """What decoding many words over one channel gave.

    Attributes:
        channel: the channel.
        words: words sent.
        word_errors: words decoded to other bits than sent.
        bit_errors: bits decoded wrongly, of ``words * num_variables``.
        undetected: wrong words that satisfy all checks.
        mean_steps: iterations a word.
        num_variables: length of a word.
    """

    channel: AbstractChannel
    words: int
    word_errors: int
    bit_errors: int
    undetected: int
    mean_steps: float
    num_variables: int

    @property
    def word_error_rate(self) -> float:
        """Part of the words that were decoded wrongly."""
        return self.word_errors / self.words

    @property
    def bit_error_rate(self) -> float:
        """Part of the bits that were decoded wrongly."""
        return self.bit_errors / (self.words * self.num_variables)

    @property
    def standard_error(self) -> float:
        """Binomial standard error of the word-error rate, of an estimate that is never 0 or 1."""
        rate = (self.word_errors + 1) / (self.words + 2)
        return math.sqrt(rate * (1 - rate) / self.words)


def word_error_curve(
    code: ParityCheckCode,
    channels: Sequence[AbstractChannel],
    words: int,
    seed: int = 0,
    *,
    max_steps: int = 50,
    semiring: Literal["sum", "max"] = "sum",
    stop_at_errors: int | None = None,
    dtype: Any = np.float32,
    progress: bool = True,
) -> list[ErrorRate]:
    """Send words over channels, decode them, count errors.

    Always the word of zeros is sent: on these channels belief propagation errs on every codeword
    alike, since channel and update are symmetric in the bits.

    Args:
        code: the code.
        channels: such as ``[GaussianChannel(db, code.rate) for db in (1.0, 1.5, 2.0)]``.
        words: most words sent over each.
        seed: of the noise, the same for every channel.
        max_steps: most iterations a word.
        semiring: see `decode`.
        stop_at_errors: leave a channel after the batch that brings this many wrong words.
        dtype: of the messages.
        progress: show a progress bar on standard error.

    Returns:
        One `ErrorRate` a channel.

    Raises:
        ValueError: fewer than one word.
    """
    if words < 1:
        raise ValueError(f"words is {words}; it must be at least 1.")
    # Here, so that decoding does not wait for the import.
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = TextColumn("{task.description}", markup=False), BarColumn(), TimeRemainingColumn()
    out = []
    with Progress(*columns, console=Console(stderr=True), disable=not progress) as bar:
        for channel in channels:
            task = bar.add_task(channel.label, total=words)
            rng = np.random.default_rng(seed)
            sent = errors = bit_errors = undetected = steps = 0
            while sent < words and (stop_at_errors is None or errors < stop_at_errors):
                count = min(_BATCH, words - sent)
                zeros = np.zeros((code.num_variables, count), np.uint8)
                received = channel.transmit(rng, zeros).astype(dtype)
                found = decode(code, channel.log_odds(received), max_steps, semiring=semiring)
                wrong = np.asarray(found.words).astype(bool)
                missed = wrong.any(axis=0)
                sent += count
                errors += int(missed.sum())
                bit_errors += int(wrong.sum())
                undetected += int((missed & np.asarray(found.valid)).sum())
                steps += int(np.asarray(found.steps).sum())
                bar.update(
                    task,
                    advance=count,
                    description=f"{channel.label}: {errors} of {sent} words wrong",
                )
            bar.update(task, completed=words)
            out.append(
                ErrorRate(
                    channel, sent, errors, bit_errors, undetected, steps / sent, code.num_variables
                )
            )
    return out


def plot_word_error_curve(rates: Sequence[ErrorRate], ax: Any = None, **line: Any) -> Any:
    """Draw word-error rates with their standard errors over the channels' quality.

    Args:
        rates: as from `word_error_curve`, channels of one kind.
        ax: matplotlib axes to draw on (default: new ones).
        line: passed to ``Axes.errorbar``, such as ``label``.

    Returns:
        The axes.

    Raises:
        ImportError: matplotlib is not installed (``pip install matplotlib``).
    """
    if ax is None:
        try:
            from matplotlib import pyplot  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise ImportError("This needs matplotlib: pip install matplotlib.") from error
        ax = pyplot.figure().add_subplot()
    flips = any(isinstance(rate.channel, BinarySymmetricChannel) for rate in rates)
    ax.errorbar(
        [rate.channel.quality for rate in rates],
        [rate.word_error_rate for rate in rates],
        [rate.standard_error for rate in rates],
        **{"marker": "o", "capsize": 3, **line},
    )
    # Without any error there is no place on a logarithmic axis.
    ax.set_yscale("log", nonpositive="mask")
    ax.set_xlabel("probability of a flipped bit" if flips else "Eb/N0 (dB)")
    ax.set_ylabel("word-error rate")
    return ax
