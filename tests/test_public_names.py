"""What is public: an explicit list, documented to the last parameter; and what may import what."""

import ast
import enum
import importlib
import inspect
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import equinox as eqx
import pytest

import klprojax

PACKAGE = Path(klprojax.__file__).parent

NAMES = {
    "klprojax": """
        AbstractAdjoint AbstractMessageRule AlternatingProjections And Automaton BeliefPropagation
        Cardinality ContradictionError Cyclic CyclicProjections DiscreteModel DouglasRachford
        Dykstra DykstraHybrid Elimination Energy Entropy FactorGraph Flooding GradientReport
        GradientStep ImplicitAdjoint Joint ModelFileError MostProbable Or Parity ProjectionDirection
        ProjectionStep RESULTS Residual Samples Sequential Solution Structured TreeSweep
        UnrolledAdjoint checks circuits codes compose condition delta_lift fit fitting geometry
        graphs infer iterate left lifting load_model operators plots projections query read_evidence
        read_model right shipped_models t_proj t_spn training
    """,
    "klprojax.checks": """
        Check Registered check_function corollary_3_4_delta_lift corollary_3_4_gradient
        corollary_3_4_layers corollary_3_4_modules corollary_3_4_projection_order
        corollary_3_4_projections corollary_3_4_table_order corollary_3_4_tables
        corollary_3_4_training corollary_3_4_training_order lemma_3_2_jets lemma_3_2_tables
        lemma_4_2 lemma_4_3 lemma_4_4 lemma_4_5 one_operator_circuits one_operator_codes
        one_operator_em one_operator_schemes one_operator_training proposition_3_1_factored
        proposition_3_1_i proposition_3_1_ii_corrected proposition_3_1_ii_literal
        proposition_3_1_ii_powers proposition_3_1_iterates proposition_3_1_zeros registered_checks
        remark_4_7 run_check run_checks section_2_consensus_of_copies section_2_consensus_projection
        section_2_convex_projection section_2_dual_coordinates section_2_duality
        section_2_gauge_invariance section_2_gaussian section_2_moments section_2_product_projection
        section_3_1_rules section_3_2_nearest_points section_4_best_states section_4_learning
        section_4_leaves section_4_zeros statement t_proj_by_elimination t_proj_is_exact
        theorem_3_3_beliefs theorem_3_3_differences theorem_3_3_differential
        theorem_3_3_differential_forward theorem_3_3_gradient theorem_3_3_network theorem_3_3_seed
        theorem_3_3_tables theorem_3_3_tables_gradient theorem_4_1_a theorem_4_1_a_derivative
        theorem_4_1_b theorem_4_1_differences theorem_4_6 theorem_4_6_differential
        theorem_4_6_literal
    """,
    "klprojax.circuits": """
        AbstractContinuousLeaf AbstractDiscreteLeaf AbstractLeaf ActivationLift AdamStep
        Bernoulli Binomial Categorical Circuit CircuitBuilder CircuitError CircuitModel
        EMStep Explanation Gaussian Indicator LeafGroup Sweep TensorCircuit TensorParameters
        Unfolding Vtree activation_lift classify compile_model em_step entropy
        expected_values factorised_mixture fit hclt hidden_markov is_deterministic
        is_structured kl_divergence load_circuit load_tensor_circuit log_inner_product
        log_likelihood log_partition marginals mpe multiply poon_domingos quad_tree rat_spn
        read_nnf read_psdd read_sdd read_spn read_vtree sample save_circuit save_tensor_circuit
        scope_table_marginals sweep t_spn unfold write_nnf write_psdd write_spn write_vtree
    """,
    "klprojax.codes": """
        AbstractChannel BinarySymmetricChannel Decoded ErrorRate GaussianChannel
        ParityCheckCode decode plot_word_error_curve word_error_curve
    """,
    "klprojax.fitting": """
        AbstractStep Dataset StepInfo load_dataset
    """,
    "klprojax.geometry": """
        AbstractConstraint AbstractGenerator AbstractLeftConstraint AbstractRightConstraint
        ConsensusFace ExponentialFamily FixedPrecisionGaussian GaussianConsensus MarginalConstraints
        MomentConstraints NegativeEntropy ProductFamily ProjectionResult bregman_divergence
        consensus_of_copies finite_part i_projection kl_divergence log_marginal log_normalize
        right_projection safe_log safe_logsumexp
    """,
    "klprojax.graphs": """
        AbstractMessageRule ConditionedModel ContradictionError DiscreteModel FactorGraph
        GraphSignature GroupSignature ModelFileError ParityCheckMatrix ReplicatedLift Structured
        Wiring condition dense_table load_model parse_evidence read_alist read_bif read_cnf
        read_evidence read_fg read_model read_uai read_uai_mar read_uai_mmap read_uai_mpe
        read_uai_pr shipped_models write_alist write_bif write_uai write_uai_evidence write_uai_mar
        write_uai_mmap write_uai_mpe write_uai_pr
    """,
    "klprojax.lifting": """
        ActivationProjection Curvatures DeltaFactor DeltaLift ExpOutput LayerMessages
        LayeredNetwork LiftError LinearProjection LogOutput Message ParameterProjection
        Sensitivities Structure TableGraph TableSensitivities Variable delta_lift exp_output
        layer_messages project_activation project_linear project_linear_parameters
        projection_messages table_sensitivities
    """,
    "klprojax.operators": """
        AbstractIterativeSolver AbstractQuestion AbstractSolver And Automaton BPState
        BeliefPropagation BestStates Cardinality DykstraHybrid Elimination Energy Entropy Flooding
        HybridState Joint MostProbable Or Parity Residual Samples Sequential TooLargeError TreeSweep
        infer is_forest query t_proj t_proj_dense
    """,
    "klprojax.plots": """
        circuit convergence dynamics factor_graph learning_curves
    """,
    "klprojax.projections": """
        ADMM AbstractScheme AbstractSpace Cyclic DifferenceMap DouglasRachford Dykstra
        Gaussians LogTables Projection compose iterate left right
    """,
    "klprojax.training": """
        AbstractMove AbstractNetworkScheme AbstractOutputFactor AbstractStep
        AlternatingProjections CrossEntropy CyclicProjections Dataset Direction Evaluation
        FitResult FunctionLoss GradientAgreement GradientStep Margin Precisions ProjectionDirection
        ProjectionStep Relaxed SigmoidCrossEntropy Spectral Splitting SquaredError StepInfo
        batch_order evaluate fit gradient_agreement load_dataset projection_direction
        projection_slopes scan_fit
    """,
}

