from itertools import groupby, product

import torch

from loss.ctc import CTCLoss
from models.heads import Seen
from models.heads.parallel import ParallelHead, left_of, possible, words_said
from models.tokens import END, START, UNK

D, V, SLOTS, N = 6, 9, 7, 4


def head(layers: int = 2) -> ParallelHead:
    torch.manual_seed(0)
    return ParallelHead(D, V, SLOTS, width=8, layers=layers, dropout=0.5).eval()


def collapsed(path: tuple[int, ...]) -> list[int]:
    """Equal neighbours once, then without blanks."""
    return [word for word, _ in groupby(path) if word != 0]


def test_every_path_collapses_as_it_is_defined() -> None:
    paths = list(product((0, 4, 5), repeat=5))
    kept = left_of(torch.tensor(paths))
    for path, mask in zip(paths, kept, strict=True):
        assert torch.tensor(path)[mask].tolist() == collapsed(path)


def test_what_is_said_is_the_best_path_collapsed_with_its_probability_and_its_looks() -> None:
    model, features = head(), torch.randn(5, N, D)
    with torch.no_grad():
        model.classifier.weight.mul_(6)  # untrained slots say nearly the same
        logits, attention = model.look(features)
        said = model.say(features)
    log_p = logits.log_softmax(-1)
    allowed = [c for c in range(V) if c not in (START, END, UNK)]
    for image, hypothesis in enumerate(said):
        path = tuple(max(allowed, key=row.__getitem__) for row in log_p[image].tolist())
        assert hypothesis.tokens == collapsed(path) != []
        total = sum(float(log_p[image, slot, c]) for slot, c in enumerate(path))
        assert abs(hypothesis.score - total / (len(hypothesis.tokens) + 1)) < 1e-5  # sums of float32
        starts = [slot for slot, c in enumerate(path) if c and (slot == 0 or path[slot - 1] != c)]
        torch.testing.assert_close(hypothesis.attention, attention[image, starts])
    torch.testing.assert_close(attention.sum(-1), torch.ones(5, SLOTS))
    assert words_said(logits) == [hypothesis.tokens for hypothesis in said]


def test_there_is_always_a_word() -> None:
    logits = torch.zeros(2, 3, V)
    logits[..., 0] = 9  # blank everywhere
    logits[..., END] = 20
    logits[0, 1, 5] = logits[1, 2, 6] = 3
    assert words_said(logits) == [[5], [6]]
    assert (possible(logits)[..., [START, END, UNK]] == -torch.inf).all()


def test_an_image_has_its_logits_whatever_stands_beside_it() -> None:
    model, features = head(), torch.randn(3, N, D)
    pred = model(Seen(features, torch.zeros(3, 1, dtype=torch.long), torch.arange(3)))["pred"]
    assert pred.shape == (SLOTS, 3, V)
    for image in range(3):
        # sums in another order, float32
        torch.testing.assert_close(pred[:, image], model.look(features[image, None])[0][0], rtol=1e-5, atol=1e-6)


def test_the_order_of_cells_says_nothing_and_slots_see_each_other() -> None:
    model, features = head(), torch.randn(1, N, D)
    torch.testing.assert_close(model.look(features)[0], model.look(features.flip(1))[0], rtol=1e-5, atol=1e-5)
    before = model.look(features)[0]
    with torch.no_grad():
        model.queries[0] = torch.randn(8)
    assert (model.look(features)[0] - before).abs().amax(-1).min() > 1e-4  # the others, too


def test_ctc_teaches_two_captions_apart() -> None:
    torch.manual_seed(0)
    model = ParallelHead(D, V, SLOTS, width=16, layers=1, dropout=0.0)
    features, target = torch.randn(2, N, D), torch.tensor([[4, 4, 5, 6], [7, 0, 0, 0]])
    lengths, slots = torch.tensor([4, 1]), torch.tensor([SLOTS, SLOTS])
    optimizer, loss = torch.optim.Adam(model.parameters(), 1e-2), CTCLoss()
    for _ in range(60):
        loss(model.look(features)[0].transpose(0, 1), target, slots, lengths).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert [h.tokens for h in model.say(features)] == [[4, 4, 5, 6], [7]]
