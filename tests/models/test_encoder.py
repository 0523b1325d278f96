import pytest
import timm
import torch

from models.captioner import Captioner
from models.decoder import Decoder
from models.encoder import Encoder
from models.pooling import Visual

LITE = "tf_efficientnet_lite0"


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        (LITE, (9, 1280)),
        ("resnet18", (9, 512)),
        ("torchvision/resnet18", (9, 512)),
        ("torchvision/mobilenet_v3_small", (9, 576)),
        ("torchvision/swin_t", (9, 768)),
    ],
)
def test_shapes(name: str, shape: tuple[int, int]) -> None:
    assert Encoder(name).output_shape(96) == shape


def test_transformers_give_a_grid_too() -> None:
    for name in ("vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"):
        regions, channels = Encoder(name).output_shape(224)
        assert (round(regions**0.5) ** 2, channels) == (regions, timm.create_model(name).num_features)


def test_regions_run_row_by_row() -> None:
    encoder = Encoder("torchvision/resnet18").eval()
    with torch.no_grad():
        flat = torch.full((1, 3, 96, 96), 100, dtype=torch.uint8)
        lit = flat.clone()
        lit[:, :, :8, 88:] = 255  # the upper right corner
        change = (encoder(lit) - encoder(flat)).abs().sum(-1)[0].view(3, 3)
    assert change.argmax() == 2


def test_unknown_names_are_refused() -> None:
    paths = ("local-dir:/nowhere", "hf-hub:someone/something")  # timm would look there
    half = ("mnasnet0_5", "shufflenet_v2_x0_5", "googlenet")  # which would be a part of themselves
    for name in ("resnet_of_mine", "torchvision/resnet_of_mine", *paths, *(f"torchvision/{name}" for name in half)):
        with pytest.raises(ValueError, match=name):
            Encoder(name)


def captioner(trainable: bool) -> Captioner:
    return Captioner(Encoder("resnet18"), Decoder(9, 512, 16, 0.5), trainable)


def grouped(model: Captioner) -> int:
    """How many parameters stand in the optimizer's groups."""
    optimizer = torch.optim.AdamW(list(model.parameter_groups(1.0, 1.0, 0.0)))
    return sum(len(group["params"]) for group in optimizer.param_groups)


def test_a_frozen_encoder_gets_no_gradient_and_stays_in_evaluation_mode() -> None:
    model = captioner(trainable=False).train()
    assert not model.encoder.training and model.decoder.training
    images, tokens = torch.randint(256, (2, 3, 64, 64), dtype=torch.uint8), torch.ones(3, 4, dtype=torch.long)
    output = model(Visual(images), tokens, torch.tensor([0, 0, 1]))
    output.logits.sum().backward()
    assert all(p.grad is None for p in model.encoder.parameters())
    assert grouped(model) == len(list(model.decoder.parameters()))


def test_a_trained_encoder_gets_gradients_and_keeps_its_batch_statistics() -> None:
    model = captioner(trainable=True).train()
    before = {k: v.clone() for k, v in model.encoder.state_dict().items() if "running" in k}
    images, tokens = torch.randint(256, (2, 3, 64, 64), dtype=torch.uint8), torch.ones(3, 4, dtype=torch.long)
    model(Visual(images), tokens, torch.tensor([0, 0, 1])).logits.sum().backward()
    assert all(p.grad is not None for p in model.encoder.parameters())
    assert all(torch.equal(model.encoder.state_dict()[k], v) for k, v in before.items())
    groups = list(model.parameter_groups(0.1, 0.2, 0.3))
    assert [g["lr"] for g in groups] == [0.1, 0.1, 0.2, 0.2]
    assert [g["weight_decay"] for g in groups] == [0.3, 0.0, 0.3, 0.0]
    assert grouped(model) == len(list(model.parameters()))


@pytest.mark.parametrize(
    ("name", "first_trained"),
    [
        (LITE, "backbone.blocks.1.0.conv_pw.weight"),
        ("resnet18", "backbone.layer2.0.conv1.weight"),
        ("torchvision/mobilenet_v3_small", "backbone.0.2.block.0.0.weight"),
    ],
)
def test_stages_that_are_frozen_get_no_gradient(name: str, first_trained: str) -> None:
    encoder = Encoder(name)
    encoder.freeze(2)
    encoder(torch.randint(256, (1, 3, 64, 64), dtype=torch.uint8)).sum().backward()
    trained = [key for key, parameter in encoder.named_parameters() if parameter.grad is not None]
    assert trained[0] == first_trained
    assert trained == [key for key, _ in encoder.named_parameters()][-len(trained) :]
    with pytest.raises(ValueError, match="stages, not 99"):
        encoder.freeze(99)


@pytest.mark.parametrize(
    ("name", "unused"),
    [("resnet18", set()), ("test_convnext", {"backbone.head.norm.weight", "backbone.head.norm.bias"})],
)
def test_what_features_pass_by_gets_no_gradient(name: str, unused: set[str]) -> None:
    encoder, drawn = Encoder(name), torch.get_rng_state()
    encoder.freeze_unused(64)
    assert torch.equal(torch.get_rng_state(), drawn) and encoder.training
    assert {key for key, parameter in encoder.named_parameters() if not parameter.requires_grad} == unused
    assert all(parameter.grad is None for parameter in encoder.parameters())


def test_features_and_images_take_the_same_way() -> None:
    model = captioner(trainable=False).eval()
    images, tokens = torch.randint(256, (2, 3, 64, 64), dtype=torch.uint8), torch.ones(2, 4, dtype=torch.long)
    from_images = model(Visual(images), tokens, torch.arange(2))
    from_features = model(Visual(model.encoder(images)), tokens, torch.arange(2))
    torch.testing.assert_close(from_images.logits, from_features.logits)
