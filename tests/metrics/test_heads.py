"""Scores of heads by their definitions, in plain loops."""

from functools import partial
from itertools import permutations
from typing import Any

import numpy as np
import pytest
import torch

from data.vocabulary import SPECIALS, Vocabulary
from loss.perceptual import PerceptualLoss
from metrics.heads import (
    average_precision,
    latent_information,
    mean_average_precision,
    mean_box_iou,
    mean_iou,
    mean_iou_and_boundaries,
    parallel_captions,
    recall,
    restoration,
    telling_apart,
)
from metrics.scores import score_captions
from models.heads.boxes import Found


def naive(scores: list[float], truth: list[bool]) -> float:
    """Average precision by its definition: the mean, over what is there, of the precision down to it."""
    ranked = [t for _, t in sorted(zip(scores, truth, strict=True), key=lambda pair: -pair[0])]
    precisions = [sum(ranked[: i + 1]) / (i + 1) for i, t in enumerate(ranked) if t]
    return sum(precisions) / len(precisions)


def test_mean_average_precision_by_its_definition() -> None:
    pred, target = torch.randn(20, 7), torch.rand(20, 7).where(torch.rand(20, 7) < 0.3, 0.0)
    target[:, 3] = 0  # a concept that no image has: no precision to speak of
    target[0, 0] = 0.2
    columns = [i for i in range(7) if target[:, i].any()]
    expected = np.mean([naive(pred[:, i].tolist(), (target[:, i] > 0).tolist()) for i in columns])
    parts = [({"pred": pred[rows]}, {"target": target[rows]}) for rows in (slice(0, 15), slice(15, 20))]
    assert abs(mean_average_precision(parts)["mAP"] - expected) < 1e-9


def test_mean_average_precision_without_concepts_is_zero() -> None:
    assert mean_average_precision([({"pred": torch.zeros(3, 2)}, {"target": torch.zeros(3, 2)})]) == {"mAP": 0.0}


def test_recall_by_its_definition() -> None:
    """Any caption of the image, captions as often as they stand there."""
    image, image_of = torch.randn(12, 6), torch.tensor([i for i in range(12) for _ in range(3)])
    text = image[image_of] + 2 * torch.randn(36, 6)
    times = torch.randint(1, 4, (36,))
    pairs = []
    for rows in (slice(0, 15), slice(15, 36)):
        out = {"image_embeddings": image[image_of[rows]], "text_embeddings": text[rows]}
        pairs.append((out, {"labels": 100 + image_of[rows], "weight": times[rows].float()}))
    found = recall(pairs)

    repeated = [p for p in range(36) for _ in range(int(times[p]))]
    cosine = torch.nn.functional.cosine_similarity(image[:, None], text[None], dim=-1).numpy()
    for k in (1, 5, 10):
        to_text = [any(image_of[p] == i for p in sorted(repeated, key=lambda p: -cosine[i, p])[:k]) for i in range(12)]
        to_image = [int(image_of[p]) in sorted(range(12), key=lambda i: -cosine[i, p])[:k] for p in repeated]
        assert found[f"image_to_text_R@{k}"] == pytest.approx(np.mean(to_text))
        assert found[f"text_to_image_R@{k}"] == pytest.approx(np.mean(to_image))
    assert 0.1 < found["image_to_text_R@1"] < 1


def test_recall_where_all_is_found_and_where_nothing_tells_images_apart() -> None:
    labels, weight = torch.arange(20), torch.ones(20)
    out = {"image_embeddings": torch.eye(20), "text_embeddings": torch.eye(20)}
    assert set(recall([(out, {"labels": labels, "weight": weight})]).values()) == {1.0}
    same, none = torch.ones(20, 4), torch.full((20, 4), torch.nan)
    for blind in (
        {"image_embeddings": same, "text_embeddings": same},
        {"image_embeddings": torch.randn(20, 4), "text_embeddings": same},
        {"image_embeddings": none, "text_embeddings": torch.randn(20, 4)},
    ):
        found = recall([(blind, {"labels": labels, "weight": weight})])
        # by lgamma, in float64
        assert [found[f"image_to_text_R@{k}"] for k in (1, 5, 10)] == pytest.approx([1 / 20, 5 / 20, 10 / 20], abs=1e-9)
    assert found["text_to_image_R@10"] == pytest.approx(10 / 20, abs=1e-9)


