"""Which captions are of which image, and whose: for heads that look at both together."""

from collections.abc import Sequence

import torch
from torch import Tensor

from data.annotations import AnnotatedImage
from data.loading import Batch


class Pairs:
    """`labels` int64 [P], the imgid that each caption is of, and `weight` [P], how often it stands there."""

    gives = ("labels", "weight")

    def read(self, images: Sequence[AnnotatedImage], batch: Batch) -> dict[str, Tensor]:
        """The pairs of a batch with these images."""
        return {"labels": torch.tensor([image.imgid for image in images])[batch.image_of], "weight": batch.weight}


class Authors:
    """Who wrote each caption: `target_is_real` bool [P], whether a person did for this image, and `weight` [P].

    In the annotations a person always did. What stands beside that, `sampled` bool [P] whether the captioner did, comes
    with forgeries (utils/guides.py).
    """

    gives = ("target_is_real", "weight", "sampled")

    def read(self, images: Sequence[AnnotatedImage], batch: Batch) -> dict[str, Tensor]:
        """The annotated captions of a batch."""
        people = torch.ones(len(batch.tokens), dtype=torch.bool)
        return {"target_is_real": people, "weight": batch.weight, "sampled": ~people}
