"""Turn a table of captions into a data set: python docs/tutorials/table_to_dataset.py table.csv DIR/dataset.json.

The table has the columns filename, split (train, val or test) and caption, one caption a row.
"""

import csv
import json
import sys
from pathlib import Path

table, dataset = map(Path, sys.argv[1:])
images: dict[str, dict] = {}
with open(table, newline="", encoding="utf-8-sig") as file:
    for row in csv.DictReader(file):
        new: dict = {"filename": row["filename"], "imgid": len(images), "split": row["split"], "sentences": []}
        images.setdefault(row["filename"], new)["sentences"].append({"raw": row["caption"]})
dataset.write_text(json.dumps({"images": list(images.values())}, indent=1), encoding="utf-8")
print(f"{dataset}: {len(images)} images; now: python -m data.check {dataset.parent}")
