"""KL projections on pytrees of log-tables.

Where the paper lives, by section:

- 2, KL and Bregman geometry: `geometry`; its factor graphs: `graphs`; its messages: `operators`.
- 3.1, belief propagation as a hybrid of projections, T_Proj (Proposition 3.1): `operators`.
- 3.2 and 3.3, delta factors (Lemma 3.2), backpropagation as messages (Theorem 3.3), layered
  networks (Corollary 3.4): `lifting`. With `operators` this is regime (A) of section 1.2.
- 4, sum-product networks and T_SPN (Theorems 4.1 and 4.6, Lemmas 4.2 to 4.5, Remark 4.7):
  `circuits`, regime (B).
- 5, the outlook on learning: `training` iterates what section 3.3 linearises. `fitting` is the loop
  that trains networks and circuits.

`checks` computes a residual for every statement. Beyond the paper: `codes`, `plots`, `models`, and
the command line in `cli`.
"""

import importlib
from typing import TYPE_CHECKING, Any

# Names are found on first use, so that what needs no JAX (`klprojax --help`) does not wait for it.
# Type checkers read the imports, Python the table below; a test compares the two.
if TYPE_CHECKING:
    from . import checks as checks
    from . import circuits as circuits
    from . import codes as codes
    from . import fitting as fitting
    from . import geometry as geometry
    from . import graphs as graphs
    from . import lifting as lifting
    from . import operators as operators
    from . import plots as plots
    from . import projections as projections
    from . import training as training
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
    from .operators import Energy as Energy
    from .operators import Entropy as Entropy
    from .operators import Flooding as Flooding
    from .operators import Joint as Joint
    from .operators import MostProbable as MostProbable
    from .operators import Or as Or
    from .operators import Parity as Parity
    from .operators import Residual as Residual
    from .operators import Samples as Samples
    from .operators import Sequential as Sequential
    from .operators import TreeSweep as TreeSweep
    from .operators import infer as infer
    from .operators import query as query
    from .operators import t_proj as t_proj
    from .projections import Cyclic as Cyclic
    from .projections import DouglasRachford as DouglasRachford
    from .projections import Dykstra as Dykstra
    from .projections import compose as compose
    from .projections import iterate as iterate
    from .projections import left as left
    from .projections import right as right
    from .training import AlternatingProjections as AlternatingProjections
    from .training import CyclicProjections as CyclicProjections
    from .training import GradientStep as GradientStep
    from .training import ProjectionDirection as ProjectionDirection
    from .training import ProjectionStep as ProjectionStep
    from .training import fit as fit

_SUBPACKAGES = (
    "checks",
    "circuits",
    "codes",
    "fitting",
    "geometry",
    "graphs",
    "lifting",
    "operators",
    "plots",
    "projections",
    "training",
)
_HOME = {
    "._adjoint": ("AbstractAdjoint", "GradientReport", "ImplicitAdjoint", "UnrolledAdjoint"),
    "._solution": ("RESULTS", "Solution"),
    ".circuits": ("t_spn",),
    ".graphs": (
        "AbstractMessageRule",
        "ContradictionError",
        "DiscreteModel",
        "FactorGraph",
        "ModelFileError",
        "Structured",
        "condition",
        "load_model",
        "read_evidence",
        "read_model",
        "shipped_models",
    ),
    ".lifting": ("delta_lift",),
    ".operators": (
        "And",
        "Automaton",
        "BeliefPropagation",
        "Cardinality",
        "DykstraHybrid",
        "Elimination",
        "Energy",
        "Entropy",
        "Flooding",
        "Joint",
        "MostProbable",
        "Or",
        "Parity",
        "Residual",
        "Samples",
        "Sequential",
        "TreeSweep",
        "infer",
        "query",
        "t_proj",
    ),
    ".projections": (
        "Cyclic",
        "DouglasRachford",
        "Dykstra",
        "compose",
        "iterate",
        "left",
        "right",
    ),
    ".training": (
        "AlternatingProjections",
        "CyclicProjections",
        "GradientStep",
        "ProjectionDirection",
        "ProjectionStep",
        "fit",
    ),
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}


if not TYPE_CHECKING:  # or a type checker would take any misspelt name for one of these
    __all__ = [*_SUBPACKAGES, *_MODULE_OF]

    def __getattr__(name: str) -> Any:
        if name in _SUBPACKAGES:
            return importlib.import_module(f".{name}", __name__)
        if name in _MODULE_OF:
            value = getattr(importlib.import_module(_MODULE_OF[name], __name__), name)
            globals()[name] = value
            return value
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*filter(lambda n: n.startswith("__"), globals()), *_SUBPACKAGES, *_MODULE_OF})
