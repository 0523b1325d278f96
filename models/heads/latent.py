"""A latent code for the kinds of captions that an image has, for a decoder that says different things of one image."""

from typing import ClassVar

import torch
from torch import Tensor, nn

from models.heads import Seen
from models.tokens import PAD

LIMIT = 8.0  # of a log variance: their ratio stays a number, also where no loss holds it

# Shapes: B images, P captions, T words, D encoder channels, V vocabulary, Z dimensions of the code, E width inside.


class LatentHead(nn.Module):
    """A code z of a caption, Gaussian given image and caption, and given the image alone.

        posterior   z ~ N(mu, sigma^2),  mu, log sigma^2 = W [i, t]     t: last state of a GRU over the caption
        prior       z ~ N(m, s^2),       m, log s^2 = W' i              i = ReLU(U LN(mean_n feature_n))

    The decoder is told W'' z with every word: from a first state alone it learns to do without (the collapse of Bowman
    et al., CoNLL 2016). W'' begins at 0, so that a code disturbs no decoder that has yet to learn its words. In
    training z = mu + sigma eps comes from the posterior (Kingma and Welling, ICLR 2014), and `vae_kl` draws prior and
    posterior together; captions are made with z from the prior (a conditional VAE: Sohn et al., NeurIPS 2015; for
    captions Wang et al., NeurIPS 2017).

    Args:
        channels: D. vocabulary_size: V. told: the decoder's width. width: E. size: Z. dropout: on features and
            words of the posterior.
    """

    gives: ClassVar[tuple[str, ...]] = ("mu", "logvar", "prior_mu", "prior_logvar")

    def __init__(self, channels: int, vocabulary_size: int, told: int, width: int, size: int, dropout: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.image = nn.Sequential(nn.LayerNorm(channels), nn.Linear(channels, width), nn.ReLU())
        self.words = nn.Embedding(vocabulary_size, width, padding_idx=PAD)
        self.gru = nn.GRU(width, width, batch_first=True)
        self.prior, self.posterior = nn.Linear(width, 2 * size), nn.Linear(2 * width, 2 * size)
        self.tell = nn.Linear(size, told, bias=False)
        nn.init.zeros_(self.tell.weight)

    def forward(self, seen: Seen) -> dict[str, Tensor]:
        """`mu`, `logvar` of the posterior and `prior_mu`, `prior_logvar` of the prior, [P, Z] each; `told` [P, told].

        Told is, when not in training, the mean of the prior: what captions are made with unless a code is drawn.
        """
        image = self.image(self.dropout(seen.features.mean(1))).index_select(0, seen.image_of)
        states, _ = self.gru(self.dropout(self.words(seen.tokens)))
        last = (seen.tokens != PAD).sum(1) - 1
        text = states[torch.arange(len(states), device=last.device), last]
        mu, logvar = gaussian(self.posterior(torch.cat([image, text], 1)))
        prior_mu, prior_logvar = gaussian(self.prior(image))
        code = mu + torch.exp(0.5 * logvar) * torch.randn_like(mu) if self.training else prior_mu
        return {
            "mu": mu,
            "logvar": logvar,
            "prior_mu": prior_mu,
            "prior_logvar": prior_logvar,
            "told": self.tell(code),
        }

    def draw(self, features: Tensor, temperature: float = 0.0, generator: torch.Generator | None = None) -> Tensor:
        """What the decoder is told [B, told] of each image [B, h * w, D], with z = m + temperature s eps."""
        mu, logvar = gaussian(self.prior(self.image(features.mean(1))))
        if not temperature:
            return self.tell(mu)
        noise = torch.randn(mu.shape, generator=generator, device=mu.device)
        return self.tell(mu + temperature * torch.exp(0.5 * logvar) * noise)


def gaussian(numbers: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and log variance [P, Z] in float32, the latter within `LIMIT`, of any numbers [P, 2 Z]."""
    mu, logvar = numbers.float().chunk(2, 1)
    return mu, LIMIT * torch.tanh(logvar / LIMIT)
