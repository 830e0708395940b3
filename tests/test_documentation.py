"""Every example in the README and in a docstring runs."""

import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import pytest

import klprojax

README = Path(__file__).parents[1] / "README.md"
MODULES = [
    m.name
    for m in pkgutil.walk_packages(klprojax.__path__, "klprojax.")
    if ">>>" in Path(importlib.util.find_spec(m.name).origin).read_text()
]


def test_readme_snippets_run_in_order():
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert len(blocks) >= 4
    names: dict = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), names)
    assert names["exact"].exact


def test_readme_has_exactly_two_install_commands():
    commands = re.findall(r"^pip install .*$", README.read_text(), re.MULTILINE)
    assert commands == [
        "pip install . && klprojax infer alarm",
        'pip install ".[test]" && python -m pytest',
    ]


@pytest.mark.parametrize("name", MODULES)
def test_doctests(name):
    result = doctest.testmod(
        importlib.import_module(name),
        optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS,
    )
    assert result.attempted > 0
    assert result.failed == 0
