"""What an ablation compares: a base recipe, factors with their levels, and seeds; read from YAML, strictly."""

import re
from collections import Counter
from itertools import combinations, product
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import Field, ValidationError, field_validator

from data.errors import UserError
from utils.config import CONFIGS, Config, Section, Seed, assign, parse_config, read_yaml, recipe_of

Settings = dict[str, Any]
"""`section.key` to value."""


class Grid(Section):
    """Every combination of the factors' levels, each with every seed.

    A factor maps the name of a level to its settings, or it is a list of values of the key that names it:

        recipe: rsicd.yaml              # in configs/, or a path; default: the data set's own
        base: {train.epochs: 4}         # what all runs share
        factors:
          loss:
            CE: {model.losses: [{criterion: cross_entropy}]}
            CE + DSR: {model.losses: [{criterion: custum_loss, use_avr: false, beta: 0.01}]}
          model.decoder.width: [256, 512]
        seeds: [0, 1, 2]
        baseline: {loss: CE}            # of a factor that is not named, the first level
        columns: [Bleu_4, CIDEr]        # of eval.py but METEOR, of its diversity, or of heads (concepts/mAP)
    """

    recipe: str | None = None
    base: Settings = Field({})
    factors: dict[str, dict[str, Settings]] = Field(min_length=1)
    seeds: list[Seed] = Field([0], min_length=1)
    baseline: dict[str, str] = Field({})
    columns: list[str] = Field(["Bleu_4", "ROUGE_L", "CIDEr"])

    @field_validator("factors", mode="before")
    @classmethod
    def _name_levels(cls, factors: Any) -> Any:
        if not isinstance(factors, dict):
            return factors
        named: dict[Any, Any] = {}
        for factor, levels in factors.items():
            if isinstance(levels, list):
                named[factor] = {str(value): {factor: value} for value in levels}
            elif isinstance(levels, dict):
                named[factor] = {str(level): settings or {} for level, settings in levels.items()}
            else:
                named[factor] = levels
        return named

    @field_validator("baseline", mode="before")
    @classmethod
    def _name_baseline(cls, baseline: Any) -> Any:
        return {k: str(v) for k, v in baseline.items()} if isinstance(baseline, dict) else baseline


class Variant(NamedTuple):
    """One cell of a grid: its level of each factor, and its configuration (seed and folder are the runs')."""

    levels: tuple[str, ...]
    config: Config

    @property
    def name(self) -> str:
        """The levels, joined so that they can name a folder."""
        return "_".join(re.sub(r"[^\w.+=]+", "-", level) for level in self.levels)


def load_grid(path: Path) -> Grid:
    """The grid in a YAML file; `UserError` names the file and the first key that is wrong."""
    try:
        return Grid.model_validate(read_yaml(path))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise UserError(f"{path}: {key} = {first['input']!r}: {first['msg']}") from None


def variants(path: Path, grid: Grid, settings: Settings) -> list[Variant]:
    """Every variant of the grid that `path` holds, the baseline first; `settings` of a command line go over the base.

    Raises `UserError` where a level is unknown, two variants have one name, a configuration is not valid, what
    `settings` set is a factor's, or what is set is a run's own (its seed and folder).
    """
    shared = grid.base | settings
    varied = {key for levels in grid.factors.values() for level in levels.values() for key in level}
    if clash := sorted(varied & settings.keys()):
        raise UserError(f"argument {clash[0]}: the factors of {path} set it; change it there")
    for key, instead in (("seed", "seeds"), ("output_dir", "--output-dir")):
        if key in shared or key in varied:
            raise UserError(f"{path}: {key} is each run's own; set {instead}")
    baseline = []
    for factor, levels in grid.factors.items():
        baseline.append(grid.baseline.get(factor, next(iter(levels), "")))
        if baseline[-1] not in levels:
            raise UserError(f"{path}: baseline {factor}: no level {baseline[-1]!r}; there are {', '.join(levels)}")
    if unknown := sorted(grid.baseline.keys() - grid.factors.keys()):
        raise UserError(f"{path}: baseline {unknown[0]}: no such factor; there are {', '.join(grid.factors)}")
    for (one, levels), (other, others) in combinations(grid.factors.items(), 2):
        if both := set().union(*levels.values()) & set().union(*others.values()):
            raise UserError(f"{path}: the factors {one} and {other} both set {min(both)}; put their levels into one")
    recipe = _recipe(grid, shared.get("dataset"))

    found = []
    for cell in product(*(levels.items() for levels in grid.factors.values())):
        tree = read_yaml(recipe)
        for level in (shared, *(level for _, level in cell)):
            assign(tree, level, f"{path}:")
        names = tuple(name for name, _ in cell)
        found.append(Variant(names, parse_config(tree, f"{path}, {', '.join(names)}", settings)))
    data = {
        str((c.dataset, c.data_root, c.synthetic, c.data.convention, c.data.limit, c.data.skip_broken))
        for _, c in found
    }
    if len(data) > 1:
        raise UserError(f"{path}: the factors change the val images; scores are compared on the same ones")
    doubled = [name for name, times in Counter(variant.name for variant in found).items() if times > 1]
    if doubled:
        raise UserError(f"{path}: two variants would share the folder {doubled[0]}; name their levels differently")
    return sorted(found, key=lambda variant: variant.levels != tuple(baseline))


def _recipe(grid: Grid, dataset: Any) -> Path:
    if grid.recipe is None:
        return recipe_of(dataset)
    return CONFIGS / grid.recipe if (CONFIGS / grid.recipe).exists() else Path(grid.recipe)
