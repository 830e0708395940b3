"""The text of a BIF file: quotes and comments, blocks and their statements.

Names inside quotes may hold any of the characters that have a meaning outside. Such a
character is first replaced by a byte that UTF-8 never uses, and put back when names are
decoded; comments become blanks. Offsets stay what they were, so line numbers do too.
"""

import os
import re
from dataclasses import dataclass

from klprojax.graphs._files._errors import ModelFileError
from klprojax.graphs._files._text import line_at, show

_SPECIAL = b' ,;(){}|[]"'
_HIDDEN = b"\xc0\xc1\xf5\xf6\xf7\xf8\xf9\xfa\xfb\xfc\xfd"  # never occur in UTF-8
_HIDE = bytes.maketrans(_SPECIAL, _HIDDEN)
_UNHIDE = bytes.maketrans(_HIDDEN, _SPECIAL)
_QUOTE_MARK = _HIDDEN[-1:]

_QUOTED_OR_COMMENT = re.compile(rb'"[^"\x00-\x1f\x7f]*"|"|//[^\n]*|/\*.*?\*/|/\*', re.DOTALL)
_NOT_NEWLINE = re.compile(rb"[^\n]")
_BLANKS = re.compile(rb"\s*")
KEYWORD = re.compile(rb"[A-Za-z]+")


@dataclass(frozen=True)
class Block:
    """A block of the file: offsets of its keyword and of its body, and the body."""

    start: int
    header: bytes
    body_start: int
    body: bytes


class BifText:
    """The bytes of one file; positions are byte offsets into `data`."""

    def __init__(self, data: bytes, path: str | os.PathLike[str]):
        self.path = path
        self.source = data
        self.data = self._blank_comments(data)

    def fail(self, offset: int, expected: str, got: str, fix: str = "") -> ModelFileError:
        return ModelFileError(self.path, line_at(self.source, offset), expected, got, fix)

    def _blank_comments(self, data: bytes) -> bytes:
        try:
            data.decode("utf-8")
        except UnicodeDecodeError as error:
            fix = "give its encoding (--encoding): latin-1 for example"
            got = show(data[error.start :][:4])
            raise self.fail(error.start, "UTF-8 text", got, fix) from None

        def replace(match: re.Match[bytes]) -> bytes:
            text = match.group()
            if text == b'"':
                got = "a line or file that ends before it"
                raise self.fail(match.start(), 'a closing quote "', got)
            if text == b"/*":
                raise self.fail(match.start(), "the end */ of a comment", "the end of the file")
            if text.startswith(b'"'):
                return text.translate(_HIDE)
            return _NOT_NEWLINE.sub(b" ", text)

        if b'"' in data or b"//" in data or b"/*" in data:
            data = _QUOTED_OR_COMMENT.sub(replace, data)
        return data

    def decode(self, token: bytes) -> str:
        if token[:1] == _QUOTE_MARK and token[-1:] == _QUOTE_MARK and len(token) > 1:
            token = token[1:-1]
        return token.translate(_UNHIDE).decode("utf-8")

    def canonical(self, token: bytes) -> bytes:
        # "yes" and yes are the same name
        if token[:1] == _QUOTE_MARK and token[-1:] == _QUOTE_MARK and len(token) > 1:
            return token[1:-1]
        return token

    def show(self, token: bytes) -> str:
        return show(token[:80].translate(_UNHIDE))

    def skip(self, position: int) -> int:
        match = _BLANKS.match(self.data, position)
        return match.end() if match else position

    def block(self, start: int, keyword: bytes) -> tuple[Block, int]:
        what = keyword.decode()
        opening = self.data.find(b"{", start)
        if opening < 0:
            raise self.fail(start, f"{{ after the keyword {what}", "none before the file ends")
        end = self.data.find(b"}", opening)
        if end < 0:
            raise self.fail(start, f"}} at the end of the {what} block", "the end of the file")
        header = self.data[start + len(keyword) : opening]
        block = Block(start, header, opening + 1, self.data[opening + 1 : end])
        if b"{" in block.body:
            inner = opening + 1 + block.body.index(b"{")
            raise self.fail(inner, f"}} at the end of the {what} block", "another {")
        return block, end + 1

    def statements(self, block: Block):
        """Yield the offset and text of each statement; the body must end with `;`."""
        body = block.body
        begin = 0
        while (end := body.find(b";", begin)) >= 0:
            yield block.body_start + begin, body[begin:end].strip()
            begin = end + 1
        if body[begin:].strip():
            offset = block.body_start + len(body.rstrip())
            got = f"the end of the block after {self.show(body[begin:].strip())}"
            raise self.fail(offset, "; after a statement", got)
