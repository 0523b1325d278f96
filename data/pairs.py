"""Pairs: which captions are of which image, for a head that lets them find each other."""

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
