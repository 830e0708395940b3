"""Training networks (section 5): one lifted operator, linearised or iterated."""

from ..fitting import AbstractStep as AbstractStep
from ..fitting import Dataset as Dataset
from ..fitting import StepInfo as StepInfo
from ..fitting import load_dataset as load_dataset
from ._evaluate import Evaluation as Evaluation
from ._evaluate import evaluate as evaluate
from ._fit import FitResult as FitResult
from ._fit import fit as fit
from ._gradient_step import GradientStep as GradientStep
from ._outputs import AbstractOutputFactor as AbstractOutputFactor
from ._outputs import CrossEntropy as CrossEntropy
from ._outputs import Margin as Margin
from ._outputs import SquaredError as SquaredError
from ._projection_direction import ProjectionDirection as ProjectionDirection
from ._projection_direction import projection_direction as projection_direction
from ._projection_direction import projection_slopes as projection_slopes
from ._projection_step import ProjectionStep as ProjectionStep
from .network import Precisions as Precisions
from .schemes import AbstractNetworkScheme as AbstractNetworkScheme
from .schemes import AlternatingProjections as AlternatingProjections
from .schemes import CyclicProjections as CyclicProjections
from .schemes import Splitting as Splitting
