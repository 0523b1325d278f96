"""Guides: advantages and teachers against naive loops, and training by them against training without."""

import copy
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

import train
from data.annotations import AnnotatedImage
from data.concepts import Concepts
from data.errors import UserError
from data.loading import Batch, BatchKey, CaptionBatches
from data.pairs import Authors, Pairs
from data.vocabulary import Vocabulary
from loss import build_loss
from metrics.cider_reward import CiderReward
from metrics.heads import telling_apart
from models.captioner import Captioner
from models.decoder import Decoder
from models.decoding import greedy
from models.encoder import Encoder
from models.heads.concepts import ConceptHead
from models.heads.critic import CriticHead
from models.pooling import Visual
from models.tokens import END, PAD, START
from utils import teach
from utils.checkpoint import SHIPPED, load_checkpoint
from utils.config import CONFIGS, RewardConfig, load_config, parse_config, read_yaml
from utils.guides import Rewards, load_models, samples_of, with_forgeries
from utils.teachers import LiveTeacher, mean_of, next_words

PHRASES = [
    "a red plane",
    "two boats near a pier",
    "a long bridge over the river",
    "some green trees",
    "many white cars",
]
IMAGES = [AnnotatedImage(i, f"{i}.png", "train", (p, p, f"there is {p}")) for i, p in enumerate(PHRASES)]
VOCABULARY = Vocabulary.build([c.split() for image in IMAGES for c in image.captions], 1)
KEY = BatchKey(0, [0, 1, 2, 3, 4])


class Features:
    """Random features, each row's own."""

    def read(self, rows: Sequence[int], epoch: int = 0) -> Visual:
        features = [torch.randn(4, 512, generator=torch.Generator().manual_seed(row)) for row in rows]
        return Visual(torch.stack(features))


@pytest.fixture
def accelerator() -> Accelerator:
    AcceleratorState._reset_state(True)
    return Accelerator(cpu=True, mixed_precision="no")


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    torch.manual_seed(0)
    return Encoder("resnet18")


@pytest.fixture
def batches() -> CaptionBatches:
    return CaptionBatches(IMAGES, Features(), VOCABULARY, 12)


def captioner(encoder: Encoder, seed: int = 0) -> Captioner:
    torch.manual_seed(seed)
    return Captioner(encoder, Decoder(len(VOCABULARY), 512, 24, 0.0))


def steps(
    model: Captioner, losses: list[dict], make: list[Batch] | Rewards, accelerator: Accelerator, n: int, lr: float
) -> list[dict[str, torch.Tensor]]:
    """Train for `n` steps; where `make` are rewards, on a batch that is sampled anew each time."""
    criteria = build_loss(losses, class_dim=-1)
    optimizer = torch.optim.Adam(model.decoder.parameters(), lr=lr)
    log = []
    for _ in range(n):
        batch = make(CaptionBatches(IMAGES, Features(), VOCABULARY, 12)[KEY]) if isinstance(make, Rewards) else make[0]
        log.append(train.train_step(model.train(), criteria, optimizer, [batch], accelerator, clip=5.0))
    return log


@pytest.fixture
def warm(encoder: Encoder, batches: CaptionBatches, accelerator: Accelerator) -> Captioner:
    """A captioner after some steps of cross-entropy: it says words, and seldom the right ones."""
    model = captioner(encoder)
    steps(model, [{"criterion": "cross_entropy"}], [batches[KEY]], accelerator, 12, 1e-2)
    return model


