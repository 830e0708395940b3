"""Reading jaxprs: one opener of calls, one table of primitives, one interpreter."""

from ._activity import equation_activity as equation_activity
from ._activity import is_inexact as is_inexact
from ._activity import output_activity as output_activity
from ._activity import scan_carry_activity as scan_carry_activity
from ._activity import scan_counts as scan_counts
from ._error import LiftError as LiftError
from ._interpret import RULES as RULES
from ._interpret import Replay as Replay
from ._interpret import evaluate as evaluate
from ._interpret import interpret as interpret
from ._interpret import open_call as open_call
from ._primitives import BILINEAR as BILINEAR
from ._primitives import CALLBACKS as CALLBACKS
from ._primitives import ELEMENTWISE as ELEMENTWISE
from ._primitives import EXTREMA as EXTREMA
from ._primitives import LAYOUT as LAYOUT
from ._primitives import NUMPY as NUMPY
from ._primitives import SUMS as SUMS
from ._primitives import is_elementwise as is_elementwise
from ._program import FlatEquation as FlatEquation
from ._program import FlatProgram as FlatProgram
from ._psi import Psi as Psi
from ._python_values import no_python_values as no_python_values
from ._python_values import user_line as user_line
