"""Caption images without PyTorch: python docs/tutorials/onnx_captions.py exported/ photo.jpg ..."""

import argparse
import json
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("folder", type=Path, help="what python -m utils.export wrote")
parser.add_argument("photos", type=Path, nargs="+")
folder, photos = vars(parser.parse_args()).values()
about = json.loads((folder / "captioner.json").read_text())
encoder, step = (onnxruntime.InferenceSession(folder / name) for name in ("encoder.onnx", "step.onnx"))

for photo in photos:
    image = Image.open(photo).convert("RGB").resize((about["size"], about["size"]), Image.Resampling.BOX)
    keys, values, hidden, cell = encoder.run(None, {"images": np.asarray(image).transpose(2, 0, 1)[None]})
    words: list[str] = []
    token = about["start"]
    while len(words) < about["max_words"]:
        given = {"keys": keys, "values": values, "hidden": hidden, "cell": cell, "tokens": np.array([token])}
        logits, hidden, cell, _ = step.run(None, given)
        logits[:, about["never_said"] + [about["end"]] * (not words)] = -np.inf  # a caption has a word at least
        token = int(logits.argmax())
        if token == about["end"]:
            break
        words.append(about["words"][token])
    print(f"{photo}: {' '.join(words)}")
