"""Trees that took a search are kept on disk: read back, made again if damaged, off by a setting."""

import numpy as np
import pytest

from klprojax.operators.contraction import _stored_trees, _tree


@pytest.fixture
def hard(monkeypatch):
    """A model of which every tree takes a search: a small grid, and everything is hard."""
    index = np.arange(25).reshape(5, 5)
    rows = [*zip(index[:, :-1].ravel(), index[:, 1:].ravel(), strict=True)]
    rows += [*zip(index[:-1].ravel(), index[1:].ravel(), strict=True)]
    monkeypatch.setattr(_tree, "EASY", 1.0)
    _tree.find_tree.cache_clear()
    yield (3,) * 25, tuple((int(a), int(b)) for a, b in rows)
    _tree.find_tree.cache_clear()


def found(model):
    _tree.find_tree.cache_clear()
    return _tree.find_tree(*model)


def test_a_tree_is_searched_once(hard, tmp_path, monkeypatch):
    monkeypatch.setenv("KLPROJAX_TREES", str(tmp_path / "new"))
    tree = found(hard)
    (file,) = (tmp_path / "new").iterdir()

    def refused(*_, **__):
        raise AssertionError("searched again")

    with monkeypatch.context() as patched:
        patched.setattr("cotengra.ContractionTree.from_path", refused)
        assert found(hard) == tree
        # Another seed is another search.
        with pytest.raises(AssertionError, match="searched again"):
            _tree.find_tree(*hard, 1)
    kept = file.read_text()
    for damaged in (
        "",
        "{",
        "[[0, 0]]",
        "[[0, 99]]",
        '[["a", 1]]',
        "[1]",
        "[[0, 1, 2]]",
        "[" * 9999,
    ):
        file.write_text(damaged)
        assert found(hard) == tree
        assert file.read_text() == kept


def test_without_a_folder_nothing_is_kept(hard, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("KLPROJAX_TREES", "")
    tree = found(hard)
    assert not any(tmp_path.iterdir())
    # A folder that cannot be made is no reason to fail.
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("KLPROJAX_TREES", str(tmp_path / "file" / "below"))
    assert found(hard) == tree
    # By default in the user's cache.
    monkeypatch.delenv("KLPROJAX_TREES")
    assert found(hard) == tree
    (kept,) = (tmp_path / ".cache" / "klprojax" / "trees").iterdir()
    assert _stored_trees.stored_pairs(kept.stem, len(hard[1])) == list(tree.pairs)
