"""Penn Treebank tokens of a caption, as coco-caption counts them, without Java.

The scores of the literature are taken on what pycocoevalcap 1.2 makes of a caption: Stanford's PTBTokenizer
(CoreNLP 3.4.1, `-preserveLines -lowerCase`), whose punctuation tokens are then dropped. `tokenize` gives the
same tokens. It was written from the tokens that the original gives, not from its grammar: a table of patterns
of which the longest match wins, consulted only where a caption is more than plain words.

It differs from the original on purpose where that lets one caption touch another: carriage return, form feed,
U+2028 and the like end a caption there and shift all that follow, and whether the full stop of a last `no.`
or `B.` is kept depends on the next caption's first word. It differs without purpose on what captions do not
hold: letters and symbols that came to Unicode after about 2008, combining marks of scripts beyond Latin,
Greek, Cyrillic, Hebrew, Arabic, Devanagari and Thai, malformed XML tags, and characters beyond the Basic
Multilingual Plane inside a URL.
"""

import re
from collections.abc import Callable
from typing import NamedTuple

# Tokens that coco-caption drops. Brackets stay: it looks for `-LRB-`, after all was lowercased to `-lrb-`.
PUNCTUATION = frozenset(["''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"])

# Words that keep their full stop: those that may end a sentence, those that do not, those before a number.
_ENDING = (
    "jan|feb|mar|apr|jun|jul|aug|sep|sept|oct|nov|dec|mon|tue|tues|wed|thu|thurs|fri|sr|jr|esq|est|etc|ext|seq"
    "|ala|ariz|calif|colo|conn|ct|dak|fla|ga|ind|kan|kans|ky|md|mich|minn|mo|mont|neb|nev|okla|penn|tenn|va|vt"
    "|wis|wisc|wyo|al|blvd|bldg|rd|rt|sq|sys|tel|assn|bros|co|corp|cos|inc|intl|ltd|plc|ppte|ppty|pte|ptes|pty"
    "|ptys|bhd|univ"
)
_LEADING = (
    "mr|mrs|ms|mme|mlle|dr|drs|prof|st|ste|hon|rev|rep|reps|sen|sens|gov|govs|gen|col|capt|lt|maj|cpl|sgt|pvt"
    "|pfc|sfc|spc|cmdr|adm|brig|insp|det|ens|atty|msgr|messrs|supt|asst|pres|ph|ave|mt|ft|assoc|cie|dept|invt"
    "|mfg|mtg|natl|adj|adv|cf|elec|vs|alex|jos|wm"
)
_NUMBERED = "art|ca|fig|figs|no|nos|op|pp|prop"
# Words that open a sentence, so that a letter and a full stop before them are not an initial.
_OPENING = (
    "a|about|according|additionally|after|an|as|at|but|earlier|he|her|here|however|if|in|it|last|many|more|now"
    "|once|one|other|our|she|since|so|some|such|that|the|their|then|there|these|they|this|we|what|when|while|yet"
    "|you"
)
# Names of files, where white space or a mark follows.
_SUFFIX = (
    "bat|bmp|c|cgi|class|cpp|dll|docx?|exe|gif|gz|h|html?|jar|java|jpe?g|mov|mp3|pdf|php|pl|png|ppt|ps|py|sql|tar"
    "|txt|wav|x|xml|zip"
)
_PATH = r"(?:/[^ \n\"<>|()]+[^ \n\"<>|.!?(){},-])?"

