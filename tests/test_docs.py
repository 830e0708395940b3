"""The documentation site: pages and links are there, code runs, figures are those measured."""

import importlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from klprojax.checks import registered_checks

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
NOTEBOOK_PAGES = {f"notebooks/{path.stem}.md" for path in (ROOT / "notebooks").glob("*.py")}
PACKAGES = (
    *("checks", "circuits", "codes", "geometry", "graphs", "lifting", "operators", "plots"),
    "training",
)


@pytest.fixture(scope="module")
def hooks():
    spec = importlib.util.spec_from_file_location("docs_hooks", DOCS / "_hooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def prose(page):
    """A page without its code."""
    return re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)


@pytest.fixture(scope="module")
def links():
    spec = importlib.util.spec_from_file_location("docs_links", DOCS / "_links.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_navigation_and_pages_are_the_same():
    nav = (ROOT / "mkdocs.yml").read_text().partition("\nnav:\n")[2]
    listed = re.findall(r": ([\w/]+\.md)$", nav, re.MULTILINE)
    assert len(listed) == len(set(listed))
    assert {page.relative_to(DOCS).as_posix() for page in PAGES} == set(listed)


def test_relative_links_lead_to_files_and_headings(links):
    checked = {page.relative_to(ROOT).as_posix() for page in links.pages()}
    assert {"README.md", "CONTRIBUTING.md", "docs/faq.md", "docs/api/index.md"} <= checked
    assert sum(len(links.targets(page)) for page in links.pages()) > 40
    for page in links.pages():
        assert links.broken(page) == [], page
    # Within the site a link must stay within it.
    for page in PAGES:
        for target in links.targets(page):
            assert links.is_external(target) or ".." not in target, (page, target)


def test_broken_links_are_found(links, tmp_path, capsys):
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "a.md").write_text("# One two\n[up](../README.md)\n")
    (tmp_path / "README.md").write_text(
        "# Top: *a*\n[a](docs/a.md) [b](docs/a.md#one-two) [c](#top-a) ![p](no.png)\n"
        "[d](docs/a.md#three) [e](../outside.md) [f](#top) https://example.org/x.\n"
        "```\n[code](is/not/a/link.md)\n```\n"
    )
    readme = tmp_path / "README.md"
    assert links.broken(readme, tmp_path) == ["no.png", "docs/a.md#three", "../outside.md", "#top"]
    assert links.broken(tmp_path / "docs" / "a.md", tmp_path) == []
    assert links.main([], root=tmp_path) == 1
    asked = []

    def gone(address):
        asked.append(address)
        return "status 404"

    readme.write_text("# Top\nhttps://example.org/x.\n")
    assert links.main([], ask=gone, root=tmp_path) == 0
    assert asked == []
    assert links.main(["--external"], ask=gone, root=tmp_path) == 1
    assert asked == ["https://example.org/x"]
    assert "status 404" in capsys.readouterr().err
    assert links.main(["--external"], ask=lambda _: None, root=tmp_path) == 0


def resolve(name):
    """The object of a dotted name; its module must be imported by the way."""
    parts = name.split(".")
    for cut in range(len(parts), 0, -1):
        try:
            value = importlib.import_module(".".join(parts[:cut]))
        except ModuleNotFoundError:
            continue
        for part in parts[cut:]:
            value = getattr(value, part)
        return value
    raise ModuleNotFoundError(name)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(DOCS).as_posix())
def test_names_that_are_linked_exist(page):
    text = prose(page)
    for name in [
        *re.findall(r"\]\[(klprojax[\w.]*)\]", text),
        *re.findall(r"^::: ([\w.]+)", text, re.MULTILINE),
    ]:
        assert resolve(name) is not None


def test_tests_and_plain_versions_that_are_named_exist():
    text = "".join(p.read_text() for p in [*PAGES, *(ROOT / "klprojax").rglob("*.py")])
    named = set(re.findall(r"(tests/[\w/]+\.py)(?:::(\w+))?", text))
    assert len({name for _, name in named if name}) >= 9
    for path, name in named:
        assert f"def {name}(" in (ROOT / path).read_text() or not name, (path, name)


def test_text_is_for_users_of_the_library():
    for path in [*PAGES, DOCS / "_hooks.py", ROOT / "mkdocs.yml", *(ROOT / "notebooks").glob("*")]:
        text = path.read_text()
        assert not re.search(r"localhost|127\.0\.0|/home/|/tmp/|\.\./|file://", text), path
        assert "/wo" + "rk" not in text, path
    external = {u for p in PAGES for u in re.findall(r"https?://[^\s)]+", p.read_text())}
    assert len(external) <= 5


