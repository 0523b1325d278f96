"""A scene in the making: axes, places, and the groups that captions may speak of."""

from collections.abc import Sequence
from itertools import pairwise

from data.scenery import objects as draw
from data.scenery.canvas import DIRECTIONS, UNITS, Canvas, Dice, Point, along, turned
from data.scenery.captions import Group


class Story:
    """A scene in the making: canvas, dice, a system of axes, and the groups that captions may speak of.

    `groups` holds the groups by role, `owners` the numbers on the canvas of the things in each.
    """

    def __init__(self, canvas: Canvas, dice: Dice):
        self.canvas, self.dice = canvas, dice
        self.axis = dice.choice(DIRECTIONS)
        self.across = turned(self.axis)
        self.origin: Point = (dice.between(104, 120), dice.between(104, 120))
        self.groups: dict[str, Group] = {}
        self.owners: dict[str, tuple[int, ...]] = {}

    def say(
        self, role: str, kind: str, amount: int | str = "", colour: str = "", shape: str = "", noun: str = ""
    ) -> None:
        """Name all things of a class that the canvas holds by now as a group."""
        self.groups[role] = Group(kind, noun or kind, amount, colour, shape)
        self.owners[role] = tuple(i for i, k in enumerate(self.canvas.kinds) if k == kind)

    def at(self, u: float, v: float) -> Point:
        """The point u units along the axis and v across it from the origin."""
        return along(self.origin, self.axis, u, v)

    def grid(self, columns: int, rows: int, du: float, dv: float, v: float = 0.0) -> list[Point]:
        """Places in rows along the axis, v units across it, leaving out what lies far beyond the square."""
        places = [
            self.at((i - (columns - 1) / 2) * du, v + (j - (rows - 1) / 2) * dv)
            for j in range(rows)
            for i in range(columns)
        ]
        return [(x, y) for x, y in places if -45 < x < UNITS + 45 and -45 < y < UNITS + 45]

    def heading(self) -> Point:
        """One of the four directions of the axes."""
        sign = self.dice.choice((-1, 1))
        x, y = self.dice.choice((self.axis, self.across))
        return (sign * x, sign * y)

    def plant(self, percent: int, spacing: float = 11) -> None:
        """Plant trees on open ground, clear of everything else, and name them."""
        ground = self.canvas.free(("background", "grass"), spacing * 0.6)
        self.canvas.trees(ground, spacing, percent, draw.GROUNDS["leaf"])
        self.say("trees", "tree", "many" if percent >= 30 else "some", self.dice.choice(("green", "")))

    def road(self, v: float, width: float = 13, cars: int = 0) -> None:
        """A straight road along the axis, with cars on it that nobody counts."""
        draw.road(self.canvas, [self.at(-230, v), self.at(230, v)], width)
        for u in self.dice.sample(range(-100, 101, 20), cars):
            side = self.dice.choice((-1, 1))
            draw.car(self.canvas, self.at(u, v + side * width / 4), self.axis, self.dice.choice(CAR_COLOURS))

    def beside(self, v: float, *choices: str) -> None:
        """Put one of the choices along the axis at a distance from the origin, and name it as `other`."""
        dice, canvas, spot = self.dice, self.canvas, self.at(0, v)
        which = dice.choice(choices)
        if which == "pond":
            colour = dice.choice(("green", "blue"))
            draw.water(canvas, canvas.oval(spot, self.axis, 92, 40, rough=0.12), colour, "pond")
            self.say("other", "pond", 1, colour)
        elif which == "road":
            self.road(v, 14, cars=dice.integer(0, 4))
            self.say("other", "road")
        elif which == "parking lot":
            parking_lot(self, v, rows=2, columns=9)
            self.say("other", "parking lot", 1)
        else:
            colour = dice.choice(("blue", "red", "white", "gray"))
            draw.building(canvas, spot, self.axis, dice.between(60, 90), 28, colour, 7)
            self.say("other", "building", 1, colour)


CAR_COLOURS = ("white", "black", "red", "blue", "gray", "white")


def parking_lot(s: Story, v: float, rows: int, columns: int, percent: int = 70) -> None:
    """Marked rows of places along the axis about v, most of them taken by cars of all colours."""
    c, depth = s.canvas, 17.0
    lot = c.box(s.at(0, v), s.axis, columns * 7.4 + 10, rows * depth + 6)
    c.paint(lot, draw.GROUNDS["asphalt"], c.new("parking lot"), grain=6, clouds=6)
    for j in range(rows):
        middle = v + (j - (rows - 1) / 2) * depth
        for i in range(columns + 1):
            c.paint(c.box(s.at((i - columns / 2) * 7.4, middle), s.across, 10, 0.9), (212, 210, 200))
        for i in s.dice.sample(range(columns), columns * percent // 100):
            draw.car(c, s.at((i - (columns - 1) / 2) * 7.4, middle), s.across, s.dice.choice(CAR_COLOURS))


def river_bed(s: Story, width: float, curved: bool, colour: str) -> list[Point]:
    """A river across the square along the axis; gives the points that its middle runs through."""
    bend = s.dice.between(26, 40) * s.dice.choice((-1, 1)) if curved else 0.0
    course = [s.at(u, bend * k) for u, k in ((-240, 0), (-120, 0.4), (-60, 1), (0, 0), (60, -1), (120, -0.4), (240, 0))]
    course = smooth(course) if curved else [course[0], course[-1]]
    s.canvas.paint(s.canvas.path(course, width + 7, rough=4), draw.GROUNDS["soil"], grain=8)
    draw.water(s.canvas, s.canvas.path(course, width, rough=4), colour)
    return course


def smooth(points: Sequence[Point]) -> list[Point]:
    """Cut the corners of a line (Chaikin), twice."""
    line = list(points)
    for _ in range(2):
        cut = [line[0]]
        for (ax, ay), (bx, by) in pairwise(line):
            cut += [
                (0.75 * ax + 0.25 * bx, 0.75 * ay + 0.25 * by),
                (0.25 * ax + 0.75 * bx, 0.25 * ay + 0.75 * by),
            ]
        line = [*cut, line[-1]]
    return line
