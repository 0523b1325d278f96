"""The rooms of the house: each imports only itself and what stands below it (CONTRIBUTING.md)."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("loss", "models", "data", "metrics", "utils")  # from below


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_nothing_from_above(room: str) -> None:
    above = {*ROOMS[ROOMS.index(room) + 1 :], *(path.stem for path in ROOT.glob("*.py"))}
    modules = list((ROOT / room).rglob("*.py"))
    assert modules
    for path in modules:
        for statement in ast.parse(path.read_text(encoding="utf-8")).body:  # those in functions are for a program's own
            names: list[str] = []
            if isinstance(statement, ast.Import):
                names = [alias.name for alias in statement.names]
            elif isinstance(statement, ast.ImportFrom):
                names = [statement.module or ""]
            for name in names:
                assert name.split(".")[0] not in above, f"{path.relative_to(ROOT)} imports {name}"
