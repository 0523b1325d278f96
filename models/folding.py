"""Frozen BatchNorm folded into the convolution before it; depthwise convolution with a fast gradient."""

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class FoldedNorm(nn.Module):
    """What stays of a frozen BatchNorm behind a `FoldedConv2d`: its parameters and statistics, and its activation.

        conv(x) gamma / s + (beta - mean gamma / s),   s = sqrt(var + eps)

    so that `scale` [C] multiplies the filters and `shift` [C] is a bias. The tensors keep their names: state dicts fit.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, norm: nn.BatchNorm2d, act: nn.Module) -> None:
        super().__init__()
        self.eps = norm.eps
        self.weight, self.bias = norm.weight, norm.bias
        for name, buffer in norm.named_buffers(recurse=False):
            self.register_buffer(name, buffer)
        self.act = act

    def scale_shift(self) -> tuple[Tensor, Tensor]:
        """Scale and shift [C]."""
        scale = self.weight * torch.rsqrt(self.running_var + self.eps)
        return scale, self.bias - self.running_mean * scale

    def forward(self, folded: Tensor) -> Tensor:
        """The activation of what the convolution has already normalised."""
        return self.act(folded)


class FoldedConv2d(nn.Module):
    """A convolution whose filters carry the scale of the frozen BatchNorm behind it; gradients reach both.

    One pass over the feature maps instead of two, in the precision of autocast (BatchNorm would stay in float32).
    `same` pads as TensorFlow does, which depends on the image's size.
    """

    def __init__(self, conv: nn.Conv2d, norm: FoldedNorm, same: bool) -> None:
        super().__init__()
        self.weight, self.bias = conv.weight, conv.bias
        self.stride, self.padding, self.dilation, self.groups = conv.stride, conv.padding, conv.dilation, conv.groups
        self.same = same
        self._norm = (norm,)  # a tuple, so that its parameters are listed once

    def forward(self, x: Tensor) -> Tensor:
        """norm(conv(x)) without the norm's activation."""
        scale, shift = self._norm[0].scale_shift()
        weight = self.weight * scale[:, None, None, None]
        bias = shift if self.bias is None else shift + self.bias * scale
        if self.same:
            x = F.pad(x, [*self._padding(x, -1), *self._padding(x, -2)])
        if x.device.type == "cpu" and x.dtype == torch.bfloat16 and weight.shape[1] == 1 and torch.is_grad_enabled():
            args = (self.stride, self.padding, self.dilation, self.groups)
            return _Depthwise.apply(x, weight.to(x.dtype), bias.to(x.dtype), *args)
        return F.conv2d(x, weight, bias, self.stride, self.padding, self.dilation, self.groups)

    def _padding(self, x: Tensor, axis: int) -> tuple[int, int]:
        """What ceil(size / stride) outputs need along an axis, before and after."""
        size, kernel, stride, dilation = x.shape[axis], self.weight.shape[axis], self.stride[axis], self.dilation[axis]
        missing = max(((size + stride - 1) // stride - 1) * stride + (kernel - 1) * dilation + 1 - size, 0)
        return missing // 2, missing - missing // 2


class _Depthwise(torch.autograd.Function):
    """Depthwise convolution in bfloat16 on a CPU.

    oneDNN has no fast bfloat16 kernel for the gradient of the images where the stride is not 1, nor for that of
    filters larger than 3: there float32 is 4 to 20 times as fast.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, *args: Any) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.args = args
        return F.conv2d(x, weight, bias, *args)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        stride, padding, dilation, groups = ctx.args
        image, filters, bias = ctx.needs_input_grad[:3]

        def gradients(*mask: bool, slow: bool) -> tuple[Tensor, ...]:
            dtype = torch.float32 if slow else x.dtype
            given = (tensor.to(dtype) for tensor in (grads[0], x, weight))
            about = ([groups], stride, padding, dilation, False, (0, 0), groups, mask)
            return torch.ops.aten.convolution_backward(*given, *about)

        of_image, _, _ = gradients(image, False, False, slow=max(stride) > 1)
        _, of_filters, of_bias = gradients(False, filters, bias, slow=max(weight.shape[-2:]) > 3)
        return (*(g if g is None else g.to(x.dtype) for g in (of_image, of_filters, of_bias)), *[None] * 4)


@torch.no_grad()
def fold_norms(model: nn.Module, images: Tensor) -> None:
    """Fold every BatchNorm of `model` whose input is a convolution's output into that convolution, in place.

    Which follows which is seen by running `model` on `images` [1, 3, H, W]. The model's output stays that of its
    evaluation mode; from here on its BatchNorm can only be used frozen.
    """
    from timm.layers import Conv2dSame  # here: it takes seconds, and the encoders that ship do without it

    convolutions = (nn.Conv2d, Conv2dSame)  # these very types: others standardise or otherwise change their filters
    outputs: dict[int, tuple[str, Tensor]] = {}  # id -> a convolution and its output (kept, so that ids stay unique)
    followed: dict[str, str] = {}  # convolution -> its norm

    def after_convolution(name: str, module: nn.Module, given: tuple[Tensor], output: Tensor) -> None:
        outputs[id(output)] = (name, output)

    def before_norm(name: str, module: nn.Module, given: tuple[Tensor]) -> None:
        if id(given[0]) in outputs:
            followed[outputs[id(given[0])][0]] = name

    hooks = []
    for name, module in model.named_modules():
        if type(module) in convolutions:
            hooks.append(module.register_forward_hook(partial(after_convolution, name)))
        elif isinstance(module, nn.BatchNorm2d) and module.affine and module.track_running_stats:
            hooks.append(module.register_forward_pre_hook(partial(before_norm, name)))
    training = model.training
    model.eval()(images)
    model.train(training)
    for hook in hooks:
        hook.remove()
    for conv_name, norm_name in followed.items():
        conv, norm = model.get_submodule(conv_name), model.get_submodule(norm_name)
        assert isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)
        folded = FoldedNorm(norm, getattr(norm, "act", nn.Identity()))  # timm's BatchNormAct2d brings one
        model.set_submodule(conv_name, FoldedConv2d(conv, folded, isinstance(conv, Conv2dSame)))
        model.set_submodule(norm_name, folded)
