"""T_SPN, the two-step KL projection of section 4.3, in the reading that makes Theorem 4.6 exact.

``T_SPN := T_Proj`` on the activation lift of the circuit: agree (I-projection onto the consensus of
all copies of all activations), then factorise (right projection onto products). Read over leaves,
its result is the marginal of every variable.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._sharding import on_any_mesh
from .._solution import RESULTS
from .._types import VariableTables
from ..geometry import safe_log
from ..operators import t_proj
from ._activation_lift import activation_lift
from ._circuit import Circuit
from ._kinds import require_explicit
from ._sweep import leaf_log_values, sweep


@on_any_mesh()
def t_spn(
    circuit: Circuit,
    log_weights: Float[Array, " weights"],
    log_evidence: VariableTables | None = None,
    *,
    leaf_parameters: tuple[Float[Array, "..."], ...] | None = None,
    values: Float[Array, " continuous"] | None = None,
    method: Literal["sweep", "elimination", "dense", "tree"] = "sweep",
) -> VariableTables:
    """Apply ``T_SPN`` to the tables of a circuit: exact log-marginals of all discrete variables.

    One step of ``Cyclic`` with ``compose(right(P), left(Q))`` on the activation lift; `sweep` is
    its fused implementation.

    Args:
        circuit: the structure.
        log_weights: one per edge out of a sum node, nats.
        log_evidence: soft or hard evidence (see `Circuit.log_evidence`).
        leaf_parameters: one array per leaf group.
        values: values of continuous variables, NaN where missing.
        method: ``"sweep"`` is the upward-downward sweep (Theorem 4.1), for circuits of any size;
            the others are `klprojax.t_proj` with that method on the activation lift: small
            circuits for ``"elimination"``, trees for ``"tree"``, toys for ``"dense"``.

    Returns:
        Log-probabilities, one array per cardinality ``[variables, states]``.

    Differentiation:
        ``jit``, ``vmap``, ``jvp``, ``grad`` and their compositions, whichever the method.

    Raises:
        ValueError: an unknown method, or numbers that do not fit the circuit.
        RuntimeError: the evidence is impossible.

    Reference: Theorem 4.6; Lemma 4.2 for trees.

    Example:
        >>> import numpy as np
        >>> from klprojax.circuits import CircuitBuilder, t_spn
        >>> b = CircuitBuilder([2])
        >>> root = b.sum([b.indicator(0, 0), b.indicator(0, 1)], np.log([0.3, 0.7]))
        >>> circuit, log_weights, _ = b.build(root)
        >>> tables = [t_spn(circuit, log_weights, method=m)[0] for m in ("sweep", "tree")]
        >>> [[round(float(np.exp(x)), 5) for x in table[0]] for table in tables]
        [[0.3, 0.7], [0.3, 0.7]]
    """
    require_explicit(circuit, "t_spn")
    if method not in ("sweep", "elimination", "dense", "tree"):
        raise ValueError(f"method is {method!r}; use 'sweep', 'elimination', 'dense' or 'tree'.")
    if method == "sweep":
        swept = sweep(
            circuit, log_weights, log_evidence, leaf_parameters=leaf_parameters, values=values
        )
        impossible = jnp.logical_not(swept.possible)
        return RESULTS.contradiction.error_if(swept.log_marginals, impossible)
    if log_evidence is None:
        log_evidence = circuit.log_evidence(dtype=log_weights.dtype)
    parameters = circuit.check(log_weights, log_evidence, leaf_parameters, values)
    lift = activation_lift(circuit)
    s = circuit.structure

    def leaves(evidence):
        return leaf_log_values(s.shape, s.wiring.leaves, evidence, parameters, values)

    given, to_evidence = jax.vjp(leaves, log_evidence)
    projected = t_proj(lift.graph, lift.log_potentials(log_weights, given), method=method)
    active = jnp.exp(projected[0][:, 1])
    (marginals,) = to_evidence(active[lift.leaf_order])
    return tuple(safe_log(table) for table in marginals)
