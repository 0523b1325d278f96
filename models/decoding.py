"""From a trained decoder to words: beam search, greedy, sampling; batched over images."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from models.decoder import Decoder, worth_sparing
from models.regions import Regions
from models.tokens import END, PAD, START, UNK

# Shapes: B images, K beams, V vocabulary, N regions.


@dataclass(frozen=True)
class Hypothesis:
    """A decoded caption.

    `tokens` are its words, without `<start>` and `<end>`; `score` is the log-probability of words and end, divided by
    their number to the power of the length penalty; `attention` [len(tokens), N] says where each word looked.
    """

    tokens: list[int]
    score: float
    attention: Tensor


@torch.no_grad()
def beam_search(
    decoder: Decoder, regions: Regions, beam_size: int = 5, max_words: int = 30, length_penalty: float = 1.0
) -> list[list[Hypothesis]]:
    """The `beam_size` best captions of each image, best first.

        score(y) = log p(y) / len(y)^length_penalty,   len counts the words and the end      (Wu et al. 2016, eq. 14,
                                                       with the plain power of the length)

    Every caption has one to `max_words` words; one that reaches `max_words` is ended there. An image is done when it
    has `beam_size` ended captions and none that still runs scores better, at its present length, than the worst of
    them. What is found for an image does not depend on the others in the batch.

    Args:
        regions: of B images, as `Decoder.prepare` gives them. beam_size, max_words: at least 1.
    """
    if beam_size < 1 or max_words < 1:
        raise ValueError(f"beam_size {beam_size} and max_words {max_words} must be at least 1")
    images, device = regions.keys.shape[0], regions.keys.device
    here = torch.arange(images, device=device)  # the images that are not done, [b]; what follows is theirs alone
    state = decoder.start(regions)
    running = torch.zeros(images, 1, device=device)  # log p of the captions that still run, [b, k]
    last = torch.full((images,), START, device=device)
    # the states that captions go on from, those of an image side by side: of which image each is, and which each
    # caption's is, since beams that went on from the same one share it; None: each caption has its own
    image_of = after = None

    # of all images: scores of the captions that have ended, sorted, and (words, beam) of their last words; and of
    # every step the words, the beams that they go on from and where these looked
    ended = torch.full((images, beam_size), -torch.inf, device=device)
    ended_at = torch.zeros(images, beam_size, 2, dtype=torch.long, device=device)
    words, parents = torch.zeros(2, max_words, images, beam_size, dtype=torch.long, device=device)
    attentions = torch.zeros(max_words, images, beam_size, regions.keys.shape[1], device=device)

    for length in range(max_words + 1):
        logits, state, attention = decoder.step(regions, state, last, image_of, after)
        log_p = _log_probabilities(logits).view(*running.shape, -1) + running[..., None]  # [b, k, V]
        beams, norm = running.shape[1], (length + 1) ** length_penalty
        worst = ended[here, -1]
        if length and bool((ending := log_p[..., END] / norm).gt(worst[:, None]).any()):
            best, order = torch.cat([ended[here], ending], 1).topk(beam_size, 1)
            beam = torch.arange(beams, device=device).expand_as(ending)
            at = torch.cat([ended_at[here], torch.stack([torch.full_like(beam, length), beam], -1)], 1)
            ended_at[here] = at.gather(1, order[..., None].expand(-1, -1, 2))
            ended[here], worst = best, best[:, -1]
        log_p[..., END] = -torch.inf
        running, flat = log_p.flatten(1).topk(min(beam_size, log_p[0].numel()), 1)
        going = running[:, 0] / norm > worst
        if length == max_words or not bool(going.any()):
            break
        parent, word = flat // log_p.shape[-1], flat % log_p.shape[-1]
        words[length, here, : word.shape[1]], parents[length, here, : word.shape[1]] = word, parent
        attentions[length, here, : word.shape[1]] = attention.view(len(here), beams, -1).gather(
            1, parent[..., None].expand(-1, -1, attention.shape[-1])
        )
        follows = torch.arange(len(here), device=device)[:, None] * beams + parent
        rows, after = follows[going].unique(return_inverse=True)
        state, last, after = state.select(rows), word[going].flatten(), after.flatten()
        image_of = (going.cumsum(0) - 1)[torch.div(rows, beams, rounding_mode="floor")]
        if not bool(going.all()):
            here, running, regions = here[going], running[going], regions.select(going.nonzero().flatten())
    return _trace(ended, ended_at, words, parents, attentions)


def _trace(
    ended: Tensor, ended_at: Tensor, words: Tensor, parents: Tensor, attentions: Tensor
) -> list[list[Hypothesis]]:
    """Follow each ended caption back from its last word to its first."""
    lengths, beam = ended_at.unbind(-1)  # [B, K]
    paths = torch.zeros_like(words)  # [T, B, K], the beam of each word
    for t in range(len(words) - 1, -1, -1):
        paths[t] = beam
        beam = torch.where(t < lengths, parents[t].gather(1, beam), beam)
    tokens = words.gather(2, paths).permute(1, 2, 0).tolist()
    looked = attentions.gather(2, paths[..., None].expand_as(attentions)).permute(1, 2, 0, 3).float().cpu()
    return [
        [
            Hypothesis(tokens[image][k][:length], score, looked[image, k, :length])
            for k, (score, length) in enumerate(zip(scores, its_lengths, strict=True))
            if score > -torch.inf  # fewer captions than beams: a vocabulary of a few words
        ]
        for image, (scores, its_lengths) in enumerate(zip(ended.tolist(), lengths.tolist(), strict=True))
    ]


@torch.no_grad()
def greedy(decoder: Decoder, regions: Regions, max_words: int = 30) -> list[Hypothesis]:
    """The most probable word at every step, until the end or `max_words`: one caption an image."""
    return _roll(decoder, regions, max_words, lambda log_p, after, rows: log_p.argmax(-1)[after])


@torch.no_grad()
def sample(
    decoder: Decoder,
    regions: Regions,
    max_words: int = 30,
    temperature: float = 1.0,
    generator: torch.Generator | None = None,
    samples: int = 1,
) -> list[Hypothesis]:
    """Words drawn from softmax(logits / temperature) until the end or `max_words`.

    `samples` captions an image, those of an image side by side.
    """
    if temperature <= 0:
        raise ValueError(f"temperature is {temperature}; it must be positive (greedy is its limit at 0)")

    def draw(log_p: Tensor, after: Tensor, rows: Tensor) -> Tensor:
        # torch.multinomial draws a number for every word of the vocabulary, which was a third of the time of samples
        drawn = torch.rand(len(rows), device=regions.keys.device, generator=generator).to(log_p.device)
        return _fall((log_p / temperature).softmax(-1).cumsum(-1, dtype=torch.float64), after, drawn)

    return _roll(decoder, regions, max_words, draw, samples)


@torch.no_grad()
def arithmetic_sample(
    decoder: Decoder, regions: Regions, max_words: int = 30, samples: int = 64, epsilon: float = 0.01
) -> list[Hypothesis]:
    """`samples` captions an image that share out its probability evenly, those of an image side by side.

    All captions lie end to end in [0, 1), each as long as it is probable; sample i is the one that (i + 1/2) / samples
    falls into. So every caption comes as often as it should, give or take one, nothing is drawn at random, and what is
    found for an image does not depend on the others in the batch. Of every word's probabilities those below `epsilon`
    are left out, but for the largest one: what label smoothing gave to all words.

    Args:
        regions: of B images, as `Decoder.prepare` gives them. samples: at least 1. epsilon: 0 to 1, which is greedy.

    Reference:
        Vilnis et al.: Arithmetic Sampling: Parallel Diverse Decoding for Large Language Models, ICML 2023.
        Hewitt, Manning, Liang: Truncation Sampling as Language Model Desmoothing, EMNLP 2022 (epsilon).
    """
    if samples < 1 or not 0 <= epsilon <= 1:
        raise ValueError(f"samples {samples} must be at least 1 and epsilon {epsilon} from 0 to 1")
    codes = (torch.arange(samples, device=_exact(regions.keys.device), dtype=torch.float64) + 0.5) / samples
    codes = codes.repeat(len(regions.keys))

    def read(log_p: Tensor, after: Tensor, rows: Tensor) -> Tensor:
        p = log_p.softmax(-1)  # one again where the end may not come yet
        p = torch.where(p < p.amax(-1, keepdim=True).clamp(max=epsilon), 0.0, p)
        ends = p.cumsum(-1, dtype=torch.float64)
        word = _fall(ends, after, codes[rows])
        high, low = ends[after, word], torch.where(word > 0, ends[after, word - 1], 0.0)
        codes[rows] = (codes[rows] * ends[after, -1] - low) / (high - low)  # where it falls within the word's own piece
        return word

    return _roll(decoder, regions, max_words, read, samples)


def _fall(ends: Tensor, row: Tensor, numbers: Tensor) -> Tensor:
    """Whose piece of its row each number in [0, 1) falls into, a share of the whole.

    `ends` float64 [R, V] is where the pieces of a row end, laid end to end.
    """
    # one search in all rows, each begun two after the one before it; rounding must not lift a number to the next one's
    start = 2.0 * torch.arange(len(ends), device=ends.device, dtype=torch.float64)
    at = start[row] + numbers.double().clamp(0, 1 - 1e-9) * ends[row, -1]
    found = torch.searchsorted((start[:, None] + ends).flatten(), at, right=True) - row * ends.shape[1]
    return found.clamp(0, ends.shape[1] - 1)  # where the pieces are NaN it is anywhere


def _exact(device: torch.device) -> torch.device:
    """Where numbers of a device are searched in float64, which Apple's GPUs do not have."""
    return torch.device("cpu") if device.type == "mps" else device


