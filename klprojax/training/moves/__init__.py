"""Moves: how far, and in which metric, parameters follow what the local projections say."""

from ._move import AbstractMove as AbstractMove
from ._move import Direction as Direction
from ._relaxed import Relaxed as Relaxed
from ._spectral import Spectral as Spectral
