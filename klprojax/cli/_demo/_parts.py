"""The four parts: statements, a Bayesian network, a circuit, a network trained twice."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from ._report import Section, Table, picture

Advance = Callable[[str, int, int], None]


def statements(advance: Advance) -> tuple[Section, bool]:
    """Verify every statement of the paper; also whether all came out as expected."""
    from ...checks import registered_checks, run_check

    entries = registered_checks(None)
    checks = []
    for count, entry in enumerate(entries):
        advance(entry.name, count, len(entries))
        checks.append(run_check(entry, seed=0, dtype="float64"))
    good = all(check.as_expected for check in checks)
    outcomes = {True: "holds", False: "fails, as it should"}
    rows = [
        [
            check.statement,
            check.reading,
            check.compared,
            "-" if math.isnan(check.residual) else f"{check.residual:.1e}",
            f"{check.tolerance:.1e}",
            outcomes[check.expected] if check.as_expected else "NOT as expected",
        ]
        for check in checks
    ]
    figure, axes = _figure(9, 3.6)
    shown = [c for c in checks if c.residual > 0]
    for at, check in enumerate(shown):
        axes.plot([at, at], [check.residual, check.tolerance], color="0.8", zorder=1)
    for label, color, value in (("tolerance", "0.55", "tolerance"), ("residual", "C0", "residual")):
        axes.scatter(range(len(shown)), [getattr(c, value) for c in shown], 14, color, label=label)
    for at, check in enumerate(shown):
        if not check.expected:
            axes.scatter(at, check.residual, 70, facecolors="none", edgecolors="C3", zorder=3)
    # One tick a group, named by the first words of its statements.
    names = [check.statement.partition(",")[0].partition(" (")[0] for check in shown]
    firsts = [at for at, name in enumerate(names) if at == 0 or names[at - 1] != name]
    axes.set_xticks(firsts, [names[at] for at in firsts], rotation=60, ha="right", fontsize=7)
    axes.set_yscale("log")
    axes.set_ylabel("largest difference")
    axes.legend(loc="upper left", fontsize=8)
    axes.grid(axis="y", alpha=0.3)
    section = Section(
        "Every statement of the paper",
        [
            f"{len(checks)} checks in float64; "
            + ("all came out as expected." if good else "NOT all came out as expected.")
            + " A statement that fails when it is taken literally is listed in both readings.",
            "Each residual compares two computations that share no code.",
        ],
        "klprojax verify",
        [
            Table(
                ("statement", "reading", "compared", "residual", "tolerance", "outcome"),
                rows,
                (False, False, False, True, True, False),
            )
        ],
        [
            picture(
                figure,
                "Residuals below their tolerances; the circled readings fail, as they should.",
            )
        ],
    )
    return section, good


def network(advance: Advance) -> Section:
    """Exact and loopy inference on a Bayesian network, and the gradient through it."""
    import jax
    import jax.numpy as jnp

    import klprojax

    advance("alarm, exact", 0, 3)
    model = klprojax.load_model("alarm")
    evidence = {"HRBP": "HIGH", "CVP": "LOW"}
    query = ("HYPOVOLEMIA", "TRUE")
    graph, log_potentials = model.to_graph()
    names, states = model.variable_names, model.state_names
    assert states is not None
    log_evidence = graph.log_evidence(model.evidence(evidence))
    exact = klprojax.infer(graph, log_potentials, klprojax.Elimination(), log_evidence=log_evidence)
    advance("alarm, belief propagation", 1, 3)
    loopy = klprojax.infer(
        graph,
        log_potentials,
        klprojax.BeliefPropagation(tolerance=1e-8),
        log_evidence=log_evidence,
    )
    right = graph.unpack_variables(exact.marginals)
    found = graph.unpack_variables(loopy.beliefs)
    gaps = [float(np.abs(a - b).max()) for a, b in zip(right, found, strict=True)]

    advance("alarm, gradient", 2, 3)
    variable = names.index(query[0])
    state = states[variable].index(query[1])

    def probability(tables: Any) -> Any:
        solution = klprojax.infer(
            graph, tables, klprojax.Elimination(), log_evidence=log_evidence, throw=False
        )
        return jnp.log(graph.unpack_variables(solution.marginals)[variable][state])

    slopes = graph.unpack(jax.grad(probability)(log_potentials))
    strength = [float(np.abs(np.asarray(table)).max()) for table in slopes]
    order = np.argsort(strength)[::-1][:8]

    figure, axes = _figure(9, 3.6, 2)
    axes[0].plot([0, 1], [0, 1], color="0.7", zorder=0)
    axes[0].scatter(np.concatenate(right), np.concatenate(found), s=14)
    axes[0].set(xlabel="exact marginal", ylabel="belief propagation", title="alarm, observed")
    labels = [names[model.scopes[k][-1]] for k in order]
    axes[1].barh(labels[::-1], [strength[k] for k in order][::-1])
    axes[1].set(
        xlabel="largest slope of log P", title=f"which tables move P({query[0]}={query[1]})"
    )
    figure.tight_layout()
    rows = [
        [names[v], states[v][s], f"{right[v][s]:.6f}", f"{found[v][s]:.6f}", f"{gaps[v]:.1e}"]
        for v in sorted(range(len(names)), key=lambda v: -gaps[v])[:8]
        for s in range(len(states[v]))
    ]
    observed = ", ".join(f"{k}={v}" for k, v in evidence.items())
    return Section(
        "A Bayesian network: exact, loopy, differentiated",
        [
            f"alarm has {len(names)} variables. With {observed} observed, "
            f"P({query[0]}={query[1]}) is {right[variable][state]:.4f}, exactly; belief "
            f"propagation says {found[variable][state]:.4f} after {int(loopy.steps)} steps.",
            "log P(evidence) in nats: "
            f"{float(exact.log_partition):.6f} exactly, {float(loopy.log_partition):.6f} by the "
            "Bethe approximation.",
            "The gradient passes through exact inference: the tables whose entries it depends on "
            "most are named by their variable.",
        ],
        'echo \'{"HRBP": "HIGH", "CVP": "LOW"}\' > evidence.json\n'
        "klprojax infer alarm --evidence evidence.json",
        [
            Table(
                ("variable", "state", "exact", "belief propagation", "largest difference"),
                rows,
                (False, False, True, True, True),
            )
        ],
        [picture(figure, "Marginals of all variables, and the slopes of one of them.")],
    )


def circuit(advance: Advance) -> Section:
    """A circuit of digits by EM and by Adam; half an image inferred from the other half."""
    import jax.numpy as jnp

    from ...circuits import hclt
    from ...circuits.learning import AdamStep, EMStep, fit
    from ...training import load_dataset

    data = load_dataset("digits", dtype=np.float32)
    rows = {
        name: (np.asarray(part[0]) > 0.5).astype(np.int32)
        for name, part in zip(("train", "valid", "test"), data[:3], strict=True)
    }
    epochs = 15
    made = hclt(rows["train"], 16, cardinalities=(2,) * 64)
    start = made.init(0, rows=rows["train"], scale=2.0)
    curves, parameters, body = {}, {}, []
    for label, step in (("EM", EMStep(pseudocount=0.1)), ("Adam", AdamStep())):

        def told(entry: dict[str, Any], label: str = label) -> None:
            done = entry["epoch"] + (epochs if label == "Adam" else 0)
            advance(f"{label}, epoch {entry['epoch']}", done, 2 * epochs)

        result = fit(
            made,
            rows["train"],
            rows["valid"],
            step=step,
            epochs=epochs,
            batch_size=128,
            parameters=start,
            on_epoch=told,
        )
        curves[label] = [entry["valid_log_likelihood"] for entry in result.history]
        parameters[label] = result.parameters
        test = float(np.mean(made.log_likelihood(result.parameters, rows["test"])))
        body.append([label, f"{test:.3f}", str(result.best_epoch)])

    some = rows["test"][:6].copy()
    hidden = some.copy()
    hidden[:, 32:] = -1
    (beliefs,) = made.marginals(parameters["EM"], jnp.asarray(hidden))
    filled = np.asarray(beliefs)[:, :, 1]
    figure, axes = _figure(10, 3.3, 4, width_ratios=(1.9, 1, 1, 1))
    for label, curve in curves.items():
        axes[0].plot(range(1, len(curve) + 1), curve, label=label)
    axes[0].set(xlabel="epoch", ylabel="validation log-lik. (nats)")
    axes[0].legend()
    for axis, images, title in (
        (axes[1], np.where(hidden < 0, 0.5, hidden), "observed"),
        (axes[2], filled, "marginals of one sweep"),
        (axes[3], some.astype(float), "the images"),
    ):
        framed = np.pad(images.reshape(6, 8, 8), ((0, 0), (1, 1), (1, 1)), constant_values=0.2)
        tiles = framed.reshape(3, 2, 10, 10).transpose(0, 2, 1, 3).reshape(30, 20)
        axis.imshow(tiles, cmap="gray_r", vmin=0, vmax=1)
        axis.set_title(title, fontsize=10)
        axis.set(xticks=[], yticks=[])
    figure.tight_layout()
    return Section(
        "A circuit, learned twice, read in one sweep",
        [
            f"A hidden Chow-Liu tree of the 64 pixels of scikit-learn's digits (black or white), "
            f"{made.num_parameters} parameters, learned by EM, an alternating KL projection, and "
            "by Adam.",
            "One upward-downward sweep gives the marginals of every unseen pixel given the seen "
            "ones (Theorem 4.1).",
        ],
        "klprojax circuit fit DATA.npz --units 16 --components 1 --step em",
        [Table(("step", "test log-likelihood (nats)", "best epoch"), body, (False, True, True))],
        [picture(figure, "Learning curves; upper halves observed, lower halves inferred.")],
    )


def training(advance: Advance) -> Section:
    """Adam against the projection step on digits."""
    import optax

    from ... import plots
    from ...training import (
        GradientStep,
        ProjectionDirection,
        ProjectionStep,
        evaluate,
        fit,
        load_dataset,
    )
    from .._network import make_network

    data = load_dataset("digits", dtype=np.float32)
    epochs, size = 40, 64
    updates = epochs * -(-len(data.train[1]) // size)
    steps = {
        "adam": GradientStep(optax.adam(1e-3)),
        "projection": ProjectionStep.decaying(updates),
        "projection-adam": ProjectionDirection(optax.adam(1e-3)),
    }
    histories, body = {}, []
    for count, (name, step) in enumerate(steps.items()):
        advance(name, count, len(steps))
        start = make_network(64, (128, 128), data.classes, 0, skip=False, dtype=np.float32)
        result = fit(
            start,
            step,
            data.train,
            data.validation,
            epochs=epochs,
            batch_size=size,
            select="metric",
        )
        accuracy = evaluate(result.model, data.test).metric
        histories[name] = [result.history]
        seconds = result.history[-1]["seconds"]
        body.append(
            [name, f"{accuracy:.4f}", f"{seconds:.2f}", f"{1e3 * seconds / result.updates:.2f}"]
        )
    figure = plots.learning_curves(histories)
    for axis in figure.axes:
        axis.set_ylim(0.8, 1.0)
    return Section(
        "Adam against the projection step",
        [
            "The same network (64-128-128-10, ReLU), weights, batches and epochs. The gradient is "
            "the differential of the lifted projection operator; the projection step iterates the "
            "operator; projection-adam hands its displacement to Adam.",
        ],
        "klprojax train --step adam --step projection --step projection-adam --epochs 40",
        [
            Table(
                ("step", "test accuracy", "seconds", "ms per update"),
                body,
                (False, True, True, True),
            )
        ],
        [picture(figure, "Validation accuracy against updates and seconds, from 0.8 on.")],
    )


def _figure(width: float, height: float, columns: int = 1, **ratios: Any) -> Any:
    # No pyplot: nothing global, no window system.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    axes = figure.subplots(1, columns, **ratios)
    return figure, axes
