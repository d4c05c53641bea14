"""Settings: from flags and files, and those that cannot work end in one line before anything is created."""

import dataclasses
import math
import os
import re
import shutil
from pathlib import Path

import pytest
from doubles import REPO
from training import assert_one_line, flags, fresh_policy, kill, run_here, run_until

import eval as evaluation
from engine import processes
from engine.build import check_window
from engine.command_line import parse_flags
from engine.errors import BadInput
from engine.settings import Config, check_bounds, with_whole_paths
from evaluation.settings import EvalConfig
from imitate import ImitateConfig

BAD_SETTINGS = {
    "unknown flag": ({"no_such_flag": 7}, ["no_such_flag"]),
    "unknown choice": ({"credit": "best"}, ["credit", "'best'", "discount"]),
    "unknown environment of several": ({"envs": "frozenlake,chess/train"}, ["env='chess'", "frozenlake"]),
    "unknown level of several": ({"envs": "frozenlake/easy"}, ["level='easy'", "tiny"]),
    "share of no packs": ({"envs": "frozenlake/tiny=0"}, ["envs=", "'0'", "1 to 999"]),
    "more shares than packs": ({"envs": "frozenlake/tiny=2,frozenlake/train"}, ["envs=", "3", "packs_per_step"]),
    "unknown tracker": ({"tracker": "paper"}, ["tracker", "'paper'", "tensorboard"]),
    "not a number": ({"steps": "many"}, ["steps", "'many'"]),
    "negative lr": ({"lr": -1}, ["lr=-1"]),
    "lr not a number": ({"lr": "nan"}, ["lr=nan"]),
    "infinite lr": ({"lr": "inf"}, ["lr=inf"]),
    "no steps": ({"steps": 0}, ["steps=0", "at least 1"]),
    "no packs": ({"packs_per_step": 0}, ["packs_per_step=0", "at least 1"]),
    "group of one": ({"group_size": 1}, ["group_size=1", "at least 2"]),
    "empty pack": ({"pack_size": 0}, ["pack_size=0", "at least 1"]),
    "unknown environment": ({"env": "moon"}, ["env='moon'", "frozenlake"]),
    "unknown level": ({"level": "easy"}, ["level='easy'", "tiny"]),
    "temperature 0": ({"temperature": 0}, ["temperature=0", "above 0"]),
    "dropout of everything": ({"lora_dropout": 1}, ["lora_dropout=1", "at least 0", "below 1"]),
    "empty length range": ({"length_lo": 5, "length_hi": 5}, ["length_hi=5", "length_lo=5"]),
    "negative seed": ({"seed": -1}, ["seed=-1"]),
    "infinite weight decay": ({"weight_decay": "inf"}, ["weight_decay=inf", "finite"]),
    "infinite penalty": ({"length_penalty": "inf"}, ["length_penalty=inf", "finite"]),
    "penalty not a number": ({"hint_penalty": "nan"}, ["hint_penalty=nan"]),
    "endless length range": ({"length_hi": "inf"}, ["length_hi=inf", "finite"]),
    "more updates than episodes": ({"updates_per_batch": 13}, ["updates_per_batch=13", "12 episodes"]),
    "seed beyond 32 bits": ({"seed": 2**32}, ["seed=4294967296", "below 4,294,967,296"]),
    "huge rank": ({"lora_rank": 99_999_999}, ["lora_rank=99999999", "below 65,537"]),
    "huge group": ({"group_size": 999_999_999}, ["group_size=999999999", "1,000,000"]),
    "huge pack": ({"pack_size": 999_999_999}, ["pack_size=999999999", "below 10,000"]),
    "name of the folder above": ({"name": ".."}, ["name='..'"]),
    "name of this folder": ({"name": "."}, ["name='.'"]),
    "path as name": ({"name": "a/b"}, ["name='a/b'", "slashes"]),
    "absolute path as name": ({"name": "/a"}, ["name='/a'", "slashes"]),
    "name of two lines": ({"name": "a\nb"}, ["name='a\\nb'", "line breaks"]),
    "Arabic digits": ({"steps": "٤٢"}, ["steps", "٤٢"]),
    "Arabic digits in a rate": ({"lr": "٠.١"}, ["lr", "٠.١"]),
    "full-width digits": ({"seed": "１"}, ["seed", "１"]),
    "underscores": ({"steps": "1_0"}, ["steps", "1_0"]),
    "underscores in a rate": ({"lr": "1_0.5"}, ["lr", "1_0.5"]),
    "flag with a slip": ({"lorarank": 3}, ["--lorarank", "did you mean --lora-rank?"]),
}


@pytest.mark.parametrize("changes, parts", BAD_SETTINGS.values(), ids=BAD_SETTINGS)
def test_bad_settings_end_in_one_line_that_names_them(changes, parts, tmp_path):
    assert_one_line(run_here(flags(output=tmp_path / "runs", **changes)), *parts)
    assert not (tmp_path / "runs").exists()


SETTINGS = {"train.py": Config, "eval.py": EvalConfig, "imitate.py": ImitateConfig}
NUMBERS = [
    pytest.param(settings, f, id=f"{script} {f.name}")
    for script, settings in SETTINGS.items()
    for f in dataclasses.fields(settings)
    if f.type in (int, float)
]