@pytest.mark.parametrize("baseline", ["mean", "greedy"])
def test_rewards_are_those_of_a_naive_loop(warm: Captioner, batches: CaptionBatches, baseline: str) -> None:
    rewards = Rewards(warm, batches, RewardConfig(samples=6, baseline=baseline), 12, "fp32")  # type: ignore[arg-type]
    torch.manual_seed(3)
    batch = rewards(batches[KEY])
    references = {i: [[*c.split(), "."] for c in image.captions] for i, image in enumerate(IMAGES)}
    cider = CiderReward(references)  # on words, where the code scores numbers
    said = [
        (int(i), [VOCABULARY.words[t] for t in row[1:] if t not in (PAD, END)], int(times))
        for row, i, times in zip(batch.tokens, batch.image_of, batch.weight, strict=True)
    ]
    assert batch.tokens[:, 0].eq(START).all() and batch.tokens.eq(END).sum(1).eq(1).all()
    assert all(sum(times for image, _, times in said if image == i) == 6 for i in range(5))
    assert len({(i, *words) for i, words, _ in said}) == len(said) < 30  # copies are one caption
    r = [float(cider([[*words, "."]], [i])[0]) for i, words, _ in said]
    plain = greedy(warm.decoder, warm.regions(batches[KEY].visuals), 12)
    for p, (image, _, times) in enumerate(said):
        if baseline == "greedy":
            words = [VOCABULARY.words[t] for t in plain[image].tokens]
            b = float(cider([[*words, "."]], [image])[0])
        else:
            others = [r[q] for q, (i, _, n) in enumerate(said) if i == image for _ in range(n - (q == p))]
            b = sum(others) / 5
        assert float(batch.guides["weight"][p]) == pytest.approx(times * (r[p] - b), abs=1e-5)
    everything = sum(x * times for x, (_, _, times) in zip(r, said, strict=True)) / 30
    assert float(batch.guides["reward"]) == pytest.approx(everything, abs=1e-5)


def test_the_step_is_the_policy_gradient(warm: Captioner, batches: CaptionBatches, accelerator: Accelerator) -> None:
    batch = Rewards(warm, batches, RewardConfig(samples=4), 12, "fp32")(batches[KEY])
    naive = copy.deepcopy(warm)
    total, words = torch.zeros(()), 0
    for row, image, times, gained in zip(
        batch.tokens, batch.image_of, batch.weight, batch.guides["weight"], strict=True
    ):
        length = int((row != PAD).sum()) - 1
        regions = naive.regions(Visual(batch.visuals.content[image : image + 1]))
        state = naive.decoder.start(regions)
        log_p = torch.zeros(())
        for t in range(length):
            logits, state, _ = naive.decoder.step(regions, state, row[t : t + 1])
            log_p = log_p + logits.log_softmax(-1)[0, row[t + 1]]
        total, words = total - gained * log_p, words + int(times) * length
    (total / words).backward()

    before = copy.deepcopy(warm.decoder.state_dict())
    optimizer = torch.optim.SGD(warm.decoder.parameters(), lr=1.0)
    criteria = build_loss([{"criterion": "cross_entropy"}], class_dim=-1)
    train.train_step(warm.train(), criteria, optimizer, [batch], accelerator, clip=1e9)
    for name, parameter in naive.decoder.named_parameters():
        moved = before[name] - warm.decoder.state_dict()[name]
        # float32 differences of parameters of size 1
        torch.testing.assert_close(moved, parameter.grad, atol=2e-6, rtol=1e-4, msg=name)


class Anchored(Rewards):
    """Rewards whose batches also say what `anchor` would."""

    anchor: LiveTeacher

    def __call__(self, batch: Batch) -> Batch:
        batch = super().__call__(batch)
        batch.guides["ref_logits"] = self.anchor(batch, 0)
        return batch


def test_reward_rises_and_the_anchor_holds(warm: Captioner, batches: CaptionBatches, accelerator: Accelerator) -> None:
    """Self-critical steps raise the CIDEr-D of samples; with `rlhf_kl` they end nearer to where they began."""
    far = {}
    for beta in (0.0, 1.0):
        model = copy.deepcopy(warm)
        rewards = Anchored(model, batches, RewardConfig(samples=8), 12, "fp32")
        rewards.anchor = LiveTeacher(copy.deepcopy(warm), None, torch.device("cpu"), "fp32")
        losses: list[dict] = [
            {"criterion": "cross_entropy"},
            {"criterion": "rlhf_kl", "beta": beta, "direction": "policy_ref"},
        ]
        torch.manual_seed(0)
        reward = [float(terms["train/reward"]) for terms in steps(model, losses, rewards, accelerator, 50, 1e-2)]
        before, after = sum(reward[:5]), sum(reward[-5:])
        ref, now = (next_words(m, batches[KEY], "fp32").log_softmax(-1) for m in (warm, model))
        far[beta] = float((now.exp() * (now - ref)).sum(-1).mean())
    assert after > 1.5 * before
    assert far[1.0] < 0.5 * far[0.0]


