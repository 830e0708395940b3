"""What all commands show and write: data as it is, results first, outputs checked before."""

import ast
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from fcntl import ioctl
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import typer
from typer.testing import CliRunner

import klprojax
from klprojax.cli import _screen, _verify
from klprojax.cli._app import app
from klprojax.cli._demo import _command, _parts
from klprojax.cli._demo._report import Section, Table
from klprojax.cli._screen import Screen, visible, write_then_show

from .test_options import FILES, commands

PACKAGE = Path(klprojax.__file__).parent
# Names that would be markup, an emoji, and an escape sequence that turns the terminal red.
STATES = ["[missing]", "[/x]", "[red]no[/red]", ":smile:", "e\x1b[31m"]
NETWORK = (
    'network "[bold]net" {}\nvariable "[i]v" { type discrete [ 5 ] '
    '{ "[missing]", "[/x]", "[red]no[/red]", :smile:, e\x1b[31m }; }\n'
    'probability ( "[i]v" ) { table .1 .2 .3 .2 .20005; }\n'
)
SHOWN = [*STATES[:-1], r"e\x1b[31m", "[i]v", "[bold]net: 1 variables"]


def run(*arguments, **options):
    before = jax.config.jax_enable_x64
    try:
        return CliRunner().invoke(app, list(map(str, arguments)), **options)
    finally:
        jax.config.update("jax_enable_x64", before)


@pytest.fixture
def folder(tmp_path):
    """A folder whose name is a closing tag."""
    made = tmp_path / "[/a]"
    made.mkdir(parents=True)
    (made / "net.bif").write_text(NETWORK)
    return made


def test_names_are_shown_as_they_are(folder):
    out = folder / "out.json"
    result = run("infer", folder / "net.bif", "--json", out)
    assert result.exit_code == 0, result.output
    for text in (*SHOWN, "at [i]v; mean", "note: [i]v: renormalised 1 row(s)"):
        assert text in result.output
    assert "\x1b" not in result.output
    assert list(json.loads(out.read_text())["marginals"]) == ["[i]v"]
    result = run("infer", folder / "none.bif")
    assert result.exit_code == 2
    assert "[/a]/none.bif: expected a file" in result.output
    assert "Traceback" not in result.output


def test_a_terminal_of_80_columns_shows_the_same(folder):
    ours, theirs = pty.openpty()
    ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 80, 0, 0))
    environment = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "NO_COLOR")}
    code = "from klprojax.cli import main; main()"
    command = ["infer", "net.bif", "--method", "exact", "--json", "/dev/stdout"]
    with subprocess.Popen(
        [sys.executable, "-c", code, *command],
        stdin=theirs, stdout=theirs, stderr=theirs, cwd=folder,
        env={**environment, "TERM": "xterm-256color", "PYTHONPATH": str(PACKAGE.parent)},
    ) as program:  # fmt: skip
        os.close(theirs)
        got = b""
        while True:
            try:
                part = os.read(ours, 2**16)
            except OSError:  # Linux says so when the other side is closed
                break
            if not part:
                break
            got += part
        assert program.wait(120) == 0
    os.close(ours)
    # Without colours and movements of the cursor, which are the program's own.
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", got.decode()).replace("\r", "\n")
    for name in SHOWN:
        assert name in text
    assert max(map(len, text.splitlines())) <= 80
    assert b"e\x1b[31m" not in got
    # The result on the terminal, before the tables.
    assert text.index('"marginals"') < text.index("log-partition (nats)")


def test_control_characters_are_spelled_out():
    assert visible("a\x1b[2J\tb\n\x7f\x9b\u202e\udc80 é 日本 \N{SNOWMAN}") == (
        r"a\x1b[2J\tb\n\x7f\x9b\u202e\udc80 é 日本 ☃"
    )
    assert visible("a\nb\r", lines=True) == "a\nb\\r"
    assert visible(Path("/[/a]")) == "/[/a]"


