import copy
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from models.folding import FoldedConv2d, FoldedNorm, _Depthwise, fold_norms

BACKBONES = {
    "tf_efficientnet_lite0": lambda: timm.create_model("tf_efficientnet_lite0", num_classes=0),
    "resnet18": lambda: timm.create_model("resnet18", num_classes=0),
    "torchvision/resnet18": lambda: torchvision.models.resnet18(),
    "torchvision/densenet121": lambda: torchvision.models.densenet121(),  # norms before convolutions, too
    "torchvision/vgg11": lambda: torchvision.models.vgg11().features,  # no norm at all
}


def with_statistics(name: str) -> nn.Module:
    """A backbone in evaluation mode whose BatchNorm does something."""
    torch.manual_seed(0)
    model = BACKBONES[name]().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.get_buffer("running_mean"), 0, 0.1)
            nn.init.uniform_(module.get_buffer("running_var"), 0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.1)
    return model


@pytest.mark.parametrize("name", BACKBONES)
def test_folded_is_the_same_function_with_the_same_gradients_and_state_dict(name: str) -> None:
    plain = with_statistics(name).double()  # float32 would hide a small difference behind the order of its sums
    folded = copy.deepcopy(plain)
    fold_norms(folded, torch.zeros(1, 3, 64, 64, dtype=torch.float64))
    before, left = (sum(isinstance(m, nn.BatchNorm2d) for m in model.modules()) for model in (plain, folded))
    assert sum(isinstance(m, FoldedNorm) for m in folded.modules()) == before - left
    assert left == (62 if name == "torchvision/densenet121" else 0)  # there the norms that read a concatenation stay
    assert list(folded.state_dict()) == list(plain.state_dict())
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    outputs = [model(images) for model in (plain, folded)]
    for output in outputs:
        output.square().mean().backward()
    scale = outputs[0].detach().abs().max()
    torch.testing.assert_close(outputs[1] / scale, outputs[0] / scale, rtol=0, atol=1e-12)
    for (key, a), b in zip(plain.named_parameters(), folded.parameters(), strict=True):
        assert a.grad is not None, key
        torch.testing.assert_close(b.grad, a.grad, rtol=0, atol=1e-9 * float(a.grad.abs().max()) + 1e-18, msg=key)


def test_a_convolution_that_changes_its_filters_is_left_alone() -> None:
    class Standardised(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            return self._conv_forward(x, self.weight - self.weight.mean(), self.bias)

    model = nn.Sequential(Standardised(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 5, 3, bias=True), nn.BatchNorm2d(5))
    fold_norms(model, torch.zeros(1, 3, 9, 9))
    assert [type(m) for m in model] == [Standardised, nn.BatchNorm2d, FoldedConv2d, FoldedNorm]


@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (3, 2), (5, 1), (5, 2)])
def test_depthwise_gradients_in_bfloat16(kernel: int, stride: int) -> None:
    torch.manual_seed(kernel + stride)
    sizes = ((2, 6, 12, 12), (6, 1, kernel, kernel), (6,))
    given = [torch.randn(size).bfloat16().requires_grad_() for size in sizes]
    exact = [tensor.detach().float().requires_grad_() for tensor in given]
    args: Any = ((stride, stride), (kernel // 2, kernel // 2), (1, 1), 6)
    got, expected = _Depthwise.apply(*given, *args), F.conv2d(exact[0], exact[1], exact[2], *args)
    upstream = torch.randn_like(expected).bfloat16()
    got.backward(upstream)
    expected.backward(upstream.float())
    for a, b in ((got, expected), *((a.grad, b.grad) for a, b in zip(given, exact, strict=True))):
        assert a is not None and b is not None
        largest = float(b.detach().abs().max())
        torch.testing.assert_close(a.float(), b, rtol=2**-7, atol=2**-7 * largest)  # bfloat16 keeps 8 bits


def test_only_the_gradients_that_are_wanted_are_made() -> None:
    x = torch.randn(1, 2, 5, 5).bfloat16()
    weight, bias = torch.randn(2, 1, 3, 3).bfloat16(), torch.zeros(2).bfloat16().requires_grad_()
    _Depthwise.apply(x, weight, bias, (1, 1), (1, 1), (1, 1), 2).sum().backward()
    assert x.grad is None and weight.grad is None
    torch.testing.assert_close(bias.grad, torch.full((2,), 25.0).bfloat16())
