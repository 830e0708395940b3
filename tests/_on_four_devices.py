"""Run on four devices: every verb, on explicit and automatic axes, gives what one device gives."""

import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import klprojax as kp
from klprojax import circuits, codes, geometry, training
from klprojax.circuits import learning, tensor

assert len(jax.devices()) == 4
DTYPE = np.dtype(sys.argv[1])
ROWS = 8
rng = np.random.default_rng(0)
MESHES = {
    kind: jax.make_mesh((4,), ("rows",), axis_types=(getattr(AxisType, kind),))
    for kind in ("Explicit", "Auto")
}
# Work is split over rows, which do not mix but in sums over them; compiled for one device and for
# four, arithmetic is fused and ordered differently: some roundings of eps = 2.2e-16 or 1.2e-7.
TOLERANCE = 1e-12 if DTYPE.name == "float64" else 1e-6


def split(tree, mesh, axis=0):
    spec = PartitionSpec(*[None] * axis, "rows")
    return jax.tree.map(lambda x: jax.device_put(x, NamedSharding(mesh, spec)), tree)


def agree(name, function, batch, whole=(), **options):
    """Compare.

    Options: `axis` of the rows in the batch; `rows_out`, the axis along which results stay split,
    None if not looked at; `jit`; `tolerance`; `thorough`: also on automatic axes, and with the
    explicit mesh set.
    """
    axis, rows_out = options.get("axis", 0), options.get("rows_out")
    jit, tolerance = options.get("jit", True), options.get("tolerance", TOLERANCE)
    cases = [("Explicit", "unset")]
    if options.get("thorough") or not jit:
        cases = [("Explicit", "unset"), ("Explicit", "set"), ("Auto", "unset")]
    run = eqx.filter_jit(function) if jit else function
    want = run(batch, *whole)
    for kind, how in cases:
        mesh = MESHES[kind]
        try:
            if how == "set":
                with jax.set_mesh(mesh):
                    got = run(split(batch, mesh, axis), *whole)
            else:
                got = run(split(batch, mesh, axis), *whole)
        except Exception as error:
            raise AssertionError(f"{name}, {kind} axes, {how}") from error
        for a, b in zip(
            jax.tree.leaves(eqx.filter(got, eqx.is_array)),
            jax.tree.leaves(eqx.filter(want, eqx.is_array)),
            strict=True,
        ):
            where = f"{name}, {kind}, {how}"
            assert a.dtype == b.dtype, where
            x, y = np.asarray(a), np.asarray(b)
            scale = max(1.0, float(np.abs(np.where(np.isfinite(y), y, 0)).max(initial=0)))
            np.testing.assert_allclose(x, y, rtol=0, atol=tolerance * scale, err_msg=where)
            if kind == "Explicit" and rows_out is not None:
                assert a.sharding.spec[rows_out] == "rows", (where, a.sharding)
    print(name, flush=True)


def model(kind):
    """A graph, its tables, and evidence of several rows."""
    cards, scopes = {
        "tree": ([2, 3, 2], [(0, 1), (1, 2)]),
        "binary": ([2, 2, 2], [(0, 1), (1, 2), (2, 0)]),
        "loop": ([2, 3, 2], [(0, 1), (1, 2), (2, 0)]),
    }[kind]
    graph = kp.FactorGraph(cards, scopes)
    tables = [0.5 * rng.normal(size=[cards[v] for v in scope]) for scope in scopes]
    log_potentials = graph.pack([np.asarray(table, DTYPE) for table in tables])
    evidence = tuple(
        np.asarray(rng.normal(size=(ROWS, *t.shape)), DTYPE) for t in graph.log_evidence({})
    )
    return graph, log_potentials, evidence


