"""Scene types that people built: airport, bridge, residential area, port, stadium and their like."""

from data.scenery import objects as draw
from data.scenery.canvas import along
from data.scenery.story import CAR_COLOURS, Story, parking_lot, river_bed


def airport(s: Story) -> None:
    """Planes on an apron before a terminal, runways behind."""
    c, d = s.canvas, s.dice
    draw.ground(c, d.choice(("grass", "dry grass")), "grass")
    count, colour, runways = d.integer(1, 5), d.choice(("white", "blue", "red", "orange")), d.integer(1, 2)
    for v in (-60, -88)[:runways]:
        draw.runway(c, s.at(0, v), s.axis, 18)
    c.paint(c.box(s.at(0, 18), s.axis, 330, 84), draw.GROUNDS["concrete"], c.new("pavement"), grain=4, clouds=8)
    for u in range(-140, 141, 35):
        c.darken(c.box(s.at(u, 18), s.across, 84, 0.9), 0.12)
    shade = d.choice(("gray", "white", "brown"))
    draw.building(c, s.at(0, 54), s.axis, 120, 24, shade, 7, kind="terminal")
    for spot in d.sample(s.grid(5, 1, 33, 0, v=8), count):
        draw.plane(c, spot, s.across, 30, colour)
    s.say("main", "plane", count, colour)
    s.say("other", "terminal", 1, shade, noun="terminal building")
    s.say("extra", "runway", runways)


def baseballfield(s: Story) -> None:
    """One to four baseball fields on grass."""
    c, d = s.canvas, s.dice
    draw.ground(c, d.choice(("grass", "dry grass")), "grass")
    s.beside(74, "road", "parking lot", "building")
    count = d.integer(1, 4)
    if count == 1:
        spots, radius = s.grid(1, 1, 0, 0, v=-14), d.choice((40.0, 50.0))
    elif count == 2:
        spots, radius = s.grid(2, 1, 84, 0, v=-14), 38.0
    else:
        spots, radius = d.sample(s.grid(2, 2, 78, 68, v=-22), count), 31.0
    for spot in spots:
        draw.baseball_field(c, spot, s.heading(), radius)
    s.say("main", "baseball field", count, shape="large" if radius > 45 else "")
    s.plant(d.choice((15, 45)))


def bridge(s: Story) -> None:
    """Bridges over a river, boats below."""
    c, d = s.canvas, s.dice
    draw.ground(c, d.choice(("grass", "soil", "dry grass")))
    width, water = d.between(54, 84), d.choice(tuple(draw.WATERS))
    river_bed(s, width, False, water)
    count, boats, colour = d.integer(1, 3), d.integer(0, 4), d.choice(("white", "gray", "red"))
    places = d.sample((-66, 0, 66), count)
    for u in places:
        draw.road(c, [s.at(u, -230), s.at(u, 230)], 13)
        draw.bridge(c, s.at(u, 0), s.across, width + 22, 17, colour)
        for v in d.sample(range(-90, 91, 30), d.integer(0, 3)):
            draw.car(c, s.at(u + d.choice((-4, 4)), v), s.across, d.choice(CAR_COLOURS))
    tint = d.choice(("white", "red", "blue"))
    for spot in d.sample(s.grid(2, 2, 66, width * 0.44), boats):
        draw.boat(c, spot, s.axis, 20, tint)
    s.say("main", "bridge", count, colour)
    s.say("other", "water", colour=water, noun="river")
    if boats:
        s.say("extra", "boat", boats, tint)
    if d.chance(40):
        for spot in [s.at(u, side * (width / 2 + 30)) for u in (-33, 33) for side in (-1, 1)]:
            draw.house(c, spot, s.axis, 20, 14, d.choice(("red", "gray", "brown")))
        s.say("banks", "house", "some")
    s.plant(d.choice((20, 60)))


def commercial(s: Story) -> None:
    """Tall buildings along streets."""
    c, d = s.canvas, s.dice
    draw.ground(c, "concrete")
    roads, colour = d.integer(1, 2), d.choice(("gray", "white", "brown", "blue"))
    s.road(0, 16, cars=4)
    if roads == 2:
        draw.road(c, [s.at(0, -230), s.at(0, 230)], 16)
    blocks = [(u, v) for v in (-92, -34, 34, 92) for u in (-130, -82, -33, 33, 82, 130)]
    for spot in [s.at(u, v) for u, v in blocks]:
        if -25 < spot[0] < 249 and -25 < spot[1] < 249:
            draw.building(c, spot, s.axis, d.between(26, 38), d.between(28, 40), colour, d.between(8, 17))
    s.say("main", "building", "many", colour, d.choice(("tall", "")))
    s.say("other", "road", roads)
    s.plant(d.choice((8, 40)), spacing=8)


