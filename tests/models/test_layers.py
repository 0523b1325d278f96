import copy
import math
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.feature_extraction import create_feature_extractor

from models import vit
from models.encoder import Encoder
from models.layers import beside, overheard
from models.vit import DINOV2

IMAGES = torch.randint(0, 256, (2, 3, 96, 96), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def pooled(seen: Tensor, side: int) -> Tensor:
    """Mean and maximum of the places of a map [C, m, m] that lie in each of side x side cells, [side * side, 2 C]."""
    places, cells = seen.shape[1], []
    for row in range(side):
        for column in range(side):
            span = [slice(at * places // side, math.ceil((at + 1) * places / side)) for at in (row, column)]
            window = seen[:, span[0], span[1]].flatten(1)
            cells.append(torch.cat([window.mean(1), window.max(1).values]))
    return torch.stack(cells)


@pytest.mark.parametrize("places", [1, 3, 4, 6, 7, 12])
def test_each_cell_has_mean_and_maximum_of_its_places(places: int) -> None:
    last, seen = torch.randn(2, 9, 5), torch.randn(2, 4, places, places)
    found = beside(last, [seen.flatten(2).transpose(1, 2)])
    if places == 3:
        assert torch.equal(found, torch.cat([last, seen.flatten(2).transpose(1, 2)], -1))
        return
    expected = torch.stack([torch.cat([own, pooled(one, 3)], -1) for own, one in zip(last, seen, strict=True)])
    torch.testing.assert_close(found, expected)


def scaled(encoder: Encoder) -> Tensor:
    return (IMAGES / 255 - encoder.mean[:, None, None]) / encoder.std[:, None, None]


def rows(seen: Tensor) -> Tensor:
    return torch.stack([pooled(one, 3) for one in seen])


@torch.no_grad()
def test_a_layer_is_what_torchvision_finds_there() -> None:
    encoder = Encoder("torchvision/resnet18", ["6", "4"]).eval()
    theirs = torchvision.models.resnet18().eval()
    theirs.load_state_dict(dict(zip(theirs.state_dict(), encoder.backbone.state_dict().values(), strict=False)), False)
    found = create_feature_extractor(theirs, ["layer4", "layer3", "layer1"])(scaled(encoder))
    last = found["layer4"].flatten(2).transpose(1, 2)
    expected = torch.cat([last, rows(found["layer3"]), rows(found["layer1"])], -1)
    # float32 with BatchNorm folded into the convolutions
    torch.testing.assert_close(encoder(IMAGES), expected, rtol=1e-3, atol=1e-4)
    assert encoder.output_shape(96) == (9, 512 + 2 * 256 + 2 * 64)


@torch.no_grad()
def test_a_stage_of_ours_is_what_timm_finds_there() -> None:
    name = "tf_efficientnet_lite0"
    encoder = Encoder(name, ["blocks.4"]).eval()
    theirs: Any = timm.create_model(name, num_classes=0).eval()
    theirs.load_state_dict(encoder.backbone.state_dict())
    _, (fifth,) = theirs.forward_intermediates(scaled(encoder), indices=[3])  # its places halve after the fifth stage
    assert fifth.shape[1] == 112
    expected = torch.cat([theirs.forward_features(scaled(encoder)).flatten(2).transpose(1, 2), rows(fifth)], -1)
    torch.testing.assert_close(encoder(IMAGES), expected, rtol=1e-3, atol=1e-4)  # float32, folded


@torch.no_grad()
@pytest.mark.parametrize(("name", "layer"), [(DINOV2, "blocks.7"), ("vit_tiny_patch16_224", "blocks.7")])
def test_a_transformers_block_has_the_same_cells(name: str, layer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = Encoder(name, [layer]).eval()
    side = 98 if name == DINOV2 else 224
    images = torch.randint(0, 256, (3, 3, side, side), dtype=torch.uint8)
    prefix = encoder.backbone.num_prefix_tokens
    blocks: list[Tensor] = []
    encoder.backbone.blocks[7].register_forward_hook(lambda _, __, seen: blocks.append(seen[:, prefix:]))  # type: ignore[index, union-attr]
    found = encoder(images)
    plain = Encoder(name, backbone=encoder.backbone).eval()
    assert torch.equal(found, torch.cat([plain(images), blocks[0]], -1))
    monkeypatch.setattr(vit, "ROWS", 50)  # one image after the other
    torch.testing.assert_close(encoder(images), found, rtol=1e-4, atol=1e-5)  # float32 sums in another order


def test_what_runs_channels_last_is_laid_beside_as_well() -> None:
    encoder = Encoder("swin_tiny_patch4_window7_224", ["layers.2"]).eval()
    seen: list[Tensor] = []
    encoder.backbone.layers[2].register_forward_hook(lambda _, __, given: seen.append(given))  # type: ignore[index, union-attr]
    with torch.no_grad():
        found = encoder(torch.randint(0, 256, (1, 3, 224, 224), dtype=torch.uint8))
    assert found.shape == (1, 49, 768 + 2 * 384) and seen[0].shape == (1, 14, 14, 384)
    torch.testing.assert_close(found[0, :, 768:], pooled(seen[0][0].permute(2, 0, 1), 7))


def test_layers_that_are_not_there_are_refused() -> None:
    with pytest.raises(ValueError, match=r"resnet18 has no layer 'layer5'; it has conv1, .* layer4, .* in these$"):
        Encoder("resnet18", ["layer5"])
    for layer in ("global_pool", ""):  # which features do not pass
        with pytest.raises(ValueError, match=f"resnet18 gives no map at its layer {layer!r}"):
            Encoder("resnet18", [layer]).output_shape(64)


def test_no_hook_stays() -> None:
    encoder = Encoder("resnet18", ["layer3"]).eval()
    twin = copy.deepcopy(encoder)
    with torch.no_grad():
        assert torch.equal(twin(IMAGES), encoder(IMAGES))
    with pytest.raises(RuntimeError), torch.no_grad():
        encoder(IMAGES[:, :2])
    for backbone in (encoder.backbone, twin.backbone):
        assert not any(module._forward_hooks for module in backbone.modules())


def test_hooks_go_where_a_look_fails() -> None:
    backbone = nn.Sequential(nn.Identity())
    with pytest.raises(KeyError), overheard(backbone, ["0"]):
        raise KeyError
    assert not backbone[0]._forward_hooks


def test_gradients_reach_what_a_layer_follows() -> None:
    encoder = Encoder("resnet18", ["layer3"])
    encoder.freeze_unused(64)
    assert all(parameter.requires_grad for parameter in encoder.parameters())
    features = encoder(IMAGES)
    features[..., 512:].sum().backward()
    named = [(name, parameter.grad) for name, parameter in encoder.named_parameters()]
    got = {name.split(".")[1] for name, gradient in named if gradient is not None and gradient.any()}
    assert got == {"conv1", "bn1", "layer1", "layer2", "layer3"}
