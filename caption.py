"""Caption images and scenes: python caption.py INPUT... [--output F.json|.jsonl|.csv|.geojson|.parquet].

An INPUT is an image, a folder of images, or a quoted pattern such as 'photos/**/*.jpg'. An image that is broken is
named and left out; in --output it has an `error` in place of a caption. Captions are kept as they are made, in
F.partial: a run that was cut off goes on from there when the same command is given again.

A scene (a GeoTIFF of any size) is cut into tiles where --tile says so, or where --output is .geojson (in WGS84) or
.parquet (GeoParquet, in the scene's coordinates). Tiles without data are left out.

Under `torchrun` or `accelerate launch` every process captions its share, and the first puts them together; --attention
draws of its own.

Exit code: 0 where there are captions, even if some images were left out; 2 where there are none.
"""

import argparse
import gc
from collections.abc import Callable

from utils.files import offer_checkpoints, offer_decoding, run_program

PICTURED = 16  # images in --attention
BEST = 10  # images that --find names


def parse_arguments(words: list[str] | None = None) -> argparse.Namespace:
    """The command line, or `words`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("inputs", nargs="+", metavar="INPUT", help="an image, a folder of images, or a quoted pattern")
    offer_checkpoints(parser)
    parser.add_argument("--output", metavar="F", help="write the captions there; the suffix says in which format")
    parser.add_argument(
        "--attention", metavar="F.png", help=f"draw where the decoder looked for each word, of up to {PICTURED} images"
    )
    parser.add_argument("--find", metavar="TEXT", help=f"say how well each image fits a text, and name the best {BEST}")
    offer_decoding(parser)
    scenes = parser.add_argument_group("scenes")
    scenes.add_argument("--tile", type=int, metavar="PIXELS", help="cut every INPUT into tiles of this side")
    scenes.add_argument("--overlap", type=int, default=0, metavar="PIXELS", help="that neighbouring tiles share")
    scenes.add_argument(
        "--bands", type=_numbers(int), metavar="R,G,B", help="which to see, from 1 (default: the file's)"
    )
    scenes.add_argument(
        "--stretch", type=_numbers(float), metavar="LOW,HIGH", help="percentiles (default: 2,98; 8 bits as they are)"
    )
    scenes.add_argument("--map", metavar="F.png", help="draw the scene with its tiles' captions")
    return parser.parse_args(words)


def _numbers(kind: type) -> Callable[[str], tuple]:
    """A parser of numbers with commas between them."""

    def parse(text: str) -> tuple:
        try:
            return tuple(kind(part) for part in text.split(","))
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r}: numbers with commas are wanted, such as 4,3,2") from None

    return parse


if __name__ == "__main__":
    ARGUMENTS = parse_arguments()  # before the heavy imports: --help and slips answer at once
    gc.disable()  # until run_program: to look through all that libraries make, again and again, takes its time

import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from glob import glob, has_magic
from heapq import nlargest
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory

from data.errors import UserError
from data.files import check_outputs, file_digest, writing
from data.images import IMAGE_SUFFIXES
from data.loading import Content, ImageFiles, Visuals
from data.scenes import SceneTiles, Tiling, tile_names
from models.pooling import together
from models.runtime import translated
from utils.checkpoint import SHIPPED, Checkpoint, load_checkpoints
from utils.config import with_decoding
from utils.devices import PATIENCE, best_device, looking_precision
from utils.files import one_line
from utils.inference import caption_batch, look
from utils.journal import Journal, Row
from utils.outputs import FORMATS, PLACED, check_placed
from utils.progress import track
from utils.scene_map import draw_map
from utils.search import Query
from utils.sources import live_regions
from utils.visualize import Panel, attention_figure

BATCH = 32  # images at a time: an encoder wants 16 MB for each


def main(arguments: argparse.Namespace) -> None:
    """Caption every input; print, or write in the format that the suffix of --output names."""
    output, picture, plan = (Path(x) if x else None for x in (arguments.output, arguments.attention, arguments.map))
    if output and output.suffix not in FORMATS:
        raise UserError(f"--output {output}: the suffix must be one of {', '.join(FORMATS)}")
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if world > 1 and output is None:
        raise UserError("several processes need --output F, where what each has made is put together")
    files = find_images(arguments.inputs)
    for option, path in (("--attention", picture), ("--map", plan)):
        if path and path.suffix.lower() != ".png":
            raise UserError(f"{option} {path}: pictures are PNG files; give it the suffix .png")
        # --output has no image's suffix, and may be there already
        if path and path.exists() and any(path.samefile(file) for file in files):
            raise UserError(f"{path}: is one of the images; name another file to write")
    sources = [Path(path) for path in arguments.checkpoint or SHIPPED]
    check_outputs({"--output": output, "--attention": picture, "--map": plan}, sources)
    checkpoint = load_checkpoints(sources)
    checkpoint = replace(checkpoint, config=with_decoding(checkpoint.config, arguments.decoding))
    checkpoint.captioner.to(best_device())
    about = {"checkpoint_sha256": " + ".join(map(file_digest, sources)), **checkpoint.config.decoding.model_dump()}

    tiling = choose_tiling(arguments, checkpoint.preprocessing.size)
    if tiling:
        if checkpoint.config.regions.kind == "masks":
            raise UserError(f"{sources[0]}: looks at masks of whole images (regions.kind=masks); caption without tiles")
        if plan and len(files) > 1:
            raise UserError(f"--map {plan}: draws one scene, {len(files)} were given")
        scene = Path(files[0])
        files = tile_names(files, tiling)
        if output and output.suffix in PLACED:
            check_placed(files, output, tiling)
        about |= {"bands": list(tiling.bands or ()), "stretch": list(tiling.percentiles or ())}
    query = None
    if arguments.find is not None:
        size, views = checkpoint.preprocessing.size, checkpoint.config.decoding.views
        query = Query(checkpoint.captioner, checkpoint.vocabulary, arguments.find, size, views)
        about["find"] = arguments.find
        if query.unknown and not rank:
            print(f"--find: the checkpoint does not know {', '.join(query.unknown)}", file=sys.stderr)

    with TemporaryDirectory() as scratch:
        journal = Journal(output or Path(scratch) / "captions", about, rank)
        mine = files[rank::world]
        done = [file for file in mine if file in journal]
        if done:
            print(f"going on after {len(done)} of {len(mine)} images", file=sys.stderr)
        again: set[str] = set()
        if picture:  # the journal does not say where the decoder looked
            told = (row["file"] for row in journal.rows(done) if "caption" in row)
            again.update(islice(told, PICTURED))
        left = [file for file in mine if file in again or file not in journal]
        panels: list[Panel] = []
        precision = looking_precision(checkpoint.config.train.precision, best_device())
        with translated(checkpoint.captioner, len(left) * checkpoint.config.decoding.views, precision):
            for row in caption_files(checkpoint, left, tiling, query, journal, precision, panels if picture else None):
                if "error" in row and len(files) > 1:
                    print(f"left out: {one_line(row['error'])}", file=sys.stderr)
                elif output is None and not query and "caption" in row:
                    print(f"{one_line(row['file'])}: {one_line(row['caption'])}", flush=True)
        if world > 1:
            from accelerate import PartialState  # here: it takes seconds, and one process does without it

            PartialState(cpu=True, timeout=PATIENCE).wait_for_everyone()  # to wait takes no GPU
            if rank:
                return
            journal.look_around(errors=True)

        said, broken = 0, []
        for row in journal.rows(files):
            said += "caption" in row
            broken += [row["error"]] if "error" in row else []
        if not said:
            journal.remove()
            why = "have data" if tiling and not broken else "can be read"
            raise UserError(broken[0] if len(broken) == len(files) == 1 else f"none of the {len(files)} images {why}")
        if output:
            with writing(output) as name:
                FORMATS[output.suffix]((row for row in journal.rows(files) if "empty" not in row), name)
        if query:
            best = nlargest(
                BEST, (row for row in journal.rows(files) if "caption" in row), key=lambda row: row["match"]
            )
            for row in best:
                print(f"{row['match']:+.2f}  {one_line(row['file'])}: {one_line(row['caption'])}")
        if plan and tiling:
            draw_map(plan, scene, tiling, [r for r in journal.rows(files) if "caption" in r])
        if picture and panels:
            attention_figure(picture, panels)
        elif picture:
            print(f"--attention {picture}: not drawn, since this process captioned no image itself", file=sys.stderr)
        journal.remove()
        if output or broken:
            left_out = f", {len(broken)} left out" if broken else ""
            where = f": {output}" if output else ""
            print(f"{said} images captioned{left_out}{where}", file=sys.stderr)


def choose_tiling(arguments: argparse.Namespace, size: int) -> Tiling | None:
    """How the inputs are cut into tiles; None where they are images as they are."""
    geographic = Path(arguments.output or "").suffix in PLACED
    about_tiles = (arguments.overlap, arguments.bands, arguments.stretch, arguments.map)
    if arguments.tile is not None and arguments.tile < 1:
        raise UserError(f"--tile {arguments.tile}: a side of tiles in pixels is wanted, such as 224")
    if not (arguments.tile or geographic):
        if any(about_tiles):
            raise UserError("--overlap, --bands, --stretch and --map are for scenes: add --tile PIXELS")
        return None
    if arguments.stretch and not (
        len(arguments.stretch) == 2 and 0 <= arguments.stretch[0] < arguments.stretch[1] <= 100
    ):
        raise UserError(f"--stretch {arguments.stretch}: two rising percentiles are wanted, such as 2,98")
    return Tiling(arguments.tile or size, arguments.overlap, arguments.bands, arguments.stretch)


def caption_files(
    checkpoint: Checkpoint,
    files: Sequence[str],
    tiling: Tiling | None,
    query: Query | None,
    journal: Journal,
    precision: str,
    panels: list[Panel] | None,
) -> Iterator[Row]:
    """A row for each image or tile: its caption, the error that it could not be read for, or that it is empty.

    A batch's rows are in the journal before they are given out. The first `PICTURED` images are put into `panels`.
    """
    captioner = checkpoint.captioner
    content: Content
    if tiling:
        content = SceneTiles(files, checkpoint.preprocessing, tiling)
    else:
        content = ImageFiles([Path(file) for file in files], checkpoint.preprocessing)
    regions = live_regions(checkpoint.config, content, [Path(file).stem for file in files], captioner.encoder)
    visuals = Visuals(content, regions)
    starts = range(0, len(files), BATCH)
    for start in track(starts, len(starts), "captions"):
        rows: list[Row] = []
        read = []
        for place in range(start, min(start + BATCH, len(files))):
            rows.append({"file": files[place]} | ({"match": None} if query else {}))
            try:
                visual = visuals.read([place])
            except UserError as error:
                rows[-1]["error"] = str(error)
                continue
            if len(visual.content):
                read.append((rows[-1], place, visual))
            else:
                rows[-1]["empty"] = True
        if read:
            decoding = checkpoint.config.decoding
            batch = look(captioner, together([visual for _, _, visual in read]), decoding.views, precision)
            found = caption_batch(captioner, checkpoint.vocabulary, batch, decoding, precision, seed=start)
            for (row, place, visual), beam in zip(read, found, strict=True):
                row |= {"caption": beam[0].text, "score": round(beam[0].score, 4)}
                if panels is not None and len(panels) < PICTURED:
                    pixels = visual.content[0].permute(1, 2, 0).numpy()
                    panels.append(Panel(pixels, beam[0].words, beam[0].attention, visuals.masks(place), row["file"]))
            if query:
                for (row, _, _), match in zip(read, query.match(batch), strict=True):
                    row["match"] = round(match, 4)
        journal.add(rows)
        yield from rows


def find_images(inputs: Sequence[str]) -> list[str]:
    """The image files that the inputs name, each once: files as they are, what folders and patterns hold sorted."""
    files: dict[str, None] = {}
    for item in inputs:
        path = Path(item)
        if path.is_file():
            found = [str(path)]
        elif path.is_dir():
            found = _images(path.rglob("*"))
        elif has_magic(item):
            found = _images(map(Path, glob(item, recursive=True)))
        else:
            raise UserError(f"{item}: no such file or folder; check the path")
        if not found:
            where = "in this folder" if path.is_dir() else "fit this pattern"
            raise UserError(f"{item}: no images {where}; known are {', '.join(IMAGE_SUFFIXES)}")
        files |= dict.fromkeys(found)
    return list(files)


def _images(paths: Iterator[Path]) -> list[str]:
    return sorted(str(path) for path in paths if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())


if __name__ == "__main__":
    run_program(lambda: main(ARGUMENTS))
