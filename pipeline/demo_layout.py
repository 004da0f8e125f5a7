"""The plan of the synthetic city: streets, canal, plots and what stands on them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.demo_spectra import SURFACE_ID, SURFACES

Floats = NDArray[np.float32]
Index = NDArray[np.intp]

FINE = 2  # drawn pixels per metre
SUN = (0.55, -0.84)  # towards the sun, as (x, y) on the ground; y points down the image


class Canvas:
    """What lies at every drawn pixel: surface, brightness, mixture, height (m) and shading."""

    def __init__(self, rng: np.random.Generator, rows: int, columns: int) -> None:
        """Start with street everywhere."""
        self.rng = rng
        self.shape = (rows, columns)
        self.surface = np.full(rows * columns, SURFACE_ID["street"], dtype=np.uint8)
        self.tone = np.ones(rows * columns, dtype=np.float32)
        self.mixture = np.full(rows * columns, 0.5, dtype=np.float32)
        self.top = np.zeros(rows * columns, dtype=np.float32)
        self.shade = np.ones(rows * columns, dtype=np.float32)

    def paint(self, where: Index, name: str, top: float | Floats = 0.0, shade: float | Floats = 1.0) -> None:
        """Put one object of surface `name` at the flat indices `where`."""
        look = SURFACES[name]
        self.surface[where] = SURFACE_ID[name]
        self.tone[where] = np.exp(look.tone_spread * self.rng.standard_normal())
        self.mixture[where] = look.mixture + look.mixture_spread * self.rng.standard_normal()
        self.top[where] = top
        self.shade[where] = shade

    def crown(self, at: int, radius: float) -> None:
        """A tree of `radius` metres: half an ellipsoid, bright on the side of the sun."""
        rows, columns = self.shape
        row, column = divmod(at, columns)
        reach = int(np.ceil(radius * FINE))
        y, x = np.mgrid[
            max(0, row - reach) : min(rows, row + reach + 1),
            max(0, column - reach) : min(columns, column + reach + 1),
        ]
        dy, dx = (y - row) / FINE / radius, (x - column) / FINE / radius
        ragged = 1.0 + 0.12 * np.sin(5.0 * np.arctan2(dy, dx) + self.rng.uniform(0, 6.3))
        inside = np.hypot(dy, dx) < ragged
        dy, dx = dy[inside], dx[inside]
        dome = np.sqrt(np.clip(1.0 - dy**2 - dx**2, 0.0, 1.0))
        lit = 0.84 + 0.14 * dome + 0.22 * (SUN[0] * dx + SUN[1] * dy)
        where = (y * columns + x)[inside].astype(np.intp)
        top = (2.5 + 1.4 * radius * dome).astype(np.float32)
        self.paint(where, "tree", top, lit.astype(np.float32))


@dataclass(frozen=True)
class Plot:
    """A piece of ground: the drawn pixels in it and their place along its two sides, in metres."""

    canvas: Canvas
    where: Index
    a: Floats
    b: Floats
    size: tuple[float, float]

    def box(self, a: float, b: float, width: float, depth: float) -> "Plot":
        """The rectangle whose first corner is (a, b)."""
        keep = (self.a >= a) & (self.a < a + width) & (self.b >= b) & (self.b < b + depth)
        return Plot(self.canvas, self.where[keep], self.a[keep] - a, self.b[keep] - b, (width, depth))

    def paint(self, name: str, top: float | Floats = 0.0, shade: float | Floats = 1.0) -> None:
        """Cover all of it with one object."""
        if self.where.size:
            self.canvas.paint(self.where, name, top, shade)

    def tree(self, a: float, b: float, radius: float) -> None:
        """Plant a tree at (a, b), if that place is in the picture."""
        distance = np.hypot(self.a - a, self.b - b)
        if distance.size and distance.min() < 1.0:
            self.canvas.crown(int(self.where[distance.argmin()]), radius)


def _gable(plot: Plot, name: str, eaves: float) -> None:
    along = plot.size[0] >= plot.size[1]
    across = plot.b - plot.size[1] / 2 if along else plot.a - plot.size[0] / 2
    half = min(plot.size) / 2
    tilt = 0.22 * (SUN[1] if along else SUN[0])
    shade = 0.97 + tilt * np.sign(across)
    plot.paint(name, eaves + 0.6 * (half - np.abs(across)), shade.astype(np.float32))


def _flat(plot: Plot, name: str, top: float) -> None:
    rng = plot.canvas.rng
    plot.paint(name, top)
    for _ in range(int(plot.size[0] * plot.size[1] / 120)):  # vents and stair heads
        a, b = rng.uniform(1, plot.size[0] - 2), rng.uniform(1, plot.size[1] - 2)
        plot.box(a, b, 1.5, 1.5).paint("concrete", top + 1.0)


def _houses(plot: Plot) -> None:
    rng = plot.canvas.rng
    plot.paint("lawn")
    for a in np.arange(1.0, plot.size[0] - 11, 14.0):
        for b in np.arange(1.0, plot.size[1] - 9, 14.0):
            width, depth = rng.uniform(9, 11.5), rng.uniform(8, 10.5)
            if rng.random() < 0.5:
                width, depth = depth, width
            house = plot.box(a + rng.uniform(0, 2), b + rng.uniform(0, 2), width, depth)
            _gable(house, "tile", 4.5)
            plot.tree(a + 13.0, b + rng.uniform(2, 12), rng.uniform(2.0, 3.2))


def _lot(plot: Plot) -> None:
    rng = plot.canvas.rng
    plot.paint("lot")
    for b in np.arange(0.7, plot.size[1] - 4.4, 7.0):  # a row of bays, then an aisle
        for a in np.arange(0.6, plot.size[0] - 2.0, 2.6):
            if rng.random() < 0.9:
                car = str(rng.choice(["light car", "dark car", "red car"], p=[0.5, 0.3, 0.2]))
                plot.box(a, b + rng.uniform(0, 0.4), 1.8, 4.2).paint(car, 1.4)


def _parking(plot: Plot) -> None:
    width, depth = plot.size
    plot.paint("lawn")
    _lot(plot.box(0.0, 0.0, width - 3.0, depth))
    for b in np.arange(4.0, depth, 7.0):
        plot.tree(width - 2.0, b, 2.6)


def _apartments(plot: Plot) -> None:
    width, depth = plot.size
    plot.paint("lawn")
    _flat(plot.box(0.5, 0.5, width - 1, 13.0), "bitumen", 8.0)
    if plot.canvas.rng.random() < 0.5:
        _flat(plot.box(0.5, 0.5, 12.0, depth - 1), "bitumen", 8.0)
    for b in np.arange(17.0, depth, 6.0):
        plot.tree(width - 4.0, b, 3.0)


def _retail(plot: Plot) -> None:
    rng = plot.canvas.rng
    width, depth = plot.size
    plot.paint("concrete")
    hall = plot.box(1.0, 1.0, width - 2, depth * 0.45 - 1.0)
    if rng.random() < 0.65:
        ribs = (1.0 + 0.05 * np.sign(np.sin(hall.a * 1.6))).astype(np.float32)
        hall.paint("metal", 6.0, ribs)
    else:
        _flat(hall, "bitumen", 6.0)
    _lot(plot.box(0.5, depth * 0.5, width - 1, depth * 0.5))


def _park(plot: Plot) -> None:
    rng = plot.canvas.rng
    width, depth = plot.size
    plot.paint("lawn")
    a, b = rng.uniform(0.4, 0.6) * width, rng.uniform(0.4, 0.6) * depth
    angle = np.arctan2(plot.b - b, plot.a - a)
    shore = 6.5 + 0.9 * np.sin(2 * angle + rng.uniform(0, 6.3)) + 0.6 * np.sin(3 * angle)
    distance = np.hypot(plot.a - a, plot.b - b)
    plot.canvas.paint(plot.where[distance < shore], "water")
    for _ in range(int(width * depth / 45)):
        at, bt = rng.uniform(1, width - 1), rng.uniform(1, depth - 1)
        if np.hypot(at - a, bt - b) > 10.0:
            plot.tree(at, bt, rng.uniform(2.2, 4.2))


def _square(plot: Plot) -> None:
    rng = plot.canvas.rng
    width, depth = plot.size
    plot.paint("concrete")
    _gable(plot.box(1.0, depth - 12.0, width - 2, 11.0), "tile", 7.0)
    for a in np.arange(4.0, width, 7.0):
        plot.tree(a, 3.5, rng.uniform(2.2, 2.8))


def _site(plot: Plot) -> None:
    rng = plot.canvas.rng
    width, depth = plot.size
    plot.paint("soil")
    for _ in range(4):  # heaps and ruts
        a, b = rng.uniform(2, width - 6), rng.uniform(2, depth - 6)
        plot.box(a, b, rng.uniform(4, 9), rng.uniform(4, 7)).paint("soil", rng.uniform(0, 1.5))
    plot.box(1.5, 1.5, width * 0.4, 9.0).paint("metal", 4.0)
    plot.box(width * 0.55, depth * 0.6, width * 0.4, depth * 0.3).paint("concrete")


USES: tuple[Callable[[Plot], None], ...] = (
    _houses,
    _parking,
    _apartments,
    _retail,
    _park,
    _square,
    _site,
)


@dataclass(frozen=True)
class _Lines:
    """Parallel streets: centre lines and half widths, in metres; one of them may be special."""

    centre: Floats
    half: Floats
    special: int


def _lines(rng: np.random.Generator, low: float, high: float, gap: float, half: float) -> _Lines:
    count = int((high - low) / gap) + 3
    steps = gap + rng.uniform(-5.0, 5.0, count)
    centre = low - gap + np.cumsum(steps)
    widths = np.full(count, 4.0)
    inside = np.flatnonzero((centre > low + (high - low) * 0.3) & (centre < high))
    special = int(inside[0]) if inside.size else 0
    widths[special] = half
    return _Lines(centre.astype(np.float32), widths.astype(np.float32), special)


def _between(position: Floats, lines: _Lines) -> tuple[NDArray[np.intp], Floats, Floats]:
    """Number of the gap, distance into it from its first edge (< 0 on a street), and its width."""
    gap = np.clip(np.searchsorted(lines.centre, position), 1, lines.centre.size - 1)
    first = lines.centre[gap - 1] + lines.half[gap - 1]
    width = lines.centre[gap] - lines.half[gap] - first
    into = position - first
    return gap, np.where(into > width, -1.0, into).astype(np.float32), width


def _plots(cell: Plot, pavement: float) -> Iterator[Plot]:
    """Four plots inside the pavement, each with its front towards a street."""
    width, depth = (side - 2 * pavement for side in cell.size)
    for a in (0, 1):
        for b in (0, 1):
            half = (width / 2, depth / 2)
            plot = cell.box(pavement + a * half[0], pavement + b * half[1], *half)
            yield Plot(
                plot.canvas,
                plot.where,
                half[0] - plot.a if a else plot.a,
                half[1] - plot.b if b else plot.b,
                half,
            )


def draw_city(rng: np.random.Generator, height: int, width: int) -> Canvas:
    """Draw a city of height x width metres, at `FINE` pixels per metre."""
    canvas = Canvas(rng, height * FINE, width * FINE)
    y, x = np.mgrid[0 : height * FINE, 0 : width * FINE].astype(np.float32) / FINE
    turn = np.deg2rad(rng.uniform(6, 12))
    phase = rng.uniform(0, 6.28, 2)
    u = x * np.cos(turn) + y * np.sin(turn) + 4.0 * np.sin(y / 38.0 + phase[0])
    v = y * np.cos(turn) - x * np.sin(turn) + 4.0 * np.sin(x / 47.0 + phase[1])
    avenues = _lines(rng, float(u.min()), float(u.max()), 66.0, 8.0)
    streets = _lines(rng, float(v.min()), float(v.max()), 60.0, 12.0)
    column, a, cell_width = _between(u.astype(np.float32), avenues)
    row, b, cell_depth = _between(v.astype(np.float32), streets)

    offset = v - streets.centre[streets.special]
    in_block = a > 0
    canal = in_block & (np.abs(offset) < 12.0)
    canvas.paint(np.flatnonzero(canal), "lawn")
    canvas.paint(np.flatnonzero(canal & (np.abs(offset) < 8.0)), "water")
    median = np.abs(u - avenues.centre[avenues.special]) < 1.5
    canvas.paint(np.flatnonzero(median & (b > 0)), "lawn")

    cell = np.where((a > 0) & (b > 0), row * avenues.centre.size + column, -1).ravel()
    order = np.argsort(cell, kind="stable")
    numbers, starts = np.unique(cell[order], return_index=True)
    deck: list[int] = []
    for number, where in zip(numbers, np.split(order, starts[1:]), strict=True):
        if number < 0:
            continue
        first = where[0]
        size = (float(cell_width.flat[first]), float(cell_depth.flat[first]))
        ground = Plot(canvas, where, a.flat[where], b.flat[where], size)
        ground.paint("concrete")
        for plot in _plots(ground, 2.5):
            deck = deck or [int(use) for use in rng.permutation(len(USES))]
            use = USES[deck.pop()]
            if plot.where.size:
                use(plot)
        for along in np.arange(6.0, size[0] - 4, 11.0):
            ground.tree(along, 1.0, float(rng.uniform(1.8, 2.8)))
    return canvas
