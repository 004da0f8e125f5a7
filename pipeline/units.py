"""Ray Data ends: a Datasource of units of work, and a Datasink of whole chunks.

One row is one unit: a tile with its halo, a group of windows, the patches of a training step. Readers
are small picklable values; arrays are opened in the process that reads. A unit owns whole chunks of
the arrays that it writes, so writers never meet, and its marker is written after its chunks.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import ray.data
import zarr
from numpy.typing import NDArray
from ray.actor import ActorHandle
from ray.data import DataContext, Datasink, Datasource
from ray.data.block import Block, BlockAccessor, BlockMetadata
from ray.data.datasource import ReadTask

from pipeline import storage
from pipeline.errors import is_trouble

ROUND = 10_000
"""Tiles of one dataset: until its end the driver keeps a record of all that was written."""

Row = dict[str, Any]
IO_CPUS = 0.125
"""CPUs of a read or write task: one of each fits beside an actor, even on a single CPU."""
Region = tuple[slice, ...]
_TOGETHER = 8
"""Units that travel together, where there are many: Ray's work for a block is then shared by so many."""
_READ_PAUSES_S = (0.5, 2.0, 8.0)


class Reader(Protocol):
    """Reads one unit."""

    def __call__(self, unit: int) -> Row:
        """The row of a unit: arrays and scalars by name."""
        ...


@runtime_checkable
class DivisibleReader(Reader, Protocol):
    """Reads with the help of values that grow with the number of units: a task gets those of its own."""

    def part(self, units: Sequence[int]) -> Reader:
        """The same reader, for some units (ascending) alone."""
        ...


