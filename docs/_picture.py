"""The picture of the README: ``python docs/_picture.py`` writes ``docs/assets/klprojax.png``."""

from pathlib import Path

from matplotlib.figure import Figure

import klprojax
from klprojax import plots
from klprojax.circuits import compile_model, sweep

OUT = Path(__file__).parent / "assets" / "klprojax.png"
EVIDENCE = {"xray": "yes", "smoke": "yes"}


def draw() -> Figure:
    """Draw a network with its beliefs given evidence, and its circuit with the same evidence."""
    model = klprojax.load_model("asia")
    graph, log_potentials = model.to_graph()
    evidence = model.evidence(EVIDENCE)
    log_evidence = graph.log_evidence(evidence)
    exact = klprojax.infer(graph, log_potentials, klprojax.Elimination(), log_evidence=log_evidence)
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.25))
    plots.factor_graph(graph, exact.marginals, left, names=model.variable_names, seed=3)
    left.set_title("a factor graph: exact beliefs, X-ray positive, smoker")
    figure.axes[-1].set_ylabel('belief in "no"')
    circuit, log_weights, _ = compile_model(model)
    answer = sweep(circuit, log_weights, circuit.log_evidence(evidence))
    plots.circuit(circuit, log_weights, right, node_values=answer.visits)
    right.set_title("the same as a circuit: visit probabilities of one sweep")
    right.get_legend().remove()  # signs tell sums from products
    return figure


if __name__ == "__main__":
    draw().savefig(OUT, dpi=100)
