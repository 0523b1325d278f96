"""The classes of what synthetic scenes hold, and the words of captions that name them."""

# what fills areas and is not counted: it stands in the mask but has no boxes
STUFF: dict[str, tuple[str, ...]] = {
    "background": (),
    "tree": ("tree", "trees", "forest", "bushes"),
    "grass": ("grass", "meadow", "lawn", "lawns"),
    "water": ("water", "river", "sea", "lake"),
    "sand": ("beach", "desert", "dunes"),
    "mountain": ("mountain", "ridges"),
    "snow": ("snow",),
    "farmland": ("farmland",),
    "pavement": ("apron", "terrace"),
    "road": ("road", "roads"),
    "railway": ("tracks", "track"),
}
# what is counted: each instance has a box
THINGS: dict[str, tuple[str, ...]] = {
    "plane": ("plane", "planes"),
    "runway": ("runway", "runways"),
    "terminal": ("terminal",),
    "baseball field": ("baseball",),
    "umbrella": ("umbrella", "umbrellas"),
    "boat": ("boat", "boats"),
    "bridge": ("bridge", "bridges"),
    "house": ("house", "houses"),
    "building": ("building", "buildings"),
    "pond": ("pond", "ponds", "fountain"),
    "rock": ("rock", "rocks"),
    "field": ("field", "fields"),
    "car": ("car", "cars"),
    "parking lot": ("parking", "lot"),
    "running track": ("track",),
    "football field": ("football",),
    "court": ("court", "courts"),
    "island": ("island", "islands"),
    "pier": ("pier", "piers"),
    "container": ("container", "containers"),
    "train": ("train", "trains"),
    "station": ("station",),
    "pool": ("pool", "pools"),
    "square": ("square",),
    "monument": ("monument",),
    "stadium": ("stadium",),
    "storage tank": ("tank", "tanks"),
    "overpass": ("overpass", "overpasses", "viaduct"),
}
# a thing of which less is seen, at the border or under a bridge, has no box (scene units)
MIN_SIDE = 3
# class -> the words of captions that name it
NOUNS: dict[str, tuple[str, ...]] = {**STUFF, **THINGS}
CLASSES: tuple[str, ...] = tuple(NOUNS)
