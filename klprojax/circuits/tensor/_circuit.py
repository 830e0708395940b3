"""`TensorCircuit`: regular circuits as layers of dense sums, the engine for training."""

from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, UInt32

from ..._sharding import on_any_mesh
from ..._variables import HasVariables, VariableLayout
from .._builder import CircuitModel
from .._likelihood import join_rows, log_conditional
from .._mpe import Explanation
from ._evaluate import known_wide, root_values, state_flows
from ._evidence import read_evidence, read_states
from ._explicit import explicit
from ._mpe import explain, is_exact
from ._parameters import TensorParameters, random_parameters
from ._parses import draw_states
from ._structure import TensorStructure

Tables = tuple[Float[Array, "_ _ _"], ...]


class TensorCircuit(HasVariables):
    """A smooth, decomposable circuit of vectors of K units, in dense layers; no numbers.

    An input vector holds K categorical leaves of one variable. A sum node multiplies vectors of
    disjoint scopes unit by unit and mixes the K products densely into K new units,
    ``out[j] = sum_k w[j, k] prod_c child_c[k]``. A mixture sums vectors of one scope unit by unit,
    ``out[j] = sum_c v[j, c] child_c[j]``: several ways to split a scope, each a sum node of its
    own. The root is one sum over the K products of every component. Most users want `hclt`,
    `hidden_markov`, `rat_spn`, `quad_tree` or another builder.

    Use it for training and for many rows; `to_circuit` gives the explicit `Circuit` with every
    query. The numbers, `TensorParameters`, live outside.

    Args:
        cardinalities: states of each variable.
        units: length K of every vector.
        variables: the variable of each input vector; inputs have the ids 0, 1, ...
        levels: per level, lowest first, the children of each node; nodes are numbered on after
            the inputs, level by level.
        roots: per component the children of its product.
        input_blocks: the leaf table of each input; each has its own if None.
        sum_blocks: the weight matrix of each sum node; each has its own if None. Nodes with one
            block share it (a homogeneous Markov chain).
        mixing: the levels of mixtures; the nodes of all others are sum nodes.

    A circuit is static: it hashes and compares by content and has no arrays as pytree leaves.

    Raises:
        ValueError: naming the node at fault.
    """

    structure: TensorStructure = eqx.field(static=True)

    def __init__(
        self,
        cardinalities: Sequence[int],
        units: int,
        variables: Sequence[int],
        levels: Sequence[Sequence[Sequence[int]]],
        roots: Sequence[Sequence[int]],
        *,
        input_blocks: Sequence[int] | None = None,
        sum_blocks: Sequence[int] | None = None,
        mixing: Sequence[int] = (),
    ):
        nodes = tuple(tuple(tuple(map(int, node)) for node in level) for level in levels)
        mixed = tuple(map(int, mixing))
        sums = sum(len(level) for number, level in enumerate(nodes) if number not in mixed)
        self.structure = TensorStructure(
            tuple(map(int, cardinalities)),
            int(units),
            tuple(map(int, variables)),
            tuple(map(int, range(len(variables)) if input_blocks is None else input_blocks)),
            nodes,
            tuple(map(int, range(sums) if sum_blocks is None else sum_blocks)),
            tuple(tuple(map(int, node)) for node in roots),
            mixed,
        )
        self.structure.check()

    # -- sizes -------------------------------------------------------------------------------

    @property
    def cardinalities(self) -> tuple[int, ...]:
        """States of each variable."""
        return self.structure.cardinalities

    @property
    def num_variables(self) -> int:
        """Number of variables."""
        return len(self.structure.cardinalities)

    @property
    def units(self) -> int:
        """Length K of every vector."""
        return self.structure.units

    @property
    def components(self) -> int:
        """Number of components that the root mixes."""
        return len(self.structure.roots)

    @property
    def depth(self) -> int:
        """Number of levels of sums and mixtures, the root included."""
        return len(self.structure.levels) + 1

    @property
    def num_parameters(self) -> int:
        """Entries of all log-tables, normalisation not deducted."""
        s = self.structure
        sums = s.num_sum_blocks * s.units**2 + len(s.roots) * s.units
        sums += s.units * int(s.partitions.sum())
        return sums + s.units * int(s.input_cardinalities.sum())

    @property
    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the numbers by name."""
        s = self.structure
        shapes: dict[str, tuple[int, ...]] = {
            "log_weights": (s.num_sum_blocks, s.units, s.units),
            "log_inputs": (s.num_input_blocks, s.units, s.max_states),
            "log_root": (len(s.roots), s.units),
        }
        if s.mixing:
            shapes["log_mixing"] = (len(s.mixtures), s.units, s.max_partitions)
        return shapes

    def __repr__(self) -> str:
        return (
            f"TensorCircuit({self.num_variables} variables, {self.components} components, "
            f"{self.units} units, depth {self.depth}, {self.num_parameters} parameters)"
        )

    # -- numbers -----------------------------------------------------------------------------

    def init(
        self,
        seed: int | Key[Array, ""] = 0,
        *,
        rows: Any = None,
        scale: float = 2.0,
        dtype: Any = None,
    ) -> TensorParameters:
        """Draw normalised random parameters; equal units would stay equal under training.

        Args:
            seed: of the random numbers: an integer or a JAX random key.
            rows: data ``[rows, variables]``; the leaves then scatter around the frequencies of
                the states rather than around equal ones.
            scale: standard deviation of the log-weights before normalisation. Units that start far
                apart are told apart sooner, and more of them are used in the end.
            dtype: floating dtype (default: JAX's default float).

        Returns:
            Normalised `TensorParameters`.
        """
        states = None if rows is None else self.states_from_data(rows)
        return random_parameters(self.structure, seed, states, scale, dtype)

    def check(self, parameters: TensorParameters) -> None:
        """Check that the numbers fit.

        Args:
            parameters: the numbers.

        Raises:
            ValueError: a wrong shape, or mixed dtypes.
        """
        if not isinstance(parameters, TensorParameters):
            raise TypeError(
                f"The parameters of a TensorCircuit are TensorParameters (see init), but got a "
                f"{type(parameters).__name__}."
            )
        wanted = {"log_mixing": None, **self.parameter_shapes}
        for name, shape in wanted.items():
            table = getattr(parameters, name)
            got = None if table is None else table.shape
            if got != shape:
                raise ValueError(f"{name} has shape {got}; this circuit expects {shape}.")
        dtypes = {str(leaf.dtype) for leaf in jax.tree.leaves(parameters)}
        if len(dtypes) > 1:
            raise ValueError(f"The parameters mix dtypes {sorted(dtypes)}.")

    # -- evidence ----------------------------------------------------------------------------

    @property
    def variables(self) -> VariableLayout:
        """The variables, as arrays by cardinality hold them."""
        return self.structure.layout

    def states_from_data(self, rows: Any) -> np.ndarray:
        """Check data and make it small integers; missing entries (-1 or NaN) become -1.

        Args:
            rows: states ``[rows, variables]``.

        Raises:
            ValueError: another number of variables, or a state that a variable does not have.
        """
        return read_states(self.structure, rows)

    def _table(self, parameters: TensorParameters, rows: Any, log_evidence: Any) -> Array:
        """Checked log-evidence ``[variables, states, rows]``."""
        self.check(parameters)
        dtype = parameters.log_root.dtype
        return read_evidence(self.structure, rows, log_evidence, dtype).table(
            self.structure.max_states, dtype
        )

    # -- queries -----------------------------------------------------------------------------

    @on_any_mesh(batch=("rows", "log_evidence"), out=0)
    def log_values(
        self,
        parameters: TensorParameters,
        rows: Any = None,
        *,
        log_evidence: Sequence[Float[Array, "rows _ _"]] | None = None,
        softening: float = 0.0,
    ) -> Float[Array, " rows"]:
        """Compute the log-value of the root for every row in one upward pass.

        For normalised parameters this is the log-likelihood.

        Args:
            parameters: the numbers, normalised or not.
            rows: states ``[rows, variables]``; missing entries (-1, NaN) are summed out. Traced
                rows are integers, and other numbers than states and -1 are impossible.
            log_evidence: instead of rows, one log-table per cardinality (ascending), ``[rows,
                variables of that cardinality, states]``; soft or hard (`log_evidence` and
                `evidence_from_data` build them).
            softening: treat an observed state as soft evidence, ``1 - softening`` on the state and
                the rest spread over the others (data softening, a regulariser of training).

        Returns:
            Natural logarithms, ``-inf`` for impossible rows.

        Weights may be as small as you like, or zero. Where some are more than 43 nats (float32; 354
        in float64) below the largest of their sum, sums check what matrix products lose and are
        slower, much so where they lose something; traced parameters compile both ways.

        Differentiation:
            ``jvp``, ``grad``, ``vmap``, to any order. The gradient with respect to normalised
            log-weights is the expected flow (see `flows`), with respect to ``log_evidence`` the
            marginals, by Theorem 4.1.

        Raises:
            ValueError: numbers that do not fit the circuit.

        Reference: Theorem 4.1.
        """
        self.check(parameters)
        evidence = read_evidence(self.structure, rows, log_evidence, parameters.log_root.dtype)
        if not 0 <= softening < 1:
            raise ValueError(f"softening is {softening}; it must be at least 0 and less than 1.")
        exact = known_wide(self.structure, parameters, evidence.states is None)
        return root_values(self.structure, float(softening), exact, parameters, evidence)

    def log_partition(self, parameters: TensorParameters) -> Float[Array, ""]:
        """Log of the total of all weights; 0 for normalised parameters."""
        nothing = jnp.full((1, self.num_variables), -1, jnp.int8)
        return self.log_values(parameters, nothing)[0]

    @on_any_mesh(batch=("rows",), out=0)
    def log_likelihood(
        self, parameters: TensorParameters, rows: Any, *, given: Any = None, batch_size: int = 1024
    ) -> Float[Array, " rows"]:
        """Compute ``log p(row)`` of every row, in batches: joint, marginal or conditional.

        The circuit is normalised by its log-partition, whatever its weights.

        Args:
            parameters: the numbers, normalised or not.
            rows: states ``[rows, variables]``; missing entries (-1, NaN) are summed out.
            given: rows to condition on ``[rows, variables]``, or one for all:
                ``log p(row and given) - log p(given)``.
            batch_size: rows evaluated together; bounds memory, does not change the result.

        Returns:
            Natural logarithms, ``-inf`` for impossible rows; also where ``given`` is impossible.

        Raises:
            ValueError: rows that do not fit the circuit, or that contradict ``given`` by stating
                another value for the same variable.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; it must be at least 1.")
        if given is None:
            values = self._batched(parameters, rows, batch_size)
            return values - self.log_partition(parameters) if len(values) else values
        both, given = join_rows(self.states_from_data(rows), given)
        log_joint = self._batched(parameters, both, batch_size)
        return log_conditional(log_joint, self._batched(parameters, given, batch_size))

    def _batched(
        self, parameters: TensorParameters, rows: Any, batch_size: int
    ) -> Float[Array, " rows"]:
        states = self.states_from_data(rows)
        parts = []
        size = min(batch_size, max(len(states), 1))
        for start in range(0, len(states), size):
            part = states[start : start + size]
            filled = np.pad(part, ((0, size - len(part)), (0, 0)))  # one shape, one compilation
            parts.append(self.log_values(parameters, jnp.asarray(filled))[: len(part)])
        if not parts:
            return jnp.zeros(0, parameters.log_root.dtype)
        return jnp.concatenate(parts)

    @on_any_mesh(batch=("rows", "log_evidence"), out=0)
    def marginals(
        self,
        parameters: TensorParameters,
        rows: Any = None,
        *,
        log_evidence: Sequence[Float[Array, "rows _ _"]] | None = None,
    ) -> Tables:
        """Compute ``Pr(X_i = t | evidence)`` of all variables, rows and states at once.

        Args:
            parameters: the numbers.
            rows: states ``[rows, variables]``, -1 where missing, or None.
            log_evidence: soft evidence, as for `log_values`.

        Returns:
            Per cardinality (ascending) ``[rows, variables, states]``; zeros for impossible rows.

        Reference: Theorem 4.1.
        """
        table = self._table(parameters, rows, log_evidence)
        exact = known_wide(self.structure, parameters, True)
        grad = state_flows(self.structure, exact, parameters, table).transpose(2, 0, 1)
        members = zip(self.variables.members, self.variables.classes.tolist(), strict=True)
        return tuple(grad[:, ids, :card] for ids, card in members)

    @on_any_mesh(batch=("rows", "log_evidence"), out=0)
    def expected_values(
        self,
        parameters: TensorParameters,
        rows: Any = None,
        *,
        log_evidence: Sequence[Float[Array, "rows _ _"]] | None = None,
    ) -> Float[Array, "rows variables"]:
        """Compute ``E[X_i | evidence]`` of every variable, states counting as 0, 1, ...

        Args:
            parameters: the numbers.
            rows: states ``[rows, variables]``, -1 where missing, or None.
            log_evidence: soft evidence, as for `log_values`.

        Returns:
            Means ``[rows, variables]``; zeros for impossible rows.
        """
        table = self._table(parameters, rows, log_evidence)
        exact = known_wide(self.structure, parameters, True)
        grad = state_flows(self.structure, exact, parameters, table)
        numbers = jnp.arange(grad.shape[1], dtype=grad.dtype)[None, :, None]
        return jnp.sum(grad * numbers, axis=1).T

    @on_any_mesh(batch=("rows", "log_evidence"), out=0)
    def mpe(
        self,
        parameters: TensorParameters,
        rows: Any = None,
        *,
        log_evidence: Sequence[Float[Array, "rows _ _"]] | None = None,
        max_steps: int = 1000,
    ) -> Explanation:
        """Find a most probable joint state ``argmax_x p(x | evidence)`` for every row.

        Exact where every sum has one term (one unit, one component). Otherwise the problem is
        NP-hard: the search starts from the states of the best parse and from those of largest
        marginal probability, and climbs by the best change of one variable.

        Args:
            parameters: the numbers.
            rows: states ``[rows, variables]``, -1 where missing, or None.
            log_evidence: soft or hard evidence, as for `log_values`.
            max_steps: most changes of a variable.

        Returns:
            An `Explanation` of all rows; it says whether it is exact.

        Raises:
            ValueError: numbers that do not fit the circuit, or ``max_steps`` below 0.
        """
        if max_steps < 0:
            raise ValueError(f"max_steps is {max_steps}; it must be at least 0.")
        table = self._table(parameters, rows, log_evidence)
        states, values, steps = explain(self.structure, jnp.int32(max_steps), parameters, table)
        nothing = jnp.zeros((table.shape[2], 0), values.dtype)
        return Explanation(states.T, nothing, values, steps, is_exact(self.structure))

    @on_any_mesh(batch=("rows", "log_evidence"), out=1)
    def sample(
        self,
        parameters: TensorParameters,
        key: Key[Array, ""] | UInt32[Array, "2"],
        num_samples: int,
        rows: Any = None,
        *,
        log_evidence: Sequence[Float[Array, "rows _ _"]] | None = None,
    ) -> Int[Array, "samples *rows variables"]:
        """Draw joint states from ``p(x | evidence)``, for every row on its own.

        One upward pass, then a downward pass in which every sum that is reached selects a term
        with the probability of its gate.

        Args:
            parameters: the numbers.
            key: a JAX random key.
            num_samples: how many for each row; static under ``jit``. All are in memory at once.
            rows: states ``[rows, variables]``; the missing entries (-1) are drawn. None: all are.
            log_evidence: soft or hard evidence, as for `log_values`.

        Returns:
            States ``[samples, rows, variables]``, ``[samples, variables]`` without evidence; where
            the evidence is impossible they mean nothing.

        Raises:
            ValueError: numbers that do not fit the circuit, or fewer than one sample.
        """
        if num_samples < 1:
            raise ValueError(f"num_samples is {num_samples}; it must be at least 1.")
        free = rows is None and log_evidence is None
        if free:
            rows = jnp.full((1, self.num_variables), -1, jnp.int8)
        table = self._table(parameters, rows, log_evidence)
        states = draw_states(self.structure, num_samples, parameters, table, key)
        states = states.transpose(1, 2, 0)
        return states[:, 0] if free else states

    @on_any_mesh(batch=("rows", "log_evidence"), out=(0, "parameters"))
    def flows(
        self,
        parameters: TensorParameters,
        rows: Any = None,
        row_weights: Float[Array, " rows"] | None = None,
        *,
        log_evidence: Sequence[Float[Array, "rows _ _"]] | None = None,
        softening: float = 0.0,
    ) -> tuple[Float[Array, " rows"], TensorParameters]:
        """Compute log-values and the expected number of times each weight is used.

        One upward and one backward pass: the derivative of the log-value with respect to a
        log-weight is the probability, given the row, that the parse uses it. It is the E-step of
        EM, an I-projection of the row's face of the simplex.

        Args:
            parameters: the numbers.
            rows: states, -1 where missing.
            row_weights: weight of each row in the sum; ones if None.
            log_evidence: instead of rows, as for `log_values`.
            softening: as for `log_values`.

        Returns:
            Log-values ``[rows]`` and flows summed over the rows, shaped like the parameters.
        """
        self.check(parameters)
        dtype = parameters.log_root.dtype
        evidence = read_evidence(self.structure, rows, log_evidence, dtype)
        exact = known_wide(self.structure, parameters, evidence.states is None)
        values, back = jax.vjp(
            lambda p: root_values(self.structure, float(softening), exact, p, evidence), parameters
        )
        if row_weights is None:
            row_weights = jnp.ones_like(values)
        (out,) = back(row_weights)
        return values, out

    def to_circuit(self, parameters: TensorParameters) -> CircuitModel:
        """Build the explicit circuit with the same values; for small circuits and all queries.

        Its ``log_weights`` are those of the sum nodes in order, unit by unit, then the root's;
        zero weights are left out.

        Args:
            parameters: the numbers.
        """
        self.check(parameters)
        return explicit(self.structure, parameters)
