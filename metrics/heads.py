"""How well heads do what their losses are for: each function scores all batches of a split.

A batch is a pair of mappings on the CPU: what the head gave, and what it should have given.
"""

import io
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from itertools import chain
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import box_convert

from data.vocabulary import Vocabulary
from loss.boxes import elementwise_iou
from loss.kl import VAEKLLoss
from loss.perceptual import PerceptualLoss
from metrics.scores import score_captions
from models.heads.boxes import Found
from models.heads.parallel import words_said

Pair = tuple[Mapping[str, Any], Mapping[str, Any]]


def mean_average_precision(pairs: Sequence[Pair]) -> dict[str, float]:
    """`mAP` over the concepts that stand in at least one caption: the mean of each one's average precision.

    `pred` are logits [B, C]; an image has a concept where `target` [B, C] is above 0.
    """
    from sklearn.metrics import average_precision_score  # its import takes a second

    pred, truth = gather(pairs, "pred", "target")
    there = truth > 0
    present = there.any(0)
    if not present.any():
        return {"mAP": 0.0}
    return {"mAP": float(average_precision_score(there[:, present].numpy(), pred[:, present].numpy()))}


def recall(pairs: Sequence[Pair], ranks: Sequence[int] = (1, 5, 10)) -> dict[str, float]:
    """Recall at each of `ranks` by cosine, both ways, each caption as often as it stands in the annotations.

    image_to_text_R@k: the share of images of which any caption is among the k captions nearest to the image;
    text_to_image_R@k: the share of captions whose image is among the k images nearest to the caption.

    What is equally near stands in any order, and the mean over all orders is taken, so that embeddings that tell
    nothing apart score as chance does; what is no number is the farthest.

    `image_embeddings` and `text_embeddings` [P, E], `labels` int64 [P] (which image), `weight` [P] (how often).
    """
    from scipy.stats import hypergeom

    image, labels = gather(pairs, "image_embeddings", "labels")
    text, weight = gather(pairs, "text_embeddings", "weight")
    row_of = {label: row for row, label in enumerate(labels.tolist())}  # any of its rows: an image has one embedding
    images = F.normalize(image[list(row_of.values())], dim=1)
    texts, of = (x.repeat_interleave(weight.long(), 0) for x in (F.normalize(text, dim=1), labels))
    same = torch.tensor(list(row_of))[:, None] == of  # [images, texts]
    similarity = images @ texts.T
    scores: dict[str, float] = {}
    for way, nearness, right in (("image_to_text", similarity, same), ("text_to_image", similarity.T, same.T)):
        nearness = nearness.nan_to_num(nan=-2.0)  # cosines are no less than -1
        best = nearness.masked_fill(~right, -torch.inf).amax(1, keepdim=True)
        as_near = nearness == best
        nearer, tied, rights = (x.sum(1).numpy() for x in (nearness > best, as_near, as_near & right))
        for k in ranks:  # none of them among the tied that stand in the places left
            missed = hypergeom.pmf(0, tied, rights, (k - nearer).clip(0, tied))
            scores[f"{way}_R@{k}"] = float(1 - missed.mean())
    return scores


def mean_iou(pairs: Sequence[Pair]) -> dict[str, float]:
    """`mIoU`: |pred and true| / |pred or true| of all places, averaged over the classes that are there.

    `pred` logits [B, C, H, W], `target` int64 [B, H, W].
    """
    from sklearn.metrics import jaccard_score

    labels = torch.cat([out["pred"].argmax(1).flatten() for out, _ in pairs])
    truth = torch.cat([target["target"].flatten() for _, target in pairs])
    value = jaccard_score(truth.numpy(), labels.numpy(), labels=truth.unique().numpy(), average="macro")
    return {"mIoU": float(value)}


def mean_iou_and_boundaries(pairs: Sequence[Pair]) -> dict[str, float]:
    """`mIoU`, and `boundary_F1` of the places where `extra_d` [B, 1, H, W] is above 0 against `bd_gt` [B, H, W]."""
    from sklearn.metrics import f1_score

    found = torch.cat([out["extra_d"].flatten() > 0 for out, _ in pairs])
    truth = torch.cat([target["bd_gt"].flatten() > 0 for _, target in pairs])
    return {**mean_iou(pairs), "boundary_F1": float(f1_score(truth.numpy(), found.numpy(), zero_division=0.0))}


def telling_apart(pairs: Sequence[Pair]) -> dict[str, float]:
    """How well a critic tells captions of people from others, each as often as it stands there (`weight` [P]).

    `AP_sampled`, `AP_other`: the average precision of people's captions of the image among the captioner's, and among
    people's captions of other images; chance is their share, 0.5 where there are as many of both. `accuracy`: the mean
    of the share of people's captions that score above 0 and that of the captioner's that do not.

    `pred` are scores [P]; `target_is_real` bool [P], whether a person wrote it for this image; `sampled` bool [P],
    whether the captioner did. What there is none of is NaN.
    """
    from sklearn.metrics import average_precision_score

    pred, real = gather(pairs, "pred", "target_is_real")
    sampled, weight = (torch.cat([target[key] for _, target in pairs]) for key in ("sampled", "weight"))
    scores = {}
    for name, false in (("AP_sampled", sampled), ("AP_other", ~real & ~sampled)):
        among = (real | false).numpy()
        given = (real[among].numpy(), pred[among].numpy())
        precise = average_precision_score(*given, sample_weight=weight[among].numpy()) if false.any() else float("nan")
        scores[name] = float(precise)
    right = [(weight * kind * (pred > 0).eq(kind is real)).sum() / (weight * kind).sum() for kind in (real, sampled)]
    return {**scores, "accuracy": float(torch.stack(right).mean())}


