"""CNN encoders: images to a grid of features."""

from collections.abc import Callable, Sequence
from itertools import chain, zip_longest
from typing import Any

import torch
from torch import Tensor, nn

from models.capture import captured, worth_capturing
from models.folding import fold_norms
from models.layers import beside, overheard
from models.lite import VARIANTS, EfficientNetLite
from models.vit import DINOV2, VisionTransformer

TORCHVISION = "torchvision/"


class Encoder(nn.Module):
    """A convolutional (or transformer) backbone without its classifier: images to features [B, N, D], N = h * w.

    Args:
        name: a model of timm (`resnet50`, `tf_efficientnet_lite2`, `swin_tiny_patch4_window7_224`, ...) or, as
            `torchvision/resnet50`, of torchvision. Raises `ValueError` where neither knows it.
        extra_layers: modules of the backbone by their names (`blocks.4`, `layer3`), whose maps are laid beside the last
            one's (models/layers.py). Raises `ValueError` where the backbone has no such module, and when it looks
            where one gives no map.
        backbone: in place of the one of that name, a module with what `models.vit.VisionTransformer` has.

    Shape:
        images: uint8 [B, 3, H, W], RGB; output: float [B, h * w, D], row by row from the top left.

    BatchNorm is frozen for good, and folded into the convolutions (batches here are small). The weights are random: a
    state dict brings them. `mean` and `std` ([3], in 0..1) are what those weights were
    trained with; they are buffers, so that they travel with the weights.
    """

    mean: Tensor
    std: Tensor
    translation: Callable[[Tensor], Tensor] | None = None  # what it looks through for a while (models/runtime.py)

    def __init__(self, name: str, extra_layers: Sequence[str] = (), backbone: nn.Module | None = None) -> None:
        super().__init__()
        self.name, self.extra_layers = name, tuple(extra_layers)
        if ":" in name:  # timm would look into a folder, or fetch it
            raise ValueError(f"no encoder {name!r}: only timm's own names and torchvision/NAME are known")
        mean: tuple[float, ...] = (0.485, 0.456, 0.406)
        std: tuple[float, ...] = (0.229, 0.224, 0.225)
        try:
            if name.startswith(TORCHVISION):
                self.backbone: nn.Module = _torchvision_backbone(name.removeprefix(TORCHVISION))
            else:
                self.backbone = backbone or _own_backbone(name) or _timm_backbone(name)
                about: Any = self.backbone.pretrained_cfg
                mean, std = about["mean"], about["std"]
            if any(isinstance(module, nn.BatchNorm2d) for module in self.backbone.modules()):
                fold_norms(self.backbone, torch.zeros(1, 3, 224, 224))  # the size that nearly every one of them takes
        except (AssertionError, RuntimeError, ValueError) as error:
            raise ValueError(f"no encoder {name!r}: {error}") from None
        self.register_buffer("mean", torch.tensor(mean))
        self.register_buffer("std", torch.tensor(std))
        layers = dict(self.backbone.named_modules())
        for layer in self.extra_layers:
            if layer not in layers:
                known = ", ".join(part for part, _ in self.backbone.named_children())
                raise ValueError(f"{name} has no layer {layer!r}; it has {known}, and what is in these")

    def forward(self, images: Tensor) -> Tensor:
        """Features [B, N, D] of uint8 images [B, 3, H, W]."""
        if self.translation is not None:
            return self.translation(images)
        if not worth_capturing(images):
            return self._see(images)
        precision = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else None

        def see(images: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
            with torch.autocast("cuda", precision, precision is not None, cache_enabled=False):
                return (self._see(images),)

        return captured(see, [images], list(self.parameters()), (precision, self.training))[0]

    def _see(self, images: Tensor) -> Tensor:
        scaled = (images.to(self.mean.dtype) / 255 - self.mean[:, None, None]) / self.std[:, None, None]
        scaled = scaled.contiguous(memory_format=torch.channels_last)  # twice as fast on CPUs, no slower elsewhere
        with overheard(self.backbone, self.extra_layers) as given:
            if isinstance(self.backbone, nn.Sequential):
                features = self.backbone(scaled)
            else:
                features = self.backbone.forward_features(scaled)  # type: ignore[operator]
        channels = getattr(self.backbone, "num_features", features.shape[1])
        channels_first = features.ndim == 3 or features.shape[1] == channels
        for layer, parts in given.items():
            if not parts or not all(isinstance(part, Tensor) and part.ndim in (3, 4) for part in parts):
                raise ValueError(f"{self.name} gives no map at its layer {layer!r}")
        maps = [torch.cat(parts) for parts in given.values()]  # a transformer may look at a batch in parts
        return beside(self._rows(features, channels_first), [self._rows(seen, channels_first) for seen in maps])

    def freeze(self, stages: int) -> None:
        """Keep the first `stages` stages as they are (the stem is the first): no gradient runs back that far.

        The others follow timm's count, or for torchvision's models the layers that hold parameters. Raises
        `ValueError` where the model has not as many.
        """
        if not stages:
            return
        if isinstance(self.backbone, nn.Sequential):
            layers = self.backbone[0] if len(self.backbone) == 1 else self.backbone
            groups = [parameters for layer in layers.children() if (parameters := list(layer.parameters()))]
        else:
            from timm.models import group_parameters

            named = dict(self.backbone.named_parameters())
            matcher = self.backbone.group_matcher(coarse=True)  # type: ignore[operator]
            groups = [[named[name] for name in names] for names in group_parameters(self.backbone, matcher).values()]
        if stages > len(groups):
            raise ValueError(f"{self.name} has {len(groups)} stages, not {stages}")
        for parameter in chain.from_iterable(groups[:stages]):
            parameter.requires_grad_(False)

    def _rows(self, features: Tensor, channels_first: bool) -> Tensor:
        """[B, D, h, w], else [B, h, w, D], or [B, prefix + N, D] as [B, N, D]."""
        if features.ndim == 3:
            return features[:, getattr(self.backbone, "num_prefix_tokens", 0) :]
        return features.flatten(2).transpose(1, 2) if channels_first else features.flatten(1, 2)

    def freeze_unused(self, size: int) -> None:
        """No gradient for parameters that features of `size` x `size` images do not depend on, as a classifier's norm.

        None would come, and several processes that train together wait for each one that is announced.
        """
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        features = self._look(size).sum()
        used = torch.autograd.grad(features, trained, allow_unused=True) if features.requires_grad else ()
        for parameter, gradient in zip_longest(trained, used):
            parameter.requires_grad_(gradient is not None)

    @torch.no_grad()
    def output_shape(self, size: int) -> tuple[int, int]:
        """(N, D) of the features of `size` x `size` images."""
        features = self._look(size)
        return features.shape[1], features.shape[2]

    def _look(self, size: int) -> Tensor:
        """Features of a black image, in evaluation mode: nothing is drawn at random."""
        training = self.training
        features = self.eval()(torch.zeros(1, 3, size, size, dtype=torch.uint8, device=self.mean.device))
        self.train(training)
        return features


def _own_backbone(name: str) -> nn.Module | None:
    if name in VARIANTS:
        return EfficientNetLite(name)
    return VisionTransformer() if name == DINOV2 else None


# timm and torchvision take seconds to import, and the encoders that ship do without them


def _timm_backbone(name: str) -> nn.Module:
    import timm

    return timm.create_model(name, pretrained=False, num_classes=0)


def _torchvision_backbone(name: str) -> nn.Sequential:
    import torchvision

    model = torchvision.models.get_model(name, weights=None)
    if isinstance(getattr(model, "permute", None), nn.Module):  # Swin, channels last until there
        return nn.Sequential(*model.features, model.norm, model.permute)
    if isinstance(getattr(model, "features", None), nn.Module):  # VGG, DenseNet, MobileNet, EfficientNet, ConvNeXt
        return nn.Sequential(model.features)
    names = [child for child, _ in model.named_children()]
    if names[-2:] != ["avgpool", "fc"]:
        raise ValueError("of torchvision's models it is laid out as none that is known here; take timm's")
    return nn.Sequential(*list(model.children())[:-2])  # ResNet, RegNet: all but pooling and classifier
