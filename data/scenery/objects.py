"""What stands in synthetic scenes, seen from above: planes, tanks, houses, boats, courts, trees, water.

Each function paints one thing with its shadow; its pixels belong to a new instance of its class.
"""

import math
from itertools import pairwise

import numpy as np

from data.scenery.canvas import Canvas, Colour, Patch, Point, along, turned

PAINTS: dict[str, Colour] = {
    "white": (236, 236, 232),
    "gray": (134, 136, 138),
    "black": (46, 46, 50),
    "red": (182, 50, 42),
    "orange": (220, 126, 44),
    "yellow": (226, 196, 62),
    "green": (70, 128, 72),
    "blue": (46, 98, 176),
    "brown": (124, 86, 58),
}
WATERS: dict[str, Colour] = {"blue": (40, 84, 132), "green": (58, 98, 72), "brown": (132, 112, 76)}
GROUNDS: dict[str, Colour] = {
    "grass": (98, 124, 72),
    "dry grass": (138, 136, 92),
    "concrete": (168, 166, 160),
    "asphalt": (96, 98, 102),
    "soil": (150, 122, 90),
    "sand": (214, 190, 140),
    "leaf": (46, 84, 46),
}


def lighter(colour: Colour, by: float) -> Colour:
    """A colour brightened by so many grey levels (negative: darkened)."""
    r, g, b = (min(max(c + by, 0.0), 255.0) for c in colour)
    return (r, g, b)


def ground(canvas: Canvas, material: str, kind: str | None = None) -> None:
    """Cover the whole square with a material, which belongs to a class or else to the background."""
    owner = canvas.new(kind) if kind else None
    canvas.paint(canvas.everywhere(), GROUNDS[material], owner, grain=7, clouds=14)


def lawn(canvas: Canvas, patch: Patch, material: str = "grass") -> None:
    """A piece of grass."""
    canvas.paint(patch, GROUNDS[material], canvas.new("grass"), grain=8, clouds=14)


def water(canvas: Canvas, patch: Patch, colour: str, kind: str = "water") -> None:
    """A body of water of a named colour; the class is `water`, or `pond` for one that counts as a thing."""
    canvas.paint(patch, WATERS[colour], canvas.new(kind), grain=3, clouds=9)


def road(canvas: Canvas, points: list[Point], width: float, kind: str = "road", marked: bool = True) -> None:
    """A paved road with a dashed middle line on its straight pieces."""
    canvas.paint(canvas.path(points, width + 3), lighter(GROUNDS["concrete"], -8), grain=5)
    canvas.paint(canvas.path(points, width), GROUNDS["asphalt"], canvas.new(kind), grain=5, clouds=5)
    if marked:
        for a, b in pairwise(points):
            middle, direction, length = between(a, b)
            canvas.paint(canvas.box(middle, direction, length, 1.0, dash=(6, 6)), (214, 212, 200))


def between(a: Point, b: Point) -> tuple[Point, Point, float]:
    """Middle, direction and length of the line from a to b."""
    dx, dy = b[0] - a[0], b[1] - a[1]
    length = math.sqrt(dx * dx + dy * dy)
    return ((a[0] + b[0]) / 2, (a[1] + b[1]) / 2), (dx / length, dy / length), length


def plane(canvas: Canvas, at: Point, heading: Point, length: float, colour: str) -> None:
    """An airliner: fuselage, swept wings, tail, engines."""
    paint, owner, half = PAINTS[colour], canvas.new("plane"), length / 2
    body = canvas.path([along(at, heading, half * 0.88), along(at, heading, -half * 0.9)], length * 0.13)
    parts = [body]
    for side in (1, -1):
        wing = [(0.26, 0.0), (-0.22, 0.92), (-0.4, 0.92), (-0.2, 0.0)]
        tail = [(-0.66, 0.0), (-0.9, 0.34), (-1.0, 0.34), (-0.92, 0.0)]
        for outline in (wing, tail):
            corners = [along(at, heading, u * half, side * v * half) for u, v in outline]
            parts.append(canvas.polygon(corners if side == 1 else corners[::-1]))
        engine = along(at, heading, half * 0.02, side * half * 0.36)
        parts.append(canvas.box(engine, heading, length * 0.13, length * 0.06))
    for part in parts:
        canvas.shadow(part, 3.2)
    for part in parts[1:]:
        canvas.paint(part, lighter(paint, -16), owner)
    canvas.paint(body, lighter(paint, 8), owner)
    canvas.paint(canvas.disc(along(at, heading, half * 0.84), length * 0.03), (70, 76, 88), owner)


