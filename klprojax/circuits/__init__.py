"""Sum-product circuits (section 4).

`Circuit` is the explicit graph; `sweep` is Theorem 4.1; `t_spn` the projection operator of section
4.3; readers and `compile_model` bring circuits in, queries use them. `TensorCircuit` is the form to
train: `hclt` and friends build one, `fit` learns it by EM (alternating KL projections) or by
gradients.
"""

from ._activation_lift import ActivationLift as ActivationLift
from ._activation_lift import activation_lift as activation_lift
from ._builder import CircuitBuilder as CircuitBuilder
from ._builder import CircuitModel as CircuitModel
from ._circuit import Circuit as Circuit
from ._compile import compile_model as compile_model
from ._files import Vtree as Vtree
from ._files import load_circuit as load_circuit
from ._files import read_nnf as read_nnf
from ._files import read_psdd as read_psdd
from ._files import read_sdd as read_sdd
from ._files import read_spn as read_spn
from ._files import read_vtree as read_vtree
from ._files import save_circuit as save_circuit
from ._files import write_nnf as write_nnf
from ._files import write_psdd as write_psdd
from ._files import write_spn as write_spn
from ._files import write_vtree as write_vtree
from ._information import entropy as entropy
from ._information import expected_values as expected_values
from ._information import kl_divergence as kl_divergence
from ._leaves import AbstractContinuousLeaf as AbstractContinuousLeaf
from ._leaves import AbstractDiscreteLeaf as AbstractDiscreteLeaf
from ._leaves import AbstractLeaf as AbstractLeaf
from ._leaves import Bernoulli as Bernoulli
from ._leaves import Binomial as Binomial
from ._leaves import Categorical as Categorical
from ._leaves import Gaussian as Gaussian
from ._leaves import Indicator as Indicator
from ._likelihood import log_likelihood as log_likelihood
from ._mpe import Explanation as Explanation
from ._mpe import mpe as mpe
from ._multiply import log_inner_product as log_inner_product
from ._multiply import multiply as multiply
from ._properties import is_deterministic as is_deterministic
from ._properties import is_structured as is_structured
from ._sampling import sample as sample
from ._scope_tables import scope_table_marginals as scope_table_marginals
from ._structure import LeafGroup as LeafGroup
from ._sweep import Sweep as Sweep
from ._sweep import log_partition as log_partition
from ._sweep import marginals as marginals
from ._sweep import sweep as sweep
from ._t_spn import t_spn as t_spn
from ._unfolding import Unfolding as Unfolding
from ._unfolding import unfold as unfold
from ._validation import CircuitError as CircuitError
from .learning import AdamStep as AdamStep
from .learning import EMStep as EMStep
from .learning import em_step as em_step
from .learning import fit as fit
from .tensor import TensorCircuit as TensorCircuit
from .tensor import TensorParameters as TensorParameters
from .tensor import classify as classify
from .tensor import factorised_mixture as factorised_mixture
from .tensor import hclt as hclt
from .tensor import hidden_markov as hidden_markov
from .tensor import load_tensor_circuit as load_tensor_circuit
from .tensor import poon_domingos as poon_domingos
from .tensor import quad_tree as quad_tree
from .tensor import rat_spn as rat_spn
from .tensor import save_tensor_circuit as save_tensor_circuit
