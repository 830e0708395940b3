"""The one error raised for a function that has no delta lift."""


class LiftError(ValueError):
    """Report why a function, or one of its equations, has no delta lift.

    Attributes:
        equation: where the fault lies, e.g. `"equation 3 (scan) > equation 1 (while)"`, or None
            when the fault lies in the arguments.
        reason: what is wrong and what to do about it.
    """

    equation: str | None
    reason: str

    def __init__(self, reason: str, equation: str | None = None):
        self.equation = equation
        self.reason = reason
        super().__init__(f"{equation}: {reason}" if equation else reason)
