"""Captions a second from features that are there: word by word, by beam, and all words at once.

    python train.py --config configs/heads/ctc_loss.yaml --output-dir runs/parallel
    python benchmarks/parallel.py runs/parallel/best.safetensors [BATCH]

Of val's images, as often as it takes, BATCH (64) at a time; the median of five runs, without reading and encoding.
"""

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


def main(path: Path, batch: int) -> None:
    """Print a line for each way to decode."""
    checkpoint = load_checkpoint(path)
    config, captioner = checkpoint.config, checkpoint.captioner
    dataset = open_dataset(config)
    images = dataset.split("val")
    visuals = visuals_of(config, dataset, images, captioner.encoder, "fp32", learning=False)
    features = captioner.features(visuals.read(range(len(images))).content)
    seen = Visual(features[torch.arange(batch) % len(features)])
    print(f"{config.model.encoder.name}, width {config.model.decoder.width}, {batch} images at a time")
    for name, way in WAYS.items():
        seconds = []
        for _ in range(RUNS + 1):
            start = time.perf_counter()
            caption_batch(captioner, checkpoint.vocabulary, seen, way, "fp32", seed=0)
            seconds.append(time.perf_counter() - start)
        print(f"{name:14s} {batch / statistics.median(seconds[1:]):8.0f} captions/s")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 64)
