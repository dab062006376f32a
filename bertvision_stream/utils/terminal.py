"""Text that comes from users' files, made safe for a terminal.

Texts, names of classes, columns and files may hold control sequences, which a terminal obeys: they
colour or erase lines, set its title, or reverse the order of what is read.
"""

from __future__ import annotations

import logging
from itertools import chain

# C0 but line breaks and tabs, DEL and C1; then the marks that change the direction of text.
_CONTROL = (*range(0x20), *range(0x7F, 0xA0))
_DIRECTION = (*range(0x202A, 0x202F), *range(0x2066, 0x206A))
_ESCAPED = {
    code: repr(chr(code))[1:-1] for code in chain(_CONTROL, _DIRECTION) if chr(code) not in "\n\t"
}
_IN_ONE_LINE = _ESCAPED | {ord(c): repr(c)[1:-1] for c in "\n\t\u2028\u2029"}


def printable(text: object) -> str:
    r"""The text with control characters as escapes such as `\x1b`; line breaks and tabs stay."""
    return str(text).translate(_ESCAPED)


def printable_line(text: str) -> str:
    r"""The same for a text that must stay in its line: line breaks and tabs are escapes as well."""
    return text.translate(_IN_ONE_LINE)


class PrintableFormatter(logging.Formatter):
    """Formats the lines of a log so that they are safe to print."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))