def tank(canvas: Canvas, at: Point, radius: float, colour: str) -> None:
    """A round storage tank with a rim, a lit half and a vent."""
    paint, owner = PAINTS[colour], canvas.new("storage tank")
    outline = canvas.disc(at, radius)
    canvas.shadow(outline, radius * 0.55)
    canvas.paint(outline, lighter(paint, -44), owner)
    canvas.paint(canvas.disc(at, radius * 0.9), paint, owner)
    canvas.paint(canvas.disc(along(at, canvas.sun, radius * 0.18), radius * 0.6), lighter(paint, 10), owner)
    canvas.paint(canvas.disc(at, radius * 0.12), lighter(paint, -60), owner)


def house(canvas: Canvas, at: Point, axis: Point, length: float, width: float, colour: str) -> None:
    """A house with a ridged roof, the half that faces the sun brighter."""
    paint, owner = PAINTS[colour], canvas.new("house")
    outline = canvas.box(at, axis, length, width)
    canvas.shadow(outline, 4.5)
    across = turned(axis)
    facing = across[0] * canvas.sun[0] + across[1] * canvas.sun[1]
    canvas.paint(outline, lighter(paint, -24), owner, grain=6)
    lit = along(at, across, width / 4 if facing > 0 else -width / 4)
    canvas.paint(canvas.box(lit, axis, length, width / 2), lighter(paint, 14), owner, grain=6)
    canvas.paint(canvas.box(at, axis, length, 0.9), lighter(paint, -50), owner)


def building(
    canvas: Canvas,
    at: Point,
    axis: Point,
    length: float,
    width: float,
    colour: str,
    height: float,
    kind: str = "building",
) -> None:
    """A flat-roofed building with a parapet and machines on the roof."""
    paint, owner, dice = PAINTS[colour], canvas.new(kind), canvas.dice
    outline = canvas.box(at, axis, length, width)
    for part in (0.5, 1.0):
        canvas.shadow(outline, height * part)
    canvas.paint(outline, lighter(paint, 12), owner)
    canvas.paint(canvas.box(at, axis, length - 3, width - 3), lighter(paint, -8), owner, grain=5, clouds=5)
    for _ in range(dice.integer(1, 3)):
        spot = along(along(at, axis, dice.between(-0.3, 0.3) * length), turned(axis), dice.between(-0.25, 0.25) * width)
        canvas.paint(canvas.box(spot, axis, 5, 3.5), lighter(paint, dice.choice((-50, 22))), owner)


def hall(
    canvas: Canvas, at: Point, axis: Point, length: float, width: float, colour: str, kind: str = "building"
) -> None:
    """A factory hall or platform roof with a ribbed metal roof."""
    paint, owner = PAINTS[colour], canvas.new(kind)
    outline = canvas.box(at, axis, length, width)
    canvas.shadow(outline, 6)
    canvas.paint(outline, paint, owner, pattern=canvas.stripes(axis, 7) * np.float32(12))
    canvas.paint(canvas.box(at, axis, length, 1.4), lighter(paint, -36), owner)


def car(canvas: Canvas, at: Point, heading: Point, colour: str) -> None:
    """A car, nine units long."""
    paint, owner = PAINTS[colour], canvas.new("car")
    outline = canvas.box(at, heading, 9, 4.4)
    canvas.shadow(outline, 1.3)
    canvas.paint(outline, paint, owner)
    canvas.paint(canvas.box(along(at, heading, 1.2), heading, 1.7, 3.6), (40, 46, 56), owner)


def boat(canvas: Canvas, at: Point, heading: Point, length: float, colour: str, wake: bool = False) -> None:
    """A boat with a pointed bow and a cabin, under way with a wake or lying still."""
    paint, owner = PAINTS[colour], canvas.new("boat")
    if wake:
        for side in (1, -1):
            end = along(at, heading, -length * 1.5, side * length * 0.34)
            canvas.darken(canvas.path([along(at, heading, -length * 0.4), end], 1.6), -0.6)
    u, v = length / 2, length * 0.17
    outline = [(u, 0.0), (u * 0.5, v), (-u, v * 0.85), (-u, -v * 0.85), (u * 0.5, -v)]
    hull = canvas.polygon([along(at, heading, a, b) for a, b in outline])
    canvas.shadow(hull, 2)
    canvas.paint(hull, paint, owner)
    deck = lighter(paint, -44) if sum(paint) > 380 else lighter(paint, 50)
    canvas.paint(canvas.box(along(at, heading, -u * 0.3), heading, u * 0.7, v * 1.1), deck, owner)