def test_recall_is_the_mean_over_all_orders_of_what_is_equally_near() -> None:
    labels = torch.tensor([0, 0, 1, 2])
    image = torch.eye(3)[labels]
    text = torch.stack([torch.eye(3)[0], torch.eye(3)[1], torch.eye(3)[0], torch.eye(3)[0]])
    found = recall(
        [({"image_embeddings": image, "text_embeddings": text}, {"labels": labels, "weight": torch.ones(4)})]
    )
    nearest = (image[[0, 2, 3]] @ text.T).numpy()
    hits = []
    for cosines, right in zip(nearest, ({0, 1}, {2}, {3}), strict=True):
        orders = [sorted(order, key=lambda p: -cosines[p]) for order in permutations(range(4))]  # sorted is stable
        hits.append(np.mean([order[0] in right for order in orders]))
    assert found["image_to_text_R@1"] == pytest.approx(np.mean(hits), abs=1e-9)


def test_mean_iou_by_its_definition() -> None:
    pred, target = torch.randn(3, 5, 4, 4), torch.randint(4, (3, 4, 4))
    target[0, 0, 0] = 1
    labels = pred.argmax(1)
    expected = []
    for c in target.unique().tolist():  # class 4 is in no scene
        both = sum(int(a == c and b == c) for a, b in zip(labels.flatten(), target.flatten(), strict=True))
        either = sum(int(a == c or b == c) for a, b in zip(labels.flatten(), target.flatten(), strict=True))
        expected.append(both / either)
    parts = [({"pred": pred[:2]}, {"target": target[:2]}), ({"pred": pred[2:]}, {"target": target[2:]})]
    assert mean_iou(parts)["mIoU"] == pytest.approx(np.mean(expected), abs=1e-9)


def test_boundaries_by_precision_and_recall() -> None:
    out = {"pred": torch.zeros(1, 2, 1, 5), "extra_d": torch.tensor([1.0, 1, 1, -1, -1]).reshape(1, 1, 1, 5)}
    target = {"target": torch.zeros(1, 1, 5, dtype=torch.int64), "bd_gt": torch.tensor([[[1, 0, 0, 1, 0]]])}
    assert mean_iou_and_boundaries([(out, target)])["boundary_F1"] == pytest.approx(2 / (3 + 2))


def test_mean_box_iou() -> None:
    boxes = torch.tensor([[0.0, 0, 2, 2], [0, 0, 2, 2]])
    wanted = torch.tensor([[1.0, 0, 3, 2], [0, 0, 2, 2]])
    # 1e-7 stands in the denominator
    assert mean_box_iou([({"boxes": boxes}, {"boxes": wanted})])["IoU"] == pytest.approx((1 / 3 + 1) / 2, abs=1e-6)


def naive_ap50(found: list[Found], gt: list[dict[str, torch.Tensor]], label: int) -> float:
    """COCO's average precision of one class at IoU 0.5: the mean of the envelope at 101 recalls."""
    ranked = sorted(
        ((float(s), i, b) for i, f in enumerate(found) for b, s, k in zip(*f, strict=True) if k == label),
        key=lambda entry: -entry[0],
    )
    left = {i: [b for b, k in zip(g["boxes"], g["labels"], strict=True) if k == label] for i, g in enumerate(gt)}
    total = sum(map(len, left.values()))
    hits = []
    for _, i, box in ranked:
        overlaps = [iou(box.tolist(), other.tolist()) for other in left[i]]
        hits.append(bool(overlaps) and max(overlaps) >= 0.5)
        if hits[-1]:
            left[i].pop(int(np.argmax(overlaps)))
    points = [(sum(hits[: n + 1]) / total, sum(hits[: n + 1]) / (n + 1)) for n in range(len(hits))]
    return float(np.mean([max((p for r, p in points if r >= at - 1e-12), default=0) for at in np.linspace(0, 1, 101)]))


def iou(a: list[float], b: list[float]) -> float:
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    both = max(width, 0) * max(height, 0)
    return both / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both)


def some_boxes(n: int) -> torch.Tensor:
    corner = 60 * torch.rand(n, 2)
    return torch.cat([corner, corner + 8 + 30 * torch.rand(n, 2)], 1)


def test_average_precision_by_its_definition() -> None:
    gt = [{"boxes": some_boxes(6), "labels": torch.randint(3, (6,))} for _ in range(5)]
    found = []
    for one in gt:
        boxes = torch.cat([one["boxes"] + 4 * torch.randn(6, 4), some_boxes(4)])
        order = torch.rand(10).sort(descending=True)
        labels = torch.cat([one["labels"], torch.randint(3, (4,))])
        found.append(Found(boxes[order.indices], order.values, labels[order.indices]))

    def find(out: Any) -> list[Found]:
        return found[out["rows"]]

    pairs = [({"rows": rows}, {"gt": gt[rows]}) for rows in (slice(0, 2), slice(2, 5))]
    expected = np.mean([naive_ap50(found, gt, label) for label in range(3)])
    assert 0.1 < expected < 0.9
    assert average_precision(find, pairs)["AP50"] == pytest.approx(
        expected, abs=1e-6
    )  # COCOeval adds eps to the counts


