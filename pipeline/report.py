"""Stage `report`: one self-contained page about a run, made from the files of its run folder."""

import json
import math
import os
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pyproj
import zarr

from pipeline import report_images as images
from pipeline.artifacts import RunFolder, read_json
from pipeline.export import class_image, class_table
from pipeline.overviews import layer, thumbnail
from pipeline.report_images import Quicklook
from pipeline.scene import Scene

MAX_SIDE = 1000  # pixels of a picture
UNKNOWN, SPACE = "\u2013", "\u00a0"  # the space does not break a line
Context = dict[str, Any]


def write_report(run_dir: Path, scene: Scene) -> Path:
    """Write report.html from what a run folder holds, and return its path.

    What is missing (scores without labels, curves of a run that trained nothing) is left out.

    Args:
        run_dir: The run folder.
        scene: The scene that was mapped.
    """
    folder = RunFolder(run_dir)
    run = _json(folder.run, {})
    look = images.quicklook(scene, folder.reduced, MAX_SIDE)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(percent=percent, number=number, size=size, duration=duration)
    page = environment.get_template("report.html").render(
        name=Path(scene.url.rstrip("/")).name.removesuffix(".zarr"),
        scene=_scene_facts(scene),
        wide=scene.width > 2 * scene.height,
        look={"uri": images.data_uri(images.with_alpha(look.rgb, look.valid)), "of": look.caption},
        map=_map(folder),
        metrics=_metrics(folder),
        split=_split(folder, look),
        curves=_curves(folder),
        stages=_stages(folder),
        command=_command(run.get("command", "")),
        versions=run.get("versions", {}),
        seed=run.get("seed"),
        config=json.dumps(run["config"], indent=2) if "config" in run else "",
    )
    path = run_dir / "report.html"
    partial = path.with_name("report.html.partial")
    partial.write_text(page, encoding="utf-8")
    os.replace(partial, path)
    return path


def percent(share: float | None, digits: int = 1) -> str:
    """Return a share in [0, 1] as a percentage, a dash when it is unknown."""
    unknown = share is None or not math.isfinite(share)
    return UNKNOWN if unknown else f"{100 * float(share or 0):.{digits}f}{SPACE}%"


def number(value: float | None) -> str:
    """Return a count with thin spaces between thousands, a dash when it is unknown."""
    return UNKNOWN if value is None else f"{value:,.0f}".replace(",", "\u202f")


def size(count: float | None) -> str:
    """Return bytes in the largest binary unit that keeps the number at 1 or above."""
    if count is None:
        return UNKNOWN
    value, units = float(count), ["B", "KiB", "MiB", "GiB", "TiB"]
    while value >= 1024 and len(units) > 1:
        value /= 1024
        units.pop(0)
    return f"{value:.{0 if units[0] == 'B' else 1}f}{SPACE}{units[0]}"


def duration(seconds: float | None) -> str:
    """Return seconds as "4.2 s", "3 min 05 s" or "2 h 07 min"."""
    if seconds is None:
        return UNKNOWN
    if seconds < 60:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def split_meaning(metrics: Context) -> str:
    """Return a sentence or two on what scores on this split stand for."""
    split, overlap = metrics["split"], metrics.get("overlap")
    seen = f"{percent(overlap)} of the test pixels have a training pixel inside their patch"
    if split["protocol"] == "random":
        known = f"; {seen}" if overlap is not None else ""
        return (
            "Test pixels were drawn at random from the same labelled areas as training pixels"
            f"{known}. Such scores are optimistic: expect less in places without labels."
        )
    guard = split.get("guard_px")
    apart = f", at least {guard + 1} pixels apart" if guard else ""
    apart = f"Training and test pixels lie in different blocks of the scene{apart}. "
    if overlap is None:
        return apart.strip()
    if overlap == 0:
        return apart + (
            "No test pixel has a training pixel inside its patch: the scores stand for places of "
            "this scene that were not labelled."
        )
    return apart + f"Still, {seen}: to that extent the scores are optimistic; widen the guard."


def _json(path: Path, otherwise: Any) -> Any:
    return read_json(path) if path.exists() else otherwise


def _command(command: str | list[str]) -> str:
    return command if isinstance(command, str) else " ".join(command)