# Numerals that are no digits: Python counts them among the letters of `\w`.
_NUMERALS = (
    r"²³¹¼-¾\u2070\u2074-\u2079\u2080-\u2089\u2150-\u2182\u2185-\u218b\u2460-\u24ff\u2776-\u2793"
    r"\u3007\u3021-\u3029\u3038-\u303a"
)
# Combining marks and modifiers, parts of a word, of the scripts that a caption is likely to hold.
_MARKS = (
    r"\u02c2-\u02c5\u02d2-\u02df\u02e5-\u02eb\u02ed\u02ef-\u036f\u0375\u0384\u0385\u03f6\u0483-\u0487\u0591-\u05bd\u05bf\u05c1\u05c2"
    r"\u05c4\u05c5\u05c7\u0615-\u061a\u064b-\u065e\u0670\u06d6-\u06e4\u06e7-\u06ed\u06fd\u06fe\u0900-\u0903\u093c"
    r"\u093e-\u094e\u0951-\u0955\u0962\u0963\u0e31\u0e34-\u0e3a\u0e47-\u0e4e"
)
_ALNUM = rf"[^\W_{_NUMERALS}]"
# What else is a token. Every other character only separates words.
_SYMBOLS = (
    r"!-/:-@\[-`{-~\x80\x91-\x94\x96\x97\xa1-\xac\xae-\xb4\xb6-\xb9\xbb-\xbf\xd7\xf7"
    r"\u037e\u0387\u0589\u05be\u05c0\u05c3\u05c6\u05f3\u05f4\u0600-\u0603\u0606-\u060c\u0614\u061b\u061e\u061f\u066a\u066d\u06d4\u0964\u0965\u0e3f\u0e4f\u2013-\u2023\u2026"
    r"\u2030-\u203b\u203e-\u2042\u2044\u207a-\u207e\u208a-\u208e\u20a0\u20a4\u20ac\u2100\u2101\u2103-\u2106"
    r"\u2108\u2109\u2114\u2116-\u2118\u211e-\u2123\u2125\u2127\u2129\u212e\u213a\u213b\u2140-\u2144"
    r"\u214a-\u214d\u214f\u2153-\u215e\u2190-\u2bff\u3001\u3002\u3012\u30fb"
    r"\uff01-\uff0f\uff1a-\uff20\uff3b-\uff40\uff5b-\uff65\uffe0\uffe1\uffe5\uffe6"
)
_ASTRAL = re.compile(r"[^\0-\uffff]|[\ud800-\udfff]")  # emoji among them: the original drops them
_LINE_END = re.compile(r"[\t\r\x0b\x0c\x85\u2028\u2029]")

_WRITTEN = {
    "(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-",
    "¢": "cents", "£": "#", "€": "$", "\x80": "$", "\u20a0": "$", "¤": "$",
    "¼": "1/4", "½": "1/2", "¾": "3/4", "⅓": "1/3", "⅔": "2/3",
    "…": "...", "–": "--", "—": "--", "―": "--", "\x96": "--", "\x97": "--",
    "’": "'", "›": "'", "\x92": "'", "‘": "`", "‛": "`", "‹": "`", "\x91": "`",
    "“": "``", "«": "``", "\x93": "``", "”": "''", "»": "''", "\x94": "''", '"': "''",
}  # fmt: skip
_ENTITIES = {
    "&amp;": "&",
    "&lt;": "<",
    "&gt;": ">",
    "&quot;": "''",
    "&apos;": "'",
    "&nbsp;": "-",
    "&md;": "--",
}


class _Rule(NamedTuple):
    """One kind of token: a pattern whose group is the token; what it matches after that only must follow."""

    pattern: re.Pattern[str]
    write: Callable[[str], str] | None  # how the token is written, where not as it stands


def _rule(pattern: str, write: Callable[[str], str] | None = None, *, case: bool = False) -> _Rule:
    names = {
        "WORD": r"<L><W>*(?:[.!?]<L><W>*)*",
        "PART": rf"(?:[dol]<`>{_ALNUM})?{_ALNUM}+",
        "L": rf"(?:[^\W\d_{_NUMERALS}]|[{_MARKS}])",  # a letter
        "W": rf"(?:{_ALNUM}|[{_MARKS}])",  # a letter or a digit
        "'": "['’\x92]",
        "`": "['`‘’‛\x91\x92]",
        "ENDING": f"(?:{_ENDING})",
        "LEADING": f"(?:{_LEADING})",
        "NUMBERED": f"(?:{_NUMBERED})",
    }
    for name, text in names.items():
        pattern = pattern.replace(f"<{name}>", text)
    return _Rule(re.compile(pattern, 0 if case else re.IGNORECASE), write)


def _straight(text: str) -> str:
    return re.sub("[’\x92]", "'", text)


def _each(text: str) -> str:
    return "".join(_WRITTEN.get(character, character) for character in text)


def _one_piece(text: str) -> str:
    """A token that holds spaces keeps them, as no-break spaces."""
    return text.replace("(", "-lrb-").replace(")", "-rrb-").replace(" ", "\u00a0")


