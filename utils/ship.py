"""Make a checkpoint small for shipping: python -m utils.ship RUN/best.safetensors checkpoints/rsicd.safetensors.

The weights are rounded to float16. Those of the encoder that training left as pip brings them stay out.
"""

import argparse
from pathlib import Path

import torch

from utils.checkpoint import brought_by_pip, load_checkpoint, save_checkpoint
from utils.files import run_program


def main() -> None:
    """Read the one, write the other."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path)
    parser.add_argument("destination", type=Path)
    arguments = parser.parse_args()
    checkpoint = load_checkpoint(arguments.source)
    save_checkpoint(arguments.destination, checkpoint, torch.float16, brought_by_pip(checkpoint))


if __name__ == "__main__":
    run_program(main)
