"""Every statement comes out as it should; and every check can fail.

Each kind of fault is put in once and must be noticed.
"""

import inspect

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import pytest

import klprojax.checks as checks
import klprojax.checks._corollary_3_4 as corollary
import klprojax.checks._differential as differential
import klprojax.checks._instances as instances
import klprojax.checks._lemma_3_2 as lemma
import klprojax.checks._proposition_3_1 as proposition
import klprojax.checks._section_2 as section
import klprojax.checks._section_4 as circuits
import klprojax.checks._theorem_3_3 as theorem
import klprojax.lifting._layered as layered
import klprojax.lifting._sweeps as sweeps
import klprojax.operators._t_proj as t_proj_module
from klprojax.checks import registered_checks, run_check
from klprojax.circuits import CircuitBuilder
from klprojax.geometry import ProductFamily, i_projection, log_normalize, right_projection
from klprojax.graphs._replication import ReplicatedLift
from klprojax.lifting import DeltaLift, delta_lift
from klprojax.projections import Cyclic, DifferenceMap

ENTRIES = {entry.name: entry for entry in registered_checks()}
LITERAL = ("proposition_3_1_ii_literal", "theorem_4_6_literal", "remark_4_7")


# Cheap to compile, and of every module; the rest follows where time is no matter.
QUICK = (
    "section_2_dual_coordinates",
    "section_2_duality",
    "section_2_consensus_projection",
    "section_2_product_projection",
    "section_2_consensus_of_copies",
    "t_proj_by_elimination",
    "lemma_3_2_jets",
    "theorem_3_3_differences",
    "theorem_3_3_gradient",
    "corollary_3_4_layers",
    "theorem_4_1_a",
    "theorem_4_6",
)


# The demonstration runs all of them in double precision.
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in QUICK else pytest.mark.slow) for n in ENTRIES]
)
def test_double_precision(name):
    comes_out(name, seed=1, dtype="float64")


@pytest.mark.parametrize("name", ENTRIES)
def test_single_precision(name):
    comes_out(name, seed=1, dtype="float32")


def comes_out(name, **options):
    check = run_check(ENTRIES[name], **options)
    assert check.error is None, check.error
    assert check.as_expected, check
    assert check.holds == (name not in LITERAL)
    # Nothing is compared with itself; the referee does the same operations in the same order, and
    # without the compiler's optimisations agrees to the last bit.
    assert check.residual > 0 or name == "corollary_3_4_gradient"


def test_the_list_covers_sections_2_to_4():
    labels = {entry.statement for entry in ENTRIES.values()}
    for label in ("Proposition 3.1", "Proposition 3.1 (i)", "Proposition 3.1 (ii)", "Lemma 3.2"):
        assert label in labels
    assert {"Theorem 3.3", "Corollary 3.4", "Section 2, duality"} <= labels
    assert {"Theorem 4.1 (a)", "Theorem 4.1 (b)", "Theorem 4.6", "Remark 4.7"} <= labels
    assert {f"Lemma 4.{k}" for k in (2, 3, 4, 5)} <= labels
    assert {name for name, entry in ENTRIES.items() if not entry.expected} == set(LITERAL)
    for name in LITERAL[:2]:
        literal = ENTRIES[name]
        assert literal.reading == "taken literally"
        # The same statement is there in a reading in which it holds.
        held = [e for e in ENTRIES.values() if e.statement == literal.statement and e.expected]
        assert held
        assert all(e.reading not in ("as printed", literal.reading) for e in held)


@pytest.mark.parametrize("name", ENTRIES)
def test_every_check_is_public_and_says_what_it_checks(name):
    function = getattr(checks, name)
    assert function is ENTRIES[name].function
    assert "Source: " in function.__doc__
    signature = inspect.signature(function)
    assert list(signature.parameters) == ["seed", "size", "dtype"]
    assert signature.return_annotation is checks.Check


def test_the_counterexample_does_not_hang_on_the_seed():
    for seed in range(6):
        check = checks.proposition_3_1_ii_literal(seed=seed)
        assert check.as_expected
        # Five models a seed; their beliefs lie so far from uniform.
        assert check.residual > 0.05


def test_other_sizes():
    assert checks.section_2_duality(size=11).holds
    assert checks.section_2_consensus_of_copies(size=5).holds
    assert checks.t_proj_by_elimination(size=7).holds
    assert checks.theorem_3_3_seed(size=1).holds


@pytest.mark.parametrize(
    ("name", "size", "least"),
    [
        ("section_2_duality", 1, 2),
        ("t_proj_is_exact", 2, 3),
        ("proposition_3_1_i", 1, 2),
        ("lemma_3_2_jets", 0, 1),
        ("theorem_3_3_gradient", 1, 2),
        ("corollary_3_4_layers", 0, 1),
    ],
)
def test_sizes_too_small_to_show_anything(name, size, least):
    with pytest.raises(ValueError, match=f"size is {size}; this check needs at least {least}"):
        getattr(checks, name)(size=size)


