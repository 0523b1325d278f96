import importlib.util
import itertools
import random
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from pycocoevalcap.tokenizer.ptbtokenizer import PUNCTUATIONS, STANFORD_CORENLP_3_4_1_JAR

from data.tokenizer import tokenize

needs_java = pytest.mark.skipif(shutil.which("java") is None, reason="the original needs a Java runtime")


def original(captions: list[str], tmp_path: Path, neutral: str = "zz\n") -> list[list[str]]:
    """What pycocoevalcap's PTBTokenizer makes of captions, each between two neutral lines."""
    spec = importlib.util.find_spec("pycocoevalcap.tokenizer")
    assert spec and spec.submodule_search_locations
    jar = Path(spec.submodule_search_locations[0]) / STANFORD_CORENLP_3_4_1_JAR
    source = tmp_path / "captions.txt"
    source.write_bytes("".join(f"{caption}\n{neutral}" for caption in captions).encode())
    command = ["java", "-Dfile.encoding=UTF-8", "-cp", str(jar), "edu.stanford.nlp.process.PTBTokenizer"]
    done = subprocess.run(
        [*command, "-preserveLines", "-lowerCase", str(source)],
        capture_output=True,
        check=True,
        timeout=300,
    )
    lines = done.stdout.decode().split("\n")[:-1]
    assert len(lines) == len(captions) * (1 + neutral.count("\n"))
    return [
        [token for token in line.rstrip().split(" ") if token and token not in PUNCTUATIONS]
        for line in lines[:: 1 + neutral.count("\n")]
    ]


def differences(captions: list[str], tmp_path: Path) -> list[tuple[str, list[str], list[str]]]:
    pairs = zip(captions, original(captions, tmp_path), strict=True)
    return [(caption, theirs, ours) for caption, theirs in pairs if (ours := tokenize(caption)) != theirs]


# What captions, and text by people who had more in mind, are made of.
PIECES = """
    a the two many some building buildings storey airport river road cars St st. mr. Co. U.S. u.s. a.m.
    e.g. etc. vs. no. fig. Jan. Inc. 5 12 1999 2,000 3.5 .5 -5 +1 1st 3d 1/2 3/4 2020-01-02 555-1234 10:30
    '90s 1990's 5% isn't can't it's cars' they've I'm I'd o'clock don’t it’s ’s 've 'em 'til 'tis 'cause
    cannot gonna wanna rock'n'roll O'Neill d'angelo ma'am y'all two-storey x-ray t-shaped U.S.-based
    and/or w/o km/h m2 20x30 1.5m ½ ² ° °C € $5 US$5 £ ¢ café naïve Łódź 中国 русский αβγ “ ” ‘ ’ « » — – …
    ... .. . , ; : ! ? ?! ( ) (red) [ ] { } < > <b> </b> <unk> & &amp; &lt; AT&T R&D C++ # #tag @joe @ * /
    \\ | ~ ^ _ a_b airport_12.jpg 12.jpg + = - -- --- ----- " ' ` `` '' :) :( ;-) ^_^ http://a.b/c
    www.x.com x.com/yz joe@x.org A. B. s. 'a' "b" 'a 2 (555)
""".split()  # noqa: SIM905


@needs_java
def test_every_short_string_of_what_joins_and_parts_words(tmp_path: Path) -> None:
    strings = ["".join(s) for n in range(1, 5) for s in itertools.product("aB1-'./,_", repeat=n)]
    marks = ["".join(s) for n in range(1, 4) for s in itertools.product('a1&@#$%:;!?()*+=~^`"\\[', repeat=n)]
    assert differences([f"x {s} y" for s in strings + marks], tmp_path) == []


