"""train.py: the same numbers again, also after every kind of interruption; clear errors; the step; the run folder.

Most runs happen in this process. An interruption is then an exception that nothing in the scripts catches, raised at a
chosen call, so that no clean-up runs: what is left on disk is what `kill -9` would leave there.
"""

import copy
import dataclasses
import inspect
import json
import math
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from unittest import mock

import accelerate
import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from doubles import REPO
from peft import load_peft_weights

import check
import eval as evaluation
import grpo
import journal
import train
from batches import pad_batch
from context import HINT_HEADING, NO_HINT_AVAILABLE, NO_HINTS_YET, parse_update
from engine.errors import BadInput
from engine.policy import Policy
from environments.frozenlake.players import LakeRandom
from envs import ENVS, make_pack, players
from models import Lora, add_adapter, load_model
from rollout import Episode, play, run
from train import Config, assign_advantages, collect, divergence, learning_rate_factor, optimise

README = REPO / "README.md"
SMALL = {
    "steps": 4,
    "packs_per_step": 2,
    "group_size": 2,
    "pack_size": 2,
    "test_packs": 4,
    "eval_packs": 4,
    "max_reply_tokens": 16,
    "eval_every": 2,
    "checkpoint_every": 1,
}
# the settings of the runs that are interrupted: dropout draws from the global random state, which must be restored too
EVENTFUL = {
    "steps": 5,
    "updates_per_batch": 2,
    "lora_dropout": 0.1,
    "warmup_steps": 2,
    "checkpoint_every": 2,
    "sample_every": 2,
}
TWO = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]  # two processes
STEP_KEYS = {
    "step", "success", "reward", "zero_variance", "broken_format", "broken_hint", "truncated", "turns", "reply_tokens",
    "hint_tokens", "episode_tokens", "tokens_sampled", "loss", "grad_norm", "lr", "clipped",
    "log_ratio_abs", "log_ratio_max", "entropy", "kl", "time_rollout", "time_train", "tokens_trained",
    "tokens_forward", "skipped", "memory_rollout", "memory_train", "speed_rollout", "speed_train",
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Sums must be taken in the same order here and in the processes that tests start."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with mock.patch.dict(os.environ, OMP_NUM_THREADS="1"):
        yield
    torch.set_num_threads(threads)


# ---------------------------------------------------------------------------------------------------------
# Helpers


def flags(**changes):
    return [text for key, value in {**SMALL, **changes}.items() for text in (f"--{key}", str(value))]


def run_here(argv, main=train.main):
    """Run a script's main in this process; its exit code (a string is a message on standard error and means 1)."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with mock.patch.object(sys, "argv", ["script.py", *map(str, argv)]):
            train.command_line(main)
        return 0
    except SystemExit as stop:
        return stop.code
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


@pytest.fixture
def start_process():
    """Starts train.py as a process of its own, which does not outlive the test."""
    started = []

    def start(argv, launcher=(), **options):
        command = [sys.executable, *launcher, REPO / "train.py", *map(str, argv)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        started.append(subprocess.Popen(command, cwd=REPO, **pipes, **options))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


class Killed(BaseException):
    """Like kill -9: no `except Exception` sees it."""


def kill():
    raise Killed


def send(number):
    return lambda: os.kill(os.getpid(), number)


def send_twice(number):
    def both():
        for _ in range(2):
            os.kill(os.getpid(), number)
            time.sleep(0.01)

    return both


def run_until(argv, function, call, act, owner=None):
    """Run train.py in this process and act just before the given call of a function; "killed" or the exit code."""
    owner = owner or (journal if function == "evaluate" else train)
    real, calls = getattr(owner, function), []

    def wrapper(*args, **kwargs):
        calls.append(function)
        if len(calls) == call:
            act()
        return real(*args, **kwargs)

    with mock.patch.object(owner, function, wrapper):
        try:
            code = run_here(argv)
        except Killed:
            code = "killed"
    assert len(calls) >= call, f"{function} was called {len(calls)} times only"
    return code


def metrics(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def steps_of(run):
    return [line for line in metrics(run) if "eval" not in line]


def without_times(lines):
    timings = ("time_", "speed_", "memory_")
    return [{key: value for key, value in line.items() if not key.startswith(timings)} for line in lines]


def weights_file(folder):
    return folder / "adapter" / "adapter_model.safetensors"


def samples(run):
    return {path.name: path.read_text() for path in (run / "samples").iterdir()}


def saved_steps(run):
    return [folder.name for folder in journal.checkpoints(run)]


def assert_same_run(run, other):
    assert without_times(metrics(run)) == without_times(metrics(other))
    assert weights_file(run).read_bytes() == weights_file(other).read_bytes()
    assert samples(run) == samples(other)


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def plain(output):
    """A finished run."""
    assert run_here(flags(output=output, name="plain")) == 0
    return output / "plain"


@pytest.fixture(scope="module")
def eventful(output):
    """A finished run that nothing interrupted, to compare interrupted ones with."""
    assert run_here(flags(**EVENTFUL, output=output, name="eventful")) == 0
    return output / "eventful"


@pytest.fixture(scope="module")
def unfinished(output):
    """The same run, killed in its last step, with the checkpoints of steps 2 and 4."""
    assert run_until(flags(**EVENTFUL, output=output, name="unfinished"), "optimise", 5, kill) == "killed"
    return output / "unfinished"


@pytest.fixture
def broken(unfinished, tmp_path):
    """A copy of the unfinished run, to be damaged."""
    return Path(shutil.copytree(unfinished, tmp_path / "broken"))


# ---------------------------------------------------------------------------------------------------------
# The same numbers again


def test_same_command_and_seed_give_the_same_numbers(plain, tmp_path):
    assert run_here(flags(output=tmp_path, name="again")) == 0
    assert_same_run(tmp_path / "again", plain)


def test_another_seed_gives_other_numbers(plain, tmp_path):
    assert run_here(flags(output=tmp_path, name="other", steps=1, seed=1)) == 0
    assert steps_of(tmp_path / "other")[0]["loss"] != steps_of(plain)[0]["loss"]
    assert steps_of(tmp_path / "other")[0]["entropy"] != steps_of(plain)[0]["entropy"]


def test_memory_and_checkpoint_settings_do_not_change_which_packs_are_played(plain, tmp_path):
    assert run_here(flags(output=tmp_path, name="a", steps=1, tokens_per_microbatch=1, checkpoint_every=9)) == 0
    first, other = steps_of(plain)[0], steps_of(tmp_path / "a")[0]
    assert [other[key] for key in ("success", "turns", "tokens_sampled")] == [
        first[key] for key in ("success", "turns", "tokens_sampled")
    ]
    assert other["grad_norm"] == pytest.approx(first["grad_norm"], abs=1e-6)


# ---------------------------------------------------------------------------------------------------------
# Interrupted == uninterrupted. A checkpoint follows steps 2, 4 and 5.

INTERRUPTIONS = {
    "in the first evaluation": [("evaluate", 1, kill)],
    "before the first checkpoint": [("rollout_metrics", 2, kill)],
    "with a step logged that no checkpoint has": [("collect", 4, kill)],
    "before a step is logged": [("step_line", 4, kill), ("step_line", 1, kill)],
    "before a checkpoint is written": [("save_checkpoint", 2, kill)],
    "in the evaluation after training": [("evaluate", 5, kill)],
    "by Ctrl-C": [("assign_advantages", 3, send(signal.SIGINT)), ("assign_advantages", 1, send(signal.SIGTERM))],
    "by Ctrl-C twice": [("assign_advantages", 3, send_twice(signal.SIGINT))],
}


@pytest.mark.parametrize("moments", INTERRUPTIONS.values(), ids=INTERRUPTIONS)
def test_a_run_that_was_interrupted_ends_like_one_that_was_not(moments, eventful, tmp_path):
    run = tmp_path / "a"
    argv = flags(**EVENTFUL, output=tmp_path, name="a")
    for function, call, act in moments:
        assert run_until(argv, function, call, act) == ("killed" if act is kill else 130)
        argv = ["--resume", run]
    assert not (run / "adapter").exists()
    assert run_here(argv) == 0
    assert_same_run(run, eventful)
    assert saved_steps(run) == ["step_000004", "step_000005"]


def test_a_run_that_was_killed_while_it_wrote_a_checkpoint_goes_on_from_the_one_before(eventful, tmp_path):
    run = tmp_path / "a"
    real = Accelerator.save_state

    def save_and_die_at_step_4(self, folder, **options):
        real(self, folder, **options)
        if folder.endswith("4"):
            raise Killed

    with mock.patch.object(Accelerator, "save_state", save_and_die_at_step_4), pytest.raises(Killed):
        run_here(flags(**EVENTFUL, output=tmp_path, name="a"))
    assert (run / "checkpoints" / ".tmp-step_000004" / "optimizer.bin").exists()
    assert saved_steps(run) == ["step_000002"]
    assert run_here(["--resume", run]) == 0
    assert_same_run(run, eventful)
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["step_000004", "step_000005"]


def test_ctrl_c_saves_the_step_under_way_and_says_how_to_go_on(tmp_path, capsys):
    argv = flags(output=tmp_path, name="a", checkpoint_every=100)
    assert run_until(argv, "assign_advantages", 3, send(signal.SIGINT)) == 130
    assert saved_steps(tmp_path / "a") == ["step_000003"]
    assert f"--resume {tmp_path / 'a'}" in capsys.readouterr().out


def test_ctrl_c_during_validation_saves_the_step_before_it(tmp_path):
    settings = {"checkpoint_every": 100, "output": tmp_path}
    assert run_here(flags(**settings, name="whole")) == 0
    assert run_until(flags(**settings, name="a"), "evaluate", 2, send(signal.SIGINT)) == 130
    assert saved_steps(tmp_path / "a") == ["step_000002"]
    assert run_here(["--resume", tmp_path / "a"]) == 0
    assert_same_run(tmp_path / "a", tmp_path / "whole")


def test_ctrl_c_before_the_first_step_leaves_a_run_that_can_be_resumed(plain, tmp_path):
    assert run_until(flags(output=tmp_path, name="a"), "evaluate", 1, send(signal.SIGINT)) == 130
    assert saved_steps(tmp_path / "a") == []
    assert run_here(["--resume", tmp_path / "a"]) == 0
    assert_same_run(tmp_path / "a", plain)


@pytest.mark.parametrize("call", [3, 4, 5])
def test_ctrl_c_during_the_last_evaluations_stops_at_once(call, plain, tmp_path, capsys):
    assert run_until(flags(output=tmp_path, name="a"), "evaluate", call, send(signal.SIGINT)) == 130
    assert f"--resume {tmp_path / 'a'}" in capsys.readouterr().out
    assert saved_steps(tmp_path / "a") == ["step_000003", "step_000004"]
    assert run_here(["--resume", tmp_path / "a"]) == 0
    assert_same_run(tmp_path / "a", plain)


def test_a_second_ctrl_c_stops_at_once(tmp_path):
    argv = flags(output=tmp_path, name="a", checkpoint_every=100)
    assert run_until(argv, "assign_advantages", 3, send_twice(signal.SIGINT)) == 130
    assert [line["step"] for line in steps_of(tmp_path / "a")] == [1, 2]
    assert saved_steps(tmp_path / "a") == []


def test_a_finished_run_can_be_resumed_and_stays_the_same(plain, tmp_path):
    run = Path(shutil.copytree(plain, tmp_path / "a"))
    assert run_here(["--resume", run]) == 0
    assert_same_run(run, plain)


def wait_for(process, happened):
    """Look every millisecond; False if the process ends first."""
    while process.poll() is None:
        if happened():
            return True
        time.sleep(0.001)
    return False


def test_real_processes_killed_at_random_moments_lose_nothing(start_process, tmp_path):
    settings = {**EVENTFUL, "steps": 14, "checkpoint_every": 1, "eval_every": 5}
    assert run_here(flags(**settings, output=tmp_path, name="whole")) == 0
    run = tmp_path / "a"
    log = run / "metrics.jsonl"
    rng = random.Random(0)

    def writing_a_checkpoint():
        return any(run.glob("checkpoints/.tmp-step_*"))

    process = start_process(flags(**settings, output=tmp_path, name="a"))
    assert wait_for(process, lambda: log.exists() and log.read_text())  # evaluated, but no checkpoint yet
    process.kill()
    assert process.wait() == -signal.SIGKILL

    process = start_process(["--resume", run])
    if wait_for(process, lambda: len(saved_steps(run)) > 1) and wait_for(process, writing_a_checkpoint):
        process.kill()
    assert process.wait() == -signal.SIGKILL  # a checkpoint takes long enough to be seen; there were ten to come
    assert saved_steps(run)

    process = start_process(["--resume", run])
    newest = saved_steps(run)[-1]
    assert wait_for(process, lambda: saved_steps(run)[-1] > newest)
    time.sleep(rng.uniform(0, 0.3))
    process.send_signal(signal.SIGINT)
    out, err = process.communicate()
    assert process.returncode == 130, err
    assert "stopped after step" in out

    assert run_here(["--resume", run]) == 0
    assert_same_run(run, tmp_path / "whole")


def test_two_processes_train_together_and_can_be_resumed(start_process, tmp_path):
    process = start_process(flags(output=tmp_path, name="whole", steps=2, lora_dropout=0.1, eval_every=0), TWO)
    _, err = process.communicate()
    assert process.returncode == 0, err
    whole = tmp_path / "whole"
    assert len(list(whole.glob("checkpoints/step_000001/random_states_*.pkl"))) == 2
    again = Path(shutil.copytree(whole, tmp_path / "again"))
    shutil.rmtree(again / "checkpoints" / "step_000002")
    shutil.rmtree(again / "adapter")
    process = start_process(["--resume", again], TWO)
    _, err = process.communicate()
    assert process.returncode == 0, err
    assert_same_run(again, whole)


def first_gradient(run):
    """The gradient of the first step, from the first moment in its checkpoint (AdamW's is 0.1 times the gradient)."""
    state = torch.load(run / "checkpoints" / "step_000001" / "optimizer.bin", weights_only=True)["state"]
    return torch.cat([state[k]["exp_avg"].flatten() for k in sorted(state)]) / 0.1


def test_two_processes_make_the_update_that_one_makes(start_process, tmp_path):
    argv = flags(output=tmp_path, steps=1, packs_per_step=4, group_size=4, max_reply_tokens=64, grad_clip=1e9)
    argv += ["--test-packs", 5]  # shares of different sizes
    process = start_process([*argv, "--name", "two"], TWO)
    _, err = process.communicate()
    assert process.returncode == 0, err
    assert run_here([*argv, "--name", "one"]) == 0
    one, two = tmp_path / "one", tmp_path / "two"
    assert first_gradient(one).abs().max() > 1e-4
    torch.testing.assert_close(first_gradient(two), first_gradient(one), atol=1e-5, rtol=0)
    for line, other in zip(without_times(metrics(two)), without_times(metrics(one)), strict=True):
        if "eval" not in line:
            assert line.keys() == other.keys()
            assert all(line[name] == pytest.approx(other[name], abs=1e-5) for name in line)
        elif line["eval"]["label"] != "random":  # which draws from one stream for all its packs
            assert line == other


def test_a_process_that_fails_ends_the_job_with_its_message(tmp_path):
    script = tmp_path / "fails.py"
    script.write_text(
        f"import sys; sys.path.insert(0, {str(REPO)!r})\n"
        "import train\n"
        "def collect(policy, config, step, rank, ranks):\n"
        "    if rank == 1: raise train.BadInput('the second process has failed')\n"
        "    return real(policy, config, step, rank, ranks)\n"
        "real, train.collect = train.collect, collect\n"
        "train.command_line(train.main)\n"
    )
    command = [sys.executable, *TWO, script, *map(str, flags(output=tmp_path / "runs"))]
    result = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert result.returncode != 0
    assert "error: the second process has failed" in result.stderr


# ---------------------------------------------------------------------------------------------------------
# Checkpoints that cannot be written or read


def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before(start_process, eventful, broken):
    files = broken / "checkpoints" / "step_000004"
    limit = (weights_file(files).stat().st_size + (files / "optimizer.bin").stat().st_size) // 2
    process = start_process(
        ["--resume", broken], preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    )
    _, err = process.communicate()
    assert process.returncode == 1
    assert re.fullmatch(r"error: .*step_000005: .* could not be written .*step_000004 is kept.*--resume .*\n", err), err
    assert sorted(path.name for path in (broken / "checkpoints").iterdir()) == ["step_000002", "step_000004"]
    assert run_here(["--resume", broken]) == 0
    assert_same_run(broken, eventful)


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


DAMAGES = {
    "truncated adapter": lambda folder: truncate(weights_file(folder)),
    "truncated optimiser": lambda folder: truncate(folder / "optimizer.bin"),
    "empty optimiser": lambda folder: (folder / "optimizer.bin").write_bytes(b""),
    "missing optimiser": lambda folder: (folder / "optimizer.bin").unlink(),
    "truncated random states": lambda folder: truncate(folder / "random_states_0.pkl"),
    "missing random states": lambda folder: (folder / "random_states_0.pkl").unlink(),
    "broken state.json": lambda folder: (folder / "state.json").write_text('{"step": 4, '),
    "state.json without a step": lambda folder: (folder / "state.json").write_text("{}"),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_checkpoint_is_named_and_nothing_else_is_touched(damage, broken):
    newest = broken / "checkpoints" / "step_000004"
    damage(newest)
    before = (broken / "metrics.jsonl").read_text()
    message = run_here(["--resume", broken])
    assert isinstance(message, str), "the run went on as if nothing were wrong"
    assert_one_line(message, str(newest), "cannot be read", "delete it")
    assert (broken / "metrics.jsonl").read_text() == before


def test_without_the_damaged_checkpoint_the_run_goes_on_from_the_older_one(eventful, broken):
    truncate(broken / "checkpoints" / "step_000004" / "optimizer.bin")
    assert isinstance(run_here(["--resume", broken]), str)
    shutil.rmtree(broken / "checkpoints" / "step_000004")
    assert run_here(["--resume", broken]) == 0
    assert_same_run(broken, eventful)


def test_metrics_that_are_shorter_than_the_checkpoint_says_are_refused(broken):
    lines = (broken / "metrics.jsonl").read_text().splitlines(keepends=True)
    (broken / "metrics.jsonl").write_text("".join(lines[:2]))
    assert_one_line(run_here(["--resume", broken]), "metrics.jsonl", "2 lines")


def test_only_the_last_two_checkpoints_are_kept(plain):
    assert sorted(path.name for path in (plain / "checkpoints").iterdir()) == ["step_000003", "step_000004"]


# ---------------------------------------------------------------------------------------------------------
# Settings that cannot work: one line, nothing created


def assert_one_line(message, *parts):
    assert isinstance(message, str) and message.startswith("error: ") and "\n" not in message, message
    for part in parts:
        assert part in message, message


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


def test_the_check_of_the_embedded_policy_finds_all_well(tmp_path, capsys):
    assert run_here(flags(output=tmp_path / "runs", max_reply_tokens=64, check=True)) == 0
    out = capsys.readouterr().out
    lines = out.splitlines()[-7:]
    assert all(line.startswith("OK ") for line in lines), lines
    green = re.findall("\033\\[32m(.*?)\033\\[0m", out, re.DOTALL)
    assert green and all(text.endswith("<|end|>") and "<answer>" in text for text in green)
    assert not (tmp_path / "runs").exists()


def test_the_check_says_what_is_wrong_with_a_model_that_knows_nothing(model_folder, tmp_path, capsys):
    message = run_here(flags(output=tmp_path / "runs", model=model_folder, check=True, max_reply_tokens=2))
    assert_one_line(message, "2 of 7 checks")
    bad = [line for line in capsys.readouterr().out.splitlines() if line.startswith("BAD ")]
    assert ["replies end" in line or "replies can be read" in line for line in bad] == [True, True]
    assert all("imitate.py" in line for line in bad)


def wrong_logprobs(policy, ids, mask, *shared):
    logp, entropy = right_logprobs(policy, ids, mask, *shared)
    return logp - 0.3 * mask, entropy


def padded_logprobs(policy, ids, mask, *shared):
    logp, entropy = right_logprobs(policy, ids, mask, *shared)
    return logp + 0.3 * mask * (len(ids) > 1), entropy


def unshared_logprobs(policy, ids, mask, shared=0):
    logp, entropy = right_logprobs(policy, ids, mask, shared)
    return logp + 0.3 * mask * (shared > 0), entropy


def detached_logprobs(policy, ids, mask, *shared):
    logp, entropy = right_logprobs(policy, ids, mask, *shared)
    return logp.detach() + 0 * logp, entropy


right_logprobs = Policy.logprobs


@pytest.mark.parametrize("wrong, named", [
    (wrong_logprobs, "no sampler fits"),
    (padded_logprobs, "no sampler fits"),
    (unshared_logprobs, "sampler and trainer agree"),
    (detached_logprobs, "a gradient reaches the adapter"),
])  # fmt: skip
def test_a_run_whose_trainer_is_wrong_does_not_start(wrong, named, tmp_path, monkeypatch):
    monkeypatch.setattr(Policy, "logprobs", wrong)
    assert_one_line(run_here(flags(output=tmp_path / "runs")), named)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("wrong", [padded_logprobs, unshared_logprobs])
def test_a_batch_that_is_read_otherwise_is_found(wrong, monkeypatch):
    policy = fresh_policy()
    episodes = check.play_a_little(policy, Config().pack(0), 1)
    monkeypatch.setattr(Policy, "logprobs", wrong)
    problems = [finding.name for finding in check.check_numbers(policy, episodes) if finding.problem]
    assert any(name.startswith("padding and ") for name in problems)


def test_the_check_leaves_no_trace():
    """Neither in the global random state (dropout draws from it) nor in gradients."""
    config = dataclasses.replace(PLAYED, lora_dropout=0.5)
    policy = fresh_policy(config)
    before = torch.get_rng_state()
    check.short_check(policy, config.pack(0))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(parameter.grad is None for parameter in policy.model.parameters())


def test_tokens_that_were_not_sampled_are_found():
    policy = fresh_policy()
    episodes = check.play_a_little(policy, Config().pack(0), 1)
    assert not any(finding.problem for finding in check.check_replies(policy, episodes))
    episodes[0].mask[0] = True
    assert check.check_replies(policy, episodes)[0].problem


def test_a_tracker_that_is_not_installed(tmp_path, monkeypatch):
    real = train.importlib.util.find_spec
    monkeypatch.setattr(train.importlib.util, "find_spec", lambda name, *a: None if name == "wandb" else real(name, *a))
    assert_one_line(run_here(flags(output=tmp_path / "runs", tracker="wandb")), "tracker='wandb'", "pip install wandb")
    assert not (tmp_path / "runs").exists()


class Tracker(accelerate.tracking.GeneralTracker):
    """Writes what it is told into its folder, as accelerate's tracker for tensorboard does."""

    name, requires_logging_directory, main_process_only = "tensorboard", True, True

    def __init__(self, run_name, logging_dir):
        super().__init__()
        self.file = Path(logging_dir) / "tracked.jsonl"

    tracker = None

    def start(self):
        self.store_init_configuration({})

    def store_init_configuration(self, values):
        self.settings = values

    def log(self, values, step):
        with self.file.open("a") as file:
            file.write(json.dumps([step, values]) + "\n")


def test_a_tracker_gets_every_number_of_steps_and_evaluations(tmp_path, monkeypatch):
    real = train.importlib.util.find_spec
    monkeypatch.setattr(train.importlib.util, "find_spec", lambda name, *a: name == "tensorboard" or real(name, *a))
    monkeypatch.setattr(
        accelerate.tracking, "get_available_trackers", lambda: [accelerate.utils.LoggerType.TENSORBOARD]
    )
    monkeypatch.setitem(accelerate.tracking.LOGGER_TYPE_TO_CLASS, "tensorboard", Tracker)
    monkeypatch.setattr(accelerate.accelerator, "LOGGER_TYPE_TO_CLASS", {"tensorboard": Tracker})
    assert run_here(flags(output=tmp_path, name="a", steps=2, eval_every=1, tracker="tensorboard")) == 0
    lines = [json.loads(line) for line in (tmp_path / "a" / "tracked.jsonl").read_text().splitlines()]
    logged = metrics(tmp_path / "a")
    assert [step for step, _ in lines] == [line["step"] for line in logged]
    for (_, values), line in zip(lines, logged, strict=True):
        if "eval" in line:
            record = line["eval"]
            label = record["label"]
            assert values[f"{label}/success/1"] == record["success"][1] and values[f"{label}/packs"] == record["packs"]
        else:
            assert values["success/1"] == line["success"][1] and values["loss"] == line["loss"]
        assert all(isinstance(value, (int, float)) for value in values.values())


def test_processes_that_do_not_know_of_each_other_are_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert_one_line(run_here(flags(output=tmp_path / "runs")), "WORLD_SIZE=2")
    assert not (tmp_path / "runs").exists()


def test_a_model_that_never_keeps_the_format_is_pointed_out(model_folder, tmp_path, capsys):
    assert run_here(flags(output=tmp_path, model=model_folder, steps=1)) == 0
    assert "nothing to learn from" in capsys.readouterr().out


def test_an_output_that_is_a_file(tmp_path):
    (tmp_path / "file").write_text("mine")
    assert_one_line(run_here(flags(output=tmp_path / "file")), f"output='{tmp_path / 'file'}'")
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_an_output_that_cannot_be_written(tmp_path):
    tmp_path.chmod(0o555)
    assert_one_line(run_here(flags(output=tmp_path / "runs")), str(tmp_path / "runs"))
    tmp_path.chmod(0o755)


def test_a_settings_file_with_an_unknown_key(tmp_path):
    (tmp_path / "settings.yaml").write_text("steps: 2\nlearning_rate: 1\n")
    message = run_here([tmp_path / "settings.yaml", "--output", tmp_path / "runs"])
    assert_one_line(message, str(tmp_path / "settings.yaml"), "learning_rate")
    assert not (tmp_path / "runs").exists()


def test_settings_files_give_the_values_and_flags_win(tmp_path):
    (tmp_path / "settings.yaml").write_text("steps: 2\nlr: 1e-3\nrebalance: false\nclip: none\nname: other\n")
    config = train.parse_flags(Config, [str(tmp_path / "settings.yaml"), "--steps", "3", "--seed", "5"])
    assert config == Config(steps=3, lr=1e-3, rebalance=False, clip="none", name="other", seed=5)


# ---------------------------------------------------------------------------------------------------------
# Run folders


def test_resume_of_a_folder_that_is_no_run(tmp_path):
    assert_one_line(run_here(["--resume", tmp_path / "missing"]), f"resume='{tmp_path / 'missing'}'", "not a run")
    assert not (tmp_path / "missing").exists()


@pytest.mark.parametrize("flag, value", [("--lora-rank", 4), ("--pack-size", 3), ("--seed", 1), ("--name", "b")])
def test_resume_does_not_take_flags_that_make_another_run(flag, value, unfinished):
    before = (unfinished / "metrics.jsonl").read_text()
    named = f"{flag[2:].replace('-', '_')}={value!r}"
    assert_one_line(run_here(["--resume", unfinished, flag, value]), named, str(unfinished), "steps, lr")
    assert (unfinished / "metrics.jsonl").read_text() == before


def test_a_finished_run_can_go_on_for_longer(tmp_path):
    """With a constant learning rate, four steps and four more are eight."""
    settings = {"lr_schedule": "constant", "output": tmp_path}
    assert run_here(flags(**settings, name="whole", steps=8)) == 0
    assert run_here(flags(**settings, name="a", steps=4)) == 0
    assert run_here(["--resume", tmp_path / "a", "--steps", 8]) == 0
    whole, run = without_times(metrics(tmp_path / "whole")), without_times(metrics(tmp_path / "a"))
    assert [line for line in run if "eval" not in line] == [line for line in whole if "eval" not in line]
    assert [line for line in run if "eval" in line][-4:] == [line for line in whole if "eval" in line][-4:]
    assert json.loads((tmp_path / "a" / "config.json").read_text())["steps"] == 8


def test_the_learning_rate_may_change_when_a_run_goes_on(eventful, broken):
    assert run_here(["--resume", broken, "--lr", 1e-4]) == 0
    old, new = ([line["lr"] for line in steps_of(run)] for run in (eventful, broken))
    assert new[:4] == old[:4] and new[4] == pytest.approx(old[4] * 1e-4 / 5e-3)
    assert json.loads((broken / "config.json").read_text())["lr"] == 1e-4


BROKEN_CONFIGS = ['{"steps": 5', "[]", '{"no_such_setting": 1}', "", '{"steps": "many"}', '{"rebalance": 7}']


@pytest.mark.parametrize("text", BROKEN_CONFIGS)
def test_resume_with_a_broken_config(text, broken):
    (broken / "config.json").write_text(text)
    assert_one_line(run_here(["--resume", broken]), str(broken / "config.json"))


def test_a_name_that_is_taken(plain):
    before = (plain / "metrics.jsonl").read_text()
    message = run_here(flags(output=plain.parent, name="plain"))
    assert_one_line(message, "name='plain'", str(plain), "--resume")
    assert (plain / "metrics.jsonl").read_text() == before


def test_runs_without_a_name_are_numbered(tmp_path):
    config = Config(output=str(tmp_path), seed=1)
    accelerator = Accelerator(cpu=True)
    (tmp_path / "frozenlake-tiny-seed10").mkdir()
    names = [journal.open_run(config, accelerator).name for _ in range(3)]
    assert names == ["frozenlake-tiny-seed1", "frozenlake-tiny-seed1-2", "frozenlake-tiny-seed1-3"]


def test_config_json_gives_the_settings_back(eventful):
    settings = {**SMALL, **EVENTFUL, "output": str(eventful.parent), "name": "eventful"}
    assert Config(**json.loads((eventful / "config.json").read_text())) == Config(**settings)
    assert train.parse_flags(Config, [str(eventful / "config.json")]) == Config(**settings)


def test_metrics_have_the_documented_keys_and_evaluations(plain):
    for line in steps_of(plain):
        assert set(line) >= STEP_KEYS
        assert all(math.isfinite(x) for value in line.values() for x in (value if type(value) is list else [value]))
        assert len(line["success"]) == len(line["reward"]) == len(line["zero_variance"]) == SMALL["pack_size"]
        assert line["tokens_sampled"] > 0
    assert [line["step"] for line in steps_of(plain)] == [1, 2, 3, 4]
    evaluations = [(line["step"], line["eval"]["label"]) for line in metrics(plain) if "eval" in line]
    assert evaluations[:4] == [
        (0, "before training"),
        (2, "validation"),
        (4, "after training"),
        (4, "after, hints blanked"),
    ]
    assert {label for _, label in evaluations[4:]} == set(players("frozenlake"))


def test_the_learning_rate_that_is_logged_follows_the_schedule(eventful):
    factors = [0.5, 1.0, 1.0, 2 / 3, 1 / 3]  # two steps of warm-up, then linear towards 0 after step 5
    assert [line["lr"] for line in steps_of(eventful)] == pytest.approx([5e-3 * factor for factor in factors])


def test_the_picture_and_the_samples(plain, eventful):
    assert (plain / "curves.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert list(samples(plain)) == ["step_000001.txt"]
    assert set(samples(eventful)) == {"step_000001.txt", "step_000002.txt", "step_000004.txt"}
    text = samples(plain)["step_000001.txt"]
    first, update, second = re.split(r"===== position \d, \w+: reward .* =====", text)[1:]
    assert f"{HINT_HEADING}\n{NO_HINTS_YET}" in first
    hint, _ = parse_update(update.split("[assistant]\n")[1])
    assert f"{HINT_HEADING}\n{hint}" in second


def test_a_hint_that_a_policy_wrote_is_shown_in_the_next_task(played):
    rollouts = [rollout for group in played for rollout in group]
    hints = [rollout.of("update")[0].context for rollout in rollouts]
    assert any(hint not in (NO_HINT_AVAILABLE, NO_HINTS_YET) for hint in hints)
    for rollout, hint in zip(rollouts, hints, strict=True):
        second = journal.as_text(rollout).split("===== position 1, solve")[1]
        assert f"{HINT_HEADING}\n{hint}\n" in second


@pytest.mark.parametrize("context, label", [("own", "after training"), ("none", "after, hints blanked")])
def test_eval_of_the_run_repeats_the_evaluation_after_training(context, label, plain, tmp_path):
    argv = ["--policy", plain, "--packs", SMALL["test_packs"], "--context", context, "--output", tmp_path]
    assert run_here(argv, evaluation.main) == 0
    record = json.loads((tmp_path / "eval.json").read_text())["records"][0]
    [logged] = [line["eval"] for line in metrics(plain) if line.get("eval", {}).get("label") == label]
    assert record | {"label": label, "env": "frozenlake/tiny"} == logged


def test_validation_and_test_packs_are_not_the_same(tmp_path):
    seeds = {}

    def evaluate(policy, label, packs, *rest):
        seeds[label] = {pack.seed for pack in packs}
        return real(policy, label, packs, *rest)

    real = journal.evaluate
    with mock.patch.object(journal, "evaluate", evaluate):
        assert run_here(flags(output=tmp_path, name="a", steps=2, eval_every=1, test_packs=2, eval_packs=3)) == 0
    validation = seeds.pop("validation")
    assert len(validation) == 3 and min(validation) >= journal.VALIDATION_SEEDS
    assert set(map(frozenset, seeds.values())) == {frozenset(range(2))}


def test_the_adapter_that_is_saved_is_the_one_that_was_trained(plain):
    policy = evaluation.load_policy(evaluation.EvalConfig(str(plain)))
    saved = load_peft_weights(str(plain / "checkpoints" / "step_000004" / "adapter"))
    loaded = {name: weights for name, weights in policy.model.state_dict().items() if "lora_" in name}
    assert {name.replace(".default", ""): weights.tolist() for name, weights in loaded.items()} == {
        name: weights.tolist() for name, weights in saved.items()
    }
    assert any("lora_B" in name and weights.any() for name, weights in loaded.items())


# ---------------------------------------------------------------------------------------------------------
# Groups and advantages

PLAYED = Config(packs_per_step=4, group_size=4, pack_size=3, max_reply_tokens=64)


def fresh_policy(config=PLAYED):
    set_seed(config.seed)
    model, tokenizer = load_model(config.model)
    model = add_adapter(model, Lora(config.lora_rank, config.lora_alpha, config.lora_dropout))
    return Policy(model, tokenizer, config.temperature, config.max_reply_tokens)


@pytest.fixture(scope="module")
def played():
    """One step's rollouts, [packs][G]; not to be changed."""
    return collect(fresh_policy(), PLAYED, 0, 0, 1)


@pytest.fixture
def groups(played):
    return copy.deepcopy(played)


class Repeat:
    """A policy that gives the replies of a rollout again."""

    def __init__(self, rollout):
        self.replies = [reply for episode in rollout.episodes for reply in episode.replies]

    def reply(self, episodes):
        return [(episode, self.replies.pop(0)) for episode in episodes]


def first_observations(rollout):
    return [episode.messages[1]["content"] for episode in rollout.of("solve")]


def test_rollouts_of_a_group_meet_the_same_tasks_and_groups_different_ones(played):
    assert [len(group) for group in played] == [4] * 4
    for group in played:
        assert len({rollout.pack_seed for rollout in group}) == 1
        for rollout in group:
            assert first_observations(rollout) == first_observations(group[0])
            assert len(rollout.of("solve")) == 3 and len(rollout.of("update")) == 2
        assert len({tuple(episode.ids) for rollout in group for episode in rollout.of("solve")[:1]}) > 1
    assert len({group[0].pack_seed for group in played}) == 4
    assert len({tuple(first_observations(group[0])) for group in played}) == 4


def test_what_a_rollout_sees_depends_on_its_own_replies_only(played):
    for group in played:
        for rollout in group:
            game = play(make_pack(PLAYED.env, rollout.pack_seed, PLAYED.pack_size, PLAYED.level), PLAYED.penalties)
            [alone] = run([game], Repeat(rollout))
            for episode, again in zip(rollout.episodes, alone.episodes, strict=True):
                assert (episode.kind, episode.position, episode.messages) == (
                    again.kind,
                    again.position,
                    again.messages,
                )
                assert (episode.outcome, episode.reward) == (again.outcome, again.reward)


def test_every_step_and_seed_has_packs_of_its_own_that_no_evaluation_uses():
    config = dataclasses.replace(PLAYED, packs_per_step=2, group_size=2, pack_size=1, max_reply_tokens=1)
    policy = fresh_policy(config)
    seeds = [
        group[0].pack_seed
        for seed, step in ((0, 0), (0, 1), (1, 0))
        for group in collect(policy, dataclasses.replace(config, seed=seed), step, 0, 1)
    ]
    assert len(set(seeds)) == 6
    assert min(seeds) >= journal.TRAIN_SEEDS > journal.VALIDATION_SEEDS + 10**6


def test_every_rollout_of_every_step_and_seed_has_random_numbers_of_its_own():
    config = dataclasses.replace(PLAYED, packs_per_step=2, group_size=2, pack_size=2, max_reply_tokens=1)
    policy = fresh_policy(config)
    noise = [
        episode.noise
        for seed, step in ((0, 0), (0, 1), (1, 0))
        for group in collect(policy, dataclasses.replace(config, seed=seed), step, 0, 1)
        for rollout in group
        for episode in rollout.episodes
    ]
    assert len(noise) == len(set(noise)) == 3 * 2 * 2 * 3


def test_processes_share_a_step_and_play_what_one_would(played):
    policy = fresh_policy()
    shared = [group for rank in (0, 1) for group in collect(policy, PLAYED, 0, rank, 2)]
    for group, expected in zip(shared, played, strict=True):
        for rollout, other in zip(group, expected, strict=True):
            assert rollout.pack_seed == other.pack_seed
            assert [episode.ids for episode in rollout.episodes] == [episode.ids for episode in other.episodes]


def test_ralph_packs_repeat_one_task():
    config = dataclasses.replace(PLAYED, ralph=True, packs_per_step=1, group_size=2, max_reply_tokens=8)
    for rollout in collect(fresh_policy(config), config, 0, 0, 1)[0]:
        assert len(set(first_observations(rollout))) == 1


def plain_return(own, later, config):
    """The return of one episode: its own reward, then those of the tasks after it."""
    terms = [own, *later]
    if config.credit == "discount":
        return sum(config.gamma**k * term for k, term in enumerate(terms))
    if config.credit == "window":
        terms = terms[: config.window]
    return sum(terms) / len(terms)


def plain_advantage(group, g, episode, config):
    """The advantage of an episode of rollout g, with lists and loops."""
    returns = []
    for rollout in group:
        rewards = [e.reward for e in rollout.of("solve")]
        own = rollout.of(episode.kind)[episode.position].reward
        later = rewards[episode.position + 1 :]
        returns.append(sum(rewards) if config.credit == "sum" else plain_return(own, later, config))
    return returns[g] - sum(returns) / len(returns)


@pytest.mark.parametrize("credit", ["mean", "window", "discount", "sum"])
def test_advantages_follow_the_formulas_and_cancel_over_a_group(credit, groups):
    config = dataclasses.replace(PLAYED, credit=credit, rebalance=False)
    groups[0][1].of("update")[1].reward = -0.1
    groups[1][2].of("solve")[2].reward = 0.5
    assign_advantages(groups, config, Accelerator(cpu=True))
    for group in groups:
        for g, rollout in enumerate(group):
            for episode in rollout.episodes:
                assert episode.advantage == pytest.approx(plain_advantage(group, g, episode, config), abs=1e-6)
        for kind, count in (("solve", 3), ("update", 2)):
            for j in range(count):
                assert sum(rollout.of(kind)[j].advantage for rollout in group) == pytest.approx(0, abs=1e-6)
    assert any(episode.advantage > 0.01 for group in groups for rollout in group for episode in rollout.episodes)


class Process:
    """Stands in for the accelerator of one of several processes; `rows` are what each process brings to `gather`."""

    device = torch.device("cpu")

    def __init__(self, process_index, rows=()):
        self.process_index, self.rows = process_index, rows

    def gather(self, own):
        assert torch.equal(own, self.rows[self.process_index])
        return torch.cat(list(self.rows))


def test_the_batch_is_rebalanced_as_a_whole_over_all_processes(groups):
    unweighted = dataclasses.replace(PLAYED, rebalance=False)
    episodes = assign_advantages(groups, unweighted, Accelerator(cpu=True))
    longer = 5 * max(episode.n_sampled for episode in episodes)
    for episode in episodes:
        if episode.advantage < 0:  # so that the token-weighted sum is negative
            episode.add([0] * longer, [0.0] * longer)
    rows = torch.tensor([[episode.advantage, episode.n_sampled] for episode in episodes])  # [N, 2]
    assert (rows[:, 0] * rows[:, 1]).sum() < 0
    expected = train.rebalance(rows[:, 0], rows[:, 1]).tolist()

    alone = [episode.advantage for episode in assign_advantages(copy.deepcopy(groups), PLAYED, Accelerator(cpu=True))]
    assert alone == pytest.approx(expected, abs=1e-6)
    assert alone != pytest.approx(rows[:, 0].tolist(), abs=1e-6)
    together = []
    for index, share in enumerate((groups[:2], groups[2:])):
        together += assign_advantages(copy.deepcopy(share), PLAYED, Process(index, rows.chunk(2)))
    assert [episode.advantage for episode in together] == pytest.approx(expected, abs=1e-6)


# ---------------------------------------------------------------------------------------------------------
# The optimiser step


def trained_weights(policy):
    return torch.cat(
        [parameter.detach().flatten() for parameter in policy.model.parameters() if parameter.requires_grad]
    )


def plain_descent(policy):
    """An optimiser whose step is minus the gradient, so that weights show it."""
    return torch.optim.SGD([p for p in policy.model.parameters() if p.requires_grad], lr=1.0)


def shake(policy, size=0.05):
    """Move the adapter away from its start, where half of its gradient is zero."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in policy.model.parameters():
            if parameter.requires_grad:
                parameter += size * torch.randn(parameter.shape, generator=generator)


def log_probability(policy, episode):
    policy.model.eval()
    with torch.no_grad():
        ids, mask, _ = pad_batch([episode], "cpu")
        return policy.logprobs(ids, mask)[0].sum().item()


def watched_loss(record):
    """policy_loss that also appends its (log-probabilities, reference, metrics), at sampled positions, to `record`."""

    def loss(logp, old_logp, advantages, mask, n_tokens, clip, eps, importance, ref_logp, kl_coef):
        result = real(logp, old_logp, advantages, mask, n_tokens, clip, eps, importance, ref_logp, kl_coef)
        ref = None if ref_logp is None else ref_logp[mask]
        record.append((logp[mask].detach(), ref, {k: v.item() for k, v in result[1].items()}))
        return result

    real = train.policy_loss
    return mock.patch.object(train, "policy_loss", loss)


@pytest.mark.parametrize("kl_coef", [0.0, 0.1])
def test_the_gradient_does_not_depend_on_micro_batches(kl_coef, groups):
    outcomes = []
    for budget in (1, 700, 10**6):
        config = dataclasses.replace(PLAYED, tokens_per_microbatch=budget, grad_clip=1e9, kl_coef=kl_coef)
        policy = fresh_policy(config)
        shake(policy)
        before = trained_weights(policy)
        episodes = assign_advantages(groups, config, Accelerator(cpu=True))
        means = optimise(policy, plain_descent(policy), episodes, config, Accelerator(cpu=True), 0)
        outcomes.append((before - trained_weights(policy), means))
    for gradient, means in outcomes[1:]:
        assert torch.allclose(gradient, outcomes[0][0], atol=1e-6, rtol=0)
        assert means == pytest.approx(outcomes[0][1], abs=1e-5)
    assert outcomes[0][0].norm().item() == pytest.approx(outcomes[0][1]["grad_norm"], rel=1e-3)
    assert outcomes[0][0].abs().max() > 1e-4


def test_episodes_without_advantage_are_left_out_and_the_gradient_stays(groups):
    policy = fresh_policy()
    shake(policy)
    before = trained_weights(policy)
    episodes = assign_advantages(groups, PLAYED, Accelerator(cpu=True))
    for episode in episodes[::2]:
        episode.advantage = 0.0
    ids, mask, _ = pad_batch(episodes, "cpu")  # all of them, in one pass
    policy.model.train()
    logp, entropy = policy.logprobs(ids, mask)  # [B, T] each
    loss = -(torch.tensor([[e.advantage] for e in episodes]) * logp.where(mask, 0.0)).sum() / mask.sum()
    parameters = [p for p in policy.model.parameters() if p.requires_grad]
    expected = torch.cat([gradient.flatten() for gradient in torch.autograd.grad(loss, parameters)])

    config = dataclasses.replace(PLAYED, grad_clip=1e9, clip="none")
    means = optimise(policy, plain_descent(policy), episodes, config, Accelerator(cpu=True), 0)
    assert torch.allclose(before - trained_weights(policy), expected, atol=1e-6, rtol=0) and expected.abs().max() > 1e-4
    assert means["loss"] == pytest.approx(loss.item(), abs=1e-6)
    kept = [row for row, episode in enumerate(episodes) if episode.advantage != 0]
    assert 0 < len(kept) < len(episodes)
    assert means["tokens_trained"] == mask[kept].sum().item()
    assert means["tokens_forward"] == sum(len(episodes[row].ids) for row in kept)
    assert means["entropy"] == pytest.approx((entropy * mask)[kept].sum().item() / mask[kept].sum().item(), abs=1e-4)


@pytest.mark.parametrize("kl_coef", [0.0, 0.1])
def test_episodes_in_which_nothing_was_sampled_are_left_out(kl_coef, groups):
    """A prompt that is longer than the model can read leaves one."""
    config = dataclasses.replace(PLAYED, grad_clip=1e9, kl_coef=kl_coef)
    outcomes = []
    for more in (0, 3):
        policy = fresh_policy(config)
        shake(policy)
        before = trained_weights(policy)
        episodes = assign_advantages(groups, PLAYED, Accelerator(cpu=True))
        episodes += [Episode("solve", 0, [], "", advantage=1.0) for _ in range(more)]
        apart = divergence(policy, episodes, config, Accelerator(cpu=True))
        means = optimise(policy, plain_descent(policy), episodes, config, Accelerator(cpu=True), 0)
        outcomes.append((before - trained_weights(policy), means, apart))
    assert torch.equal(outcomes[0][0], outcomes[1][0]) and outcomes[0][0].abs().max() > 1e-4
    assert outcomes[0][1:] == outcomes[1][1:]


def test_a_batch_in_which_nothing_was_sampled_changes_nothing():
    policy = fresh_policy()
    before = trained_weights(policy)
    episodes = [Episode("solve", 0, [], "") for _ in range(4)]
    means = optimise(policy, plain_descent(policy), episodes, PLAYED, Accelerator(cpu=True), 0)
    assert torch.equal(trained_weights(policy), before) and means["tokens_trained"] == 0
    assert divergence(policy, episodes, PLAYED, Accelerator(cpu=True)) == 0


def test_without_any_advantage_all_episodes_are_measured_and_nothing_is_learnt(groups):
    policy = fresh_policy()
    before = trained_weights(policy)
    episodes = assign_advantages(groups, PLAYED, Accelerator(cpu=True))
    for episode in episodes:
        episode.advantage = 0.0
    means = optimise(policy, plain_descent(policy), episodes, PLAYED, Accelerator(cpu=True), 0)
    assert torch.equal(trained_weights(policy), before)
    assert means["tokens_trained"] == sum(episode.n_sampled for episode in episodes) and means["entropy"] > 0


@pytest.mark.parametrize("sign", [1, -1])
def test_a_step_moves_the_probability_of_an_episode_towards_its_advantage(sign, groups):
    episodes = [episode for group in groups for rollout in group for episode in rollout.episodes]
    chosen = max(episodes, key=lambda episode: episode.n_sampled)
    chosen.advantage = float(sign)
    policy = fresh_policy()
    before = log_probability(policy, chosen)
    optimiser = torch.optim.AdamW([p for p in policy.model.parameters() if p.requires_grad], lr=1e-3)
    optimise(policy, optimiser, episodes, PLAYED, Accelerator(cpu=True), 0)
    assert sign * (log_probability(policy, chosen) - before) > 1e-3


def test_the_gradient_is_clipped(groups):
    config = dataclasses.replace(PLAYED, grad_clip=1e-3)
    policy = fresh_policy(config)
    before = trained_weights(policy)
    episodes = assign_advantages(groups, config, Accelerator(cpu=True))
    norm = optimise(policy, plain_descent(policy), episodes, config, Accelerator(cpu=True), 0)["grad_norm"]
    assert norm > 2e-3  # as it was before
    assert (trained_weights(policy) - before).norm().item() == pytest.approx(1e-3, rel=1e-3)


def test_only_the_adapter_changes(groups):
    policy = fresh_policy()
    before = {name: weights.clone() for name, weights in policy.model.state_dict().items()}
    accelerator = Accelerator(cpu=True)
    episodes = assign_advantages(groups, PLAYED, accelerator)
    optimise(policy, plain_descent(policy), episodes, PLAYED, accelerator, 0)
    changed = {name for name, weights in policy.model.state_dict().items() if not torch.equal(weights, before[name])}
    assert changed and all("lora_" in name for name in changed)
    assert all(parameter.grad is None or not parameter.grad.any() for parameter in policy.model.parameters())


def test_the_sampler_and_the_trainer_agree_until_the_first_step(groups):
    config = dataclasses.replace(PLAYED, updates_per_batch=2)
    policy = fresh_policy(config)
    optimiser = plain_descent(policy)
    record = []
    optimiser.register_step_post_hook(lambda *_: record.append("step"))
    episodes = assign_advantages(groups, config, Accelerator(cpu=True))
    with watched_loss(record):
        means = optimise(policy, optimiser, episodes, config, Accelerator(cpu=True), 0)
    assert record.count("step") == 2 and record[-1] == "step"
    first, second = record[: record.index("step")], record[record.index("step") + 1 : -1]
    assert max(part[2]["log_ratio_max"] for part in first) < 1e-4
    assert max(part[2]["log_ratio_max"] for part in second) > 1e-3
    assert means["log_ratio_max"] == max(part[2]["log_ratio_max"] for part in first + second)
    trained = [len(part[0]) for part in first + second]
    assert sum(trained) == sum(episode.n_sampled for episode in episodes)  # each episode once
    alone = optimise(fresh_policy(), optimiser, episodes, PLAYED, Accelerator(cpu=True), 0)
    assert alone["log_ratio_abs"] < 1e-5 and alone["clipped"] == 0


def test_dropout_is_for_training_only():
    config = dataclasses.replace(PLAYED, lora_dropout=0.5, packs_per_step=1, group_size=2)
    policy = fresh_policy(config)
    shake(policy)
    groups = collect(policy, config, 0, 0, 1)
    for episode in groups[0][0].episodes:
        assert log_probability(policy, episode) == pytest.approx(sum(episode.logps), abs=1e-3)
    episodes = assign_advantages(groups, config, Accelerator(cpu=True))
    assert optimise(policy, plain_descent(policy), episodes, config, Accelerator(cpu=True), 0)["log_ratio_abs"] > 1e-3


def test_the_settings_of_the_model_and_the_optimiser_reach_them():
    config = Config(
        temperature=0.7, max_reply_tokens=9, lora_rank=4, lora_alpha=12, lora_dropout=0.25, lr=1e-3, weight_decay=0.1
    )
    policy, optimiser = train.build(config, Accelerator(cpu=True))
    assert (policy.temperature, policy.max_reply_tokens) == (0.7, 9)
    adapter = policy.model.peft_config["default"]
    assert (adapter.r, adapter.lora_alpha, adapter.lora_dropout) == (4, 12, 0.25)
    [group] = optimiser.param_groups
    assert (group["lr"], group["weight_decay"]) == (1e-3, 0.1)
    assert len(group["params"]) == sum(parameter.requires_grad for parameter in policy.model.parameters()) > 0


def test_the_settings_of_the_loss_reach_it(groups):
    config = dataclasses.replace(PLAYED, clip="two-side", clip_eps=0.15, importance=True, kl_coef=0.25)
    policy = fresh_policy(config)
    episodes = assign_advantages(groups, config, Accelerator(cpu=True))
    with mock.patch.object(train, "policy_loss", wraps=train.policy_loss) as loss:
        optimise(policy, plain_descent(policy), episodes, config, Accelerator(cpu=True), 0)
    for call in loss.call_args_list:
        given = inspect.signature(grpo.policy_loss).bind(*call.args, **call.kwargs).arguments
        settings = {name: given[name] for name in ("n_tokens", "clip", "eps", "importance", "kl_coef")}
        n_tokens = sum(episode.n_sampled for episode in episodes)
        assert settings == {"n_tokens": n_tokens, "clip": "two-side", "eps": 0.15, "importance": True, "kl_coef": 0.25}


def test_the_reference_is_the_model_without_its_adapter(groups):
    config = dataclasses.replace(PLAYED, temperature=0.7, kl_coef=0.1)
    policy = fresh_policy(config)
    [episode, *_] = assign_advantages(groups, config, Accelerator(cpu=True))
    base, _ = load_model(config.model)
    ids = torch.tensor([episode.ids])  # [1, T]
    with torch.no_grad():
        all_logp = (base(input_ids=ids).logits[0, :-1].float() / config.temperature).log_softmax(dim=-1)  # [T-1, V]
    expected = all_logp.gather(1, ids[0, 1:, None])[:, 0][torch.tensor(episode.mask[1:])]  # [n]
    record = []
    with watched_loss(record):
        fresh = optimise(policy, plain_descent(policy), [episode], config, Accelerator(cpu=True), 0)
        shake(policy)
        shaken = optimise(policy, plain_descent(policy), [episode], config, Accelerator(cpu=True), 1)
    for _, reference, _ in record:
        assert torch.allclose(reference, expected, atol=1e-4)
    assert torch.allclose(record[0][0], expected, atol=1e-4)  # a fresh adapter changes nothing
    assert fresh["kl"] == pytest.approx(0, abs=1e-9)
    moved = record[1][0]
    assert shaken["kl"] == pytest.approx((0.5 * (moved - expected) ** 2).mean().item(), rel=1e-2)
    assert shaken["kl"] > 1e-4


def test_the_divergence_from_the_reference_grows_from_zero_in_training(tmp_path):
    assert run_here(flags(output=tmp_path, name="a", kl_coef=0.01, steps=3)) == 0
    first, *later = [line["kl"] for line in steps_of(tmp_path / "a")]
    assert first == pytest.approx(0, abs=1e-9)
    assert later[-1] > 1e-6


def test_more_updates_than_episodes_leave_some_without_any(groups):
    episodes = assign_advantages(groups, PLAYED, Accelerator(cpu=True))[:2]
    config = dataclasses.replace(PLAYED, updates_per_batch=3)
    policy = fresh_policy(config)
    record = []
    with watched_loss(record):
        means = optimise(policy, plain_descent(policy), episodes, config, Accelerator(cpu=True), 0)
    assert all(math.isfinite(value) for value in means.values())
    assert sum(len(part[0]) for part in record) == sum(episode.n_sampled for episode in episodes)


def test_an_update_without_a_finite_gradient_is_left_out_and_counted(groups):
    episodes = assign_advantages(groups, PLAYED, Accelerator(cpu=True))
    episodes[0].advantage = math.inf
    policy = fresh_policy()
    before = trained_weights(policy)
    assert optimise(policy, plain_descent(policy), episodes, PLAYED, Accelerator(cpu=True), 7)["skipped"] == 1
    assert torch.equal(trained_weights(policy), before)
    episodes[0].advantage = 1.0
    assert optimise(policy, plain_descent(policy), episodes, PLAYED, Accelerator(cpu=True), 7)["skipped"] == 0
    assert not torch.equal(trained_weights(policy), before)


def bad_gradients(monkeypatch, steps):
    """The advantages of these steps (from 0) are not numbers."""
    real, calls = train.assign_advantages, []

    def assign(*arguments):
        episodes = real(*arguments)
        calls.append(0)
        if len(calls) - 1 in steps:
            episodes[0].advantage = math.inf
        return episodes

    monkeypatch.setattr(train, "assign_advantages", assign)


def test_three_steps_in_a_row_without_a_finite_gradient_end_the_run(tmp_path, monkeypatch):
    bad_gradients(monkeypatch, {1, 3, 4, 5})
    message = run_here(flags(output=tmp_path, name="a", steps=8, eval_every=0))
    assert_one_line(message, "three steps in a row", f"--resume {tmp_path / 'a'}", "--lr")
    assert [line["skipped"] for line in steps_of(tmp_path / "a")] == [0, 1, 0, 1, 1, 1]
    assert steps_of(tmp_path / "a")[1]["loss"] is None
    saved = load_peft_weights(str(tmp_path / "a" / "checkpoints" / saved_steps(tmp_path / "a")[-1] / "adapter"))
    assert all(weights.isfinite().all() for weights in saved.values())
    monkeypatch.undo()
    assert run_here(["--resume", tmp_path / "a", "--lr", 1e-4]) == 0


@pytest.mark.parametrize("function, named", [
    ("collect", ["rollout", "--kv-tokens"]),
    ("optimise", ["train", "--tokens-per-microbatch"]),
    ("evaluate", ["evaluation", "--kv-tokens"]),
])  # fmt: skip
def test_out_of_memory_names_the_phase_and_what_to_lower(function, named, tmp_path, monkeypatch):
    def fail(*arguments, **options):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")

    monkeypatch.setattr(journal if function == "evaluate" else train, function, fail)
    assert_one_line(run_here(flags(output=tmp_path, name="a")), "out of memory in", *named)


def test_replies_that_cannot_fit_into_the_model_are_refused_at_the_start(tmp_path):
    message = run_here(flags(output=tmp_path / "runs", max_reply_tokens=4000))
    assert_one_line(message, "max_reply_tokens=4000", "8192")
    most = int(re.search(r"at most (\d+) fit", message)[1])
    assert not (tmp_path / "runs").exists()
    policy = fresh_policy()
    train.check_window(policy, Config(max_reply_tokens=most))
    with pytest.raises(BadInput):
        train.check_window(policy, Config(max_reply_tokens=most + 1))


@pytest.mark.parametrize("optimizer", ["adamw-8bit", "paged-adamw-8bit"])
def test_optimisers_of_bitsandbytes_train_and_resume_exactly(optimizer, tmp_path):
    argv = flags(output=tmp_path, optimizer=optimizer, eval_every=0)
    assert run_here([*argv, "--name", "whole"]) == 0
    assert run_until([*argv, "--name", "a"], "optimise", 3, kill) == "killed"
    assert run_here(["--resume", tmp_path / "a"]) == 0
    assert_same_run(tmp_path / "a", tmp_path / "whole")
    assert steps_of(tmp_path / "a")[-1]["kl"] > 0


def test_optimisers_of_bitsandbytes_need_it(tmp_path, monkeypatch):
    monkeypatch.setattr(train, "bitsandbytes", None)
    message = run_here(flags(output=tmp_path / "runs", optimizer="adamw-8bit"))
    assert_one_line(message, "optimizer='adamw-8bit'", "pip install bitsandbytes")


def test_gradient_checkpointing_changes_memory_only(groups):
    gradients = []
    for setting in ("off", "on"):
        config = dataclasses.replace(PLAYED, gradient_checkpointing=setting, grad_clip=1e9)
        policy, _ = train.build(config, Accelerator(cpu=True))
        shake(policy)
        assert policy.decoder.gradient_checkpointing == (setting == "on")
        before = trained_weights(policy)
        episodes = assign_advantages(copy.deepcopy(groups), config, Accelerator(cpu=True))
        optimise(policy, plain_descent(policy), episodes, config, Accelerator(cpu=True), 0)
        gradients.append(before - trained_weights(policy))
    assert gradients[0].abs().max() > 1e-4
    assert torch.allclose(*gradients, atol=1e-6, rtol=0)


def test_the_divergence_is_that_from_the_model_without_its_adapter(groups):
    policy = fresh_policy()
    episodes = assign_advantages(groups, PLAYED, Accelerator(cpu=True))
    assert train.divergence(policy, episodes, PLAYED, Accelerator(cpu=True)) == pytest.approx(0, abs=1e-9)
    for episode in episodes:
        episode.logps = [logp - 0.5 * sampled for logp, sampled in zip(episode.logps, episode.mask, strict=True)]
    assert train.divergence(policy, episodes, PLAYED, Accelerator(cpu=True)) == pytest.approx(0.125, abs=1e-3)
    shake(policy)  # the adapter of now does not matter
    assert train.divergence(policy, episodes, PLAYED, Accelerator(cpu=True)) == pytest.approx(0.125, abs=1e-3)


def test_layers_with_an_adapter_can_be_chosen(tmp_path):
    policy, _ = train.build(Config(lora_targets="q_proj,v_proj"), Accelerator(cpu=True))
    adapted = {
        name.split(".lora_")[0].rsplit(".")[-1] for name, _ in policy.model.named_parameters() if "lora_" in name
    }
    assert adapted == {"q_proj", "v_proj"}
    message = run_here(flags(output=tmp_path / "runs", lora_targets="nothing"))
    assert_one_line(message, "lora_targets='nothing'")


@pytest.mark.parametrize(
    "schedule, warmup_steps, expected",
    [
        ("constant", 0, [1, 1, 1, 1, 1]),
        ("constant", 2, [0.5, 1, 1, 1, 1]),
        ("linear", 0, [1, 0.8, 0.6, 0.4, 0.2]),
        ("linear", 3, [1 / 3, 2 / 3, 1, 1, 0.5]),
        ("cosine", 0, [(1 + math.cos(math.pi * x)) / 2 for x in (0, 0.2, 0.4, 0.6, 0.8)]),
        ("cosine", 1, [1, 1, 0.5 + math.sqrt(0.5) / 2, 0.5, 0.5 - math.sqrt(0.5) / 2]),
    ],
)
def test_learning_rate_by_hand(schedule, warmup_steps, expected):
    config = Config(steps=5, lr_schedule=schedule, warmup_steps=warmup_steps)
    assert [learning_rate_factor(step, config) for step in range(5)] == pytest.approx(expected)


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_no_step_is_wasted_on_a_learning_rate_of_zero(schedule):
    for steps in (1, 2, 7):
        for warmup_steps in range(10):
            config = Config(steps=steps, lr_schedule=schedule, warmup_steps=warmup_steps)
            assert all(0 < learning_rate_factor(step, config) <= 1 for step in range(steps))


# ---------------------------------------------------------------------------------------------------------
# What the README promises

needs_readme = pytest.mark.skipif(not README.exists(), reason="there is no README.md yet")


def named_blocks():
    """file name -> text of the fenced Python blocks of the README whose first line is a comment with a file name."""
    blocks = re.findall(r"^```python\n(.*?)^```", README.read_text(), re.DOTALL | re.MULTILINE)
    named = [(re.match(r"# (\w+\.py)\b", block), block) for block in blocks]
    return {match.group(1): block for match, block in named if match}


# ---------------------------------------------------------------------------------------------------------
# Several environments


def test_packs_take_turns_by_the_shares_of_their_environments():
    config = Config(envs="frozenlake/tiny=2, frozenlake/hard,frozenlake=1", pack_size=3)
    assert config.worlds == [("frozenlake", "tiny"), ("frozenlake", "hard"), ("frozenlake", "train")]
    packs = [config.pack(seed) for seed in range(4 * 10**9, 4 * 10**9 + 12)]
    assert Counter(pack.level for pack in packs) == {"tiny": 6, "hard": 3, "train": 3}
    assert [pack.level for pack in packs[:4]] == [pack.level for pack in packs[4:8]]
    assert all(len(pack.tasks) == 3 and pack.seed == 4 * 10**9 + i for i, pack in enumerate(packs))
    assert config.pack(5, ("frozenlake", "hard")).level == "hard"


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    output = tmp_path_factory.mktemp("mixed")
    changes = {"envs": "frozenlake/tiny=2,frozenlake/train=1", "packs_per_step": 3, "steps": 2, "output": output}
    assert run_here(flags(**changes)) == 0
    return output / "mixed-seed0"


def test_a_mixed_run_reports_every_environment_by_itself(mixed):
    for line in steps_of(mixed):
        for name in ("success", "reward", "zero_variance"):
            tiny, train_level, all_packs = (line[f"{name}{of}"] for of in ("/frozenlake/tiny", "/frozenlake/train", ""))
            assert len(tiny) == len(train_level) == 2
            # two of three packs are tiny
            assert all_packs == pytest.approx([(2 * a + b) / 3 for a, b in zip(tiny, train_level, strict=True)])
    evaluations = [line["eval"] for line in metrics(mixed) if "eval" in line]
    labels = {"before training", "after training", "after, hints blanked", *players("frozenlake")}
    for env in ("frozenlake/tiny", "frozenlake/train"):
        assert {record["label"] for record in evaluations if record["env"] == env} == labels
        assert (mixed / f"curves-{env.replace('/', '-')}.png").stat().st_size > 10_000
    tiny, train_level = (
        [record["success"] for record in evaluations if (record["env"], record["label"]) == (env, "learner")]
        for env in ("frozenlake/tiny", "frozenlake/train")
    )
    assert tiny != train_level


def test_every_environment_can_be_trained_on(tmp_path):
    """All of them at once. The embedded policy cannot play them, so there may be nothing to learn from; but it runs."""
    envs = ",".join(f"{env}/{level}" for env, kind in ENVS.items() for level in kind.levels)
    sizes = {"steps": 2, "packs_per_step": 11, "test_packs": 1, "eval_every": 0, "max_reply_tokens": 24}
    assert run_here(flags(envs=envs, output=tmp_path, **sizes)) == 0
    run = tmp_path / "mixed-seed0"
    for line in steps_of(run):
        assert {name.removeprefix("success/") for name in line if name.startswith("success/")} == set(envs.split(","))
        assert math.isfinite(line["loss"]) and line["tokens_trained"] > 0
    assert len(list(run.glob("curves-*.png"))) == 11


def test_the_advantages_of_a_mixed_batch_are_those_of_each_group_alone():
    """A group is the rollouts of one pack, so environments with other rewards do not shift its baseline."""
    config = Config(
        envs="frozenlake/tiny,frozenlake/train", packs_per_step=2, group_size=3, pack_size=2, rebalance=False
    )
    games = [config.pack(seed) for seed in (0, 1)]
    rollouts = run([play(pack.fresh()) for pack in games for _ in range(3)], LakeRandom(0))
    groups = [rollouts[:3], rollouts[3:]]
    together = [e.advantage for e in assign_advantages(groups, config, Accelerator(cpu=True))]
    alone = [e.advantage for group in groups for e in assign_advantages([group], config, Accelerator(cpu=True))]
    assert together == alone and any(together)


def test_evaluation_of_a_mixed_run_takes_the_first_environment_unless_told(mixed, tmp_path):
    for options, level in (([], "tiny"), (["--level", "train"], "train")):
        argv = ["--policy", mixed, "--packs", 2, "--output", tmp_path, *options]
        assert run_here(argv, evaluation.main) == 0
        settings = json.loads((tmp_path / "eval.json").read_text())["config"]
        assert (settings["env"], settings["level"]) == ("frozenlake", level)


@needs_readme
def test_the_environment_of_the_readme_can_be_trained_on(tmp_path):
    """From another folder, by a path relative to that; the run then goes on and is evaluated from a third one."""
    for name, text in named_blocks().items():
        (tmp_path / name).write_text(text)
    assert len((tmp_path / "guess.py").read_text().splitlines()) < 60
    (tmp_path / "third").mkdir()
    argv = "--env ./guess.py --steps 2 --packs-per-step 1 --group-size 2 --pack-size 2 --test-packs 2 --eval-every 0"
    argv += " --max-reply-tokens 8 --output runs"
    run = tmp_path / "runs" / "guess-tiny-seed0"

    def call(script, folder, *options):
        command = [sys.executable, REPO / script, *options]
        result = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        return result.stdout

    assert "guess/tiny: success" in call("train.py", tmp_path, *argv.split(), "--model", REPO / "embedded-policy")
    assert json.loads((run / "config.json").read_text())["env"] == str(tmp_path / "guess.py")
    assert {line["eval"]["env"] for line in metrics(run) if "eval" in line} == {"guess/tiny"}
    assert len(steps_of(run)) == 2
    call("train.py", tmp_path / "third", "--resume", run)
    call("eval.py", tmp_path / "third", "--policy", run, "--packs", "2")
    [written] = (tmp_path / "third" / "eval").iterdir()
    assert written.name == "guess-tiny-seed0-on-guess-tiny-2"


@needs_readme
def test_the_readme_lists_every_flag_and_no_other():
    rows = re.findall(r"^\| *`--([\w-]+)` *\|", README.read_text(), re.MULTILINE)
    assert sorted(row.replace("-", "_") for row in rows) == sorted(field.name for field in dataclasses.fields(Config))


@needs_readme
def test_the_readme_explains_every_metric(plain):
    rows = re.findall(r"^\| *(`[^|]*`) *\|", README.read_text(), re.MULTILINE)
    explained = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    assert {key for line in steps_of(plain) for key in line} - {"step"} <= explained
