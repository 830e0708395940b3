"""Error-correcting codes: low-density parity checks decoded by belief propagation."""

from ._channels import AbstractChannel as AbstractChannel
from ._channels import BinarySymmetricChannel as BinarySymmetricChannel
from ._channels import GaussianChannel as GaussianChannel
from ._code import ParityCheckCode as ParityCheckCode
from ._decode import Decoded as Decoded
from ._decode import decode as decode
from ._error_curve import ErrorRate as ErrorRate
from ._error_curve import plot_word_error_curve as plot_word_error_curve
from ._error_curve import word_error_curve as word_error_curve
