"""Heads: what else is predicted from what a captioner sees while captions are learned, for losses with a `head`."""

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor

Shown = Mapping[str, Mapping[str, Tensor]]
"""By the name of a head: the `tokens` and `image_of` that it sees in place of those that the decoder learns from."""


class Seen(NamedTuple):
    """What a head looks at: B images and their P captions.

    `features` [B, h * w, D] of the encoder's cells, row by row; `tokens` [P, T] int64, which begin with `<start>` and
    are padded with `<pad>`; `image_of` [P] int64, which image a caption is of.
    """

    features: Tensor
    tokens: Tensor
    image_of: Tensor
