"""The captioner: encoder and decoder put together."""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from models.decoder import Decoder, Regions
from models.encoder import Encoder


class Output(NamedTuple):
    """What the losses see: logits [P, T, V], attention [P, T, N] over N regions, and what each head gives."""

    logits: Tensor
    attention: Tensor
    heads: dict[str, dict[str, Tensor]]


class Captioner(nn.Module):
    """A CNN encoder and an attention LSTM decoder.

    Where `visuals` are images (uint8 [B, 3, H, W]) the encoder sees them; where they are features of the frozen
    encoder (float [B, N, D], from the feature store) they go straight to the decoder.

    Args:
        encoder, decoder: the two parts. trainable_encoder: whether gradients reach the encoder. Its BatchNorm
            statistics stay as they were pretrained either way: batches here are small.
        heads: name -> module that takes the features [B, N, D] and gives a dict; they only serve training.
    """

    def __init__(
        self,
        encoder: Encoder,
        decoder: Decoder,
        trainable_encoder: bool = False,
        heads: Mapping[str, nn.Module] | None = None,
    ) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder, decoder
        self.heads = nn.ModuleDict(heads or {})
        self.trainable_encoder = trainable_encoder
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

    def features(self, visuals: Tensor) -> Tensor:
        """Region features [B, N, D] of images, or features as they are."""
        if visuals.ndim == 3:
            return visuals.to(self.decoder.key.weight.dtype)
        with torch.set_grad_enabled(self.trainable_encoder and torch.is_grad_enabled()):
            return self.encoder(visuals)

    def regions(self, visuals: Tensor) -> Regions:
        """What decoding needs of each image."""
        return self.decoder.prepare(self.features(visuals), None)

    def forward(self, visuals: Tensor, tokens: Tensor, image_of: Tensor) -> Output:
        """Teacher forcing of captions `tokens` [P, T] int64, caption p on image `image_of[p]`."""
        features = self.features(visuals)
        regions = self.decoder.prepare(features, None)
        logits, attention = self.decoder(regions.select(image_of), tokens)
        return Output(logits, attention, self._heads(features))

    def look(self, visuals: Tensor) -> dict[str, dict[str, Tensor]]:
        """What each head gives for these images."""
        return self._heads(self.features(visuals))

    def _heads(self, features: Tensor) -> dict[str, dict[str, Tensor]]:
        return {name: head(features) for name, head in self.heads.items()}

    def parameter_groups(self, lr: float, encoder_lr: float, weight_decay: float) -> Iterator[dict[str, object]]:
        """AdamW's groups: encoder, and decoder and heads, with learning rates of their own, no decay on vectors."""
        for module, rate in ((nn.ModuleList([self.decoder, self.heads]), lr), (self.encoder, encoder_lr)):
            trained = [p for p in module.parameters() if p.requires_grad]
            yield {"params": [p for p in trained if p.ndim > 1], "lr": rate, "weight_decay": weight_decay}
            yield {"params": [p for p in trained if p.ndim <= 1], "lr": rate, "weight_decay": 0.0}
