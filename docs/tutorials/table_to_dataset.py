"""Turn a table of captions into a data set: python docs/tutorials/table_to_dataset.py table.csv DIR/dataset.json.

The table has the columns filename, split (train, val or test) and caption, one caption a row, with commas, semicolons
or tabs between them.
"""

import argparse
import csv
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the repository

from data.errors import UserError
from utils.files import run_program


def main() -> None:
    """Read the one, write the other."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("table", type=Path)
    parser.add_argument("dataset", type=Path)
    arguments = parser.parse_args()
    try:
        lines = arguments.table.read_text(encoding="utf-8-sig").splitlines(keepends=True)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{arguments.table}: cannot be read as UTF-8 text ({error}); check the path") from None
    delimiter = max(",;\t", key="".join(lines[:1]).count)
    table = csv.DictReader(lines, delimiter=delimiter)
    if missing := {"filename", "split", "caption"} - set(table.fieldnames or ()):
        raise UserError(f"{arguments.table}: has no column {', '.join(sorted(missing))}; name it in the first line")
    images: dict[str, dict] = {}
    for row in table:
        where = f"{arguments.table}: line {table.line_num}"
        if None in row or None in row.values():
            raise UserError(f"{where}: has not as many values as the first line; quote those with a {delimiter!r}")
        new: dict = {"filename": row["filename"], "imgid": len(images), "split": row["split"], "sentences": []}
        image = images.setdefault(row["filename"], new)
        if image["split"] != row["split"]:
            raise UserError(f"{where}: {row['filename']} is in {image['split']}, above, and {row['split']}; keep one")
        image["sentences"].append({"raw": row["caption"]})
    arguments.dataset.write_text(json.dumps({"images": list(images.values())}, indent=1), encoding="utf-8")
    print(f"{arguments.dataset}: {len(images)} images; now: python -m data.check {arguments.dataset.parent}")


if __name__ == "__main__":
    run_program(main)
