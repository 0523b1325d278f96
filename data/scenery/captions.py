"""How synthetic scenes are told: groups of things, put into phrases, put into sentences."""

import re
from dataclasses import dataclass

from data.scenery.canvas import Dice

NUMBERS = ("no", "a", "two", "three", "four", "five", "six")
# a relation that holds between two groups, and the ways to say it
RELATIONS: dict[str, tuple[str, ...]] = {
    "left": ("to the left of", "on the left of", "on the left side of"),
    "right": ("to the right of", "on the right of", "on the right side of"),
    "above": ("above",),
    "below": ("below",),
    "beside": ("beside", "near", "next to", "close to"),
}
OPPOSITE = {"left": "right", "right": "left", "above": "below", "below": "above", "beside": "beside"}


@dataclass(frozen=True)
class Group:
    """Things of one class that the captions speak of together.

    `kind` is their class (or, for rows of cars, a word of its own). `amount` is how many there are, up to
    six, or a word for what is not counted ("many", "some", "" for a single piece of ground). `colour` and
    `shape` are true of each of them. `members` are the rows of the scene's boxes (none for ground and plants,
    which have no boxes), `centre` is their middle in scene units.
    """

    kind: str
    noun: str
    amount: int | str
    colour: str = ""
    shape: str = ""
    members: tuple[int, ...] = ()
    centre: tuple[float, float] = (0.0, 0.0)

    @property
    def plural(self) -> bool:
        """Whether the group takes a plural verb."""
        return self.amount not in (1, "")


@dataclass(frozen=True)
class Phrase:
    """A group as one sentence words it: `{main}`, `{main.are}`, `{main.bare}` in a template."""

    group: Group
    amount: str
    adjectives: str

    def __str__(self) -> str:
        return f"{self.amount} {self.bare}"

    @property
    def bare(self) -> str:
        """Adjectives and noun."""
        noun = plural_of(self.group.noun) if self.group.plural else self.group.noun
        piece, of, stuff = noun.partition("s of " if self.group.plural else " of ")
        return f"{piece}{of}{self.adjectives} {stuff}" if of else f"{self.adjectives} {noun}".strip()

    @property
    def are(self) -> str:
        """The verb."""
        return "are" if self.group.plural else "is"

    @property
    def s(self) -> str:
        """The ending of a verb: stand`{main.s}`."""
        return "" if self.group.plural else "s"

    @property
    def es(self) -> str:
        """The ending of a verb after a hiss: cross`{main.es}`."""
        return "" if self.group.plural else "es"


def plural_of(noun: str) -> str:
    """The plural of a noun phrase: its last word, or the word before `of`, takes the ending.

    >>> [plural_of(noun) for noun in ("storage tank", "piece of farmland", "bush", "overpass")]
    ['storage tanks', 'pieces of farmland', 'bushes', 'overpasses']
    """
    head, of, rest = noun.partition(" of ")
    return head + ("es" if head.endswith(("s", "sh")) else "s") + of + rest


def word(group: Group, dice: Dice) -> Phrase:
    """Put a group into words: a number or a vaguer word that is as true, and some of its adjectives."""
    amount = group.amount
    if isinstance(amount, int):
        vague = amount >= 3 and dice.chance(15)
        amount = dice.choice(("several", "some")) if vague else NUMBERS[amount]
    said = [a for a in (group.shape, group.colour) if a and not dice.chance(15)]
    return Phrase(group, amount or "a", " ".join(said))


def wanted(template: str) -> set[str]:
    """The groups that a template speaks of.

    >>> sorted(wanted("{main} {main.are} {rel} {other} ."))
    ['main', 'other']
    """
    return set(re.findall(r"{(\w+)", template)) - {"rel", "inverse", "near"}


def tell(templates: tuple[str, ...], groups: dict[str, Group], relation: str, dice: Dice) -> list[str]:
    """Say a scene in up to five different sentences, from templates whose groups the scene has.

    `relation` is the key of RELATIONS that holds from group `main` to group `other`.
    """
    fitting = [t for t in templates if wanted(t) <= groups.keys()]
    sentences: list[str] = []
    for attempt in range(20):
        if attempt % len(fitting) == 0:
            order = dice.sample(fitting, len(fitting))
        slots: dict[str, object] = {role: word(group, dice) for role, group in groups.items()}
        slots["rel"], slots["inverse"], slots["near"] = (
            dice.choice(RELATIONS[name]) for name in (relation, OPPOSITE[relation], "beside")
        )
        sentence = " ".join(order[attempt % len(fitting)].format(**slots).split())
        sentence = re.sub(r"\ba (?=[aeiou])", "an ", sentence)
        if sentence not in sentences:
            sentences.append(sentence)
    return sentences[:5]
