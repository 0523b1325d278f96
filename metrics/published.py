"""Results that papers print for the test splits (x 100): to set a score beside, not re-run here."""

from typing import NamedTuple


class Published(NamedTuple):
    """A method, what it is built of, and its scores x 100 under coco-caption's names."""

    method: str
    built_of: str
    metrics: dict[str, float]


def _row(method: str, built_of: str, *scores: float) -> Published:
    names = ("Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4", "METEOR", "ROUGE_L", "CIDEr")
    return Published(method, built_of, dict(zip(names, scores, strict=True)))


# From the papers' own tables, or as quoted in another of them.
PUBLISHED: dict[str, tuple[Published, ...]] = {
    "RSICD": (
        _row("Soft attention (Lu 2018)", "VGG16 / LSTM", 67.53, 53.08, 43.33, 36.17, 32.55, 61.09, 196.43),
        _row("Structured attention (Zhao 2021)", "ResNet50 / LSTM", 70.16, 56.14, 46.48, 39.34, 32.91, 57.06, 170.31),
        _row("MSISA", "two-layer LSTM", 78.36, 66.79, 57.74, 50.42, 36.72, 67.30, 284.36),
        _row("TSFE baseline", "Swin / LSTM", 75.57, 64.47, 55.19, 47.40, 34.23, 65.97, 264.40),
        _row("TSFE (2024)", "Swin tuned on captions / LSTM", 80.54, 70.64, 62.08, 54.86, 37.93, 70.20, 305.70),
        _row("MGT, mask-CE (2022)", "ViT-style / Transformer", 80.42, 69.96, 61.36, 54.14, 39.37, 70.58, 298.39),
        _row("PCSFTr (2024)", "ResNet tuned on scenes / Transformer", 80.39, 70.26, 61.72, 54.42, 39.05, 70.21, 301.20),
        _row("BITA (quoted)", "CLIP ViT-L / OPT-2.7B", 77.38, 66.54, 57.65, 50.36, 41.99, 71.74, 304.53),
    ),
    "UCM": (
        _row("Structured attention (Zhao 2021)", "ResNet50 / LSTM", 85.38, 80.35, 75.72, 71.49, 46.32, 81.41, 334.89),
        _row("PCSFTr (2024)", "ResNet tuned on scenes / Transformer", 90.43, 86.25, 82.36, 78.42, 49.92, 86.01, 398.70),
    ),
    "Sydney": (
        _row("Structured attention (Zhao 2021)", "ResNet50 / LSTM", 77.95, 70.19, 63.92, 58.61, 39.54, 72.99, 237.91),
        _row("TSFE (2024)", "Swin tuned on captions / LSTM", 82.79, 76.06, 69.51, 62.90, 42.28, 77.13, 265.61),
    ),
    "NWPU": (
        _row("Soft attention", "CNN / LSTM", 73.1, 60.9, 52.5, 46.2, 33.9, 59.9, 113.6),
        _row("PCSFTr (2024)", "ResNet tuned on scenes / Transformer", 88.89, 81.13, 74.55, 69.01, 44.27, 78.04, 203.60),
    ),
}
