"""Turn a cube in a MATLAB, NumPy, GeoTIFF or ENVI file, with its labels, into a Zarr scene."""

import os
import sys
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    # Python looks for modules beside the script it runs; they lie in the repository's root.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import click
import numpy as np

from pipeline import ingest_labels, ingest_options
from pipeline.classes import ClassTable
from pipeline.errors import UserError, run_command
from pipeline.georeference import coarser, parse_crs
from pipeline.scene import Scene, open_scene, write_scene
from pipeline.sources import matlab, numpy_file, raster
from pipeline.sources.layout import Cube, LabelMap

_FORMATS = "MATLAB .mat, NumPy .npy, GeoTIFF .tif or ENVI (.hdr or its data file)"
_CUBE_AXES = ("yxb", "xyb", "byx", "bxy", "ybx", "xby")


@dataclass(frozen=True)
class Options:
    """The command line of ingest; every field is the option of its name."""

    variable: str | None = None
    axes: str = "yxb"
    labels: Path | None = None
    labels_variable: str | None = None
    labels_axes: str = "yx"
    purity: float = 0.75
    classes: Path | None = None
    drop_unlisted: bool = False
    crs: str | None = None
    transform: str | None = None
    pixel_size: str | None = None
    origin: str | None = None
    wavelengths: str | None = None
    scale_factor: float | None = None
    fill: float | None = None
    drop_bands: str | None = None
    chunk: int = 128


def ingest(source: Path, target: Path, options: Options) -> Scene:
    """Write the scene of a source file and return it, opened; data pass block by block.

    Raises:
        UserError: A file, an option or a combination of them does not fit.
    """
    if target.exists():
        raise UserError(f"scene {target}: exists already; choose another path or remove it")
    cube = read_cube(source, options)
    bands = cube.data.shape[0]
    dropped = ingest_options.parse_bands(options.drop_bands, bands)
    kept = [band for band in range(bands) if band not in set(dropped)]
    wavelength_nm = cube.wavelength_nm
    if options.wavelengths is not None:
        wavelength_nm = ingest_options.parse_wavelengths(options.wavelengths, bands)
    placed = ingest_options.parse_transform(options.transform, options.pixel_size, options.origin)
    cube = replace(
        cube,
        crs_wkt=ingest_options.one_crs(options.crs, cube.crs_wkt, str(source)),
        transform=ingest_options.one_transform(placed, cube.transform, str(source)),
    )
    scale = options.scale_factor if options.scale_factor is not None else cube.scale_factor
    attributes: dict[str, Any] = {"source": source.name}
    if dropped:
        attributes["dropped_bands"] = dropped
        click.echo(f"left out: bands {options.drop_bands}, {len(dropped)} of {bands}")
    with scheduler():
        labels, classes = None, None
        if options.labels is not None:
            labels, classes = scene_labels(options.labels, cube, options)
            attributes["labels_source"] = options.labels.name
        write_scene(
            target,
            cube.data[kept] if dropped else cube.data,
            wavelength_nm=[wavelength_nm[band] for band in kept] if wavelength_nm else None,
            crs=cube.crs_wkt,
            transform=cube.transform,
            labels=labels,
            classes=classes,
            scale_factor=scale,
            add_offset=cube.add_offset,
            fill_value=ingest_options.stored_fill(options.fill, cube.fill, cube.data.dtype),
            attributes=attributes,
            chunk=options.chunk,
        )
    return open_scene(str(target))


def read_cube(path: Path, options: Options) -> Cube:
    """Open a source file of any format as a lazy cube; UserError when it is none."""
    match _format(path):
        case "matlab":
            return matlab.read_cube(path, options.variable, options.axes, options.chunk)
        case "numpy":
            return numpy_file.read_cube(path, options.axes, options.chunk)
        case _:
            return raster.read_cube(path, options.chunk)


def scene_labels(path: Path, cube: Cube, options: Options) -> tuple[Any, ClassTable | None]:
    """Return the labels on the grid of the cube, as a dask array, and their classes.

    Raises:
        UserError: The labels do not fit the cube, the class file or the options.
    """
    found = _read_labels(path, options)
    k = ingest_labels.refinement(found.data.shape, cube.data.shape[1:], str(path))
    _check_place(found, cube, k, path)
    labels = ingest_labels.to_codes(found.data, found.fill, str(path))
    table = found.classes
    if options.classes is not None:
        listed = ingest_labels.read_class_file(options.classes)
        labels = ingest_labels.recode(labels, listed, options.drop_unlisted, str(path))
        table = listed.table
    elif table is not None:
        table = ingest_labels.with_unnamed(table, labels)
    return ingest_labels.pure_labels(labels, k, options.purity), table


def scheduler() -> AbstractContextManager[Any]:
    """Return a context in which dask computes on Ray where one runs, else in threads."""
    # Importing ray takes seconds: only where something says that it is in use.
    if "RAY_ADDRESS" not in os.environ and "ray" not in sys.modules:
        return nullcontext()
    import ray
    from ray.util.dask import enable_dask_on_ray

    if not ray.is_initialized():
        if "RAY_ADDRESS" not in os.environ:
            return nullcontext()
        ray.init()
    context: AbstractContextManager[Any] = enable_dask_on_ray()
    return context