def inference(more=False):
    # The residuals of two programs differ by rounding: stop at a fixed number of steps.
    fixed = {"tolerance": 0.0, "engine": "log"}
    bp = kp.BeliefPropagation
    # Solver and, if its derivatives are compared too, the adjoint.
    cases = [
        ("total", "loop", kp.Elimination(), None),
        ("flooding, implicit", "binary", bp(**fixed), kp.ImplicitAdjoint()),
        ("sequential", "binary", bp(schedule=kp.Sequential(), **fixed), None),
        ("residual", "binary", bp(schedule=kp.Residual(), **fixed), None),
        ("tree", "tree", bp(schedule=kp.TreeSweep()), None),
        ("hybrid", "binary", kp.DykstraHybrid(tolerance=0.0), None),
    ]
    if more:
        cases = [
            ("elimination", "loop", kp.Elimination(), kp.UnrolledAdjoint()),
            ("flooding, fast", "binary", bp(tolerance=0.0, engine="fast"), kp.UnrolledAdjoint()),
        ]
    for name, kind, solver, adjoint in cases[:1] if DTYPE.name == "float32" else cases:
        graph, log_potentials, evidence = model(kind)

        def value(evidence, tables, graph=graph, solver=solver, adjoint=adjoint):
            solution = kp.infer(
                graph, tables, solver, log_evidence=evidence, adjoint=adjoint, max_steps=40
            )
            return solution.log_partition + jnp.sum(solution.beliefs[0] ** 2)

        def both(evidence, tables, value=value):
            return jax.vmap(jax.value_and_grad(value, (0, 1)), (0, None))(evidence, tables)

        mapped = both if adjoint is not None else jax.vmap(value, (0, None))
        if name == "total":

            def total(evidence, tables, mapped=mapped):
                return jax.grad(lambda e, t: jnp.sum(mapped(e, t)), (0, 1))(evidence, tables)

            agree(name, total, evidence, (log_potentials,), thorough=True)
            continue
        # A linear solve to eps^0.75 stands between the two implicit derivatives.
        close = 20 * TOLERANCE if isinstance(adjoint, kp.ImplicitAdjoint) else TOLERANCE
        agree(name, mapped, evidence, (log_potentials,), rows_out=0, tolerance=close)
    if more:
        return
    graph, log_potentials, evidence = model("loop")
    agree(
        "t_proj",
        jax.vmap(lambda e: kp.t_proj(graph, log_potentials, e, method="dense")),
        evidence,
        rows_out=0,
    )
    # Not mapped, not compiled: tables of a whole graph split over factors.
    graph = kp.FactorGraph([2] * 8, [(i, (i + 1) % 8) for i in range(8)])
    tables = graph.pack([0.5 * np.asarray(rng.normal(size=(2, 2)), DTYPE) for _ in range(8)])
    agree("eager", lambda t: kp.infer(graph, t, bp(**fixed)).beliefs, tables, jit=False)


def rest():
    even = jnp.zeros(3, DTYPE)
    constraint = geometry.MarginalConstraints([(0, even), (1, even)])
    agree(
        "i_projection",
        jax.vmap(lambda q: geometry.i_projection(constraint, q).value),
        np.asarray(rng.normal(size=(ROWS, 3, 3)), DTYPE),
        rows_out=0,
        # The number of sweeps may differ by one: the default tolerance.
        tolerance=float(np.finfo(DTYPE).eps) ** (2 / 3),
    )
    code = codes.ParityCheckCode([[1, 1, 0, 1], [0, 1, 1, 1]])
    words = np.asarray(rng.normal(size=(4, ROWS)), DTYPE)
    agree("decode", lambda w: codes.decode(code, w), words, axis=1, rows_out=-1, thorough=True)


def structured():
    code = codes.ParityCheckCode([[1, 1, 0, 1], [0, 1, 1, 1]])
    words = np.asarray(rng.normal(size=(ROWS, 4)), DTYPE)

    def checked(log_odds):
        solver = kp.BeliefPropagation(tolerance=0.0, engine="log")
        evidence = code.log_evidence(log_odds)
        solution = kp.infer(
            code.graph, code.log_potentials, solver, log_evidence=evidence, max_steps=20
        )
        return solution.log_partition

    agree("structured", jax.vmap(checked), words, rows_out=0)


def circuit_verbs(more=False):
    rows = rng.integers(0, 2, size=(ROWS, 3)).astype(np.int8)
    rows[0, 1] = -1
    circuit = tensor.hclt(rows, units=2)
    numbers = circuit.init(0, dtype=DTYPE)
    key = jax.random.key(0)
    verbs = {  # the axis of the rows in the result, and whether to compile
        "log_values": (circuit.log_values, 0, True),
        "log_likelihood": (circuit.log_likelihood, 0, False),  # reads its rows on the host
        "marginals": (circuit.marginals, 0, False),
        "mpe": (circuit.mpe, 0, True),
        "sample": (lambda p, rows: circuit.sample(p, key, 3, rows), 1, False),
        "em_step": (lambda p, rows: learning.em_step(circuit, p, rows), None, True),
        "slopes": (lambda p, x: jax.grad(lambda p: circuit.log_values(p, x).sum())(p), None, True),
    }
    for name, (verb, out, jit) in verbs.items():
        if (name == "mpe") != more:  # compiles long
            continue
        if DTYPE.name == "float32" and name not in ("log_values", "em_step"):
            continue
        call = lambda rows, numbers, verb=verb: verb(numbers, rows)  # noqa: E731
        agree(name, call, jnp.asarray(rows), (numbers,), rows_out=out, jit=jit)
    if more:
        return
    builder = circuits.CircuitBuilder([2, 2])
    root = builder.sum(
        [
            builder.product([builder.indicator(0, s), builder.indicator(1, t)])
            for s, t in ((0, 0), (0, 1), (1, 1))
        ],
        np.log([0.2, 0.3, 0.5]),
    )
    explicit, log_weights, _ = builder.build(root)
    log_weights = log_weights.astype(DTYPE)
    evidence = (np.asarray(rng.normal(size=(ROWS, 2, 2)), DTYPE),)

    def swept(evidence, weights):
        out = circuits.sweep(explicit, weights, evidence)
        return out.log_partition + jnp.sum(out.visits**2)

    agree("sweep", jax.vmap(swept, (0, None)), evidence, (log_weights,), rows_out=0)
    agree(
        "explicit log_likelihood",
        lambda rows: circuits.log_likelihood(explicit, log_weights, rows),
        jnp.asarray(rng.integers(0, 2, size=(ROWS, 2))),
        rows_out=0,
        jit=False,
    )


