"""Fitting: one loop of updates for networks and circuits, and the data that it reads.

A step, `AbstractStep`, takes a model and its state to the next ones; `klprojax.training.fit` and
`klprojax.circuits.fit` repeat it, with the same batches, checkpoints, history and early stopping.
"""

from ._data import Dataset as Dataset
from ._data import load_dataset as load_dataset
from ._step import AbstractStep as AbstractStep
from ._step import StepInfo as StepInfo
