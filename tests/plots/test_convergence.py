"""The picture of iterations: the numbers given, on a logarithmic axis."""

import numpy as np
import pytest

from klprojax.plots import convergence


@pytest.fixture(autouse=True)
def _matplotlib():
    pytest.importorskip("matplotlib", reason="needs matplotlib")


def test_draws_every_positive_number_at_its_iteration():
    curves = {"a": [1.0, 0.1, 0.0, 0.01], "b": [2.0, np.nan, np.inf, 0.5]}
    axis = convergence(curves, tolerance=1e-3, ylabel="error").axes[0]
    first, second, line = axis.lines
    np.testing.assert_array_equal(first.get_data(), [[1, 2, 4], [1.0, 0.1, 0.01]])
    np.testing.assert_array_equal(second.get_data(), [[1, 4], [2.0, 0.5]])
    assert set(line.get_ydata()) == {1e-3}
    assert [t.get_text() for t in axis.get_legend().get_texts()] == ["a", "b", "tolerance"]
    assert axis.get_yscale() == "log"
    assert axis.get_ylabel() == "error"


def test_steps_and_axes_given():
    from matplotlib.figure import Figure

    axis = Figure().add_subplot()
    assert convergence({"a": [1.0, 0.5]}, axis, steps=[10, 20]) is axis.figure
    np.testing.assert_array_equal(axis.lines[0].get_xdata(), [10, 20])


@pytest.mark.parametrize(
    ("curves", "options", "message"),
    [
        ({"a": [0.0, np.nan]}, {}, "No curve has a positive, finite number"),
        ({"a": [[1.0, 2.0]]}, {}, r"'a' has shape \(1, 2\)"),
        ({"a": [1.0, 2.0]}, {"steps": [1]}, "2 numbers for 1 steps"),
        ({"a": [1.0]}, {"ax": []}, "ax must be 1 axes"),
    ],
)
def test_refuses_what_cannot_be_drawn(curves, options, message):
    with pytest.raises(ValueError, match=message):
        convergence(curves, **options)