# Of equally long matches, what must follow included, the first rule's wins.
_RULES = [
    # Contractions, and words that are two in the Treebank.
    _rule(r"(can)not|(gim)me|(gon)na|(got)ta|(lem)me|(wan)na"),
    _rule(r"([a-z]*[a-mo-z])n<'>t"),
    _rule(r"(<WORD>)<'>(?:s|m|d|ll|re|ve)"),
    _rule(r"(n<'>t)", _straight),
    _rule(r"(<'>(?:s|m|d|ll|re|ve))[^a-z]", _straight),
    _rule(r"(<'>(?:em|till?|cause|n<'>?|[2-9]0s))"),
    _rule(r"(')[a-z][^ \n\xa0]"),
    _rule(r"(<'>(?:s|m|d|ll|re|ve))", _straight),
    _rule(r"('t)(?:is|was)"),
    _rule(r"(<'>\d\d)[ \n]"),
    _rule(r"((?:[dlj]|ol|dunkin)<'>)"),
    _rule(r"(y<'>)[a-z]"),
    _rule(r"(o<`>o|nor<'>easter|c<'>mon|e<'>er|s<'>mores|ev<'>ry|li<'>l|nat<'>l)"),
    _rule(r"((?-i:[A-HJ-XZn])<`><L>{2,})"),
    _rule(r"(<L>+[aeiouy]<`>(?-i:[aeiouA-Z])<L>*)"),
    # Words, and what joins them.
    _rule(r"(<WORD>)"),
    _rule(r"((?:[a-z]\.)+)"),
    _rule(rf"([a-z])\.[ \n](?-i:(?=[A-Z]))(?:{_OPENING})[ \n]"),
    _rule(r"([a-z])\.[ \n]</?[a-z]+>[ \n\xa0]"),
    _rule(r"(<ENDING>\.)(?s:.{0,2})"),
    _rule(r"(<LEADING>\.)"),
    _rule(r"(<NUMBERED>\.)\s?\d"),
    _rule(r"(<PART>(?:[-_]<PART>)*)"),
    _rule(r"([a-z0-9][a-z0-9.,]*(?:-(?:(?:[a-z]\.){2,}|[a-z0-9]+))+)"),
    _rule(r"(<PART>(?:[-_]<PART>)*\.)[,;:]"),
    _rule(r"(<WORD>\.)[,;:]"),
    _rule(r"([a-z0-9][a-z0-9.,]*(?:-[a-z0-9]+)+\.)[,;:]"),
    _rule(rf"((?:<W>+\.)+(?:{_SUFFIX}))[ \n.,?!]"),
    _rule(r"([a-z0-9]+(?:-[a-z]+){0,2}(?:\\?/[a-z0-9]+(?:-[a-z]+){0,2}){1,2})"),
    _rule(r"([A-Z]+(?:(?:[+&]|&amp;)[A-Z]+)+)", lambda text: text.replace("&amp;", "&"), case=True),
    _rule(r"(c\+\+|[cf]#)"),
    # Numbers.
    _rule(r"([-+]?(?:\d*(?:[.:,]\d+)+|\d+))"),
    _rule(r"((?:\d{1,4}[- \xa0])?\d{1,4}(?:\\?/|⁄)\d{1,4})", _one_piece),
    _rule(r"(\d{1,2}[-/]\d{1,2}[-/]\d{2,4})"),
    _rule(
        r"((?:\(\d{2,3}\)[ \xa0]?|(?:\+\+?)?(?:\d{2,4}[- \xa0])?\d{2,4}[- \xa0])\d{3,4}[- \xa0]?\d{3,5}"
        r"|(?:(?:\+\+?)?\d{2,4}\.)?\d{2,4}\.\d{3,4}\.\d{3,5})",
        _one_piece,
    ),
    _rule(r"([A-Z]*\$)", case=True),
    _rule(r"([⁺⁻₊₋]?(?:[⁰¹²³⁴-⁹]+|[₀-₉]+))"),
    # The net.
    _rule(r"(https?://[^ \n\"<>|(){}]+[^ \n\"<>|.!?(){},-])"),
    _rule(rf"(www\.(?:[^ \n\"<>|.!?(){{}},]+\.)+[a-z]{{2,4}}{_PATH})"),
    _rule(rf"((?!\s)(?:[^ \n\"`'<>|.!?(){{}}$,-_]+\.)+(?:com|net|org|edu){_PATH})", case=True),
    _rule(
        r"((?:&lt;|<)?[a-z0-9][^ \n\xa0\"<>|(){}]*@"
        r"(?:[^ \n\xa0\"<>|(){}.]+\.)*[^ \n\xa0\"<>|(){}.]+(?:&gt;|>)?)"
    ),
    _rule(r"(#<L>+|@[a-z_][a-z_0-9]*)"),
    _rule(
        r"(</?[a-z][\w:.-]*(?: +[a-z][\w:.-]*(?: *= *(?:\"[^\"]*\"|'[^']*'|[\w:.-]+))?)* */?>"
        r"|<[!?][a-z-][^<>]*>)",
        _one_piece,
    ),
    _rule(r"(&(?:amp|lt|gt|quot|apos|nbsp|md|#\d+);)", lambda text: _ENTITIES.get(text.lower(), text)),
    # Marks.
    _rule(r"([<>]?[:;=](?-i:[-o*']?[()DPdpO\\{@|\[\]]))(?![a-z0-9])", _one_piece),
    _rule(r"([-^x=~<>']_[-^x=~<>'])", case=True),
    _rule(r"(-[lr][rsc]b-)"),  # a bracket, as the Treebank writes it
    _rule(r"(-{2,4})", lambda text: "--"),
    _rule(r"(\.{3,5})", lambda text: "..."),
    _rule(r"([`‘’‚‛“”„‟«»‹›\x91-\x94]{2})", _each),
    _rule(r"(''|[?!]+|-{5,}|\*+|\\\*|#+|_+|@+|<<|>>)"),
    _rule(rf"([{_SYMBOLS}])", _each),
]

