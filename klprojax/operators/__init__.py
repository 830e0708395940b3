"""The KL projection operators on factor graphs: section 3.1.

T_Proj (exact inference), the Dykstra hybrid in the paper's own variables, belief propagation.
"""

from ._belief_propagation import BeliefPropagation as BeliefPropagation
from ._belief_propagation import BPState as BPState
from ._elimination import Elimination as Elimination
from ._infer import infer as infer
from ._schedules import Flooding as Flooding
from ._schedules import Residual as Residual
from ._schedules import Sequential as Sequential
from ._schedules import TreeSweep as TreeSweep
