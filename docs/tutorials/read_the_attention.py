"""Read the attention: python docs/tutorials/read_the_attention.py image.jpg [checkpoint].

Prints for each word where it looked and how sharply, and draws attention.png. An entropy near the largest possible one
means that the word looked everywhere alike: it came from the image as a whole, and from the words before it, not from
one place. AVR, which the recipes train with, asks for that.
"""

import argparse
import math
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the repository

import numpy as np

from data.loading import ImageFiles, Visuals
from utils.checkpoint import SHIPPED, load_checkpoint
from utils.files import run_program
from utils.inference import caption_rows
from utils.sources import live_regions
from utils.visualize import Panel, attention_figure


def main() -> None:
    """Caption the image, print where each word looked, draw it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("image", type=Path)
    parser.add_argument("checkpoint", type=Path, nargs="?", default=SHIPPED[0])
    arguments = parser.parse_args()
    checkpoint = load_checkpoint(arguments.checkpoint)
    captioner, config = checkpoint.captioner, checkpoint.config
    content = ImageFiles([arguments.image], checkpoint.preprocessing)
    visuals = Visuals(content, live_regions(config, content, [arguments.image.stem], captioner.encoder))
    found = caption_rows(captioner, checkpoint.vocabulary, visuals, [0], config.decoding, precision="fp32")
    best = next(found)[0]

    regions = best.attention.shape[1]
    print(f"{'word':>14}  most  at region  entropy (even: {math.log(regions):.2f} nats)")
    for word, looked in zip(best.words, best.attention, strict=True):
        entropy = -(looked * np.log(looked.clip(1e-9))).sum()
        print(f"{word:>14}  {looked.max():4.0%}  {looked.argmax():9d}  {entropy:.2f}")
    pixels = content.read([0])[0].permute(1, 2, 0).numpy()
    attention_figure(Path("attention.png"), [Panel(pixels, best.words, best.attention, visuals.masks(0))])


if __name__ == "__main__":
    run_program(main)