def residential(s: Story, columns: int, rows: int, du: float, dv: float, percent: int) -> int:
    """Houses of one roof colour in rows, with streets between some rows; gives how many streets there are."""
    c, d = s.canvas, s.dice
    roads = d.integer(1, 2)
    streets = (0.0,) if roads == 1 else (-1.5 * dv, 1.5 * dv)
    for v in streets:
        s.road(v, 10, cars=d.integer(0, 4))
    colour = d.choice(("red", "gray", "blue", "brown", "white"))
    for spot in s.grid(columns, rows, du, dv):
        v = (spot[0] - s.origin[0]) * s.across[0] + (spot[1] - s.origin[1]) * s.across[1]
        if not d.chance(6) and all(abs(v - street) > dv * 0.45 for street in streets):
            place = along(spot, s.axis, d.between(-0.06, 0.06) * du, d.between(-0.06, 0.06) * dv)
            draw.house(c, place, s.axis, du * d.between(0.6, 0.78), dv * d.between(0.5, 0.62), colour)
    s.say("main", "house", "many", colour)
    s.say("other", "road", roads)
    s.plant(percent, spacing=8)
    return roads


def denseresidential(s: Story) -> None:
    """Rows of many small houses."""
    draw.ground(s.canvas, s.dice.choice(("concrete", "soil")))
    residential(s, 15, 13, 20, 19, s.dice.choice((12, 60)))


def mediumresidential(s: Story) -> None:
    """Rows of houses with gardens."""
    draw.ground(s.canvas, "grass", "grass")
    residential(s, 7, 7, 42, 38, s.dice.choice((14, 40)))


def sparseresidential(s: Story) -> None:
    """One to four houses among trees."""
    c, d = s.canvas, s.dice
    draw.ground(c, d.choice(("grass", "dry grass")), "grass")
    count, colour = d.integer(1, 4), d.choice(("red", "gray", "blue", "brown", "white"))
    s.beside(70, "pond", "road")
    for spot in d.sample(s.grid(3, 2, 46, 40, v=-26), count):
        draw.house(c, spot, s.heading(), d.between(24, 32), 19, colour)
    s.say("main", "house", count, colour)
    if d.chance(40):
        draw.pool(c, s.at(0, 24), s.axis, 20, 11)
        s.say("extra", "pool", 1, noun="swimming pool")
    s.plant(d.choice((18, 75)))


def industrial(s: Story) -> None:
    """Factory halls in rows, with a yard of containers and a road."""
    c, d = s.canvas, s.dice
    draw.ground(c, d.choice(("concrete", "soil")))
    count, colour = d.integer(2, 6), d.choice(("blue", "white", "gray", "red"))
    s.beside(82, "road", "parking lot")
    for spot in d.sample(s.grid(2, 3, 78, 40, v=-26), count):
        draw.hall(c, spot, s.axis, d.between(58, 68), 28, colour)
    s.say("main", "building", count, colour, d.choice(("large", "")))
    for spot in s.grid(2, 1, 78, 0, v=52):
        draw.containers(c, spot, s.axis, d.integer(1, 4), 2)
    s.plant(d.choice((8, 40)))


def parking(s: Story) -> None:
    """A parking lot with rows of cars beside a building, a road or a lawn."""
    c, d = s.canvas, s.dice
    draw.ground(c, d.choice(("concrete", "grass", "soil")))
    rows, full = d.integer(2, 5), d.chance(60)
    s.beside(78, "building", "road", "pond")
    parking_lot(s, -24, rows, 17, 92 if full else 35)
    s.say("main", "parking lot", 1, shape=d.choice(("large", "")))
    s.say("rows", "row", rows, noun="row of cars")
    s.say("extra", "car", "many" if full else "some")
    s.plant(d.choice((15, 60)))


def playground(s: Story) -> None:
    """A running track around a football field, courts beside it."""
    c, d = s.canvas, s.dice
    draw.ground(c, d.choice(("concrete", "grass", "soil")))
    colour, courts, tint = (
        d.choice(("red", "blue", "orange")),
        d.integer(0, 4),
        d.choice(("blue", "green", "red")),
    )
    draw.running_track(c, s.at(0, -24), s.axis, d.between(136, 150), colour)
    s.say("main", "running track", 1, colour)
    s.say("field", "football field", 1, "green")
    if courts:
        sport = d.choice(("tennis", "basketball"))
        for spot in s.grid(courts, 1, 38, 0, v=58):
            draw.court(c, spot, s.across, 35, tint, sport)
        s.say("other", "court", courts, tint, noun=f"{sport} court")
    else:
        s.beside(64, "road", "building", "parking lot")
    s.plant(d.choice((15, 60)))


