"""The same captioner as it is usually written: what benchmarks/speed.py compares speed with, and nothing else.

Show, Attend and Tell in plain torch modules and float32: every caption by itself with its own copy of its image's
regions, additive attention and an LSTMCell word by word, autograd through it all, beam search for one image at a time,
and an encoder run as timm gives it. The equations are those of models.decoder.Decoder with additive attention, so that
`Yardstick.of(decoder)` says the same (tests/test_yardstick.py).
"""

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.decoder import Decoder
from models.looking import LookBefore
from models.tokens import END, PAD, START, UNK

BATCH = 32  # captions a step, images an encoder sees at a time

# Shapes: P captions, T words, V vocabulary, N regions, D encoder channels, E width.


class Yardstick(nn.Module):
    def __init__(self, vocabulary_size: int, channels: int, width: int, dropout: float) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary_size, width)
        self.region = nn.Sequential(nn.LayerNorm(channels), nn.Linear(channels, width), nn.ReLU(), nn.Dropout(dropout))
        self.key, self.query, self.gate = (nn.Linear(width, width) for _ in range(3))
        self.score = nn.Linear(width, 1, bias=False)
        self.initial_hidden, self.initial_cell = nn.Linear(width, width), nn.Linear(width, width)
        self.lstm = nn.LSTMCell(2 * width, width)
        self.output_context = nn.Linear(width, width)
        self.classifier = nn.Linear(width, vocabulary_size)
        self.dropout = nn.Dropout(dropout)

    @classmethod
    @torch.no_grad()
    def of(cls, decoder: Decoder) -> "Yardstick":
        """The yardstick with the weights of a decoder with additive attention."""
        vocabulary_size, width = decoder.embedding.weight.shape
        channels = decoder.get_parameter("region.1.weight").shape[1]
        model, looking = cls(vocabulary_size, channels, width, decoder.dropout.p), decoder.looking
        assert isinstance(looking, LookBefore)
        for name in ("embedding", "region", "output_context", "classifier"):
            getattr(model, name).load_state_dict(getattr(decoder, name).state_dict())
        for name in ("key", "score"):
            getattr(model, name).load_state_dict(getattr(looking, name).state_dict())
        for kind in ("weight", "bias"):
            hidden, cell = getattr(decoder.initial, kind).chunk(2)
            getattr(model.initial_hidden, kind).copy_(hidden)
            getattr(model.initial_cell, kind).copy_(cell)
            query, gate, recurrent = getattr(looking.from_hidden, kind).split([width, width, 4 * width])
            getattr(model.query, kind).copy_(query)
            getattr(model.gate, kind).copy_(gate)
            getattr(model.lstm, f"{kind}_hh").copy_(_torchs_order(recurrent))
        inputs = torch.cat([decoder.from_word.weight, looking.from_context.weight], 1)
        model.lstm.weight_ih.copy_(_torchs_order(inputs))
        model.lstm.bias_ih.copy_(_torchs_order(decoder.from_word.bias))
        return model

    def start(self, regions: Tensor) -> tuple[Tensor, Tensor]:
        mean = regions.mean(1)
        return torch.tanh(self.initial_hidden(mean)), torch.tanh(self.initial_cell(mean))

    def step(
        self, regions: Tensor, hidden: Tensor, cell: Tensor, tokens: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Logits [P, V], the new state and attention [P, N] after `tokens` [P], of regions [P, N, E]."""
        query = self.query(hidden)[:, None]
        attention = self.score(torch.tanh(self.key(regions) + query)).squeeze(2).softmax(1)
        context = torch.sigmoid(self.gate(hidden)) * (attention[:, :, None] * regions).sum(1)
        words = self.dropout(self.embedding(tokens))
        hidden, cell = self.lstm(torch.cat([words, context], 1), (hidden, cell))
        return self.classifier(self.dropout(hidden + self.output_context(context) + words)), hidden, cell, attention

    def forward(self, features: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [P, T, V] and attention [P, T, N] after each of tokens [P, T], of features [P, N, D]."""
        regions = self.region(features)
        hidden, cell = self.start(regions)
        logits, attentions = [], []
        for t in range(tokens.shape[1]):
            logit, hidden, cell, attention = self.step(regions, hidden, cell, tokens[:, t])
            logits.append(logit)
            attentions.append(attention)
        return torch.stack(logits, 1), torch.stack(attentions, 1)


def _torchs_order(gates: Tensor) -> Tensor:
    i, f, o, g = gates.chunk(4)
    return torch.cat([i, f, g, o])


def train_step(model: Yardstick, optimizer: torch.optim.Optimizer, features: Tensor, tokens: Tensor) -> None:
    """Cross-entropy and doubly stochastic attention of captions [P, T + 1] on features [P, N, D]."""
    logits, attention = model(features, tokens[:, :-1])
    loss = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), ignore_index=PAD, label_smoothing=0.1)
    loss = loss + 0.01 * (1 - attention.sum(1)).square().mean()
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 5.0)
    optimizer.step()


@torch.no_grad()
def beam_search(
    model: Yardstick, features: Tensor, beam_size: int = 5, max_words: int = 30
) -> list[tuple[float, list[int]]]:
    """(log-probability a word, words) of the best captions of one image, features [1, N, D], best first."""
    regions = model.region(features)
    hidden, cell = model.start(regions)
    running: list[tuple[float, list[int]]] = [(0.0, [])]
    ended: list[tuple[float, list[int]]] = []
    for length in range(max_words + 1):
        last = regions.new_tensor([words[-1] if words else START for _, words in running], dtype=torch.long)
        logits, hidden, cell, _ = model.step(regions.expand(len(last), -1, -1), hidden, cell, last)
        log_p = logits.log_softmax(1)
        log_p[:, [PAD, START, UNK]] = -torch.inf
        total = log_p + log_p.new_tensor([score for score, _ in running])[:, None]
        if length:
            ended += [(float(row[END]) / (length + 1), words) for row, (_, words) in zip(total, running, strict=True)]
            ended = sorted(ended, key=lambda item: -item[0])[:beam_size]
        total[:, END] = -torch.inf
        scores, flat = total.flatten().topk(beam_size)
        done = len(ended) == beam_size and float(scores[0]) / (length + 1) <= ended[-1][0]
        if done or length == max_words:
            break
        parents, words = flat // logits.shape[1], flat % logits.shape[1]
        running = [
            (float(score), [*running[parent][1], int(word)])
            for score, parent, word in zip(scores, parents.tolist(), words, strict=True)
        ]
        hidden, cell = hidden[parents], cell[parents]
    return ended


def encoder(name: str) -> nn.Module:
    """A CNN as timm gives it, with BatchNorm in evaluation mode."""
    return timm.create_model(name, num_classes=0).eval()


def encode(model: nn.Module, images: Tensor) -> Tensor:
    """Features [B, N, D] of uint8 images [B, 3, H, W]."""
    return model.forward_features((images.float() / 255 - 0.5) / 0.5).flatten(2).transpose(1, 2)  # type: ignore[operator]
