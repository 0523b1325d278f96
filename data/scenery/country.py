"""Scene types of the open country: beach, desert, farmland, forest, mountain, pond, river."""

import numpy as np

from data.scenery import objects as draw
from data.scenery.story import Story, river_bed, smooth


def beach(s: Story) -> None:
    """Sand between the sea and trees, with umbrellas, and boats on the water."""
    c, d = s.canvas, s.dice
    sand, colour = d.choice(("yellow", "white")), d.choice(("blue", "green"))
    c.paint(
        c.everywhere(),
        (224, 198, 140) if sand == "yellow" else (226, 220, 206),
        c.new("sand"),
        grain=7,
        clouds=9,
    )
    shore = d.between(-8, 16)
    c.darken(c.beyond(s.at(0, shore - 9), s.across, rough=7), 0.14)
    for step, foam in ((0, True), (3, False), (11, True), (13, False)):
        edge = c.beyond(s.at(0, shore + step), s.across, rough=7 + step / 3)
        if foam:
            c.paint(edge, (238, 242, 240))
        else:
            draw.water(c, edge, colour)
    c.darken(c.beyond(s.at(0, shore + 60), s.across, rough=12), 0.16)
    umbrellas, boats = d.integer(0, 6), d.integer(0, 3)
    shade = d.choice(("red", "blue", "orange", "green"))
    for spot in d.sample(s.grid(7, 2, 24, 17, v=shore - 29), umbrellas):
        draw.umbrella(c, spot, shade)
    for spot in d.sample(s.grid(4, 1, 34, 0, v=shore + 52), boats):
        draw.boat(c, spot, s.heading(), 22, "white", wake=d.chance(50))
    s.say("main", "sand", colour=sand, noun="beach")
    s.say("other", "water", colour=colour, noun="sea")
    if umbrellas:
        s.say("extra", "umbrella", umbrellas, shade)
    if boats:
        s.say("boats", "boat", boats, "white")
    if d.chance(60):
        c.paint(c.beyond(s.at(0, shore - 58), (-s.across[0], -s.across[1]), rough=6), draw.GROUNDS["grass"], 0)
        s.plant(85)


def desert(s: Story) -> None:
    """Dunes, perhaps with a road, a pond or rocks."""
    c, d = s.canvas, s.dice
    colour = d.choice(("yellow", "brown", "white"))
    base = {"yellow": (222, 182, 112), "brown": (168, 122, 82), "white": (224, 214, 196)}[colour]
    ripples = c.stripes(s.across, d.between(18, 34), warp=15) * d.between(7, 15)
    c.paint(c.everywhere(), base, c.new("sand"), grain=6, clouds=10, pattern=ripples)
    s.say("main", "sand", colour=colour, noun="desert")
    which = d.choice(("road", "pond", "rocks", "bushes"))
    if which == "road":
        draw.road(
            c,
            smooth([s.at(-230, 0), s.at(-50, d.between(-40, 40)), s.at(40, 0), s.at(230, 10)]),
            11,
            marked=False,
        )
        s.say("other", "road", shape="long")
    elif which == "pond":
        count = d.integer(1, 3)
        tint = d.choice(("blue", "green"))
        for spot in d.sample(s.grid(2, 2, 76, 70), count):
            draw.water(c, c.oval(spot, s.axis, d.between(38, 56), d.between(26, 36), rough=0.16), tint, "pond")
        s.say("other", "pond", count, tint)
    elif which == "rocks":
        count = d.integer(2, 6)
        for spot in d.sample(s.grid(4, 3, 44, 46), count):
            draw.rock(c, spot, s.axis, d.between(15, 24))
        s.say("other", "rock", count, shape="dark")
    else:
        c.trees(c.free(("sand",)), 16, d.choice((12, 50)), (92, 104, 62))
        s.say("other", "tree", "some", noun="bush")


def crop_rows(s: Story) -> list[np.ndarray]:
    """Patterns [H, W] of planted rows along and across the axis."""
    return [s.canvas.stripes(way, s.dice.between(3, 6)) * np.float32(7) for way in (s.axis, s.across) * 2]


