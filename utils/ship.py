"""Halve a checkpoint for shipping: python -m utils.ship RUN/best.safetensors checkpoints/rsicd.safetensors.

The weights are rounded to float16, and the folders of the machine that trained it are left out; everything else stays.
"""

import argparse
from dataclasses import replace
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
    checkpoint = load_checkpoint(arguments.source)
    config = checkpoint.config
    train = config.train.model_copy(update={"init": None, "teachers": []})
    data = config.data.model_copy(update={"more_captions": None})
    config = config.model_copy(update={"data_root": None, "output_dir": None, "train": train, "data": data})
    save_checkpoint(arguments.destination, replace(checkpoint, config=config), torch.float16)


if __name__ == "__main__":
    run_program(main)
