"""Schemes: in which order the lifted network's constraints are visited, and how far they move."""

from ._scheme import AbstractNetworkScheme as AbstractNetworkScheme
from ._splitting import Splitting as Splitting
from ._visits import AlternatingProjections as AlternatingProjections
from ._visits import CyclicProjections as CyclicProjections
