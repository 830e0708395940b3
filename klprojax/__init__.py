"""KL projections on pytrees of log-tables.

Where the paper lives: section 2 in `geometry`, factor graphs in `graphs`, section 3.1 in
`operators`, sections 3.2-3.3 in `lifting`, section 4 in `circuits`; `checks` computes a residual
for every statement.
"""

from . import checks as checks
from . import circuits as circuits
from . import codes as codes
from . import geometry as geometry
from . import lifting as lifting
from ._adjoint import AbstractAdjoint as AbstractAdjoint
from ._adjoint import GradientReport as GradientReport
from ._adjoint import ImplicitAdjoint as ImplicitAdjoint
from ._adjoint import UnrolledAdjoint as UnrolledAdjoint
from ._solution import RESULTS as RESULTS
from ._solution import Solution as Solution
from .circuits import t_spn as t_spn
from .graphs import AbstractMessageRule as AbstractMessageRule
from .graphs import ContradictionError as ContradictionError
from .graphs import DiscreteModel as DiscreteModel
from .graphs import FactorGraph as FactorGraph
from .graphs import ModelFileError as ModelFileError
from .graphs import Structured as Structured
from .graphs import condition as condition
from .graphs import load_model as load_model
from .graphs import read_evidence as read_evidence
from .graphs import read_model as read_model
from .graphs import shipped_models as shipped_models
from .lifting import delta_lift as delta_lift
from .operators import And as And
from .operators import Automaton as Automaton
from .operators import BeliefPropagation as BeliefPropagation
from .operators import Cardinality as Cardinality
from .operators import DykstraHybrid as DykstraHybrid
from .operators import Elimination as Elimination
from .operators import Flooding as Flooding
from .operators import Or as Or
from .operators import Parity as Parity
from .operators import Residual as Residual
from .operators import Sequential as Sequential
from .operators import TreeSweep as TreeSweep
from .operators import infer as infer
from .operators import t_proj as t_proj
