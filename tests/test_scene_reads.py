"""What of a stored scene is read, and what of its metadata counts."""

from pathlib import Path

import numpy as np
import pytest
import zarr

from pipeline import scene as scene_module
from pipeline.scene import open_scene, write_scene
from tests.test_scene import counts


def test_the_fill_of_zarr_v2_is_part_of_the_fingerprint(tmp_path: Path) -> None:
    prints = []
    for name, fill in (("a", None), ("b", 0)):
        group = zarr.open_group(tmp_path / name, mode="w", zarr_format=2)
        group.create_array(
            "reflectance", data=counts() % 3, chunks=(4, 21, 34), fill_value=fill,
            attributes={"_ARRAY_DIMENSIONS": ["band", "y", "x"]},
        )  # fmt: skip
        zarr.consolidate_metadata(tmp_path / name)
        prints.append(open_scene(str(tmp_path / name)).fingerprint())
    assert prints[0] != prints[1]


@pytest.mark.parametrize("chunk", [1, 3, 4])
def test_some_bands(chunk: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_scene(tmp_path / "s", counts(), bands_per_chunk=chunk)
    scene, sizes = open_scene(str(tmp_path / "s")), []
    plain = scene_module.read_region
    monkeypatch.setattr(
        scene_module, "read_region", lambda *args: (part := plain(*args), sizes.append(len(part)))[0]
    )
    np.testing.assert_array_equal(scene.read(3, 9, 1, 20, [3, 0]), counts()[[3, 0], 3:9, 1:20])
    assert sizes == {1: [1, 1], 3: [3, 1], 4: [4]}[chunk], "chunks of other bands are not read"
