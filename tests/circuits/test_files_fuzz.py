"""Damaged circuit files end in a circuit or in ModelFileError, quickly."""

import time

import pytest

from klprojax import ModelFileError
from klprojax.circuits import (
    load_circuit,
    read_nnf,
    read_psdd,
    read_sdd,
    read_spn,
    read_vtree,
    save_circuit,
)

from ..graphs._mutations import mutants
from ._circuits import random_circuit
from .test_files import PSDD, SDD, SDD_VTREE, SPN, VTREE
from .test_files_nnf import C2D, D4


def read_all(reader, data, suffix, count, seed, tmp_path):
    path = tmp_path / f"mutant{suffix}"
    outcomes = []
    for kind, mutant in mutants(data, count, seed):
        path.write_bytes(mutant)
        start = time.process_time()
        try:
            reader(path)
            outcomes.append("circuit")
        except ModelFileError as error:
            outcomes.append("error")
            message = str(error)
            assert ": expected " in message, kind
            assert len(message) < 1200, kind
            assert message.isprintable(), kind
        # the promise made to users of small files
        assert time.process_time() - start < 2.0, kind
    return outcomes


def test_mutants(tmp_path):
    (tmp_path / "a.vtree").write_text(SDD_VTREE)
    tree = read_vtree(tmp_path / "a.vtree")
    save_circuit(tmp_path / "a.npz", random_circuit(0, (2, 2), width=2))
    sources = [
        (read_psdd, PSDD.encode(), ".psdd", 120),
        (read_spn, SPN.encode(), ".spn.txt", 120),
        (lambda path: read_sdd(path, tree), SDD.encode(), ".sdd", 100),
        (read_vtree, VTREE.encode(), ".vtree", 100),
        (read_nnf, C2D.encode(), ".nnf", 100),
        (read_nnf, D4.encode(), ".nnf", 100),
        (load_circuit, (tmp_path / "a.npz").read_bytes(), ".npz", 120),
    ]
    for seed, (reader, data, suffix, count) in enumerate(sources):
        outcomes = read_all(reader, data, suffix, count, seed, tmp_path)
        # most damage shows, some does not: a reader that refused all would be no reader
        assert 0.3 * count < outcomes.count("error") < count, suffix


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("psdd 1\nL 0 0 99999999999\n", "a variable from 1 to 1"),
        ("psdd 1\nL 0 0 " + "9" * 5000 + "\n", "an integer"),
        ("psdd 1\nL 0 0 1\nD 1 0 100000000000000000 0 0 0\n", "three words for each"),
        ("psdd 1\n" + "(" * 100_000, "L id vtree literal"),
    ],
)
def test_hostile_numbers(tmp_path, text, match):
    path = tmp_path / "a.psdd"
    path.write_text(text)
    with pytest.raises(ModelFileError, match=match):
        read_psdd(path)
