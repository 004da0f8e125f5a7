"""Opens a Zarr array with the GDAL that pyogrio brings: `python gdal_zarr.py LIBRARY PATH`.

rasterio's GDAL (3.10) cannot read Zarr v3 yet. Runs in a process of its own, for two GDALs in one process
share symbols. Prints JSON: crs (authority code), transform (GDAL's order), shape and the values.
"""

import ctypes
import json
import sys


def main(library: str, path: str) -> None:
    gdal = ctypes.CDLL(library)
    handle, text = ctypes.c_void_p, ctypes.c_char_p
    for name, result, arguments in (
        ("GDALOpenEx", handle, [text, ctypes.c_uint, handle, handle, handle]),
        ("GDALGetSpatialRef", handle, [handle]),
        ("OSRGetAuthorityCode", text, [handle, text]),
        ("GDALGetGeoTransform", ctypes.c_int, [handle, handle]),
        ("GDALGetRasterXSize", ctypes.c_int, [handle]),
        ("GDALGetRasterYSize", ctypes.c_int, [handle]),
        ("GDALGetRasterBand", handle, [handle, ctypes.c_int]),
        ("GDALRasterIO", ctypes.c_int, [handle, *[ctypes.c_int] * 5, handle, *[ctypes.c_int] * 5]),
    ):
        function = getattr(gdal, name)
        function.restype, function.argtypes = result, arguments
    gdal.GDALAllRegister()
    read_raster, verbose, byte = 2, 64, 1
    dataset = gdal.GDALOpenEx(path.encode(), read_raster | verbose, None, None, None)
    if not dataset:
        sys.exit("GDAL cannot open it")
    transform = (ctypes.c_double * 6)()
    gdal.GDALGetGeoTransform(dataset, transform)
    width, height = gdal.GDALGetRasterXSize(dataset), gdal.GDALGetRasterYSize(dataset)
    values = (ctypes.c_ubyte * (width * height))()
    band = gdal.GDALGetRasterBand(dataset, 1)
    failed = gdal.GDALRasterIO(band, 0, 0, 0, width, height, values, width, height, byte, 0, 0)
    crs = gdal.GDALGetSpatialRef(dataset)
    found = {
        "crs": gdal.OSRGetAuthorityCode(crs, None).decode() if crs else None,
        "transform": list(transform),
        "shape": [height, width],
        "values": None if failed else list(values),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
