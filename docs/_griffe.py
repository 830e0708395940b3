"""How the reference pages read docstrings."""

import re
from typing import Any

import griffe

# Sections that the parser does not know by these names.
_NAMES = {"Example:": "Examples:"}


class Sections(griffe.Extension):
    """Give sections of docstrings the names that griffe's Google parser knows."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rename the headings in an object's docstring."""
        if obj.docstring is not None:
            text = obj.docstring.value
            for name, known in _NAMES.items():
                text = re.sub(rf"^{name}$", known, text, flags=re.MULTILINE)
            obj.docstring.value = text