def test_average_precision_of_all_and_of_nothing() -> None:
    gt = [
        {"boxes": some_boxes(3), "labels": torch.tensor([0, 1, 1])},
        {"boxes": some_boxes(0), "labels": torch.zeros(0)},
    ]
    perfect = [Found(g["boxes"], torch.ones(len(g["boxes"])), g["labels"].long()) for g in gt]
    nothing = [Found(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64))] * 2
    assert average_precision(lambda _: perfect, [({}, {"gt": gt})]) == pytest.approx({"AP50": 1.0, "AP": 1.0})
    assert average_precision(lambda _: nothing, [({}, {"gt": gt})]) == {"AP50": 0.0, "AP": 0.0}


def test_restoration_is_scored_image_by_image() -> None:
    lpips = PerceptualLoss(lambda image: [image], criterion="mse", normalize=True)
    wanted = torch.zeros(2, 3, 4, 4)
    images = wanted + torch.tensor([0.1, 0.01])[:, None, None, None]
    score = partial(restoration, lpips)([({"images": images}, {"images": wanted})])
    # float32
    assert score["PSNR"] == pytest.approx((20 + 40) / 2, abs=1e-4)
    assert score["LPIPS"] == pytest.approx((0.2**2 + 0.02**2) / 2, abs=1e-6)


def test_telling_apart_by_its_definition() -> None:
    """A weight of 2 is the same caption twice."""
    kind = ["people"] * 8 + ["sampled"] * 10 + ["other"] * 6
    pred, weight = torch.randn(24), torch.randint(1, 4, (24,)).float()
    target = {
        "target_is_real": torch.tensor([k == "people" for k in kind]),
        "sampled": torch.tensor([k == "sampled" for k in kind]),
        "weight": weight,
    }
    rows = [(k, float(p)) for k, p, w in zip(kind, pred, weight, strict=True) for _ in range(int(w))]
    parts = [
        ({"pred": pred[part]}, {key: value[part] for key, value in target.items()})
        for part in (slice(0, 11), slice(11, 24))
    ]
    found = telling_apart(parts)
    for name in ("sampled", "other"):
        # equal scores are one threshold: the precision is that of all of them
        among = [(k, p) for k, p in rows if k in ("people", name)]
        precisions = []
        for k, p in among:
            if k == "people":
                above = [kind for kind, score in among if score >= p]
                precisions.append(above.count("people") / len(above))
        assert found[f"AP_{name}"] == pytest.approx(sum(precisions) / len(precisions), abs=1e-9)
    people, sampled = ([p > 0 for k, p in rows if k == kind] for kind in ("people", "sampled"))
    expected = (sum(people) / len(people) + 1 - sum(sampled) / len(sampled)) / 2
    assert found["accuracy"] == pytest.approx(expected, abs=1e-6)  # float32
    alone = telling_apart([({"pred": pred[:18]}, {key: value[:18] for key, value in target.items()})])
    assert np.isnan(alone["AP_other"]) and alone["AP_sampled"] == found["AP_sampled"]


def test_latent_information_is_the_kl_of_normals_each_as_often_as_its_caption() -> None:
    mu, logvar, prior_mu, prior_logvar = torch.randn(4, 5, 3)
    weight = torch.tensor([1.0, 3.0, 1.0, 2.0, 1.0])
    posterior = torch.distributions.Normal(mu, (logvar / 2).exp())
    prior = torch.distributions.Normal(prior_mu, (prior_logvar / 2).exp())
    each = torch.distributions.kl_divergence(posterior, prior).sum(1)
    out = {"mu": mu, "logvar": logvar, "prior_mu": prior_mu, "prior_logvar": prior_logvar}
    pairs = [
        ({key: value[rows] for key, value in out.items()}, {"weight": weight[rows]})
        for rows in (slice(0, 2), slice(2, 5))
    ]
    assert latent_information(pairs)["KL"] == pytest.approx(float((each * weight).sum() / 8), rel=1e-5)  # float32


def test_parallel_captions_are_scored_as_any_captions_are() -> None:
    vocabulary = Vocabulary([*SPECIALS, "a", "road", "river"])
    references = [("A road.", "a wide road"), ("a river by a road",), ("the river",)]
    paths = torch.tensor([[4, 4, 0, 5], [4, 0, 4, 6], [6, 6, 6, 6]])
    pred = torch.nn.functional.one_hot(paths, 7).float().transpose(0, 1)
    pairs = [({"pred": pred[:, rows]}, {"captions": list(references[rows])}) for rows in (slice(0, 2), slice(2, 3))]
    said = {0: "a road", 1: "a a river", 2: "river"}
    expected = score_captions(said, dict(enumerate(references)), ["CIDEr", "ROUGE_L"]).metrics
    assert parallel_captions(vocabulary, pairs) == pytest.approx(expected)
