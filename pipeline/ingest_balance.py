"""Radiometric balance of flight lines: one gain for each line and band, from where lines overlap."""

import itertools
from typing import Any

import click
import numpy as np

from pipeline.ingest_warp import Grid, Layer

Array = np.ndarray[Any, np.dtype[Any]]

# Blocks of the mosaic that are looked at, spread over those where lines overlap.
_MOST_BLOCKS = 64
_LEAST_PIXELS = 16


def gains(lines: tuple[Layer, ...], grid: Grid, zero: float, chunk: int) -> Array:
    """Return the factor of each line and band (line, band); the first line keeps 1.

    Factors make the sums over shared pixels agree, in the least-squares sense of their
    logarithms over all overlapping pairs, weighted by pixels. A line that shares no pixels
    with a line already balanced keeps 1 and is named on the terminal.
    """
    bands = lines[0].data.shape[0]
    pairs = _shared(lines, grid, zero, chunk)
    logs = np.zeros((len(lines), bands))
    for band in range(bands):
        seen = {pair: (n[band], a[band], b[band]) for pair, (n, a, b) in pairs.items()}
        logs[:, band] = _solve(len(lines), seen)
    for alone in sorted(set(range(1, len(lines))) - _connected(pairs)):
        click.echo(f"not balanced: flight line {alone + 1} shares no pixels with the others")
    return np.exp(logs)


def _solve(count: int, pairs: dict[tuple[int, int], tuple[float, float, float]]) -> Array:
    """Return the logarithms of the gains of one band (line,) from (pixels, sum, sum) of each pair."""
    rows, right = [], []
    for (i, j), (n, here, there) in pairs.items():
        if n < _LEAST_PIXELS or here <= 0 or there <= 0:
            continue
        row = np.zeros(count)
        row[i], row[j] = np.sqrt(n), -np.sqrt(n)
        rows.append(row)
        right.append(np.sqrt(n) * np.log(there / here))
    if not rows:
        return np.zeros(count)
    # lstsq gives the smallest solution: lines without pairs stay at 0.
    found = np.linalg.lstsq(np.array(rows), np.array(right), rcond=None)[0]
    linked = _connected(
        {pair: None for pair, (n, a, b) in pairs.items() if n >= _LEAST_PIXELS and a > 0 and b > 0}
    )
    logs: Array = np.where(np.isin(np.arange(count), sorted(linked)), found - found[0], 0.0)
    return logs


def _shared(
    lines: tuple[Layer, ...], grid: Grid, zero: float, chunk: int
) -> dict[tuple[int, int], tuple[Array, Array, Array]]:
    """Return pixels and both sums of signal (band,) for each pair of lines that share pixels."""
    found: dict[tuple[int, int], tuple[Array, Array, Array]] = {}
    for y0, x0 in _overlaps(lines, grid, chunk):
        y1, x1 = min(y0 + chunk, grid.height), min(x0 + chunk, grid.width)
        blocks = {}
        for i, line in enumerate(lines):
            block = line.read(y0, y1, x0, x1)
            if block is not None:
                blocks[i] = block
        for (i, one), (j, other) in itertools.combinations(blocks.items(), 2):
            both = (one != lines[i].fill) & (other != lines[j].fill) & np.isfinite(one) & np.isfinite(other)
            n = both.sum(axis=(1, 2)).astype(np.float64)
            sums = [
                np.where(both, block - zero, 0).sum(axis=(1, 2), dtype=np.float64) for block in (one, other)
            ]
            if n.any():
                before = found.get((i, j), (0.0, 0.0, 0.0))
                found[i, j] = (before[0] + n, before[1] + sums[0], before[2] + sums[1])
    return found


def _overlaps(lines: tuple[Layer, ...], grid: Grid, chunk: int) -> list[tuple[int, int]]:
    """Return the first pixels of blocks where at least two lines reach, at most 64, spread evenly."""
    places = [
        (y0, x0)
        for y0 in range(0, grid.height, chunk)
        for x0 in range(0, grid.width, chunk)
        if sum(
            line.reaches(y0, min(y0 + chunk, grid.height), x0, min(x0 + chunk, grid.width)) for line in lines
        )
        > 1
    ]
    count = min(_MOST_BLOCKS, len(places))
    return [places[(2 * i + 1) * len(places) // (2 * count)] for i in range(count)]


def _connected(pairs: Any) -> set[int]:
    """Return the lines that the first line reaches over pairs, itself included."""
    known = {0}
    while new := {k for pair in pairs for k in pair if known & set(pair)} - known:
        known |= new
    return known
