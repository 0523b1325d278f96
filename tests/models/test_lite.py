import pytest
import timm
import torch

from models.folding import fold_norms
from models.lite import VARIANTS, EfficientNetLite


@pytest.mark.parametrize("name", VARIANTS)
def test_tensors_have_timms_names_order_and_shapes(name: str) -> None:
    with torch.device("meta"):
        ours, theirs = EfficientNetLite(name), timm.create_model(name, num_classes=0)
    shapes = [[(key, value.shape) for key, value in model.state_dict().items()] for model in (ours, theirs)]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "tf_efficientnet_lite2"])
def test_the_function_is_timms_bit_for_bit(name: str) -> None:
    torch.manual_seed(0)
    ours, theirs = EfficientNetLite(name), timm.create_model(name, num_classes=0)
    theirs.load_state_dict(ours.state_dict())
    fold_norms(theirs, torch.zeros(1, 3, 64, 64))
    images = torch.randn(2, 3, 70, 95)  # sides that TensorFlow's padding treats in different ways
    with torch.no_grad():
        expected = theirs.eval().forward_features(images)  # type: ignore[operator]
        assert torch.equal(ours.forward_features(images), expected)


def test_weights_begin_as_timms_do() -> None:
    torch.manual_seed(0)
    ours, theirs = EfficientNetLite("tf_efficientnet_lite0"), timm.create_model("tf_efficientnet_lite0", num_classes=0)
    for (key, a), b in zip(ours.state_dict().items(), theirs.state_dict().values(), strict=True):
        if b.numel() > 1000 and b.is_floating_point():
            # two draws of the spread of some thousand normal numbers
            assert a.std() == pytest.approx(float(b.std()), rel=0.1), key