def mean_box_iou(pairs: Sequence[Pair]) -> dict[str, float]:
    """`IoU`: of predicted and true `boxes` [B, 4] xyxy, averaged over images."""
    return {"IoU": float(elementwise_iou(*gather(pairs, "boxes", "boxes")).mean())}


def average_precision(find: Callable[[Mapping[str, Any]], list[Found]], pairs: Sequence[Pair]) -> dict[str, float]:
    """`AP50` (IoU 0.5) and `AP` (mean over IoU 0.5 to 0.95) as pycocotools' COCOeval gives them.

    `find` makes detections of what the head gave; `gt` is a list of `boxes` [n, 4] xyxy px and `labels` [n].
    """
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    found = list(chain.from_iterable(find(out) for out, _ in pairs))
    truth = list(chain.from_iterable(target["gt"] for _, target in pairs))
    boxes = [
        {"image_id": image, "category_id": label, "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
        for image, gt in enumerate(truth)
        for box, label in zip(xywh(gt["boxes"]), gt["labels"].tolist(), strict=True)
    ]
    detections = [
        {"image_id": image, "category_id": label, "bbox": box, "score": score}
        for image, one in enumerate(found)
        for box, label, score in zip(xywh(one.boxes), one.labels.tolist(), one.scores.tolist(), strict=True)
    ]
    if not boxes or not detections:
        return {"AP50": 0.0, "AP": 0.0}
    with redirect_stdout(io.StringIO()):  # it prints its progress
        coco = COCO()
        coco.dataset = {
            "info": {},
            "images": [{"id": image} for image in range(len(truth))],
            "categories": [{"id": label} for label in sorted({box["category_id"] for box in boxes})],
            "annotations": [{"id": i + 1, **box} for i, box in enumerate(boxes)],
        }
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(detections), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return {"AP50": float(evaluation.stats[1]), "AP": float(evaluation.stats[0])}


def restoration(lpips: PerceptualLoss, pairs: Sequence[Pair]) -> dict[str, float]:
    """`PSNR` in dB, 10 log10(1 / MSE), and the distance `LPIPS` (less is better), averaged over images.

    `images` [B, 3, H, W] in 0..1, given and wanted.
    """
    images, wanted = gather(pairs, "images", "images")
    squares = (images - wanted).square().flatten(1).mean(1)
    distances = [lpips(*pair) for pair in zip(images.split(1), wanted.split(1), strict=True)]
    return {"PSNR": float((-10 * squares.log10()).mean()), "LPIPS": float(torch.stack(distances).mean())}


def latent_information(pairs: Sequence[Pair]) -> dict[str, float]:
    """`KL`, the nats that a code carries of a caption: KL of its posterior from the image's prior, mean over captions.

    0 where the code has collapsed: posterior and prior are alike and the decoder is told nothing. `mu`, `logvar`,
    `prior_mu`, `prior_logvar` [P, Z], and `weight` [P], how often a caption stands there.
    """
    weight = torch.cat([target["weight"] for _, target in pairs])
    loss = VAEKLLoss()
    parts = [torch.cat([out[key] for out, _ in pairs]) for key in ("mu", "logvar", "prior_mu", "prior_logvar")]
    return {"KL": float(loss(*parts, weight=weight))}


def parallel_captions(vocabulary: Vocabulary, pairs: Sequence[Pair]) -> dict[str, float]:
    """`CIDEr` and `ROUGE_L` of the captions that the best paths of `pred` [L, B, V] collapse to.

    `captions` are what each of the B images was captioned with.
    """
    said = [words for out, _ in pairs for words in words_said(out["pred"].transpose(0, 1))]
    references = [captions for _, target in pairs for captions in target["captions"]]
    texts = (" ".join(vocabulary.decode(words)) for words in said)
    return score_captions(dict(enumerate(texts)), dict(enumerate(references)), ("CIDEr", "ROUGE_L")).metrics


def gather(pairs: Sequence[Pair], given: str, wanted: str) -> tuple[Tensor, Tensor]:
    """`given` of what the head gave and `wanted` of what it should have, of all batches, behind one another."""
    return torch.cat([out[given] for out, _ in pairs]), torch.cat([target[wanted] for _, target in pairs])


def xywh(boxes: Tensor) -> list[list[float]]:
    """Boxes [n, 4] xyxy as COCO writes them."""
    return box_convert(boxes, "xyxy", "xywh").tolist()
