"""Open a source of any format: as a cube, as a label map, or as features with a class."""

from pathlib import Path

from pipeline.errors import UserError
from pipeline.ingest_options import Options
from pipeline.sources import matlab, netcdf, numpy_file, raster, zarr_store
from pipeline.sources.layout import Cube, LabelMap

FORMATS = (
    "ENVI (.hdr or its data file), GeoTIFF .tif, NetCDF .nc, HDF5 .h5, MATLAB .mat, "
    "NumPy .npy or a Zarr folder"
)
VECTOR_FORMATS = "GeoPackage .gpkg, GeoJSON .geojson, Shapefile .shp or FlatGeobuf .fgb"
DEFAULT_AXES = "yxb"
_BY_SUFFIX = {
    ".mat": "matlab",
    ".npy": "numpy",
    ".tif": "raster",
    ".tiff": "raster",
    **dict.fromkeys((".nc", ".nc4", ".cdf", ".h5", ".hdf5", ".he5"), "netcdf"),
    **dict.fromkeys((".gpkg", ".geojson", ".json", ".shp", ".fgb"), "vector"),
}
_ZARR_FILES = ("zarr.json", ".zgroup", ".zarray", ".zmetadata")


def format_of(path: Path) -> str:
    """Return "matlab", "numpy", "raster", "netcdf", "zarr" or "vector".

    Raises:
        UserError: The file is missing or of no format known here.
    """
    if not path.exists():
        raise UserError(f"{path}: no such file")
    if path.is_dir():
        if any((path / name).is_file() for name in _ZARR_FILES):
            return "zarr"
        raise UserError(f"{path}: expected a file or a Zarr folder, found a folder without Zarr metadata")
    headers = (path.with_suffix(".hdr"), path.with_name(f"{path.name}.hdr"))
    known = _BY_SUFFIX.get(path.suffix.lower())
    if known is None and any(header.is_file() for header in headers):
        known = "raster"
    if known is None:
        raise UserError(f"{path}: unknown format; expected {FORMATS}; for labels also {VECTOR_FORMATS}")
    return known


def read_cube(path: Path, options: Options) -> Cube:
    """Open a source file of any format as a lazy cube; UserError when it is none."""
    axes = options.axes or DEFAULT_AXES
    match format_of(path):
        case "matlab":
            return matlab.read_cube(path, options.variable, axes, options.chunk)
        case "numpy":
            return numpy_file.read_cube(path, axes, options.chunk)
        case "netcdf":
            return netcdf.read_cube(path, options.variable, options.axes, options.chunk)
        case "zarr":
            return zarr_store.read_cube(path, options.variable, options.axes, options.chunk)
        case "vector":
            raise UserError(f"{path}: expected an image, found a vector file; give it with --labels")
        case _:
            return raster.read_cube(path, options.chunk)


def read_labels(path: Path, options: Options) -> LabelMap:
    """Open a label map of any raster format; UserError when it is none."""
    match format_of(path):
        case "matlab":
            return matlab.read_labels(path, options.labels_variable, options.labels_axes)
        case "numpy":
            return numpy_file.read_labels(path, options.labels_axes)
        case "netcdf":
            return netcdf.read_labels(path, options.labels_variable, options.labels_axes)
        case "zarr":
            return zarr_store.read_labels(path, options.labels_variable, options.labels_axes)
        case _:
            return raster.read_labels(path)
