"""Readers of data sets: one door, `load_dataset`, for arrays, tables, images and text."""

from ._dataset import Dataset as Dataset
from ._load import load_dataset as load_dataset
from ._states import read_states as read_states
