"""What is exported says what the checkpoint says, with and without this code."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data.errors import UserError
from models.decoding import greedy
from models.encoder import Encoder
from models.pooling import Visual
from utils import export as program
from utils.checkpoint import Sizes, build_captioner, load_checkpoint, make_latent

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def exported(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export") / "exported"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["export", str(folder), "--checkpoint", str(checkpoint)])
        program.main()
    return folder


def test_a_program_without_this_code_says_the_same(exported: Path, checkpoint: Path, tmp_path: Path) -> None:
    loaded = load_checkpoint(checkpoint)
    pixels = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    for i, image in enumerate(pixels):
        Image.fromarray(image).save(tmp_path / f"{i}.png")
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2)
    with torch.inference_mode():
        decoding = loaded.config.decoding
        found = greedy(loaded.captioner.decoder, loaded.captioner.regions(Visual(images)), decoding.max_words)
    script = ROOT / "docs" / "tutorials" / "onnx_captions.py"
    command = [sys.executable, str(script), str(exported), *(str(tmp_path / f"{i}.png") for i in range(3))]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    said = [line.split(": ", 1)[1] for line in done.stdout.splitlines()]
    # greedy decoding here never ends before the first word, the tutorial's loop may
    assert said == [" ".join(loaded.vocabulary.decode(h.tokens)) for h in found]
    assert json.loads((exported / "captioner.json").read_text())["size"] == 32


def test_nothing_is_written_over_or_by_halves(
    exported: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = load_checkpoint(checkpoint)
    with pytest.raises(UserError, match="there already"):
        program.export(loaded, exported)
    slic = loaded.config.model_copy(update={"regions": loaded.config.regions.model_copy(update={"kind": "slic"})})
    with pytest.raises(UserError, match="grid"):
        program.export(replace(loaded, config=slic), tmp_path / "slic")

    def write_something_else(other: object, folder: Path) -> None:
        torch.nn.init.normal_(loaded.captioner.decoder.classifier.bias)  # after the export: no longer the same
        for path in exported.iterdir():
            (folder / path.name).write_bytes(path.read_bytes())

    monkeypatch.setattr(program, "_write", write_something_else)
    with pytest.raises(UserError, match="says something else"):
        program.export(loaded, tmp_path / "other")
    assert not list(tmp_path.iterdir())


def test_what_a_head_tells_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    loaded = load_checkpoint(checkpoint)
    loaded.captioner.heads["latent"] = make_latent(loaded.config, Sizes(len(loaded.vocabulary), 512))
    with pytest.raises(UserError, match="a head tells what to say cannot be exported"):
        program.export(loaded, tmp_path / "exported")
    assert not (tmp_path / "exported").exists()


def test_extra_layers_are_exported(checkpoint: Path, tmp_path: Path) -> None:
    loaded, encoder = load_checkpoint(checkpoint), Encoder("test_efficientnet", ["blocks.2"])
    channels = encoder.output_shape(32)[1]
    captioner = build_captioner(loaded.config, encoder, len(loaded.vocabulary), channels).eval()
    program.export(replace(loaded, captioner=captioner), tmp_path / "exported")  # which compares six captions
    assert (tmp_path / "exported" / "encoder.onnx").exists()


def test_a_transformer_is_exported_for_any_number_of_images(checkpoint: Path, tmp_path: Path) -> None:
    loaded, name = load_checkpoint(checkpoint), "vit_small_patch14_dinov2"
    captioner = build_captioner(loaded.config, Encoder(name), len(loaded.vocabulary), 384).eval()
    program.export(replace(loaded, captioner=captioner), tmp_path / "exported")  # which compares six captions
    assert (tmp_path / "exported" / "encoder.onnx").exists()
