"""How fast it is: ours beside the yardstick (benchmarks/yardstick.py) and beside what the machine can do.

    python benchmarks/speed.py [--row [NAME ...]] [--seconds 20] [--data-root DIR]

Ours and the yardstick take turns in one run; of each the median rate is printed, and the median of the ratios of
neighbours. A share is that of the rate which the row's matrix products alone would allow, at the speed of a large
matrix product in the same precision, measured first. Features, captions and pictures are stand-ins of RSICD's sizes:
as many words, repeats and pixels. With --data-root two rows train on RSICD itself, for as long as that takes.
"""

import argparse
import copy
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import cache, partial
from itertools import cycle, islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import yardstick
from benchmarks.standins import (
    BATCH,
    DEVICE,
    PRECISION,
    Training,
    UsualTraining,
    folder,
    looking_before,
    pictures,
    seen,
    seen_store,
    settled,
    speaking,
    store,
)
from data.images import read_image
from data.loading import ImageFiles, in_order, visual_loader
from data.region_store import find_all
from data.regions import RegionFinder, RegionSpec
from data.transforms import Preprocessing
from models import capture
from models.decoding import beam_search
from models.encoder import Encoder
from models.pooling import pool_regions
from models.runtime import translated
from utils.config import CONFIGS, Config, RewardConfig, read_yaml
from utils.devices import autocast, choose_workers, tune_memory
from utils.inference import CAPTIONED
from utils.sources import encode

ROOT = Path(__file__).resolve().parent.parent
IMAGES = 512  # to train on
ENCODER = "tf_efficientnet_lite2"
TRAIN = 8734  # RSICD's train images
GPU = DEVICE.type == "cuda"


class Limits(NamedTuple):
    """What the machine does: FLOP/s of a large matrix product, bytes/s of a copy (read + written), JPEGs/s."""

    products: float
    copies: float
    jpegs: float


class Row(NamedTuple):
    """A line of the table; None where there is nothing to compare with. `limit` has the unit of `ours`."""

    name: str
    unit: str
    ours: float
    yardstick: float | None = None
    ratio: float | None = None
    limit: float | None = None
    note: str = ""


def taking_turns(ours: Callable[[], float], theirs: Callable[[], float], seconds: float) -> tuple[float, float, float]:
    """Median rates of both and the median ratio; each call returns how many things it did."""
    rates: list[list[float]] = [[], []]
    for call in (ours, theirs):  # once for what the first call sets up
        settled(call)
    began = time.perf_counter()
    while len(rates[1]) < 3 or time.perf_counter() - began < seconds:
        for rate, call in zip(rates, (ours, theirs), strict=True):
            start = time.perf_counter()
            done = settled(call)
            rate.append(done / (time.perf_counter() - start))
    ratio = statistics.median(a / b for a, b in zip(*rates, strict=True))
    return statistics.median(rates[0]), statistics.median(rates[1]), ratio


def flops(call: Callable[[], object]) -> float:
    """FLOPs of the matrix products and convolutions of a call."""
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def best(call: Callable[[], object], runs: int = 15) -> float:
    """Least seconds of some runs: what the machine can do when it is let."""
    seconds = []
    for _ in range(runs):
        start = time.perf_counter()
        settled(call)
        seconds.append(time.perf_counter() - start)
    return min(seconds)


@cache
def limits() -> Limits:
    """The machine's, in the precision that `train.precision: auto` chooses here."""
    dtype = torch.bfloat16 if PRECISION == "bf16" else torch.float32
    side = 8192 if GPU else 2048
    a, b = torch.randn(2, side, side, dtype=dtype, device=DEVICE)
    products = 2 * side**3 / best(partial(torch.mm, a, b))
    block = torch.randn(2**26, device=DEVICE)
    copies = 2 * 4 * 2**26 / best(partial(torch.empty_like(block).copy_, block))
    path = pictures(1)[0]
    jpegs = 1 / best(partial(read_image, path), 100)
    return Limits(products, copies, jpegs)


# The rows


