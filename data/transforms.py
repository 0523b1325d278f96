"""From an RGB array to what the encoder sees: one preprocessing for training and inference, and augmentation."""

import os
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from models.views import VIEWS

if TYPE_CHECKING:
    import albumentations as A

INTERPOLATIONS = {"bilinear": cv2.INTER_LINEAR, "bicubic": cv2.INTER_CUBIC, "area": cv2.INTER_AREA}


@dataclass(frozen=True)
class Preprocessing:
    """How any image becomes the encoder's input; saved with every checkpoint.

    The image is resized to `size` x `size` pixels (area averaging where a side shrinks, else `interpolation`).
    Its values stay uint8: the encoder holds the mean and the standard deviation that its weights want.
    """

    size: int = 224
    interpolation: str = "bicubic"

    def __post_init__(self) -> None:
        if not isinstance(self.size, int) or not 32 <= self.size <= 4096:
            raise ValueError(f"size is {self.size!r}; encoders need 32 to 4096 pixels")
        if self.interpolation not in INTERPOLATIONS:
            raise ValueError(f"interpolation is {self.interpolation!r}; known are {', '.join(INTERPOLATIONS)}")

    def resized(self, image: np.ndarray) -> np.ndarray:
        """An image uint8 [H, W, 3] as [size, size, 3]."""
        if image.shape[:2] == (self.size, self.size):
            return image
        shrinks = self.size < max(image.shape[:2])
        how = cv2.INTER_AREA if shrinks else INTERPOLATIONS[self.interpolation]
        return cv2.resize(image, (self.size, self.size), interpolation=how)

    def to_dict(self) -> dict[str, Any]:
        """The fields, for a checkpoint's metadata; `Preprocessing(**fields)` is the way back."""
        return asdict(self)


def colour_jitter() -> "A.Compose":
    """A mild change of colour: `jitter(image=[H, W, 3])["image"]`; `set_random_seed` fixes which.

    It is how images are augmented beside the turns and flips of models/views.py.
    """
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # its import asks the network for a newer version otherwise
    import albumentations as A  # here: it takes a second, and what is not trained does without it

    ranges = {name: (0.8, 1.2) for name in ("brightness", "contrast", "saturation")}
    return A.Compose([A.ColorJitter(**ranges, hue=(0, 0), p=0.8)])


def view_of(seed: int, epoch: int, row: int, views: int = VIEWS) -> int:
    """The view in which image `row` is seen in `epoch`: even over 0 to `views` - 1, and the same in every process."""
    return hash((seed, epoch, row)) % views


def to_channels_first(image: np.ndarray) -> np.ndarray:
    """[H, W, 3] as a contiguous [3, H, W]."""
    return np.ascontiguousarray(image.transpose(2, 0, 1))
