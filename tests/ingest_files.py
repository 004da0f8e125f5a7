"""Small files of every source format, for the tests of ingest."""

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import rasterio
import scipy.io
from affine import Affine

from pipeline import ingest

ROOT = Path(__file__).resolve().parent.parent
BANDS, HEIGHT, WIDTH = 6, 20, 33
GRID: dict[str, Any] = {"crs": "EPSG:26915", "transform": Affine(2, 0, 272000, 0, -2, 3290000)}
PLACE = ["--crs", "EPSG:26915", "--pixel-size", "2", "--origin", "272000,3290000"]
WAVES = [400.0, 500.0, 600.0, 700.0, 800.0, 900.0]


def cube() -> np.ndarray[Any, Any]:
    """Return (band, y, x) uint16 counts that differ everywhere."""
    return np.arange(1, BANDS * HEIGHT * WIDTH + 1, dtype=np.uint16).reshape(BANDS, HEIGHT, WIDTH)


def label_map(k: int = 1) -> np.ndarray[Any, Any]:
    """Return (y, x) uint8 labels, k label pixels to a side of a pixel."""
    codes = (np.arange(HEIGHT)[:, None] + np.arange(WIDTH)) % 3
    return codes.astype(np.uint8).repeat(k, 0).repeat(k, 1)


def write_source(path: Path, kind: str) -> Path:
    """Write the cube in a format and return the path to give to ingest."""
    if kind == "mat5":
        scipy.io.savemat(path / "c.mat", {"cube": cube().transpose(1, 2, 0), "rgb": cube()[:3].T})
        return path / "c.mat"
    if kind == "mat73":
        with h5py.File(path / "c.mat", "w", userblock_size=512) as file:
            # MATLAB's (y, x, b) array stands in HDF5 with its axes backwards: (b, x, y).
            file.create_dataset("cube", data=cube().transpose(0, 2, 1), chunks=(6, 8, 8))
            file["rgb"] = cube()[:3]
        return path / "c.mat"
    if kind == "npy":
        np.save(path / "c.npy", cube().transpose(1, 2, 0).astype(">u2"))
        return path / "c.npy"
    profile = {"count": BANDS, "dtype": "uint16", "height": HEIGHT, "width": WIDTH, **GRID}
    if kind == "tif":
        with rasterio.open(path / "c.tif", "w", driver="GTiff", nodata=65535, **profile) as file:
            file.write(cube())
            for band, nm in enumerate(WAVES, 1):
                file.update_tags(band, wavelength=nm, wavelength_units="Nanometers")
        return path / "c.tif"
    with rasterio.open(path / "c.img", "w", driver="ENVI", INTERLEAVE=kind, **profile) as file:
        file.write(cube())
    with (path / "c.hdr").open("a") as header:
        header.write("\nwavelength units = Micrometers\nwavelength = {0.4,0.5,0.6,0.7,0.8,0.9}\n")
        header.write("data ignore value = 65535\n")
    return path / ("c.hdr" if kind == "bil" else "c.img")


def run(*arguments: Any) -> int:
    """Run the command line in this process."""
    return ingest.main([str(argument) for argument in arguments])


def label_tif(path: Path, labels: np.ndarray[Any, Any], **changes: Any) -> Path:
    """Write a label GeoTIFF on the grid of the cube, with names and a palette."""
    profile = {"height": labels.shape[0], "width": labels.shape[1], **GRID, **changes}
    with rasterio.open(path, "w", driver="GTiff", count=1, dtype="uint8", **profile) as file:
        file.write(labels, 1)
        file.write_colormap(1, {1: (255, 0, 0, 255), 2: (0, 0, 255, 255)})
        file.update_tags(1, class_names=json.dumps(["none", "Red roof", "Water"]))
    return path
