"""The one writer: links kept, devices and pipes written straight, files whole or not at all."""

import os
import re
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import klprojax
from klprojax._store import check_writable, write_file
from klprojax.graphs import load_model, write_uai

PACKAGE = Path(klprojax.__file__).parent
linux = pytest.mark.skipif(sys.platform != "linux", reason="needs devices of Linux")


def test_links_and_permission_bits_stay(tmp_path):
    target, link, chain = tmp_path / "there" / "real", tmp_path / "link", tmp_path / "chain"
    target.parent.mkdir()
    target.write_bytes(b"old")
    target.chmod(0o640)
    link.symlink_to("there/real")
    chain.symlink_to("link")
    for path, data in ((link, b"one"), (chain, b"two"), (str(target), b"three")):
        check_writable(path)
        write_file(path, data)
        assert target.read_bytes() == data
        assert link.is_symlink()
        assert chain.is_symlink()
        assert stat.S_IMODE(target.stat().st_mode) == 0o640
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["chain", "link", "real", "there"]
    # A link to what is not there yet makes it, where it points to.
    target.unlink()
    write_file(chain, b"new")
    assert target.read_bytes() == b"new"


@linux
def test_model_files_and_archives_use_it(tmp_path):
    (tmp_path / "link.uai").symlink_to("real.uai")
    write_uai(tmp_path / "link.uai", load_model("asia"))
    assert (tmp_path / "link.uai").is_symlink()
    assert load_model(tmp_path / "real.uai").cardinalities == (2,) * 8
    (tmp_path / "full.uai").symlink_to("/dev/full")
    with pytest.raises(OSError, match=r"full\.uai cannot be written: No space left on device"):
        write_uai(tmp_path / "full.uai", load_model("asia"))


def test_nothing_else_writes_files():
    other = re.compile(
        r"os\.replace|os\.rename|\.write_text\(|savefig\((?!buffer)|np\.savez?\w*\((?!FILE)|"
        r"(?<!def )(?<!\.)\bopen\([^)]*[\"'][wxa]|\.write_bytes\("
    )
    for path in PACKAGE.rglob("*.py"):
        found = other.findall(path.read_text())
        assert bool(found) == (path.name == "_write.py"), (path, found)


def test_a_new_file_has_the_permissions_of_the_process(tmp_path):
    before = os.umask(0o027)
    try:
        write_file(tmp_path / "new", b"x")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o640


@linux
def test_devices_are_written_straight_and_stay():
    check_writable("/dev/full")
    with pytest.raises(OSError, match=r"^/dev/full cannot be written: No space left on device"):
        write_file("/dev/full", b"x")
    write_file("/dev/null", b"x")
    for name in ("/dev/full", "/dev/null"):
        assert stat.S_ISCHR(os.stat(name).st_mode)


def test_pipes_are_written_straight_and_stay(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    check_writable(pipe)  # does not wait for a reader
    data = bytes(range(256)) * 1000  # more than a pipe holds
    got = []
    reader = threading.Thread(target=lambda: got.append(pipe.read_bytes()))
    reader.start()
    write_file(pipe, data)
    reader.join(30)
    assert got == [data]
    assert stat.S_ISFIFO(pipe.stat().st_mode)


@pytest.mark.parametrize("name", ["/dev/stdout", "out"])
def test_own_output_is_written_in_its_turn(tmp_path, name):
    # A new start, or a new file by that name, would lose what was printed before or after.
    code = (
        "import sys; from klprojax._store import check_writable, write_file\n"
        "print('before'); check_writable(sys.argv[1])\n"
        "write_file(sys.argv[1], b'data\\n'); print('after')"
    )
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE.parent)}
    with open(tmp_path / "out", "wb") as out:
        subprocess.run(
            [sys.executable, "-c", code, name],
            stdout=out, cwd=tmp_path, check=True, env=environment, timeout=60,
        )  # fmt: skip
    assert (tmp_path / "out").read_bytes() == b"before\ndata\nafter\n"
    done = subprocess.run(
        [sys.executable, "-c", code, "/dev/stdout"],
        capture_output=True, cwd=tmp_path, check=True, env=environment, timeout=60,
    )  # fmt: skip
    assert done.stdout == b"before\ndata\nafter\n"


@linux
@pytest.mark.parametrize("act", [check_writable, lambda path: write_file(path, b"x")])
def test_what_cannot_be_written_is_refused(tmp_path, act, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no/such/x: the folder no/such does not exist; m"):
        act("no/such/x")
    (tmp_path / "dangling").symlink_to("gone/x")
    with pytest.raises(FileNotFoundError, match=r"^dangling: the folder .*/gone does not exist"):
        act("dangling")
    (tmp_path / "file").write_bytes(b"old")
    with pytest.raises((FileNotFoundError, NotADirectoryError), match="file"):
        act("file/x")
    with pytest.raises(IsADirectoryError, match="is a folder; give the name of a file"):
        act(tmp_path)
    # A folder in which nobody may write, root neither.
    with pytest.raises(OSError, match=r"^/proc/x: the folder /proc cannot be written: "):
        act("/proc/x")
    # A file that is for reading only; root may write all, so the answer is made up.
    monkeypatch.setattr(os, "access", lambda path, mode: os.path.basename(path) != "file")
    with pytest.raises(PermissionError, match=r"^file is not writable"):
        act("file")
    assert (tmp_path / "file").read_bytes() == b"old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["dangling", "file"]


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(b"old")

    def refuse(number):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(OSError, match="file cannot be written: No space left on device"):
        write_file(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_checking_changes_nothing(tmp_path):
    check_writable(tmp_path / "new")
    assert list(tmp_path.iterdir()) == []
    # As long as a name may be.
    write_file(tmp_path / ("x" * 255), b"1")
    assert (tmp_path / ("x" * 255)).read_bytes() == b"1"