def refused(settings, field, value):
    """The message about a value of a field, which no command would take."""
    with pytest.raises(BadInput) as raised:
        check_bounds(settings(**{field.name: value}))
    assert str(raised.value).startswith(f"{field.name}=") and "\n" not in str(raised.value)
    return str(raised.value)


@pytest.mark.parametrize("settings, field", NUMBERS)
def test_every_number_has_bounds(settings, field):
    assert any(field.metadata["bounds"][end] is not None for end in ("at_least", "above"))
    check_bounds(settings())
    refused(settings, field, -1)
    if field.type is float:
        assert "finite" in refused(settings, field, math.inf) or "below" in refused(settings, field, math.inf)
        refused(settings, field, math.nan)
        refused(settings, field, -math.inf)


def test_the_numbers_include_those_of_every_command():
    """So that the test above cannot pass by finding none."""
    found = {(parameter.values[0], parameter.values[1].name) for parameter in NUMBERS}
    assert found >= {(Config, "lr"), (Config, "temperature"), (EvalConfig, "length_penalty"), (ImitateConfig, "lr")}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_a_bound_itself_is_taken_where_it_says_at_least(settings):
    for field in dataclasses.fields(settings):
        bounds = field.metadata["bounds"]
        if bounds["at_least"] is not None:
            check_bounds(settings(**{field.name: field.type(bounds["at_least"])}))
        elif bounds["above"] is not None:
            refused(settings, field, field.type(bounds["above"]))


def test_the_error_line_is_all_that_a_user_sees(start_process, tmp_path):
    process = start_process(flags(output=tmp_path / "runs", group_size=1))
    out, err = process.communicate()
    assert process.returncode == 1 and out == ""
    assert_one_line(err.removesuffix("\n"), "group_size=1")


def test_a_model_folder_that_does_not_exist(tmp_path):
    message = run_here(flags(output=tmp_path / "runs", model=tmp_path / "missing"))
    assert_one_line(message, f"model='{tmp_path / 'missing'}'")
    assert not (tmp_path / "runs").exists()


def test_a_model_folder_without_a_chat_template(tmp_path):
    model = Path(shutil.copytree(REPO / "embedded-policy", tmp_path / "no-template"))
    (model / "chat_template.jinja").unlink()
    assert_one_line(run_here(flags(output=tmp_path / "runs", model=model)), f"model='{model}'", "chat template")
    assert not (tmp_path / "runs").exists()


def test_a_tracker_that_is_not_installed(tmp_path, monkeypatch):
    real = processes.importlib.util.find_spec
    monkeypatch.setattr(
        processes.importlib.util, "find_spec", lambda name, *a: None if name == "wandb" else real(name, *a)
    )
    assert_one_line(run_here(flags(output=tmp_path / "runs", tracker="wandb")), "tracker='wandb'", "pip install wandb")
    assert not (tmp_path / "runs").exists()


def test_processes_that_do_not_know_of_each_other_are_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert_one_line(run_here(flags(output=tmp_path / "runs")), "WORLD_SIZE=2")
    assert not (tmp_path / "runs").exists()


def test_an_output_that_is_a_file(tmp_path):
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    assert_one_line(run_here(flags(output=tmp_path / "file")), f"output='{tmp_path / 'file'}'")
    assert (tmp_path / "file").read_text(encoding="utf-8") == "mine"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_an_output_that_cannot_be_written(tmp_path):
    tmp_path.chmod(0o555)
    assert_one_line(run_here(flags(output=tmp_path / "runs")), str(tmp_path / "runs"))
    tmp_path.chmod(0o755)


def test_replies_that_cannot_fit_into_the_model_are_refused_at_the_start(tmp_path):
    message = run_here(flags(output=tmp_path / "runs", max_reply_tokens=4000))
    assert_one_line(message, "max_reply_tokens=4000", "8192")
    most = int(re.search(r"at most (\d+) fit", message)[1])
    assert not (tmp_path / "runs").exists()
    policy = fresh_policy()
    check_window(policy, Config(max_reply_tokens=most))
    with pytest.raises(BadInput):
        check_window(policy, Config(max_reply_tokens=most + 1))


def test_optimisers_of_bitsandbytes_need_it(tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "bitsandbytes", None)
    message = run_here(flags(output=tmp_path / "runs", optimizer="adamw-8bit"))
    assert_one_line(message, "optimizer='adamw-8bit'", "pip install bitsandbytes")


# ---------------------------------------------------------------------------------------------------------
#  Files


def test_a_settings_file_with_an_unknown_key(tmp_path):
    (tmp_path / "settings.yaml").write_text("steps: 2\nlearning_rate: 1\n", encoding="utf-8")
    message = run_here([tmp_path / "settings.yaml", "--output", tmp_path / "runs"])
    assert_one_line(message, str(tmp_path / "settings.yaml"), "learning_rate")
    assert not (tmp_path / "runs").exists()


