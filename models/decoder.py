"""The LSTM decoder with soft attention over regions (Xu et al., "Show, Attend and Tell", ICML 2015)."""

from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.attention import energies, weights
from models.dropout import Dropout
from models.packing import Grouping, Packing
from models.rectangle import recur

# Shapes: B images, P captions (B * c where each image has c of them, side by side), T words of the longest, S of all,
# V vocabulary, N regions, D encoder channels, E width of everything inside.


class Regions(NamedTuple):
    """What the decoder needs of each image, computed once: keys and values [B, N, E], mask [B, N] or None.

    `told` [B, 4 E] is what the LSTM's gates hear of a head with every word (`Decoder.hear`); None: nothing.
    """

    keys: Tensor
    values: Tensor
    mask: Tensor | None
    told: Tensor | None = None

    def select(self, rows: Tensor) -> "Regions":
        """The regions of these rows, in this order."""
        mask, told = (None if part is None else part.index_select(0, rows) for part in (self.mask, self.told))
        values = self.values.index_select(0, rows)
        return Regions(values if self.keys is self.values else self.keys.index_select(0, rows), values, mask, told)


class State(NamedTuple):
    """The LSTM's hidden state and cell, [P, E] each."""

    hidden: Tensor
    cell: Tensor

    def select(self, rows: Tensor) -> "State":
        """The states of these rows, in this order."""
        return State(self.hidden.index_select(0, rows), self.cell.index_select(0, rows))


class Decoder(nn.Module):
    """An LSTM that looks at the regions before each word.

        a_t, z_t = attention(regions, W_q h_{t-1});  z'_t = sigmoid(W_b h_{t-1}) * z_t   (gated context, section 4.2.1)
        h_t, c_t = LSTM([y_{t-1}, z'_t], h_{t-1}, c_{t-1})                               (eq. 1-3)
        logits_t = W_o (dropout(h_t + W_z z'_t + y_{t-1}))                               (deep output, eq. 7)

    h_0 and c_0 come from the mean of the regions. y is the embedding of a word; W_o is tied to it (Press & Wolf,
    EACL 2017), since 17,813 distinct captions are few. What a head tells is added to y where the LSTM reads it.
    The LSTM hears y without dropout, so that each distinct word is read once. Additive attention has keys W_k v_n;
    under the dot product W_k would do what W_q can do alone, and the keys are the values.

    Args:
        vocabulary_size: V. channels: D of the region features. width: E.
        dropout: on regions, and in eq. 7 on y and on the sum. attention: "additive" or "dot" (models/attention.py).
    """

    def __init__(
        self, vocabulary_size: int, channels: int, width: int, dropout: float, attention: str = "additive"
    ) -> None:
        super().__init__()
        self.width = width
        self.embedding = nn.Embedding(vocabulary_size, width)
        self.region = nn.ModuleList([nn.LayerNorm(channels), nn.Linear(channels, width)])
        self.attention = nn.ModuleDict()
        if attention == "additive":
            self.attention["key"] = nn.Linear(width, width)
            self.attention["score"] = nn.Linear(width, 1, bias=False)
        self.initial = nn.Linear(width, 2 * width)
        # one matrix product gives all that depends on h_{t-1}: the query, the context's gate, the LSTM's recurrence
        self.from_hidden = nn.Linear(width, 6 * width)
        self.from_word = nn.Linear(width, 4 * width)
        self.from_context = nn.Linear(width, 4 * width, bias=False)
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
        return Regions(self.attention["key"](values) if self.attention else values, values, mask)

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
        images = len(regions.keys)
        grouping = Grouping.of(tokens, images, image_of)
        if lengths is None:
            lengths = tokens.new_full(tokens.shape[:1], tokens.shape[1])
        packing = Packing.of(lengths, tokens.shape[1])
        grouping = grouping.ordered(packing.order)
        words, from_words = self._read(packing.pack(tokens))  # [S, ...]; none of it depends on the state
        if told is not None:
            from_words = from_words + told.index_select(0, packing.caption)
        start = self.start(regions)
        hiddens, contexts, attention = recur(
            *(regions.keys, regions.values, regions.mask, self._score(regions.keys), grouping, packing.running),
            *(grouping.repeat(start.hidden), grouping.repeat(start.cell), from_words),
            *(
                parameter.to(from_words.dtype)
                for parameter in (*self.from_hidden.parameters(), self.from_context.weight)
            ),
        )
        logits = self._logits(hiddens, self.output_context(contexts), words)
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
        state `after[p]`; None: state p. Where the decoder looks does not depend on the token, so that it is computed
        once for all that follow the same state, as beams and samples of an image often do.
        """
        words, from_words = self._read(tokens)
        query, gate, recurrent = self.from_hidden(state.hidden).split([self.width, self.width, 4 * self.width], -1)
        images = regions.keys.shape[0]  # len() would fix it in an export
        captions = Grouping.of(query, images, image_of)
        looked = weights(energies(regions.keys, captions.split(query), self._score(regions.keys)), regions.mask)
        attention, attended = captions.join(looked), captions.join(looked.to(regions.values.dtype) @ regions.values)
        context = torch.sigmoid(gate) * attended
        gates, shown, cell = recurrent + self.from_context(context), self.output_context(context), state.cell
        if regions.told is not None:
            gates = gates + captions.repeat(regions.told)
        if after is not None:
            gates, shown, cell, attention = (part.index_select(0, after) for part in (gates, shown, cell, attention))
        i, f, o, g = (from_words + gates).chunk(4, -1)
        cell = torch.sigmoid(f) * cell + torch.sigmoid(i) * torch.tanh(g)
        hidden = torch.sigmoid(o) * torch.tanh(cell).to(o.dtype)
        return self._logits(hidden, shown, words), State(hidden, cell), attention

    def _read(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Embeddings of the words, [..., E], and what the LSTM's gates get of them, [..., 4 E]."""
        if torch.compiler.is_exporting():  # how many words are distinct would be a shape that depends on the data
            words = self.embedding(tokens)
            return words, self.from_word(words)
        distinct, which = tokens.unique(return_inverse=True)
        words = self.embedding(distinct)
        return self.dropout(functional.embedding(which, words)), functional.embedding(which, self.from_word(words))

    def hear(self, told: Tensor) -> Tensor:
        """What the LSTM's gates get [..., 4 E] of what a head tells [..., E], added to that of every word."""
        return functional.linear(told, self.from_word.weight)

    def _score(self, keys: Tensor) -> Tensor | None:
        return self.attention.get_parameter("score.weight")[0].to(keys.dtype) if self.attention else None

    def _logits(self, hidden: Tensor, shown: Tensor, words: Tensor) -> Tensor:
        return self.classifier(self.dropout(hidden + shown + words))
