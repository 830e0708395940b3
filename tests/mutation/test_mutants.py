"""The generator of mutants, and the list of those drawn."""

import json
from collections import Counter

from .generate import LIST, ROOMS, Mutant, applied, mutants_of
from .run import report

SOURCE = '''
"""Text with a - b."""
SIZE = 3 - 1

def _check(x):
    return x + 1

def formula(x: "a - b", y=2 - 1):
    """Text with x + y."""
    if x < 0:
        raise ValueError(f"{x - 1} is below 0")
    total = jnp.sum(x - y, axis=0) + ("a" + "b" == x)
    steps = [x[1:] for _ in range(n)]
    return jnp.where(x > 0, -x, y), (1,) + (2,), total
'''


def test_each_kind_of_change_and_nothing_else():
    found = [(m.kind, m.after.strip()) for m in mutants_of(SOURCE)]
    assert sorted(found) == sorted(
        [
            ("sign", 'total = (jnp.sum(x - y, axis=0) - ("a" + "b" == x))'),
            ("sign", 'total = jnp.sum((x + y), axis=0) + ("a" + "b" == x)'),
            ("term", "total = jnp.sum(x - y, axis=0)"),
            ("term", 'total = ("a" + "b" == x)'),
            ("term", 'total = jnp.sum(x, axis=0) + ("a" + "b" == x)'),
            ("term", 'total = jnp.sum(y, axis=0) + ("a" + "b" == x)'),
            ("axis", 'total = jnp.sum(x - y, axis=1) + ("a" + "b" == x)'),
            ("bound", "steps = [x[2:] for _ in range(n)]"),
            ("bound", "steps = [x[1:] for _ in range(n - 1)]"),
            ("bound", "return jnp.where(x >= 0, -x, y), (1,) + (2,), total"),
            ("sign", "return jnp.where(x > 0, x, y), (1,) + (2,), total"),
            ("swap", "return jnp.where(x > 0, y, -x), (1,) + (2,), total"),
        ]
    )
    for mutant in mutants_of(SOURCE):
        changed = applied(mutant, SOURCE).split("\n")
        assert changed[mutant.line - 1] == mutant.after
        assert Counter(changed) - Counter(SOURCE.split("\n")) == Counter([mutant.after])


def test_a_line_is_found_by_its_content():
    text = "a = b\nc = a\na = b\n"
    second = Mutant("", "sign", "", 3, "a = b", "a = -b", 1)
    assert applied(second, text) == "a = b\nc = a\na = -b\n"
    assert applied(second, "# above\n" + text) == "# above\na = b\nc = a\na = -b\n"
    assert applied(second, "a = b\n") is None


def test_the_list():
    rows = json.loads(LIST.read_text(encoding="utf-8"))
    assert len({row["key"] for row in rows}) == len(rows) == 60
    assert all(row["before"] != row["after"] for row in rows)
    rooms = Counter(row["room"] for row in rows)
    assert set(rooms) == set(ROOMS)
    assert min(rooms.values()) >= 8
    assert {row["kind"] for row in rows} == {"sign", "axis", "term", "swap", "bound"}


def test_the_report_counts_who_noticed():
    line = {"file": "f.py", "line": 3, "after": " x"}

    def entry(**outcomes):
        return {**line, **{part: {"outcome": outcome} for part, outcome in outcomes.items()}}

    text = report(
        {
            "none": entry(verify="passed", own="passed", others="passed"),
            "a": entry(verify="noticed", own="noticed"),
            "b": entry(verify="out of time", own="passed", others="passed"),
            "c": entry(verify="passed", own="passed", others="noticed"),
            "d": {**line, "gone": True},
        }
    )
    assert text.splitlines() == [
        "3 mutants run, 1 whose line is gone",
        "2 noticed by klprojax verify",
        "2 noticed by the tests",
        "survived the tests (verify noticed): b f.py:3 x",
    ]