def queries():
    builder = circuits.CircuitBuilder([2, 2])
    pairs = [
        builder.product([builder.indicator(0, s), builder.indicator(1, t)])
        for s, t in ((0, 0), (0, 1), (1, 1))
    ]
    circuit, log_weights, _ = builder.build(builder.sum(pairs, np.log([0.2, 0.3, 0.5])))
    log_weights = log_weights.astype(DTYPE)
    evidence = (np.asarray(rng.normal(size=(ROWS, 2, 2)), DTYPE),)
    key = jax.random.key(0)
    verbs = {
        "t_spn": circuits.t_spn,
        "entropy": circuits.entropy,
        "explicit expected_values": circuits.expected_values,
        "explicit mpe": circuits.mpe,
        "explicit sample": lambda c, w, e: circuits.sample(c, w, key, 3, e),
    }
    for name, verb in verbs.items():
        call = jax.vmap(lambda e, w, verb=verb: verb(circuit, w, e), (0, None))
        agree(name, call, evidence, (log_weights,), rows_out=0)
    others = np.asarray(log_weights + 0.1 * rng.normal(size=(ROWS, 3)), DTYPE)
    divergence = jax.vmap(lambda v, w: circuits.kl_divergence(circuit, w, v), (0, None))
    agree("kl_divergence", divergence, others, (log_weights,), rows_out=0)
    rows = rng.integers(0, 2, size=(ROWS, 3)).astype(np.int8)
    dense = tensor.hclt(rows, units=2)
    numbers = dense.init(0, dtype=DTYPE)
    for name, verb in (
        ("classify", lambda rows: circuits.classify(dense, numbers, rows, 0)),
        ("expected_values", lambda rows: dense.expected_values(numbers, rows)),
    ):
        agree(name, verb, jnp.asarray(rows), rows_out=0, jit=False)


def steps():
    x = np.asarray(rng.normal(size=(ROWS, 4)), DTYPE)
    y = np.asarray(rng.normal(size=(ROWS, 3)), DTYPE)
    ones = np.ones(ROWS, DTYPE)
    network = eqx.nn.MLP(4, 3, 5, 1, key=jax.random.key(0), dtype=DTYPE)
    loss = training.SquaredError()
    for step in (
        training.GradientStep(optax.sgd(0.1)),
        training.ProjectionStep(),
        training.ProjectionDirection(optax.sgd(0.1)),
    ):

        def update(batch, network, step=step):
            model, _, info = step.update(network, step.init(network), *batch, loss)
            return eqx.filter(model, eqx.is_array), info.loss

        agree(type(step).__name__, update, (x, y, ones), (network,), tolerance=10 * TOLERANCE)
    step = training.GradientStep(optax.sgd(0.1))
    options = {"loss": loss, "epochs": 2, "batch_size": 5}
    want = training.fit(network, step, (x, y), devices=jax.devices()[:1], **options)
    for kind, mesh in MESHES.items():
        got = training.fit(network, step, split((x, y), mesh), **options)
        for a, b in zip(
            jax.tree.leaves(eqx.filter((got.model, got.last_model), eqx.is_array)),
            jax.tree.leaves(eqx.filter((want.model, want.last_model), eqx.is_array)),
            strict=True,
        ):
            # Four updates, each rounding a sum of rows in another order.
            np.testing.assert_allclose(a, b, rtol=0, atol=10 * TOLERANCE, err_msg=kind)
    print("fit", flush=True)


PARTS = {
    "inference": (inference,),
    "others": (rest, circuit_verbs, steps),
    "more": (lambda: inference(True), structured, lambda: circuit_verbs(True), queries),
}
for part in sys.argv[2].split("+"):
    for check in PARTS[part]:
        check()
