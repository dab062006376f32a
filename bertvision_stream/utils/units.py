"""Reads byte sizes as people write them (`256MiB`); writes sizes, times and counts for people."""

from __future__ import annotations

import re
from decimal import Decimal

# Floats that people write are shorter; longer ones are drawn or computed.
_MOST_CHARACTERS = 8

_UNIT_BYTES = {"b": 1}
for _power, _prefix in enumerate("kmgt", start=1):
    _UNIT_BYTES[f"{_prefix}b"] = 1000**_power
    _UNIT_BYTES[f"{_prefix}ib"] = 1024**_power

_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([a-z]+)", re.IGNORECASE)


def parse_bytes(size: object) -> int:
    """Reads a byte size.

    Args:
        size: A whole number of bytes, or text: a number with a unit, in upper or lower case: B;
            KB, MB, GB, TB (powers of 1000); KiB, MiB, GiB, TiB (powers of 1024).

    Returns:
        The size in bytes, not negative, rounded down.

    Raises:
        ValueError: If `size` is anything else.
    """
    if isinstance(size, int) and not isinstance(size, bool) and size >= 0:
        return size
    match = _SIZE.fullmatch(size.strip()) if isinstance(size, str) else None
    if match is None or match[2].lower() not in _UNIT_BYTES:
        raise ValueError(f"{size!r} is not a byte size such as 268435456, 256MiB or 2GB")
    return int(Decimal(match[1]) * _UNIT_BYTES[match[2].lower()])


def format_bytes(num_bytes: float) -> str:
    """Writes bytes in the largest fitting binary unit: `1.3 GiB`, `512 KiB`, `17 B`."""
    if num_bytes < 1024:
        return f"{num_bytes:.0f} B"
    for unit in ("KiB", "MiB", "GiB", "TiB"):
        num_bytes /= 1024
        if num_bytes < 1023.5 or unit == "TiB":
            break
    return f"{num_bytes:.1f} {unit}" if num_bytes < 99.95 else f"{num_bytes:,.0f} {unit}"


def format_seconds(seconds: float) -> str:
    """Writes a duration: `4.2 s`, `3 min 07 s`, `2 h 05 min`."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02} min"


def format_count(count: float) -> str:
    """Writes a count: exact below a million (`7,154`), above in millions or billions (`22.7 M`)."""
    if round(count) < 1_000_000:
        return f"{count:,.0f}"
    return f"{count / 1e6:.1f} M" if count < 999.95e6 else f"{count / 1e9:.2f} B"


def format_value(value: object) -> str:
    """Writes the value of a setting, a float that nobody would type with the digits that matter.

    A rate that a search has drawn, 0.00663142831093687, is written as 0.006631.
    """
    is_long = isinstance(value, float) and len(repr(value)) > _MOST_CHARACTERS
    return f"{value:.4g}" if is_long else str(value)
