"""Write down what a recipe's teachers say of its captions: python -m utils.teach RECIPE.yaml --output SAID.h5.

With `train.teachers=[SAID.h5]` the recipe then asks nobody: its teachers said everything once, of the images as they
are, and other seeds and students cost little more than without a teacher.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

from data.datasets import check_root
from data.errors import UserError
from data.files import check_writable
from data.loading import BatchKey, CaptionBatches, loader
from data.soft_targets import Said, write_soft_targets
from models.tokens import PAD
from utils.checkpoint import Checkpoint
from utils.config import load_config
from utils.devices import best_device, choose_precision
from utils.files import git_sha, run_program
from utils.guides import load_models
from utils.progress import track
from utils.sources import open_dataset
from utils.teachers import LiveTeacher, Teacher, mean_of, teacher_visuals

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
    if config.dataset != "synthetic":
        check_root(config.dataset, Path(config.data_root) if config.data_root else None)
    if arguments.top < 1:
        raise UserError(f"argument --top {arguments.top}: name at least one word at each place")
    if arguments.output.suffix != ".h5":
        raise UserError(f"argument --output {arguments.output}: call it SAID.h5, by which train.teachers knows it")
    check_writable(arguments.output)
    device = best_device()
    precision = choose_precision(config.train.precision, device)
    models = [teacher for teacher in load_models(config)[1] if isinstance(teacher, Checkpoint)]
    if not models:
        raise UserError(f"{arguments.config}: train.teachers names no checkpoint; name who should be asked")

    dataset = open_dataset(config)
    images, vocabulary = dataset.split("train"), models[0].vocabulary
    seen = [teacher_visuals(config, model, dataset, precision, views=1) for model in models]
    teachers = [LiveTeacher(m.captioner, look, device, precision) for m, look in zip(models, seen, strict=True)]
    batches = CaptionBatches(images, seen[0], vocabulary, config.data.max_words)
    captions = [tokens for row in batches.rows for tokens in batches.captions[row]]
    words = sum(len(tokens) - 1 for tokens in captions)
    about = {"teachers": [str(path) for path in config.train.teachers], "git_sha": git_sha()}
    said = ask(mean_of(teachers), batches)
    write_soft_targets(arguments.output, vocabulary, said, len(captions), words, arguments.top, about)
    print(f"{arguments.output}: {words} words of {len(captions)} captions; name it in train.teachers")


def ask(teacher: Teacher, batches: CaptionBatches) -> Iterator[Said]:
    """What a teacher says of every caption, image by image."""
    keys = [BatchKey(0, batches.rows[i : i + IMAGES]) for i in range(0, len(batches.rows), IMAGES)]
    for batch in track(loader(batches, keys, 0), len(keys), "soft targets"):
        log_p = teacher(batch, 0).log_softmax(-1)
        rows, lengths = batch.rows[batch.image_of].tolist(), (batch.tokens != PAD).sum(1).tolist()
        for row, tokens, length, values in zip(rows, batch.tokens.tolist(), lengths, log_p, strict=True):
            yield Said(batches.images[row].filename, tuple(tokens[:length]), values[: length - 1])


if __name__ == "__main__":
    run_program(lambda: main(parse_arguments()))