class UnitSource(Datasource):
    """Units in the given order, read where Ray runs the read task."""

    def __init__(self, name: str, units: Sequence[int], reader: Reader, row_bytes: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._name, self.units, self._reader = name, list(units), reader
        self.row_bytes = row_bytes

    def __len__(self) -> int:
        return len(self.units)

    def rounds(self, most: int) -> list["UnitSource"]:
        """The same units in runs of equal length, none longer than ``most``."""
        runs = np.array_split(np.asarray(self.units), max(1, -(-len(self) // most)))
        return [UnitSource(self._name, run.tolist(), self._reader, self.row_bytes) for run in runs]

    def get_name(self) -> str:
        """Name of the operator in the dashboard."""
        return self._name

    def estimate_inmemory_data_size(self) -> int:
        """Bytes of all rows together."""
        return len(self.units) * self.row_bytes

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: Any = None
    ) -> list[ReadTask]:
        """Contiguous runs of units; pure, for Ray calls it several times."""
        parts = np.array_split(np.arange(len(self.units)), max(1, min(parallelism, len(self.units))))
        tasks = []
        for part in parts:
            if not len(part):
                continue
            units = [self.units[i] for i in part]
            metadata = BlockMetadata(
                num_rows=len(units), size_bytes=len(units) * self.row_bytes, exec_stats=None,
                input_files=None,
            )  # fmt: skip
            reader = self._reader.part(units) if isinstance(self._reader, DivisibleReader) else self._reader
            tasks.append(ReadTask(_ReadUnits(reader, units), metadata))
        return tasks


@dataclass(frozen=True)
class _ReadUnits:
    reader: Reader
    units: list[int]

    def __call__(self) -> Iterable[Block]:
        for unit in self.units:
            row = {"unit": unit} | _patiently(self.reader, unit)
            yield BlockAccessor.batch_to_block({key: np.asarray(value)[None] for key, value in row.items()})


def _patiently(reader: Reader, unit: int) -> Row:
    """Read a unit; storage that stumbles is asked four times within some ten seconds."""
    for pause in _READ_PAUSES_S:
        try:
            return reader(unit)
        except Exception as error:
            if not is_trouble(error):
                raise
            time.sleep(pause)
    return reader(unit)


def read_units(
    source: UnitSource, tasks: int = 1000, together: int = _TOGETHER, num_cpus: float = IO_CPUS
) -> ray.data.Dataset:
    """The dataset of a source's units, read by at most ``tasks`` tasks of ``num_cpus`` each.

    Each task reads a run of units and passes them on in blocks of at most ``together``; without that limit,
    Ray would fill its blocks of 128 MiB, and none of their units would be finished before all of them.
    """
    tasks = max(1, min(len(source), tasks))
    run = -(-len(source) // tasks)
    block = -(-run // -(-run // together))  # equal parts of the run
    context = DataContext.get_current()
    usual = context.target_max_block_size
    context.target_max_block_size = min(usual or 1 << 30, int((block - 0.5) * source.row_bytes))
    try:  # the dataset keeps a copy
        dataset: ray.data.Dataset = ray.data.read_datasource(
            source,
            num_cpus=num_cpus,
            override_num_blocks=tasks,
        )
    finally:
        context.target_max_block_size = usual
    dataset.set_name(source.get_name())
    return dataset


class ChunkSink(Datasink[None]):
    """Writes each row's arrays into their region of a Zarr group, then the unit's marker."""

    def __init__(
        self,
        name: str,
        group: Path,
        regions: Callable[[int], dict[str, Region]],
        markers: Path,
        meter: ActorHandle[Any],
        together: int = 1,
    ) -> None:
        self._name, self._group, self._regions = name, str(group), regions
        self._markers, self._meter, self._together = markers, meter, together

    @property
    def min_rows_per_write(self) -> int | None:
        """Units that one task writes, as far as there are so many; they wait for each other."""
        return self._together if self._together > 1 else None

    def get_name(self) -> str:
        """Name of the operator in the dashboard."""
        return self._name

    def write(self, blocks: Iterable[Block], ctx: Any) -> None:
        """Write whole chunks; a repeated write of a unit leaves the same bytes."""
        group: Any = zarr.open_group(self._group, mode="r+", use_consolidated=False)
        arrays: dict[str, Any] = {}  # to open one reads its metadata
        row: Row
        for block in blocks:
            for row in BlockAccessor.for_block(block).iter_rows(public_row_format=False):
                unit, written = int(row["unit"]), int(row.get("written", 0))
                for name, region in self._regions(unit).items():
                    values: NDArray[Any] = np.asarray(row[name])[tuple(_extent(part) for part in region)]
                    if name not in arrays:
                        arrays[name] = group[name]
                    arrays[name][region] = values
                    written += values.nbytes
                storage.mark(self._markers / str(unit))
                done = (
                    1,
                    int(row["pixels"]),
                    int(row["bytes_read"]),
                    written,
                    int(row["peak_rss"]),
                )
                self._meter.add.remote(*done)


def write_units(dataset: ray.data.Dataset, sink: ChunkSink, num_cpus: float = IO_CPUS) -> None:
    """Run a dataset into its sink; each write task takes ``num_cpus``."""
    dataset.write_datasink(sink, ray_remote_args={"num_cpus": num_cpus})


def _extent(part: slice) -> slice:
    """The part of a unit's padded array that the region holds."""
    return part if part == slice(None) else slice(0, part.stop - part.start)


@dataclass(frozen=True)
class TileGrid:
    """Square tiles of a scene, row-major; those at the lower and right edge may be smaller."""

    height: int
    width: int
    side: int

    def __len__(self) -> int:
        return -(-self.height // self.side) * self.columns

    @property
    def columns(self) -> int:
        """Tiles in a row of tiles."""
        return -(-self.width // self.side)

    def bounds(self, tile: int) -> tuple[int, int, int, int]:
        """(y0, y1, x0, x1) of a tile, pixels."""
        row, column = divmod(tile, self.columns)
        y0, x0 = row * self.side, column * self.side
        return y0, min(y0 + self.side, self.height), x0, min(x0 + self.side, self.width)

    def largest_first(self, tiles: Iterable[int]) -> list[int]:
        """Tiles by falling area: a small one that comes last keeps the others waiting least.

        >>> TileGrid(height=5, width=6, side=4).largest_first(range(4))
        [0, 1, 2, 3]
        >>> TileGrid(height=6, width=5, side=4).largest_first(range(4))
        [0, 2, 1, 3]
        """

        def area(tile: int) -> int:
            y0, y1, x0, x1 = self.bounds(tile)
            return (y1 - y0) * (x1 - x0)

        return sorted(tiles, key=area, reverse=True)


@dataclass(frozen=True)
class TileRegions:
    """Where a tile lies in arrays (y, x): for each of ``names`` the same region."""

    grid: TileGrid
    names: tuple[str, ...]
    layers: bool = False
    """Whether an axis stands before y and x, of which a tile owns all."""

    def __call__(self, unit: int) -> dict[str, Region]:
        """The regions that a tile owns; a second pass numbers its units after those of the first."""
        y0, y1, x0, x1 = self.grid.bounds(unit % len(self.grid))
        before = (slice(None),) if self.layers else ()
        return {name: (*before, slice(y0, y1), slice(x0, x1)) for name in self.names}


def no_regions(unit: int) -> dict[str, Region]:
    """Of a unit that an actor has written itself: only the marker remains."""
    return {}


def in_order(rows: Iterable[Row]) -> Iterator[Row]:
    """Rows by ascending unit, whatever order they arrive in, so that sums come out the same bits.

    Units must be consecutive from the smallest one that exists, 0; only early arrivals are held.
    """
    waiting: dict[int, Row] = {}
    following = 0
    for row in rows:
        waiting[int(row["unit"])] = row
        while following in waiting:
            yield waiting.pop(following)
            following += 1
    if waiting:
        raise RuntimeError(f"unit {following} never arrived; {len(waiting)} later ones did")
