"""``klprojax demo``: the page, bad input, and (slow) the whole of it."""

import base64
import builtins
from html.parser import HTMLParser

import matplotlib.figure
import pytest
from typer.testing import CliRunner

from klprojax.cli._app import app
from klprojax.cli._demo._report import Section, Table, picture, render

PNG = b"\x89PNG\r\n\x1a\n"


class Page(HTMLParser):
    """What a browser would find: tags that balance, text, pictures."""

    void = frozenset({"meta", "img"})

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.text: list[str] = []
        self.images: list[bytes] = []
        self.sources: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        for name in ("src", "href"):
            if name in found:
                self.sources.append(found[name])
        if tag == "img":
            kind, _, data = found["src"].partition(",")
            assert kind == "data:image/png;base64"
            assert found["alt"]
            self.images.append(base64.b64decode(data, validate=True))
        if tag not in self.void:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def test_the_page_is_self_contained_and_escapes_text():
    figure = matplotlib.figure.Figure()
    figure.subplots().plot([0, 1], [1, 0])
    table = Table(("a", "b"), [["x < y & z", "1"]], (False, True))
    section = Section("One", ["<b>plain</b>"], "klprojax x", [table], [picture(figure, "A line")])
    page = Page(render("T", "lead", [section, section], "end"))
    assert len(page.images) == 2
    assert all(image.startswith(PNG) for image in page.images)
    assert all(source.startswith("data:") for source in page.sources)
    text = " ".join(page.text)
    assert "<b>plain</b>" in text
    assert "x < y & z" in text
    assert "1. One" in text
    assert "2. One" in text


def test_a_missing_folder_is_bad_input(tmp_path):
    result = CliRunner().invoke(app, ["demo", "--output", str(tmp_path / "none" / "x.html")])
    assert result.exit_code == 2
    # The console may wrap the line anywhere.
    assert "does not exist" in " ".join(result.output.split())


def test_a_missing_extra_is_named(monkeypatch, tmp_path):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "sklearn":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    result = CliRunner().invoke(app, ["demo", "--output", str(tmp_path / "x.html")])
    assert result.exit_code == 2
    assert "klprojax[data]" in "".join(result.output.split())


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_demonstration_writes_its_report(tmp_path):
    path = tmp_path / "report.html"
    result = CliRunner().invoke(app, ["demo", "--output", str(path)])
    assert result.exit_code == 0, result.output
    page = Page(path.read_text(encoding="utf-8"))
    assert len(page.images) == 4
    assert "all came out as expected" in " ".join(page.text)
    assert not list(tmp_path.glob("*.partial"))
