"""Add an encoder: python docs/tutorials/add_an_encoder.py [what train.py takes ...].

Any model of timm is an encoder by its name (model.encoder.name=convnext_tiny). One that timm does not have is
registered there. It needs `forward_features`, from images to [B, D, h, w], its stages, and the statistics of its input.
To caption with what was trained, other programs have to know it, too: to stay, it is imported by models/encoder.py.
"""

import sys
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the repository

from timm.models import register_model
from torch import Tensor, nn

import train
from utils.config import load_config
from utils.files import run_program


class FourConvolutions(nn.Module):
    """Images [B, 3, H, W] to features [B, 128, H / 16, W / 16]."""

    num_features = 128
    pretrained_cfg: ClassVar = {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}

    def __init__(self) -> None:
        super().__init__()
        widths = [3, 32, 64, 96, 128]
        blocks = [nn.Sequential(nn.Conv2d(i, o, 3, 2, 1), nn.GroupNorm(8, o), nn.ReLU()) for i, o in pairwise(widths)]
        self.body = nn.Sequential(*blocks)

    def forward_features(self, images: Tensor) -> Tensor:
        """What the decoder looks at."""
        return self.body(images)

    def group_matcher(self, coarse: bool = False) -> dict[str, str]:
        """Which parameters make a stage, as timm has it: model.encoder.frozen_stages counts these."""
        return {"blocks": r"^body\.(\d+)"}


@register_model
def four_convolutions(pretrained: bool = False, **_: Any) -> nn.Module:
    """The name under which a recipe finds it."""
    return FourConvolutions()


if __name__ == "__main__":
    encoder = ["model.encoder.name=four_convolutions", "model.encoder.weights=none", "model.encoder.trainable=true"]
    arguments = train.parse_arguments([*sys.argv[1:], *encoder])
    run_program(lambda: train.main(load_config(arguments), arguments.resume))