def test_the_trust_region_holds(warm: Captioner, batches: CaptionBatches, accelerator: Accelerator) -> None:
    """After several updates with the same samples the policy is nearer to that which drew them with `policy_kl`."""
    far = {}
    for weight in (0.0, 1.0):
        model = copy.deepcopy(warm)
        torch.manual_seed(0)
        batch = Rewards(model, batches, RewardConfig(samples=8), 12, "fp32")(batches[KEY])
        old = next_words(model, batch, "fp32")
        batch.guides["old_policy"] = old
        losses: list[dict] = [{"criterion": "cross_entropy"}, {"criterion": "policy_kl", "weight": weight}]
        steps(model, losses, [batch], accelerator, 6, 1e-2)
        log_old, log_new = (logits.log_softmax(-1) for logits in (old, next_words(model, batch, "fp32")))
        far[weight] = float((log_old.exp() * (log_old - log_new)).sum(-1)[batch.words != -100].mean())
    assert far[1.0] < 0.5 * far[0.0]


@pytest.fixture
def critical(warm: Captioner) -> Captioner:
    """The warm captioner with a critic that knows nothing."""
    torch.manual_seed(0)
    return Captioner(warm.encoder, warm.decoder, heads={"critic": CriticHead(512, len(VOCABULARY), 24, 0.0)})


def judged(batches: CaptionBatches) -> CaptionBatches:
    return CaptionBatches(batches.images, batches.visuals, VOCABULARY, 12, {"critic": Authors()})


def test_forgeries_are_samples_and_captions_of_the_next_image(critical: Captioner, batches: CaptionBatches) -> None:
    people = judged(batches)[KEY]
    batch = with_forgeries(people, people, samples_of(critical, people, 12, "fp32"))
    shown, target = batch.shown["critic"], batch.targets["critic"]
    words = [" ".join(VOCABULARY.words[t] for t in row if t not in (PAD, START, END)) for row in shown["tokens"]]
    pairs = list(zip(words, shown["image_of"].tolist(), target["weight"].tolist(), strict=True))
    annotated = [(text, i, n) for i, p in enumerate(PHRASES) for text, n in ((p, 2), (f"there is {p}", 1))]
    assert pairs[:10] == annotated
    assert [pair[1:] for pair in pairs[10:20]] == [pair[1:] for pair in annotated]
    assert pairs[20:] == [(text, (i + 1) % 5, n) for text, i, n in annotated]
    assert target["target_is_real"].tolist() == [True] * 10 + [False] * 20
    assert target["sampled"].tolist() == [False] * 10 + [True] * 10 + [False] * 10
    assert shown["tokens"].eq(END).sum(1).eq(1).all()
    alone = judged(batches)[BatchKey(0, [3])]
    assert len(with_forgeries(alone, alone, alone).shown["critic"]["tokens"]) == 4  # no other image, no other captions