# From the ground up: a module may import what stands on an earlier line, and its own package.
LAYERS = (
    {"_types"},
    {"_variables", "_linear_solve", "_store", "_sharding", "_tracing", "_batching"},
    {"_solution", "_adjoint"},
    {"geometry"},
    {"graphs", "projections"},
    {"operators", "fitting"},
    {"codes", "lifting", "circuits"},
    {"training"},
    {"checks"},
    {"plots"},
    {"cli"},
)
MOST_LINES = 500
# Made by other functions, not by users: fields of the constructor are no part of the interface.
NOT_CONSTRUCTED_BY_USERS = {"DeltaLift": "delta_lift", "TableGraph": "DeltaLift.table_graph"}
# JAX's protocol for pytrees.
PROTOCOL = {"tree_flatten", "tree_unflatten"}


def public(package):
    module = importlib.import_module(package)
    names = dir(module) if module is klprojax else vars(module)
    return {
        name
        for name in names
        if not name.startswith("_")
        and (module is klprojax or not inspect.ismodule(getattr(module, name)))
    }


@pytest.mark.parametrize("package", NAMES)
def test_public_names_are_those_listed(package):
    assert public(package) == set(NAMES[package].split())


def test_every_package_is_listed():
    found = {
        "klprojax." + path.parent.name
        for path in PACKAGE.glob("*/__init__.py")
        if not path.parent.name.startswith("_")
    }
    assert set(NAMES) - {"klprojax"} == found - {"klprojax.cli", "klprojax.models"}


def test_top_level_table_and_the_imports_that_type_checkers_read_are_the_same():
    tree = ast.parse(Path(klprojax.__file__).read_text())
    (block,) = [n for n in tree.body if isinstance(n, ast.If) and _name(n.test) == "TYPE_CHECKING"]
    imported = {}
    for node in block.body:
        (alias,) = node.names
        assert alias.name == alias.asname
        imported[alias.name] = f".{node.module or ''}"
    subpackages = {name for name, module in imported.items() if module == "."}
    assert subpackages == set(klprojax._SUBPACKAGES)
    rest = {name: module for name, module in imported.items() if module != "."}
    assert rest == klprojax._MODULE_OF


def _name(node):
    return node.id if isinstance(node, ast.Name) else None


def test_lazy_names():
    from klprojax import FactorGraph, plots

    assert klprojax.FactorGraph is FactorGraph
    assert klprojax.plots is plots
    assert set(NAMES["klprojax"].split()) <= set(dir(klprojax))
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = klprojax.nothing
    with pytest.raises(ImportError, match="nothing"):
        from klprojax import nothing  # noqa: F401