# Faults, and the checks that must notice them.


def fails(name, error=None):
    check = run_check(ENTRIES[name])
    assert not check.holds, check
    assert not check.as_expected
    if error is None:
        assert check.error is None, check
        # No matter of the last digits.
        assert check.residual > 100 * check.tolerance
    else:
        assert error in check.error


@pytest.fixture(autouse=True)
def lift_anew(request):
    """Lifts are compiled for themselves: a new one has the fault, an old one has not."""
    if "monkeypatch" not in request.fixturenames:
        yield
        return
    lifted = theorem._lifted, corollary._lifted, differential._lifted
    for cached in lifted:
        cached.cache_clear()
    yield
    for cached in lifted:
        cached.cache_clear()


def test_dropping_messages_at_a_fan_out(monkeypatch):
    monkeypatch.setattr(sweeps, "product_of_messages", lambda slopes: slopes[0] if slopes else None)
    for name in ("tables", "gradient", "differences"):
        fails(f"theorem_3_3_{name}")


def test_transposing_a_weight(monkeypatch):
    args = theorem.computation_arguments(0, 3, "float64")

    def transposed(p, x):
        return theorem.computation({**p, "recurrent": p["recurrent"].T}, x)

    lift = delta_lift(transposed, *args)
    monkeypatch.setattr(theorem, "_lifted", lambda seed, size, dtype: (args, lift))
    for name in ("gradient", "tables_gradient", "differences"):
        fails(f"theorem_3_3_{name}")


def test_an_output_factor_that_changes_sign(monkeypatch):
    monkeypatch.setattr(theorem, "output_factor", lambda z: z - 100.0)
    for name in ("tables", "gradient"):
        fails(f"theorem_3_3_{name}", "must be positive and finite")
    monkeypatch.setattr(lemma, "incoming_message", lambda y: -1 - y**2)
    fails("lemma_3_2_jets", "must be positive and finite")


def test_a_wrong_log_slope_of_the_output_factor(monkeypatch):
    # φ' in place of φ'/φ.
    monkeypatch.setattr(theorem, "output_slope", lambda z: float(np.exp(z) + np.exp(z / 2) / 2))
    for name in ("gradient", "tables_gradient", "differences"):
        fails(f"theorem_3_3_{name}")
    monkeypatch.setattr(lemma, "incoming_log_slope", lambda y: 3 * np.cos(3 * y))
    for name in ("lemma_3_2_jets", "lemma_3_2_tables", "theorem_3_3_seed"):
        fails(name)


def _with_tables(monkeypatch, change):
    """Let a function change the tables that T_Proj is applied to."""
    make = DeltaLift.table_graph

    def changed(self, *args, **options):
        tables = make(self, *args, **options)
        return eqx.tree_at(lambda t: t.log_potentials, tables, change(tables))

    monkeypatch.setattr(DeltaLift, "table_graph", changed)


def test_a_reversed_delta_table_changes_the_differential(monkeypatch):
    # One factor of two arguments, read backwards along its output.
    _with_tables(
        monkeypatch,
        lambda t: (
            t.log_potentials[0],
            t.log_potentials[1].at[0].set(t.log_potentials[1][0, ::-1]),
        ),
    )
    fails("theorem_3_3_differential_forward")
    # Errors that do not tend to zero have order zero.
    assert run_check(ENTRIES["theorem_3_3_differential"]).residual > 0.9


def test_a_branch_that_stays_where_it_is(monkeypatch):
    # One reader of an input always says its forward value: that branch's message is lost.
    certain = jnp.where(jnp.arange(3) == 1, 0.0, -jnp.inf)

    def clamp(tables):
        table = tables.log_potentials[0]
        still = jnp.broadcast_to(certain[:, None], table.shape[1:])
        return (table.at[0].set(still), *tables.log_potentials[1:])

    _with_tables(monkeypatch, clamp)
    fails("theorem_3_3_differential_forward")
    assert run_check(ENTRIES["theorem_3_3_differential"]).residual > 0.9


def test_projections_in_the_wrong_order(monkeypatch):
    # Factorise first, agree afterwards.
    def swapped(graph, log_potentials, log_evidence):
        lift = ReplicatedLift(graph, evidence=True)
        joint = lift.log_table(log_potentials, log_evidence)
        product = right_projection(ProductFamily(), joint).value
        agreed = i_projection(lift.consensus, product).value
        return lift.read_variables(ProductFamily().marginals(agreed))

    monkeypatch.setattr(t_proj_module, "_dense", swapped)
    fails("theorem_3_3_differential_forward")


