"""Ingest: what files say of their bands, and which bands stay out."""

from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pytest
import rasterio
import xarray as xr

from pipeline.ingest_bands import ranges, signal_to_noise
from pipeline.scene import open_scene
from pipeline.sources.raster_bands import described
from tests.ingest_files import GRID, cube, run, write_source

pytestmark = pytest.mark.filterwarnings("ignore:Use `@` matmul:PendingDeprecationWarning")


@pytest.mark.parametrize(
    ("texts", "nm"),
    [
        (["Band 1 (418.24 nm)", "Band 2 (424.5 nm)"], (418.24, 424.5)),  # EnMAP-like
        (["402.44", "410.96"], (402.44, 410.96)),
        (["Band_402.44", "Band_410.96"], (402.44, 410.96)),  # PRISMA-like
        (["Cw_Vnir 402.440 nm", "Cw_Swir 1029.5nm"], (402.44, 1029.5)),
        (["0.4783 um", "0.4901 Micrometers"], (478.3, 490.1)),
        (["0.4783", "2.4901"], (478.3, 2490.1)),
        (["Band 1", "Band 2"], None),
        (["Band 400", "Band 401", "Band 402"], None),  # only counts
        (["Band 1 (418.24 nm)", ""], None),
        (["blue", "green"], None),
    ],
)
def test_wavelengths_in_band_descriptions(texts: list[str], nm: tuple[float, ...] | None) -> None:
    assert described(texts) == nm


def write_envi(path: Path, extra: str) -> Path:
    source = write_source(path, "bil")
    with source.open("a") as header:
        header.write(extra)
    return source


