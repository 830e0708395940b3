"""Pages made while the site is built: the table of statements and the notebooks."""

import json
import os
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
# Where `klprojax verify --json` wrote the results that the table shows; the stored ones if unset.
RESULTS_VARIABLE = "KLPROJAX_VERIFY_JSON"
STORED_RESULTS = ROOT / "benchmarks" / "results" / "verify.json"
STATEMENTS_MARK = "<!-- statements -->"
NAMES_MARK = re.compile(r"<!-- names of (klprojax[\w.]*) -->")

# What computes a statement, by the beginning of its checks' names.
IMPLEMENTATIONS = {
    "section_2_dual": ["geometry.NegativeEntropy"],
    "section_2_consensus_projection": ["geometry.ConsensusFace"],
    "section_2_product": ["geometry.ProductFamily"],
    "section_2_convex": ["geometry.MarginalConstraints"],
    "section_2_consensus_of_copies": ["geometry.consensus_of_copies"],
    "section_2_gauge": ["operators.BeliefPropagation"],
    "t_proj_is_exact": ["operators.t_proj"],
    "t_proj_by_elimination": ["operators.Elimination"],
    "proposition_3_1_iterates": ["projections.Dykstra"],
    "proposition_3_1_factored": ["operators.DykstraHybrid", "operators.BeliefPropagation"],
    "proposition_3_1_i": ["operators.TreeSweep"],
    "proposition_3_1_zeros": ["operators.DykstraHybrid", "operators.BeliefPropagation"],
    "proposition_3_1_ii_literal": ["operators.t_proj"],
    "proposition_3_1_ii_powers": ["operators.t_proj"],
    "proposition_3_1_ii_corrected": ["operators.DykstraHybrid"],
    "lemma_3_2_jets": ["lifting.DeltaLift"],
    "lemma_3_2_tables": ["lifting.table_sensitivities"],
    "theorem_3_3": ["lifting.delta_lift"],
    "theorem_3_3_tables": ["lifting.table_sensitivities"],
    "theorem_3_3_differential": ["lifting.TableGraph", "operators.t_proj"],
    "theorem_3_3_beliefs": ["lifting.TableGraph", "operators.t_proj"],
    "theorem_3_3_network": ["lifting.TableGraph", "operators.t_proj"],
    "corollary_3_4": ["lifting.layer_messages"],
    "corollary_3_4_delta_lift": ["lifting.delta_lift"],
    "corollary_3_4_table": ["lifting.table_sensitivities"],
    "corollary_3_4_projection": ["lifting.projection_messages"],
    "corollary_3_4_modules": ["training.projection_slopes", "training.Margin"],
    "corollary_3_4_training": ["training.projection_slopes"],
    "theorem_4_1": ["circuits.sweep"],
    "lemma_4_2": ["circuits.t_spn"],
    "lemma_4_3": ["circuits.unfold"],
    "lemma_4_4": ["circuits.unfold"],
    "lemma_4_5": ["circuits.unfold"],
    "theorem_4_6": ["circuits.t_spn"],
    "theorem_4_6_literal": ["circuits.scope_table_marginals"],
    "section_2_gaussian": ["geometry.FixedPrecisionGaussian", "geometry.GaussianConsensus"],
    "section_2_moments": ["geometry.ExponentialFamily", "geometry.MomentConstraints"],
    "section_3_1_rules": ["graphs.Structured", "operators.Or", "operators.Parity"],
    "section_3_2": ["lifting.projection_messages"],
    "section_4_leaves": ["circuits.CircuitBuilder", "circuits.log_likelihood"],
    "section_4_best_states": ["circuits.compile_model", "circuits.mpe"],
    "section_4_zeros": ["circuits.TensorCircuit", "circuits.hidden_markov"],
    "section_4_learning": ["circuits.em_step", "circuits.hclt"],
    "one_operator_schemes": ["projections.iterate"],
    "one_operator_circuits": ["circuits.TensorCircuit", "circuits.t_spn"],
    "one_operator_em": ["projections.iterate", "circuits.em_step"],
    "one_operator_training": ["training.Splitting"],
    "one_operator_codes": ["projections.iterate", "codes.decode"],
    "remark_4_7": ["circuits.CircuitError", "circuits.sweep"],
}


