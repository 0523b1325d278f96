from pathlib import Path

import numpy as np
from PIL import Image

from data.scenes import Tiling
from utils.journal import Row
from utils.scene_map import draw_map


def test_a_caption_is_no_mathematics(tmp_path: Path) -> None:
    """Between two dollars matplotlib would parse it, and end where it is none."""
    Image.new("RGB", (300, 300)).save(tmp_path / "scene.png")
    pictures = []
    for words in ("it costs $\\frac$ here", "it costs here"):
        row: Row = {"file": f"{tmp_path}/scene.png#xywh=0,0,300,300", "caption": words}
        draw_map(tmp_path / "map.png", tmp_path / "scene.png", Tiling(300, 0, None, None), [row])
        with Image.open(tmp_path / "map.png") as drawn:
            pictures.append(np.asarray(drawn))
    assert (pictures[0] != pictures[1]).any()
