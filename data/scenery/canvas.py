"""The canvas of synthetic scenes: shapes with soft edges, textures, shadows, ownership of pixels.

Every pixel must be the same on every machine. So only operations that IEEE 754 defines exactly stand here
(+, -, *, /, sqrt, comparisons; one ufunc each, no reductions), angles come from a table of rounded numbers
instead of `sin` and `cos`, and chance comes from `Generator.integers` and `Generator.bytes` alone.

Coordinates are scene units: the square is 224 x 224 of them whatever its size in pixels, x to the right,
y down.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeVar

import numpy as np

T = TypeVar("T")
Point = tuple[float, float]
Colour = tuple[float, float, float]

UNITS = 224.0
# 72 directions, 5 degrees apart; rounding to 1/4096 takes away what differs between maths libraries
DIRECTIONS: tuple[Point, ...] = tuple(
    (round(4096 * math.cos(math.radians(a))) / 4096, round(4096 * math.sin(math.radians(a))) / 4096)
    for a in range(0, 360, 5)
)


class Dice:
    """Chance for one scene, drawn from a seeded numpy generator by integers only."""

    def __init__(self, entropy: Sequence[int]):
        self.generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence(list(entropy))))

    def integer(self, low: int, high: int) -> int:
        """Draw an integer from low to high, both included."""
        return int(self.generator.integers(low, high + 1))

    def between(self, low: float, high: float) -> float:
        """Draw a number from low to high in 4,096 equal steps."""
        return low + (high - low) * (self.integer(0, 4096) / 4096)

    def chance(self, percent: int) -> bool:
        """True in so many cases of a hundred."""
        return self.integer(1, 100) <= percent

    def choice(self, options: Sequence[T]) -> T:
        """Draw one of the options."""
        return options[self.integer(0, len(options) - 1)]

    def sample(self, options: Sequence[T], n: int) -> list[T]:
        """Draw n different options, in random order."""
        rest = list(options)
        return [rest.pop(self.integer(0, len(rest) - 1)) for _ in range(n)]

    def noise(self, height: int, width: int) -> np.ndarray:
        """White noise float32 [height, width] in [-1, 1]."""
        raw = np.frombuffer(self.generator.bytes(height * width), np.uint8).reshape(height, width)
        return raw.astype(np.float32) / np.float32(127.5) - np.float32(1)


@dataclass
class Patch:
    """A shape: how much of each pixel it covers, float32 [h, w] in [0, 1], from pixel (top, left) on."""

    top: int
    left: int
    cover: np.ndarray

    def moved(self, dx: int, dy: int) -> "Patch":
        """The same shape, so many pixels further (it may reach beyond the canvas)."""
        return Patch(self.top + dy, self.left + dx, self.cover)


def along(origin: Point, direction: Point, u: float, v: float = 0.0) -> Point:
    """The point u units from origin along direction and v units to its right hand (y points down)."""
    return (
        origin[0] + u * direction[0] - v * direction[1],
        origin[1] + u * direction[1] + v * direction[0],
    )


def turned(direction: Point) -> Point:
    """The direction a quarter turn to the right."""
    return (-direction[1], direction[0])


class Canvas:
    """An image in the making, and for each pixel the thing that it shows.

    `image` is float32 [H, W, 3] in 0..255, `owner` int32 [H, W] with 0 for background and i for `kinds[i]`.
    `dice` shapes what is the same at every size, `film` is the pixels' noise, `sun` the way to the light.
    """

    def __init__(self, size: int, dice: Dice, film: Dice, sun: Point):
        self.size, self.dice, self.film, self.sun = size, dice, film, sun
        self.scale = size / UNITS
        self.image = np.zeros((size, size, 3), np.float32)
        self.owner = np.zeros((size, size), np.int32)
        self.kinds: list[str] = ["background"]
        self.axis = (np.arange(size, dtype=np.float32) + np.float32(0.5)) / np.float32(self.scale)
        self.grain = film.noise(size, size)
        self.clouds = (self.smooth_noise(48) + self.smooth_noise(19) + self.smooth_noise(7)) / np.float32(2)

    def smooth_noise(self, cell: float) -> np.ndarray:
        """Value noise float32 [H, W] in [-1, 1]: random numbers `cell` units apart, interpolated."""
        n = int(UNITS / cell) + 2
        lattice = self.dice.noise(n, n)
        position = self.axis / np.float32(cell)
        index = position.astype(np.int64)
        part = position - index.astype(np.float32)
        part = part * part * (np.float32(3) - np.float32(2) * part)
        rows = lattice[index] + (lattice[index + 1] - lattice[index]) * part[:, None]
        return rows[:, index] + (rows[:, index + 1] - rows[:, index]) * part[None, :]

    def new(self, kind: str) -> int:
        """Start a new thing of a class; pixels painted with the number returned belong to it."""
        self.kinds.append(kind)
        return len(self.kinds) - 1

    def free(self, kinds: Sequence[str], reach: float = 0.0) -> np.ndarray:
        """Where the canvas shows one of some classes, and only these within `reach` units: bool [H, W]."""
        free = np.array([kind in kinds for kind in self.kinds])[self.owner]
        step = math.ceil(reach * self.scale)
        if step == 0:
            return free
        padded = np.pad(free, step, mode="edge")
        n = self.size
        for dy in (0, step, 2 * step):
            for dx in (0, step, 2 * step):
                free = free & padded[dy : dy + n, dx : dx + n]
        return free

    def sees(self, where: np.ndarray, at: Point) -> bool:
        """Whether a point lies on the canvas where a map bool [H, W] is true."""
        x, y = math.floor(at[0] * self.scale), math.floor(at[1] * self.scale)
        return 0 <= x < self.size and 0 <= y < self.size and bool(where[y, x])

    def _window(self, x0: float, y0: float, x1: float, y1: float) -> tuple[int, int, np.ndarray, np.ndarray]:
        """Pixels that a box in scene units touches: top, left, x [1, w] and y [h, 1] of their centres."""
        left, right = (min(max(math.floor(x * self.scale), 0), self.size) for x in (x0 - 1, x1 + 2))
        top, bottom = (min(max(math.floor(y * self.scale), 0), self.size) for y in (y0 - 1, y1 + 2))
        return top, left, self.axis[None, left:right], self.axis[top:bottom, None]

    def _cover(self, inside: np.ndarray) -> np.ndarray:
        """Coverage of pixels whose centres lie `inside` units within the edge."""
        return np.clip(inside * np.float32(self.scale) + np.float32(0.5), np.float32(0), np.float32(1))

    def everywhere(self) -> Patch:
        """The whole square."""
        return Patch(0, 0, np.ones((self.size, self.size), np.float32))

    def box(
        self,
        at: Point,
        direction: Point,
        length: float,
        width: float,
        dash: tuple[float, float] | None = None,
    ) -> Patch:
        """A rectangle about a point, `length` along the direction; `dash` (on, off) cuts it into dashes."""
        reach_x = (abs(length * direction[0]) + abs(width * direction[1])) / 2
        reach_y = (abs(length * direction[1]) + abs(width * direction[0])) / 2
        top, left, x, y = self._window(at[0] - reach_x, at[1] - reach_y, at[0] + reach_x, at[1] + reach_y)
        x, y = x - np.float32(at[0]), y - np.float32(at[1])
        c, s = np.float32(direction[0]), np.float32(direction[1])
        u, v = x * c + y * s, y * c - x * s
        inside = np.minimum(np.float32(length / 2) - np.abs(u), np.float32(width / 2) - np.abs(v))
        if dash:
            phase = (u + np.float32(4096)) % np.float32(dash[0] + dash[1])
            inside = np.where(phase < np.float32(dash[0]), inside, np.float32(-9))
        return Patch(top, left, self._cover(inside))

    def oval(self, at: Point, direction: Point, length: float, width: float, rough: float = 0.0) -> Patch:
        """An ellipse with axes `length` and `width`; `rough` > 0 makes its outline wander like a shore."""
        reach = max(length, width) / 2 * (1 + rough)
        top, left, x, y = self._window(at[0] - reach, at[1] - reach, at[0] + reach, at[1] + reach)
        x, y = x - np.float32(at[0]), y - np.float32(at[1])
        c, s = np.float32(direction[0]), np.float32(direction[1])
        u = (x * c + y * s) / np.float32(length / 2)
        v = (y * c - x * s) / np.float32(width / 2)
        radius = np.sqrt(u * u + v * v)
        if rough:
            h, w = radius.shape
            radius = radius + np.float32(rough) * self.clouds[top : top + h, left : left + w]
        return Patch(top, left, self._cover((np.float32(1) - radius) * np.float32(min(length, width) / 2)))

    def disc(self, at: Point, radius: float) -> Patch:
        """A circle."""
        return self.oval(at, DIRECTIONS[0], 2 * radius, 2 * radius)

    def polygon(self, points: Sequence[Point]) -> Patch:
        """A convex polygon, its corners in clockwise order as seen on the image."""
        xs, ys = [p[0] for p in points], [p[1] for p in points]
        top, left, x, y = self._window(min(xs), min(ys), max(xs), max(ys))
        inside = np.full((y.shape[0], x.shape[1]), np.float32(99))
        for (ax, ay), (bx, by) in zip(points, [*points[1:], points[0]], strict=True):
            length = math.sqrt((bx - ax) * (bx - ax) + (by - ay) * (by - ay))
            c, s = np.float32((bx - ax) / length), np.float32((by - ay) / length)
            inside = np.minimum(inside, (y - np.float32(ay)) * c - (x - np.float32(ax)) * s)
        return Patch(top, left, self._cover(inside))

    def path(self, points: Sequence[Point], width: float, rough: float = 0.0) -> Patch:
        """A line of some width with round corners and ends; `rough` (units) makes its banks wander."""
        xs, ys, half = [p[0] for p in points], [p[1] for p in points], width / 2 + rough
        top, left, x, y = self._window(min(xs) - half, min(ys) - half, max(xs) + half, max(ys) + half)
        nearest = np.full((y.shape[0], x.shape[1]), np.float32(1e9))
        for (ax, ay), (bx, by) in pairwise(points):
            ex, ey = bx - ax, by - ay
            px, py = x - np.float32(ax), y - np.float32(ay)
            t = (px * np.float32(ex) + py * np.float32(ey)) / np.float32(ex * ex + ey * ey)
            t = np.clip(t, np.float32(0), np.float32(1))
            qx, qy = px - t * np.float32(ex), py - t * np.float32(ey)
            nearest = np.minimum(nearest, qx * qx + qy * qy)
        inside = np.float32(width / 2) - np.sqrt(nearest)
        if rough:
            h, w = inside.shape
            inside = inside + np.float32(rough) * self.clouds[top : top + h, left : left + w]
        return Patch(top, left, self._cover(inside))

    def beyond(self, at: Point, direction: Point, rough: float = 0.0) -> Patch:
        """All that lies further along the direction than a point; `rough` (units) makes the border wander."""
        c, s = np.float32(direction[0]), np.float32(direction[1])
        x, y = self.axis[None, :] - np.float32(at[0]), self.axis[:, None] - np.float32(at[1])
        return Patch(0, 0, self._cover(x * c + y * s + np.float32(rough) * self.clouds))

    def stripes(self, direction: Point, period: float, warp: float = 0.0) -> np.ndarray:
        """A wave float32 [H, W] in [-1, 1] whose crests lie `period` units apart along the direction."""
        c, s = np.float32(direction[0]), np.float32(direction[1])
        u = self.axis[None, :] * c + self.axis[:, None] * s + np.float32(warp) * self.clouds
        phase = (u / np.float32(period) + np.float32(4096)) % np.float32(1)
        return np.float32(4) * np.abs(phase - np.float32(0.5)) - np.float32(1)

    def _visible(self, patch: Patch) -> tuple[slice, slice, np.ndarray]:
        """The part of a patch that lies on the canvas: its rows, its columns, its cover."""
        h, w = patch.cover.shape
        y0, x0 = max(patch.top, 0), max(patch.left, 0)
        y1, x1 = max(min(patch.top + h, self.size), y0), max(min(patch.left + w, self.size), x0)
        cover = patch.cover[y0 - patch.top : y1 - patch.top, x0 - patch.left : x1 - patch.left]
        return slice(y0, y1), slice(x0, x1), cover

    def paint(
        self,
        patch: Patch,
        colour: Colour,
        owner: int | None = None,
        grain: float = 3.0,
        clouds: float = 0.0,
        pattern: np.ndarray | None = None,
    ) -> None:
        """Lay a colour over a shape, textured by fine noise, soft noise and a pattern [H, W] in grey levels.

        With an `owner` (a number from `new`) the pixels that are at least half covered become its own.
        """
        rows, columns, cover = self._visible(patch)
        texture = np.float32(grain) * self.grain[rows, columns]
        if clouds:
            texture = texture + np.float32(clouds) * self.clouds[rows, columns]
        if pattern is not None:
            texture = texture + pattern[rows, columns]
        under = self.image[rows, columns]
        self.image[rows, columns] = (
            under + (np.array(colour, np.float32) + texture[..., None] - under) * cover[..., None]
        )
        if owner is not None:
            held = self.owner[rows, columns]
            held[cover >= np.float32(0.5)] = owner

    def darken(self, patch: Patch, strength: float) -> None:
        """Take so much of the light from a shape (negative: brighten it)."""
        rows, columns, cover = self._visible(patch)
        self.image[rows, columns] *= np.float32(1) - np.float32(strength) * cover[..., None]

    def shadow(self, patch: Patch, height: float) -> None:
        """Let a shape of some height (units) throw its shadow away from the sun."""
        dx, dy = (math.floor(-height * s * self.scale + 0.5) for s in self.sun)
        self.darken(patch.moved(dx, dy), 0.42)

    def trees(self, ground: np.ndarray, spacing: float, percent: int, colour: Colour) -> None:
        """Plant trees about `spacing` units apart on the pixels `ground` (bool [H, W]).

        A tree stands in `percent` of the cells of a jittered lattice; where crowns overlap the higher shows.
        """
        n = int(UNITS / spacing) + 3
        jitter_x, jitter_y, radius = (self.dice.noise(n, n) for _ in range(3))
        tint = np.float32(14) * self.dice.noise(n, n)
        lattice = (np.arange(n, dtype=np.float32) - np.float32(0.5)) * np.float32(spacing)
        centre_x = lattice[None, :] + jitter_x * np.float32(spacing * 0.42)
        centre_y = lattice[:, None] + jitter_y * np.float32(spacing * 0.42)
        radius = (radius * np.float32(0.16) + np.float32(0.56)) * np.float32(spacing)
        px, py = (
            np.clip((c * np.float32(self.scale)).astype(np.int64), 0, self.size - 1) for c in (centre_x, centre_y)
        )
        grows = ground[py, px] & (self.dice.noise(n, n) < np.float32(percent / 50 - 1))
        radius = np.where(grows, radius, np.float32(-1))
        cell = (self.axis / np.float32(spacing)).astype(np.int64) + 1
        x, y = self.axis[None, :], self.axis[:, None]
        best = np.full((self.size, self.size), np.float32(-9))
        tallest = np.zeros(best.shape, np.int64)
        for row in (cell - 1, cell, cell + 1):
            for column in (cell - 1, cell, cell + 1):
                tree = row[:, None] * n + column[None, :]
                dx, dy = x - centre_x.take(tree), y - centre_y.take(tree)
                inside = radius.take(tree) - np.sqrt(dx * dx + dy * dy)
                higher = inside > best
                np.copyto(best, inside, where=higher)
                np.copyto(tallest, tree, where=higher)
        sunward = (x - centre_x.take(tallest)) * np.float32(self.sun[0])
        sunward = sunward + (y - centre_y.take(tallest)) * np.float32(self.sun[1])
        relief = np.minimum(best, np.float32(4)) * np.float32(4) + tint.take(tallest)
        crowns = Patch(0, 0, self._cover(best))
        self.shadow(crowns, spacing * 0.35)
        relief = relief + sunward * np.float32(26 / spacing)
        self.paint(crowns, colour, self.new("tree"), grain=16, pattern=relief)

    def finish(self, gain: float, haze: float, tint: Colour) -> np.ndarray:
        """Put light and air over the picture and give it as uint8 [H, W, 3]."""
        lit = self.image * np.array([gain * t for t in tint], np.float32)
        light = lit + (np.float32(205) - lit) * np.float32(haze)
        noise = np.float32(3.5) * self.film.noise(self.size, self.size)
        whole = np.floor(light + noise[..., None] + np.float32(0.5))
        return np.clip(whole, np.float32(0), np.float32(255)).astype(np.uint8)