def test_a_critic_learns_and_its_reward_is_that_of_a_naive_loop(
    critical: Captioner, batches: CaptionBatches, accelerator: Accelerator
) -> None:
    """`gan_loss` lifts the critic's precision, and a fixed critic as the only reward what it thinks of samples."""
    batches = judged(batches)
    optimizer = torch.optim.Adam(critical.heads.parameters(), 1e-2)
    criteria = build_loss([{"criterion": "gan_loss", "head": "critic"}])

    def forged() -> Batch:
        return with_forgeries(batches[KEY], batches[KEY], samples_of(critical, batches[KEY], 12, "fp32"))

    def precision() -> dict[str, float]:
        drawn = [forged() for _ in range(5)]  # the captioner says but a few captions, and some of them are people's
        pairs = [
            (critical.look(b.visuals, b.tokens, b.image_of, b.shown)["critic"], b.targets["critic"]) for b in drawn
        ]
        return telling_apart([({"pred": out["pred"].detach()}, target) for out, target in pairs])

    before = precision()
    for _ in range(60):
        train.train_step(critical, criteria, optimizer, [forged()], accelerator, clip=5.0)
    after = precision()
    assert after["AP_sampled"] > before["AP_sampled"] + 0.1 and after["accuracy"] > before["accuracy"] + 0.1
    assert after["AP_other"] > max(0.9, before["AP_other"] + 0.1)

    config = RewardConfig(samples=6, cider=0.5, critic=2.0)
    rewards = Rewards(critical, batches, config, 12, "fp32")
    torch.manual_seed(3)
    batch = rewards(batches[KEY])
    cider = CiderReward({i: [[*c.split(), "."] for c in image.captions] for i, image in enumerate(IMAGES)})
    total = 0.0
    for row, image, times in zip(batch.tokens, batch.image_of, batch.weight, strict=True):
        tokens = row[row != PAD][None]
        visual = Visual(batch.visuals.content[image : image + 1])
        score = critical.look(visual, tokens, torch.zeros(1, dtype=torch.long))["critic"]["pred"].item()
        text = [VOCABULARY.words[t] for t in tokens[0, 1:-1]]
        r = 0.5 * float(cider([[*text, "."]], [int(image)])[0]) + 2.0 / (1 + math.exp(-score))
        total += float(times) * r
    assert float(batch.guides["reward"]) == pytest.approx(total / 30, abs=1e-5)
    people, critics = batches[KEY], batch.shown["critic"]
    assert torch.equal(critics["image_of"][:10], people.image_of)  # its real ones are still people's
    assert batch.targets["critic"]["sampled"].sum() == len(batch.tokens)

    rewards = Rewards(critical, batches, RewardConfig(samples=8, cider=0, critic=1), 12, "fp32")
    log = steps(critical, [{"criterion": "cross_entropy"}], rewards, accelerator, 40, 1e-2)
    reward = [float(terms["train/reward"]) for terms in log]
    assert sum(reward[-5:]) > sum(reward[:5]) + 0.5


def test_heads_go_on_with_annotated_captions(warm: Captioner, batches: CaptionBatches) -> None:
    batches = CaptionBatches(batches.images, batches.visuals, VOCABULARY, 12, {"retrieval": Pairs()})
    people = batches[KEY]
    shown = Rewards(warm, batches, RewardConfig(), 12, "fp32")(people).shown["retrieval"]
    assert torch.equal(shown["tokens"], people.tokens) and torch.equal(shown["image_of"], people.image_of)
    assert len(shown["tokens"]) == len(people.targets["retrieval"]["labels"])


def test_what_a_head_tells_is_of_the_image_of_each_sample(
    warm: Captioner, batches: CaptionBatches, accelerator: Accelerator
) -> None:
    """Eight samples an image, of which people have fewer captions: the policy is what samples were drawn from."""
    concepts = Concepts(batches.images, 1)
    head = ConceptHead(512, torch.full((len(concepts.words),), 0.2), 0.0, told=24)
    with torch.no_grad():
        head.tell.weight.normal_() if head.tell else None
        head.classifier.weight.normal_(std=0.1)  # each image tells something else
    model = Captioner(warm.encoder, warm.decoder, heads={"concepts": head}).eval()
    targets: Any = {"concepts": concepts, "retrieval": Pairs()}
    batches = CaptionBatches(batches.images, batches.visuals, VOCABULARY, 12, targets)
    batch = Rewards(model, batches, RewardConfig(samples=8), 12, "fp32")(batches[KEY])
    assert set(batch.shown) == {"retrieval"}
    together = model(batch.visuals, batch.tokens[:, :-1], batch.image_of, batch.shown).logits
    for caption, (tokens, image) in enumerate(zip(batch.tokens, batch.image_of, strict=True)):
        words = tokens[tokens != PAD][None, :-1]
        alone = model(Visual(batch.visuals.content[image, None]), words, torch.zeros(1, dtype=torch.long)).logits[0]
        torch.testing.assert_close(together[caption, : alone.shape[0]], alone, rtol=1e-4, atol=1e-5)  # float32's sums