def _scene_facts(scene: Scene) -> dict[str, str]:
    facts = {
        "Scene": scene.url,
        "Size": f"{number(scene.height)} \u00d7 {number(scene.width)} pixels, {scene.bands} bands",
    }
    if scene.wavelength_nm:
        low, high = min(scene.wavelength_nm), max(scene.wavelength_nm)
        facts["Wavelengths"] = f"{low:.0f} to {high:.0f} nm"
    if scene.crs_wkt:
        crs = pyproj.CRS.from_wkt(scene.crs_wkt)
        facts["CRS"] = crs.name
        if scene.transform:
            a, b, _, d, e, _ = scene.transform
            unit = crs.axis_info[0].unit_name if crs.axis_info else ""
            facts["Pixel"] = f"{math.hypot(a, d):g} \u00d7 {math.hypot(b, e):g} {unit}"
    return facts


def _map(folder: RunFolder) -> Context | None:
    if not folder.map.exists():
        return None
    group = zarr.open_group(folder.map, mode="r", use_consolidated=False)
    table = class_table(group)
    codes, _ = thumbnail(group, "class", MAX_SIDE)
    most = math.log(max(2, len(table.codes)))
    scales = [
        ("Confidence", "confidence", 1.0, "1", "viridis", "probability of the class shown"),
        ("Entropy", "entropy", most, f"ln {len(table.codes)} = {most:.2f}", "magma", "nats"),
    ]
    return {
        "uri": images.data_uri(class_image(codes, table)),
        "legend": list(zip(table.names, table.colors, strict=True)),
        "scales": [
            {
                "title": title,
                "uri": images.data_uri(
                    images.scale_image(thumbnail(group, name, MAX_SIDE)[0], 0.0, high, colormap)
                ),
                "gradient": images.gradient(colormap),
                "high": label,
                "of": of,
            }
            for title, name, high, label, colormap, of in scales
        ],
    }


def _metrics(folder: RunFolder) -> Context | None:
    if not folder.metrics.exists():
        return None
    metrics: Context = read_json(folder.metrics)
    split = metrics["split"]
    share = split.get("train_fraction")
    drawn = (
        f"{percent(share)} of each class train"
        if share is not None
        else f"{number(split.get('train_per_class'))} pixels of each class train"
    )
    rows = [
        [{"count": count, "share": count / max(1, sum(row))} for count in row] for row in metrics["confusion"]
    ]
    described = (split["protocol"], drawn, f"guard {split.get('guard_px', 0)} px")
    return metrics | {
        "meaning": split_meaning(metrics),
        "drawn": ", ".join([*described, f"seed {split.get('seed', 0)}"]),
        "rows": list(zip(metrics["per_class"], rows, strict=True)),
    }


def _split(folder: RunFolder, look: Quicklook) -> Context | None:
    if not folder.features.exists():
        return None
    group = zarr.open_group(folder.features, mode="r", use_consolidated=False)
    if "split" not in group:
        return None
    y, x, split = (np.asarray(layer(group, name)[:]) for name in ("y_index", "x_index", "split"))
    legend = (("training (drawn larger)", images.TRAIN_COLOR), ("test", images.TEST_COLOR))
    unused = (("not used", images.UNUSED_COLOR),) if (split == 2).any() else ()
    return {
        "uri": images.data_uri(images.split_image(look, y, x, split)),
        "legend": [*legend, *unused],
    }


def _curves(folder: RunFolder) -> list[dict[str, str]]:
    pretraining = _json(folder.pretrain / "history.json", [])
    classifier = _json(folder.classifier / "history.json", [])
    curves = []
    if pretraining:
        title = "Pretraining: diffusion loss"
        curves.append({"title": title, "uri": images.pretraining_curve(pretraining)})
    if classifier:
        title = "Classifier: every member of the ensemble"
        curves.append({"title": title, "uri": images.classifier_curves(classifier)})
    return curves


def _stages(folder: RunFolder) -> list[Context]:
    """Return the records of finished stages; the report itself is still running."""
    keys = ("wall_s", "pixels", "pixels_per_s", "bytes_read", "bytes_written", "peak_rss_bytes")
    return [
        {"name": name, "status": record.get("status", ""), **{k: record.get(k) for k in keys}}
        for name, record in folder.records().items()
        if name != "report"
    ]