# Documentation.


def objects():
    """Every public class and function once, under the name it has first."""
    seen, found = set(), []
    for package in NAMES:
        module = importlib.import_module(package)
        for name in NAMES[package].split():
            value = getattr(module, name)
            if inspect.ismodule(value) or not callable(value) or id(value) in seen:
                continue
            if not value.__module__.startswith("klprojax"):
                continue
            seen.add(id(value))
            found.append(pytest.param(value, id=f"{package}.{name}"))
    return found


def parameters(function):
    """Names a caller may give; what is positional only, or private, is no name."""
    return [
        p.name
        for p in inspect.signature(function).parameters.values()
        if p.name not in ("self", "cls")
        and not p.name.startswith("_")
        and p.kind is not inspect.Parameter.POSITIONAL_ONLY
    ]


def constructor(cls):
    if "__init__" in vars(cls):
        return parameters(cls.__init__)
    return list(getattr(cls, "_fields", ()))


def missing(names, text):
    return [name for name in names if not re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text)]


def is_check(value):
    return value.__module__.startswith("klprojax.checks._") and set(parameters(value)) == {
        *("seed", "size", "dtype")
    }


def test_all_checks_share_one_signature_that_the_package_documents():
    assert not missing(["seed", "size", "dtype", "Check"], klprojax.checks.__doc__)


@pytest.mark.parametrize("value", objects())
def test_documented(value):
    text = inspect.cleandoc(value.__doc__ or "")
    assert re.match(r"\S.*[^,;]", text), "no docstring"
    if inspect.isclass(value):
        check_class(value)
    elif not is_check(value):
        names = parameters(value)
        assert not missing(names, text)
        if names:
            assert "Args:" in text
        returns = inspect.signature(value).return_annotation
        if names and returns not in (None, "None"):
            assert re.search(r"^(Returns|Yields):|^Return |^Yield ", text, re.MULTILINE)


def check_class(cls):
    if issubclass(cls, enum.Enum | eqx.Enumeration | BaseException):
        return
    own = inspect.cleandoc(cls.__doc__)
    start = vars(cls).get("__init__")
    if cls.__name__ not in NOT_CONSTRUCTED_BY_USERS:
        assert not missing(constructor(cls), own + (getattr(start, "__doc__", None) or ""))
    for name, member in vars(cls).items():
        if name.startswith("_") or name in PROTOCOL:
            continue
        if isinstance(member, property):
            assert member.fget.__doc__, name
            continue
        function = getattr(member, "__func__", member)
        if inspect.isclass(function) or not callable(function):
            continue
        text = function.__doc__ or ""
        assert text, name
        if re.search(r"[Ss]ee (the class|`)", text):
            continue
        # A contract documents the parameters of those that implement it.
        contract = "".join(
            (base.__doc__ or "") + (getattr(vars(base).get(name), "__doc__", None) or "")
            for base in cls.__mro__
            if base.__module__.startswith("klprojax")
        )
        assert not missing(parameters(function), text + contract), name


# The shape of the package.


def imports(path):
    """Modules of this package that a file imports, as tuples of their path below it."""
    inside = path.relative_to(PACKAGE).with_suffix("").parts
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            module = tuple((node.module or "").split(".")) if node.module else ()
            if node.level:
                start = inside[: len(inside) - node.level]
                # What is imported from the top itself is named in the statement.
                if start + module:
                    yield start + module
                else:
                    for alias in node.names:
                        yield (klprojax._MODULE_OF.get(alias.name, "." + alias.name)[1:],)
            elif module[:1] == ("klprojax",):
                yield module[1:]
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "klprojax":
                    yield tuple(alias.name.split(".")[1:])


FILES = sorted(p for p in PACKAGE.rglob("*.py") if p != PACKAGE / "__init__.py")


def test_every_module_has_a_layer():
    tops = {p.relative_to(PACKAGE).with_suffix("").parts[0] for p in FILES}
    assert tops - {"models"} == set().union(*LAYERS)


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(PACKAGE).as_posix())
def test_imports_point_down(path):
    level = {name: depth for depth, names in enumerate(LAYERS) for name in names}
    own = path.relative_to(PACKAGE).with_suffix("").parts[0]
    for target in imports(path):
        # The command line stands on everything, so it alone may import the top.
        assert target or own == "cli", "import the module that defines the name, not the top"
        if target and target[0] != own:
            assert level[target[0]] < level[own], target


