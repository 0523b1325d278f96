"""Heads: what else is predicted from what a captioner sees while captions are learned, for losses with a `head`."""

from typing import NamedTuple

from torch import Tensor


class Seen(NamedTuple):
    """What a head looks at: B images and their P captions.

    `features` [B, h * w, D] of the encoder's cells, row by row; `tokens` [P, T] int64, which begin with `<start>` and
    are padded with `<pad>`; `image_of` [P] int64, which image a caption is of.
    """

    features: Tensor
    tokens: Tensor
    image_of: Tensor