def test_teachers_speak_as_the_mean_of_their_probabilities(encoder: Encoder, batches: CaptionBatches) -> None:
    models = [captioner(encoder, seed) for seed in range(3)]
    batch = batches[KEY]
    looks = [None, Features(), None]
    teachers = [LiveTeacher(m, look, torch.device("cpu"), "fp32") for m, look in zip(models, looks, strict=True)]
    given = mean_of(teachers)(batch, 0).softmax(-1)
    naive = torch.stack(
        [m(batch.visuals, batch.tokens[:, :-1], batch.image_of).logits.softmax(-1) for m in models]
    ).mean(0)
    torch.testing.assert_close(given, naive)


def test_a_student_without_words_learns_its_teacher(
    encoder: Encoder, batches: CaptionBatches, accelerator: Accelerator
) -> None:
    """Distillation alone, its words never seen as labels, brings the student's words to the teacher's."""
    teacher, student = captioner(encoder), captioner(encoder, 1)
    steps(teacher, [{"criterion": "cross_entropy"}], [batches[KEY]], accelerator, 60, 1e-2)
    batch = batches[KEY]
    batch.guides["teacher_logits"] = LiveTeacher(teacher, None, torch.device("cpu"), "fp32")(batch, 0)

    def agreement() -> float:
        words = batch.words != -100
        said = [next_words(m, batch, "fp32").argmax(-1)[words] for m in (teacher, student)]
        return float((said[0] == said[1]).float().mean())

    untaught = agreement()
    steps(student, [{"criterion": "kl_distillation", "temperature": 2.0}], [batch], accelerator, 60, 1e-2)
    assert untaught < 0.3 < 0.9 < agreement()


def call(*words: str | Path) -> None:
    arguments = train.parse_arguments(list(map(str, words)))
    train.main(load_config(arguments), arguments.resume)