@pytest.mark.parametrize(
    "page",
    [p for p in PAGES if "```python" in p.read_text()],
    ids=lambda p: p.relative_to(DOCS).as_posix(),
)
def test_code_on_a_page_runs_in_order(page, tmp_path):
    # As a user runs it: in a fresh interpreter, with JAX's own settings.
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    script = tmp_path / f"{page.stem}.py"
    script.write_text("\n".join(blocks))
    run = subprocess.run(
        [sys.executable, "-W", "error", str(script)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-3000:]


def test_pages_with_code_are_known():
    assert {p.name for p in PAGES if "```python" in p.read_text()} == {
        "choosing.md",
        "getting_started.md",
        "extending.md",
        "one_operator.md",
    }


def test_every_statement_has_a_row_with_links_that_exist(hooks):
    table = hooks.statements_table().splitlines()
    checks = registered_checks()
    assert len(table) == len(checks) + 2
    columns = table[0].count("|")
    for row, entry in zip(table[2:], checks, strict=True):
        assert entry.statement in row
        assert ("**fails**" in row) == (not entry.expected)
        assert row.replace("\\|", "").count("|") == columns
        names = re.findall(r"\]\[(klprojax[\w.]+)\]", row)
        assert f"klprojax.checks.{entry.name}" in names
        assert len(names) >= 2
        for name in names:
            resolve(name)


def test_no_entry_for_a_check_that_does_not_exist(hooks):
    used = {
        max((k for k in hooks.IMPLEMENTATIONS if entry.name.startswith(k)), key=len)
        for entry in registered_checks()
    }
    assert used == set(hooks.IMPLEMENTATIONS)


def test_measured_residuals_come_into_the_table(hooks, tmp_path, monkeypatch):
    result = {"name": "theorem_4_1_a", "residual": 2.5e-16, "tolerance": 1e-13, "holds": True}
    path = tmp_path / "verify.json"
    path.write_text(hooks.json.dumps({"precision": 64, "checks": [result]}))
    monkeypatch.setenv(hooks.RESULTS_VARIABLE, str(path))
    assert "holds (2.5e-16 ≤ 1e-13)" in hooks.statements_table()


@pytest.mark.parametrize("package", PACKAGES)
def test_reference_pages_have_every_public_name(hooks, package):
    page = (DOCS / "api" / f"{package}.md").read_text()
    assert f"<!-- names of klprojax.{package} -->" in page
    module = importlib.import_module(f"klprojax.{package}")
    public = {n for n, v in vars(module).items() if n[0] != "_" and not _is_module(v)}
    assert set(hooks.public_names(f"klprojax.{package}")) == public
    assert hooks.api_blocks(f"klprojax.{package}").count(":::") == len(public)


def _is_module(value):
    return type(value) is type(sys)


def test_notebook_pages_keep_prose_and_code(hooks, tmp_path):
    path = tmp_path / "example.py"
    path.write_text(
        "# ---\n# jupyter: {}\n# ---\n\n# %% [markdown]\n# # Title\n#\n# A $$x$$ here.\n\n"
        "# %%\ny = 1  # a comment\n"
    )
    page = hooks.notebook_page(path)
    assert page.startswith("# Title\n\nA \n\n$$x$$\n\n here.")
    assert "```python\ny = 1  # a comment\n```" in page
    assert "jupyter:" not in page


def rows(name):
    """Tables of a file of results as lists of cells, by first cell."""
    text = (ROOT / "benchmarks" / "results" / name).read_text()
    cells = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|")]
    return {row[0]: row for row in reversed(cells)}


def test_figures_about_other_packages_are_those_measured():
    faq = re.sub(r"\s+", " ", (DOCS / "faq.md").read_text())
    bp = rows("bp.md")
    problems = ["ising100", "ising300", "states8", "states64"]
    heads = bp["problem"]
    assert bp["ising100"][heads.index("first call s")] == "1.35"
    assert bp["ising100"][heads.index("PGMax jit")] == "1.1"
    assert "1.1 s against 1.35 s" in faq
    runs = [float(bp[p][6]) for p in problems]
    first = [float(bp[p][9]) for p in problems[1:]]
    assert f"{min(runs):.0f} to {max(runs):.0f} times" in faq
    assert f"{min(first):.0f} to {max(first):.0f} times" in faq
    ldpc = [float(row[-1]) for name, row in rows("ldpc.md").items() if ", klprojax" in name]
    assert f"{min(ldpc):.0f} to {max(ldpc):.0f} times" in faq
    training = json.loads((ROOT / "benchmarks" / "results" / "training.json").read_text())
    slower = [
        row["ours"]["compile"]["cpu_s"] / row["pjax"]["compile"]["cpu_s"]
        for row in training["speed"]
    ]
    assert f"compiles {min(slower):.1f} to {max(slower):.1f} times faster" in faq
    exact = (ROOT / "benchmarks" / "results" / "exactness.md").read_text()
    models, solved, refused = re.search(
        r"(\d+) models: (\d+) solved, (\d+) infeasible", exact
    ).groups()
    assert f"Of the {models} reference models tried, elimination solved {solved}" in faq
    assert f"refused {refused} as too large" in faq
    choosing = (DOCS / "choosing.md").read_text()
    temporaries = re.findall(
        r"^\| (?:50|800) \| ([\d.]+) \| ([\d.]+) \|",
        (ROOT / "benchmarks" / "results" / "bp.md").read_text(),
        re.MULTILINE,
    )
    (implicit, at_50), (_, at_800) = temporaries
    for figure in (implicit, at_50, at_800):
        assert f"{float(figure):.0f} MiB" in choosing


@pytest.mark.slow
def test_site_builds_without_a_warning(tmp_path):
    pytest.importorskip("mkdocs", reason="needs the extra [docs]")
    pytest.importorskip("material", reason="needs the extra [docs]")
    run = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "-d", str(tmp_path / "site")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    theory = (tmp_path / "site" / "theory" / "index.html").read_text()
    assert theory.count("<tr>") == len(registered_checks()) + 1
    for page in NOTEBOOK_PAGES:
        assert (tmp_path / "site" / page.removesuffix(".md") / "index.html").exists()
    assert not (tmp_path / "site" / "_hooks.py").exists()
    shutil.rmtree(tmp_path / "site")