def football_field(canvas: Canvas, at: Point, axis: Point, length: float, margin: Patch | None = None) -> None:
    """A football field with mowing stripes and white lines, perhaps with a margin of grass."""
    owner, width = canvas.new("football field"), length * 0.62
    if margin:
        canvas.paint(margin, (86, 132, 70), owner, grain=6)
    mown = canvas.stripes(axis, length / 5) * np.float32(9)
    canvas.paint(canvas.box(at, axis, length, width), (76, 136, 66), owner, grain=5, pattern=mown)
    line: Colour = (226, 232, 222)
    for side in (1, -1):
        canvas.paint(canvas.box(along(at, axis, 0, side * (width / 2 - 2)), axis, length - 4, 1.1), line, owner)
        canvas.paint(canvas.box(along(at, axis, side * (length / 2 - 2)), axis, 1.1, width - 4), line, owner)
        goal = along(at, axis, side * (length / 2 - length * 0.1))
        canvas.paint(canvas.box(along(goal, axis, -side * length * 0.02), axis, 1.0, width * 0.4), line, owner)
    canvas.paint(canvas.disc(at, length * 0.09), line, owner)
    canvas.paint(canvas.disc(at, length * 0.09 - 1.1), (76, 136, 66), owner, grain=5, pattern=mown)
    canvas.paint(canvas.box(at, axis, 1.1, width - 4), line, owner)


def running_track(canvas: Canvas, at: Point, axis: Point, length: float, colour: str) -> None:
    """A running track with white lanes around a football field."""
    owner, field = canvas.new("running track"), length * 0.6
    ends = [along(at, axis, -field / 2), along(at, axis, field / 2)]
    outer = length - field
    for step, width in enumerate((outer, outer * 0.93, outer * 0.92, outer * 0.86, outer * 0.85)):
        canvas.paint(canvas.path(ends, width), PAINTS[colour] if step % 2 == 0 else (222, 206, 200), owner)
    football_field(canvas, at, axis, length * 0.48, margin=canvas.path(ends, outer * 0.78))


def court(canvas: Canvas, at: Point, axis: Point, length: float, colour: str, sport: str) -> None:
    """A tennis court (service boxes and a net) or a basketball court (a centre circle and two keys)."""
    owner, width, line = canvas.new("court"), length * 0.56, (232, 232, 228)
    floor, surround = PAINTS[colour], lighter(PAINTS[colour], -18)
    canvas.paint(canvas.box(at, axis, length, width), surround, owner)
    canvas.paint(canvas.box(at, axis, length * 0.84, width * 0.78), line, owner)
    canvas.paint(canvas.box(at, axis, length * 0.84 - 2, width * 0.78 - 2), floor, owner)
    if sport == "tennis":
        canvas.paint(canvas.box(at, axis, 1.1, width * 0.9), line, owner)
        canvas.paint(canvas.box(at, axis, length * 0.42, 1.0), line, owner)
        return
    for side in (1, -1):
        key = along(at, axis, side * length * 0.34)
        canvas.paint(canvas.box(key, axis, length * 0.15, width * 0.36), line, owner)
    canvas.paint(canvas.disc(at, length * 0.11), line, owner)
    canvas.paint(canvas.disc(at, length * 0.11 - 1.1), floor, owner)
    canvas.paint(canvas.box(at, axis, 0.9, width * 0.78), line, owner)


def baseball_field(canvas: Canvas, at: Point, axis: Point, radius: float) -> None:
    """A baseball field: a grass fan that opens along the axis from home plate, with a dirt infield."""
    owner = canvas.new("baseball field")
    # the fan is the quarter disc about home plate between the two foul lines
    home = along(at, axis, -radius * 0.55)
    left, right = (along((0, 0), axis, 0.7071, 0.7071 * side) for side in (-1, 1))

    def fan(reach: float) -> Patch:
        sector = canvas.disc(home, reach)
        wedge = canvas.polygon([home, along(home, right, 3 * reach), along(home, left, 3 * reach)][::-1])
        return intersection(sector, wedge)

    canvas.paint(fan(radius * 1.25), (176, 138, 96), owner, grain=6)
    canvas.paint(fan(radius * 1.19), (88, 138, 70), owner, grain=6, pattern=canvas.stripes(left, 14) * np.float32(6))
    dirt: Colour = (190, 140, 92)
    canvas.paint(fan(radius * 0.66), dirt, owner, grain=7)
    canvas.paint(canvas.disc(home, radius * 0.13), dirt, owner, grain=7)
    base = radius * 0.36
    canvas.paint(canvas.box(along(home, axis, base * 0.82), left, base, base), (88, 138, 70), owner, grain=6)
    canvas.paint(canvas.disc(along(home, axis, base * 0.82), radius * 0.07), dirt, owner)