def farmland(s: Story) -> None:
    """A patchwork of crops in which some fields stand out."""
    c, d = s.canvas, s.dice
    count, colour, round_ = d.integer(1, 4), d.choice(("yellow", "brown", "white")), d.chance(35)
    greens = ((104, 132, 74), (88, 120, 70), (120, 142, 84), (96, 128, 88))
    draw.ground(c, "dry grass")
    base, rows = c.new("farmland"), crop_rows(s)
    du, dv = d.between(56, 70), d.between(44, 60)
    for spot in s.grid(8, 8, du, dv):
        c.paint(c.box(spot, s.axis, du - 2, dv - 2), d.choice(greens), base, 6, 7, pattern=d.choice(rows))
    ripe = {"yellow": (206, 180, 84), "brown": (142, 102, 72), "white": (228, 223, 208)}[colour]
    for spot in d.sample(s.grid(2, 2, du, dv) if not round_ else s.grid(2, 2, 74, 74), count):
        patch = c.disc(spot, 31) if round_ else c.box(spot, s.axis, du - 2, dv - 2)
        c.paint(patch, ripe, c.new("field"), grain=6, clouds=8, pattern=d.choice(rows))
    s.say("main", "field", count, colour, "round" if round_ else "")
    s.say("crops", "farmland", "many", "green", noun="piece of farmland")
    if d.chance(50):
        s.road(0, 8)
        s.say("other", "road", shape="narrow")


def forest(s: Story) -> None:
    """Trees everywhere, and something in a clearing."""
    c, d = s.canvas, s.dice
    draw.ground(c, "leaf")
    which = d.choice(("road", "river", "pond", "house", "lawn"))
    if which == "road":
        line = smooth([s.at(-230, 0), s.at(-60, d.between(-50, 50)), s.at(50, d.between(-50, 50)), s.at(230, 0)])
        draw.road(c, line, 9, marked=False)
        s.say("other", "road", shape=d.choice(("winding", "narrow")))
    elif which == "river":
        colour = d.choice(tuple(draw.WATERS))
        river_bed(s, d.between(14, 24), True, colour)
        s.say("other", "water", colour=colour, noun="river")
    elif which == "pond":
        colour = d.choice(("blue", "green"))
        draw.water(c, c.oval(s.origin, s.axis, d.between(60, 90), d.between(44, 60), rough=0.14), colour, "pond")
        s.say("other", "pond", 1, colour)
    elif which == "house":
        count, colour = d.integer(1, 3), d.choice(("red", "white", "gray"))
        for spot in d.sample(s.grid(2, 2, 60, 56), count):
            c.paint(c.oval(spot, s.axis, 52, 44, rough=0.12), draw.GROUNDS["grass"], grain=8)
            draw.house(c, spot, s.axis, 24, 17, colour)
        s.say("other", "house", count, colour)
    else:
        draw.lawn(c, c.oval(s.at(d.between(-24, 24), d.between(-24, 24)), s.axis, 88, 62, rough=0.2), "dry grass")
        s.say("other", "grass", noun="piece of meadow")
    c.trees(c.free(("background",), 8 if which == "house" else 3), d.choice((9.0, 12.0)), 94, draw.GROUNDS["leaf"])
    s.say("main", "tree", "many", d.choice(("green", "")), d.choice(("tall", "")))


def mountain(s: Story) -> None:
    """Ridges and valleys, perhaps with snow, a lake or a river."""
    c, d = s.canvas, s.dice
    colour, snow = d.choice(("green", "brown", "gray")), d.chance(45)
    tone = {"green": (78, 100, 66), "brown": (142, 112, 82), "gray": (132, 130, 128)}[colour]
    draw.mountains(c, tone, snow)
    s.say("main", "mountain", "", colour, noun="mountain")
    which = d.choice(("lake", "river", "road", ""))
    if which == "lake":
        tint = d.choice(("blue", "green"))
        spot = s.at(d.between(-36, 36), d.between(-36, 36))
        draw.water(c, c.oval(spot, s.axis, d.between(60, 88), d.between(40, 54), rough=0.2), tint)
        s.say("other", "water", 1, tint, noun="lake")
    elif which == "river":
        tint = d.choice(tuple(draw.WATERS))
        river_bed(s, d.between(9, 15), True, tint)
        s.say("other", "water", 1, tint, noun="river")
    elif which == "road":
        line = smooth([s.at(-230, 0), s.at(-60, d.between(-60, 60)), s.at(50, d.between(-60, 60)), s.at(230, 0)])
        draw.road(c, line, 7, marked=False)
        s.say("other", "road", 1, shape="winding")
    if snow:
        s.say("extra", "snow", colour="white")


def meadow(s: Story) -> None:
    """A wide meadow with a few trees, cattle sheds or a path."""
    c, d = s.canvas, s.dice
    colour = d.choice(("green", "yellow"))
    tone = {"green": (108, 142, 78), "yellow": (168, 158, 98)}[colour]
    mown = c.stripes(s.across, d.between(9, 16), warp=8) * d.between(2, 7)
    c.paint(c.everywhere(), tone, c.new("grass"), grain=8, clouds=12, pattern=mown)
    s.say("main", "grass", colour=colour, noun="meadow")
    which = d.choice(("road", "house", "pond", "bare"))
    if which == "road":
        draw.road(c, [s.at(-230, -40), s.at(230, 30)], 9, marked=False)
        s.say("other", "road", 1, shape="narrow")
    elif which == "house":
        count, tint = d.integer(1, 3), d.choice(("red", "white", "gray"))
        for spot in d.sample(s.grid(2, 2, 56, 52), count):
            draw.house(c, spot, s.heading(), 26, 17, tint)
        s.say("other", "house", count, tint)
    elif which == "pond":
        tint = d.choice(("blue", "green"))
        draw.water(c, c.oval(s.origin, s.axis, d.between(34, 64), d.between(26, 44), rough=0.14), tint, "pond")
        s.say("other", "pond", 1, tint, "small")
    if d.chance(65):
        s.plant(d.choice((5, 12)), spacing=13)


