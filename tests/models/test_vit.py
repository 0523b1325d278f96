import pytest
import timm
import torch
from torch import nn

from models import vit
from models.encoder import Encoder
from models.vit import BLOCKS, DINOV2, Branches, VisionTransformer, alike


def timms() -> nn.Module:
    return timm.create_model(DINOV2, num_classes=0, dynamic_img_size=True).eval()


def drawn(ours: VisionTransformer) -> VisionTransformer:
    """With random factors and norms: as both begin, blocks hardly do anything."""
    with torch.no_grad():
        for name, parameter in ours.named_parameters():
            if parameter.ndim == 1:
                parameter.normal_(float("gamma" in name or ("norm" in name and "weight" in name)), 0.2)
    return ours


def test_tensors_have_timms_names_order_and_shapes() -> None:
    with torch.device("meta"):
        shapes = [
            [(key, value.shape) for key, value in model.state_dict().items()]
            for model in (VisionTransformer(), timms())
        ]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize("fused", [(), ("cpu",)], ids=["written out", "fused"])
@pytest.mark.parametrize("size", [(70, 84), (28, 14)])
def test_the_function_is_timms(size: tuple[int, int], fused: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vit, "FUSED", fused)
    torch.manual_seed(0)
    ours, theirs = drawn(VisionTransformer()), timms()
    theirs.load_state_dict(ours.state_dict())
    images = torch.randn(1, 3, *size)
    with torch.no_grad():
        expected = theirs.forward_features(images)  # type: ignore[operator]
        found = ours.forward_features(images)
    # float32 through twelve blocks, whose attention torch sums in another order
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert float(expected.std()) > 0.1


def test_pixels_that_fill_no_patch_are_not_seen() -> None:
    torch.manual_seed(0)
    ours = drawn(VisionTransformer())
    images = torch.randn(2, 3, 41, 55)
    with torch.no_grad():
        assert torch.equal(ours.forward_features(images), ours.forward_features(images[:, :, :28, :42]))


def test_stages_are_the_stem_and_the_blocks() -> None:
    encoder = Encoder(DINOV2)
    assert encoder.output_shape(196) == (196, 384)
    encoder.freeze(9)
    learns = {name for name, parameter in encoder.named_parameters() if parameter.requires_grad}
    upper = {f"blocks.{i}" for i in range(8, 12)} | {"norm.weight", "norm.bias"}
    assert {".".join(name.split(".")[1:3]) for name in learns} == upper
    with pytest.raises(ValueError, match="has 13 stages, not 14"):
        encoder.freeze(14)


@pytest.mark.parametrize("images", [1, 2, 5])
def test_what_an_image_gives_does_not_depend_on_how_a_batch_is_divided(
    images: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = VisionTransformer().eval()
    batch = torch.randn(images, 3, 28, 42)  # 7 words each
    sizes: list[int] = []
    model.blocks.register_forward_hook(lambda _, given, __: sizes.append(len(given[0])))
    whole = model.forward_features(batch)
    monkeypatch.setattr(vit, "ROWS", 14)
    parts = model.forward_features(batch)
    torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-5)  # float32 sums in another order
    assert sizes == {1: [1, 1], 2: [2, 2], 5: [5, 2, 2, 1]}[images]


def branches(learned: int) -> list[VisionTransformer]:
    """Three that differ in all blocks from `learned` on."""
    torch.manual_seed(0)
    found = [drawn(VisionTransformer()).eval() for _ in range(3)]
    for other in found[1:]:
        own = other.state_dict()
        begin = ("cls_token", "pos_embed", "patch_embed.", *(f"blocks.{index}." for index in range(learned)))
        other.load_state_dict({k: v if k.startswith(begin) else own[k] for k, v in found[0].state_dict().items()})
    return found


@pytest.mark.parametrize("learned", [1, 8, 12])
def test_branches_see_what_each_would_and_share_what_is_the_same(learned: int, monkeypatch: pytest.MonkeyPatch) -> None:
    each = branches(learned)
    assert alike(each) == learned
    looked = [0] * BLOCKS
    for model in each:
        for index, block in enumerate(model.blocks):
            block.register_forward_hook(lambda *_, index=index: looked.__setitem__(index, looked[index] + 1))
    images = torch.randn(3, 3, 28, 42)
    monkeypatch.setattr(vit, "ROWS", 14)  # two images at a time
    with torch.no_grad():
        together = Branches(each).forward_features(images)
        assert looked == [2] * learned + [6] * (BLOCKS - learned)  # twice two images or one, by one or by three
        for part, model in zip(together.chunk(3, -1), each, strict=True):
            torch.testing.assert_close(part, model.forward_features(images), rtol=1e-4, atol=1e-5)  # other sums
            assert float(part.std()) > 0.1


@pytest.mark.parametrize("name", ["cls_token", "pos_embed", "patch_embed.proj.bias", "blocks.0.mlp.fc2.bias"])
def test_what_differs_at_the_beginning_is_not_alike(name: str) -> None:
    each = branches(8)
    with torch.no_grad():
        each[2].get_parameter(name).add_(0.1)
    assert alike(each) == 0
    assert alike(each[:2]) == 8
