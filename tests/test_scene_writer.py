"""Writing scenes: what is refused, and that nothing is left of a failure."""

import threading
import time
from pathlib import Path
from typing import Any

import dask.array as da
import fsspec
import numpy as np
import pytest
import zarr

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


def test_nothing_is_written_after_a_failure(tmp_path: Path) -> None:
    """One block fails while others are still being computed, which would write into what was removed."""
    begun = threading.Event()

    def slow(block: Any, block_id: Any = None) -> Any:
        if block_id == (0, 0, 0):
            begun.wait(10)
            raise RuntimeError("lost the disk")
        begun.set()
        time.sleep(0.5)
        return block

    broken = da.from_array(CUBE, chunks=(4, 8, 8)).map_blocks(slow, dtype=np.uint16)
    with pytest.raises(RuntimeError, match="lost the disk"):
        write_scene(tmp_path / "s", broken, chunk=8)
    before = threading.active_count()
    assert list(tmp_path.iterdir()) == []
    time.sleep(1)
    assert list(tmp_path.iterdir()) == []
    assert threading.active_count() <= before


def test_what_a_cut_off_upload_left_is_written_over(tmp_path: Path) -> None:
    """And nothing else: neither a scene nor files of another kind."""
    url = f"memory://{tmp_path.name}"
    zarr.create_array(f"{url}/cut.zarr/reflectance", data=np.zeros((9, 9, 9)), chunks=(3, 3, 3))
    write_scene(f"{url}/cut.zarr", CUBE, chunk=16)
    stored = zarr.open_array(f"{url}/cut.zarr/reflectance", mode="r")
    assert np.array_equal(stored[...], CUBE)
    assert "c/2/2/2" not in [str(key) for key in _keys(f"{url}/cut.zarr/reflectance")]
    with pytest.raises(UserError, match="exists already"):
        write_scene(f"{url}/cut.zarr", CUBE)
    for other in ("mine/labels/labels.tif", "notes/read.me"):
        with fsspec.open(f"{url}/{other}", "w") as file:
            file.write("mine")
        with pytest.raises(UserError, match="exists already"):
            write_scene(f"{url}/{other.partition('/')[0]}", CUBE)
        with fsspec.open(f"{url}/{other}") as file:
            assert file.read() == b"mine"


def _keys(url: str) -> list[str]:
    store, root = fsspec.url_to_fs(url)
    return [key.removeprefix(root).strip("/") for key in store.find(root)]