def intersection(a: Patch, b: Patch) -> Patch:
    """What two patches share."""
    top, left = max(a.top, b.top), max(a.left, b.left)
    bottom = max(min(a.top + a.cover.shape[0], b.top + b.cover.shape[0]), top)
    right = max(min(a.left + a.cover.shape[1], b.left + b.cover.shape[1]), left)
    parts = [p.cover[top - p.top : bottom - p.top, left - p.left : right - p.left] for p in (a, b)]
    return Patch(top, left, np.minimum(parts[0], parts[1]))


def pool(canvas: Canvas, at: Point, axis: Point, length: float, width: float) -> None:
    """A blue swimming pool with a pale edge."""
    owner = canvas.new("pool")
    canvas.paint(canvas.box(at, axis, length + 3, width + 3), (214, 208, 194))
    canvas.paint(canvas.box(at, axis, length, width), (64, 172, 212), owner, grain=4, clouds=6)


def train(canvas: Canvas, at: Point, axis: Point, wagons: int, colour: str) -> None:
    """A train of wagons, its middle at a point."""
    owner = canvas.new("train")
    for i in range(wagons):
        spot = along(at, axis, (i - (wagons - 1) / 2) * 19)
        wagon = canvas.box(spot, axis, 17.6, 6)
        canvas.shadow(wagon, 2)
        canvas.paint(wagon, PAINTS[colour], owner)
        canvas.paint(canvas.box(spot, axis, 14, 2), lighter(PAINTS[colour], 26), owner)
    canvas.paint(canvas.box(at, axis, wagons * 19 - 4, 2.2), lighter(PAINTS[colour], 12), owner)


def rails(canvas: Canvas, at: Point, axis: Point) -> None:
    """A railway track across the whole square."""
    bed = canvas.box(at, axis, 360, 9)
    canvas.paint(
        bed,
        (134, 122, 110),
        canvas.new("railway"),
        grain=12,
        pattern=canvas.stripes(axis, 4) * np.float32(12),
    )
    for side in (1, -1):
        canvas.paint(canvas.box(along(at, axis, 0, 2.2 * side), axis, 360, 1.0), (80, 72, 70))


def umbrella(canvas: Canvas, at: Point, colour: str) -> None:
    """A round beach umbrella."""
    owner, outline = canvas.new("umbrella"), canvas.disc(at, 4.4)
    canvas.shadow(outline, 2.5)
    canvas.paint(outline, PAINTS[colour], owner)
    canvas.paint(canvas.disc(at, 1.2), lighter(PAINTS[colour], 40), owner)


def bridge(canvas: Canvas, at: Point, axis: Point, length: float, width: float, colour: str) -> None:
    """A bridge with railings and a dashed middle line, high enough to throw a shadow on the water."""
    owner, deck = canvas.new("bridge"), canvas.box(at, axis, length, width)
    canvas.shadow(deck, 7)
    canvas.paint(deck, PAINTS[colour], owner)
    canvas.paint(canvas.box(at, axis, length, width - 4), lighter(PAINTS[colour], -20), owner, grain=5)
    canvas.paint(canvas.box(at, axis, length, 1.0, dash=(6, 6)), (228, 226, 214), owner)


def stadium(canvas: Canvas, at: Point, axis: Point, length: float, colour: str, oval: bool) -> None:
    """A stadium: roofed stands, ribbed like an umbrella, around a football field."""
    owner = canvas.new("stadium")
    rings = ((1.0, 14), (0.95, -6), (0.8, -52), (0.76, -30))
    for share, light in rings:
        if oval:
            ring = canvas.oval(at, axis, length * share, length * 0.8 * share)
        else:
            inset = length * (1 - share)
            ring = canvas.box(at, axis, length - inset, length * 0.78 - inset)
        if share == 1.0:
            canvas.shadow(ring, 5)
            canvas.shadow(ring, 10)
        ribs = canvas.stripes(axis, 8) * np.float32(9) + canvas.stripes(turned(axis), 8) * np.float32(9)
        canvas.paint(ring, lighter(PAINTS[colour], light), owner, pattern=ribs)
    football_field(canvas, at, axis, length * 0.56)


