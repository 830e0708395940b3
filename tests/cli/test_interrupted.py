"""Ctrl-C on the command line: one word on what is kept, and the exit status of a shell."""

import json
import os
import signal
import subprocess
import sys
import time

import jax
import numpy as np
from typer.testing import CliRunner

from klprojax.cli._app import app
from klprojax.graphs._files._archive import read_arrays

LIMIT = 240  # seconds; compiling on a busy machine takes some of them


def invoke(command):
    before = jax.config.jax_enable_x64
    try:
        return CliRunner().invoke(app, command)
    finally:
        jax.config.update("jax_enable_x64", before)


def rows():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 3)).astype(np.float32)
    return {"x_train": x, "y_train": np.arange(40) % 2, "x_test": x, "y_test": np.arange(40) % 2}


def test_a_signal_ends_circuit_fit_with_130_and_a_word(tmp_path):
    data, checkpoint = tmp_path / "data.npz", tmp_path / "[b]run.npz"
    np.savez(data, train=np.random.default_rng(0).integers(0, 2, (40, 3)).astype(np.uint8))
    # A shell starts what it runs in the background with the signal ignored.
    program = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "from klprojax.cli import main; main()"
    )
    command = [
        sys.executable, "-c", program, "circuit", "fit", data,
        "--units", "2", "--components", "1", "--epochs", "1000000", "--checkpoint", checkpoint,
    ]  # fmt: skip
    process = subprocess.Popen(list(map(str, command)), stderr=subprocess.PIPE, text=True)
    try:
        end = time.monotonic() + LIMIT
        while not checkpoint.exists() and process.poll() is None and time.monotonic() < end:
            time.sleep(0.05)
        os.kill(process.pid, signal.SIGINT)
        errors = process.communicate(timeout=LIMIT)[1]
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130, errors
    header, _ = read_arrays(checkpoint, "klprojax-run", 10**7)
    done = len(header["at"]["history"])
    word = f"Kept in {checkpoint}: epoch {done}. The same call or command goes on"
    assert errors.count("Kept in") == errors.count("Interrupted.") == 1
    assert word in errors
    assert "Traceback" not in errors


def test_train_says_what_is_kept_and_the_same_command_goes_on(tmp_path, monkeypatch):
    from klprojax.fitting import _checkpoint

    data, folder, out = tmp_path / "data.npz", tmp_path / "runs", tmp_path / "out.json"
    np.savez(data, **rows())
    command = [
        "train", "--data", str(data), "--hidden", "4", "--step", "adam", "--epochs", "4",
        "--batch-size", "16", "--checkpoint", str(folder), "--json", str(out),
    ]  # fmt: skip
    save, calls = _checkpoint.save, []

    def interrupted(*arguments):
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(save(*arguments))

    with monkeypatch.context() as patch:
        patch.setattr(_checkpoint, "save", interrupted)
        result = invoke(command)
    assert result.exit_code == 130
    word = f"Interrupted.\nKept in {folder / 'adam-0.npz'}: update 4 of 8. The same call or command"
    assert result.stderr.count(word) == result.output.count("Kept in") == 1
    assert not out.exists()
    with monkeypatch.context() as patch:
        patch.setattr(_checkpoint, "save", lambda *arguments: calls.append(save(*arguments)))
        result = invoke(command)
    assert result.exit_code == 0, result.output
    assert len(calls) == 4  # two epochs before, two after
    whole = invoke([*command[:-4], "--json", str(tmp_path / "whole.json")])
    assert whole.exit_code == 0
    curves = [
        [point[::2] for point in json.loads(path.read_text())["results"][0]["curve"]]
        for path in (out, tmp_path / "whole.json")
    ]
    assert curves[0] == curves[1]


def test_other_commands_end_with_130_too(monkeypatch):
    from klprojax.cli import _verify

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(_verify, "_statements", stop)
    result = invoke(["verify"])
    assert result.exit_code == 130
    assert result.stderr == "Interrupted.\n"
