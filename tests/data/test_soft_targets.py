"""Soft targets: what is read is what was written, the rest spread evenly; other files are refused in one line."""

from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from data.errors import UserError
from data.soft_targets import Said, SoftTargets, write_soft_targets
from data.vocabulary import SPECIALS, Vocabulary
from models.tokens import END, START

VOCABULARY = Vocabulary([*SPECIALS, "a", "red", "plane", "é"])
CAPTIONS = [("0.png", (START, 4, 6, END)), ("0.png", (START, 4, 5, 6, END)), ("1.png", (START, END))]
WORDS = 3 + 4 + 1


def written(path: Path, top: int) -> list[torch.Tensor]:
    torch.manual_seed(0)
    log_p = [(3 * torch.randn(len(tokens) - 1, len(VOCABULARY))).log_softmax(-1) for _, tokens in CAPTIONS]
    said = [Said(name, tokens, values) for (name, tokens), values in zip(CAPTIONS, log_p, strict=True)]
    write_soft_targets(path, VOCABULARY, said, len(CAPTIONS), WORDS, top, {"teachers": ["x"]})
    return log_p


@pytest.mark.parametrize("top", [len(VOCABULARY), 1000])
def test_all_words_come_back(tmp_path: Path, top: int) -> None:
    log_p = written(tmp_path / "said.h5", top)
    targets = SoftTargets(tmp_path / "said.h5")
    assert targets.vocabulary.words == VOCABULARY.words
    targets.check(CAPTIONS)
    for (name, tokens), values in zip(CAPTIONS, log_p, strict=True):
        # float16 keeps eleven bits of log p
        torch.testing.assert_close(targets.read(name, tokens), values, rtol=2**-11, atol=1e-6)


@pytest.mark.parametrize("top", [1, 3])
def test_what_is_left_is_spread_evenly(tmp_path: Path, top: int) -> None:
    log_p = written(tmp_path / "said.h5", top)
    targets = SoftTargets(tmp_path / "said.h5")
    for (name, tokens), values in zip(CAPTIONS, log_p, strict=True):
        read = targets.read(name, tokens)
        assert read.shape == (len(tokens) - 1, len(VOCABULARY))
        for row, wanted in zip(read.exp().tolist(), values.exp().tolist(), strict=True):
            best = sorted(range(len(wanted)), key=lambda word: -wanted[word])[:top]
            rest = (1 - sum(wanted[word] for word in best)) / (len(wanted) - top)
            naive = [wanted[word] if word in best else rest for word in range(len(wanted))]
            assert row == pytest.approx(naive, rel=2e-2, abs=1e-3)  # of float16's log p of up to 10
            assert sum(row) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("top", [1, 2, len(VOCABULARY)])
def test_a_certain_teacher_leaves_no_word_impossible(tmp_path: Path, top: int) -> None:
    sure = torch.full((1, len(VOCABULARY)), -torch.inf)
    sure[0, END] = 0
    write_soft_targets(tmp_path / "said.h5", VOCABULARY, [Said("1.png", (START, END), sure)], 1, 1, top, {})
    read = SoftTargets(tmp_path / "said.h5").read("1.png", (START, END))
    assert read.isfinite().all() and float(read[0, END]) == 0 and float(read.exp().sum()) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("captions, words", [(len(CAPTIONS) + 1, WORDS), (len(CAPTIONS), WORDS + 1)])
def test_fewer_captions_than_announced_leave_no_file(tmp_path: Path, captions: int, words: int) -> None:
    log_p = torch.zeros(WORDS, len(VOCABULARY)).log_softmax(-1)
    said = [Said(name, tokens, log_p[: len(tokens) - 1]) for name, tokens in CAPTIONS]
    with pytest.raises(ValueError, match="were announced"):
        write_soft_targets(tmp_path / "said.h5", VOCABULARY, said, captions, words, 2, {})
    assert not list(tmp_path.iterdir())


def test_a_caption_that_nobody_was_asked_about(tmp_path: Path) -> None:
    written(tmp_path / "said.h5", 2)
    with pytest.raises(UserError, match=r"said\.h5: holds no soft targets of 1\.png, 'red plane'; write it with"):
        SoftTargets(tmp_path / "said.h5").check([CAPTIONS[0], ("1.png", (START, 5, 6, END))])


def replaced(name: str, values: object) -> object:
    def damage(path: Path) -> None:
        with h5py.File(path, "r+") as file:
            del file[name]
            if values is not None:
                file[name] = values

    return damage


@pytest.mark.parametrize(
    "damage",
    [
        Path.unlink,
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes()[:3000]),
        *(replaced(name, None) for name in ("vocabulary", "filenames", "lengths", "follows", "words", "log_p")),
        replaced("vocabulary", np.arange(8)),
        replaced("vocabulary", ["a", "b"]),
        replaced("filenames", ["0.png"]),
        replaced("lengths", np.array([3, 4, 2])),
        replaced("lengths", np.array([9, -2, 1])),
        replaced("follows", np.zeros((8, 2), int)),
        replaced("words", np.zeros((8, 3), int)),
        replaced("words", np.full((8, 2), 8)),
        replaced("words", np.full((8, 2), -1)),
        replaced("log_p", np.full((8, 2), np.nan)),
        replaced("log_p", np.full((8, 2), 0.5)),
        replaced("log_p", np.full((8, 2), -np.inf)),
    ],
)
def test_other_files_are_refused_in_one_line(tmp_path: Path, damage: object) -> None:
    path = tmp_path / "said.h5"
    written(path, 2)
    damage(path)  # type: ignore[operator]
    with pytest.raises(UserError, match=r"said\.h5: .*; write it with python -m utils\.teach") as error:
        targets = SoftTargets(path)
        targets.check(CAPTIONS)
        for name, tokens in CAPTIONS:
            targets.read(name, tokens)
    assert "\n" not in str(error.value)
