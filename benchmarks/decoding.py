"""Captions a second from features that are there: word by word, by beam, and all words at once where a head can.

    python benchmarks/decoding.py runs/RUN/best.safetensors [--data-root DIR] [--batch 64]

Of val's images, as often as it takes, so many at a time; the median of five runs, without reading and encoding.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from models.pooling import Visual
from utils.checkpoint import load_checkpoint
from utils.config import DecodingConfig
from utils.inference import caption_batch
from utils.sources import open_dataset, visuals_of

RUNS = 5
WAYS = {
    "LSTM, beam 5": DecodingConfig(method="beam", beam_size=5),
    "LSTM, greedy": DecodingConfig(method="greedy"),
    "parallel": DecodingConfig(method="parallel"),
}


def main(path: Path, data_root: str | None, batch: int) -> None:
    """Print the decoder's size and a line for each way to decode."""
    checkpoint = load_checkpoint(path)
    captioner = checkpoint.captioner
    decoding = checkpoint.config.decoding.model_copy(update={"views": 1})
    config = checkpoint.config.model_copy(update={"data_root": data_root, "decoding": decoding})
    dataset = open_dataset(config)
    images = dataset.split("val")
    visuals = visuals_of(config, dataset, images, captioner.encoder, "fp32", learning=False)
    features = captioner.features(visuals.read(range(len(images))).content)
    seen = Visual(features[torch.arange(batch) % len(features)])
    size = sum(parameter.numel() for parameter in captioner.decoder.parameters())
    print(f"{config.model.encoder.name}, width {config.model.decoder.width}, {size:,} parameters, {batch} at a time")
    for name, way in WAYS.items():
        if way.method == "parallel" and captioner.speaker is None:
            continue
        seconds = []
        for _ in range(RUNS + 1):
            start = time.perf_counter()
            caption_batch(captioner, checkpoint.vocabulary, seen, way, "fp32", seed=0)
            seconds.append(time.perf_counter() - start)
        print(f"{name:14s} {batch / statistics.median(seconds[1:]):8.0f} captions/s")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--data-root", metavar="DIR", help="RSICD's files, for a checkpoint that was trained on them")
    parser.add_argument("--batch", type=int, default=64, help="images at a time")
    arguments = parser.parse_args()
    main(arguments.checkpoint, arguments.data_root, arguments.batch)