@needs_java
def test_brackets_that_are_written_out(tmp_path: Path) -> None:
    names = [f"-{side}{kind}b-" for side in "lr" for kind in "rsc"]
    around = [
        "{}",
        "a {} b",
        "{}a",
        "a{}",
        "x{}y",
        "-{}-",
        "({})",
        "{}9",
        "9{}",
        "{}'s",
        "{}.",
        ".{}",
        "{0}{0}",
        "{}/a",
    ]
    captions = [form.format(name) for form in around for name in (*names, *map(str.upper, names))]
    assert differences([*captions, "-rcb", "rcb-", "-rxb-", "-lrb -"], tmp_path) == []


@needs_java
@pytest.mark.parametrize("glue", [" ", ""])
def test_captions_made_of_everything(glue: str, tmp_path: Path) -> None:
    dice = random.Random(0)
    captions = [glue.join(dice.choices(PIECES, k=dice.randint(1, 14 if glue else 3))) for _ in range(10_000)]
    assert differences(captions, tmp_path) == []


LETTERS = "aéüßœŁčżπΩжЯ中日한אب’‘“”–—…½²°€£¥§¶·×÷±≤√→•™®\u00a0\u3000 ,.-5"


@needs_java
@settings(
    max_examples=8,  # each starts Java
    deadline=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
@given(
    st.lists(
        st.lists(st.one_of(st.sampled_from(PIECES), st.text("abcdeinorst", min_size=1, max_size=9)), max_size=15).map(
            " ".join
        )
        | st.text(st.characters(codec="ascii", exclude_categories=["Cc"]), max_size=20)
        | st.text(st.sampled_from(LETTERS), max_size=20),
        min_size=50,
        max_size=100,
    )
)
def test_generated_captions(tmp_path_factory: pytest.TempPathFactory, captions: list[str]) -> None:
    assert differences(captions, tmp_path_factory.mktemp("jar")) == []


@needs_java
def test_known_differences(tmp_path: Path) -> None:
    """What the docstring names; should one of these agree one day, the docstring says too much."""
    captions = ["ka\u09be", "\u1c90b", "<?-<>", "a@\U0001f34a"]
    assert [caption for caption, _, _ in differences(captions, tmp_path)] == captions


@needs_java
def test_original_lets_the_next_caption_decide_and_ours_does_not(tmp_path: Path) -> None:
    captions = ["the pier no.", "5 ships"]
    assert original(captions, tmp_path, neutral="")[0] == ["the", "pier", "no."]
    assert original(captions, tmp_path)[0] == tokenize(captions[0]) == ["the", "pier", "no"]


@needs_java
@pytest.mark.parametrize("space", ["\r", "\x0c", "\u2028"])
def test_original_shifts_captions_at_line_ends_and_ours_does_not(space: str, tmp_path: Path) -> None:
    with pytest.raises(AssertionError):  # more lines than captions
        original([f"a red{space}roof"], tmp_path)
    assert tokenize(f"a red{space}roof") == ["a", "red", "roof"]


@pytest.mark.parametrize(
    "space", ["\n", "\r", "\r\n", "\x0b", "\x0c", "\x1c", "\x85", "\u2028", "\u2029", "\t", "\u3000", "  "]
)
def test_white_space_of_every_kind_separates(space: str) -> None:
    assert tokenize(f"{space}a red{space}roof , no. 5{space}") == ["a", "red", "roof", "no.", "5"]
    assert tokenize(f"many{space}planes .{space}") == ["many", "planes"]


@pytest.mark.parametrize("caption", ["", " ", ".", "...", " , . ", "\n", "\U0001f6eb", "\ud800", "''"])
def test_nothing_to_say(caption: str) -> None:
    assert tokenize(caption) == []


@settings(deadline=None)
@given(st.lists(st.sampled_from(["a", "the", "two-storey", "cannot", "no", "st", "road", "art"]), max_size=8))
def test_plain_captions_take_the_short_way_to_the_same_tokens(words: list[str]) -> None:
    # A token that only the long way knows, put in front, must not change the rest.
    for end in ("", ".", " ."):
        caption = " ".join(words) + end
        assert tokenize("½ " + caption) == ["1/2", *tokenize(caption)]
