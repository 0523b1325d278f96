"""Several captioners that speak as one."""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from models.captioner import Captioner, Output
from models.decoder import Decoder
from models.encoder import Encoder
from models.heads import Shown
from models.pooling import Visual
from models.regions import JointRegions, JointState, Regions
from models.views import in_views
from models.vit import DINOV2, Branches, VisionTransformer, alike


class Ensemble(Captioner):
    """Captioners that know the same words, and say the next one by the mean of their probabilities.

        p(y_t | y_<t, image) = 1/K sum_k p_k(y_t | y_<t, image)

    Transformers whose first blocks are the same look through these once. All features are handed on as one tensor
    [B, 1, sum_k N_k D_k], side by side. Attention is the first one's, and so is `encoder`, which others ask for its
    grid and its device. An ensemble has no heads; what a member's head tells its own decoder is heard.

    Args:
        captioners: at least one, over the cells of their encoders' grids.
    """

    def __init__(self, captioners: Sequence[Captioner]) -> None:
        joint = JointDecoder([captioner.decoder for captioner in captioners])
        super().__init__(captioners[0].encoder, cast(Decoder, joint))  # for all that captions are found with
        self.members = cast(list[Captioner], nn.ModuleList(captioners))
        self.looks = _looks([captioner.encoder for captioner in captioners])
        self.encoders = nn.ModuleList(encoder for encoder, _ in self.looks)
        self.shapes: list[torch.Size] = []  # (N_k, D_k) of the features that were handed on last

    def features(self, content: Tensor, views: int = 1) -> Tensor:
        """Features [B, 1, sum_k N_k D_k] of images, or as they are."""
        if content.ndim == 3:
            return content
        found: dict[int, Tensor] = {}
        with torch.no_grad():
            for encoder, members in self.looks:
                found |= zip(members, in_views(encoder, content, views).chunk(len(members), -1), strict=True)
        features = [found[member] for member in range(len(self.members))]
        self.shapes = [part.shape[1:] for part in features]
        return torch.cat([part.flatten(1) for part in features], 1)[:, None]

    def regions(self, visual: Visual, temperature: float = 0.0, generator: torch.Generator | None = None) -> Regions:
        """What each member's decoding needs of each image."""
        joint = JointRegions([member.regions(part, temperature, generator) for member, part in self._parts(visual)])
        return cast(Regions, joint)

    def forward(self, visual: Visual, tokens: Tensor, image_of: Tensor, shown: Shown | None = None) -> Output:
        """Teacher forcing, as a captioner's; logits are the logarithm of the mean probability."""
        outputs = [member(part, tokens, image_of) for member, part in self._parts(visual)]
        return outputs[0]._replace(logits=log_mean([output.logits for output in outputs]), heads={})

    def _parts(self, visual: Visual) -> list[tuple[Captioner, Visual]]:
        features = self.features(visual.content).squeeze(1)
        parts = features.split([shape.numel() for shape in self.shapes], 1)
        shaped = (Visual(part.unflatten(1, shape)) for part, shape in zip(parts, self.shapes, strict=True))
        return list(zip(self.members, shaped, strict=True))


def _looks(encoders: Sequence[Encoder]) -> list[tuple[Encoder, list[int]]]:
    """Encoders that see together what these do, each with the places of those whose features it gives side by side."""
    twins = [
        place
        for place, encoder in enumerate(encoders)
        if isinstance(encoder.backbone, VisionTransformer) and not encoder.extra_layers
    ]
    backbones = [cast(VisionTransformer, encoders[place].backbone) for place in twins]
    scales = {(*encoders[place].mean.tolist(), *encoders[place].std.tolist()) for place in twins}
    if len(twins) < 2 or len(scales) > 1 or not alike(backbones):
        return [(encoder, [place]) for place, encoder in enumerate(encoders)]
    joint = Encoder(DINOV2, backbone=Branches(backbones))
    joint.mean.copy_(encoders[twins[0]].mean)
    joint.std.copy_(encoders[twins[0]].std)
    return [(joint, twins), *((encoder, [place]) for place, encoder in enumerate(encoders) if place not in twins)]


class JointDecoder:
    """Decoders that take each step together: logits are the logarithm of their mean probability."""

    def __init__(self, decoders: Sequence[Decoder]) -> None:
        self.decoders = decoders

    def start(self, regions: JointRegions) -> JointState:
        """Each one's."""
        return JointState([own.start(part) for own, part in zip(self.decoders, regions.parts, strict=True)])

    def step(
        self, regions: JointRegions, state: JointState, tokens: Tensor, *following: Any
    ) -> tuple[Tensor, JointState, Tensor]:
        """One word further, as `Decoder.step`; attention is the first one's."""
        steps = [
            decoder.step(part, before, tokens, *following)
            for decoder, part, before in zip(self.decoders, regions.parts, state.parts, strict=True)
        ]
        logits, states, attention = zip(*steps, strict=True)
        return log_mean(logits), JointState(states), attention[0]


def log_mean(logits: Sequence[Tensor]) -> Tensor:
    """The logarithm of the mean of softmax(logits_k) over k, float32 [..., V].

    >>> log_mean([torch.tensor([0.0, 0.0]), torch.tensor([-20.0, 20.0])]).exp()
    tensor([0.2500, 0.7500])
    """
    p = logits[0].float().softmax(-1)
    for part in logits[1:]:
        p = p + part.float().softmax(-1)  # a sum of p's takes a fifth of the time of the logsumexp of their logarithms
    return (p / len(logits)).clamp(min=torch.finfo(p.dtype).tiny).log()