def port(s: Story) -> None:
    """Boats at the piers of a quay."""
    c, d = s.canvas, s.dice
    draw.ground(c, "concrete")
    colour, piers = d.choice(("blue", "green")), d.integer(1, 3)
    edge = -38.0
    c.darken(c.beyond(s.at(0, edge - 3), s.across), 0.4)
    draw.water(c, c.beyond(s.at(0, edge), s.across), colour)
    for u in s.grid(piers, 1, 68, 0):
        end = along(u, s.across, edge + 42)
        pier = c.box(end, s.across, 96, 9)
        c.shadow(pier, 4)
        c.paint(pier, (176, 170, 158), c.new("pier"), pattern=c.stripes(s.across, 5) * 6)
    boats, tint = d.integer(1, 6), d.choice(("white", "red", "blue", "orange"))
    berths = [
        s.at((i - (piers - 1) / 2) * 68 + side * 17, v) for i in range(piers) for side in (-1, 1) for v in (-12, 14, 40)
    ]
    for spot in d.sample(berths, boats):
        draw.boat(c, spot, s.axis if d.chance(50) else (-s.axis[0], -s.axis[1]), 23, tint)
    s.say("main", "boat", boats, tint)
    s.say("extra", "pier", piers)
    which = d.choice(("containers", "building"))
    if which == "containers":
        for spot in s.grid(3, 1, 58, 0, v=-66):
            draw.containers(c, spot, s.axis, d.integer(2, 4), 3)
        s.say("other", "container", "many")
    else:
        shade = d.choice(("red", "gray", "white"))
        draw.hall(c, s.at(0, -66), s.axis, 96, 26, shade)
        s.say("other", "building", 1, shade)
    s.road(-96, 12, cars=2)
    s.say("sea", "water", colour=colour, noun="sea")


def railwaystation(s: Story) -> None:
    """Trains on parallel tracks beside a station hall."""
    c, d = s.canvas, s.dice
    draw.ground(c, d.choice(("concrete", "soil")))
    tracks, colour = d.integer(2, 5), d.choice(("blue", "red", "white", "green"))
    trains = d.integer(1, min(tracks, 4))
    places = [(i - (tracks - 1) / 2) * 17 + 24 for i in range(tracks)]
    for v in places:
        draw.rails(c, s.at(0, v), s.axis)
    for v in d.sample(places, trains):
        draw.train(c, s.at(d.between(-26, 26), v), s.axis, d.integer(4, 6), colour)
    shade = d.choice(("gray", "red", "blue", "white"))
    draw.hall(c, s.at(0, -52), s.axis, d.between(110, 140), 36, shade, kind="station")
    s.say("main", "train", trains, colour)
    s.say("other", "station", 1, shade, noun="railway station")
    s.say("extra", "railway", tracks, noun="railway track")
    s.plant(d.choice((15, 50)))


def resort(s: Story) -> None:
    """Hotels around swimming pools."""
    c, d = s.canvas, s.dice
    draw.ground(c, "grass", "grass")
    count, pools, colour = d.integer(1, 4), d.integer(1, 3), d.choice(("white", "red", "brown"))
    for i, spot in enumerate(d.sample([*s.grid(2, 1, 84, 0, v=-62), *s.grid(2, 1, 84, 0, v=62)], count)):
        draw.building(c, spot, s.axis, 66 - 4 * (i % 2), 30, colour, 9)
    c.paint(
        c.box(s.origin, s.axis, 154, 52),
        (206, 196, 176),
        c.new("pavement"),
        grain=5,
        pattern=c.stripes(s.axis, 6) * 3,
    )
    for spot in d.sample(s.grid(3, 1, 46, 0), pools):
        draw.pool(c, spot, s.heading(), d.between(26, 32), d.between(17, 23))
    for spot in s.grid(8, 2, 20, 45):
        if d.chance(60):
            c.paint(c.disc(spot, 2.6), (238, 226, 196))
    s.say("main", "building", count, colour)
    s.say("other", "pool", pools, "blue", noun="swimming pool")
    s.plant(d.choice((20, 60)))