# Plain words, each with at most one comma or full stop behind it; few of these are more than they seem.
_PLAIN = re.compile(r"(?:[a-z]+(?:-[a-z]+)*[,.]?(?:\s+[,.](?=\s|$))?(?:\s+|$))*", re.ASCII)
_WORD = re.compile(r"[a-z]+(?:-[a-z]+)*")
_DOTTED = re.compile(r"([a-z]+)\.")
_DOTTED_WORDS = frozenset(
    [*_ENDING.split("|"), *_LEADING.split("|"), *_NUMBERED.split("|"), *"abcdefghijklmnopqrstuvwxyz"]
)
_TWO_WORDS = frozenset(["cannot", "gimme", "gonna", "gotta", "lemme", "wanna"])


def tokenize(caption: str) -> list[str]:
    """Split a caption into lowercase Penn Treebank tokens without punctuation.

    Args:
        caption: any text. White space of every kind, line ends included, separates words.

    Returns:
        What pycocoevalcap 1.2's `PTBTokenizer` gives for this caption alone. Some tokens hold no-break
        spaces: `2 1/2` is one.

    Example:
        >>> tokenize("Two-storey buildings (red) aren't near St. Mary's.")
        ['two-storey', 'buildings', '-lrb-', 'red', '-rrb-', 'are', "n't", 'near', 'st.', 'mary', "'s"]
    """
    text = caption.lower()
    if _PLAIN.fullmatch(text) and _DOTTED_WORDS.isdisjoint(_DOTTED.findall(text)):
        words = _WORD.findall(text)
        if _TWO_WORDS.isdisjoint(words):
            return words
    return [token for token in _lex(caption) if token not in PUNCTUATION]


def _lex(caption: str) -> list[str]:
    text = _LINE_END.sub("\n", _ASTRAL.sub("\0", caption)).replace("\xad", "") + "\n"
    tokens = []
    position = 0
    while position < len(text):
        matches = [(rule, match) for rule in _RULES if (match := rule.pattern.match(text, position))]
        if not matches:
            position += 1
            continue
        rule, match = max(matches, key=lambda found: found[1].end())
        token = match[match.lastindex or 1]
        position += len(token)
        written = rule.write(token) if rule.write else token
        tokens.append(written.lower())
    return tokens
