"""Soft targets: the most probable next words after every token of every train caption, as a teacher said them once."""

import math
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import torch
from torch import Tensor

from data.errors import UserError, reason
from data.features import Store, new_store
from data.vocabulary import Vocabulary
from models.tokens import START

LEAST = 1e-8  # of the probability of a word that is named, or of all others together: none is impossible


class Said(NamedTuple):
    """What a teacher says of a caption: `tokens` from `<start>` to `<end>`, `log_p` [len(tokens) - 1, V]."""

    filename: str
    tokens: tuple[int, ...]
    log_p: Tensor


def write_soft_targets(
    path: Path, vocabulary: Vocabulary, said: Iterable[Said], captions: int, words: int, top: int, about: dict[str, Any]
) -> None:
    """Write the `top` = k most probable words at each place to `path`, whole or not at all.

    The HDF5 file holds `vocabulary` [V] and `filenames` [captions], text; `lengths` int32 [captions], how many words
    follow `<start>`, `<end>` among them; and of all captions' words in a row `follows` int32 [words], the annotated
    word, `words` int32 [words, k], the most probable ones, and `log_p` float16 [words, k]. `about` goes into its
    attributes. Any program can write such a file: one caption of a file name must hold what a run trains on.
    """
    top = min(top, len(vocabulary))
    with new_store(path, about) as file:
        text = h5py.string_dtype()
        file.create_dataset("vocabulary", data=list(vocabulary.words), dtype=text)
        names = file.create_dataset("filenames", (captions,), text)
        lengths = file.create_dataset("lengths", (captions,), "int32")
        follows = file.create_dataset("follows", (words,), "int32")
        likely = file.create_dataset("words", (words, top), "int32")
        log_p = file.create_dataset("log_p", (words, top), "float16")
        row = begin = 0
        for caption in said:
            end = begin + len(caption.tokens) - 1
            best = caption.log_p.float().topk(top)
            names[row], lengths[row], follows[begin:end] = caption.filename, end - begin, caption.tokens[1:]
            likely[begin:end] = best.indices.cpu().numpy()
            log_p[begin:end] = best.values.clamp(min=math.log(LEAST)).cpu().numpy()
            row, begin = row + 1, end
        if (row, begin) != (captions, words):
            raise ValueError(f"{row} captions of {begin} words came, {captions} of {words} were announced")


class SoftTargets(Store):
    """Reads what `write_soft_targets` wrote. `UserError` where the file is none of soft targets."""

    remedy = "write it with python -m utils.teach"

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        try:
            words = self.records("vocabulary").asstr()[:].tolist()
            names = self.records("filenames").asstr()[:].tolist()
            ends = np.cumsum([0, *self.records("lengths")[:].tolist()]).tolist()
            follows = self.records("follows")[:].tolist()
            shape = self.records("words").shape
            if not (len(shape) == 2 and shape == self.records("log_p").shape):
                raise ValueError("words and log_p differ in shape")
            if not (ends == sorted(ends) and len(names) == len(ends) - 1 and ends[-1] == len(follows) == shape[0]):
                raise ValueError("its captions' lengths do not add up")
            self.vocabulary = Vocabulary(words)
            self._places = {
                (name, (START, *follows[begin:end])): slice(begin, end)
                for name, (begin, end) in zip(names, pairwise(ends), strict=True)
            }
        except UserError:
            raise
        except Exception as error:  # whatever a stranger's file leads to
            raise UserError(f"{path}: not a file of soft targets ({reason(error)}); {self.remedy}") from None

    def check(self, captions: Iterable[tuple[str, tuple[int, ...]]]) -> None:
        """`UserError` unless the file holds each of these captions, (file name, tokens)."""
        for name, tokens in captions:
            if (name, tokens) not in self._places:
                text = " ".join(self.vocabulary.decode(tokens))
                raise UserError(
                    f"{self.path}: holds no soft targets of {name}, {text[:60]!r}; {self.remedy} from the "
                    "captions that the run trains on"
                )

    def read(self, filename: str, tokens: tuple[int, ...]) -> Tensor:
        """Log p of every word after each token, float32 [len(tokens) - 1, V].

        What the k named words leave of the probability is spread evenly over the others.
        """
        place = self._places[filename, tokens]
        likely, log_p = (torch.from_numpy(self.records(name)[place]) for name in ("words", "log_p"))
        if len(likely) and not 0 <= likely.min() <= likely.max() < len(self.vocabulary):
            raise UserError(f"{self.path}: names words that its vocabulary has not; {self.remedy}")
        log_p = log_p.float()
        if not ((log_p <= 0) & log_p.isfinite()).all():
            raise UserError(f"{self.path}: holds numbers that are no log p; {self.remedy}")
        others = max(1, len(self.vocabulary) - likely.shape[1])
        rest = (1 - log_p.exp().sum(-1, keepdim=True)).clamp(min=LEAST) / others
        return rest.log().expand(-1, len(self.vocabulary)).scatter(1, likely.long(), log_p)
