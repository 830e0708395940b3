"""Regular circuits as dense layers: the engine for training and for many rows."""

from ._builders import factorised_mixture as factorised_mixture
from ._builders import hclt as hclt
from ._builders import hidden_markov as hidden_markov
from ._builders import tree_circuit as tree_circuit
from ._chow_liu import mutual_information as mutual_information
from ._circuit import TensorCircuit as TensorCircuit
from ._classify import classify as classify
from ._parameters import TensorParameters as TensorParameters
from ._region_graphs import poon_domingos as poon_domingos
from ._region_graphs import quad_tree as quad_tree
from ._region_graphs import rat_spn as rat_spn
from ._region_graphs import region_circuit as region_circuit
from ._saved import TensorModel as TensorModel
from ._saved import load_tensor_circuit as load_tensor_circuit
from ._saved import save_tensor_circuit as save_tensor_circuit
