"""A decoder that says all words at once (Libovicky and Helcl, EMNLP 2018; for captions Gao et al., 2019)."""

from typing import ClassVar

import torch
from torch import Tensor, nn

from models.decoding import Hypothesis
from models.heads import Seen
from models.tokens import END, PAD, START, UNK

# Shapes: B images, L slots, N cells, D encoder channels, V vocabulary, E width inside.

BLANK = PAD  # the class of a slot that says nothing


class Block(nn.Module):
    """A layer of a transformer (Vaswani et al., NeurIPS 2017, with the norms first) over slots that all see each other.

    Args:
        width: E, a multiple of 4. dropout: on what is added.
    """

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.slots = nn.MultiheadAttention(width, 4, batch_first=True)
        self.cells = nn.MultiheadAttention(width, 4, batch_first=True)
        self.inner = nn.Sequential(nn.Linear(width, 4 * width), nn.ReLU(), nn.Linear(4 * width, width))
        self.dropout = nn.Dropout(dropout)

    def forward(self, slots: Tensor, cells: Tensor) -> tuple[Tensor, Tensor]:
        """Slots [B, L, E] after they have seen themselves and cells [B, N, E], and attention [B, L, N] over these."""
        x = self.norms[0](slots)
        slots = slots + self.dropout(self.slots(x, x, x, need_weights=False)[0])
        looked, attention = self.cells(self.norms[1](slots), cells, cells)
        slots = slots + self.dropout(looked)
        return slots + self.dropout(self.inner(self.norms[2](slots))), attention


class ParallelHead(nn.Module):
    """L slots that each say a word or nothing, all at once; a caption is what is left of them (Graves et al., 2006).

        collapse(a a - a b b -) = a a b     equal neighbours are one word, then blanks go

    Args:
        channels: D. vocabulary_size: V. slots: L, at least 2 T - 1 for captions of T words (one word T times).
        width: E. layers: blocks. dropout: within them.
    """

    gives: ClassVar[tuple[str, ...]] = ("pred",)

    def __init__(
        self, channels: int, vocabulary_size: int, slots: int, width: int, layers: int, dropout: float
    ) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(slots, width))
        self.cells = nn.Sequential(nn.LayerNorm(channels), nn.Linear(channels, width), nn.ReLU(), nn.Dropout(dropout))
        self.blocks = nn.ModuleList(Block(width, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.classifier = nn.Linear(width, vocabulary_size)

    def look(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [B, L, V] and the last block's attention [B, L, N], of features [B, N, D]."""
        cells = self.cells(features)
        slots = self.queries.expand(len(cells), -1, -1)
        for block in self.blocks:
            slots, attention = block(slots, cells)
        return self.classifier(self.norm(slots)), attention

    def forward(self, seen: Seen) -> dict[str, Tensor]:
        """`pred` [L, B, V]: logits, a caption for each image."""
        return {"pred": self.look(seen.features)[0].transpose(0, 1)}

    def say(self, features: Tensor) -> list[Hypothesis]:
        """The caption of each image that its best path collapses to; `score` is that path's log p a word and end."""
        logits, attention = self.look(features)
        log_p = possible(logits)
        paths = log_p.argmax(-1)
        scores = log_p.amax(-1).sum(-1).tolist()
        return [
            Hypothesis(path[kept].tolist(), score / (int(kept.sum()) + 1), looked[kept])
            for path, kept, score, looked in zip(
                *(part.cpu() for part in (paths, left_of(paths))), scores, attention.float().cpu(), strict=True
            )
        ]


def possible(logits: Tensor) -> Tensor:
    """Log-probabilities [B, L, V] in float32 of what slots can say; every path has at least one word.

    `<start>`, `<end>` and `<unk>` are never said. Where every slot would be blank, the one with the most probable word
    says it.
    """
    log_p = logits.float().log_softmax(-1)
    log_p[..., [START, END, UNK]] = -torch.inf
    words, blank = log_p[..., BLANK + 1 :].amax(-1), log_p[..., BLANK]  # [B, L]
    silent = (words <= blank).all(1)
    first = words.argmax(1)
    log_p[silent, first[silent], BLANK] = -torch.inf
    return log_p


def left_of(paths: Tensor) -> Tensor:
    """Which slots of the paths [B, L] are left when they collapse, bool [B, L].

    >>> left_of(torch.tensor([[5, 5, 0, 5, 6, 6, 0]]))
    tensor([[ True, False, False,  True,  True, False, False]])
    """
    fresh = torch.ones_like(paths, dtype=torch.bool)
    fresh[:, 1:] = paths[:, 1:] != paths[:, :-1]
    return fresh & (paths != BLANK)


def words_said(logits: Tensor) -> list[list[int]]:
    """The words of each image that the best path of logits [B, L, V] collapses to."""
    paths = possible(logits).argmax(-1)
    return [path[kept].tolist() for path, kept in zip(paths, left_of(paths), strict=True)]
