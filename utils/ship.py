"""Halve a checkpoint for shipping: python -m utils.ship RUN/best.safetensors checkpoints/rsicd.safetensors.

The weights are rounded to float16; everything else stays.
"""

import argparse
from pathlib import Path

import torch

from utils.checkpoint import load_checkpoint, save_checkpoint
from utils.files import run_program


def main() -> None:
    """Read the one, write the other."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path)
    parser.add_argument("destination", type=Path)
    arguments = parser.parse_args()
    save_checkpoint(arguments.destination, load_checkpoint(arguments.source), torch.float16)


if __name__ == "__main__":
    run_program(main)
