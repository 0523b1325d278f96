"""Write down what a recipe's teachers say of its captions: python -m utils.teach RECIPE.yaml --output SAID.h5.

With `train.teachers=[SAID.h5]` the recipe then asks nobody: its teachers said everything once, of the images as they
are, and other seeds and students cost little more than without a teacher.
"""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from data.errors import UserError
from data.files import check_writable
from data.loading import CaptionBatches, in_order, loader
from data.soft_targets import Said, write_soft_targets
from models.pooling import Visual
from utils.config import load_config
from utils.devices import best_device, choose_precision
from utils.files import git_sha, run_program
from utils.guides import load_models
from utils.progress import track
from utils.sources import open_dataset
from utils.teachers import Teacher, captions_of, make_teacher

IMAGES = 64  # at a time


def parse_arguments(words: list[str] | None = None) -> argparse.Namespace:
    """The command line, or `words`; None where a flag was not given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", metavar="RECIPE.yaml", help="a recipe with train.teachers, such as distillation's")
    parser.add_argument("--data-root", metavar="DIR", help="folder with the data set's files as published")
    parser.add_argument("--output", type=Path, required=True, metavar="SAID.h5")
    parser.add_argument("--top", type=int, default=32, metavar="K", help="words that are named at each place (32)")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="any option of utils/config.py")
    parser.set_defaults(dataset=None, output_dir=None, epochs=None, seed=None)
    return parser.parse_intermixed_args(words)


def main(arguments: argparse.Namespace) -> None:
    """Ask the teachers about every distinct caption of the train split."""
    config = load_config(arguments)
    if arguments.top < 1:
        raise UserError(f"argument --top {arguments.top}: name at least one word at each place")
    if arguments.output.suffix != ".h5":
        raise UserError(f"argument --output {arguments.output}: call it SAID.h5, by which train.teachers knows it")
    if not config.train.teachers:
        raise UserError(f"{arguments.config}: train.teachers is empty; name who should be asked")
    check_writable(arguments.output)
    dataset = open_dataset(config)
    device = best_device()
    precision = choose_precision(config.train.precision, device)
    _, models = load_models(config)

    vocabulary = models[0].vocabulary
    batches = CaptionBatches(dataset.split("train"), Unseen(), vocabulary, config.data.max_words)
    teacher = make_teacher(config, models, dataset, batches, device, precision, views=1)
    captions = [tokens for row in batches.rows for tokens in batches.captions[row]]
    words = sum(len(tokens) - 1 for tokens in captions)
    about = {"teachers": config.train.teachers, "git_sha": git_sha()}
    said = ask(teacher, batches, device)
    write_soft_targets(arguments.output, vocabulary, said, len(captions), words, arguments.top, about)
    print(f"{arguments.output}: {words} words of {len(captions)} captions; name it in train.teachers")


class Unseen:
    """Nothing to look at: each teacher has its own view of the images."""

    def read(self, rows: Sequence[int], epoch: int = 0) -> Visual:
        """Of no image anything."""
        return Visual(torch.empty(0))


def ask(teacher: Teacher, batches: CaptionBatches, device: torch.device) -> Iterator[Said]:
    """What a teacher says of every caption, image by image."""
    keys = in_order(batches.rows, IMAGES)
    for batch in track(loader(batches, keys, 0), len(keys), "soft targets"):
        log_p = teacher(batch.to(device), 0).log_softmax(-1)
        for (row, tokens), values in zip(captions_of(batch), log_p, strict=True):
            yield Said(batches.images[row].filename, tokens, values[: len(tokens) - 1])


if __name__ == "__main__":
    run_program(lambda: main(parse_arguments()))
