"""configs/: every file is a valid run of train.py, and says nothing that goes without saying."""

import dataclasses
from pathlib import Path

import pytest
import yaml

from engine.command_line import parse_flags
from engine.settings import Config

FILES = sorted((Path(__file__).parents[1] / "configs").glob("*.yaml"))


def test_there_are_files():
    assert [file.name for file in FILES] == ["gpu-16gb.yaml", "gpu-24gb.yaml", "gpu-80gb.yaml"]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_config(file):
    config = parse_flags(Config, [str(file)])
    config.validate()
    defaults = dataclasses.asdict(Config())
    named = yaml.safe_load(file.read_text(encoding="utf-8"))
    assert named == {name: dataclasses.asdict(config)[name] for name in named}, "a value was converted"
    assert not [name for name, value in named.items() if value == defaults[name]], "these are defaults already"
    assert {"model", "level", "lr", "kv_tokens"} < set(named)
    # what can be sampled at once has room, one conversation of 4,096 tokens at least for every rollout of a group
    assert config.kv_tokens >= config.group_size * 4096


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_flags_win_over_the_file(file):
    assert parse_flags(Config, [str(file), "--lr", "0.5"]).lr == 0.5
