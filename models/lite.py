"""EfficientNet-Lite, one of the encoders that ship (Tan & Le, ICML 2019; Liu & Tan 2020: no attention, ReLU6).

timm has it too, and its names of the tensors are kept; but to import timm takes longer than to caption an image.
"""

import math
from typing import ClassVar

from torch import Tensor, nn

from models.folding import FoldedConv2d, FoldedNorm

# name -> factors of the channels and of the blocks of a stage
VARIANTS = {
    "tf_efficientnet_lite0": (1.0, 1.0),
    "tf_efficientnet_lite1": (1.0, 1.1),
    "tf_efficientnet_lite2": (1.1, 1.2),
    "tf_efficientnet_lite3": (1.2, 1.4),
    "tf_efficientnet_lite4": (1.4, 1.8),
}
STAGES = (  # blocks, kernel, stride of the first block, expansion, channels
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
STEM, CHANNELS, EPS = 32, 1280, 1e-3


class EfficientNetLite(nn.Module):
    """A variant by its name, without classifier, BatchNorm frozen and folded: what `Encoder` needs of timm's models."""

    conv_stem: nn.Module
    bn1: nn.Module
    conv_head: nn.Module
    bn2: nn.Module
    num_features = CHANNELS
    pretrained_cfg: ClassVar = {"mean": (0.5,) * 3, "std": (0.5,) * 3}  # what timm's weights were trained with

    def __init__(self, name: str) -> None:
        super().__init__()
        width, depth = VARIANTS[name]
        _add(self, "conv_stem", "bn1", 3, STEM, 3, 2)
        self.blocks = nn.Sequential()
        inside = STEM
        for i, (count, kernel, stride, expansion, channels) in enumerate(STAGES):
            repeats = count if i in (0, len(STAGES) - 1) else math.ceil(count * depth)
            stage = nn.Sequential()
            for block in range(repeats):
                stage.append(Block(inside, _rounded(channels * width), kernel, 1 if block else stride, expansion))
                inside = _rounded(channels * width)
            self.blocks.append(stage)
        _add(self, "conv_head", "bn2", inside, CHANNELS)

    def forward_features(self, images: Tensor) -> Tensor:
        """[B, 3, H, W], scaled, to [B, 1280, H / 32, W / 32], rounded up."""
        return self.bn2(self.conv_head(self.blocks(self.bn1(self.conv_stem(images)))))

    def group_matcher(self, coarse: bool = False) -> dict[str, object]:
        """Which parameters make a stage, as timm has it."""
        return {"stem": r"^conv_stem|bn1", "blocks": [(r"^blocks\.(\d+)", None), (r"conv_head|bn2", (99999,))]}


class Block(nn.Sequential):
    """Expand the channels, look around in each by itself, project; plus what came in where the shape is the same."""

    def __init__(self, inside: int, outside: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        middle = inside * expansion
        if expansion > 1:
            _add(self, "conv_pw", "bn1", inside, middle)
        _add(self, "conv_dw", f"bn{1 + (expansion > 1)}", middle, middle, kernel, stride, middle)
        projection = ("conv_pwl", "bn3") if expansion > 1 else ("conv_pw", "bn2")
        _add(self, *projection, middle, outside, active=False)
        self.residual = stride == 1 and inside == outside

    def forward(self, x: Tensor) -> Tensor:
        """[B, inside, h, w] to [B, outside, h / stride, w / stride], rounded up."""
        return super().forward(x) + x if self.residual else super().forward(x)


def _add(
    to: nn.Module,
    conv_name: str,
    norm_name: str,
    inside: int,
    outside: int,
    kernel: int = 1,
    stride: int = 1,
    groups: int = 1,
    active: bool = True,
) -> None:
    """Give a module a convolution, its folded norm and activation; where it strides it pads as TensorFlow does."""
    conv = nn.Conv2d(inside, outside, kernel, stride, kernel // 2 if stride == 1 else 0, groups=groups, bias=False)
    nn.init.normal_(conv.weight, 0, math.sqrt(2 * groups / (kernel * kernel * outside)))
    norm = FoldedNorm(nn.BatchNorm2d(outside, EPS), nn.ReLU6(inplace=True) if active else nn.Identity())
    to.add_module(conv_name, FoldedConv2d(conv, norm, same=stride > 1))
    to.add_module(norm_name, norm)


def _rounded(channels: float) -> int:
    """The multiple of 8 that is nearest, unless it would take away more than a tenth."""
    nearest = max(8, int(channels + 4) // 8 * 8)
    return nearest + 8 if nearest < 0.9 * channels else nearest
