"""One self-contained HTML page from the parts of the demonstration."""

import base64
import html
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8882; }
body { font: 16px/1.55 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; }
body { padding: 0 1rem; } h1 { line-height: 1.2; }
h2 { margin-top: 2.5rem; border-top: 1px solid var(--line); padding-top: 1rem; }
figure { margin: 1rem 0; } figure img { max-width: 100%; background: white; border-radius: 6px; }
figcaption, .note { color: #777; font-size: .9rem; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-size: .88rem; width: 100%; }
th, td { text-align: left; padding: .3rem .6rem; border-bottom: 1px solid var(--line); }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
code, pre { background: var(--soft); border-radius: 4px; padding: .1rem .3rem; }
pre { padding: .6rem .8rem; overflow-x: auto; }
.bad { color: #c0392b; font-weight: 600; }
"""


@dataclass
class Table:
    """A table; `numeric` says which columns stand to the right."""

    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    numeric: Sequence[bool]


@dataclass
class Figure:
    """A picture with what it shows."""

    png: bytes
    caption: str


@dataclass
class Section:
    """One part of the demonstration."""

    title: str
    paragraphs: list[str]
    command: str
    tables: list[Table] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    seconds: float = 0.0


def picture(figure: Any, caption: str) -> Figure:
    """Take a matplotlib figure."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, bbox_inches="tight")
    return Figure(buffer.getvalue(), caption)


def render(title: str, lead: str, sections: Sequence[Section], footer: str) -> str:
    """Return the page; nothing in it is fetched from anywhere."""
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head><body>",
        f"<h1>{html.escape(title)}</h1><p>{html.escape(lead)}</p>",
    ]
    for number, section in enumerate(sections, 1):
        parts.append(f'<section id="part-{number}"><h2>{number}. {html.escape(section.title)}</h2>')
        parts += [f"<p>{html.escape(text)}</p>" for text in section.paragraphs]
        for figure in section.figures:
            data = base64.b64encode(figure.png).decode()
            caption = html.escape(figure.caption)
            parts.append(
                f'<figure><img alt="{caption}" src="data:image/png;base64,{data}">'
                f"<figcaption>{caption}</figcaption></figure>"
            )
        parts += [_table(table) for table in section.tables]
        parts.append("<p>To repeat it:</p>")
        parts.append(f"<pre>{html.escape(section.command)}</pre>")
        parts.append(f'<p class="note">{section.seconds:.1f} s.</p></section>')
    parts.append(f'<p class="note">{html.escape(footer)}</p></body></html>')
    return "\n".join(parts)


def _table(table: Table) -> str:
    def row(cells: Sequence[str], tag: str) -> str:
        made = [
            f"<{tag}{' class=n' if right else ''}>{html.escape(cell)}</{tag}>"
            for cell, right in zip(cells, table.numeric, strict=True)
        ]
        return f"<tr>{''.join(made)}</tr>"

    body = "".join(row(cells, "td") for cells in table.rows)
    return (
        f'<div class="scroll"><table><thead>{row(table.headings, "th")}</thead>'
        f"<tbody>{body}</tbody></table></div>"
    )
