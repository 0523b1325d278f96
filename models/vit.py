"""DINOv2's small Vision Transformer (Dosovitskiy et al., ICLR 2021; Oquab et al., 2023).

timm has it too, and its names of the tensors are kept; but to import timm takes longer than to caption an image.
"""

import math
from collections.abc import Callable, Sequence
from itertools import takewhile
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

DINOV2 = "vit_small_patch14_dinov2"  # timm's
PATCH, WIDTH, HEADS, BLOCKS, GRID, EPS = 14, 384, 6, 12, 37, 1e-6
FUSED = ("cuda",)  # where torch's own attention is faster
ROWS = 8192  # of a product in bfloat16: a CPU's take half as long again for each row where there are more


class VisionTransformer(nn.Module):
    """Without classifier: what `Encoder` needs of timm's models.

    Patches of 14 x 14 pixels are words; what is left at the right and at the bottom is not seen. Positions were learned
    on a grid of 37 x 37 and are interpolated to others.
    """

    num_features = WIDTH
    num_prefix_tokens = 1
    pretrained_cfg: ClassVar = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}

    def __init__(self) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, WIDTH))
        self.pos_embed = nn.Parameter(torch.empty(1, 1 + GRID * GRID, WIDTH))
        nn.init.normal_(self.pos_embed, std=0.02)
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, WIDTH, PATCH, PATCH)})
        self.blocks = nn.Sequential(*(Block() for _ in range(BLOCKS)))
        self.norm = nn.LayerNorm(WIDTH, EPS)

    def forward_features(self, images: Tensor) -> Tensor:
        """[B, 3, H, W], scaled, to [B, 1 + (H // 14) * (W // 14), 384]: a token for the whole, then the patches."""
        return in_parts(lambda part: self.norm(self.blocks(self.stem(part))), images)

    def stem(self, images: Tensor) -> Tensor:
        """The tokens before the first block."""
        patches = self.patch_embed["proj"](images)
        height, width = patches.shape[2:]
        words = torch.cat([self.cls_token.expand(images.shape[0], -1, -1), patches.flatten(2).transpose(1, 2)], dim=1)
        return words + self._positions(height, width)

    def _positions(self, height: int, width: int) -> Tensor:
        if (height, width) == (GRID, GRID):
            return self.pos_embed
        grid = self.pos_embed[:, 1:].unflatten(1, (GRID, GRID)).permute(0, 3, 1, 2).float()
        grid = F.interpolate(grid, (height, width), mode="bicubic", antialias=True, align_corners=False)
        return torch.cat([self.pos_embed[:, :1], grid.flatten(2).transpose(1, 2)], dim=1)

    def group_matcher(self, coarse: bool = False) -> dict[str, object]:
        """Which parameters make a stage, as timm has it."""
        return {
            "stem": r"^cls_token|pos_embed|patch_embed",
            "blocks": [(r"^blocks\.(\d+)", None), (r"^norm", (99999,))],
        }


class Branches(nn.Module):
    """Transformers that begin alike: what is the same in all of them looks once.

    Args:
        transformers: with the same stem and at least one first block (`alike`). Their modules are shared.
    """

    num_prefix_tokens = 1
    pretrained_cfg = VisionTransformer.pretrained_cfg

    def __init__(self, transformers: Sequence[VisionTransformer]) -> None:
        super().__init__()
        self.num_features = WIDTH * len(transformers)
        shared = alike(transformers)
        self.first = transformers[0]
        self.trunk = self.first.blocks[:shared]
        self.branches = nn.ModuleList(nn.Sequential(*one.blocks[shared:], one.norm) for one in transformers)

    def forward_features(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] to [B, 1 + N, K * 384], what each of the K transformers gives side by side."""
        return in_parts(self._look, images)

    def _look(self, images: Tensor) -> Tensor:
        words = self.trunk(self.first.stem(images))
        return torch.cat([branch(words) for branch in self.branches], dim=-1)


def alike(transformers: Sequence[VisionTransformer]) -> int:
    """How many first blocks are the same in all of them; 0 where their stems differ."""

    def same(prefix: str) -> bool:
        first, *others = ([v for k, v in one.state_dict().items() if k.startswith(prefix)] for one in transformers)
        return all(torch.equal(ours, theirs) for other in others for ours, theirs in zip(first, other, strict=True))

    if not all(same(part) for part in ("cls_token", "pos_embed", "patch_embed.")):
        return 0
    return sum(1 for _ in takewhile(same, (f"blocks.{index}." for index in range(BLOCKS))))


def in_parts(look: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """What `look` gives of images [B, 3, H, W], on a CPU of parts with at most `ROWS` tokens each."""
    if images.device.type == "cpu" and not torch.compiler.is_exporting():
        words = 1 + (images.shape[2] // PATCH) * (images.shape[3] // PATCH)
        parts = math.ceil(len(images) / max(1, ROWS // words))
        if parts > 1:
            return torch.cat([look(part) for part in images.chunk(parts)])
    return look(images)


class Block(nn.Module):
    """Attention and a perceptron, each behind a norm, each scaled before it is added (Touvron et al., ICCV 2021)."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.attn, self.ls1 = nn.LayerNorm(WIDTH, EPS), Attention(), Scale()
        self.norm2, self.mlp, self.ls2 = nn.LayerNorm(WIDTH, EPS), Perceptron(), Scale()

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, 384] to the same."""
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.mlp(self.norm2(x)))


class Attention(nn.Module):
    """Multi-head self-attention.

    On a CPU written out, where two matrix products in bfloat16 with a softmax between take half the time of torch's
    fused one, forward and back. On a GPU with the fused one a block takes two thirds of its time (docs/speed.md).
    """

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.proj = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, 384] to the same."""
        queries, keys, values = self.qkv(x).unflatten(-1, (3, HEADS, WIDTH // HEADS)).permute(2, 0, 3, 1, 4).unbind()
        if x.device.type in FUSED:
            seen = F.scaled_dot_product_attention(queries, keys, values)
        else:
            seen = (queries * (WIDTH // HEADS) ** -0.5 @ keys.transpose(-2, -1)).softmax(-1) @ values
        return self.proj(seen.transpose(1, 2).flatten(2))


class Perceptron(nn.Module):
    """Two layers with GELU between."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(WIDTH, 4 * WIDTH)
        self.fc2 = nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, 384] to the same."""
        return self.fc2(F.gelu(self.fc1(x)))


class Scale(nn.Module):
    """A learned factor for each channel."""

    def __init__(self) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((WIDTH,), 1e-5))

    def forward(self, x: Tensor) -> Tensor:
        """[..., 384] to the same."""
        return x * self.gamma
