"""Make a checkpoint small for shipping: python -m utils.ship RUN/best.safetensors checkpoints/rsicd.safetensors.

The weights are rounded to float16. Those of the encoder that training left as pip brings them stay out; with --rank 96
of what it changed of a matrix two factors of that rank stand in its place, where they are smaller. With --decoding
method=consensus captions are found in that way, whatever the run did.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import torch

from data.errors import UserError
from utils.changes import changes
from utils.checkpoint import load_checkpoint, save_checkpoint
from utils.config import with_decoding
from utils.files import offer_decoding, run_program


def main() -> None:
    """Read the one, write the other."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path)
    parser.add_argument("destination", type=Path)
    parser.add_argument("--rank", type=int, default=0, metavar="N", help="of what was learned (default: all of it)")
    offer_decoding(parser)
    arguments = parser.parse_args()
    if arguments.rank < 0:
        raise UserError(f"--rank {arguments.rank}: a rank is a whole number, 0 for all of what was learned")
    checkpoint = load_checkpoint(arguments.source)
    checkpoint = replace(checkpoint, config=with_decoding(checkpoint.config, arguments.decoding))
    small = changes(checkpoint.captioner.encoder, arguments.rank)
    save_checkpoint(arguments.destination, checkpoint, torch.float16, small)


if __name__ == "__main__":
    run_program(main)
