"""The program as a whole: every option of every command is given in some test; the version."""

import ast
import enum
import importlib.metadata
import itertools
import typing
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from klprojax.cli._app import app

FOLDER = Path(__file__).parent
ROOT = ()
# The files that test each command: the literals of their default tests are searched.
FILES = {
    ROOT: ["test_options.py"],
    ("circuit",): ["test_options.py"],
    ("circuit", "fit"): ["test_circuit_command.py"],
    ("circuit", "query"): ["test_circuit_query_command.py"],
    ("demo",): ["test_demo_command.py"],
    ("infer",): ["test_infer_command.py"],
    ("train",): ["test_train_command.py", "test_train_comparison.py"],
    ("verify",): ["test_verify_command.py"],
}


def commands(command=None, path=ROOT):
    """Every command and group with the words that call it."""
    command = typer.main.get_command(app) if command is None else command
    yield path, command
    for name, inner in getattr(command, "commands", {}).items():
        yield from commands(inner, (*path, name))


def choices(annotation):
    """The words of an option that is an Enum, or a list of one."""
    if isinstance(annotation, type) and issubclass(annotation, enum.Enum):
        return [member.value for member in annotation]
    return [word for inner in typing.get_args(annotation) for word in choices(inner)]


def wanted():
    """The long options of every command, and every word that an option may be set to."""
    found = []
    for path, command in commands():
        hints = typing.get_type_hints(command.callback)
        for parameter in command.params:
            if parameter.param_type_name != "option":
                continue
            (name,) = parameter.opts
            assert name.startswith("--")
            assert not parameter.secondary_opts
            # What is chosen when nothing is said need not be said.
            default = getattr(parameter.default, "value", parameter.default)
            words = [word for word in choices(hints[parameter.name]) if word != default]
            for word in [None, *words]:
                label = " ".join((*path, name, word or "")).strip()
                found.append(pytest.param(path, name, word, id=label))
    return found


def is_slow(node):
    return isinstance(node, ast.FunctionDef) and any(
        "slow" in ast.unparse(decorator)
        for decorator in node.decorator_list
        if not ast.unparse(decorator).startswith("pytest.mark.parametrize")
    )


def given(tree):
    """What stands in lists, tuples and calls of a file: (words, pairs of neighbours)."""
    words, pairs = set(), set()
    for statement in tree.body:
        if is_slow(statement):
            continue
        for node in ast.walk(statement):
            row = node.args if isinstance(node, ast.Call) else getattr(node, "elts", ())
            literals = [str(n.value) if isinstance(n, ast.Constant) else None for n in row]
            words.update(literals)
            pairs.update(itertools.pairwise(literals))
    return words, pairs


def parametrised(tree):
    """Words that a ``parametrize`` of a default test provides for use as an option's value."""
    found = set()
    for statement in tree.body:
        if isinstance(statement, ast.FunctionDef) and not is_slow(statement):
            for decorator in statement.decorator_list:
                if "parametrize" in ast.unparse(decorator):
                    found.update(
                        str(node.value)
                        for node in ast.walk(decorator)
                        if isinstance(node, ast.Constant)
                    )
    return found


def test_every_command_has_its_file():
    assert {path for path, _ in commands()} == set(FILES)


@pytest.mark.parametrize(("path", "name", "word"), wanted())
def test_every_option_is_given_in_some_test(path, name, word):
    text = "\n".join((FOLDER / file).read_text(encoding="utf-8") for file in FILES[path])
    tree = ast.parse(text)
    words, pairs = given(tree)
    assert name in words, f"no test of {' '.join(path)} gives {name}"
    if word is not None:
        assert (name, word) in pairs or word in parametrised(tree), f"no test gives {name} {word}"


def test_the_search_sees_arguments_only():
    tree = ast.parse(
        '"""--doc"""\nrun("--a", 1)\nx = ["--b", "one"]\nassert "--c" in x\n'
        '@pytest.mark.slow\ndef test():\n    run("--d")\n'
    )
    words, pairs = given(tree)
    assert words - {None} == {"--a", "1", "--b", "one"}
    assert ("--b", "one") in pairs


def test_version():
    result = CliRunner().invoke(app, ["--version"])
    assert result.exit_code == 0
    assert result.output.strip() == importlib.metadata.version("klprojax")


@pytest.mark.parametrize("path", list(FILES), ids=" ".join)
def test_help_names_every_option(path):
    result = CliRunner().invoke(app, [*path, "--help"], env={"COLUMNS": "200"})
    assert result.exit_code == 0
    (command,) = [command for words, command in commands() if words == path]
    names = [option for parameter in command.params for option in parameter.opts]
    shown = [name for name in names if name.startswith("--")]
    assert all(name in result.output for name in shown)
    assert len(result.output.splitlines()) > 3
