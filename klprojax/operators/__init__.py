"""The KL projection operators on factor graphs: section 3.1.

T_Proj (exact inference), the Dykstra hybrid in the paper's own variables, belief propagation, and
structured factors with cheap messages.
"""

from ._belief_propagation import BeliefPropagation as BeliefPropagation
from ._belief_propagation import BPState as BPState
from ._elimination import Elimination as Elimination
from ._forest import is_forest as is_forest
from ._hybrid import DykstraHybrid as DykstraHybrid
from ._hybrid import HybridState as HybridState
from ._infer import infer as infer
from ._schedules import Flooding as Flooding
from ._schedules import Residual as Residual
from ._schedules import Sequential as Sequential
from ._schedules import TreeSweep as TreeSweep
from ._solver import AbstractIterativeSolver as AbstractIterativeSolver
from ._solver import AbstractSolver as AbstractSolver
from ._structured import And as And
from ._structured import Automaton as Automaton
from ._structured import Cardinality as Cardinality
from ._structured import Or as Or
from ._structured import Parity as Parity
from ._t_proj import t_proj as t_proj
from ._t_proj import t_proj_dense as t_proj_dense
