"""Geometry: every pixel has one block and one place in its window, whatever the sizes."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from mtmsd.mosaic import Mosaic
from mtmsd.windows import PatchConfig, pad_index, read_padded, windows_of_tile

SIDE = st.integers(1, 19)
PADDING = st.sampled_from(["zeros", "reflect"])
FloatArray = NDArray[np.float32]


@st.composite
def patch_configs(draw: st.DrawFn) -> PatchConfig:
    size = draw(st.integers(4, 14))
    return PatchConfig(size=size, stride=draw(st.integers(1, size)), blend=0, padding=draw(PADDING))


def numbered(height: int, width: int) -> FloatArray:
    """Return a scene of one component in which every pixel has a number of its own."""
    return np.arange(height * width, dtype=np.float32).reshape(1, height, width)


def padded(scene: FloatArray, y: tuple[int, int], x: tuple[int, int], padding: str) -> FloatArray:
    """Cut rows and columns out of a scene that numpy has padded generously."""
    reach = 64
    pads = ((0, 0), (reach, reach), (reach, reach))
    if padding == "zeros":
        large = np.pad(scene, pads, constant_values=np.nan)
    else:
        large = np.pad(scene, pads, mode="reflect")
    return large[:, y[0] + reach : y[1] + reach, x[0] + reach : x[1] + reach]


@given(patches=patch_configs(), height=SIDE, width=SIDE)
@settings(max_examples=60, deadline=None)
def test_every_pixel_lies_in_one_block_at_its_place(patches: PatchConfig, height: int, width: int) -> None:
    scene, stride = numbered(height, width), patches.stride
    rows, columns = -(-height // stride), -(-width // stride)
    tile = read_padded(
        lambda y0, y1, x0, x1: scene[:, y0:y1, x0:x1],
        (height, width),
        (-patches.before, rows * stride + patches.after),
        (-patches.before, columns * stride + patches.after),
        patches.padding,
    )
    windows = windows_of_tile(tile, patches)
    assert windows.shape == (rows, columns, 1, patches.size, patches.size)

    y, x = (axis.ravel() for axis in np.indices((height, width)))
    row, column = patches.block(y), patches.block(x)
    at_y, at_x = (patches.before + patches.within(axis) for axis in (y, x))
    np.testing.assert_array_equal(windows[row, column, 0, at_y, at_x], scene.ravel())
    np.testing.assert_array_equal(patches.corner(row) + at_y, y)
    assert (patches.blocks(height), patches.blocks(width)) == (rows, columns)


@given(patches=patch_configs(), height=st.integers(1, 30), width=st.integers(1, 30), data=st.data())
@settings(max_examples=60, deadline=None)
def test_blocks_that_blend_make_up_the_tile(
    patches: PatchConfig, height: int, width: int, data: st.DataObject
) -> None:
    """Windows that all see the truth give the truth; a block touches the tile exactly when it is counted."""
    most = min(patches.stride // 2, (patches.side - patches.stride) // 2)
    patches = replace(patches, blend=data.draw(st.integers(0, most)))
    mosaic = Mosaic(height, width, 2, patches)
    side, first = patches.wide.stride, patches.origin - patches.margin
    assert patches.corner(np.int64(0)) + patches.wide.before == first
    for row in range(patches.blocks(height)):
        for column in range(patches.blocks(width)):
            y, x = np.mgrid[:side, :side] + np.array([row, column])[:, None, None] * patches.stride + first
            rows, columns = mosaic.inside(row, 0), mosaic.inside(column, 1)
            assert rows.stop > rows.start
            assert columns.stop > columns.start
            inside = np.stack([y, x], axis=-1)[rows, columns]
            truth = torch.from_numpy(inside.reshape(-1, 2).astype(np.float32))
            mosaic.add(row, column, rows, truth)
    expected = torch.from_numpy(np.stack(np.mgrid[:height, :width], axis=-1)).float()
    torch.testing.assert_close(mosaic.values_HWV, expected, rtol=1e-5, atol=1e-4)
    assert patches.blocks(height) * patches.stride + first >= height  # the next block lies outside


def test_blocks_that_cannot_blend_are_refused() -> None:
    with pytest.raises(ValueError, match=r"patches\.blend must lie in 0\.\.6"):
        PatchConfig(size=24, stride=12, blend=7)


@pytest.mark.parametrize(("height", "width"), [(7, 8), (8, 7), (3, 8)])
def test_a_tile_without_whole_blocks_is_refused(height: int, width: int) -> None:
    with pytest.raises(ValueError, match=r"whole 2-pixel blocks plus a halo of 4 .* found"):
        windows_of_tile(numbered(height, width), PatchConfig(size=6, stride=2))


@given(limit=st.integers(1, 12), start=st.integers(-40, 40), length=st.integers(1, 40))
@settings(max_examples=100, deadline=None)
def test_pad_index_is_numpy_pad(limit: int, start: int, length: int) -> None:
    axis = np.arange(1, limit + 1)
    stop = start + length
    reach = (80, 80)
    at = slice(start + reach[0], stop + reach[0])

    index, inside = pad_index(start, stop, limit, "reflect")
    assert inside.all()
    np.testing.assert_array_equal(axis[index], np.pad(axis, reach, mode="reflect")[at])

    index, inside = pad_index(start, stop, limit, "zeros")
    np.testing.assert_array_equal(np.where(inside, axis[index], 0), np.pad(axis, reach)[at])


def test_pad_index_by_hand() -> None:
    index, inside = pad_index(-3, 6, 4, "reflect")
    assert index.tolist() == [3, 2, 1, 0, 1, 2, 3, 2, 1]
    assert inside.all()
    index, inside = pad_index(-2, 5, 4, "zeros")
    assert index.tolist() == [0, 0, 0, 1, 2, 3, 3]
    assert inside.tolist() == [False, False, True, True, True, True, False]


@given(
    height=SIDE,
    width=SIDE,
    start=st.tuples(st.integers(-30, 30), st.integers(-30, 30)),
    length=st.tuples(st.integers(1, 30), st.integers(1, 30)),
    padding=PADDING,
)
@settings(max_examples=60, deadline=None)
def test_read_padded_reads_once_and_inside(
    height: int, width: int, start: tuple[int, int], length: tuple[int, int], padding: str
) -> None:
    scene, calls = numbered(height, width), []

    def read(y0: int, y1: int, x0: int, x1: int) -> FloatArray:
        calls.append((y0, y1, x0, x1))
        return scene[:, y0:y1, x0:x1]

    y, x = ((first, first + n) for first, n in zip(start, length, strict=True))
    window = read_padded(read, (height, width), y, x, padding)  # type: ignore[arg-type]
    [(y0, y1, x0, x1)] = calls
    assert 0 <= y0 < y1 <= height
    assert 0 <= x0 < x1 <= width
    np.testing.assert_array_equal(window, padded(scene, y, x, padding))
    assert window.dtype == np.float32


def test_the_pixel_lies_at_half_the_window_as_in_the_paper() -> None:
    for size, stride, before, after in [(48, 1, 24, 23), (9, 1, 4, 4), (16, 16, 0, 0), (48, 4, 22, 22)]:
        patches = PatchConfig(size=size, stride=stride)
        assert (patches.before, patches.after) == (before, after)


@pytest.mark.parametrize(
    ("size", "stride", "message"),
    [
        (3, 1, "patches.size must be at least 4"),
        (8, -1, "patches.stride"),
        (8, 9, r"patches.stride must lie in 1\.\.8"),
    ],
)
def test_impossible_windows_are_refused(size: int, stride: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PatchConfig(size=size, stride=stride)


def test_what_is_absent_follows_the_window() -> None:
    """Half of the window; a sixth of that, at most 8, where the window has room."""
    found = [(p.stride, p.margin) for p in (
        PatchConfig(size=48), PatchConfig(size=48, window=96), PatchConfig(size=16), PatchConfig(size=8),
        PatchConfig(size=48, window=96, stride=92), PatchConfig(size=48, stride=48),
        PatchConfig(size=48, stride=4),
    )]  # fmt: skip
    assert found == [(24, 4), (48, 8), (8, 1), (4, 0), (92, 2), (48, 0), (4, 0)]