def _roll(
    decoder: Decoder,
    regions: Regions,
    max_words: int,
    choose: Callable[[Tensor, Tensor, Tensor], Tensor],
    samples: int = 1,
) -> list[Hypothesis]:
    """Captions word by word, `samples` an image.

    `choose` gets log-probabilities [R, V], of which row each caption that has not left the batch goes on from, and
    which of all captions these are, all on the device that `_exact` names, and gives a word for each.
    """
    images, device = regions.keys.shape[0], regions.keys.device
    exact = _exact(device)
    here = torch.arange(images, device=device)  # the images with a caption that still runs, [b]
    rows = torch.arange(images * samples, device=device)  # their captions
    running = torch.ones(images, samples, dtype=torch.bool, device=device)
    # states, those of an image side by side: of which image each is; and which each caption goes on from
    state, image_of, follows = decoder.start(regions), here, here.repeat_interleave(samples)
    last = torch.full((images * samples,), START, device=device)
    if not (sparing := worth_sparing(device)):
        state = state.select(follows)

    # of all images
    words = torch.full((max_words + 1, images, samples), END, device=device)
    attentions = torch.zeros(max_words + 1, images, samples, regions.keys.shape[1], device=device)
    total = torch.zeros(images, samples, device=device)

    for length in range(max_words + 1):
        if sparing:
            # samples of an image that have said the same so far are one; each pair as one number, which torch sorts
            # faster than pairs
            distinct, follows = (follows << 32 | last).unique(return_inverse=True)
            after, said = distinct >> 32, distinct & 0xFFFFFFFF
            logits, state, attention = decoder.step(regions, state, said, image_of, after)
            image_of, attention = image_of[after], attention[follows]
        else:
            logits, state, attention = decoder.step(regions, state, last)
            follows = torch.arange(len(last), device=device)
        log_p = _log_probabilities(logits)
        if length == 0:
            log_p[:, END] = -torch.inf
        if length == max_words:
            last = torch.full_like(last, END)
        else:
            last = choose(log_p.to(exact), follows.to(exact), rows.to(exact)).to(device)
        gained = log_p[follows, last].view_as(running)
        total[here] += torch.where(running, gained, 0.0)
        words[length, here] = torch.where(running, last.view_as(running), END)
        attentions[length, here] = attention.view(*running.shape, -1)
        running = running & (words[length, here] != END)
        going = running.any(1)
        if not bool(going.any()):
            break
        if sparing and not bool(going.all()):
            here, running, regions = here[going], running[going], regions.select(going.nonzero().flatten())
            stays, stay = going[image_of], going.repeat_interleave(samples)
            state, image_of = state.select(stays.nonzero().flatten()), (going.cumsum(0) - 1)[image_of[stays]]
            follows, last, rows = (stays.cumsum(0) - 1)[follows[stay]], last[stay], rows[stay]
    tokens, looked = words.flatten(1).T.tolist(), attentions.flatten(1, 2).transpose(0, 1).float().cpu()
    lengths = [row.index(END) for row in tokens]
    return [
        Hypothesis(row[:length], score / (length + 1), looked[i, :length])
        for i, (row, length, score) in enumerate(zip(tokens, lengths, total.flatten().tolist(), strict=True))
    ]


def _log_probabilities(logits: Tensor) -> Tensor:
    """Log-probabilities in float32; `<pad>`, `<start>` and `<unk>` are never said."""
    log_p = logits.float().log_softmax(-1)
    log_p[:, [PAD, START, UNK]] = -torch.inf
    return log_p
