"""Factor graphs (sections 2 and 3.1): structure, wiring, model files.

Structure is static and hashable; numbers live in pytrees of log-tables beside it.
"""

from ._conditioning import ConditionedModel as ConditionedModel
from ._conditioning import ContradictionError as ContradictionError
from ._conditioning import condition as condition
from ._factor_graph import FactorGraph as FactorGraph
from ._files import ModelFileError as ModelFileError
from ._files import ParityCheckMatrix as ParityCheckMatrix
from ._files import load_model as load_model
from ._files import parse_evidence as parse_evidence
from ._files import read_alist as read_alist
from ._files import read_bif as read_bif
from ._files import read_cnf as read_cnf
from ._files import read_evidence as read_evidence
from ._files import read_fg as read_fg
from ._files import read_model as read_model
from ._files import read_uai as read_uai
from ._files import read_uai_mar as read_uai_mar
from ._files import read_uai_mmap as read_uai_mmap
from ._files import read_uai_mpe as read_uai_mpe
from ._files import read_uai_pr as read_uai_pr
from ._files import shipped_models as shipped_models
from ._files import write_alist as write_alist
from ._files import write_bif as write_bif
from ._files import write_uai as write_uai
from ._files import write_uai_evidence as write_uai_evidence
from ._files import write_uai_mar as write_uai_mar
from ._files import write_uai_mmap as write_uai_mmap
from ._files import write_uai_mpe as write_uai_mpe
from ._files import write_uai_pr as write_uai_pr
from ._message_rule import AbstractMessageRule as AbstractMessageRule
from ._message_rule import Structured as Structured
from ._message_rule import dense_table as dense_table
from ._model import DiscreteModel as DiscreteModel
from ._replication import ReplicatedLift as ReplicatedLift
from ._wiring import GraphSignature as GraphSignature
from ._wiring import GroupSignature as GroupSignature
from ._wiring import Wiring as Wiring
