"""Image files to RGB arrays."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from data.errors import UserError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp", ".gif")
MAX_PIXELS = 178_956_970  # Pillow's own bound against decompression bombs, here an error and not a warning


def read_image(path: Path) -> np.ndarray:
    """The first frame of an image file as RGB, uint8 [H, W, 3], upright as its EXIF orientation says.

    Grey, palette, CMYK and 16-bit images are converted (16 bits by dropping the lower eight); transparency is laid on
    black. Raises `UserError` naming the file where it cannot be read or is too large.
    """
    try:
        with Image.open(path) as image:
            if image.width * image.height > MAX_PIXELS:
                raise UserError(f"{path}: {image.width} x {image.height} pixels are too many; tile or shrink it")
            image.load()
            upright = ImageOps.exif_transpose(image)
            if upright.mode.startswith("I") or upright.mode == "F":
                return _wide_grey(np.asarray(upright))
            if "A" in upright.getbands() or "transparency" in upright.info:
                upright = upright.convert("RGBA")
                upright = Image.alpha_composite(Image.new("RGBA", upright.size, (0, 0, 0, 255)), upright)
            return np.asarray(upright.convert("RGB"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such image; check the path") from None
    except Image.DecompressionBombError:
        raise UserError(f"{path}: too many pixels; tile or shrink it") from None
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, EOFError) as error:
        raise UserError(f"{path}: not a readable image ({str(error)[:80]}); replace or remove it") from None


def _wide_grey(values: np.ndarray) -> np.ndarray:
    """Grey values of more than 8 bits as RGB uint8 [H, W, 3]."""
    if values.dtype.kind == "f":
        top = float(np.nanmax(values, initial=1.0))
        scaled = np.nan_to_num(values) * (255.0 / top)
    else:
        scaled = values / 257.0 if values.max(initial=0) > 255 else values
    return np.repeat(np.clip(scaled, 0, 255).astype(np.uint8)[..., None], 3, axis=2)
