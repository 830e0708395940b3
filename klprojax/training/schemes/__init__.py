"""Schemes: in which order the lifted network's constraints are visited, and how far they move."""

from ._scheme import AbstractScheme as AbstractScheme
from ._visits import AlternatingProjections as AlternatingProjections
from ._visits import CyclicProjections as CyclicProjections
