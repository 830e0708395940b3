"""The one operator: left and right projections, composed, iterated by a scheme, differentiated.

Every program of the package is an instance: a space, its projections and a scheme (see the table
in the documentation). This folder is the generic form that runs on any space; fast forms of an
instance name it and are compared with it.
"""

from ._iterate import iterate as iterate
from ._operators import Projection as Projection
from ._operators import compose as compose
from ._operators import left as left
from ._operators import right as right
from ._schemes import ADMM as ADMM
from ._schemes import AbstractScheme as AbstractScheme
from ._schemes import Cyclic as Cyclic
from ._schemes import DifferenceMap as DifferenceMap
from ._schemes import DouglasRachford as DouglasRachford
from ._schemes import Dykstra as Dykstra
from ._space import AbstractSpace as AbstractSpace
from ._space import Gaussians as Gaussians
from ._space import LogTables as LogTables
