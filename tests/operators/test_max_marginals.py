"""What max-marginals say about the best assignment, and what they do not."""

import numpy as np

from klprojax import BeliefPropagation, DiscreteModel, TreeSweep, infer
from klprojax.circuits import compile_model, mpe


def test_the_argmax_of_tied_max_marginals_is_no_assignment():
    # What the docstring says: each bit's best states are both, and 000 has probability 0.
    with np.errstate(divide="ignore"):
        differ = np.log(1 - np.eye(2))
    model = DiscreteModel((2,) * 3, ((0, 1), (1, 2)), (differ,) * 2)
    graph, log_potentials = model.to_graph()
    solver = BeliefPropagation(semiring="max", schedule=TreeSweep())
    found = infer(graph, log_potentials, solver)
    np.testing.assert_allclose(found.log_beliefs[0], np.log(0.5), rtol=1e-15)
    assert abs(float(found.log_partition)) < 1e-15  # a rounding of log 2
    circuit, log_weights, _ = compile_model(model)
    best = mpe(circuit, log_weights)
    assert best.exact
    assert best.states.tolist() in ([0, 1, 0], [1, 0, 1])
