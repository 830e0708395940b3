"""Learning circuits: EM, that is alternating KL projections, and gradients."""

from ._adam import AdamStep as AdamStep
from ._em import EMStep as EMStep
from ._em import em_step as em_step
from ._em import maximize as maximize
from ._fit import CircuitFit as CircuitFit
from ._fit import fit as fit
