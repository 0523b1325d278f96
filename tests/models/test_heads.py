import torch

from models.heads import ConceptHead


def test_concepts_begin_at_their_frequencies() -> None:
    frequencies = torch.tensor([0.5, 0.01, 0.9])
    pred = ConceptHead(8, frequencies, dropout=0.5)(torch.randn(4, 6, 8))["pred"]
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
        torch.testing.assert_close(head(features)["pred"][b], torch.tensor(expected), rtol=1e-5, atol=1e-5)
