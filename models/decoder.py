"""The LSTM decoder with soft attention over regions (Xu et al., "Show, Attend and Tell", ICML 2015)."""

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.capture import worth_capturing
from models.dropout import Dropout
from models.looking import LookAfter, LookBefore
from models.packing import Grouping, Layout, Packing, rectangle, staircase
from models.regions import Regions, State

# Shapes: B images, P captions (B * c where each image has c of them, side by side), T words of the longest, S of all,
# V vocabulary, N regions, D encoder channels, E width of everything inside.


class Decoder(nn.Module):
    """An LSTM that looks at the regions for each word.

        h_t, z'_t = the LSTM's state after y_{t-1}, and the gated context of its attention  (models/looking.py)
        logits_t  = W_o (dropout(h_t + W_z z'_t + y_{t-1}))                                  (deep output, eq. 7)

    h_0 and c_0 come from the mean of the regions. y is the embedding of a word; W_o is tied to it (Press & Wolf,
    EACL 2017), since RSICD's 17,811 distinct captions are few. What a head tells is added to y where the LSTM reads it.
    The LSTM hears y without dropout, so that each distinct word can be read once.

    Args:
        vocabulary_size: V. channels: D of the region features. width: E.
        dropout: on regions, and in eq. 7 on y and on the sum.
        attention: "additive", which looks before it hears a word (Xu et al.), or "dot", which looks after it (Luong et
            al.).
    """

    def __init__(
        self, vocabulary_size: int, channels: int, width: int, dropout: float, attention: str = "additive"
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary_size, width)
        self.region = nn.ModuleList([nn.LayerNorm(channels), nn.Linear(channels, width)])
        self.looking = LookBefore(width) if attention == "additive" else LookAfter(width)
        self.initial = nn.Linear(width, 2 * width)
        self.from_word = nn.Linear(width, 4 * width)
        self.output_context = nn.Linear(width, width)
        self.classifier = nn.Linear(width, vocabulary_size)
        self.dropout = Dropout(dropout)
        nn.init.normal_(self.embedding.weight, std=width**-0.5)
        self.classifier.weight = self.embedding.weight
        nn.init.zeros_(self.classifier.bias)

    def prepare(self, features: Tensor, mask: Tensor | None) -> Regions:
        """Project region features [B, N, D]; `mask` bool [B, N] says which regions are there (None: all)."""
        norm, project = cast(nn.LayerNorm, self.region[0]), cast(nn.Linear, self.region[1])
        # the norm's scale and shift move into the projection: for their sake alone a gradient of [B, N, D] is too dear
        weight, bias = project.weight * norm.weight, project.bias + project.weight @ norm.bias
        plain = functional.layer_norm(features, list(norm.normalized_shape), eps=norm.eps)
        values = self.dropout(functional.linear(plain, weight, bias).relu())
        return Regions(self.looking.keys(values), values, mask)

    def start(self, regions: Regions) -> State:
        """h_0 and c_0 from the mean of the regions that are there."""
        if regions.mask is None:
            mean = regions.values.mean(1)
        else:
            present = regions.mask[..., None].to(regions.values.dtype)
            mean = (regions.values * present).sum(1) / present.sum(1)
        hidden, cell = torch.tanh(self.initial(mean)).chunk(2, -1)
        return State(hidden, cell.float())

    def forward(
        self,
        regions: Regions,
        tokens: Tensor,
        image_of: Tensor | None = None,
        told: Tensor | None = None,
        lengths: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Teacher forcing: logits [P, T, V] and attention [P, T, N] after each of `tokens` [P, T] int64.

        Caption p is of image `image_of[p]`, those of one image side by side; None: one caption an image. `told`
        [P, 4 E] is what the gates `hear` of a head with each caption, in place of what the regions hold. Of
        caption p the first `lengths[p]` tokens are read, at least one, and both are 0 after the others; None: all are.
        """
        grouping = Grouping.of(tokens, len(regions.keys), image_of)
        if lengths is None:
            lengths = tokens.new_full(tokens.shape[:1], tokens.shape[1])
        packing = Packing.of(lengths, tokens.shape[1], _layout(regions.values))
        grouping = grouping.ordered(packing.order).filled(packing.running[0])
        words, from_words = self._read(packing.pack(tokens))  # [S, ...]; none of it depends on the state
        if told is not None:
            from_words = from_words + told.index_select(0, packing.caption)
        first = State(*(grouping.repeat(part) for part in self.start(regions)))
        hiddens, contexts, attention = self.looking.run(regions, first, from_words, grouping, packing.running)
        logits = self._logits(hiddens, contexts, words)
        return packing.unpack(logits), packing.unpack(attention)

    def step(
        self,
        regions: Regions,
        state: State,
        tokens: Tensor,
        image_of: Tensor | None = None,
        after: Tensor | None = None,
    ) -> tuple[Tensor, State, Tensor]:
        """One word further: logits [P, V], the new state and attention [P, N] after `tokens` [P] int64.

        State s is of image `image_of[s]`, those of an image side by side; None: as many of every image. Token p follows
        state `after[p]`, those of an image side by side, too; None: state p.
        """
        words, from_words = self._read(tokens)
        if regions.told is not None:
            told = Grouping.of(state.hidden, len(regions.told), image_of).repeat(regions.told)
            from_words = from_words + (told if after is None else told.index_select(0, after))
        state, context, attention = self.looking.step(regions, state, from_words, image_of, after)
        return self._logits(state.hidden, context, words), state, attention

    def _read(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Embeddings of the words, [..., E], and what the LSTM's gates get of them, [..., 4 E]."""
        if torch.compiler.is_exporting() or not worth_sparing(tokens.device):
            words = self.embedding(tokens)  # in an export the number of distinct ones would depend on the data
            return self.dropout(words), self.from_word(words)
        distinct, which = tokens.unique(return_inverse=True)
        words = self.embedding(distinct)
        return self.dropout(functional.embedding(which, words)), functional.embedding(which, self.from_word(words))

    def hear(self, told: Tensor) -> Tensor:
        """What the LSTM's gates get [..., 4 E] of what a head tells [..., E], added to that of every word."""
        return functional.linear(told, self.from_word.weight)

    def _logits(self, hidden: Tensor, context: Tensor, words: Tensor) -> Tensor:
        return self.classifier(self.dropout(hidden + self.output_context(context) + words))


def worth_sparing(device: torch.device) -> bool:
    """Whether to find out what need not be computed is faster than to compute it: a GPU has it before Python knows."""
    return device.type == "cpu"


def _layout(values: Tensor) -> Layout:
    """How captions are laid out where values [B, N, E] are looked at: what is fastest there."""
    if worth_capturing(values):
        return rectangle
    return staircase if values.dtype == torch.bfloat16 and values.device.type == "cpu" else tuple
