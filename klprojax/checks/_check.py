"""What a check returns."""

import math
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Check:
    """A statement of the paper, evaluated on one example.

    Attributes:
        name: name of the check.
        statement: what the paper calls the statement.
        compared: which two computations were compared.
        reading: `"as printed"`, `"taken literally"`, or how the statement has to be read.
        residual: the largest difference found; not a number where the check could not be computed.
        tolerance: the largest residual that counts as equal.
        expected: whether the statement is expected to hold in this reading.
        error: why the residual could not be computed, or None.
    """

    name: str
    statement: str
    compared: str
    reading: str
    residual: float
    tolerance: float
    expected: bool = True
    error: str | None = None

    @property
    def holds(self) -> bool:
        """Whether the residual is within the tolerance."""
        return self.residual <= self.tolerance

    @property
    def as_expected(self) -> bool:
        """Whether the check was computed, and holds or fails as it should."""
        return not math.isnan(self.residual) and self.holds == self.expected

    def to_json(self) -> dict[str, Any]:
        """Return plain values; numbers that JSON does not have become None."""

        def number(value: float) -> float | None:
            return value if math.isfinite(value) else None

        out = {
            "name": self.name,
            "statement": self.statement,
            "compared": self.compared,
            "reading": self.reading,
            "residual": number(self.residual),
            "tolerance": number(self.tolerance),
            "holds": self.holds,
            "expected": self.expected,
        }
        return out if self.error is None else {**out, "error": self.error}