def pond(s: Story) -> None:
    """A pond with islands or boats, houses or trees around."""
    c, d = s.canvas, s.dice
    draw.ground(c, d.choice(("grass", "dry grass", "soil")))
    colour, shape = d.choice(tuple(draw.WATERS)), d.choice(("round", "rectangular", "irregular"))
    long, wide = d.between(104, 124), d.between(84, 100)
    edges = {
        "round": lambda more: c.disc(s.origin, wide * 0.56 + more),
        "rectangular": lambda more: c.box(s.origin, s.axis, long + 2 * more, wide * 0.8 + 2 * more),
        "irregular": lambda more: c.oval(s.origin, s.axis, long + 2 * more, wide + 2 * more, rough=0.24),
    }
    c.paint(edges[shape](4), draw.GROUNDS["concrete" if shape != "irregular" else "soil"], grain=6)
    draw.water(c, edges[shape](0), colour, "pond")
    s.say("main", "pond", 1, colour, shape)
    which = d.choice(("island", "boat", ""))
    count = d.integer(1, 3)
    if which == "island":
        for spot in d.sample(s.grid(2, 2, 42, 38), count):
            c.paint(c.oval(spot, s.axis, 25, 19, rough=0.1), draw.GROUNDS["grass"], c.new("island"), grain=8)
        s.say("extra", "island", count, shape="small")
    elif which == "boat":
        tint = d.choice(("white", "red", "orange"))
        for spot in d.sample(s.grid(2, 2, 40, 34), count):
            draw.boat(c, spot, s.heading(), 19, tint)
        s.say("extra", "boat", count, tint)
    if d.chance(50):
        s.road(86, 11, cars=d.integer(0, 3))
        s.say("other", "road", 1)
    else:
        tint, houses = d.choice(("red", "gray", "white")), d.integer(2, 4)
        for spot in s.grid(houses, 1, 36, 0, v=80):
            draw.house(c, spot, s.axis, 24, 16, tint)
        s.say("other", "house", houses, tint)
    s.plant(d.choice((20, 70)))


def river(s: Story) -> None:
    """A river between two banks."""
    c, d = s.canvas, s.dice
    curved, colour = d.chance(60), d.choice(tuple(draw.WATERS))
    banks = d.choice(("trees", "farmland", "houses"))
    draw.ground(c, "grass" if banks != "houses" else "dry grass")
    if banks == "farmland":
        rows = crop_rows(s)
        for spot in s.grid(6, 5, 56, 52):
            tone = draw.lighter(d.choice(((104, 132, 74), (150, 142, 88), (96, 128, 88))), d.between(-10, 10))
            c.paint(c.box(spot, s.axis, 53, 49), tone, c.new("farmland"), 6, 7, pattern=d.choice(rows))
    width = d.between(34, 60)
    course = river_bed(s, width, curved, colour)
    s.say("main", "water", 1, colour, "curved" if curved else "straight", noun="river")
    boats, tint = d.integer(0, 4), d.choice(("white", "red", "blue"))
    inner = [p for p in course if 24 < p[0] < 200 and 24 < p[1] < 200] if curved else s.grid(4, 1, 44, 0)
    step = max(1, len(inner) // 4)
    for i, spot in enumerate(inner[::step][:boats]):
        draw.boat(c, spot, s.axis if i % 2 else (-s.axis[0], -s.axis[1]), 19, tint)
    drawn = c.kinds.count("boat")
    if drawn:
        s.say("extra", "boat", drawn, tint)
    if banks == "houses":
        shade = d.choice(("red", "gray", "brown"))
        free = c.free(("background",), 15)
        for u, v in [(u, v) for v in (-84, -58, 58, 84) for u in range(-108, 109, 27)]:
            if c.sees(free, s.at(u, v)):
                draw.house(c, s.at(u, v), s.axis, 19, 13, shade)
        s.say("banks", "house", "many", shade)
    elif banks == "farmland":
        s.say("banks", "farmland", "many", noun="piece of farmland")
    s.plant(70 if banks == "trees" else 18)