def test_guided_runs_through_the_command_line(scenes: Path, tmp_path: Path) -> None:
    AcceleratorState._reset_state(True)
    shared: list[str | Path] = [
        "--data-root",
        scenes,
        f"data.cache_dir={tmp_path / 'cache'}",
        "data.size=64",
        "train.batch_size=16",
    ]
    shared += ["train.precision=fp32", "decoding.method=greedy", "model.decoder.width=24", "train.log_every=1"]
    first, second = tmp_path / "first", tmp_path / "second"
    begin = "model.losses=[{criterion: cross_entropy}, {criterion: gan_loss, head: critic}]"
    call(*shared, "--output-dir", first, "--epochs", "1", "train.lr=1e-2", begin)
    critical: list[str | Path] = ["--output-dir", second, "--seed", "1", "--epochs", "1"]
    critical += [f"train.init={first / 'best.safetensors'}"]
    critical += ["train.reward={samples: 3, critic: 1}", "train.updates=2", "train.accumulation=2"]
    losses = "{criterion: cross_entropy}, {criterion: rlhf_kl}, {criterion: policy_kl, weight: 0.1}"
    losses += ", {criterion: gan_loss, head: critic}"
    call(*shared, *critical, f"model.losses=[{losses}]")
    log = list(map(json.loads, (second / "metrics.jsonl").read_text().splitlines()))
    assert {"val/critic/AP_sampled", "val/critic/AP_other", "val/critic/accuracy"} <= log[-1].keys()
    log = [line for line in log if "train/loss" in line]
    assert all({"train/reward", "train/rlhf_kl", "train/policy_kl", "train/gan_loss"} <= line.keys() for line in log)
    loaded = (load_checkpoint(run / "best.safetensors").captioner.state_dict() for run in (first, second))
    before, after = (tensors["heads.critic.pair.words.weight"] for tensors in loaded)
    moved = before - after  # of another seed: were it a new one, it would be far
    assert 0 < moved.abs().max() < 0.1
    assert log[0]["train/policy_kl"] > 0  # the second update of the first batches has moved away from their policy
    assert len(log) == 3

    student: list[str | Path] = ["--output-dir", tmp_path / "student", "--epochs", "1", "model.decoder.width=16"]
    # the teachers look through their own
    student += ["model.encoder.name=test_efficientnet", "model.encoder.weights=none"]
    student += ["model.encoder.extra_layers=[blocks.2]"]
    teachers = f"train.teachers=[{first / 'best.safetensors'}, {second / 'best.safetensors'}]"
    taught = "model.losses=[{criterion: cross_entropy}, {criterion: kl_distillation}]"
    call(*shared, *student, teachers, taught)

    said = tmp_path / "said.h5"  # the same, from what the teachers said of all words once
    asked: list[str | Path] = [CONFIGS / "synthetic.yaml", *shared, teachers, "--output", said, "--top", "10000"]
    teach.main(teach.parse_arguments(list(map(str, asked))))
    student[1] = tmp_path / "stored"
    call(*shared, *student, f"train.teachers=[{said}]", taught)
    live, stored = (
        [float(line["train/kl_distillation"]) for line in map(json.loads, text.splitlines()) if "train/loss" in line]
        for text in ((tmp_path / run / "metrics.jsonl").read_text() for run in ("student", "stored"))
    )
    assert stored == pytest.approx(live, rel=1e-3) and len(live) == 5  # float16's eleven bits of log p
    for arguments, fault in (
        (["model.losses=[{criterion: rlhf_kl}]"], r"target\.ref_logits.*train\.init brings ref_logits"),
        ([f"train.init={first / 'best.safetensors'}", "model.decoder.width=8"], r"decoder\.width=24, not 8"),
        ([f"train.init={first / 'best.safetensors'}", "model.decoder.attention=dot"], "attention=additive, not dot"),
        (
            [f"train.init={first / 'best.safetensors'}", "model.encoder.extra_layers=[blocks.4]"],
            r"extra_layers=\[\], not",
        ),
        ([f"train.teachers=[{first / 'best.safetensors'}, {SHIPPED[0]}]", taught], "other words than"),
        (["train.reward={critic: 1}", "model.losses=[{criterion: cross_entropy}]"], "no loss trains a critic"),
        ([f"train.teachers=[{said}]", taught, "train.reward={}"], r"said\.h5 holds no word on samples"),
        ([f"train.teachers=[{said}]", taught, "data.max_words=5"], r"said\.h5: holds no soft targets of .*\.png"),
        ([f"train.teachers=[{SHIPPED[0]}, {said}]", taught], r"said\.h5: other words than"),
        (["train.reward={cider: 0}", "model.losses=[{criterion: cross_entropy}]"], "nothing is rewarded"),
    ):
        with pytest.raises(UserError, match=fault):
            call(*shared, "--output-dir", tmp_path / "no", *arguments)


def test_recipes_that_begin_with_the_checkpoint_that_ships_fit_it() -> None:
    recipes = [path for path in CONFIGS.rglob("*.yaml") if "init: checkpoints/" in path.read_text(encoding="utf-8")]
    assert recipes
    for path in recipes:
        init, _ = load_models(parse_config(read_yaml(path), str(path)))
        assert init is not None


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        (["--output", "said.h5", "--top", "0"], "--top 0: name at least one"),
        (["--output", "said.json"], r"said\.json: call it SAID\.h5"),
        (["--output", "said.h5"], r"train\.teachers is empty"),
        (["--output", "said.h5", "train.teachers=[gone.safetensors]"], r"gone\.safetensors: no such checkpoint"),
    ],
)
def test_slips_in_asking_are_named(
    words: list[str], fault: str, scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=fault) as caught:
        teach.main(teach.parse_arguments([str(CONFIGS / "synthetic.yaml"), "--data-root", str(scenes), *words]))
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())
