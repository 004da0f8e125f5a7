"""The class table of a scene and its CF form: flag_values, flag_meanings, flag_colors."""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.errors import UserError


@dataclass(frozen=True)
class ClassTable:
    """Codes (ascending, never 0), names and colours ("#rrggbb") of the classes of a scene."""

    codes: tuple[int, ...]
    names: tuple[str, ...]
    colors: tuple[str, ...]

    @property
    def code_type(self) -> np.dtype[Any]:
        """Type in which a map stores the codes."""
        return np.dtype(np.uint8 if max(self.codes, default=0) <= 255 else np.uint16)


def default_colors(count: int) -> tuple[str, ...]:
    """Return ``count`` distinguishable "#rrggbb" colours; they repeat after twenty."""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    # tab20 holds ten hues in a strong and a pale tone: the strong ones come first.
    palette = [to_hex(color) for color in colormaps["tab20"](range(20))]
    ordered = palette[0::2] + palette[1::2]
    return tuple(ordered[i % 20] for i in range(count))


def plain_table(codes: Iterable[int]) -> ClassTable:
    """Return a table that names every code but 0 "class <code>", in default colours."""
    kept = tuple(sorted({int(code) for code in codes} - {0}))
    return ClassTable(kept, tuple(f"class {code}" for code in kept), default_colors(len(kept)))


def table_of(rows: Iterable[tuple[int, str, str | None]]) -> ClassTable:
    """Return the table of (code, name, colour or None) rows, in any order, without code 0."""
    kept = sorted((row for row in rows if row[0] != 0), key=lambda row: row[0])
    spare = default_colors(len(kept))
    return ClassTable(
        tuple(code for code, _, _ in kept),
        tuple(name.strip() or f"class {code}" for code, name, _ in kept),
        tuple(color or spare[i] for i, (_, _, color) in enumerate(kept)),
    )


def to_attributes(table: ClassTable) -> dict[str, Any]:
    """Return the CF attributes of a label or class array; names with blanks keep them in JSON."""
    return {
        "flag_values": list(table.codes),
        "flag_meanings": " ".join(re.sub(r"\s+", "_", name.strip()) for name in table.names),
        "flag_colors": " ".join(table.colors),
        "class_names": json.dumps(list(table.names)),
    }


def from_attributes(attributes: Mapping[str, Any], where: str) -> ClassTable | None:
    """Return the class table that CF attributes describe, or None without flag_values.

    Args:
        attributes: The attributes of a label array.
        where: The array, for messages.

    Raises:
        UserError: The attributes contradict each other.
    """
    if "flag_values" not in attributes:
        return None
    codes = _codes(attributes["flag_values"], where)
    meanings = _words(attributes, "flag_meanings", len(codes), where)
    colors = _words(attributes, "flag_colors", len(codes), where)
    names = _readable(attributes.get("class_names"), len(codes)) or meanings
    for color in colors or ():
        if not re.fullmatch(r"#[0-9a-fA-F]{6}", color):
            raise UserError(f"{where}: flag_colors must be #rrggbb, found {color!r}; correct it")
    return table_of(
        (
            code,
            names[i] if names else f"class {code}",
            colors[i].lower() if colors else None,
        )
        for i, code in enumerate(codes)
    )


def _codes(value: Any, where: str) -> list[int]:
    """Read flag_values: a list of integers, or a single one."""
    values = value if isinstance(value, list | tuple) else [value]
    if not all(isinstance(v, int | float) and v == int(v) for v in values):
        raise UserError(f"{where}: flag_values must be a list of integers, found {value!r}")
    codes = [int(v) for v in values]
    if min(codes, default=0) < 0 or len(set(codes)) != len(codes):
        raise UserError(f"{where}: flag_values must be different codes from 0 upwards, found {codes}")
    return codes


def _words(attributes: Mapping[str, Any], key: str, count: int, where: str) -> list[str]:
    """Read a space-separated attribute with one word for each code; empty when absent."""
    words = str(attributes.get(key, "")).split()
    if words and len(words) != count:
        raise UserError(
            f"{where}: {key} must hold one word for each of the {count} flag_values, found "
            f"{len(words)}; put underscores for the blanks inside a name"
        )
    return words


def _readable(value: Any, count: int) -> list[str]:
    """Read the optional class_names attribute, a JSON list; empty when it does not fit."""
    try:
        names = json.loads(value) if isinstance(value, str) else value
    except json.JSONDecodeError:
        return []
    if isinstance(names, list) and len(names) == count:
        return [str(name) for name in names]
    return []