def test_t_spn_of_other_evidence(monkeypatch):
    t_spn = differential.t_spn

    def blurred(circuit, log_weights, evidence, method):
        # The marginals of other evidence than asked for.
        return t_spn(circuit, log_weights, tuple(e / 2 for e in evidence), method=method)

    monkeypatch.setattr(differential, "t_spn", blurred)
    fails("theorem_4_6_differential")


def test_leaving_out_an_activations_slope(monkeypatch):
    monkeypatch.setattr(layered, "_activation_rule", lambda activation, u, slope: slope)
    for name in ("layers", "gradient"):
        fails(f"corollary_3_4_{name}")


def test_permuting_a_weight(monkeypatch):
    network = corollary.Layers.network

    def permuted(self, dtype):
        return network(self._replace(weights=[self.weights[0][:, ::-1], *self.weights[1:]]), dtype)

    monkeypatch.setattr(corollary.Layers, "network", permuted)
    for name in ("layers", "delta_lift", "tables", "projections"):
        fails(f"corollary_3_4_{name}")
    # Errors that do not tend to zero have order zero.
    for name in ("table_order", "projection_order"):
        check = run_check(ENTRIES[f"corollary_3_4_{name}"])
        assert not check.holds
        assert check.residual > 0.9


def test_training_on_other_slopes(monkeypatch):
    slopes = corollary._trained

    def without_last_row(model, x, y, rows, loss, ratio):
        return slopes(model, x, y, rows.at[-1].set(0.0), loss, ratio=ratio)

    monkeypatch.setattr(corollary, "_trained", without_last_row)
    fails("corollary_3_4_training")


def test_instances_of_another_operator(monkeypatch):
    em_step, decode, t_spn = instances.em_step, instances.decode, instances.t_spn
    with monkeypatch.context() as patch:
        patch.setattr(instances, "em_step", lambda *given: em_step(*given, pseudocount=0.01))
        fails("one_operator_em")
    with monkeypatch.context() as patch:
        patch.setattr(instances, "_naive_bayes", lambda table: table)
        fails("one_operator_em")
    with monkeypatch.context() as patch:
        min_sum = {"semiring": "max", "early_stop": False}
        patch.setattr(instances, "decode", lambda *given, early_stop: decode(*given, **min_sum))
        fails("one_operator_codes")
    with monkeypatch.context() as patch:
        patch.setattr(instances, "Dykstra", Cyclic)
        fails("one_operator_codes")
    with monkeypatch.context() as patch:
        patch.setattr(instances, "DouglasRachford", DifferenceMap)
        fails("one_operator_training")

    def unweighted(circuit, log_weights, *given, **options):
        return t_spn(circuit, jnp.zeros_like(log_weights), *given, **options)

    monkeypatch.setattr(instances, "t_spn", unweighted)
    fails("one_operator_circuits")


def test_an_operator_that_forgets_consensus(monkeypatch):
    def forgetful(log_table, copies):
        return ProductFamily().right_projection(log_table).value

    monkeypatch.setattr(proposition, "_t_proj_dense", forgetful)
    fails("t_proj_is_exact")
    fails("proposition_3_1_ii_powers")
    # Products are fixed points of factorisation alone: the literal claim would now be true.
    check = run_check(ENTRIES[LITERAL[0]])
    assert not check.as_expected
    assert "in this reading the difference must be" in check.error


def test_a_hybrid_without_corrections(monkeypatch):
    step = proposition._hybrid_step

    def plain(state, consensus):
        zero = jnp.zeros_like(state[0])
        return step((state[0], zero, zero), consensus)

    monkeypatch.setattr(proposition, "_hybrid_step", plain)
    for name in ("proposition_3_1_iterates", "proposition_3_1_ii_corrected"):
        fails(name)


@pytest.mark.parametrize("correction", [1, 2])
def test_a_correction_of_the_wrong_sign(monkeypatch, correction):
    step = proposition._hybrid_step

    def flipped(state, consensus):
        *new, k, r = step(state, consensus)
        new[correction] = -new[correction]
        return *new, k, r

    monkeypatch.setattr(proposition, "_hybrid_step", flipped)
    for name in ("proposition_3_1_iterates", "proposition_3_1_ii_corrected"):
        fails(name)


def test_messages_that_forget_their_sender(monkeypatch):
    # Beliefs in place of the messages m_{i→k}: the recipient's own message comes back to it.
    flood = proposition.flood

    def echoing(model, messages):
        return flood(model, {edge: m**2 / np.sum(m**2) for edge, m in messages.items()})

    monkeypatch.setattr(proposition, "flood", echoing)
    for name in ("proposition_3_1_iterates", "proposition_3_1_factored"):
        fails(name)


def test_a_graph_that_is_no_tree(monkeypatch):
    monkeypatch.setattr(proposition, "random_tree", proposition.random_cycle)
    fails("proposition_3_1_i", "ValueError")


