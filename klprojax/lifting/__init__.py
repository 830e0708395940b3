"""The delta lift: backpropagation of any JAX function as messages (sections 3.2-3.3)."""

from .._tracing import LiftError as LiftError
from ._layered import LayeredNetwork as LayeredNetwork
from ._layered import LayerMessages as LayerMessages
from ._layered import layer_messages as layer_messages
from ._lift import DeltaLift as DeltaLift
from ._lift import delta_lift as delta_lift
from ._outputs import ExpOutput as ExpOutput
from ._outputs import LogOutput as LogOutput
from ._outputs import exp_output as exp_output
from ._projection_sweep import projection_messages as projection_messages
from ._results import Curvatures as Curvatures
from ._results import Message as Message
from ._results import Sensitivities as Sensitivities
from ._structure import DeltaFactor as DeltaFactor
from ._structure import Structure as Structure
from ._structure import Variable as Variable
from ._table_graph import TableGraph as TableGraph
from ._tables import TableSensitivities as TableSensitivities
from ._tables import table_sensitivities as table_sensitivities
from .local import ActivationProjection as ActivationProjection
from .local import LinearProjection as LinearProjection
from .local import ParameterProjection as ParameterProjection
from .local import project_activation as project_activation
from .local import project_linear as project_linear
from .local import project_linear_parameters as project_linear_parameters