def implementation(check: str) -> list[str]:
    """The public names that compute what a check checks: the entry of the longest beginning."""
    found = [key for key in IMPLEMENTATIONS if check.startswith(key)]
    return IMPLEMENTATIONS[max(found, key=len)]


def statements_table() -> str:
    """Every check on the list as a row of a Markdown table.

    With results of `klprojax verify --json` each row has its residual and tolerance too.
    """
    from klprojax.checks import registered_checks

    measured: dict[str, Any] = {}
    results = Path(os.environ.get(RESULTS_VARIABLE) or STORED_RESULTS)
    if results.exists():
        content = json.loads(results.read_text())
        measured = {entry["name"]: entry for entry in content["checks"]}
    head = ["Statement", "Computed by", "Compared", "Reading", "Verdict", "Check and test"]
    rows = [head, ["---"] * len(head)]
    for entry in registered_checks():
        links = ", ".join(f"[`{n}`][klprojax.{n}]" for n in implementation(entry.name))
        verdict = "holds" if entry.expected else "**fails**, as it should"
        if entry.name in measured:
            result = measured[entry.name]
            sign = "≤" if result["holds"] else ">"
            verdict += f" ({result['residual']:.1e} {sign} {result['tolerance']:.0e})"
        check = f"[`{entry.name}`][klprojax.checks.{entry.name}]"
        rows.append([entry.statement, links, entry.compared, entry.reading, verdict, check])
    # A bar inside a cell would end it.
    lines = ["| " + " | ".join(c.replace("|", "\\|") for c in row) + " |" for row in rows]
    return "\n".join(lines)


def notebook_page(path: Path) -> str:
    """A notebook in percent format as Markdown: prose, and code in fences."""
    text = path.read_text()
    cells = re.split(r"^# %%", text, flags=re.MULTILINE)[1:]
    parts = []
    for cell in cells:
        kind, _, body = cell.partition("\n")
        if kind.strip() == "[markdown]":
            lines = [line.removeprefix("#").removeprefix(" ") for line in body.strip().split("\n")]
            # Display mathematics needs a paragraph of its own on the site.
            parts.append(re.sub(r"\$\$(.+?)\$\$", r"\n\n$$\1$$\n\n", "\n".join(lines), flags=re.S))
        else:
            parts.append(f"```python\n{body.strip()}\n```")
    note = f"*Run it: `python notebooks/{path.name}`, or open it with jupytext.*"
    return "\n\n".join([parts[0], note, *parts[1:]]) + "\n"


def public_names(package: str) -> list[str]:
    """Names that a package's `__init__` re-exports, in its order."""
    where = ROOT / Path(*package.split(".")) / "__init__.py"
    return re.findall(r"^\s*(?:from \S+ import )?(?:\w+) as (\w+),?$", _plain(where), re.MULTILINE)


def _plain(path: Path) -> str:
    return re.sub(r"import \(\s*", "import ", path.read_text())


def api_blocks(package: str) -> str:
    """A mkdocstrings block for every public name of a package."""
    return "\n\n".join(f"::: {package}.{name}" for name in public_names(package))


def on_files(files: Any, config: Any) -> Any:
    """Add a page for every notebook."""
    from mkdocs.structure.files import File

    for path in sorted((ROOT / "notebooks").glob("*.py")):
        files.append(
            File.generated(config, f"notebooks/{path.stem}.md", content=notebook_page(path))
        )
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Fill in the table of statements and the blocks of names."""
    # Importing the checks must not wait for an accelerator.
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    if STATEMENTS_MARK in markdown:
        markdown = markdown.replace(STATEMENTS_MARK, statements_table())
    return NAMES_MARK.sub(lambda found: api_blocks(found[1]), markdown)
