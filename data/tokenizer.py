r"""Penn Treebank tokens of a caption, as coco-caption counts them, without Java.

The scores of the literature are taken on what pycocoevalcap 1.2 makes of a caption: Stanford's PTBTokenizer
(CoreNLP 3.4.1, `-preserveLines -lowerCase`), whose punctuation tokens are then dropped. `tokenize` gives the
same tokens. It was written from the tokens the original gives, not from its grammar: a table of patterns of
which the longest match wins, as in the lexer generators of that time, consulted only where a caption is more
than plain words.
"""

import re
from collections.abc import Callable
from typing import NamedTuple

# Tokens that coco-caption drops. Brackets stay: it looks for `-LRB-` after everything was lowercased to
# `-lrb-`.
PUNCTUATION = frozenset(["''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"])

# Words that keep their full stop wherever they stand.
_ABBREVIATIONS = [
    "jan",
    "feb",
    "mar",
    "apr",
    "jun",
    "jul",
    "aug",
    "sep",
    "sept",
    "oct",
    "nov",
    "dec",
    "mon",
    "tue",
    "tues",
    "wed",
    "thu",
    "thurs",
    "fri",
    "mr",
    "mrs",
    "ms",
    "mme",
    "mlle",
    "dr",
    "drs",
    "prof",
    "st",
    "ste",
    "sr",
    "jr",
    "esq",
    "hon",
    "rev",
    "rep",
    "reps",
    "sen",
    "sens",
    "gov",
    "govs",
    "gen",
    "col",
    "capt",
    "lt",
    "maj",
    "cpl",
    "sgt",
    "pvt",
    "pfc",
    "sfc",
    "spc",
    "cmdr",
    "adm",
    "brig",
    "insp",
    "det",
    "ens",
    "atty",
    "msgr",
    "messrs",
    "supt",
    "asst",
    "pres",
    "ph",
    "ala",
    "ariz",
    "calif",
    "colo",
    "conn",
    "ct",
    "dak",
    "fla",
    "ga",
    "ind",
    "kan",
    "kans",
    "ky",
    "md",
    "mich",
    "minn",
    "mo",
    "mont",
    "neb",
    "nev",
    "okla",
    "penn",
    "tenn",
    "va",
    "vt",
    "wis",
    "wisc",
    "wyo",
    "al",
    "ave",
    "blvd",
    "bldg",
    "rd",
    "rt",
    "mt",
    "ft",
    "sq",
    "assn",
    "assoc",
    "bros",
    "cie",
    "co",
    "corp",
    "cos",
    "dept",
    "inc",
    "intl",
    "invt",
    "ltd",
    "mfg",
    "mtg",
    "natl",
    "plc",
    "ppte",
    "ppty",
    "pte",
    "ptes",
    "pty",
    "ptys",
    "bhd",
    "univ",
    "adj",
    "adv",
    "cf",
    "elec",
    "est",
    "etc",
    "ext",
    "seq",
    "sys",
    "tel",
    "vs",
    "alex",
    "jos",
    "wm",
]
# Words that keep it before a number: `no. 5`, `fig. 2`.
_NUMBERED = ["art", "ca", "fig", "figs", "no", "nos", "op", "pp", "prop"]
# One word in writing, two in the Treebank.
_SPLIT = ["(can)not", "(gim)me", "(gon)na", "(got)ta", "(lem)me", "(wan)na"]

_NAMES = {
    "L": r"[^\W\d_]",  # a letter
    "W": r"[^\W_]",  # a letter or a digit
    "APOSTROPHE": "['\u2019\x92]",
    "ABBREVIATION": "(?:" + "|".join(_ABBREVIATIONS) + ")",
    "NUMBERED": "(?:" + "|".join(_NUMBERED) + ")",
}


class _Rule(NamedTuple):
    """What the lexer knows of one kind of token: `pattern` is its text (group 1) and what must follow it."""

    pattern: re.Pattern[str]
    token: Callable[[str], str] | None = None  # how the token is written, where not as in the text


def _rule(pattern: str, token: Callable[[str], str] | None = None) -> _Rule:
    for name, text in _NAMES.items():
        pattern = pattern.replace(f"<{name}>", text)
    return _Rule(re.compile(pattern, re.IGNORECASE), token)


_WRITTEN = {
    "(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-",
    "¢": "cents", "£": "#", "€": "$", "\x80": "$", "\u20a0": "$", "¤": "$",
    "¼": "1/4", "½": "1/2", "¾": "3/4", "⅓": "1/3", "⅔": "2/3",
    "…": "...", "–": "--", "—": "--", "―": "--", "\x96": "--", "\x97": "--", "\xad": "-",
    "›": "'", "‘": "`", "‛": "`", "‹": "`", "\x91": "`",
    "“": "``", "«": "``", "\x93": "``", "”": "''", "»": "''", "\x94": "''", '"': "''",
}  # fmt: skip


def _brackets(text: str) -> str:
    return text.replace("(", "-lrb-").replace(")", "-rrb-").replace(" ", "\u00a0")


