"""Writing scenes: what is refused, and that nothing is left of a failure."""

from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pytest

from pipeline.errors import UserError
from pipeline.scene import write_scene

CUBE = np.ones((4, 21, 34), np.uint16)
LABELS = np.full((21, 34), 3)


def test_writer_refuses(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    with pytest.raises(UserError, match="exists already"):
        write_scene(tmp_path / "there", CUBE)
    with pytest.raises(UserError, match="integer or float"):
        write_scene(tmp_path / "s", CUBE.astype(complex))
    with pytest.raises(UserError, match="each of the 4 bands, found 2"):
        write_scene(tmp_path / "s", CUBE, wavelength_nm=[1, 2])
    with pytest.raises(UserError, match=r"\(21, 34\) \(y, x\) of reflectance, found \(2, 2\)"):
        write_scene(tmp_path / "s", CUBE, labels=np.zeros((2, 2), int))
    with pytest.raises(UserError, match=r"0\.\.65535, found -1 to 0"):
        write_scene(tmp_path / "s", CUBE, labels=LABELS - 4)
    with pytest.raises(UserError, match="labels must be integers"):
        write_scene(tmp_path / "s", CUBE, labels=LABELS * 1.0)
    with pytest.raises(UserError, match="cannot understand the CRS"):
        write_scene(tmp_path / "s", CUBE, crs="EPSG:nothing")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="could not be written"):
        write_scene(tmp_path / "file" / "s", CUBE)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "there"]


def test_nothing_is_left_of_a_failed_write(tmp_path: Path) -> None:
    def fail(block: Any) -> Any:
        raise RuntimeError("lost the disk")

    broken = da.from_array(CUBE, chunks=(4, 8, 8)).map_blocks(fail, dtype=np.uint16)
    with pytest.raises(RuntimeError, match="lost the disk"):
        write_scene(tmp_path / "s", broken)
    assert list(tmp_path.iterdir()) == []
