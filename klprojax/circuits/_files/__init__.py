"""Readers and writers of circuit files."""

from ._psdd import read_psdd as read_psdd
from ._saved import load_circuit as load_circuit
from ._saved import save_circuit as save_circuit
from ._sdd import read_sdd as read_sdd
from ._spn import read_spn as read_spn
from ._vtree import Vtree as Vtree
from ._vtree import read_vtree as read_vtree
