"""Labels on the way into a scene: the class file, the codes, and finer label maps."""

import csv
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from dask.base import compute
from dask.delayed import delayed
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from pipeline.classes import ClassTable, table_of
from pipeline.errors import UserError, in_yaml

Codes = np.ndarray[Any, np.dtype[np.int32]]


class ClassEntry(BaseModel):
    """One class of a class file; ``source`` is its code or text in the label file.

    By default the code is ``code`` and the text is ``name``.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    code: int = Field(ge=1, le=65535)
    name: str = Field(min_length=1)
    color: str | None = Field(default=None, pattern=r"^#[0-9a-fA-F]{6}$")
    source: int | str | None = None


@dataclass(frozen=True)
class ClassFile:
    """The classes of a scene and the code in the scene for each code, or text, of the label file."""

    table: ClassTable
    code_of_source: dict[int, int]
    code_of_text: dict[str, int]


def read_class_file(path: Path) -> ClassFile:
    """Read a YAML list of {code, name, color, source}, or a CSV table with these columns.

    Raises:
        UserError: It is missing, no such list, or names a code twice.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        table = _rows(text) if path.suffix.lower() == ".csv" else yaml.safe_load(text)
        entries = TypeAdapter(list[ClassEntry]).validate_python(table)
    except OSError as error:
        raise UserError(f"class file {path}: cannot read it: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"class file {path}: expected text in UTF-8, found {error.reason}") from error
    except yaml.YAMLError as error:
        raise UserError(f"class file {path}: not valid YAML: {in_yaml(error)}") from error
    except ValidationError as error:
        raise UserError(
            f"class file {path}: expected a YAML list of {{code, name, color, source}} or a .csv with these "
            f"columns, {_complaint(error)}"
        ) from error
    sources: list[int | str] = [entry.code if entry.source is None else entry.source for entry in entries]
    codes: list[int | str] = [entry.code for entry in entries]
    for name, values in (("code", codes), ("source", sources)):
        twice = sorted({value for value in values if values.count(value) > 1}, key=str)
        if twice:
            raise UserError(f"class file {path}: {name} {twice} stands twice; keep each once")
    table = table_of((e.code, e.name, e.color.lower() if e.color else None) for e in entries)
    pairs = {s: entry.code for s, entry in zip(sources, entries, strict=True) if isinstance(s, int)}
    texts = {e.source if isinstance(e.source, str) else e.name: e.code for e in entries}
    return ClassFile(table, pairs, texts)


def _complaint(error: ValidationError) -> str:
    """The first complaint about a class file; entries count from 1."""
    first = error.errors()[0]
    if not first["loc"]:
        return f"found {type(first['input']).__name__}"
    entry, *keys = first["loc"]
    value = first["input"]
    if first["type"] == "missing":
        return f"found no {keys[0]} in entry {int(entry) + 1}: {value}"
    wanted = "like #4caf50" if keys[:1] == ["color"] else first["msg"][0].lower() + first["msg"][1:]
    return f"found in entry {int(entry) + 1} {' '.join(map(str, keys))} {value!r}: {wanted}"


def _rows(text: str) -> list[dict[str, Any]]:
    """Return the rows of a CSV table (commas or semicolons); empty cells are absent, digits are numbers."""
    header = text.split("\n", 1)[0]
    rows = csv.DictReader(
        io.StringIO(text),
        delimiter=";" if ";" in header else ",",
        skipinitialspace=True,
        restkey="beyond the header",
    )
    cells = [{k.strip().lower(): str(v or "").strip() for k, v in row.items()} for row in rows]
    number = {"code", "source"}
    return [{k: int(v) if k in number and v.isdecimal() else v for k, v in row.items() if v} for row in cells]


def to_codes(labels: Any, fill: float | None, where: str) -> Any:
    """Return a dask label map (y, x) as int32 codes; fill and NaN become 0.

    Raises:
        UserError: While computing, where a label is no whole number from 0 upwards.
    """

    def convert(block: Any) -> Codes:
        unlabelled = np.isnan(block) if block.dtype.kind == "f" else np.zeros(block.shape, bool)
        if fill is not None:
            unlabelled |= block == fill
        known = np.where(unlabelled, 0, block)
        whole = known.astype(np.int32)
        if (whole != known).any() or (whole < 0).any():
            wrong = known[(whole != known) | (whole < 0)][0]
            raise UserError(
                f"{where}: labels must be whole numbers from 0 (unlabelled) upwards, found {wrong}"
            )
        return whole

    return labels.map_blocks(convert, dtype=np.int32)


def check_some(labels: Any, where: str) -> None:
    """Refuse a dask label map of zeros; reads it once."""
    if not _found(labels):
        raise UserError(f"{where}: expected labels, found 0 (unlabelled) everywhere")


def recode(labels: Any, classes: ClassFile, drop_unlisted: bool, where: str) -> Any:
    """Return a dask label map in the codes of the class file; reads the labels once.

    Raises:
        UserError: The labels hold codes that the class file does not list.
    """
    if classes.code_of_source.get(0):
        raise UserError(
            f"{where}: 0 is unlabelled in a raster, and the class file takes it for a class; renumber"
        )
    found = _found(labels)
    unlisted = sorted(found - set(classes.code_of_source))
    if unlisted and not drop_unlisted:
        raise UserError(
            f"{where}: the class file does not list the codes {unlisted} of the labels; "
            "add them, or drop their labels with --drop-unlisted"
        )
    table = np.zeros(max(found, default=0) + 1, np.int32)
    for source, code in classes.code_of_source.items():
        if 0 < source < len(table):
            table[source] = code
    return labels.map_blocks(lambda block: table[block], dtype=np.int32)


def with_unnamed(table: ClassTable, labels: Any) -> ClassTable:
    """Return the table with "class <code>" for codes of the labels that it lacks."""
    unnamed = _found(labels) - set(table.codes)
    known = zip(table.codes, table.names, table.colors, strict=True)
    return table_of([*known, *((code, f"class {code}", None) for code in sorted(unnamed))])


def refinement(labels: tuple[int, int], pixels: tuple[int, int], where: str) -> int:
    """Return k, the label pixels to a side of each spectral pixel.

    Raises:
        UserError: The sizes (y, x) are not in one whole-number ratio.
    """
    k = labels[0] // pixels[0]
    if k < 1 or labels != (pixels[0] * k, pixels[1] * k):
        raise UserError(
            f"{where}: labels must be as large as the image, {pixels[0]} x {pixels[1]} pixels "
            f"(y, x), or a whole multiple of it, found {labels[0]} x {labels[1]}; "
            "resample or cut them first, or give --warp-labels where both have a place on Earth"
        )
    return k


def pure_labels(labels: Any, k: int, purity: float) -> Any:
    """Return a dask label map (y, x) coarser by k, with the codes of pure blocks only."""
    if k == 1:
        return labels
    side = k * max(1, 2048 // k)
    aligned = labels.rechunk((side, side))
    chunks = tuple(tuple(n // k for n in sizes) for sizes in aligned.chunks)
    return aligned.map_blocks(majority, k, purity, dtype=np.int32, chunks=chunks)


def majority(block: Codes, k: int, purity: float) -> Codes:
    """Return the majority code of each k x k block where its share is at least ``purity``.

    Args:
        block: Codes (y * k, x * k); 0 (unlabelled) counts as a code of its own.
        k: Label pixels to a side.
        purity: The least share, over all k * k label pixels.

    Returns:
        Codes (y, x), 0 where no code is frequent enough; the smaller code wins a tie.
    """
    y, x = block.shape[0] // k, block.shape[1] // k
    cells = block.reshape(y, k, x, k)
    best = np.zeros((y, x), np.int32)
    most = np.zeros((y, x), np.int64)
    for code in np.unique(block):
        count = (cells == code).sum(axis=(1, 3))
        best[count > most] = code
        most = np.maximum(most, count)
    # 0.07 * 100 is a little more than 7 in floating point: that much is forgiven.
    return np.where(most >= purity * k * k - 1e-9, best, 0).astype(np.int32)


def _found(labels: Any) -> set[int]:
    """Return the codes in a dask label map; reads it once."""
    per_block = [delayed(np.unique)(block) for block in labels.to_delayed().ravel()]
    return set(np.unique(np.concatenate(compute(*per_block))).tolist()) - {0}