def test_what_a_stream_cannot_encode_is_escaped(folder):
    done = subprocess.run(
        [sys.executable, "-c", "from klprojax.cli._screen import Screen; Screen().show('é [/x]')"],
        env={**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONPATH": str(PACKAGE.parent)},
        capture_output=True, timeout=60, check=True,
    )  # fmt: skip
    assert done.stdout == b"\\xe9 [/x]\n"


def test_every_progress_bar_and_console_is_without_markup():
    bars = consoles = 0
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
                continue
            if node.func.id == "TextColumn":
                bars += 1
                assert "markup=False" in ast.unparse(node), path
            if node.func.id == "Console":
                # Elsewhere for progress bars only.
                consoles += 1
                keywords = {keyword.arg for keyword in node.keywords}
                assert path == Path(_screen.__file__) or keywords == {"stderr"}, path
    assert bars >= 3
    assert consoles >= 4


@pytest.mark.parametrize("path", list(FILES), ids=" ".join)
def test_help_keeps_brackets(path):
    result = run(*path, "--help", env={"COLUMNS": "80"})
    shown = "".join(result.output.split())  # words may be broken at hyphens
    (command,) = [command for words, command in commands() if words == path]
    for parameter in command.params:
        assert "".join((parameter.help or "").split()) in shown
    if path == ("infer",):
        assert "[default:1e-08;x>=0.0]" in shown
        assert "[default:40;x>=0]" in shown
    if path == ("circuit", "fit"):
        for text in ("states[rows,variables]", "[rat:2][x>=0]", "[poon-domingos:4]", "[em:0.1]"):
            assert text in shown


# Each writes, and shows before or after; where the text of what is given is bad, it is not reached.
OUTPUTS = [
    ("infer", "none.bif", "--json", "PATH"),
    ("circuit", "query", "none.psdd", "--json", "PATH"),
    ("circuit", "fit", "none.npz", "--json", "PATH"),
    ("circuit", "fit", "none.npz", "--save", "PATH"),
    ("circuit", "fit", "none.npz", "--checkpoint", "PATH"),
    ("train", "--data", "none.npz", "--json", "PATH"),
    ("train", "--data", "none.npz", "--plot", "PATH.png"),
    ("train", "--data", "none.npz", "--step", "adam", "--dynamics", "PATH.png"),
    ("verify", "--function", "none.py:f", "--json", "PATH"),
    ("demo", "--output", "PATH"),
]


@pytest.mark.parametrize("command", OUTPUTS, ids=" ".join)
def test_outputs_are_checked_before_anything_is_read(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = [word.replace("PATH", "[/no]/out") for word in command]
    result = run(*words)
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert re.fullmatch(
        r"error: \[/no\]/out(\.png)?: the folder \[/no\] does not exist; make it first\.", line
    )


def test_result_files_stay_in_their_folder(folder):
    (folder / "net.bif").write_text(NETWORK.replace("[bold]net", "../[/out]"))
    result = run(
        "infer", folder / "net.bif", "--method", "exact", "--rows", 0, "--uai-output", folder / "r"
    )
    assert result.exit_code == 0, result.output
    assert sorted(p.name for p in (folder / "r").iterdir()) == [".._[_out].MAR", ".._[_out].PR"]
    (folder / "file").write_text("kept")
    result = run("infer", "asia", "--uai-output", folder / "file")
    assert result.exit_code == 2
    assert "[/a]/file" in result.output
    assert (folder / "file").read_text() == "kept"


def broken(*arguments, **options):
    raise RuntimeError("the screen is broken")


def test_results_are_written_before_they_are_shown(folder, monkeypatch):
    monkeypatch.setattr(Screen, "table", broken)
    # What takes long is left out; what is written and shown afterwards is not.
    monkeypatch.setattr(_verify, "_statements", lambda *a: [])
    monkeypatch.setattr(
        "klprojax.circuits.learning.fit",
        lambda c, *a, parameters, **k: SimpleNamespace(
            parameters=parameters, epochs=0, best_epoch=0, history=[]
        ),
    )
    psdd, vtree = folder / "c.psdd", folder / "c.vtree"
    psdd.write_text("psdd 1\nL 0 0 1\n")
    vtree.write_text("vtree 1\nL 0 1\n")
    np.savez(folder / "d.npz", train=np.eye(2, dtype=int))
    np.savez(
        folder / "t.npz",
        x_train=np.eye(5), y_train=np.arange(5) % 2, x_test=np.eye(5), y_test=np.arange(5) % 2,
    )  # fmt: skip
    for number, words in enumerate(
        [
            ("infer", folder / "net.bif", "--method", "exact"),
            ("circuit", "query", psdd, "--vtree", vtree),
            ("circuit", "fit", folder / "d.npz", "--structure", "factorised", "--units", 1),
            ("train", "--data", folder / "t.npz", "--step", "sgd", "--epochs", 1),
            ("verify", "--only", "section_2_duality"),
        ]
    ):
        out = folder / f"{number}.json"
        result = run(*words, "--json", out)
        assert isinstance(result.exception, RuntimeError), result.output
        assert json.loads(out.read_text())


def test_the_report_is_written_before_it_is_shown(folder, monkeypatch):
    section = Section("[/s]", ["[red]text"], "x", [Table(["[h]"], [["[/c]"]], [False])])
    monkeypatch.setattr(_parts, "statements", lambda advance: (section, True))
    for name in ("network", "circuit", "training"):
        monkeypatch.setattr(_parts, name, lambda advance: section)
    result = run("demo", "--output", folder / "r.html")
    assert result.exit_code == 0, result.output
    for text in ("[/s] (", "[red]text", "[h]", "[/c]", "[/a]/r.html ("):
        assert text in result.output
    monkeypatch.setattr(_command.Screen, "table", broken)
    result = run("demo", "--output", folder / "two.html")
    assert isinstance(result.exception, RuntimeError)
    assert (folder / "two.html").read_bytes() == (folder / "r.html").read_bytes()


@pytest.mark.skipif(sys.platform != "linux", reason="needs /dev/full")
def test_what_a_device_says_is_reported_and_the_result_still_shown(folder):
    result = run("infer", folder / "net.bif", "--method", "exact", "--json", "/dev/full")
    assert result.exit_code == 2
    assert "error: /dev/full cannot be written: No space left on device." in result.stderr
    assert "[missing]" in result.stdout
    assert Path("/dev/full").is_char_device()


def test_writing_and_showing():
    done = []
    with pytest.raises(OSError, match="full"):
        write_then_show(lambda: fail(OSError("full")), lambda: done.append("shown"))
    assert done == ["shown"]
    with pytest.raises(typer.Exit), Screen().bad_input_exits():
        fail(ValueError("[/x]"))
    with pytest.raises(ZeroDivisionError), Screen().bad_input_exits():
        fail(ZeroDivisionError())


def fail(error):
    raise error


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("infer", "d.csv"), "d.csv is a table; infer expects a model: .uai, .bif, .fg"),
        (("infer", "c.NPZ"), "saved circuits go to circuit query, data to circuit fit"),
        (("infer", "c.psdd"), "circuits go to circuit query"),
        (("infer", "f.nnf"), "f.nnf is a circuit; infer expects a model: .uai, .bif, .fg, .cnf"),
        (("infer", "f.wcnf"), "f.wcnf is a MaxSAT problem; infer expects a model"),
        (("infer", "n.xdsl.gz"), "is a network of another program; infer expects"),
        (("infer", "asia", "--evidence", "m.bif"), "m.bif is a model; infer --evidence expects"),
        (("circuit", "query", "f.dimacs"), "is a formula in clauses; circuit query expects"),
        (("circuit", "query", "f.ddnnf"), "f.ddnnf is a circuit in negation normal form"),
        (("circuit", "query", "f.nnf", "--cnf", "f.bif"), "--cnf expects a formula in clauses: ."),
        (("circuit", "query", "c.psdd", "--cnf", "f.cnf"), "--cnf belongs to an .nnf file"),
        (("circuit", "query", "asia", "--save", "out.csv"), "--save expects a file to write: .npz"),
        (("circuit", "query", "d.csv"), "rows of data go to circuit fit, or to circuit query --"),
        (("circuit", "query", "v.vtree"), "give it to circuit query with --vtree"),
        (("circuit", "query", "c.sdd", "--vtree", "c.psdd"), "--vtree expects a vtree: .vtree"),
        (("circuit", "query", "asia", "--data", "d.csv"), "text that begins 'a,b'. Convert"),
        (("circuit", "query", "c.psdd", "--encoding", "ascii"), "--encoding belong to a model"),
        (("circuit", "fit", "d.csv"), "text that begins 'a,b'. Convert a table with np.savez("),
        (("train", "--data", "m.bif"), "'m.bif' is no data set; expected 'digits' or the path of"),
        (("train", "--data", "d.csv"), "d.csv: 1 row(s) are too few to take test rows from"),
        (("verify", "--function", "d.csv:f"), "cannot import d.csv"),
        (("infer", "asia", "--repair", "uniform", "--evidence", "none.json"), "no such file"),
        (("infer", "m.uai", "--repair", "uniform"), "only BIF files are mended"),
        (("infer", "m.bif", "--encoding", "klingon"), "encoding is 'klingon'; expected one that"),
    ],
)
def test_files_of_the_wrong_kind_get_one_clear_line(words, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("d.csv").write_text("a,b\n0,1\n")
    Path("m.bif").write_text(NETWORK)
    result = run(*words)
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert message in line
    assert "pickle" not in line
