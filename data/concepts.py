"""Concepts: the content words of an image's captions, as soft labels for a head that predicts them."""

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from data.annotations import AnnotatedImage
from data.loading import Batch
from data.tokenizer import tokenize

# Words that say nothing of what is in an image. Prepositions stay out as well: what lies beside what is the decoder's.
FUNCTION_WORDS = frozenset(
    """
    a about above across after against all along also among an and another any are around as at away be because been
    before behind being below beneath beside besides between both but by can close could different each either etc every
    few for from front had has have here how if in inside into is it its itself just kind kinds let like lot lots many
    more most much near nearby neat neatly next no not nothing of off on one ones only onto opposite or other others our
    out outside over part parts piece pieces place several show shows side sides so some such than that the their them
    then there these they thing things this those three through to together too toward towards two under up upon very we
    well were what when where which while who whole with within without you your
    """.split()  # noqa: SIM905
)


class Concepts:
    """The content words that captions of at least `min_images` images of `images` hold, and how much each image has.

    target[b, c] = the share of image b's captions that hold word c, in 0..1.

    Attributes:
        words: the C concepts, most frequent first.
    """

    gives = ("target",)

    def __init__(self, images: Sequence[AnnotatedImage], min_images: int) -> None:
        holds = Counter(word for shares in map(_shares, images) for word in shares)
        ranked = sorted(holds.items(), key=lambda item: (-item[1], item[0]))
        self.words = [word for word, count in ranked if count >= min_images]
        self._index = {word: i for i, word in enumerate(self.words)}

    def read(self, images: Sequence[AnnotatedImage], batch: Batch) -> dict[str, Tensor]:
        """The shares of these images as `target`."""
        return {"target": self.shares(images)}

    def shares(self, images: Sequence[AnnotatedImage]) -> Tensor:
        """`target` float32 [B, C] of these images."""
        target = torch.zeros(len(images), len(self.words))
        for b, image in enumerate(images):
            for word, share in _shares(image).items():
                if word in self._index:
                    target[b, self._index[word]] = share
        return target


def _shares(image: AnnotatedImage) -> dict[str, float]:
    """The content words of an image, each with the share of the image's worded captions that hold it."""
    captions = [set(words) for words in map(tokenize, image.captions) if words]
    counts = Counter(word for words in captions for word in words if word.isalpha() and word not in FUNCTION_WORDS)
    return {word: count / len(captions) for word, count in counts.items()}
