"""scikit-learn's digits."""

import numpy as np

from ._dataset import Dataset, split


def read_digits(seed: int) -> Dataset:
    """The 1797 images, divided by 16.

    Raises:
        ImportError: no scikit-learn.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise ImportError("The digits need scikit-learn: pip install scikit-learn.") from None
    x, y = load_digits(return_X_y=True)
    rest, test = split(np.asarray(x) / 16.0, np.asarray(y), seed)
    train, validation = split(*rest, seed)
    return Dataset(train, validation, test, 10, shape=(8, 8))
