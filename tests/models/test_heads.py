import math

import torch

from models.heads import Seen
from models.heads.boxes import RetinaNetDetector, SubjectHead, YOLOXDetector, keep_best
from models.heads.concepts import ConceptHead
from models.heads.pictures import PIDNetHead, RestorationHead, SegmentationHead
from models.heads.retrieval import RetrievalHead

NO_WORDS = (torch.zeros(0, 1, dtype=torch.int64), torch.zeros(0, dtype=torch.int64))


def seen(features: torch.Tensor) -> Seen:
    return Seen(features, *NO_WORDS)


def test_concepts_begin_at_their_frequencies() -> None:
    frequencies = torch.tensor([0.5, 0.01, 0.9])
    pred = ConceptHead(8, frequencies, dropout=0.5)(seen(torch.randn(4, 6, 8)))["pred"]
    # float32 logit and back
    torch.testing.assert_close(pred.sigmoid(), frequencies.expand(4, 3), rtol=1e-5, atol=1e-6)


def test_concepts_are_a_linear_map_of_the_mean_region() -> None:
    head = ConceptHead(3, torch.tensor([0.5, 0.5]), dropout=0.3).eval()
    torch.nn.init.normal_(head.classifier.weight)
    weight = head.classifier.weight.tolist()
    features = torch.randn(2, 5, 3)
    for b in range(2):
        mean = torch.stack([features[b, n] for n in range(5)]).sum(0) / 5
        expected = [sum(w * float(x) for w, x in zip(row, mean, strict=True)) for row in weight]
        # sums in another order, float32
        torch.testing.assert_close(head(seen(features))["pred"][b], torch.tensor(expected), rtol=1e-5, atol=1e-5)


def test_the_decoder_is_told_how_likely_each_concept_is() -> None:
    head = ConceptHead(3, torch.tensor([0.5, 0.1]), dropout=0.3, told=4).eval()
    assert head.tell is not None and not head.tell.weight.any()  # no decoder is disturbed by what is yet to be learned
    torch.nn.init.normal_(head.classifier.weight)
    torch.nn.init.normal_(head.tell.weight)
    features, image_of = torch.randn(2, 5, 3), torch.tensor([1, 0, 1])
    out = head(Seen(features, NO_WORDS[0], image_of))
    likely = [[1 / (1 + math.exp(-x)) for x in row] for row in out["pred"].tolist()]
    weight = head.tell.weight.tolist()
    for p, image in enumerate(image_of.tolist()):
        expected = [sum(w * x for w, x in zip(row, likely[image], strict=True)) for row in weight]
        torch.testing.assert_close(out["told"][p], torch.tensor(expected), rtol=1e-5, atol=1e-6)  # of float32
    torch.testing.assert_close(head.draw(features)[image_of], out["told"])
    out["told"].sum().backward()
    assert head.classifier.weight.grad is None and head.tell.weight.grad is not None


def test_padding_changes_no_embedding_and_each_caption_has_its_image() -> None:
    head = RetrievalHead(6, vocabulary_size=9, width=8, dropout=0.5).eval()
    features, image_of = torch.randn(2, 4, 6), torch.tensor([1, 0, 1])
    tokens = torch.tensor([[1, 4, 5, 0, 0], [1, 6, 0, 0, 0], [1, 7, 8, 4, 2]])
    out = head(Seen(features, tokens, image_of))
    for p, length in enumerate((3, 2, 5)):
        alone = head(Seen(features[image_of[p], None], tokens[p : p + 1, :length], torch.tensor([0])))
        for key in ("image_embeddings", "text_embeddings"):
            # sums in another order, float32
            torch.testing.assert_close(out[key][p], alone[key][0], rtol=1e-5, atol=1e-6)
    assert torch.equal(out["embeddings"], torch.stack([out["image_embeddings"], out["text_embeddings"]]))


def test_a_place_is_seen_in_its_cell() -> None:
    """Of all cells, the one that a place lies in, or one beside it, moves what is said of that place the most."""
    features = torch.randn(1, 25, 12, requires_grad=True)
    detectors = (YOLOXDetector(12, 8, 4, size=80), RetinaNetDetector(12, 8, 4, size=80, side=5))
    maps = [
        head(seen(features))[key]
        for head, key in ((SegmentationHead(12, 8, 4), "pred"), (PIDNetHead(12, 8, 4), "pred"))
    ]
    maps += [RestorationHead(12, 8)(seen(features))["images"], *detectors[0](seen(features))["pred"]]
    out = detectors[1](seen(features))
    for logits, side in zip(out["cls_logits"], (5, 10, 20), strict=True):
        maps.append(logits.reshape(side, side, -1).permute(2, 0, 1)[None])
    for one in maps:
        scale = one.shape[-1] // 5
        for row, column in ((0, 0), (1, 3), (4, 2)):
            said = one[0, :, row * scale + scale // 2, column * scale + scale // 2].sum()
            (gradient,) = torch.autograd.grad(said, features, retain_graph=True)
            nearest = int(gradient.norm(dim=-1).argmax())
            assert abs(nearest // 5 - row) <= 1 and abs(nearest % 5 - column) <= 1


def test_detectors_begin_by_finding_nothing_with_confidence() -> None:
    sight = seen(torch.randn(2, 9, 12))
    yolox, retina = YOLOXDetector(12, 8, 3, size=96), RetinaNetDetector(12, 8, 3, size=96, side=3)
    for found in (*yolox.find(yolox(sight)), *retina.find(retina(sight))):
        assert (found.scores < 0.2).all()


def test_anchors_cover_the_image_evenly() -> None:
    head = RetinaNetDetector(12, 8, 3, size=96, side=3)
    out = head(seen(torch.randn(1, 9, 12)))
    assert len(out["anchors"]) == 9 * (9 + 36 + 144)
    for key in ("cls_logits", "bbox_regression"):
        assert [level.shape[1] for level in out[key]] == [9 * 9, 9 * 36, 9 * 144]
    start = 0
    for side in (3, 6, 12):
        level = out["anchors"][start : start + 9 * side * side].reshape(side, side, 9, 4)
        start += 9 * side * side
        torch.testing.assert_close(level[1:, :, :, 1] - level[:-1, :, :, 1], torch.full((side - 1, side, 9), 96 / side))
        areas = (level[0, 0, :, 2] - level[0, 0, :, 0]) * (level[0, 0, :, 3] - level[0, 0, :, 1])
        assert areas.min() > (1.8 * 96 / side) ** 2 and areas.max() < (3.4 * 96 / side) ** 2


def test_a_subject_lies_about_the_image() -> None:
    boxes = SubjectHead(12, 8, size=96, side=3)(seen(10 * torch.randn(50, 9, 12)))["boxes"]
    centre, size = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
    assert (centre >= 0).all() and (centre <= 96).all() and (size > 0).all() and (size <= 96).all()


def test_of_boxes_of_a_class_that_overlap_the_best_stays() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 9], [20, 20, 130, 30]])
    scores = torch.tensor([[0.6, 0.0], [0.9, 0.3], [0.0, 0.5]])
    found = keep_best(boxes, scores, size=96, least=0.1)
    assert found.scores.tolist() == scores[[1, 2, 1], [0, 1, 1]].tolist()
    assert found.labels.tolist() == [0, 1, 1]
    assert found.boxes[1].tolist() == [20, 20, 96, 30]  # cut at the border
    assert len(keep_best(boxes, torch.zeros(3, 2), size=96, least=0.1).scores) == 0