_RULES = [
    *(_rule(word) for word in _SPLIT),
    # Words, with what may stand inside them.
    _rule(r"(<L><W>*(?:[.!?]<L><W>*)*)"),
    _rule(r"([a-z0-9]+(?:[-_]<W>+)+)"),
    _rule(r"([a-z0-9][a-z0-9.,]*(?:-<W>+)+)"),
    _rule(r"(<W>+(?:-<L>+){0,2}(?:/<W>+(?:-<L>+){0,2}){1,2})"),
    _rule(r"((?:<L>\.)+)"),
    _rule(r"(<ABBREVIATION>\.)"),
    _rule(r"(<NUMBERED>\.)\s+\d"),
    # Contractions.
    _rule(r"(<L><W>*?)n<APOSTROPHE>t(?!<L>)"),
    _rule(r"(n<APOSTROPHE>t)(?!<L>)"),
    _rule(r"(<APOSTROPHE>(?:s|m|d|ll|re|ve))(?!<L>)"),
    _rule(r"(<APOSTROPHE>(?:em|till?|cause|n<APOSTROPHE>?|[2-9]0s?))"),
    _rule(r"((?-i:[A-HJ-XZn])<APOSTROPHE><L>{2,}|[dol]<APOSTROPHE><W>{2,})"),
    _rule(r"(<L>+[aeiouy]<APOSTROPHE>(?-i:[aeiouA-Z])<L>*)"),
    _rule(r"(<APOSTROPHE>\d\d)\s"),
    _rule(r"(<W>+(?:[-_]<W>+)*\.)[,;:]"),
    _rule(r"(<APOSTROPHE>t)(?:is|was)"),
    _rule(r"(o<APOSTROPHE>clock|d<APOSTROPHE>ye|[dlj]<APOSTROPHE>|(?:ol|y|dunkin)<APOSTROPHE>|nor<APOSTROPHE>easter|c<APOSTROPHE>mon|e<APOSTROPHE>er|s<APOSTROPHE>mores|ev<APOSTROPHE>ry|li<APOSTROPHE>l|nat<APOSTROPHE>l|o<APOSTROPHE>o)"),
    # Numbers.
    _rule(r"(\d+<L>+\d*(?:<W>*)|[-+]?(?:\d*(?:[.:,]\d+)+|\d+))"),
    _rule(r"((?:\d{1,4}[- \u00a0])?\d{1,4}/\d{1,4})", _brackets),
    _rule(r"(\d{1,2}[-/]\d{1,2}[-/]\d{2,4})"),
    # Names of the net.
    _rule(r"(https?://[^\s\"<>|()]+[^\s\"<>|.!?(){},-])"),
    _rule(r"([a-z0-9][^\s\"<>|()]*@(?:[^\s\"<>|().]+\.)*[^\s\"<>|().]+)"),
    _rule(r"(#<L>+|@[a-z_][a-z_0-9]*)"),
    # Marks.
    _rule(r"(</?[a-z!?][^<>\n]*>)", _brackets),
    _rule(r"([<>]?[:;=](?-i:[-o*']?[()DPdpO\\{@|\[\]]))(?!<W>)", _brackets),
    _rule(r"(-{2,4})", lambda text: "--"),
    _rule(r"([-^x=~<>']_[-^x=~<>'])"),
    _rule(r"([?!]+|\.{3,5}|-{5,}|``|''|\\?\*+|#+|_+|@+|<<|>>)"),
    _rule(r"(\S)", lambda text: _WRITTEN.get(text, text)),
]

# Plain words, each with at most one comma or full stop behind it; of these only a few are more than they
# seem.
_PLAIN = re.compile(r"(?:[a-z]+(?:-[a-z]+)*[,.]?(?:\s+[,.](?=\s|$))?(?:\s+|$))*", re.ASCII)
_WORD = re.compile(r"[a-z]+(?:-[a-z]+)*")
_DOTTED = re.compile(r"([a-z]+)\.")
_KEEP_THEIR_STOP = frozenset([*_ABBREVIATIONS, *_NUMBERED, *"abcdefghijklmnopqrstuvwxyz"])
_TWO_WORDS = frozenset(word.replace("(", "").replace(")", "") for word in _SPLIT)


def tokenize(caption: str) -> list[str]:
    """Split a caption into lowercase Penn Treebank tokens without punctuation.

    Args:
        caption: any text; all white space, line ends of every kind included, separates words.

    Returns:
        What pycocoevalcap 1.2's `PTBTokenizer` gives for this caption alone.

    Example:
        >>> tokenize("Two-storey buildings (red) aren't near St. Mary's, I think.")
        ['two-storey', 'buildings', '-lrb-', 'red', '-rrb-', 'are', "n't", 'near', 'st.', 'mary', "'s", 'i', 'think']
    """
    text = caption.lower()
    if _PLAIN.fullmatch(text) and _KEEP_THEIR_STOP.isdisjoint(_DOTTED.findall(text)):
        words = _WORD.findall(text)
        if _TWO_WORDS.isdisjoint(words):
            return words
    return _lex(caption)


def _lex(caption: str) -> list[str]:
    """Cut the caption into the longest matches of the rules, of equally long ones the first."""
    tokens = []
    caption = " ".join(caption.split())
    position = 0
    while position < len(caption):
        best: re.Match[str] | None = None
        rule = None
        for candidate in _RULES:
            match = candidate.pattern.match(caption, position)
            if match and (best is None or match.end() > best.end()):
                best, rule = match, candidate
        if best is None or rule is None:
            position += 1
            continue
        position = best.end(1)
        text = best.group(1)
        token = re.sub("[’\x92]", "'", rule.token(text) if rule.token else text).lower()
        if token not in PUNCTUATION:
            tokens.append(token)
    return tokens
