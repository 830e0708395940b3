"""The local projections that networks train by; their home is `klprojax.lifting.local`."""

from ..lifting.local import BilinearPoint as BilinearPoint
from ..lifting.local import bilinear_multiplier as bilinear_multiplier
from ..lifting.local import cross_entropy_proximal as cross_entropy_proximal
from ..lifting.local import project_abs as project_abs
from ..lifting.local import project_bilinear as project_bilinear
from ..lifting.local import project_elementwise as project_elementwise
from ..lifting.local import project_identity as project_identity
from ..lifting.local import project_maximum as project_maximum
from ..lifting.local import project_quantise as project_quantise
from ..lifting.local import project_relu as project_relu
from ..lifting.local import quantise as quantise
