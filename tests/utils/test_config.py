import argparse
from pathlib import Path

import pytest
import yaml

from data.errors import UserError
from utils.config import CONFIGS, Config, DataConfig, dump_config, flatten, load_config, parse_config, read_yaml


def arguments(*overrides: str, **flags: object) -> argparse.Namespace:
    none = dict.fromkeys(("config", "dataset", "data_root", "output_dir", "epochs", "seed"))
    return argparse.Namespace(**(none | flags), overrides=list(overrides))


def test_nothing_given_is_the_default() -> None:
    assert load_config(arguments()) == Config(data=DataConfig(augment=False))


def test_later_wins(tmp_path: Path) -> None:
    (tmp_path / "f.yaml").write_text("seed: 3\ntrain: {epochs: 4, lr: 1e-3}\n")
    config = load_config(arguments("train.lr=5", config=str(tmp_path / "f.yaml"), epochs=7))
    assert (config.seed, config.train.epochs, config.train.lr) == (3, 7, 5.0)


def test_every_recipe_is_valid_and_the_data_sets_have_theirs() -> None:
    for path in set(CONFIGS.rglob("*.yaml")) - set(CONFIGS.glob("ablations/**/*.yaml")):  # those are grids
        parse_config(read_yaml(path), str(path))
    assert load_config(arguments(dataset="RSICD")).model.encoder.name == "tf_efficientnet_lite2"
    assert load_config(arguments(dataset="UCM")).dataset == "UCM"
    assert load_config(arguments("dataset=RSICD")) == load_config(arguments(dataset="RSICD"))


def test_what_is_dumped_is_read_back(tmp_path: Path) -> None:
    config = load_config(arguments("train.lr=1e-5", "model.losses=[{criterion: cross_entropy, weight: ~}]"))
    path = tmp_path / "config.yaml"
    path.write_text(dump_config(config))
    assert parse_config(read_yaml(path), "") == config
    assert yaml.safe_load(dump_config(config))["model"]["losses"] == [{"criterion": "cross_entropy", "weight": None}]
    assert flatten(config)["train.lr"] == 1e-5


@pytest.mark.parametrize(
    ("override", "fault"),
    [
        ("train.learning_rate=1", "unknown key train.learning_rate; known are epochs, batch_size"),
        ("optimizer.lr=1", "unknown key optimizer; known are dataset"),
        ("train.epochs=two", "train.epochs"),
        ("train.epochs=2.5", "train.epochs"),
        ("train.epochs=true", "train.epochs"),
        ("train.epochs=0", "greater than or equal to 1"),
        ("train.lr=.nan", "train.lr"),
        ("train.lr='1'", "train.lr"),
        ("model.decoder.dropout=1.0", "less than 1"),
        ("data.size=16", "data.size = 16: .* greater than or equal to 32"),
        ("data.size=4097", "less than or equal to 4096"),
        ("synthetic.size=16", "synthetic.size = 16: .* greater than or equal to 32"),
        ("seed=4294967296", "seed = 4294967296: .* less than 4294967296"),
        ("dataset=COCO", "dataset"),
        ("dataset=3", "dataset"),
        ("train=3", "train"),
        ("seed.epochs=3", "unknown|not a section|seed"),
        ("train.reward.sample=3", "unknown key train.reward.sample; known are samples, baseline"),
        ("train.epochs", "write section.key=value"),
        ("model.heads.parallel.layers=1000", "less than or equal to 100"),
        ("model.losses.1.weight=2", "a list of 1,"),
        ("data.3.weight=2", "unknown key data.3"),
        ("train.epochs=[", "not a YAML value"),
        ("output_dir=2020-13-45", "not a YAML value"),
        ("seed=0x_", "not a YAML value"),
        ("decoding.length_penalty=1100", "less than or equal to 100"),
    ],
)
def test_slips_are_named(override: str, fault: str) -> None:
    with pytest.raises(UserError, match=fault) as caught:
        load_config(arguments(override))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["- a\n- b", "a: [", "\x00", "seed: 0x_"])
def test_files_that_are_no_configuration(tmp_path: Path, content: str) -> None:
    path = tmp_path / "f.yaml"
    path.write_text(content)
    with pytest.raises(UserError, match=str(path)):
        load_config(arguments(config=str(path)))
    with pytest.raises(UserError, match="cannot be read"):
        load_config(arguments(config=str(tmp_path / "missing.yaml")))


def test_what_the_command_line_got_wrong_is_not_put_down_to_the_recipe() -> None:
    slips = ("train.lr=0", "train.rate=1", "train.reward={samples: 1}", "model.losses=[5]")
    for wrong in (*map(arguments, slips), arguments(dataset="RSIC")):
        with pytest.raises(UserError, match=r"^command line: "):
            load_config(wrong)