def training(attention: str, seconds: float) -> Iterator[Row]:
    ours = Training(attention, store(IMAGES))
    rates = taking_turns(ours.step, UsualTraining(ours).step, seconds)
    graphs, capture.GRAPHS = capture.GRAPHS, 0  # the products of a replay would not be counted
    done, spent = 0.0, 0.0
    for _ in range(IMAGES // BATCH):  # an epoch: some batches have longer captions than others
        counted: list[float] = []
        spent += flops(lambda: counted.append(ours.step()))  # noqa: B023
        done += counted[0]
    capture.GRAPHS = graphs
    limit = limits().products * done / spent
    yield Row(f"decoder training, {attention}", "captions/s", *rates, limit)


def beam(attention: str, seconds: float) -> Iterator[Row]:
    features, (shipped, _) = seen(CAPTIONED), speaking()
    shipped.eval()
    additive = looking_before(shipped)
    decoder = additive if attention == "additive" else shipped
    theirs = yardstick.Yardstick.of(additive).to(DEVICE).eval()
    turn = cycle(range(len(features)))
    words: list[list[int]] = [[], []]

    def ours() -> float:
        with torch.no_grad(), autocast(DEVICE, PRECISION):
            found = beam_search(decoder, decoder.prepare(features, None), 5)
        words[0] += [len(captions[0].tokens) for captions in found]
        return len(features)

    def usual() -> float:
        rows = [next(turn) for _ in range(8)]
        found = [yardstick.beam_search(theirs, features[row : row + 1].float(), 5) for row in rows]
        words[1] += [len(captions[0][1]) for captions in found]
        return len(rows)

    rates = taking_turns(ours, usual, seconds)
    limit = limits().products * len(features) / flops(ours)
    note = " and ".join(f"{statistics.mean(counts):.1f}" for counts in words) + " words a caption"
    yield Row(f"beam search, 5 beams, {attention}", "images/s", *rates, limit, note)


def features(seconds: float) -> Iterator[Row]:
    encoder, usual = encoders()
    paths = pictures(2 * yardstick.BATCH)
    if GPU:
        paths = paths * (TRAIN // len(paths))  # so many that readers are worth their start
    files = ImageFiles(paths, Preprocessing())
    keys = in_order(range(len(paths)), yardstick.BATCH)
    workers = choose_workers(Config().data.workers, DEVICE)

    def ours() -> float:
        return sum(len(encode(encoder, images, PRECISION)) for images in visual_loader(files, keys, workers))

    def theirs() -> float:
        batches = (torch.stack([as_tensor(path) for path in paths[k.rows[0] : k.rows[-1] + 1]]) for k in keys)
        return sum(len(yardstick.encode(usual, images.to(DEVICE))) for images in batches)

    images = files.read(keys[0].rows)
    spent = flops(lambda: encode(encoder, images, PRECISION)) / len(images)
    with torch.no_grad(), translated(encoder, TRAIN, PRECISION):
        rates = taking_turns(ours, theirs, seconds)
        exact = yardstick.encode(usual, images.to(DEVICE))
        off = float((encode(encoder, images, PRECISION) - exact).norm() / exact.norm())
    note = f"features differ by {off:.1e} of their norm; reading JPEGs alone: {limits().jpegs:.0f}/s"
    yield Row("features from JPEG", "images/s", *rates, limits().products / spent, note)


def tuning(seconds: float) -> Iterator[Row]:
    encoder, usual = encoders()
    images = ImageFiles(pictures(32), Preprocessing()).read(range(32 if GPU else 16)).to(DEVICE)

    def ours() -> float:
        with autocast(DEVICE, PRECISION):
            loss = encoder.train()(images).float().square().mean()
        loss.backward()
        return len(images)

    def theirs() -> float:
        yardstick.encode(usual, images).square().mean().backward()
        return len(images)

    rates = taking_turns(ours, theirs, seconds)
    # thrice those of the pass on: the counter takes the gradients of grouped convolutions for those of full ones
    spent = 3 * flops(lambda: encode(encoder, images, PRECISION)) / len(images)
    yield Row("tuning the encoder", "images/s", *rates, limits().products / spent)


def regions(seconds: float) -> Iterator[Row]:
    encoder, _ = encoders()
    few = ImageFiles(pictures(32), Preprocessing())
    many = ImageFiles(20 * list(few.paths), Preprocessing())
    images = few.read(range(32))
    features = encode(encoder, images, PRECISION).float()
    for kind in ("slic", "felzenszwalb", "selective_search"):
        with translated(encoder, TRAIN, PRECISION):
            encode(encoder, images, PRECISION)  # translates it
            extracted = len(images) / best(lambda: encode(encoder, images, PRECISION), 5)
        found = find_all(many, RegionFinder(RegionSpec(kind), 7))
        list(islice(found, 4 * len(images)))  # by then all processes have started
        began = time.perf_counter()
        shares = np.stack([regions.shares for regions, _ in islice(found, 14 * len(images))])  # and none has ended
        for i in range(0, len(shares), len(images)):
            some = torch.from_numpy(shares[i : i + len(images)]).to(DEVICE)
            pool_regions(features[: len(some)], some)
        rate = len(shares) / (time.perf_counter() - began)
        ratio = rate / extracted
        yield Row(f"regions and pooling, {kind}", "images/s", rate, extracted, ratio, note="beside our extraction")


def self_critical(seconds: float) -> Iterator[Row]:
    features = seen_store(BATCH)

    def steps(training: Training) -> Callable[[], float]:
        return lambda: training.step() and 1.0

    plain = steps(Training(None, features))
    recipe = RewardConfig(**read_yaml(CONFIGS / "scst" / "rsicd.yaml")["train"]["reward"])
    for reward in (recipe, RewardConfig()):
        sampled = steps(Training(None, features, reward))
        ours, theirs, ratio = taking_turns(sampled, plain, seconds)
        note = f"beside a cross-entropy step of ours: {1 / ratio:.2f} x its time"
        yield Row(f"self-critical step, {reward.samples} samples an image", "steps/s", ours, theirs, ratio, note=note)


def memory(seconds: float) -> Iterator[Row]:
    small, large = (_peak_memory(images) for images in (TRAIN // 10, TRAIN))
    yield Row("peak memory, training", "MB", large, small, large / small, note="beside a store of a tenth of the size")


def _peak_memory(images: int) -> float:
    code = f"from benchmarks.standins import peak_memory; peak_memory({str(store(images).path)!r})"
    return float(subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=True).stdout)


def start(seconds: float) -> Iterator[Row]:
    for name, words in (
        ("start, train.py --help", ["train.py", "--help"]),
        ("start, caption.py on an image", ["caption.py", str(pictures(1)[0])]),
    ):
        run = partial(subprocess.run, [sys.executable, *words], cwd=ROOT, capture_output=True, check=True)
        run()
        yield Row(name, "s", best(run, 5), note="the best of 5")


def whole(data_root: str, seconds: float) -> Iterator[Row]:
    words = [sys.executable, "train.py", "--dataset", "RSICD", "--data-root", data_root, "--epochs", "4"]
    words += ["--output-dir", str(folder() / "run"), f"data.cache_dir={folder() / 'cache'}"]
    began = time.perf_counter()
    child = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    printed = child.stdout.read() if child.stdout else ""
    _, status, used = os.wait4(child.pid, 0)
    if status:
        raise SystemExit(f"train.py failed: {printed[-500:]}")
    minutes = (time.perf_counter() - began) / 60
    cider = json.loads((folder() / "run" / "val.json").read_text(encoding="utf-8"))["val"]["CIDEr"]
    yield Row("JPEGs to val CIDEr", "min", minutes, note=f"CIDEr {100 * cider:.2f}, from an empty cache")
    yield Row("the same, peak memory", "MB", used.ru_maxrss / 1024, note="of its largest process")


ROWS: dict[str, Callable[[float], Iterator[Row]]] = {
    "additive": partial(training, "additive"),
    "dot": partial(training, "dot"),
    "beam-additive": partial(beam, "additive"),
    "beam-dot": partial(beam, "dot"),
    "features": features,
    "tuning": tuning,
    "regions": regions,
    "self-critical": self_critical,
    "memory": memory,
    "start": start,
}


def encoders() -> tuple[Encoder, torch.nn.Module]:
    """Ours and the yardstick's, with the same weights."""
    torch.manual_seed(0)
    usual = yardstick.encoder(ENCODER)
    encoder = Encoder(ENCODER)
    encoder.backbone.load_state_dict(copy.deepcopy(usual.state_dict()))
    return encoder.to(DEVICE), usual.to(DEVICE)


def as_tensor(path: Path) -> Tensor:
    """An image as it is usually read: uint8 [3, 224, 224]."""
    image = Image.open(path).convert("RGB").resize((224, 224), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def line(row: Row) -> str:
    """A row of a Markdown table."""
    numbers = ["" if value is None else f"{value:,.4g}" for value in (row.ours, row.yardstick, row.ratio, row.limit)]
    share = f"{row.ours / row.limit:.0%}" if row.limit else ""
    return f"| {' | '.join([f'{row.name}, {row.unit}', *numbers, share, row.note])} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--row", nargs="*", choices=ROWS, help="only these (default: all; no name: those of --data-root)"
    )
    parser.add_argument("--data-root", metavar="DIR", help="RSICD's files: adds two rows, as long as training takes")
    parser.add_argument("--seconds", type=float, default=20.0, help="that each row measures for (default: 20)")
    arguments = parser.parse_args()
    tune_memory()
    machine = limits()
    print(
        f"{torch.cuda.get_device_name() if GPU else DEVICE}, {torch.get_num_threads()} threads, "
        f"load {os.getloadavg()[0]:.1f}, {PRECISION}: products "
        f"{machine.products / 1e9:.0f} GFLOP/s, copies {machine.copies / 1e9:.1f} GB/s, JPEGs {machine.jpegs:.0f}/s\n"
    )
    print("| what | ours | yardstick | ratio | limit | share | |\n|---|---:|---:|---:|---:|---:|---|")
    rows = {name: ROWS[name] for name in (ROWS if arguments.row is None else arguments.row)}
    if arguments.data_root:  # first, since a process's peak memory begins with that of the one that starts it
        rows = {"whole": partial(whole, arguments.data_root), **rows}
    for measure in rows.values():
        for row in measure(arguments.seconds):
            print(line(row), flush=True)


if __name__ == "__main__":
    main()
