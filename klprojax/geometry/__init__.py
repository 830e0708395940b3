"""KL and Bregman geometry of finite simplices: section 2 of the paper.

Generators with their dual coordinates and divergences, the arithmetic of log-tables, and the left
(I-) and right projections onto consensus faces, product families, tables with prescribed marginals,
exponential families and moment constraints. Nothing here knows of graphs or circuits.
"""

from ._consensus import (
    ConsensusFace as ConsensusFace,
)
from ._consensus import (
    consensus_of_copies as consensus_of_copies,
)
from ._exponential_family import (
    ExponentialFamily as ExponentialFamily,
)
from ._exponential_family import (
    MomentConstraints as MomentConstraints,
)
from ._gaussian_consensus import GaussianConsensus as GaussianConsensus
from ._generators import (
    AbstractGenerator as AbstractGenerator,
)
from ._generators import (
    FixedPrecisionGaussian as FixedPrecisionGaussian,
)
from ._generators import (
    NegativeEntropy as NegativeEntropy,
)
from ._generators import (
    bregman_divergence as bregman_divergence,
)
from ._log_table import (
    finite_part as finite_part,
)
from ._log_table import (
    kl_divergence as kl_divergence,
)
from ._log_table import (
    log_marginal as log_marginal,
)
from ._log_table import (
    log_normalize as log_normalize,
)
from ._log_table import (
    safe_log as safe_log,
)
from ._log_table import (
    safe_logsumexp as safe_logsumexp,
)
from ._marginal_constraints import MarginalConstraints as MarginalConstraints
from ._product import ProductFamily as ProductFamily
from ._projection import (
    AbstractConstraint as AbstractConstraint,
)
from ._projection import (
    AbstractLeftConstraint as AbstractLeftConstraint,
)
from ._projection import (
    AbstractRightConstraint as AbstractRightConstraint,
)
from ._projection import (
    ProjectionResult as ProjectionResult,
)
from ._projection import (
    i_projection as i_projection,
)
from ._projection import (
    right_projection as right_projection,
)
