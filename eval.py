"""Score captions: of a checkpoint, or of anyone's results file.

python eval.py --checkpoint runs/RSICD-.../best.safetensors --dataset RSICD --data-root DIR --split val
python eval.py --checkpoint runs/RSICD-.../best.safetensors --decoding method=sample --decoding samples=5
python eval.py --results captions.json --dataset RSICD --data-root DIR
python eval.py --results RUN/val.json --config RUN/config.yaml --split val
python eval.py --results captions.json --baseline others.json --dataset RSICD --data-root DIR --report report.html

A results file is COCO's: [{"image_id": imgid or filename, "caption": ".."}], or what --output wrote.
"""

import argparse
import gc

from utils.files import git_sha, offer_checkpoints, offer_decoding, run_program, versions, write_json


def parse_arguments(words: list[str] | None = None) -> argparse.Namespace:
    """The command line, or `words`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group()
    offer_checkpoints(what)
    what.add_argument("--results", metavar="CAPTIONS.json", help="captions to score as they are")
    parser.add_argument(
        "--config", metavar="RUN/config.yaml", help="with --results: data set and data options of a run"
    )
    parser.add_argument("--baseline", metavar="B.json", help="captions of another system: is the difference noise?")
    parser.add_argument("--dataset", help="synthetic, RSICD, UCM, Sydney, NWPU or own (default: the checkpoint's)")
    parser.add_argument("--data-root", metavar="DIR", help="folder with the data set's files as published")
    parser.add_argument("--split", default="test", choices=["train", "val", "test", "held-back"])
    parser.add_argument("--beam-size", type=int, help="default: the run's")
    offer_decoding(parser)
    parser.add_argument("--output", metavar="F.json", help="write scores, captions and protocol there")
    parser.add_argument("--report", metavar="F.html", help="write one page to look at there: scores, images, attention")
    return parser.parse_args(words)


if __name__ == "__main__":
    ARGUMENTS = parse_arguments()  # before the heavy imports: --help and slips answer at once
    gc.disable()  # until run_program: to look through all that libraries make, again and again, takes its time

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Column, Table

from data.annotations import AnnotatedImage
from data.datasets import CaptionDataset
from data.errors import UserError
from data.files import check_outputs, file_digest
from data.loading import Visuals
from metrics.diversity import best_of, diversity, rare_recall, self_cider
from metrics.scores import Scores, printed, score_captions
from metrics.statistics import bootstrap, paired_test
from utils.checkpoint import SHIPPED, Checkpoint, load_checkpoints
from utils.config import Config, parse_config, read_yaml, with_decoding
from utils.devices import best_device, looking_precision
from utils.grounding import SCORES as GROUNDING
from utils.grounding import ground, known_truth
from utils.inference import Caption, caption_rows
from utils.report import Example, write_report
from utils.results import class_scores, read_results, result_entries, scene_class, split_digest
from utils.sources import image_files, open_dataset, stored_regions

NOISE = 0.05  # a difference that chance alone makes this often is called noise
NOWHERE = np.empty((0, 0), np.float32)  # the attention of a caption whose attention nobody asks for


def main(arguments: argparse.Namespace) -> None:
    """Caption the split or read the results, score, print, write."""
    if arguments.results and arguments.dataset is None and arguments.config is None:
        raise UserError("--results needs --dataset NAME, the annotations to score against, or the --config of a run")
    if arguments.config and not arguments.results:
        raise UserError("--config is for --results; a checkpoint says itself what its data are")
    if arguments.results and (arguments.decoding or arguments.beam_size is not None):
        raise UserError("--beam-size and --decoding are for a checkpoint; what --results holds is said already")
    paths = [] if arguments.results else [Path(path) for path in arguments.checkpoint or SHIPPED]
    given = [Path(x) for x in (arguments.results, arguments.baseline, arguments.config) if x]
    output, report = (Path(x) if x else None for x in (arguments.output, arguments.report))
    check_outputs({"--output": output, "--report": report}, [*paths, *given])
    checkpoint = load_checkpoints(paths) if paths else None
    config = with_data(checkpoint.config if checkpoint else read_config(arguments.config), arguments)
    dataset = open_dataset(config)
    images = dataset.split(arguments.split)
    others = read_results(Path(arguments.baseline), images) if arguments.baseline else None

    beams: list[list[Caption]] = []
    visuals = None
    grounding: dict[str, float] = {}
    if checkpoint:
        precision = looking_precision(config.train.precision, best_device())
        captioner = checkpoint.captioner.to(best_device())
        regions = stored_regions(config, dataset, images, captioner.encoder)
        visuals = Visuals(image_files(config, dataset, images), regions)
        rows = range(len(images))
        for found in caption_rows(captioner, checkpoint.vocabulary, visuals, rows, config.decoding, precision):
            looks = found[0].attention.copy() if report else NOWHERE  # a part would keep its whole batch's
            beams.append([found[0]._replace(attention=looks), *(c._replace(attention=NOWHERE) for c in found[1:])])
        truths, views = known_truth(dataset), config.decoding.views
        most = config.data.max_words
        grounding = ground(captioner, checkpoint.vocabulary, visuals, images, truths, precision, views, most)
        captions = {image.imgid: found[0].text for image, found in zip(images, beams, strict=True)}
        source = {
            "checkpoint": " + ".join(arguments.checkpoint or [path.name for path in paths]),
            "checkpoint_sha256": " + ".join(map(file_digest, paths)),
            **config.decoding.model_dump(),
            "precision": precision,
            "preprocessing": checkpoint.preprocessing.to_dict(),
            "blank_images": config.data.blank_images,
        }
    else:
        captions = read_results(Path(arguments.results), images)
        source = {"results": arguments.results, "results_sha256": file_digest(Path(arguments.results))}

    references = {image.imgid: image.captions for image in images}
    scores = score_captions(captions, references)
    result: dict[str, Any] = {
        "metrics": scores.metrics,
        "intervals": bootstrap(scores),
        "classes": by_class(scores, images),
        "diversity": variety(captions, learned_from(checkpoint, dataset), beams, references),
    }
    if grounding:
        result["grounding"] = grounding
    if others is not None:
        result["comparison"] = {
            "baseline": arguments.baseline,
            "baseline_sha256": file_digest(Path(arguments.baseline)),
            "metrics": compare(score_captions(others, references), scores),
        }
    result["captions"] = result_entries(images, [captions[image.imgid] for image in images])
    result["protocol"] = {
        "dataset": dataset.spec.name,
        "split": arguments.split,
        "images": len(images),
        "split_sha256": split_digest(images),
        "notes": list(dataset.notes),
        **source,
        "tokenizer": "PTB, lower case, without punctuation (as pycocoevalcap 1.2), for captions and references",
        "BLEU": "of the corpus, without smoothing, closest reference length",
        "METEOR": "1.5, the reference jar",
        "ROUGE_L": "beta 1.2, best precision and best recall over the references",
        "CIDEr": "CIDEr-D of coco-caption, document frequencies of this split's references",
        "intervals": "95 %, percentile bootstrap over images, 1000 resamples",
        "unavailable": scores.unavailable,
        "git_sha": git_sha(),
        "versions": versions(),
    }
    if output:  # before anything is printed, whose reader may be gone
        write_json(output, result)
    if report:
        examples = [
            Example(image, dataset.path(image), captions[image.imgid], float(cider))
            for image, cider in zip(images, scores.per_image["CIDEr"], strict=True)
        ]
        if visuals:
            examples = [
                example._replace(look=found[0], masks=partial(visuals.masks, row))
                for row, (example, found) in enumerate(zip(examples, beams, strict=True))
            ]
        write_report(report, result, examples)
    show(result)


def read_config(path: str | None) -> Config:
    """The configuration in this file, the default without one."""
    return parse_config(read_yaml(Path(path)), path) if path else Config()


def with_data(config: Config, arguments: argparse.Namespace) -> Config:
    """The configuration with the data set, its folder and the decoding that the command line names."""
    tree = config.model_dump()
    if arguments.dataset is not None and arguments.dataset != config.dataset:
        tree |= {"dataset": arguments.dataset, "data_root": None}
    if arguments.data_root is not None:
        tree["data_root"] = arguments.data_root
    tree["data"]["more_captions"] = None  # those are for training
    tree["data"]["limit"] = 0 if config.dataset != tree["dataset"] else tree["data"]["limit"]
    beam = [] if arguments.beam_size is None else [f"beam_size={arguments.beam_size}"]
    return with_decoding(parse_config(tree, "command line"), [*beam, *arguments.decoding])


def by_class(scores: Scores, images: Sequence[AnnotatedImage]) -> dict[str, dict[str, float]]:
    """Scene class to `images`, their number, and its scores."""
    classes = [scene_class(image.filename) for image in images]
    return {name: {"images": classes.count(name), **rest} for name, rest in class_scores(scores, classes).items()}


def learned_from(checkpoint: Checkpoint | None, dataset: CaptionDataset) -> list[str]:
    """The train captions of the data set, none where the checkpoint was trained on another."""
    if checkpoint and checkpoint.config.dataset != dataset.spec.name:
        return []
    return [caption for image in dataset.images if image.split == "train" for caption in image.captions]


def variety(
    captions: dict[int, str],
    train: Sequence[str],
    beams: Sequence[Sequence[Caption]],
    references: dict[int, tuple[str, ...]],
) -> dict[str, float]:
    """How varied the captions are; what needs train captions or several an image, where there are any."""
    found = diversity(captions.values(), train)
    found["rare_recall"] = rare_recall([captions[key] for key in references], references.values(), train)
    if not train:
        del found["seen_in_train"], found["vocabulary_of_train"]
    if beams and min(map(len, beams)) > 1:
        texts = [[caption.text for caption in beam] for beam in beams]
        found["self_cider_of_beam"] = float(self_cider(texts, references.values()).mean())
        found |= best_of(texts, list(references.values()))
    return {name: value for name, value in found.items() if value == value}  # a share of nothing is NaN


def compare(baseline: Scores, scores: Scores) -> dict[str, dict[str, Any]]:
    """Per metric the difference to the baseline, its 95 % interval, p, and in a word what it is."""
    return {
        name: {**test._asdict(), "verdict": "noise" if test.p >= NOISE else "gain" if test.difference > 0 else "loss"}
        for name, test in paired_test(baseline, scores).items()
    }


def show(result: dict[str, Any]) -> None:
    """Print the scores, what is known of them, and why those that are not there are not."""
    console = Console(soft_wrap=True, highlight=False, markup=False)
    protocol, classes, varied = result["protocol"], result["classes"], result["diversity"]
    title = f"{protocol['dataset']} {protocol['split']}, {protocol['images']} images (x 100)"
    table = Table("", *(Column(name, justify="right") for name in ("score", "95 % interval")), title=title)
    for name, value in result["metrics"].items():
        low, high = result["intervals"][name]
        table.add_row(name, f"{100 * value:.2f}", f"{100 * low:.2f} to {100 * high:.2f}")
    console.print(table)
    for name, reason in protocol["unavailable"].items():
        if name != "SPICE":  # whose models few have; --output and --report say what it wants
            console.print(f"{name} is not there: {reason}")
    if classes:
        ranked = sorted(classes, key=lambda name: classes[name]["CIDEr"])
        ends = " to ".join(f"{100 * classes[name]['CIDEr']:.1f} ({name})" for name in (ranked[0], ranked[-1]))
        console.print(f"CIDEr of {len(classes)} scene classes: {ends}; all of them are in --output and --report")
    console.print("diversity: " + ", ".join(f"{name} {printed(name, value)}" for name, value in varied.items()))
    if "seen_in_train" not in varied:
        console.print("what is compared with train captions is left out: there are none here, or others were learned")
    if "grounding" in result:
        pointing, iou, chance = (100 * result["grounding"][name] for name in GROUNDING)
        console.print(
            f"attention of nouns: {pointing:.1f} % point at what they name, IoU {iou:.1f}, chance {chance:.1f}"
        )
    if "comparison" in result:
        show_comparison(console, result["comparison"])


def show_comparison(console: Console, comparison: dict[str, Any]) -> None:
    """Print which differences to the baseline are gains, losses or noise."""
    columns = ("difference", "95 % interval", "p")
    table = Table("", *(Column(name, justify="right") for name in columns), "", title="against the baseline (x 100)")
    for name, test in comparison["metrics"].items():
        interval = f"{100 * test['low']:+.2f} to {100 * test['high']:+.2f}"
        table.add_row(name, f"{100 * test['difference']:+.2f}", interval, f"{test['p']:.3f}", test["verdict"])
    console.print(table)
    console.print(
        f"noise: captions swapped between the two at random differ as much in {100 * NOISE:.0f} % of trials or more; "
        f"baseline: {comparison['baseline']}"
    )


if __name__ == "__main__":
    run_program(lambda: main(ARGUMENTS))
