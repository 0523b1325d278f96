"""When the decoder looks at the regions: before it hears a word, or after.

Each is an LSTM over words with soft attention over regions, whole captions at once (`run`) and a word further (`step`).
"""

import torch
from torch import Tensor, nn

from models.attention import energies, tanh, weights
from models.capture import replayed
from models.packing import Grouping
from models.recurrence import Lstm, Recurrence
from models.regions import Regions, State

# Shapes: B images, P captions, S words of all captions, N regions, E width.


class LookBefore(nn.Module):
    """Additive attention by the state before a word; the LSTM hears its context (Xu et al., ICML 2015).

        a_t, z_t = attention(regions, W_q h_{t-1});  z'_t = sigmoid(W_b h_{t-1}) * z_t   (gated context, section 4.2.1)
        h_t, c_t = LSTM([y_{t-1}, z'_t], h_{t-1}, c_{t-1})                               (eq. 1-3)

    with keys W_k v_n of the regions' values v_n. Words come one after the other, attention and all.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.key = nn.Linear(width, width)
        self.score = nn.Linear(width, 1, bias=False)
        # one matrix product gives all that depends on h_{t-1}: the query, the context's gate, the LSTM's recurrence
        self.from_hidden = nn.Linear(width, 6 * width)
        self.from_context = nn.Linear(width, 4 * width, bias=False)

    def keys(self, values: Tensor) -> Tensor:
        """What queries are compared with, [B, N, E] of values [B, N, E]."""
        return self.key(values)

    def run(
        self, regions: Regions, first: State, from_words: Tensor, grouping: Grouping, running: tuple[int, ...]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Hidden states [S, E], gated contexts [S, E] and attention [S, N] of packed words (models/packing.py).

        `first` [P, E] are the captions' first states in the order of their packing, as `grouping` is; `from_words`
        [S, 4 E] is what the gates hear of each word, `running` how many captions run at each step.
        """
        dtype = from_words.dtype
        parameters = (*self.from_hidden.parameters(), self.from_context.weight)
        return replayed(
            *(Recurrence.apply, regions.keys, regions.values, regions.mask, self._score(regions.keys)),
            *(grouping, running, *first, from_words, *(parameter.to(dtype) for parameter in parameters)),
        )

    def step(
        self, regions: Regions, state: State, from_words: Tensor, image_of: Tensor | None, after: Tensor | None
    ) -> tuple[State, Tensor, Tensor]:
        """The next state, gated context [P, E] and attention [P, N] after words of which gates hear `from_words`.

        `image_of` and `after` are those of `Decoder.step`. Where it looks does not depend on the word, so that it is
        computed once for all words that follow the same state, as beams and samples of an image often do.
        """
        width = state.hidden.shape[1]
        query, gate, recurrent = self.from_hidden(state.hidden).split([width, width, 4 * width], -1)
        captions = Grouping.of(query, regions.keys.shape[0], image_of)  # len() would fix it in an export
        context, attention = _look(regions, captions, query, gate, self._score(regions.keys))
        gates, cell = recurrent + self.from_context(context), state.cell
        if after is not None:
            gates, cell, context, attention = (p.index_select(0, after) for p in (gates, cell, context, attention))
        return _next(from_words + gates, cell), context, attention

    def _score(self, keys: Tensor) -> Tensor:
        return self.score.weight[0].to(keys.dtype)


class LookAfter(nn.Module):
    """Dot-product attention by the state after a word; the LSTM hears words alone (Luong et al., EMNLP 2015).

        h_t, c_t = LSTM(y_{t-1}, h_{t-1}, c_{t-1})
        a_t, z_t = attention(regions, W_q h_t);  z'_t = sigmoid(W_b h_t) * z_t

    (section 3.1, "general"; Lu et al., CVPR 2017, for captions.) No word waits for where another one looked, so that
    the looks of a whole batch are one matrix product. The keys are the values: W_k would do what W_q can do alone.
    The gate is not theirs; without it captions are worse (docs/experiments.md).
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.from_hidden = nn.Linear(width, 4 * width, bias=False)
        self.query = nn.Linear(width, 2 * width)  # and the context's gate

    def keys(self, values: Tensor) -> Tensor:
        """What queries are compared with: the values."""
        return values

    def run(
        self, regions: Regions, first: State, from_words: Tensor, grouping: Grouping, running: tuple[int, ...]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """As `LookBefore.run`."""
        hiddens = replayed(Lstm.apply, running, *first, from_words, self.from_hidden.weight.to(from_words.dtype))
        query, gate = self.query(hiddens).chunk(2, -1)
        return hiddens, *_look(regions, grouping.of_words(running), query, gate, None)

    def step(
        self, regions: Regions, state: State, from_words: Tensor, image_of: Tensor | None, after: Tensor | None
    ) -> tuple[State, Tensor, Tensor]:
        """As `LookBefore.step`; the words that follow the same state look each for itself."""
        gates, cell = self.from_hidden(state.hidden), state.cell
        if after is not None:
            gates, cell = gates.index_select(0, after), cell.index_select(0, after)
        state = _next(from_words + gates, cell)
        words_of = image_of if after is None or image_of is None else image_of[after]
        words = Grouping.of(state.hidden, regions.keys.shape[0], words_of)
        query, gate = self.query(state.hidden).chunk(2, -1)
        return state, *_look(regions, words, query, gate, None)


def _look(
    regions: Regions, grouping: Grouping, query: Tensor, gate: Tensor, score: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Gated context [P, E] and attention [P, N] of queries and gates [P, E], of one image as `grouping` says."""
    looked = weights(energies(regions.keys, grouping.split(query), score), regions.mask)
    context = grouping.join(looked.to(regions.values.dtype) @ regions.values)
    return torch.sigmoid(gate) * context, grouping.join(looked)


def _next(gates: Tensor, cell: Tensor) -> State:
    i, f, o, g = gates.to(cell.dtype).chunk(4, -1)
    cell = torch.sigmoid(f) * cell + torch.sigmoid(i) * tanh(g)
    return State((torch.sigmoid(o) * tanh(cell)).to(gates.dtype), cell)
