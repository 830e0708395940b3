"""Schemes: in which order the lifted network's constraints are visited, and how far they move."""

from ._douglas_rachford import ADMM as ADMM
from ._douglas_rachford import DifferenceMap as DifferenceMap
from ._douglas_rachford import DouglasRachford as DouglasRachford
from ._douglas_rachford import Dykstra as Dykstra
from ._scheme import AbstractScheme as AbstractScheme
from ._visits import AlternatingProjections as AlternatingProjections
from ._visits import CyclicProjections as CyclicProjections
