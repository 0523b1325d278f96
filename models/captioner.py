"""The captioner: encoder and decoder put together."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from models.decoder import Decoder
from models.encoder import Encoder
from models.heads import Seen, Shown
from models.heads.concepts import ConceptHead
from models.heads.latent import LatentHead
from models.heads.parallel import ParallelHead
from models.pooling import Visual, pool_regions
from models.regions import Regions
from models.tokens import END, PAD
from models.views import in_views


class Output(NamedTuple):
    """What the losses see: logits [P, T, V], attention [P, T, N] over N regions, and what each head gives.

    `region_mask` bool [P, N] says which regions are there; None: all.
    """

    logits: Tensor
    attention: Tensor
    region_mask: Tensor | None
    heads: dict[str, dict[str, Any]]

    @property
    def region_count(self) -> int | Tensor:
        """The regions that attention is spread over: N, or int64 [P] where some are missing."""
        return self.attention.shape[-1] if self.region_mask is None else self.region_mask.sum(-1)


class Captioner(nn.Module):
    """A CNN encoder and an attention LSTM decoder.

    The encoder sees images, or they come as features of it from the feature store; these are pooled over the regions
    (models/pooling.py), or are the regions themselves, and the decoder looks at them.

    Args:
        encoder, decoder: the two parts. trainable_encoder: whether gradients reach the encoder. Its BatchNorm
            statistics stay as they were pretrained either way: batches here are small.
        heads: name -> module that takes what is `Seen` and gives a dict. Most only serve training; some may tell the
            decoder what to speak of (`told`, which adds up), one may say captions itself.
        pooling: what a region's features are divided by, see `pool_regions`.
    """

    def __init__(
        self,
        encoder: Encoder,
        decoder: Decoder,
        trainable_encoder: bool = False,
        heads: Mapping[str, nn.Module] | None = None,
        pooling: str = "area",
    ) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder, decoder
        self.heads = nn.ModuleDict(heads or {})
        self.trainable_encoder, self.pooling = trainable_encoder, pooling
        self.encoder.requires_grad_(trainable_encoder)

    def train(self, mode: bool = True) -> "Captioner":
        """Training mode for all but a frozen encoder and the encoder's BatchNorm."""
        super().train(mode)
        if not self.trainable_encoder:
            self.encoder.eval()
        for module in self.encoder.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        return self

    def features(self, content: Tensor, views: int = 1) -> Tensor:
        """Features [B, h * w, D] of images, averaged over their first `views` turns and flips, or as they are."""
        if content.ndim == 3:
            # as an encoder would give them; from float16 to bfloat16 at once takes a CPU thrice as long as by float32
            features, kind = content.to(self.decoder.embedding.weight.dtype), content.device.type
            return features.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else features
        with torch.set_grad_enabled(self.trainable_encoder and torch.is_grad_enabled()):
            return in_views(self.encoder, content, views)

    @property
    def tellers(self) -> list[LatentHead | ConceptHead]:
        """The heads that tell the decoder what to speak of."""
        return [head for head in self.heads.values() if isinstance(head, LatentHead | ConceptHead) and head.tell]

    @property
    def draws_codes(self) -> bool:
        """Whether captions of an image differ by a code that is drawn, and not by words that are."""
        return any(isinstance(head, LatentHead) for head in self.heads.values())

    @property
    def speaker(self) -> ParallelHead | None:
        """The head that says all words at once, if there is one."""
        return next((head for head in self.heads.values() if isinstance(head, ParallelHead)), None)

    def regions(self, visual: Visual, temperature: float = 0.0, generator: torch.Generator | None = None) -> Regions:
        """What decoding needs of each image; what a head tells is drawn at `temperature` (0: its mean)."""
        features = self.features(visual.content)
        regions = self._prepare(features, visual.shares)
        told = [teller.draw(features, temperature, generator) for teller in self.tellers]
        return regions._replace(told=self.decoder.hear(torch.stack(told).sum(0))) if told else regions

    def forward(self, visual: Visual, tokens: Tensor, image_of: Tensor, shown: Shown | None = None) -> Output:
        """Teacher forcing of captions `tokens` [P, T] int64, caption p on image `image_of[p]`.

        After the end of a caption, where nothing is to be predicted, logits and attention are 0.
        `shown` are by the name of a head captions that it looks at in their place.
        """
        features = self.features(visual.content)
        regions = self._prepare(features, visual.shares)
        heads = self._heads(Seen(features, tokens, image_of), shown)
        told = [given["told"] for given in heads.values() if "told" in given]
        heard = self.decoder.hear(torch.stack(told).sum(0)) if told else None
        ended = ((tokens == END) | (tokens == PAD)).cumsum(1) > 0
        logits, attention = self.decoder(regions, tokens, image_of, heard, (~ended).sum(1))
        mask = None if regions.mask is None else regions.mask[image_of]
        return Output(logits, attention, mask, heads)

    def look(
        self, visual: Visual, tokens: Tensor, image_of: Tensor, shown: Shown | None = None
    ) -> dict[str, dict[str, Any]]:
        """What each head gives for these images and captions."""
        return self._heads(Seen(self.features(visual.content), tokens, image_of), shown)

    def _prepare(self, features: Tensor, shares: Tensor | None) -> Regions:
        if shares is None:
            return self.decoder.prepare(features, None)
        return self.decoder.prepare(*pool_regions(features, shares, self.pooling))

    def _heads(self, seen: Seen, shown: Shown | None) -> dict[str, dict[str, Any]]:
        return {name: head(seen._replace(**(shown or {}).get(name, {}))) for name, head in self.heads.items()}

    def parameter_groups(self, lr: float, encoder_lr: float, weight_decay: float) -> Iterator[dict[str, object]]:
        """AdamW's groups: encoder, and decoder and heads, with learning rates of their own, no decay on vectors."""
        for module, rate in ((nn.ModuleList([self.decoder, self.heads]), lr), (self.encoder, encoder_lr)):
            trained = [p for p in module.parameters() if p.requires_grad]
            yield {"params": [p for p in trained if p.ndim > 1], "lr": rate, "weight_decay": weight_decay}
            yield {"params": [p for p in trained if p.ndim <= 1], "lr": rate, "weight_decay": 0.0}
