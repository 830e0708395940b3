"""The KL projection operators on factor graphs: section 3.1.

T_Proj (exact inference, and exact queries on the same tables), the Dykstra hybrid in the paper's
own variables, belief propagation, and structured factors with cheap messages.
"""

from ._belief_propagation import BeliefPropagation as BeliefPropagation
from ._belief_propagation import BPState as BPState
from ._elimination import Elimination as Elimination
from ._forest import is_forest as is_forest
from ._hybrid import DykstraHybrid as DykstraHybrid
from ._hybrid import HybridState as HybridState
from ._infer import infer as infer
from ._query import AbstractQuestion as AbstractQuestion
from ._query import BestStates as BestStates
from ._query import Energy as Energy
from ._query import Entropy as Entropy
from ._query import Joint as Joint
from ._query import MostProbable as MostProbable
from ._query import Samples as Samples
from ._query import query as query
from ._schedules import Flooding as Flooding
from ._schedules import Residual as Residual
from ._schedules import Sequential as Sequential
from ._schedules import TreeSweep as TreeSweep
from ._solver import AbstractIterativeSolver as AbstractIterativeSolver
from ._solver import AbstractSolver as AbstractSolver
from ._solver import TooLargeError as TooLargeError
from ._structured import And as And
from ._structured import Automaton as Automaton
from ._structured import Cardinality as Cardinality
from ._structured import Or as Or
from ._structured import Parity as Parity
from ._t_proj import t_proj as t_proj
from ._t_proj import t_proj_dense as t_proj_dense
