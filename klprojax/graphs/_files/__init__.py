"""Readers and writers of model, evidence and result files."""

from klprojax.graphs._files._alist import ParityCheckMatrix as ParityCheckMatrix
from klprojax.graphs._files._alist import read_alist as read_alist
from klprojax.graphs._files._alist import write_alist as write_alist
from klprojax.graphs._files._bif import read_bif as read_bif
from klprojax.graphs._files._bif_writer import write_bif as write_bif
from klprojax.graphs._files._cnf import read_cnf as read_cnf
from klprojax.graphs._files._errors import ModelFileError as ModelFileError
from klprojax.graphs._files._evidence import parse_evidence as parse_evidence
from klprojax.graphs._files._evidence import read_evidence as read_evidence
from klprojax.graphs._files._evidence import write_uai_evidence as write_uai_evidence
from klprojax.graphs._files._fg import read_fg as read_fg
from klprojax.graphs._files._results import read_uai_mar as read_uai_mar
from klprojax.graphs._files._results import read_uai_mmap as read_uai_mmap
from klprojax.graphs._files._results import read_uai_mpe as read_uai_mpe
from klprojax.graphs._files._results import read_uai_pr as read_uai_pr
from klprojax.graphs._files._results import write_uai_mar as write_uai_mar
from klprojax.graphs._files._results import write_uai_mmap as write_uai_mmap
from klprojax.graphs._files._results import write_uai_mpe as write_uai_mpe
from klprojax.graphs._files._results import write_uai_pr as write_uai_pr
from klprojax.graphs._files._shipped import load_model as load_model
from klprojax.graphs._files._shipped import read_model as read_model
from klprojax.graphs._files._shipped import shipped_models as shipped_models
from klprojax.graphs._files._uai import read_uai as read_uai
from klprojax.graphs._files._uai import write_uai as write_uai
