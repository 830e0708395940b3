"""Local projections: the nearest point of the graph of one constraint.

A Gaussian log-table `-(ω/2)|v - v̄|²` turns KL into weighted squared distance; the zero-temperature
limit of the I-projection onto a delta face `{z = ψ(a)}` is the nearest point of the graph of ψ.
Plain numpy versions: tests/reference/local_projections.py.
"""

from ._activation import ActivationProjection as ActivationProjection
from ._activation import project_abs as project_abs
from ._activation import project_activation as project_activation
from ._activation import project_elementwise as project_elementwise
from ._activation import project_identity as project_identity
from ._activation import project_quantise as project_quantise
from ._activation import project_relu as project_relu
from ._bilinear import BilinearPoint as BilinearPoint
from ._bilinear import bilinear_multiplier as bilinear_multiplier
from ._bilinear import project_bilinear as project_bilinear
from ._cross_entropy import cross_entropy_proximal as cross_entropy_proximal
from ._linear import LinearProjection as LinearProjection
from ._linear import ParameterProjection as ParameterProjection
from ._linear import project_linear as project_linear
from ._linear import project_linear_parameters as project_linear_parameters
from ._maximum import project_maximum as project_maximum
from ._quantise import quantise as quantise