def test_jaxprs_are_read_in_one_room():
    # Whoever walks through a jaxpr tells literals from variables; whoever opens calls names these.
    readers = {
        path.relative_to(PACKAGE).parts[0]
        for path in FILES
        if re.search(r"\bjex\.Literal|call_jaxpr|fun_jaxpr", path.read_text())
    }
    assert readers == {"_tracing"}


def test_imports_of_a_file_are_found(tmp_path, monkeypatch):
    path = PACKAGE / "graphs" / "_files" / "_example.py"
    text = "\n".join(
        [
            "from ...geometry import a",
            "from ..._types import b",
            "from ... import infer, codes",
            "from .._model import c",
            "def f():",
            "    from klprojax.cli import d",
            "    import klprojax.checks",
        ]
    )
    monkeypatch.setattr(Path, "read_text", lambda self: text)
    assert list(imports(path)) == [
        *[("geometry",), ("_types",), ("operators",), ("codes",), ("graphs", "_model")],
        *[("cli",), ("checks",)],
    ]


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(PACKAGE).as_posix())
def test_no_long_files(path):
    assert len(path.read_text().splitlines()) <= MOST_LINES


def test_no_two_classes_of_one_name():
    found = [
        node.name
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef)
    ]
    twice = {name for name in found if found.count(name) > 1}
    assert not twice


@pytest.mark.parametrize("path", [p for p in FILES if "cli" in p.parts], ids=lambda p: p.stem)
def test_commands_group_their_options(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef):
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            assert len(arguments) <= 9, node.name


# Cost of importing.


def in_a_fresh_interpreter(code):
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=PACKAGE.parent,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    return json.loads(run.stdout.splitlines()[-1])


def test_help_does_not_wait_for_jax():
    heavy, seconds = in_a_fresh_interpreter(
        "import json, sys, time; sys.argv = ['klprojax', '--help']\n"
        "from klprojax.cli import main\n"
        "try: main()\n"
        "except SystemExit as end: assert not end.code\n"
        "heavy = [m for m in ('jax', 'equinox', 'optax') if m in sys.modules]\n"
        "print(); print(json.dumps([heavy, time.process_time()]))"
    )
    assert heavy == []
    # 0.25 s of a processor where this was written, starting Python included.
    assert seconds < 1


def test_import_loads_nothing_until_a_name_is_used():
    before, after = in_a_fresh_interpreter(
        "import json, sys, klprojax\n"
        "before = 'jax' in sys.modules; klprojax.FactorGraph\n"
        "print(json.dumps([before, 'jax' in sys.modules]))"
    )
    assert (before, after) == (False, True)


def test_importing_everything_computes_nothing_and_is_mostly_jax():
    names = " ".join(NAMES["klprojax"].split())
    backends, rich, matplotlib, jax_seconds, ours = in_a_fresh_interpreter(
        "import json, sys, time\n"
        "t = time.process_time(); import jax, equinox, optax; t_jax = time.process_time() - t\n"
        "t = time.process_time(); import klprojax\n"
        f"for name in {names!r}.split(): getattr(klprojax, name)\n"
        "ours = time.process_time() - t\n"
        "from jax._src import xla_bridge\n"
        "print(json.dumps([xla_bridge.backends_are_initialized(), 'rich' in sys.modules,\n"
        "    'matplotlib' in sys.modules, t_jax, ours]))"
    )
    # Without a backend no array can have been made.
    assert not backends
    assert not rich
    assert not matplotlib
    # 0.3 s against 0.9 s where this was written; a ratio, for machines of any speed.
    assert ours < 1.5 * jax_seconds


@pytest.mark.parametrize("package", NAMES)
def test_import_of_everything_brings_the_public_names(package):
    namespace = {}
    exec(f"from {package} import *", namespace)
    del namespace["__builtins__"]
    wanted = set(NAMES[package].split())
    assert wanted <= set(namespace)
    # Packages inside a package come too, and under test the checker of types.
    assert all(inspect.ismodule(namespace[name]) for name in set(namespace) - wanted)


def test_what_to_install_is_what_pip_finds():
    # The package itself may be on no index: then it cannot be named with an extra.
    extras = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())["project"]
    listed = {
        re.match(r"[\w-]+", package)[0]
        for packages in extras["optional-dependencies"].values()
        for package in packages
    }
    named = [
        name for path in FILES for name in re.findall(r"pip install ([\w-]+)", path.read_text())
    ]
    assert len(named) >= 5
    assert set(named) <= listed - {"klprojax"}
