"""The parts of train.py that a whole run would not show to be wrong."""

import copy
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from data.annotations import AnnotatedImage
from data.errors import UserError
from data.loading import BatchKey, CaptionBatches
from data.vocabulary import Vocabulary
from loss import LOSS_REGISTRY, build_loss
from loss.cross_entropy import CrossEntropyLoss
from models.captioner import Captioner
from models.decoder import Decoder
from models.encoder import Encoder
from models.pooling import Visual
from train import build_model, learning_rate, open_data, parse_arguments, train_step
from utils.config import load_config, parse_config
from utils.criteria import build_criteria

SENTENCES = ["a red plane", "a red plane", "two boats", "a long bridge over the green river", "boats"]
VOCABULARY = Vocabulary.build([s.split() for s in SENTENCES], 1)


@pytest.fixture
def accelerator() -> Accelerator:
    AcceleratorState._reset_state(True)  # it is one for the whole process, and other tests asked for bf16
    return Accelerator(cpu=True, mixed_precision="no")


class Features:
    """Random features, each row's own, or the same for all rows."""

    def __init__(self, same: bool = False) -> None:
        self.same = same

    def read(self, rows: Sequence[int], epoch: int = 0) -> Visual:
        seeds = [0 if self.same else row for row in rows]
        features = [torch.randn(4, 256, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        return Visual(torch.stack(features))


def captioner() -> Captioner:
    torch.manual_seed(0)
    return Captioner(Encoder("test_efficientnet"), Decoder(len(VOCABULARY), 256, 16, 0.0))


def gradients(
    model: Captioner, keys: list[BatchKey], images: list[AnnotatedImage], features: Features, accelerator: Accelerator
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Terms and gradients of one step over `keys`, one batch after another."""
    data = CaptionBatches(images, features, VOCABULARY, 30)
    criteria = build_loss([{"criterion": "custum_loss", "label_smoothing": 0.1}], class_dim=-1)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    before = copy.deepcopy(model.state_dict())
    terms = train_step(model, criteria, optimizer, [data[key] for key in keys], accelerator, clip=1e9)
    return terms, {name: before[name] - value for name, value in model.state_dict().items()}


def images(*groups: list[str]) -> list[AnnotatedImage]:
    return [AnnotatedImage(i, f"{i}.png", "train", tuple(captions)) for i, captions in enumerate(groups)]


def test_accumulated_batches_are_one_batch(accelerator: Accelerator) -> None:
    data = images(SENTENCES[:3], SENTENCES[3:4], SENTENCES[4:])
    terms, whole = gradients(captioner(), [BatchKey(0, [0, 1, 2])], data, Features(), accelerator)
    split_terms, split = gradients(captioner(), [BatchKey(0, [1]), BatchKey(0, [0, 2])], data, Features(), accelerator)
    for name in terms:
        torch.testing.assert_close(split_terms[name], terms[name])
    for name, gradient in whole.items():
        torch.testing.assert_close(split[name], gradient, msg=name)
    assert any(g.abs().sum() > 0 for g in whole.values())


def test_a_caption_with_its_count_is_the_caption_repeated(accelerator: Accelerator) -> None:
    together = images(["a red plane"] * 3 + ["two boats"])
    apart = images(["a red plane"], ["a red plane"], ["a red plane", "two boats"])
    terms, once = gradients(captioner(), [BatchKey(0, [0])], together, Features(same=True), accelerator)
    repeated_terms, repeated = gradients(captioner(), [BatchKey(0, [0, 1, 2])], apart, Features(same=True), accelerator)
    torch.testing.assert_close(terms["train/loss"], repeated_terms["train/loss"])
    for name, gradient in once.items():
        torch.testing.assert_close(repeated[name], gradient, msg=name)


def test_heads_begin_the_same_whether_or_not_features_had_to_be_made(scenes: Path, tmp_path: Path) -> None:
    words = ["--dataset", "RSICD", "--data-root", str(scenes), f"data.cache_dir={tmp_path}", "data.size=32"]
    encoder = Encoder("test_efficientnet")

    def head(seed: int) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)  # as a process begins
        config = load_config(parse_arguments([*words, "--seed", str(seed)]))
        return open_data(config, ["retrieval"], encoder, None, "fp32").heads["retrieval"].module.state_dict()

    made, found, other = head(0), head(0), head(1)
    assert all(torch.equal(made[name], found[name]) for name in made)
    assert not all(torch.equal(made[name], other[name]) for name in made)


def test_all_that_is_announced_for_training_is_trained(scenes: Path, tmp_path: Path) -> None:
    """Several processes wait for each such gradient, and this encoder has a norm that its features do not pass."""
    words = ["--dataset", "RSICD", "--data-root", str(scenes), f"data.cache_dir={tmp_path}", "data.size=32"]
    words += ["model.encoder.trainable=true", "model.encoder.frozen_stages=1", "model.decoder.width=16"]
    config = load_config(parse_arguments(words))
    data = open_data(config, [], Encoder("test_convnext"), None, "fp32")
    model, _ = build_model(config, data, Encoder("test_convnext"), None)
    batch = data.batches["train"][BatchKey(0, [0, 1])]
    model.train()(batch.visuals, batch.tokens[:, :-1], batch.image_of).logits.sum().backward()
    named = dict(model.named_parameters())
    assert not [name for name, parameter in named.items() if parameter.requires_grad and parameter.grad is None]
    spared = {name for name, parameter in named.items() if not parameter.requires_grad}
    assert {"encoder.backbone.stem.0.weight", "encoder.backbone.head.norm.weight"} < spared < set(named)


@pytest.mark.parametrize("trainable", ["true", "false"])
def test_more_frozen_stages_than_there_are_are_refused(scenes: Path, tmp_path: Path, trainable: str) -> None:
    words = ["--dataset", "RSICD", "--data-root", str(scenes), f"data.cache_dir={tmp_path}", "data.size=32"]
    words += [f"model.encoder.trainable={trainable}", "model.encoder.frozen_stages=99"]
    config = load_config(parse_arguments(words))
    data = open_data(config, [], Encoder("test_convnext"), None, "fp32")
    with pytest.raises(UserError, match=r"^model\.encoder\.frozen_stages: test_convnext has \d stages, not 99$"):
        build_model(config, data, Encoder("test_convnext"), None)


def test_captions_without_a_word_that_counts_are_refused(scenes: Path) -> None:
    words = ["--dataset", "RSICD", "--data-root", str(scenes), "data.size=32", "data.min_count=1000"]
    with pytest.raises(UserError, match=r"^data\.min_count=1000: no word .* lower it$"):
        open_data(load_config(parse_arguments(words)), [], Encoder("test_efficientnet"), None, "fp32")


def test_an_encoder_that_takes_no_such_images_is_named() -> None:
    config = load_config(parse_arguments(["--dataset", "RSICD", "data.size=96"]))
    with pytest.raises(
        UserError, match=r"vit_tiny_patch16_224 cannot look at images of data\.size=96 \(Input height"
    ) as caught:
        open_data(config, [], Encoder("vit_tiny_patch16_224"), None, "fp32")
    assert "\n" not in str(caught.value)


def test_a_layer_without_a_map_is_named() -> None:
    config = load_config(parse_arguments(["--dataset", "RSICD", "data.size=64"]))
    fault = r"^model\.encoder\.extra_layers: resnet18 gives no map at its layer 'global_pool'; choose a layer that"
    with pytest.raises(UserError, match=fault):
        open_data(config, [], Encoder("resnet18", ["global_pool"]), None, "fp32")


def test_a_loss_with_parameters_of_its_own_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Uncertain(CrossEntropyLoss):
        def __init__(self) -> None:
            super().__init__()
            self.log_variance = torch.nn.Parameter(torch.zeros(()))

    monkeypatch.setitem(LOSS_REGISTRY, "uncertain", Uncertain)
    config = parse_config({"model": {"losses": [{"criterion": "uncertain"}]}}, "")
    with pytest.raises(UserError, match=r"log_variance is a loss's own parameter, which nothing trains"):
        build_criteria(config)


def test_a_value_that_does_not_fit_the_words_is_named(accelerator: Accelerator) -> None:
    criteria = build_loss([{"criterion": "softmax_focal_loss", "alpha": [1.0, 2.0]}], class_dim=-1)
    model = captioner()
    batch = CaptionBatches(images(SENTENCES[:3]), Features(), VOCABULARY, 30)[BatchKey(0, [0])]
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    with pytest.raises(UserError, match=r"model\.losses: .*classes want as many weights"):
        train_step(model, criteria, optimizer, [batch], accelerator, clip=1.0)


def test_learning_rate_rises_and_falls() -> None:
    rates = [learning_rate(step, 100, 0.1) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == rates[10] == max(rates) == 1.0
    assert rates[55] == pytest.approx(0.5)
    assert rates[99] < 0.001
    assert learning_rate(0, 1, 0.0) == 1.0
