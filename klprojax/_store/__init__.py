"""Files in and out, below everything else."""

from ._npz import read_npz as read_npz
from ._write import check_writable as check_writable
from ._write import write_file as write_file
