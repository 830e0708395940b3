"""``klprojax demo``: the page, in a browser too, bad input, and (slow) the whole of it.

The tests in a browser need the extra ``[browser]`` and a browser: ``python -m playwright install
chromium``, or the address of the developer tools of one that runs already (Chromium, Qt WebEngine)
in KLPROJAX_BROWSER. With KLPROJAX_REQUIRE_BROWSER=1 they fail where they would be skipped.
"""

import base64
import builtins
import os
import subprocess
import sys
import threading
import time
from html.parser import HTMLParser
from pathlib import Path

import matplotlib.figure
import pytest
from typer.testing import CliRunner

from klprojax.checks import registered_checks
from klprojax.cli._app import app
from klprojax.cli._demo import _parts
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
    assert "pip install scikit-learn." in result.output


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """The demonstration's own report, made once, as a user makes it: with JAX's own settings."""
    path = tmp_path_factory.mktemp("demo") / "report.html"
    run = subprocess.run(
        [sys.executable, "-c", "from klprojax.cli import main; main()", "demo", "--output", path],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=800,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    assert not list(path.parent.glob("*.partial"))
    return path


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_demonstration_writes_its_report(report):
    page = Page(report.read_text(encoding="utf-8"))
    assert len(page.images) == 4
    assert "all came out as expected" in " ".join(page.text)
    assert " ".join(page.text).count("fails, as it should") == sum(
        not entry.expected for entry in registered_checks()
    )


def section(title):
    figure = matplotlib.figure.Figure(figsize=(9, 3))
    figure.subplots().plot([0, 1], [1, 0])
    words = "several words that a browser may break into lines"
    table = Table([f"column {n}" for n in range(6)], [[words] * 5 + ["1e-16"]] * 4, [False] * 6)
    return Section(title, ["Text."], "klprojax " + "x" * 300, [table], [picture(figure, "Lines")])


TITLES = ("One", "Two", "Three", "Four")


def test_parts_run_beside_each_other_and_stop_together(monkeypatch, tmp_path):
    # The statements go on until the network fails, and then end at their next sign of progress.
    failed, told = threading.Event(), []

    def statements(advance):
        assert failed.wait(60)
        for number in range(2000):  # ten seconds, unless stopped
            advance("check", number, 2000)
            told.append(number)
            time.sleep(0.005)

    def network(advance):
        failed.set()
        raise ZeroDivisionError

    monkeypatch.setattr(_parts, "statements", statements)
    monkeypatch.setattr(_parts, "network", network)
    result = CliRunner().invoke(app, ["demo", "--output", str(tmp_path / "x.html")])
    assert isinstance(result.exception, ZeroDivisionError)
    assert len(told) < 2000
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("good", [True, False])
def test_the_exit_status_tells_whether_all_came_out(monkeypatch, tmp_path, good):
    made = {
        name: section(title)
        for name, title in zip(
            ("statements", "network", "circuit", "training"), TITLES, strict=True
        )
    }
    monkeypatch.setattr(_parts, "statements", lambda advance: (made["statements"], good))
    for name in ("network", "circuit", "training"):
        monkeypatch.setattr(_parts, name, lambda advance, name=name: made[name])
    path = tmp_path / "x.html"
    result = CliRunner().invoke(app, ["demo", "--output", str(path)])
    assert result.exit_code == (0 if good else 1)
    page = Page(path.read_text(encoding="utf-8"))
    assert [text for text in page.text if text[:2] in {"1.", "2.", "3.", "4."}] == [
        f"{number}. {title}" for number, title in enumerate(TITLES, 1)
    ]


@pytest.fixture(scope="module")
def tab():
    """A tab of a browser."""

    def missing(why):
        if os.environ.get("KLPROJAX_REQUIRE_BROWSER"):
            pytest.fail(why)
        pytest.skip(why)

    try:
        from playwright.sync_api import Error, sync_playwright
    except ImportError:
        missing("needs the extra [browser]")
    with sync_playwright() as driver:
        address = os.environ.get("KLPROJAX_BROWSER")
        try:
            if address:
                browser = driver.chromium.connect_over_cdp(address, no_defaults=True)
            else:
                browser = driver.chromium.launch()
        except Error as error:
            missing(f"no browser could be started: {str(error).splitlines()[0]}")
        # A browser that runs already may have but one tab to give.
        yield browser.contexts[0].pages[0] if address else browser.new_page()
        browser.close()


def look(tab, path, screenshot, *, width=1280):
    """What is wrong with a page, as a browser shows it, and the headings that can be seen."""
    wrong = []
    listeners = {
        "console": lambda m: wrong.append(f"console: {m.text}") if m.type == "error" else None,
        "pageerror": lambda error: wrong.append(f"error: {error}"),
        "requestfailed": lambda request: wrong.append(f"failed: {request.url[:80]}"),
        "request": lambda request: (
            None
            if request.url.startswith((path.as_uri(), "data:"))
            else wrong.append(f"fetched: {request.url[:80]}")
        ),
    }
    for event, listener in listeners.items():
        tab.on(event, listener)
    tab.set_viewport_size({"width": width, "height": 900})
    tab.goto(path.as_uri(), wait_until="load")
    empty = tab.evaluate("[...document.images].filter(i => !i.naturalWidth).map(i => i.alt)")
    wrong += [f"empty picture: {alt}" for alt in empty]
    across = tab.evaluate(
        "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    )
    if across > 0:
        wrong.append(f"too wide by {across} pixels")
    headings = [h.inner_text() for h in tab.locator("h2").all() if h.is_visible()]
    tab.screenshot(path=screenshot, full_page=True)
    for event, listener in listeners.items():
        tab.remove_listener(event, listener)
    return wrong, headings


@pytest.mark.parametrize("width", [1280, 400])
def test_a_browser_shows_the_page(tab, tmp_path, width):
    path = tmp_path / "page.html"
    path.write_text(render("T", "lead", [section(t) for t in TITLES], "end"), encoding="utf-8")
    wrong, headings = look(tab, path, tmp_path / "page.png", width=width)
    assert wrong == []
    assert headings == [f"{number}. {title}" for number, title in enumerate(TITLES, 1)]
    assert (tmp_path / "page.png").read_bytes().startswith(PNG)


@pytest.mark.parametrize(
    ("mistake", "said"),
    [
        ('<img alt="lost" src="data:image/png;base64,AAAA">', "empty picture: lost"),
        ("<script>console.error('oh')</script>", "console: oh"),
        ("<script>undefined_name()</script>", "error: "),
        ('<div style="width: 3000px">wide</div>', "too wide by "),
        ('<link rel="stylesheet" href="missing.css">', "failed: file:"),
        ('<script src="other.js"></script>', "fetched: file:"),
    ],
)
def test_a_browser_finds_mistakes(tab, tmp_path, mistake, said):
    path = tmp_path / "page.html"
    text = render("T", "lead", [section("One")], "end").replace("</body>", f"{mistake}</body>")
    path.write_text(text, encoding="utf-8")
    wrong, _ = look(tab, path, tmp_path / "page.png")
    assert any(found.startswith(said) for found in wrong), wrong


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_browser_shows_the_report(report, tab, tmp_path):
    # Kept beside the report, if a folder for it is named.
    folder = Path(os.environ.get("KLPROJAX_SCREENSHOTS") or tmp_path)
    wrong, headings = look(tab, report, folder / "report.png")
    assert wrong == []
    assert [heading[:2] for heading in headings] == ["1.", "2.", "3.", "4."]
    assert look(tab, report, folder / "report-narrow.png", width=400)[0] == []
    assert tab.evaluate("document.images.length") == 4