def summary(scene: Scene) -> str:
    """Return the lines that say what a scene holds."""
    crs = parse_crs(scene.crs_wkt, scene.url).name if scene.crs_wkt else "none"
    lines = [
        f"{scene.url}",
        f"  size    {scene.height} x {scene.width} pixels (y, x), {scene.bands} bands",
        f"  type    {scene.dtype}",
        f"  CRS     {crs}",
    ]
    if scene.classes is None:
        return "\n".join([*lines, "  labels  none"])
    codes, counts = np.unique(scene.labelled_pixels()[2], return_counts=True)
    count = dict(zip(codes.tolist(), counts.tolist(), strict=True))
    lines.append(f"  labels  {sum(count.values())} pixels in {len(count)} classes")
    for code, name in zip(scene.classes.codes, scene.classes.names, strict=True):
        lines.append(f"  {code:6d}  {name:<32} {count.get(code, 0):>10}")
    return "\n".join(lines)


def _format(path: Path) -> str:
    """Return "matlab", "numpy" or "raster"; UserError for a missing or unknown file."""
    if not path.exists():
        raise UserError(f"{path}: no such file")
    if path.suffix.lower() == ".mat":
        return "matlab"
    if path.suffix.lower() == ".npy":
        return "numpy"
    headers = (path.with_suffix(".hdr"), path.with_name(f"{path.name}.hdr"))
    if path.suffix.lower() in (".tif", ".tiff") or any(h.is_file() for h in headers):
        return "raster"
    raise UserError(f"{path}: unknown format; expected {_FORMATS}")


def _read_labels(path: Path, options: Options) -> LabelMap:
    """Open a label file of any format."""
    match _format(path):
        case "matlab":
            return matlab.read_labels(path, options.labels_variable, options.labels_axes)
        case "numpy":
            return numpy_file.read_labels(path, options.labels_axes)
        case _:
            return raster.read_labels(path)


def _check_place(labels: LabelMap, cube: Cube, k: int, path: Path) -> None:
    """Raise UserError when labels and cube both have a place on Earth and it differs."""
    advice = "reproject or cut the labels to the grid of the image"
    if labels.crs_wkt and cube.crs_wkt:
        own, image = parse_crs(labels.crs_wkt, str(path)), parse_crs(cube.crs_wkt, "the image")
        if not ingest_options.same_crs(own, image):
            raise UserError(
                f"{path}: geographic conflict: expected the CRS of the image, {image.name}, "
                f"found {own.name}; {advice}"
            )
    if labels.transform and cube.transform:
        grid = coarser(labels.transform, k)
        if not ingest_options.same_transform(cube.transform, grid):
            raise UserError(
                f"{path}: geographic conflict: expected labels that, {k} to a side of a pixel, "
                f"give the transform {cube.transform} of the image, found {grid}; {advice}"
            )


_EXISTING = click.Path(path_type=Path)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("paths", nargs=-1, metavar="SOURCE... SCENE", type=_EXISTING)
@click.option("--variable", help="Array of a .mat file [default: the 3-D one with most bands].")
@click.option(
    "--axes",
    type=click.Choice(_CUBE_AXES),
    default="yxb",
    show_default=True,
    help="Order of the axes of a .mat (as MATLAB shows it) or .npy cube.",
)
@click.option("--labels", type=_EXISTING, help="Label map, in any of the formats; 0 = unlabelled.")
@click.option("--labels-variable", help="Array of a .mat label file [default: the only 2-D one].")
@click.option(
    "--labels-axes",
    type=click.Choice(("yx", "xy")),
    default="yx",
    show_default=True,
    help="Order of the axes of .mat or .npy labels.",
)
@click.option(
    "--purity",
    type=click.FloatRange(0, 1, min_open=True),
    default=0.75,
    show_default=True,
    help="Labels finer than the pixels: least share of a pixel's majority class.",
)
@click.option("--classes", type=_EXISTING, help="YAML list of {code, name, color, source}.")
@click.option("--drop-unlisted", is_flag=True, help="Unlabel codes that --classes lacks.")
@click.option("--crs", help="Such as EPSG:26915, where the source names none.")
@click.option("--transform", help="a,b,c,d,e,f: x = a col + b row + c, y = d col + e row + f.")
@click.option("--pixel-size", help="SIZE or X,Y in units of the CRS; with --origin.")
@click.option("--origin", help="X,Y of the outer corner of the first pixel; with --pixel-size.")
@click.option("--wavelengths", help="FIRST:LAST in nm, spread evenly, or a file of numbers.")
@click.option("--scale-factor", type=float, help="Reflectance per stored unit.")
@click.option("--fill", type=float, help="Stored value that means no data.")
@click.option("--drop-bands", help="Bands to leave out, counted from 0, such as 0-3,100.")
@click.option(
    "--chunk",
    type=click.IntRange(1),
    default=128,
    show_default=True,
    help="Pixels to a side of a chunk.",
)
def command(paths: tuple[Path, ...], **options: Any) -> None:
    """Write SCENE, a Zarr group, from SOURCE: MATLAB, NumPy, GeoTIFF or ENVI."""
    if len(paths) < 2:
        raise UserError(f"expected SOURCE and SCENE, found {len(paths)} path; see --help")
    if len(paths) > 2:
        raise UserError(
            f"expected one SOURCE, found {len(paths) - 1}: mosaicking is not supported yet; "
            "join them first, for example with gdal_merge.py or gdalbuildvrt"
        )
    click.echo(summary(ingest(paths[0], paths[1], Options(**options))))


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    return run_command(command, "ingest", arguments)


if __name__ == "__main__":
    sys.exit(main())
