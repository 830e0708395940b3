"""Data sets: digits and .npz files."""

import builtins

import numpy as np
import pytest

from klprojax.training import Dataset, load_dataset


def test_digits():
    pytest.importorskip("sklearn", reason="needs scikit-learn")
    from sklearn.datasets import load_digits

    data = load_dataset("digits")
    assert isinstance(data, Dataset)
    assert [len(x) for x, _ in data[:3]] == [1151, 287, 359]
    assert data.classes == 10
    for x, y in data[:3]:
        assert x.dtype == np.float32
        assert y.dtype == np.int32
        assert x.shape == (len(y), 64)
        assert x.min() == 0.0
        assert x.max() == 1.0
    # Every row is in exactly one part, with its label.
    x, y = load_digits(return_X_y=True)
    rows = np.concatenate([np.c_[16 * a, b] for a, b in data[:3]])
    order, wanted = np.lexsort(rows.T), np.c_[x, y]
    np.testing.assert_array_equal(rows[order], wanted[np.lexsort(wanted.T)])


def test_the_split_depends_on_the_seed():
    pytest.importorskip("sklearn", reason="needs scikit-learn")
    a, b, c = (load_dataset("digits", seed=seed).test[0] for seed in (0, 0, 1))
    np.testing.assert_array_equal(a, b)
    assert (a != c).any()


def test_standardise_uses_the_training_rows_only():
    pytest.importorskip("sklearn", reason="needs scikit-learn")
    plain = load_dataset("digits", dtype="float64")
    data = load_dataset("digits", standardise=True, dtype="float64")
    x = plain.train[0]
    deviation = np.where(x.std(0) == 0, 1.0, x.std(0))
    np.testing.assert_allclose(
        data.test[0], (plain.test[0] - x.mean(0)) / deviation, rtol=1e-12, atol=1e-14
    )
    assert (x.std(0) == 0).any()  # a corner pixel is never set


def test_digits_without_scikit_learn_name_the_package(monkeypatch):
    real = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name.startswith("sklearn"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ImportError, match=r"pip install scikit-learn\.$"):
        load_dataset("digits")


def arrays(**changes):
    rng = np.random.default_rng(0)
    parts = {
        "x_train": rng.integers(0, 256, (25, 2, 3), np.uint8),
        "y_train": rng.integers(0, 4, 25, np.uint8),
        "x_test": rng.integers(0, 256, (6, 2, 3), np.uint8),
        "y_test": np.array([4, 0, 1, 2, 3, 0], np.uint8),
        **changes,
    }
    return {name: array for name, array in parts.items() if array is not None}


def saved(tmp_path, **changes):
    np.savez(tmp_path / "data.npz", **arrays(**changes))
    return tmp_path / "data.npz"


def test_npz_images(tmp_path):
    data = load_dataset(saved(tmp_path), dtype="float64")
    assert data.classes == 5
    assert [x.shape for x, _ in data[:3]] == [(20, 6), (5, 6), (6, 6)]
    np.testing.assert_array_equal(data.test[0], arrays()["x_test"].reshape(6, 6) / 255)
    np.testing.assert_array_equal(data.test[1], arrays()["y_test"])
    rows = np.concatenate([np.c_[255 * x, y] for x, y in (data.train, data.validation)])
    wanted = np.c_[arrays()["x_train"].reshape(25, 6), arrays()["y_train"]]
    # Division by 255 and back: one rounding each.
    np.testing.assert_allclose(
        rows[np.lexsort(np.round(rows).T)], wanted[np.lexsort(wanted.T)], rtol=1e-15
    )


def test_npz_with_the_other_names_and_floats(tmp_path):
    rng = np.random.default_rng(0)
    parts = {
        "train_x": 3 * rng.normal(size=(7, 2)), "train_y": np.arange(7)[:, None] % 2,
        "test_x": rng.normal(size=(3, 2)), "test_y": np.zeros(3, int),
        "validation_x": rng.normal(size=(2, 2)), "validation_y": np.ones(2, int),
    }  # fmt: skip
    np.savez(tmp_path / "data.npz", **parts)
    data = load_dataset(tmp_path / "data.npz", dtype=np.float64)
    np.testing.assert_array_equal(data.train[0], parts["train_x"])
    np.testing.assert_array_equal(data.train[1], [0, 1, 0, 1, 0, 1, 0])
    np.testing.assert_array_equal(data.validation[0], parts["validation_x"])
    assert data.classes == 2


def test_mnist(data_dir):
    data = load_dataset(data_dir / "mnist.npz")
    assert [x.shape for x, _ in data[:3]] == [(48000, 784), (12000, 784), (10000, 784)]
    assert data.classes == 10
    assert data.train[0].max() == 1.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x_test": None}, "expected arrays x_test and y_test, got x_train, y_train, y_test"),
        ({"y_train": None}, "expected arrays x_train and y_train"),
        ({"y_train": np.zeros(24, int)}, r"train y must be 25 integer labels.* got int64 \(24,\)"),
        ({"y_train": np.zeros(25)}, "train y must be 25 integer labels"),
        ({"y_test": np.full(6, -1)}, "test y has the label -1"),
        ({"x_test": np.zeros((6, 5))}, "different numbers of features"),
        ({"x_test": np.zeros(6)}, r"test x must be numbers \[rows, features...\]; got float64"),
        ({"x_test": np.zeros((0, 6)), "y_test": np.zeros(0, int)}, "test x must be numbers"),
        ({"x_test": np.full((6, 6), np.inf)}, "test x has a number that is not finite in row 0"),
        ({"x_train": np.array([["a"]] * 25)}, "train x must be numbers"),
        ({"x_train": np.zeros((3, 6)), "y_train": np.zeros(3, int)}, "needs 5 training rows"),
        ({"x_train": np.array([[object()]] * 25)}, "not an .npz file of numbers"),
    ],
)
def test_bad_files_say_what_is_wrong(tmp_path, changes, message):
    with pytest.raises(ValueError, match=rf"data\.npz: .*{message}"):
        load_dataset(saved(tmp_path, **changes))


def test_files_that_are_no_archives(tmp_path):
    path = tmp_path / "data.npz"
    with pytest.raises(ValueError, match=r"data\.npz: no such file"):
        load_dataset(path)
    path.write_bytes(b"PK\x03\x04 cut off")
    with pytest.raises(ValueError, match=r"data\.npz: not an \.npz file"):
        load_dataset(path)
    with path.open("wb") as stream:
        np.save(stream, np.zeros(3))
    with pytest.raises(
        ValueError, match=r"data\.npz: not an \.npz file of numbers: a single array"
    ):
        load_dataset(path)
    whole = saved(tmp_path).read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"data\.npz: not an \.npz file"):
        load_dataset(path)
    with pytest.raises(ValueError, match=r"'mnist' is no data set; expected 'digits' or the path"):
        load_dataset("mnist")
