"""The types of synthetic scenes: what each holds, where it stands, and what may be said about it."""

from collections.abc import Callable
from dataclasses import dataclass, field

from data import scene_objects as draw
from data.drawing import DIRECTIONS, Canvas, Dice, Point, along, turned
from data.scene_captions import Group

CENTRE: Point = (112.0, 112.0)


@dataclass
class Story:
    """What the captions may speak of: groups by role, and which things on the canvas belong to each."""

    canvas: Canvas
    groups: dict[str, Group] = field(default_factory=dict)
    owners: dict[str, tuple[int, ...]] = field(default_factory=dict)

    def say(
        self, role: str, kind: str, noun: str = "", amount: int | str = "", colour: str = "", shape: str = ""
    ) -> None:
        """Name all things of a class on the canvas as a group; a number among `amount` is taken as given."""
        self.groups[role] = Group(kind, noun or kind, amount, colour, shape)
        self.owners[role] = tuple(i for i, k in enumerate(self.canvas.kinds) if k == kind)


def slots(origin: Point, axis: Point, columns: int, rows: int, du: float, dv: float) -> list[Point]:
    """A grid of places about a point, columns along the axis."""
    return [
        along(origin, axis, (i - (columns - 1) / 2) * du, (j - (rows - 1) / 2) * dv)
        for j in range(rows)
        for i in range(columns)
    ]


def planted(canvas: Canvas, dice: Dice, percent: int, story: Story, spacing: float = 11) -> None:
    """Plant trees on the open ground and let the captions speak of them."""
    open_ground = canvas.owner == 0
    canvas.trees(open_ground, spacing, percent, draw.GROUNDS["leaf"])
    story.say("trees", "tree", amount="many" if percent >= 35 else "some", colour="green")


def airport(canvas: Canvas, dice: Dice, story: Story) -> None:
    """Planes on an apron before a terminal, runways behind."""
    axis = dice.choice(DIRECTIONS)
    across = turned(axis)
    draw.ground(canvas, dice.choice(("grass", "dry grass")))
    count, colour, runways = (
        dice.integer(1, 5),
        dice.choice(("white", "blue", "red", "orange")),
        dice.integer(1, 2),
    )
    for i in range(runways):
        middle = along(CENTRE, across, -62 - 28 * i)
        canvas.paint(
            canvas.box(middle, axis, 330, 17),
            draw.GROUNDS["asphalt"],
            canvas.new("runway"),
            grain=5,
            clouds=6,
        )
        canvas.paint(canvas.box(middle, axis, 330, 1.4, dash=(11, 9)), (226, 226, 220))
    canvas.paint(
        canvas.box(along(CENTRE, across, 18), axis, 330, 82), draw.GROUNDS["concrete"], grain=4, clouds=8
    )
    shade = dice.choice(("gray", "white", "brown"))
    draw.building(canvas, along(CENTRE, across, 52), axis, 120, 24, shade, 7, kind="terminal")
    for spot in dice.sample(slots(along(CENTRE, across, 4), axis, 5, 1, 33, 0), count):
        draw.plane(canvas, spot, across, 29, colour)
    story.say("main", "plane", amount=count, colour=colour)
    story.say("other", "terminal", "terminal building", 1, colour=shade)
    story.say("runway", "runway", amount=runways)


def storagetanks(canvas: Canvas, dice: Dice, story: Story) -> None:
    """Round tanks on bare ground beside a pond, a road or a building."""
    axis = dice.choice(DIRECTIONS)
    across = turned(axis)
    draw.ground(canvas, dice.choice(("soil", "concrete", "dry grass")))
    count, colour = dice.integer(1, 6), dice.choice(("white", "gray", "green", "red"))
    radius = 15.0 if count > 3 else dice.choice((15.0, 22.0))
    beside = along(CENTRE, across, 62)
    which = dice.choice(("pond", "road", "building"))
    if which == "pond":
        tint = dice.choice(("green", "blue"))
        draw.water(canvas, canvas.oval(beside, axis, 90, 42, rough=0.12), tint, "pond")
        story.say("other", "pond", amount=1, colour=tint)
    elif which == "road":
        draw.road(canvas, [along(beside, axis, -220), along(beside, axis, 220)], 14)
        story.say("other", "road")
    else:
        tint = dice.choice(("blue", "red", "white"))
        draw.hall(canvas, beside, axis, 80, 30, tint)
        story.say("other", "building", amount=1, colour=tint)
    pitch = 2.6 * radius
    for spot in dice.sample(slots(along(CENTRE, across, -22), axis, 3, 2, pitch, pitch), count):
        draw.tank(canvas, spot, radius, colour)
    story.say("main", "storage tank", amount=count, colour=colour, shape="large" if radius > 20 else "")
    if dice.chance(60):
        planted(canvas, dice, 30, story)


SCENES: dict[str, Callable[[Canvas, Dice, Story], None]] = {
    "airport": airport,
    "storagetanks": storagetanks,
}
