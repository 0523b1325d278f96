import pytest

from data.vocabulary import SPECIALS, Vocabulary
from models.tokens import END, START, UNK

CAPTIONS = [["a", "plane"], ["a", "red", "plane"], ["a", "<unk>", "boat"]]


def test_build_counts_and_orders() -> None:
    assert Vocabulary.build(CAPTIONS, 1).words == (*SPECIALS, "a", "plane", "boat", "red")
    assert Vocabulary.build(CAPTIONS, 2).words == (*SPECIALS, "a", "plane")


def test_encode_and_decode() -> None:
    vocabulary = Vocabulary.build(CAPTIONS, 2)
    tokens = vocabulary.encode(["a", "red", "plane"], max_words=10)
    assert tokens == [START, 4, UNK, 5, END]
    assert vocabulary.decode([*tokens, 4, 4]) == ["a", "<unk>", "plane"]
    assert vocabulary.encode(["a"] * 9, max_words=2) == [START, 4, 4, END]
    assert vocabulary.encode(["<start>", "a", "<end>"], 10) == [START, UNK, 4, UNK, END]  # words of an annotation


@pytest.mark.parametrize("words", [("a",), (*SPECIALS, "a", "a"), ()])
def test_not_a_vocabulary(words: tuple[str, ...]) -> None:
    with pytest.raises(ValueError):
        Vocabulary(words)