def square(s: Story) -> None:
    """A paved square with a round lawn, paths and lamps in its middle."""
    c, d = s.canvas, s.dice
    draw.ground(c, d.choice(("concrete", "asphalt")))
    colour, round_ = d.choice(("red", "gray", "yellow")), d.chance(50)
    tone = {"red": (176, 112, 92), "gray": (138, 137, 134), "yellow": (216, 196, 142)}[colour]
    rim, owner = draw.lighter(tone, 36), c.new("square")
    for share, paving in ((1.0, rim), (0.94, tone), (0.6, rim), (0.56, tone)):
        long, wide = 124 * share, 112 * share
        outline = c.disc(s.origin, long / 2) if round_ else c.box(s.origin, s.axis, long, wide)
        c.paint(outline, paving, owner, grain=5, pattern=c.stripes(s.axis, 5) * 4)
    lawns = d.choice((0, 4))
    for spot in s.grid(2, 2, 46, 46)[:lawns]:
        draw.lawn(c, c.disc(spot, 15))
    which = d.choice(("pond", "building", "monument"))
    if which == "pond":
        draw.water(c, c.disc(s.origin, 15), "blue", "pond")
        s.say("other", "pond", 1, "blue", noun="fountain")
    elif which == "building":
        shade = d.choice(("white", "red", "brown"))
        draw.building(c, s.origin, s.axis, 34, 26, shade, 8)
        s.say("other", "building", 1, shade)
    else:
        draw.monument(c, s.origin, s.axis)
        s.say("other", "monument", 1, shape="tall")
    s.say("main", "square", 1, colour, "round" if round_ else "rectangular")
    s.road(86, 12, cars=3)
    s.road(-86, 12, cars=3)
    s.plant(d.choice((20, 60)))


def stadium(s: Story) -> None:
    """A stadium with a football field, parked cars or a road beside."""
    c, d = s.canvas, s.dice
    draw.ground(c, d.choice(("concrete", "grass", "dry grass")))
    colour, oval, size = d.choice(("white", "gray", "red", "blue")), d.chance(55), d.between(118, 138)
    s.beside(76, "road", "parking lot", "pond")
    draw.stadium(c, s.at(0, -20), s.axis, size, colour, oval)
    s.say("main", "stadium", 1, colour, "oval" if oval else "rectangular")
    s.say("field", "football field", 1, "green")
    s.plant(d.choice((15, 60)))


def storagetanks(s: Story) -> None:
    """Round tanks on bare ground beside a pond, a road or a building."""
    c, d = s.canvas, s.dice
    draw.ground(c, d.choice(("soil", "concrete", "dry grass")))
    count, colour = d.integer(1, 6), d.choice(("white", "gray", "green", "red"))
    radius = 14.0 if count > 4 else d.choice((13.0, 21.0))
    s.beside(68, "pond", "road", "building")
    columns, rows = (3, 2) if radius < 20 else (2, 2)
    for spot in d.sample(s.grid(columns, rows, 2.7 * radius, 2.7 * radius, v=-22), count):
        draw.tank(c, spot, radius, colour)
    s.say("main", "storage tank", count, colour, "large" if radius > 20 else "")
    s.plant(d.choice((10, 45)))


def viaduct(s: Story) -> None:
    """Roads that cross over each other, with ramps."""
    c, d = s.canvas, s.dice
    draw.ground(c, d.choice(("grass", "dry grass", "concrete")))
    loops, roads = d.integer(0, 4), d.integer(1, 3)
    corners = d.sample([(1, 1), (1, -1), (-1, 1), (-1, -1)], loops)
    for x, y in corners:
        centre = s.at(x * 34, y * 34)
        for reach, tone in ((27.0, draw.GROUNDS["concrete"]), (25.5, draw.GROUNDS["asphalt"])):
            c.paint(c.disc(centre, reach), tone, c.new("road"), grain=5)
        draw.lawn(c, c.disc(centre, 17))
    s.road(0, 19, cars=5)
    places = {1: (0,), 2: (-34, 34), 3: (-52, 0, 52)}[roads]
    for u in places:
        draw.overpass(c, s.at(u, 0), s.across, 17)
        for v in d.sample(range(-90, 91, 20), d.integer(2, 4)):
            draw.car(c, s.at(u + d.choice((-4, 4)), v), s.across, d.choice(CAR_COLOURS))
    s.say("main", "overpass", roads)
    s.say("other", "road", 1)
    if d.chance(50):
        shade = d.choice(("red", "gray", "white", "blue"))
        spots = [p for p in s.grid(2, 2, 148, 148) if 20 < p[0] < 204 and 20 < p[1] < 204]
        for spot in spots:
            draw.building(c, spot, s.axis, 30, 24, shade, 8)
        if len(spots) > 1:
            s.say("extra", "building", "some", shade)
    s.plant(d.choice((15, 55)))
