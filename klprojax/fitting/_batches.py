"""Which rows an update sees."""

from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class Batches:
    """A seeded order of rows, cut into batches of equal length.

    The order of an epoch depends only on the seed and the epoch. Padding has index -1.

    Attributes:
        rows: number of rows of the data.
        size: rows a batch holds; the last one of an epoch may hold fewer.
        multiple: batches are padded to a multiple of this (a number of devices).
        seed: of the order.
        shuffle: False keeps the rows in order.
    """

    rows: int
    size: int
    multiple: int = 1
    seed: int = 0
    shuffle: bool = True
    _memory: dict[int, np.ndarray] = field(default_factory=dict, repr=False, compare=False)

    @property
    def count(self) -> int:
        """Batches an epoch."""
        return -(-self.rows // self.size)

    @property
    def width(self) -> int:
        """Length of a batch with its padding."""
        return -(-self.size // self.multiple) * self.multiple

    @property
    def whole(self) -> bool:
        """True if a batch is the data itself: all rows in order, no padding."""
        return not self.shuffle and self.rows == self.width

    def examples(self, updates: int) -> int:
        """Rows that so many updates meet."""
        epochs, rest = divmod(updates, self.count)
        return epochs * self.rows + rest * self.size

    def epoch(self, number: int) -> np.ndarray:
        """Row indices `[count, width]` of an epoch."""
        if number not in self._memory:
            order = np.full((self.count * self.size,), -1, np.int32)
            order[: self.rows] = (
                np.random.default_rng([self.seed, number]).permutation(self.rows)
                if self.shuffle
                else np.arange(self.rows)
            )
            order = order.reshape(self.count, self.size)
            pad = ((0, 0), (0, self.width - self.size))
            self._memory.clear()
            self._memory[number] = np.pad(order, pad, constant_values=-1)
        return self._memory[number]

    def updates(self, first: int, count: int) -> np.ndarray:
        """Row indices `[count, width]` of consecutive updates, across epochs."""
        numbers = range(first // self.count, -(-(first + count) // self.count))
        rows = np.concatenate([self.epoch(number) for number in numbers])
        start = first % self.count
        return rows[start : start + count]
