"""Plots of training runs; they need the extra `[plot]`."""

from ._curves import learning_curves as learning_curves
from ._dynamics import dynamics as dynamics
