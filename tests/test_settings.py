"""Settings: from flags and files, and those that cannot work end in one line before anything is created."""

import os
import re
import shutil
from pathlib import Path

import pytest
from doubles import REPO
from training import assert_one_line, flags, fresh_policy, run_here

from engine import processes
from engine.build import check_window
from engine.command_line import parse_flags
from engine.errors import BadInput
from engine.settings import Config

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
    "group of one": ({"group_size": 1}, ["group_size=1", "at least 2", "baseline"]),
    "empty pack": ({"pack_size": 0}, ["pack_size=0", "at least 1"]),
    "unknown environment": ({"env": "moon"}, ["env='moon'", "frozenlake"]),
    "unknown level": ({"level": "easy"}, ["level='easy'", "tiny"]),
    "temperature 0": ({"temperature": 0}, ["temperature=0", "above 0"]),
    "dropout of everything": ({"lora_dropout": 1}, ["lora_dropout=1", "[0, 1)"]),
    "empty length range": ({"length_lo": 5, "length_hi": 5}, ["length_hi=5", "length_lo=5"]),
    "negative seed": ({"seed": -1}, ["seed=-1"]),
    "infinite weight decay": ({"weight_decay": "inf"}, ["weight_decay=inf", "finite"]),
    "infinite penalty": ({"length_penalty": "inf"}, ["length_penalty=inf", "finite"]),
    "penalty not a number": ({"hint_penalty": "nan"}, ["hint_penalty=nan"]),
    "endless length range": ({"length_hi": "inf"}, ["length_hi=inf", "finite"]),
    "more updates than episodes": ({"updates_per_batch": 13}, ["updates_per_batch=13", "12 episodes"]),
}


@pytest.mark.parametrize("changes, parts", BAD_SETTINGS.values(), ids=BAD_SETTINGS)
def test_bad_settings_end_in_one_line_that_names_them(changes, parts, tmp_path):
    assert_one_line(run_here(flags(output=tmp_path / "runs", **changes)), *parts)
    assert not (tmp_path / "runs").exists()


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
    (tmp_path / "file").write_text("mine")
    assert_one_line(run_here(flags(output=tmp_path / "file")), f"output='{tmp_path / 'file'}'")
    assert (tmp_path / "file").read_text() == "mine"


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
    (tmp_path / "settings.yaml").write_text("steps: 2\nlearning_rate: 1\n")
    message = run_here([tmp_path / "settings.yaml", "--output", tmp_path / "runs"])
    assert_one_line(message, str(tmp_path / "settings.yaml"), "learning_rate")
    assert not (tmp_path / "runs").exists()


def test_settings_files_give_the_values_and_flags_win(tmp_path):
    (tmp_path / "settings.yaml").write_text("steps: 2\nlr: 1e-3\nrebalance: false\nclip: none\nname: other\n")
    config = parse_flags(Config, [str(tmp_path / "settings.yaml"), "--steps", "3", "--seed", "5"])
    assert config == Config(steps=3, lr=1e-3, rebalance=False, clip="none", name="other", seed=5)
