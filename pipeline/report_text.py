"""Numbers and sentences of the report, for people."""

import math
from typing import Any

Context = dict[str, Any]

UNKNOWN, SPACE = "\u2013", "\u00a0"  # the space does not break a line


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


def map_meaning(metrics: dict[str, Any]) -> str:
    """What the finished map's own accuracy adds, where it differs."""
    found, before = metrics.get("map_oa"), metrics.get("map_oa_pixel")
    if found is not None and before is not None:
        error = metrics.get("map_ece")  # not in runs of before
        sure = "" if error is None else f", with a calibration error of {error:.3f}"
        return (
            "Scored here: each test pixel as its own window sees it. On the map, supertokens of alike "
            f"neighbouring pixels have voted: it is right at {percent(found)} of the same pixels{sure}; "
            f"before the vote (class_pixel in map.zarr) it was at {percent(before)}."
        )
    if found is None or abs(found - metrics["oa"]) < 5e-5:
        return ""
    return (
        "Scored here: each test pixel as its own window sees it. Neighbouring windows blend on the map, "
        f"which is right at {percent(found)} of the same pixels."
    )


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


def unlabelled_meaning(metrics: Context) -> str:
    """Return what learnt without labels from the test pixels' places; nothing where metrics do not say."""
    inductive = metrics["split"].get("inductive")
    if inductive is None:
        return ""
    if inductive:
        return "All that learns without labels saw nothing of the blocks that hold test pixels."
    return "All that learns without labels saw the whole scene."


def unscored_meaning(metrics: Context) -> str:
    """Return which classes trained without test pixels, so that no score speaks of them."""
    names = [entry["name"] for entry in metrics["per_class"] if not entry["n_test"]]
    return f"No test pixel is left for {', '.join(names)}: no score here speaks of them." if names else ""


def sets_meaning(metrics: Context) -> str:
    """Return what sets of classes promised and kept, and what that says of the map's confidence."""
    sets = metrics.get("sets")
    if not sets:
        return ""
    promise, threshold = percent(sets["level"], 0), sets["threshold"]
    if threshold >= 1:
        return (
            "Too few training pixels were held out for sets of classes that hold the true class of "
            f"{promise} of the pixels."
        )
    if threshold <= 0:
        return (
            f"Sets of likely classes, made to hold the true class of {promise} of the pixels, would hold one "
            "class each: at the training pixels that were held out it is right as often. It is right at "
            f"{percent(sets['coverage'])} of the test pixels."
        )
    return (
        f"Sets of likely classes, made to hold the true class of {promise} of the pixels, hold that of "
        f"{percent(sets['coverage'])} of the test pixels, with {sets['mean_size']:.2f} classes on average. "
        f"On the map a class stands alone in its set where its confidence is above {threshold:.2f}: so do "
        f"{percent(sets['single'])} of the test pixels."
    )


def area_digits(total: float) -> int:
    """Return the decimals at which all areas of a map are shown: four digits for the largest."""
    return min(4, max(0, 3 - math.floor(math.log10(total)))) if total > 0 else 0


def area(value: float | None, digits: int) -> str:
    """Return an area with thin spaces between thousands, a dash when it is unknown."""
    return UNKNOWN if value is None else f"{value:,.{digits}f}".replace(",", "\u202f")


def areas_meaning(areas: Context, metrics: Context | None) -> list[str]:
    """Return sentences on how areas were found and how far their intervals can be trusted."""
    told = []
    if areas["surface"] is None:
        told.append("The scene has no grid with a CRS: areas are counted in pixels.")
    elif areas["surface"] == "ellipsoid":
        told.append("Areas are measured on the ellipsoid, for the CRS does not keep areas.")
    if "overall_accuracy" not in areas or metrics is None:
        told.append("There are no test pixels of this scene, so the mapped areas are not corrected.")
        return told
    told.append(
        "Mapped areas count pixels. Adjusted areas correct them with the confusions of the test pixels and "
        "carry a 95\u00a0% confidence interval (stratified estimator, Olofsson et al. 2014)."
    )
    told.append(
        "The test pixels are given labels that a split set aside, not a probability sample of the map: "
        "adjusted areas and intervals hold only as far as the labelled places are like the rest."
    )
    if metrics["split"]["protocol"] == "random":
        told.append(
            "Test pixels lie beside training pixels: elsewhere errors, and corrections, may be larger."
        )
    else:
        told.append("Neighbouring test pixels are alike, so the true intervals may be wider.")
    told.append("For areas to rely on, have a random sample of the map labelled.")
    if areas["left_out"]:
        names = ", ".join(areas["left_out"])
        told.append(f"Fewer than two test pixels were mapped as {names}: that area is in no adjusted figure.")
    return told
