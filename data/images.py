"""Image files to RGB arrays."""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from threading import Lock

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from data.errors import UserError, reason

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp", ".gif", ".jp2")
# What is read, whatever the suffix says: nothing that starts a program (EPS) or takes any bytes for a picture (TGA)
FORMATS = ("JPEG", "PNG", "TIFF", "BMP", "WEBP", "GIF", "JPEG2000")
DEPTHS = (8, 11, 12, 16)  # bits that sensors give; what has more than 8 comes in words of 16
MAX_PIXELS = 178_956_970  # Pillow's own bound against decompression bombs, here an error and not a warning

Image.init()  # else of these only the commonest are known
warnings.filterwarnings("ignore", module=r"PIL\.")  # what it warns of is read, or an error that has its own line


def read_image(path: Path) -> np.ndarray:
    """The first frame of an image file as RGB, uint8 [H, W, 3], upright as its EXIF orientation says.

    Grey, palette, CMYK and 16-bit images are converted; white is the largest number of the first of `DEPTHS` that holds
    all of an image's values. Transparency is laid on black. Raises `UserError` naming the file where it cannot be read
    or is too large.
    """
    if not path.is_file():  # a pipe or a device would be waited for
        raise UserError(f"{path}: no such image; check the path")
    try:
        with Image.open(path, formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise UserError(f"{path}: {image.width} x {image.height} pixels are too many; tile or shrink it")
            with _silence() if image.format == "TIFF" else nullcontext():
                image.load()
            return _rgb(_upright(image))
    except UserError:
        raise
    except Image.DecompressionBombError:
        raise UserError(f"{path}: too many pixels; tile or shrink it") from None
    except UnidentifiedImageError:
        if path.suffix.lower() in (".tif", ".tiff"):
            raise UserError(
                f"{path}: not a readable TIFF of 8 bits or of one band; caption.py --tile 224 reads scenes of others, "
                "else replace or remove it"
            ) from None
        raise UserError(f"{path}: not a readable image; known are {', '.join(FORMATS)}; replace or remove it") from None
    except MemoryError:
        raise UserError(f"{path}: too large for this machine's memory; tile or shrink it") from None
    except Exception as error:  # every kind of damage has an exception of its own
        raise UserError(f"{path}: not a readable image ({reason(error)}); replace or remove it") from None


_silencing = Lock()


@contextmanager
def _silence() -> Iterator[None]:
    """In this block libtiff's own messages, which name no file, do not reach standard error."""
    with _silencing:  # one thread at a time, or standard error could stay away
        error, nothing = os.dup(2), os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, 2)
        try:
            yield
        finally:
            os.dup2(error, 2)
            os.close(error)
            os.close(nothing)


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # damaged EXIF; the pixels are sound
        return image


def _rgb(image: Image.Image) -> np.ndarray:
    if image.mode.startswith("I") or image.mode == "F":
        return _wide_grey(np.asarray(image))
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image)
    return np.asarray(image.convert("RGB"))


def _wide_grey(values: np.ndarray) -> np.ndarray:
    """Grey values of more than 8 bits as RGB uint8 [H, W, 3]; what is not finite is black."""
    if values.dtype.kind == "f":
        values = np.nan_to_num(values, nan=0, posinf=0, neginf=0)
        values = values * np.float32(255 / values.max(initial=1))
    else:
        most = values.max(initial=0)
        depth = next((bits for bits in DEPTHS if most < 2**bits), DEPTHS[-1])
        values = values * np.float32(255 / (2**depth - 1))
    return np.repeat(np.clip(np.round(values), 0, 255).astype(np.uint8)[..., None], 3, axis=2)