def test_envi_bad_bands_scale_and_ignored_value(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    extra = "bbl = {1, 0, 1, 1, 0, 0}\nreflectance scale factor = 10000\nband names = {a, b, c, d, e, f}\n"
    assert run(write_envi(tmp_path, extra), tmp_path / "s") == 0
    said = capsys.readouterr().out
    assert "left out: bands 1,4-5, 3 of 6 (the source's list of bad bands)" in said
    assert "c.hdr: reflectance scale factor 10000: reflectance = stored / 10000" in said
    scene = open_scene(str(tmp_path / "s"))
    assert scene.wavelength_nm == pytest.approx((400, 600, 700))
    np.testing.assert_allclose(scene.read(0, 20, 0, 33), cube()[[0, 2, 3]] / 1e4, rtol=1e-6)
    opened = xr.open_zarr(tmp_path / "s")
    assert opened["reflectance"].encoding["_FillValue"] == 65535
    assert opened.attrs["dropped_bands"] == [1, 4, 5]
    assert opened.attrs["dropped_why"] == {"the source's list of bad bands": "1,4-5"}


def test_wavelength_ranges(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_source(tmp_path, "tif")
    options = ["--drop-wavelengths", "390-450,700-800", "--drop-bands", "3"]
    assert run(source, tmp_path / "s", *options) == 0
    said = capsys.readouterr().out
    assert "left out: bands 3, 1 of 6 (--drop-bands)" in said
    assert "left out: bands 0,4, 2 of 6 (--drop-wavelengths)" in said
    assert open_scene(str(tmp_path / "s")).wavelength_nm == (500, 600, 900)


def test_noise_is_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A textured scene of two materials with known noise in every band."""
    random = np.random.default_rng(0)
    share = random.random((130, 140))
    spectra = np.linspace(100, 300, 8)[:, None, None] * share + 50 * (1 - share)
    sigma = np.array([1, 1, 1, 20, 1, 1, 1, 1.0])[:, None, None]
    noisy = spectra + sigma * random.standard_normal(spectra.shape)
    snr = signal_to_noise(da.from_array(noisy, chunks=(8, 64, 64)), None)
    truth = noisy.mean(axis=(1, 2)) / sigma[:, 0, 0]
    # The neighbours that predict a band carry noise of their own.
    assert (snr[[0, 1, 3, 5, 6, 7]] < truth[[0, 1, 3, 5, 6, 7]] * 1.1).all()
    assert (snr > truth / 2.5).all()
    np.save(tmp_path / "c.npy", noisy)
    assert run(tmp_path / "c.npy", tmp_path / "s", "--axes", "byx", "--drop-noisy", 15) == 0
    assert (
        "left out: bands 3, 1 of 8 (--drop-noisy: signal-to-noise ratio below 15)" in capsys.readouterr().out
    )
    assert open_scene(str(tmp_path / "s")).bands == 7


def test_noise_of_bands_without_data_or_without_noise() -> None:
    data = np.ones((4, 70, 70), np.int16) * np.array([100, 200, 300, -1], np.int16)[:, None, None]
    snr = signal_to_noise(da.from_array(data), -1)
    assert snr[:3].min() > 1e6
    assert snr[3] == 0


def test_ranges() -> None:
    assert ranges([0, 1, 2, 5, 7, 8]) == "0-2,5,7-8"
    assert ranges([]) == ""


REFUSED: list[tuple[list[Any], str]] = [
    (
        ["--drop-wavelengths", "2000-2100"],
        "expected bands between 2000-2100 nm, found none; the source has 400 to 900",
    ),
    (["--drop-wavelengths", "900-400"], "expected ranges in nm such as 1340-1450,1800-1960, found '900-400'"),
    (["--drop-bands", "0-4", "--drop-wavelengths", "800-950"], "none of the 6 bands is left"),
    (["--drop-noisy", "-1"], "-1.0 is not in the range"),
]


@pytest.mark.parametrize(("options", "said"), REFUSED)
def test_refusals(tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[Any], said: str) -> None:
    assert run(write_source(tmp_path, "tif"), tmp_path / "s", *options) == 2
    assert said in capsys.readouterr().err


def test_wavelengths_must_be_known_to_drop_by_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(write_source(tmp_path, "npy"), tmp_path / "s", "--drop-wavelengths", "400-500") == 2
    assert "the source states no wavelengths; give them with --wavelengths" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        ("bbl = {1, 1}\n", "bbl must hold 1 (good) or 0 (bad) for each of the 6 bands, found 2"),
        (
            "reflectance scale factor = none\n",
            "reflectance scale factor must be a number above 0, found 'none'",
        ),
    ],
)
def test_wrong_envi_headers_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], extra: str, said: str
) -> None:
    assert run(write_envi(tmp_path, extra), tmp_path / "s") == 2
    assert said in capsys.readouterr().err


def test_a_cog_with_descriptions(tmp_path: Path) -> None:
    source = write_source(tmp_path, "cog")
    with rasterio.open(source) as file:
        assert file.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
    assert run(source, tmp_path / "s") == 0
    assert open_scene(str(tmp_path / "s")).wavelength_nm == (400, 500, 600, 700, 800, 900)


ENMAP = """<level_X><specific><bandCharacterisation>{}</bandCharacterisation></specific></level_X>"""
BAND = """<bandID number="{}"><wavelengthCenterOfBand>{}</wavelengthCenterOfBand></bandID>"""


def test_wavelengths_in_the_xml_of_enmap(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "ENMAP01-L2A-SPECTRAL_IMAGE.TIF"
    with rasterio.open(source, "w", count=6, height=20, width=33, dtype="uint16", **GRID) as file:
        file.write(cube())
    beside = tmp_path / "ENMAP01-L2A-METADATA.XML"
    numbers = [4, 1, 6, 2, 3, 5]  # in any order
    beside.write_text(ENMAP.format("".join(BAND.format(n, 400.25 + n) for n in numbers)))
    assert run(source, tmp_path / "s") == 0
    assert open_scene(str(tmp_path / "s")).wavelength_nm == tuple(400.25 + n for n in range(1, 7))
    beside.write_text(ENMAP.format(BAND.format(1, 400)))
    assert run(source, tmp_path / "of another image") == 0
    assert open_scene(str(tmp_path / "of another image")).wavelength_nm is None
    beside.write_text("<level_X>")
    assert run(source, tmp_path / "t") == 2
    assert "METADATA.XML: cannot read the wavelengths" in capsys.readouterr().err


def test_an_arbitrary_crs_of_envi_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_source(tmp_path, "bil")
    (header,) = tmp_path.glob("*.hdr")
    kept = [
        line for line in header.read_text().splitlines() if not line.startswith(("map info", "coordinate"))
    ]
    header.write_text("\n".join([*kept, "map info = {Arbitrary, 1, 1, 0, 0, 1, 1, 0, North}"]) + "\n")
    assert run(source, tmp_path / "s") == 0
    assert "its CRS is of no place on Earth" in capsys.readouterr().out
    assert open_scene(str(tmp_path / "s")).crs_wkt is None
