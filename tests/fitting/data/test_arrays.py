"""``.npz`` files with labels, several labels, or numbers to predict."""

import numpy as np
import pytest

from klprojax.fitting import load_dataset


def saved(tmp_path, y_train, y_test, shape=(3, 2)):
    path, rng = tmp_path / "data.npz", np.random.default_rng(0)
    x = {p: rng.normal(size=(len(y), *shape)) for p, y in (("train", y_train), ("test", y_test))}
    np.savez(path, x_train=x["train"], x_test=x["test"], y_train=y_train, y_test=y_test)
    return path


def test_numbers_are_a_regression_of_scaled_targets(tmp_path):
    y = np.random.default_rng(1).normal(50, 7, 30)
    data = load_dataset(saved(tmp_path, y, y[:4]), dtype="float64")
    assert (data.task, data.classes, data.shape) == ("regression", 1, (3, 2))
    assert data.train[1].shape == (24, 1)
    mean, deviation = data.scale
    # Scaled and back: a rounding of numbers of size 50 each.
    np.testing.assert_allclose(data.test[1] * deviation + mean, y[:4, None], rtol=1e-14)
    np.testing.assert_allclose(data.train[1].mean(), 0, atol=1e-14)
    np.testing.assert_allclose(data.train[1].std(), 1, rtol=1e-14)
    whole = saved(tmp_path, np.arange(30.0), np.arange(3.0))
    with pytest.raises(ValueError, match=r"integer labels.*float64.*give the task regression"):
        load_dataset(whole)
    assert load_dataset(whole, task="regression").task == "regression"


def test_columns_of_0_and_1_are_labels_or_classes(tmp_path):
    y = np.random.default_rng(1).integers(0, 2, (30, 3))
    data = load_dataset(saved(tmp_path, y, y[:4]))
    assert (data.task, data.classes) == ("multi-label", 3)
    np.testing.assert_array_equal(data.test[1], y[:4])
    one_hot = np.eye(3, dtype=int)[np.arange(30) % 3]
    data = load_dataset(saved(tmp_path, one_hot, one_hot[:4]))
    assert (data.task, data.classes) == ("classification", 3)
    np.testing.assert_array_equal(data.test[1], [0, 1, 2, 0])
    assert load_dataset(saved(tmp_path, one_hot, one_hot), task="regression").task == "regression"


def test_a_label_of_the_test_rows_alone_is_noted(tmp_path):
    data = load_dataset(saved(tmp_path, np.arange(30) % 2, np.array([0, 2])))
    assert data.classes == 3
    assert data.notes == ("Labels without training rows: 2.",)


@pytest.mark.parametrize(
    ("y_train", "y_test", "options", "message"),
    [
        (np.arange(30) % 2 + 1, np.ones(3, int), {}, "no row has the label 0, but some have 1"),
        (np.arange(30) % 2 * 2, np.zeros(3, int), {}, "no row has the label 1, but some have 2"),
        (np.zeros(30, int), np.zeros(3, int), {}, "all rows are of one class"),
        (np.full(30, np.nan), np.zeros(3), {}, "train y has a number that is not finite in row 0"),
        (np.full(30, 0.5), np.zeros(3), {}, "a target does not vary in the training rows"),
        (np.ones((30, 2)), np.ones((3, 3)), {}, "different numbers of targets"),
        (np.ones((30, 2, 2)), np.ones((3, 2, 2)), {}, "train y must be 30 integer labels"),
        (np.array(["a"] * 30), np.array(["a"]), {}, "train y must be 30 integer labels"),
        (np.arange(30) % 2, np.zeros(3, int), {"task": "multi-label"}, "several columns of 0 and"),
        (np.ones((30, 2)), np.ones((3, 2)), {"task": "classification"}, "has one 1 and else 0"),
        (np.arange(30) % 2, np.zeros(3, int), {"target": "y"}, "target is for a table"),
    ],
)
def test_targets_that_are_none_end_in_one_clear_error(tmp_path, y_train, y_test, options, message):
    with pytest.raises(ValueError, match=message):
        load_dataset(saved(tmp_path, y_train, y_test), **options)


def test_weights_go_with_their_rows(tmp_path):
    x = np.arange(40.0).reshape(20, 2)
    parts = {"x_train": x, "y_train": np.arange(20) % 2, "x_test": x, "y_test": np.arange(20) % 2}
    np.savez(tmp_path / "d.npz", **parts, w_train=x[:, 0] / 2)
    data = load_dataset(tmp_path / "d.npz", dtype="float64")
    np.testing.assert_array_equal(data.weights, data.train[0][:, 0] / 2)
    np.savez(tmp_path / "d.npz", **parts, w_train=np.ones(19))
    with pytest.raises(ValueError, match="one weight for each of the 20 training rows"):
        load_dataset(tmp_path / "d.npz")