BAD_FILES = {
    "a key twice": ("steps: 2\nlr: 1\nsteps: 3\n", ["line 3", "'steps'", "second time"]),
    "a key twice, spelled otherwise": ("group-size: 2\ngroup_size: 3\n", ["line 2", "'group_size'", "second time"]),
    "a list": ("steps:\n  - 1\n", ["line 1"]),
    "settings within a setting": ("lr: 1\nsteps:\n  of: 1\n", ["line 2", "nothing within"]),
    "1,000 levels": ("steps: " + "[" * 1000 + "]" * 1000, ["nothing within"]),
    "1,000 levels of names": ("".join(" " * k + "a:\n" for k in range(1000)), ["nothing within"]),
    "no names": ("- steps\n", ["line 1", "settings by name"]),
    "no YAML": ("steps: 2\nlr: [1\nclip: none\n", ["line 3"]),
    "a tab": ("steps: 2\n\tlr: 1\n", ["line 2"]),
    "a slip": ("steps: 2\n\nlora_rnak: 1\n", ["line 3", "'lora_rnak'", "did you mean lora-rank?"]),
    "another language": ("steps: 2\nschritte: 1\n", ["line 2", "'schritte'", "choose from", "packs_per_step"]),
    "a character that YAML does not know": ("name: a\x00b\n", ["cannot be read"]),
}


@pytest.mark.parametrize("text, parts", BAD_FILES.values(), ids=BAD_FILES)
def test_a_bad_settings_file_ends_in_one_line_that_names_the_line(text, parts, tmp_path):
    (tmp_path / "s.yaml").write_text(text, encoding="utf-8")
    message = run_here([tmp_path / "s.yaml", "--output", tmp_path / "runs"])
    assert_one_line(message, str(tmp_path / "s.yaml"), *parts)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("text, changed", [
    ("name: no", {"name": "no"}),
    ("name: on", {"name": "on"}),
    ("name: 010", {"name": "010"}),
    ("name: 1e3", {"name": "1e3"}),
    ("name: 2024-01-02", {"name": "2024-01-02"}),
    ("name: 'null'", {"name": "null"}),
    ("name: null", {}),
    ("name: grün", {"name": "grün"}),
    ("steps: 010", {"steps": 10}),
    ("seed: 0x10", None),
    ("lr: 1e-3", {"lr": 0.001}),
    ("rebalance: no", {"rebalance": False}),
    ('{"name": "010", "steps": 3, "rebalance": false}', {"name": "010", "steps": 3, "rebalance": False}),
])  # fmt: skip
def test_values_are_taken_as_they_are_written(text, changed, tmp_path):
    (tmp_path / "s.yaml").write_text(text, encoding="utf-8")
    if changed is None:
        with pytest.raises(BadInput, match="seed.*0x10"):
            parse_flags(Config, [str(tmp_path / "s.yaml")])
    else:
        assert parse_flags(Config, [str(tmp_path / "s.yaml")]) == Config(**changed)


def test_settings_files_give_the_values_and_flags_win(tmp_path):
    (tmp_path / "settings.yaml").write_text(
        "steps: 2\nlr: 1e-3\nrebalance: false\nclip: none\nname: other\n", encoding="utf-8"
    )
    config = parse_flags(Config, [str(tmp_path / "settings.yaml"), "--steps", "3", "--seed", "5"])
    assert config == Config(steps=3, lr=1e-3, rebalance=False, clip="none", name="other", seed=5)


# ---------------------------------------------------------------------------------------------------------
# Paths


def test_paths_are_stored_whole(model_folder, tmp_path, monkeypatch):
    (tmp_path / "model").symlink_to(model_folder)
    (tmp_path / "mine.py").touch()
    monkeypatch.chdir(tmp_path)
    whole = with_whole_paths(Config(model="model", env="./mine.py"))
    assert whole == Config(model=str(model_folder.resolve()), env=str((tmp_path / "mine.py").resolve()))
    assert with_whole_paths(whole) == whole
    names = Config(model="some/hub-name", env="frozenlake")
    assert with_whole_paths(names) == names


def test_a_model_in_the_repository_stays_relative_to_it(tmp_path, monkeypatch):
    for folder, model in (
        (tmp_path, REPO / "embedded-policy"),
        (REPO / "configs", "../embedded-policy"),
        (REPO, "embedded-policy"),
    ):
        monkeypatch.chdir(folder)
        assert with_whole_paths(Config(model=str(model))) == Config(model="embedded-policy")


def test_a_run_with_a_relative_model_goes_on_and_is_evaluated_from_another_folder(tmp_path, monkeypatch):
    here, there = tmp_path / "here", tmp_path / "there"
    shutil.copytree(REPO / "embedded-policy", here / "model")
    there.mkdir()
    monkeypatch.chdir(here)
    argv = flags(output="runs", name="a", model="model", steps=1, eval_every=0)
    assert run_until(argv, "evaluate", 2, kill) == "killed"
    monkeypatch.chdir(there)
    assert run_here(["--resume", here / "runs" / "a"]) == 0
    assert run_here(["--policy", here / "runs" / "a", "--packs", 2, "--output", there], evaluation.main) == 0
    assert [path.name for path in here.iterdir() if path.name != "model"] == ["runs"]
