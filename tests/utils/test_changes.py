import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from data.errors import UserError
from data.transforms import Preprocessing
from data.vocabulary import SPECIALS, Vocabulary
from models.encoder import Encoder
from utils.changes import changes
from utils.checkpoint import Checkpoint, build_captioner, load_checkpoint, save_checkpoint
from utils.config import parse_config
from utils.pretrained import load_encoder

LITE = "tf_efficientnet_lite0"
RANK = 8


@pytest.fixture
def tuned() -> Encoder:
    """Learned: by noise, all but the first layer; the last layer's change is of rank 1, large beside what it was."""
    torch.manual_seed(0)
    encoder = load_encoder(LITE, "pip")
    weights = [parameter for parameter in encoder.parameters() if parameter.ndim > 1]
    with torch.no_grad():
        for weight in weights[1:-1]:
            weight.add_(0.1 * weight.std() * torch.randn_like(weight))
        out, into = weights[-1].flatten(1).shape
        weights[-1].add_((torch.randn(out, 1) @ torch.randn(1, into)).view_as(weights[-1]))
    return encoder


def write(path: Path, encoder: Encoder, rank: int) -> Checkpoint:
    config = parse_config({"model": {"encoder": {"name": LITE}, "decoder": {"width": 8}}, "data": {"size": 64}}, "")
    vocabulary = Vocabulary([*SPECIALS, "a", "plane"])
    captioner = build_captioner(config, encoder, len(vocabulary), 1280).eval()
    checkpoint = Checkpoint(captioner, vocabulary, Preprocessing(64), config, {})
    save_checkpoint(path, checkpoint, torch.float16, changes(encoder, rank))
    return checkpoint


def test_a_file_holds_the_nearest_change_of_a_rank(tuned: Encoder, tmp_path: Path) -> None:
    """Against Eckart and Young: what is lost is what the other singular values have, and rounding."""
    write(tmp_path / "c", tuned, RANK)
    held, loaded = load_file(tmp_path / "c"), load_checkpoint(tmp_path / "c").captioner.encoder.state_dict()
    begun = load_encoder(LITE, "pip").state_dict()
    factored = 0
    for name, value in tuned.state_dict().items():
        if f"encoder.{name}.left" not in held:
            whole = f"encoder.{name}" in held
            assert torch.equal(loaded[name], value.half().float() if whole else begun[name]), name
            assert not whole or value.ndim == 1 or RANK * sum(value.flatten(1).shape) >= value.numel(), name
            continue
        factored += 1
        change = (value - begun[name]).flatten(1).double()
        lost = float(torch.linalg.svdvals(change)[RANK:].square().sum())
        error = float((loaded[name] - value).double().square().sum())
        # each factor is rounded to 11 bits: 2^-11 of the change at most, squared
        assert error == pytest.approx(lost, rel=1e-3, abs=2**-20 * float(change.square().sum())), name
    assert factored > 30
    assert not any("conv_stem" in name or "running" in name for name in held)  # as pip brings them
    last = next(name for name, value in reversed(tuned.state_dict().items()) if value.ndim > 1)
    change = tuned.state_dict()[last] - begun[last]
    # of rank 1: two factors, each rounded to 11 bits, and a sum in float32
    assert ((loaded[last] - tuned.state_dict()[last]).abs() <= (2**-10 + 2**-20) * change.abs() + 2**-20).all()


def test_what_ships_can_be_shipped_again(tuned: Encoder, tmp_path: Path) -> None:
    write(tmp_path / "once", tuned, RANK)
    once = load_checkpoint(tmp_path / "once").captioner.encoder
    write(tmp_path / "twice", once, RANK)
    twice = load_checkpoint(tmp_path / "twice").captioner.encoder.state_dict()
    assert set(load_file(tmp_path / "once")) == set(load_file(tmp_path / "twice"))
    for name, value in once.state_dict().items():
        torch.testing.assert_close(twice[name], value, rtol=2**-9, atol=2**-9)  # factors are rounded once more


def test_what_did_not_begin_with_pips_weights_is_whole(tmp_path: Path) -> None:
    torch.manual_seed(0)
    other = load_encoder(LITE, "none")
    write(tmp_path / "c", other, RANK)
    assert not [name for name in load_file(tmp_path / "c") if name.endswith((".left", ".right"))]
    loaded = load_checkpoint(tmp_path / "c").captioner.encoder.state_dict()
    for name, value in other.state_dict().items():
        torch.testing.assert_close(loaded[name], value, rtol=2**-11, atol=2**-24)  # float16's


def test_without_a_rank_what_learned_is_whole(tuned: Encoder, tmp_path: Path) -> None:
    write(tmp_path / "c", tuned, 0)
    loaded = load_checkpoint(tmp_path / "c").captioner.encoder.state_dict()
    for name, value in tuned.state_dict().items():
        torch.testing.assert_close(loaded[name], value, rtol=2**-11, atol=2**-24)  # float16's


def test_factors_that_do_not_fit_are_refused(tuned: Encoder, tmp_path: Path) -> None:
    write(tmp_path / "c", tuned, RANK)
    tensors = load_file(tmp_path / "c")
    with safe_open(tmp_path / "c", "pt") as file:
        metadata = file.metadata()
    left = next(name for name in tensors if name.endswith(".left"))
    right = left.replace(".left", ".right")
    huge = 1_000_000  # a matrix of four terabytes, of factors without a byte
    wrong: dict[str, dict[str, torch.Tensor]] = {
        "of one the other is missing": {left: tensors[left]},
        "of other sizes": {left: tensors[left][1:], right: tensors[right]},
        "empty": {left: torch.zeros(huge, 0), right: torch.zeros(0, huge)},
        "of other ranks": {left: tensors[left][:, 1:], right: tensors[right]},
        "no matrices": {left: tensors[left][0], right: tensors[right][:, 0]},
        "not finite": {left: tensors[left], right: tensors[right] / 0},
    }
    for what, factors in wrong.items():
        others = {name: value for name, value in tensors.items() if name not in (left, right)}
        save_file({k: v.contiguous() for k, v in (others | factors).items()}, tmp_path / "wrong", metadata)
        with pytest.raises(UserError, match=f"^{tmp_path / 'wrong'}: its parts do not fit each other") as caught:
            load_checkpoint(tmp_path / "wrong")
        assert "\n" not in str(caught.value), what
    names = json.loads(metadata["pip"])
    names["tensors"].remove(left.removesuffix(".left"))  # of a tensor that does not begin with pip's
    save_file(tensors, tmp_path / "wrong", metadata | {"pip": json.dumps(names)})
    with pytest.raises(UserError, match="do not fit"):
        load_checkpoint(tmp_path / "wrong")
