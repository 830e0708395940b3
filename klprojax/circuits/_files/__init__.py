"""Readers and writers of circuit files."""

from ._nnf import read_nnf as read_nnf
from ._nnf import write_nnf as write_nnf
from ._psdd import read_psdd as read_psdd
from ._psdd_writer import write_psdd as write_psdd
from ._saved import load_circuit as load_circuit
from ._saved import save_circuit as save_circuit
from ._sdd import read_sdd as read_sdd
from ._spn import read_spn as read_spn
from ._spn import write_spn as write_spn
from ._vtree import Vtree as Vtree
from ._vtree import read_vtree as read_vtree
from ._vtree import write_vtree as write_vtree