def test_exact_marginals_are_not_beliefs_on_a_cycle(monkeypatch):
    def beliefs(model):
        return proposition.beliefs(model, proposition.fixed_point(model))

    monkeypatch.setattr(proposition, "enumerated_marginals", beliefs)
    fails("t_proj_is_exact")
    fails("t_proj_by_elimination")


def test_projections_that_are_not_nearest(monkeypatch):
    def feasible(constraint, log_table, **options):
        result = constraint.left_projection(log_table)
        tilt = jnp.arange(log_table.size, dtype=log_table.dtype).reshape(log_table.shape) / 10
        return type(result)(
            log_normalize(result.value + tilt), result.residual, result.steps, result.converged
        )

    def product(constraint, log_table):
        # A product, but of squared marginals.
        result = constraint.right_projection(log_table)
        return type(result)(
            log_normalize(2 * result.value), result.residual, result.steps, result.converged
        )

    monkeypatch.setattr(section, "_i_projection", feasible)
    monkeypatch.setattr(section, "_right_projection", product)
    monkeypatch.setattr(section, "i_projection", feasible)
    for name in ("consensus_projection", "product_projection", "consensus_of_copies"):
        fails(f"section_2_{name}")
    fails("section_2_convex_projection")


def test_divergences_with_their_arguments_swapped(monkeypatch):
    kl = section.kl
    monkeypatch.setattr(section, "kl", lambda p, q: kl(q, p))
    fails("section_2_duality")
    fails("section_2_product_projection")


def test_wrong_dual_coordinates(monkeypatch):
    monkeypatch.setattr(section.NegativeEntropy, "to_dual", lambda self, p: jnp.log(p))
    fails("section_2_dual_coordinates")


def test_scales_that_are_no_scales(monkeypatch):
    fixed_point = section.fixed_point

    def unary_left_out(model):
        tables = (np.zeros_like(model.log_tables[0]), *model.log_tables[1:])
        return fixed_point(model._replace(log_tables=tables))

    monkeypatch.setattr(section, "fixed_point", unary_left_out)
    fails("section_2_gauge_invariance")


# -- section 4 -----------------------------------------------------------------------------------


def test_a_sweep_that_forgets_a_weight(monkeypatch):
    original = circuits.sweep

    def wrong(circuit, log_weights, *rest):
        return original(circuit, log_weights.at[0].set(0.0), *rest)

    monkeypatch.setattr(circuits, "sweep", wrong)
    for name in ("theorem_4_1_a", "theorem_4_1_b", "theorem_4_1_differences", "lemma_4_5"):
        fails(name)


def test_an_unfolding_that_mixes_up_copies(monkeypatch):
    original = circuits.unfold

    def wrong(circuit):
        made = original(circuit)
        # Two neighbours among the nodes that have several copies change places.
        copies = made.copy_of.copy()
        copies[-2:] = copies[-2:][::-1]
        return made._replace(copy_of=copies)

    monkeypatch.setattr(circuits, "unfold", wrong)
    fails("lemma_4_3")
    fails("lemma_4_4")


def test_a_lift_without_evidence(monkeypatch):
    original = circuits.t_spn

    def wrong(circuit, log_weights, log_evidence, **options):
        return original(circuit, log_weights, None, **options)

    monkeypatch.setattr(circuits, "t_spn", wrong)
    fails("lemma_4_2")
    fails("theorem_4_6")


def test_regions_that_are_mixed_are_exact_and_flagged(monkeypatch):
    def exact(circuit, log_weights):
        tables = original(circuit, log_weights).marginals
        return [np.asarray(table) for table in circuit.unpack_variables(tables)]

    original = circuits.sweep
    monkeypatch.setattr(circuits, "scope_table_marginals", exact)
    check = run_check(ENTRIES["theorem_4_6_literal"], dtype="float64")
    assert not check.as_expected
    assert "in this reading the difference must be" in check.error


def test_readings_that_fail_do_not_pass_on_garbage(monkeypatch):
    def uniform(circuit, log_weights):
        return [np.full(card, 1 / card) for card in circuit.cardinalities]

    monkeypatch.setattr(circuits, "scope_table_marginals", uniform)
    check = run_check(ENTRIES["theorem_4_6_literal"], dtype="float64")
    assert not check.as_expected
    assert "in this reading the difference must be" in check.error


def test_a_circuit_that_is_not_refused(monkeypatch):
    build = CircuitBuilder.build
    monkeypatch.setattr(
        CircuitBuilder,
        "build",
        lambda self, root, **options: build(self, root, **{**options, "validate": False}),
    )
    check = run_check(ENTRIES["remark_4_7"], dtype="float64")
    assert not check.as_expected
    assert "was not refused" in check.error
