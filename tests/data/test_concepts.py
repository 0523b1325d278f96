import torch

from data.annotations import AnnotatedImage
from data.concepts import FUNCTION_WORDS, Concepts


def image(*captions: str) -> AnnotatedImage:
    return AnnotatedImage(0, "a.png", "train", captions)


def test_targets_are_shares_of_captions() -> None:
    images = [image("A red plane.", "two planes near a red roof", "the plane is RED"), image("a roof"), image("green")]
    concepts = Concepts(images, min_images=1)
    assert concepts.words == ["roof", "green", "plane", "planes", "red"]  # by images, then by the alphabet
    expected = torch.tensor([[1 / 3, 0, 2 / 3, 1 / 3, 1], [1, 0, 0, 0, 0], [0, 1, 0, 0, 0]])
    torch.testing.assert_close(concepts.shares(images), expected)


def test_rare_words_function_words_and_what_is_no_word_are_no_concepts() -> None:
    images = [image("the 3 planes are near it", "12"), image("planes x2"), image("  ", "roof")]
    assert Concepts(images, min_images=2).words == ["planes"]
    assert {"the", "near", "of"} <= FUNCTION_WORDS


def test_unknown_words_and_images_without_words_are_all_zero() -> None:
    concepts = Concepts([image("a roof")], min_images=1)
    torch.testing.assert_close(concepts.shares([image("a boat"), image("")]), torch.zeros(2, 1))
