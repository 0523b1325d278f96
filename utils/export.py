"""Export a captioner to ONNX: python -m utils.export FOLDER [--checkpoint PATH].

FOLDER gets what a program needs that has neither this code nor PyTorch (docs/tutorials/onnx_captions.py is one):

    encoder.onnx    images uint8 [B, 3, S, S] -> keys, values [B, N, E], hidden, cell [B, E]
    step.onnx       keys, values, hidden, cell, tokens int64 [B] -> logits [B, V], hidden, cell, attention [B, N]
    captioner.json  words by token, the special tokens, the size of images, the bounds of decoding

The exported captioner then captions synthetic scenes by the same beam search as the checkpoint; where a caption or a
score differs nothing is written and the exit code is 2.
"""

import argparse
import json
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from data.errors import UserError
from data.files import drafting
from data.synthetic import generate_scene
from models.captioner import Captioner
from models.decoder import Decoder
from models.decoding import beam_search
from models.pooling import Visual
from models.regions import Regions, State
from models.runtime import open_session, run
from models.tokens import END, PAD, START, UNK
from models.views import mean_over_views
from utils.checkpoint import SHIPPED, Checkpoint, load_checkpoint
from utils.files import run_program

SCENES = 6  # that both captioners are asked about
TOLERANCE = 1e-4  # of a score: ONNX Runtime adds float32 up in another order
REGIONS = ("keys", "values")
STATE = ("hidden", "cell")


class _Encoder(nn.Module):
    """Images to all that the first step needs."""

    def __init__(self, captioner: Captioner, views: int) -> None:
        super().__init__()
        self.captioner, self.views = captioner, views

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        # all views at once: a graph with the encoder once and not once a view is written in an eighth of the time
        features = mean_over_views(self.captioner.encoder, images, self.views, at_once=self.views)
        regions = self.captioner.regions(Visual(features))
        return regions.keys, regions.values, *self.captioner.decoder.start(regions)


class _Step(nn.Module):
    """One word further."""

    def __init__(self, decoder: Decoder) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(
        self, keys: Tensor, values: Tensor, hidden: Tensor, cell: Tensor, tokens: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        logits, state, attention = self.decoder.step(Regions(keys, values, None), State(hidden, cell), tokens)
        return logits, state.hidden, state.cell, attention


class ExportedDecoder:
    """step.onnx with `Decoder`'s methods, for `beam_search`; `initial` is what encoder.onnx gave as the first state."""

    def __init__(self, path: Path, initial: State) -> None:
        self.session, self.initial = open_session(path), initial

    def start(self, regions: Regions) -> State:
        """The first state of each image."""
        return self.initial

    def step(
        self,
        regions: Regions,
        state: State,
        tokens: Tensor,
        image_of: Tensor | None = None,
        after: Tensor | None = None,
    ) -> tuple[Tensor, State, Tensor]:
        """As `Decoder.step`; step.onnx takes one caption an image, so that what several share is repeated."""
        if image_of is not None and after is not None:
            regions, state = regions.select(image_of[after]), state.select(after)
        given = dict(zip((*REGIONS, *STATE, "tokens"), (regions.keys, regions.values, *state, tokens), strict=True))
        logits, hidden, cell, attention = run(self.session, **given)
        return logits, State(hidden, cell), attention


def export(checkpoint: Checkpoint, folder: Path) -> None:
    """Write the three files into `folder`, which must not be there yet; `UserError` where what they say differs."""
    if checkpoint.config.regions.kind != "grid":
        raise UserError(
            "only captioners that look at the encoder's grid can be exported; their regions are found outside"
        )
    if checkpoint.captioner.tellers:
        raise UserError("a captioner that a head tells what to say cannot be exported; step.onnx has no place for it")
    if folder.exists():
        raise UserError(f"{folder} is there already; name another folder")
    if find_spec("onnxscript") is None:
        raise UserError("exporting needs pip install -r requirements-export.txt")
    with drafting(folder) as draft:
        draft.mkdir()
        _write(checkpoint, draft)
        _compare(checkpoint, draft)
        draft.replace(folder)


def _write(checkpoint: Checkpoint, folder: Path) -> None:
    captioner, decoding = checkpoint.captioner.float().eval(), checkpoint.config.decoding
    size = checkpoint.preprocessing.size
    images = torch.zeros(2, 3, size, size, dtype=torch.uint8)
    with torch.no_grad():
        encoder = _Encoder(captioner, decoding.views)
        first = encoder(images)
    _to_onnx(encoder, (images,), folder / "encoder.onnx", ("images",), (*REGIONS, *STATE))
    step_in, step_out = (*REGIONS, *STATE, "tokens"), ("logits", "next_hidden", "next_cell", "attention")
    _to_onnx(_Step(captioner.decoder), (*first, torch.tensor([START, UNK])), folder / "step.onnx", step_in, step_out)
    about = {
        "words": list(checkpoint.vocabulary.words),
        "start": START,
        "end": END,
        "never_said": [PAD, START, UNK],
        "size": size,
        "max_words": decoding.max_words,
        "length_penalty": decoding.length_penalty,
    }
    (folder / "captioner.json").write_text(json.dumps(about), encoding="utf-8")


def _to_onnx(module: nn.Module, args: tuple, path: Path, names: tuple[str, ...], outputs: tuple[str, ...]) -> None:
    batch = torch.export.Dim("batch")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own, about itself
        torch.onnx.export(
            module.eval(),
            args,
            path,
            input_names=list(names),
            output_names=list(outputs),
            dynamic_shapes=tuple({0: batch} for _ in args),
            external_data=False,
            verbose=False,
        )


@torch.inference_mode()
def _compare(checkpoint: Checkpoint, folder: Path) -> None:
    """`UserError` where the exported captioner's beams say something else than the checkpoint's."""
    decoding, size = checkpoint.config.decoding, checkpoint.preprocessing.size
    scenes = np.stack([generate_scene(2, index, max(size, 32)).image for index in range(SCENES)])
    images = torch.from_numpy(scenes).permute(0, 3, 1, 2).contiguous()
    features = checkpoint.captioner.features(images, decoding.views)
    regions = checkpoint.captioner.regions(Visual(features))
    keys, values, hidden, cell = run(open_session(folder / "encoder.onnx"), images=images)
    decoder: Any = ExportedDecoder(folder / "step.onnx", State(hidden, cell))
    bounds = (decoding.beam_size, decoding.max_words, decoding.length_penalty)
    ours = beam_search(checkpoint.captioner.decoder, regions, *bounds)
    theirs = beam_search(decoder, Regions(keys, values, None), *bounds)
    for one, other in zip(ours, theirs, strict=True):
        if one[0].tokens != other[0].tokens or abs(one[0].score - other[0].score) > TOLERANCE:
            said = " / ".join(" ".join(checkpoint.vocabulary.decode(found[0].tokens)) for found in (one, other))
            raise UserError(f"the exported captioner says something else ({said}); nothing was written")


def main() -> None:
    """Read the checkpoint, write the folder, say what is in it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument(
        "--checkpoint", type=Path, default=SHIPPED[0], metavar="PATH", help="default: the first that ships"
    )
    arguments = parser.parse_args()
    export(load_checkpoint(arguments.checkpoint), arguments.folder)
    print(f"{SCENES} scenes: the same captions as the checkpoint's")
    for path in sorted(arguments.folder.iterdir()):
        print(f"{path}  {path.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    run_program(main)
