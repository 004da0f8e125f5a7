"""Turn flight lines and images of many formats, with their labels, into one Zarr scene."""

import os
import sys
import warnings
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    # Python looks for modules beside the script it runs; they lie in the repository's root.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import click
from rasterio.errors import NotGeoreferencedWarning

from pipeline import ingest_bands, ingest_options
from pipeline.errors import UserError, run_command
from pipeline.georeference import parse_crs
from pipeline.ingest_describe import describe
from pipeline.ingest_ground_truth import scene_labels
from pipeline.ingest_mosaic import mosaic
from pipeline.ingest_options import Options
from pipeline.ingest_read import read_cube
from pipeline.interrupt import interruptible
from pipeline.scene import Scene, open_scene, write_scene
from pipeline.sources.layout import Cube
from pipeline.storage import is_local, location

_CUBE_AXES = ("yxb", "xyb", "byx", "bxy", "ybx", "xby")


def ingest(sources: list[Path], target: Path, options: Options) -> Scene:
    """Write the scene of one or several source files and return it, opened; data pass block by block.

    Raises:
        UserError: A file, an option or a combination of them does not fit.
    """
    ingest_options.check_target(target, options)
    cube, attributes = _one_cube(sources, options)
    with scheduler():
        # Bands are chosen first: noise is measured on the source.
        dropped = ingest_bands.dropped_bands(cube, cube.wavelength_nm, options)
        bands = cube.data.shape[0]
        gone = sorted(band for some in dropped.values() for band in some)
        kept = [band for band in range(bands) if band not in set(gone)]
        for reason, some in dropped.items():
            click.echo(f"left out: bands {ingest_bands.ranges(some)}, {len(some)} of {bands} ({reason})")
        if gone:
            attributes["dropped_bands"] = gone
            attributes["dropped_why"] = {why: ingest_bands.ranges(some) for why, some in dropped.items()}
        labels, classes = None, None
        if options.labels is not None:
            labels, classes = scene_labels(options.labels, cube, options)
            attributes["labels_source"] = options.labels.name
        write_scene(
            target,
            cube.data[kept] if gone else cube.data,
            wavelength_nm=[cube.wavelength_nm[band] for band in kept] if cube.wavelength_nm else None,
            crs=ingest_options.registered_crs(cube.crs_wkt) if cube.crs_wkt else None,
            transform=cube.transform,
            labels=labels,
            classes=classes,
            scale_factor=cube.scale_factor,
            add_offset=cube.add_offset,
            fill_value=cube.fill,
            attributes=attributes,
            chunk=options.chunk,
        )
    return open_scene(str(target))


def _one_cube(sources: list[Path], options: Options) -> tuple[Cube, dict[str, Any]]:
    """Return the cube of the sources, with what the options say of them, and the scene's attributes."""
    twice = [source for source in sources if sources.count(source) > 1]
    if twice:
        raise UserError(f"{twice[0]} stands twice among the sources; name each once")
    if len(sources) > 1 and (options.transform, options.pixel_size, options.origin) != (None, None, None):
        raise UserError("--transform, --pixel-size, --origin: one place cannot fit several flight lines")
    cubes = [_with_options(read_cube(source, options), source, options) for source in sources]
    for source, cube in zip(sources, cubes, strict=True):
        for note in cube.notes:
            click.echo(f"{source.name}: {note}")
        if cube.labelled and options.labels is None:
            click.echo(f"{source.name}: its labels are left behind; --labels {source} takes them along")
    if len(sources) == 1:
        return cubes[0], {"source": sources[0].name}
    whole, about = mosaic(cubes, [str(source) for source in sources], options)
    for note in whole.notes:
        click.echo(note)
    return whole, {"source": ", ".join(source.name for source in sources), **about}


def _with_options(cube: Cube, source: Path, options: Options) -> Cube:
    """Return a cube with the place, wavelengths, scale and fill that the options give it."""
    bands = cube.data.shape[0]
    wavelength_nm = cube.wavelength_nm
    if options.wavelengths is not None:
        wavelength_nm = ingest_options.parse_wavelengths(options.wavelengths, bands)
    data, fill, notes = ingest_options.joined_fill(options.fill, cube)
    placed = ingest_options.parse_transform(options.transform, options.pixel_size, options.origin)
    return replace(
        cube,
        data=data,
        notes=(*cube.notes, *notes),
        crs_wkt=ingest_options.one_crs(options.crs, cube.crs_wkt, str(source)),
        transform=ingest_options.one_transform(placed, cube.transform, cube.data.shape[1:], str(source)),
        wavelength_nm=wavelength_nm,
        scale_factor=options.scale_factor if options.scale_factor is not None else cube.scale_factor,
        fill=fill,
    )


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
        from pipeline.cluster import check_answers

        check_answers(os.environ["RAY_ADDRESS"])
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
    count = scene.label_counts()
    lines.append(f"  labels  {sum(count.values())} pixels in {len(count)} classes")
    for code, name in zip(scene.classes.codes, scene.classes.names, strict=True):
        lines.append(f"  {code:6d}  {name:<32} {count.get(code, 0):>10}")
    return "\n".join(lines)


_PATH = click.Path(path_type=Path)


