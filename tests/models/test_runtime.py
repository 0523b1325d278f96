import pytest
import torch
from torch import Tensor, nn

from models.encoder import Encoder
from models.runtime import MANY, translated

IMAGES = torch.randint(0, 256, (5, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("name", "extra_layers"),
    [
        ("tf_efficientnet_lite0", []),
        ("tf_efficientnet_lite0", ["blocks.4"]),
        ("resnet18", []),
        ("torchvision/resnet18", []),
    ],
)
def test_features_are_the_same(name: str, extra_layers: list[str]) -> None:
    encoder = Encoder(name, extra_layers).eval()
    with torch.inference_mode():
        exact = encoder(IMAGES)
        with translated(encoder, MANY, "fp32"):
            features = [encoder(images) for images in IMAGES.split(2)]
            assert encoder.translation is not None
        assert encoder.translation is None
    # float32 added up in another order
    torch.testing.assert_close(torch.cat(features), exact, rtol=1e-4, atol=1e-5 * float(exact.abs().max()))


def test_weights_are_those_of_the_moment() -> None:
    encoder = Encoder("resnet18").eval()
    looks = []
    for _ in range(2):
        with torch.inference_mode(), translated(encoder, MANY, "fp32"):
            looks.append(encoder(IMAGES))
        with torch.no_grad():
            encoder.backbone.conv1.weight.mul_(2)  # type: ignore[union-attr, operator]
    assert not torch.allclose(*looks)


@pytest.mark.parametrize(("images", "precision"), [(MANY - 1, "fp32"), (MANY, "bf16")])
def test_pytorch_looks_where_it_is_better(images: int, precision: str) -> None:
    encoder = Encoder("resnet18").eval()
    with translated(encoder, images, precision):
        assert encoder.translation is None


class PerBatch(nn.Module):
    """Multiplies by the number of images, which tracing takes for a constant."""

    num_features = 3

    def forward_features(self, images: Tensor) -> Tensor:
        return images * len(images)


class Untranslatable(PerBatch):
    def forward_features(self, images: Tensor) -> Tensor:
        return torch.special.bessel_j0(images)  # which ONNX does not have


def test_nothing_is_printed_of_what_does_not_translate(capfd: pytest.CaptureFixture[str]) -> None:
    encoder = Encoder("vit_small_patch14_dinov2").eval()  # bicubic interpolation, which ONNX does not have so
    with torch.inference_mode():
        exact = encoder(IMAGES)
        with translated(encoder, MANY, "fp32"):
            assert torch.equal(encoder(IMAGES), exact)
            assert encoder.translation is None
    print("said")
    assert capfd.readouterr() == ("said\n", "")


@pytest.mark.parametrize("backbone", [PerBatch(), Untranslatable()])
def test_pytorch_goes_on_where_a_translation_is_wrong_or_there_is_none(backbone: PerBatch) -> None:
    encoder = Encoder("resnet18").eval()
    encoder.backbone = backbone
    with torch.inference_mode():
        exact = encoder(IMAGES)
        with translated(encoder, MANY, "fp32"):
            assert torch.equal(encoder(IMAGES), exact) and encoder.translation is None


def test_an_error_ends_it() -> None:
    encoder = Encoder("resnet18").eval()
    with pytest.raises(KeyError), translated(encoder, MANY, "fp32"):
        raise KeyError
    assert encoder.translation is None
