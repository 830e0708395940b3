"""Networks as factor graphs: a traced Equinox model, one local constraint a layer operation."""

from ._constraints import AbstractLocalConstraint as AbstractLocalConstraint
from ._graph import NetworkGraph as NetworkGraph
from ._graph import Node as Node
from ._lift import lift as lift
from ._messages import LiftedNetwork as LiftedNetwork
from ._messages import Precisions as Precisions
from ._trace import trace_network as trace_network
