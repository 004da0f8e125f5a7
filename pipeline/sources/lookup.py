"""Images in sensor geometry, placed on Earth by the lookup table that came with them (EMIT: GLT)."""

from dataclasses import dataclass, replace
from typing import Any

import dask.array as da
import numpy as np

from pipeline.errors import UserError
from pipeline.georeference import parse_crs
from pipeline.sources.arrays import Arrays
from pipeline.sources.layout import Cube, StoredArray

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Table:
    """For each pixel on Earth, the column and row in the image, counted from 1; 0 = none.

    A negative number is a neighbour's, put where the sensor saw nothing itself.
    """

    column: StoredArray
    row: StoredArray
    data: Any
    fill: float

    def block(self, y0: int, y1: int, x0: int, x1: int) -> Array:
        """Return a block (band, y, x) of the placed image.

        Memory: the block and the part of the image between its first and last row and column.
        """
        rows = np.abs(np.asarray(self.row[y0:y1, x0:x1])).astype(np.int64)
        columns = np.abs(np.asarray(self.column[y0:y1, x0:x1])).astype(np.int64)
        known = (rows > 0) & (columns > 0)
        block = np.full((self.data.shape[0], *rows.shape), self.fill, self.data.dtype)
        if not known.any():
            return block
        r0, r1 = int(rows[known].min()) - 1, int(rows[known].max())
        c0, c1 = int(columns[known].min()) - 1, int(columns[known].max())
        if r1 > self.data.shape[1] or c1 > self.data.shape[2]:
            raise UserError(
                f"glt_x and glt_y: expected places inside of {self.data.shape[1:]} (rows, columns), "
                f"found {(r1, c1)}; the table belongs to another file"
            )
        seen = np.asarray(self.data[:, r0:r1, c0:c1].compute(scheduler="synchronous"))
        block[:, known] = seen[:, rows[known] - 1 - r0, columns[known] - 1 - c0]
        return block


def placed(found: Arrays, cube: Cube, chunk: int) -> Cube:
    """Return the image on the grid of the file's lookup table; as it is where there is none.

    Raises:
        UserError: The table does not say where it lies, or nothing can stand for no data.
    """
    column, row = found.named("glt_x"), found.named("glt_y")
    stated = found.attributes.get("geotransform")
    if cube.transform is not None or column is None or row is None:
        if cube.transform is None and found.named("lat", "latitude") is not None:
            note = (
                "latitude and longitude of every pixel but no regular grid: kept in sensor geometry, no CRS"
            )
            return replace(cube, notes=(*cube.notes, note))
        return cube
    where = f"{found.path}: glt_x, glt_y"
    if stated is None or len(stated) != 6:
        raise UserError(f"{where}: expected the attribute geotransform of six numbers, found {stated}")
    fill = cube.fill if cube.fill is not None else float("nan") if cube.data.dtype.kind == "f" else None
    if fill is None:
        raise UserError(f"{where}: expected a _FillValue for pixels that the sensor did not see, found none")
    table = Table(column.array, row.array, cube.data, fill)
    height, width = row.array.shape
    c, a, b, f, d, e = (float(v) for v in stated)

    def block(block_id: tuple[int, int, int] = (0, 0, 0)) -> Array:
        y0, x0 = block_id[1] * chunk, block_id[2] * chunk
        return table.block(y0, min(y0 + chunk, height), x0, min(x0 + chunk, width))

    sizes = da.core.normalize_chunks((-1, chunk, chunk), (cube.data.shape[0], height, width))
    return replace(
        cube,
        data=da.map_blocks(
            block, chunks=sizes, dtype=cube.data.dtype, meta=np.empty((0, 0, 0), cube.data.dtype)
        ),
        fill=fill,
        crs_wkt=parse_crs(str(found.attributes.get("spatial_ref", "EPSG:4326")), where).to_wkt(),
        transform=(a, b, c, d, e, f),
        notes=(*cube.notes, "sensor geometry was placed on Earth with glt_x and glt_y"),
    )