def containers(canvas: Canvas, at: Point, axis: Point, columns: int, rows: int) -> None:
    """Stacks of shipping containers in mixed colours."""
    for i in range(columns):
        for j in range(rows):
            spot = along(at, axis, (i - (columns - 1) / 2) * 11, (j - (rows - 1) / 2) * 5.5)
            stack, paint = (
                canvas.box(spot, axis, 10, 4.6),
                canvas.dice.choice(("red", "blue", "orange", "gray", "green")),
            )
            canvas.shadow(stack, 2.5)
            canvas.paint(stack, PAINTS[paint], canvas.new("container"))


def mountains(canvas: Canvas, colour: Colour, snow: bool) -> None:
    """Ridges and valleys lit by the sun over the whole square, the heights white if there is snow."""
    one, half = np.float32(1), np.float32(0.5)
    height = one - np.abs(canvas.smooth_noise(64) + half * canvas.smooth_noise(30))
    height = height + half * (one - np.abs(canvas.smooth_noise(28))) + np.float32(0.12) * canvas.smooth_noise(9)
    steps = np.float32(canvas.scale * 30)
    slope_x, slope_y = np.zeros_like(height), np.zeros_like(height)
    slope_x[:, 1:] = (height[:, 1:] - height[:, :-1]) * steps
    slope_y[1:] = (height[1:] - height[:-1]) * steps
    sun_x, sun_y = (np.float32(v) for v in canvas.sun)
    light = np.clip((slope_x * sun_x + slope_y * sun_y) * np.float32(-38), np.float32(-70), np.float32(60))
    rock = canvas.new("mountain")
    canvas.paint(canvas.everywhere(), colour, rock, grain=10, clouds=8, pattern=light)
    if snow:
        cap = Patch(0, 0, np.clip((height - np.float32(1.12)) * np.float32(14), np.float32(0), one))
        canvas.paint(cap, (236, 238, 242), canvas.new("snow"), grain=4, pattern=light * half)


def overpass(canvas: Canvas, at: Point, axis: Point, width: float) -> None:
    """A road on pillars across the whole square."""
    owner, deck = canvas.new("overpass"), canvas.box(at, axis, 460, width)
    canvas.shadow(deck, 6)
    canvas.paint(deck, (196, 194, 188), owner)
    canvas.paint(canvas.box(at, axis, 460, width - 3), lighter(GROUNDS["asphalt"], 16), owner, grain=5, clouds=4)
    canvas.paint(canvas.box(at, axis, 460, 1.0, dash=(7, 6)), (228, 226, 214), owner)


def runway(canvas: Canvas, at: Point, axis: Point, width: float) -> None:
    """A runway across the whole square with a middle line and touchdown marks."""
    owner, white = canvas.new("runway"), (228, 228, 222)
    canvas.paint(canvas.box(at, axis, 460, width), lighter(GROUNDS["asphalt"], -14), owner, grain=5, clouds=6)
    canvas.paint(canvas.box(at, axis, 460, 1.3, dash=(12, 10)), white, owner)
    for side in (1, -1):
        canvas.paint(canvas.box(along(at, axis, 0, side * (width / 2 - 1.4)), axis, 460, 0.9), white, owner)
        canvas.paint(canvas.box(along(at, axis, -70, side * width * 0.22), axis, 16, 3.4), white, owner)


def rock(canvas: Canvas, at: Point, axis: Point, length: float) -> None:
    """A dark boulder."""
    owner, outline = canvas.new("rock"), canvas.oval(at, axis, length, length * 0.72, rough=0.2)
    canvas.shadow(outline, 4)
    canvas.paint(outline, (92, 80, 72), owner, grain=14, clouds=10)
    canvas.paint(canvas.disc(along(at, canvas.sun, length * 0.14), length * 0.2), (126, 112, 100), owner, grain=12)


def monument(canvas: Canvas, at: Point, axis: Point) -> None:
    """An obelisk on a square base with a long shadow."""
    owner, pillar = canvas.new("monument"), canvas.box(at, axis, 8, 8)
    canvas.darken(canvas.path([at, along(at, canvas.sun, -26)], 7), 0.42)
    canvas.paint(canvas.box(at, axis, 16, 16), (150, 146, 140), owner)
    canvas.paint(pillar, (226, 222, 212), owner)
