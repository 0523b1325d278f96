"""Encoders in ONNX Runtime, which looks at images on a CPU faster than PyTorch does.

It computes a convolution with its activation in one pass, in memory that it keeps, and each core has an image of its
own: what a layer gives of one image stays in the core's cache, what it gives of a batch does not. PyTorch stays where
gradients are wanted, on GPUs, and in bfloat16.
"""

import io
import os
import sys
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from models.encoder import Encoder

MANY = 500  # images; on some hundreds the seconds that translation takes are won back
TOLERANCE = 1e-4  # of the features' norm; float32 in another order differs by 1e-6, a wrong translation by far more
NOISE = 3  # images on which both must agree; another number than that on which the encoder is traced


@contextmanager
def translated(module: nn.Module, images: int, precision: str) -> Iterator[None]:
    """Within it, the encoders in `module` look through ONNX Runtime, if `images` of them are worth it.

    They are where they are at least `MANY`, on a CPU, in "fp32". An encoder is translated at the first of them, for
    images of that size. Where that cannot be done, or gives other features of noise, PyTorch goes on. The weights must
    stay as they are meanwhile, and no gradient comes back.
    """
    encoders = [part for part in module.modules() if isinstance(part, Encoder)]
    for encoder in encoders:
        if images >= MANY and precision == "fp32" and encoder.mean.device.type == "cpu":
            encoder.translation = Translation(encoder)
    try:
        yield
    finally:
        for encoder in encoders:
            encoder.translation = None


class Translation:
    """What an encoder looks through: uint8 images [b, 3, H, W] to float32 features [b, N, D]."""

    def __init__(self, encoder: Encoder) -> None:
        self.encoder = encoder
        self.session: Any = None

    def __call__(self, images: Tensor) -> Tensor:
        """The features."""
        if self.session is None:
            self.encoder.translation = None
            self.session = _session(self.encoder, images.shape[1:])
            if self.session is None:
                return self.encoder(images)
            self.encoder.translation = self
        session = self.session
        with ThreadPoolExecutor(torch.get_num_threads()) as cores:
            return torch.cat(list(cores.map(lambda image: run(session, images=image)[0], images.split(1))))


def _session(encoder: Encoder, size: torch.Size) -> Any:
    noise = torch.randint(0, 256, (NOISE, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    try:
        with _silence():
            session = open_session(_to_onnx(encoder, noise[:1]), threads=1)
            features = run(session, images=noise)[0]
    except Exception:  # whatever does not translate: PyTorch can do without
        return None
    exact = encoder(noise)
    agree = features.shape == exact.shape and bool((features - exact).norm() <= TOLERANCE * exact.norm())
    return session if agree else None


@contextmanager
def _silence() -> Iterator[None]:
    """Within it nothing is printed, not even by C++: the exporter prints all of a model that it cannot translate."""
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    kept = [os.dup(number) for number in (1, 2)]
    with open(os.devnull, "wb") as nowhere:
        for number in (1, 2):
            os.dup2(nowhere.fileno(), number)
    try:
        yield
    finally:
        for number, before in zip((1, 2), kept, strict=True):
            os.dup2(before, number)
            os.close(before)


def open_session(model: Path | bytes, threads: int | None = None) -> Any:
    """An ONNX Runtime session of a file or its content, on so many threads a run (None: as many as PyTorch's)."""
    import onnxruntime  # here and below: a single caption does without

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or torch.get_num_threads()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # PyTorch's threads want the cores, too
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def run(session: Any, **given: Tensor) -> list[Tensor]:
    """All that a session gives for what it is given, by name."""
    return [torch.from_numpy(out) for out in session.run(None, {name: value.numpy() for name, value in given.items()})]


@torch.inference_mode(False)
@torch.no_grad()
def _to_onnx(encoder: Encoder, images: Tensor) -> bytes:
    file = io.BytesIO()
    axes = {"images": {0: "batch"}, "features": {0: "batch"}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracer's, about what `Translation` then checks
        # by tracing: what utils/export.py uses, which alone knows the turns of views, takes ten times as long
        torch.onnx.export(
            encoder,
            (images,),
            file,  # type: ignore[arg-type]  # the tracing exporter writes to files that are open, too
            dynamo=False,
            input_names=["images"],
            output_names=["features"],
            dynamic_axes=axes,
        )
    return file.getvalue()