class _Place(click.ParamType):
    """A local path or a URL."""

    name = "path"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        return location(value)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("paths", nargs=-1, metavar="SOURCE... SCENE", type=_Place())
@click.option(
    "--describe", "only_describe", is_flag=True, help="Print what is in each SOURCE; write nothing."
)
@click.option(
    "--variable", help="Array of a .mat, NetCDF, HDF5 or Zarr source [default: the 3-D one with most bands]."
)
@click.option(
    "--axes",
    type=click.Choice(_CUBE_AXES),
    help="Order of the axes of a cube without named ones; "
    "of .mat as MATLAB shows it [default for .mat and .npy: yxb].",
)
@click.option(
    "--labels",
    type=_PATH,
    help="Label map in any of the formats, 0 = unlabelled; or polygons or points "
    "(GeoPackage, GeoJSON, Shapefile, FlatGeobuf).",
)
@click.option("--labels-variable", help="Array of a label file with several [default: the only 2-D one].")
@click.option(
    "--labels-axes",
    type=click.Choice(("yx", "xy")),
    default="yx",
    show_default=True,
    help="Order of the axes of labels without named ones.",
)
@click.option("--labels-layer", help="Layer of a vector file [default: the only one].")
@click.option(
    "--labels-column", help="Column with the classes, whole numbers or text [default: found by its name]."
)
@click.option("--labels-crs", help="CRS of a vector file that states none.")
@click.option(
    "--all-touched",
    is_flag=True,
    help="Polygons label every pixel that they touch, not only those whose centre they hold.",
)
@click.option(
    "--warp-labels",
    is_flag=True,
    help="Carry a label map on another grid or in another CRS over to that of the image: nearest label.",
)
@click.option(
    "--purity",
    type=click.FloatRange(0, 1, min_open=True),
    default=0.75,
    show_default=True,
    help="Labels finer than the pixels: least share of a pixel's majority class.",
)
@click.option(
    "--classes",
    type=_PATH,
    help="Names and colours: a CSV table with the columns code, name and, if wanted, color (#rrggbb) and "
    "source (the code or text in the label file); or a YAML list of the same.",
)
@click.option("--drop-unlisted", is_flag=True, help="Unlabel classes that --classes lacks.")
@click.option("--crs", help="Such as EPSG:26915, where the source names none.")
@click.option("--transform", help="a,b,c,d,e,f: x = a col + b row + c, y = d col + e row + f.")
@click.option("--pixel-size", help="SIZE or X,Y in units of the CRS; with --origin.")
@click.option("--origin", help="X,Y of the outer corner of the first pixel; with --pixel-size.")
@click.option("--wavelengths", help="FIRST:LAST in nm, spread evenly, or a file of numbers.")
@click.option("--scale-factor", type=float, help="Reflectance per stored unit.")
@click.option("--fill", type=float, help="Stored value that means no data.")
@click.option("--drop-bands", help="Bands to leave out, counted from 0, such as 0-3,100.")
@click.option("--drop-wavelengths", help="Ranges in nm to leave out, such as 1340-1450,1800-1960.")
@click.option(
    "--drop-noisy",
    type=click.FloatRange(0),
    metavar="SNR",
    help="Leave out bands whose measured signal-to-noise ratio is below SNR.",
)
@click.option("--keep-bad-bands", is_flag=True, help="Keep the bands that the source lists as bad.")
@click.option(
    "--overlap",
    type=click.Choice(("first", "last", "mean")),
    default="first",
    show_default=True,
    help="Several SOURCEs: what a pixel takes that several of them show.",
)
@click.option(
    "--resampling",
    type=click.Choice(("nearest", "bilinear")),
    default="nearest",
    show_default=True,
    help="Several SOURCEs: how those on another grid than the first are resampled.",
)
@click.option(
    "--balance", is_flag=True, help="Several SOURCEs: one gain for each of them and band, from overlaps."
)
@click.option(
    "--chunk", type=click.IntRange(1), default=128, show_default=True, help="Pixels to a side of a chunk."
)
def command(paths: tuple[Path, ...], only_describe: bool, **options: Any) -> None:
    """Write SCENE, a Zarr group, from SOURCE: ENVI, GeoTIFF, NetCDF, HDF5, MATLAB, NumPy or Zarr.

    Several SOURCEs are flight lines of one area and become one mosaic on the grid of the first.
    """  # fmt: skip
    given = Options(**options)
    with interruptible(), warnings.catch_warnings():
        # A raster without a place is a plain image here; threads read, and share these filters.
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        if only_describe:
            if not paths:
                raise UserError("--describe: expected SOURCE, found no path; see --help")
            for path in _on_disk(paths):
                click.echo(describe(path, given))
            return
        if len(paths) < 2:
            raise UserError(f"expected SOURCE and SCENE, found {len(paths)} path; see --help")
        click.echo(summary(ingest(_on_disk(paths[:-1]), paths[-1], given)))


def _on_disk(sources: tuple[Path, ...]) -> list[Path]:
    """Return the sources; UserError for a URL."""
    for source in sources:
        if not is_local(source):
            raise UserError(f"{source}: SOURCE must be a file or folder on disk; only SCENE may be a URL")
    return list(sources)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    return run_command(command, "ingest", arguments, resumes=False)


if __name__ == "__main__":
    sys.exit(main())
