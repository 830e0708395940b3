"""What the plots draw: the numbers of the history, on the right axes."""

import builtins
import subprocess
import sys

import numpy as np
import pytest

from klprojax.plots import dynamics, learning_curves


def history(shift=0.0, length=4):
    return [
        {
            "update": 10 * n,
            "seconds": 0.5 * n + shift,
            "validation_loss": 2.0 / (n + 1),
            "validation_accuracy": None if n == 0 else 0.2 * n + shift,
            "window_distance": {"1": None if n == 0 else 0.1 / n, "20": 0.3 if n > 1 else None},
            "stats": {}
            if n == 0
            else {"gap": 1e-3, "norm": [1.0 * n, 0.1 * n], "other": [[5.0, 6.0], [7.0, 8.0]]},
        }
        for n in range(length)
    ]


@pytest.fixture(autouse=True)
def _matplotlib():
    pytest.importorskip("matplotlib", reason="needs matplotlib")


def points(line):
    return np.asarray(line.get_xdata()), np.asarray(line.get_ydata())


def test_learning_curves_of_single_runs():
    figure = learning_curves({"adam": history(), "other": history(0.1, 3)})
    updates, seconds = figure.axes
    for axis, key in ((updates, "update"), (seconds, "seconds")):
        assert [line.get_label() for line in axis.lines] == ["adam", "other"]
        for line, run in zip(axis.lines, (history(), history(0.1, 3)), strict=True):
            x, y = points(line)
            np.testing.assert_array_equal(x, [entry[key] for entry in run[1:]])
            np.testing.assert_array_equal(y, [entry["validation_accuracy"] for entry in run[1:]])
    assert updates.lines[0].get_color() != updates.lines[1].get_color()
    assert updates.get_xlabel() == "updates"
    assert seconds.get_xlabel() == "training time (s)"
    assert updates.get_ylabel() == "validation accuracy"


def test_learning_curves_of_several_seeds_have_their_mean_in_front():
    runs = [history(0.0), history(0.4, 3)]
    axis = learning_curves({"adam": runs}).axes[1]
    assert len(axis.lines) == 3
    x, y = points(axis.lines[-1])
    # Means of (0.5, 0.9) and so on, as far as the shorter run goes.
    np.testing.assert_allclose(x, [0.7, 1.2], rtol=1e-15)
    np.testing.assert_allclose(y, [0.4, 0.6], rtol=1e-15)
    assert axis.lines[-1].get_label() == "adam"
    assert axis.lines[0].get_alpha() < 1
    (band,) = axis.collections
    corners = band.get_paths()[0].vertices
    # Of two numbers 0.4 apart the deviation is 0.4 / √2.
    for x, middle in ((0.7, 0.4), (1.2, 0.6)):
        ends = corners[np.isclose(corners[:, 0], x), 1]
        np.testing.assert_allclose(ends.min(), middle - 0.4 / 2**0.5, rtol=1e-12)
        np.testing.assert_allclose(ends.max(), middle + 0.4 / 2**0.5, rtol=1e-12)


def test_learning_curves_against_examples():
    from matplotlib.figure import Figure

    run = [{**entry, "examples": 32 * entry["update"]} for entry in history()]
    figure = learning_curves({"a": run})
    assert [axis.get_xlabel() for axis in figure.axes] == [
        "updates",
        "examples",
        "training time (s)",
    ]
    np.testing.assert_array_equal(points(figure.axes[1].lines[0])[0], [320, 640, 960])
    assert len(learning_curves({"a": run, "b": history()}).axes) == 2
    axes = Figure().subplots(1, 2)
    assert [a.get_xlabel() for a in learning_curves({"a": run}, axes).axes] == [
        "updates",
        "training time (s)",
    ]
    with pytest.raises(ValueError, match="Some history has no entry 'examples'; give two axes"):
        learning_curves({"a": history()}, Figure().subplots(1, 3))


def test_another_measure_and_given_axes():
    from matplotlib.figure import Figure

    figure = Figure()
    axes = figure.subplots(1, 2)
    assert learning_curves({"a": history()}, axes, metric="validation_loss") is figure
    x, y = points(axes[0].lines[0])
    np.testing.assert_array_equal(x, [0, 10, 20, 30])
    np.testing.assert_array_equal(y, [2.0, 1.0, 2 / 3, 0.5])


def test_dynamics_draws_layers_and_windows():
    figure = dynamics(history())
    assert [axis.get_title() for axis in figure.axes] == [
        "norm",
        "other",
        "relative distance of iterates",
    ]
    norm, other, distance = figure.axes
    assert [line.get_label() for line in norm.lines] == ["layer 1", "layer 2"]
    x, y = points(norm.lines[1])
    np.testing.assert_array_equal(x, [10, 20, 30])
    np.testing.assert_allclose(y, [0.1, 0.2, 0.3], rtol=1e-15)
    assert len(other.lines) == 4
    assert [line.get_label() for line in distance.lines] == ["k = 1", "k = 20"]
    x, y = points(distance.lines[1])
    np.testing.assert_array_equal(x, [20, 30])
    np.testing.assert_array_equal(y, [0.3, 0.3])
    assert norm.get_yscale() == "log"


def test_dynamics_of_chosen_stats():
    figure = dynamics(history(), names=["gap"])
    assert [axis.get_title() for axis in figure.axes] == ["gap", "relative distance of iterates"]
    np.testing.assert_array_equal(points(figure.axes[0].lines[0])[1], [1e-3] * 3)


def test_lines_of_zeros_are_drawn_too():
    run = [{"update": 1, "window_distance": {"1": 0.0}, "stats": {"norm": [0.0]}}]
    figure = dynamics(run)
    assert [axis.get_yscale() for axis in figure.axes] == ["linear", "linear"]


def test_plots_can_be_saved(tmp_path):
    dynamics(history()).savefig(tmp_path / "a.png")
    learning_curves({"a": history()}).savefig(tmp_path / "b.svg")
    assert (tmp_path / "a.png").read_bytes()[:4] == b"\x89PNG"
    assert "<svg" in (tmp_path / "b.svg").read_text()


def test_nothing_to_draw_is_an_error():
    with pytest.raises(ValueError, match="No history has the entry 'validation_f1'"):
        learning_curves({"a": history()}, metric="validation_f1")
    with pytest.raises(ValueError, match="no stats by layer and no window distances"):
        dynamics([{"update": 1, "stats": {"gap": 1.0}}])
    with pytest.raises(ValueError, match="No entry of the history has the stat 'nothing'"):
        dynamics(history(), names=["nothing"])
    with pytest.raises(ValueError, match="ax must be 2 axes; got 1"):
        learning_curves({"a": history()}, ax=object())


def test_without_matplotlib_the_package_is_named(monkeypatch):
    real = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ImportError, match=r"Plots need matplotlib: pip install matplotlib\.$"):
        learning_curves({"a": history()})


def test_importing_the_package_imports_no_extra():
    code = """
import sys
import klprojax, klprojax.plots, klprojax.training
print([name for name in ("matplotlib", "sklearn", "typer") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
