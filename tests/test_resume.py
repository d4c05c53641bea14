"""Training: the same numbers again, also after every kind of interruption; checkpoints that are damaged."""

import json
import random
import shutil
import signal
import time
from pathlib import Path
from unittest import mock

import pytest
from accelerate import Accelerator
from training import (
    EVENTFUL,
    Killed,
    assert_one_line,
    assert_same_run,
    flags,
    kill,
    metrics,
    run_here,
    run_until,
    saved_steps,
    send,
    send_twice,
    steps_of,
    wait_for,
    without_times,
)

# ---------------------------------------------------------------------------------------------------------
#  The same numbers again


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
#  Interrupted == uninterrupted. A checkpoint follows steps 2, 4 and 5.


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


def test_real_processes_killed_at_random_moments_lose_nothing(start_process, tmp_path):
    settings = {**EVENTFUL, "steps": 10, "checkpoint_every": 1, "eval_every": 5}
    assert run_here(flags(**settings, output=tmp_path, name="whole")) == 0
    run = tmp_path / "a"
    log = run / "metrics.jsonl"
    rng = random.Random(0)

    def writing_a_checkpoint():
        return any(run.glob("checkpoints/.tmp-step_*"))

    process = start_process(flags(**settings, output=tmp_path, name="a"))
    assert wait_for(process, lambda: log.exists() and log.stat().st_size)  # evaluated, but no checkpoint yet
    process.kill()
    assert process.wait() == -signal.SIGKILL

    process = start_process(["--resume", run])
    if wait_for(process, lambda: len(saved_steps(run)) > 1) and wait_for(process, writing_a_checkpoint):
        process.kill()
    assert process.wait() == -signal.SIGKILL  # a checkpoint takes long enough to be seen; there were six to come
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


# ---------------------------------------------------------------------------------------------------------
#  Other settings when a run goes on


def test_resume_of_a_folder_that_is_no_run(tmp_path):
    assert_one_line(run_here(["--resume", tmp_path / "missing"]), f"resume='{tmp_path / 'missing'}'", "not a run")
    assert not (tmp_path / "missing").exists()


@pytest.mark.parametrize("flag, value", [("--lora-rank", 4), ("--pack-size", 3), ("--seed", 1), ("--name", "b")])
def test_resume_does_not_take_flags_that_make_another_run(flag, value, unfinished):
    before = (unfinished / "metrics.jsonl").read_text(encoding="utf-8")
    named = f"{flag[2:].replace('-', '_')}={value!r}"
    assert_one_line(run_here(["--resume", unfinished, flag, value]), named, str(unfinished), "steps, lr")
    assert (unfinished / "metrics.jsonl").read_text(encoding="utf-8") == before


def test_a_finished_run_can_go_on_for_longer(tmp_path):
    """With a constant learning rate, four steps and four more are eight."""
    settings = {"lr_schedule": "constant", "output": tmp_path}
    assert run_here(flags(**settings, name="whole", steps=8)) == 0
    assert run_here(flags(**settings, name="a", steps=4)) == 0
    assert run_here(["--resume", tmp_path / "a", "--steps", 8]) == 0
    whole, run = without_times(metrics(tmp_path / "whole")), without_times(metrics(tmp_path / "a"))
    assert [line for line in run if "eval" not in line] == [line for line in whole if "eval" not in line]
    assert [line for line in run if "eval" in line][-4:] == [line for line in whole if "eval" in line][-4:]
    assert json.loads((tmp_path / "a" / "config.json").read_text(encoding="utf-8"))["steps"] == 8


def test_the_learning_rate_may_change_when_a_run_goes_on(eventful, broken):
    assert run_here(["--resume", broken, "--lr", 1e-4]) == 0
    old, new = ([line["lr"] for line in steps_of(run)] for run in (eventful, broken))
    assert new[:4] == old[:4] and new[4] == pytest.approx(old[4] * 1e-4 / 5e-3)
    assert json.loads((broken / "config.json").read_text(encoding="utf-8"))["lr"] == 1e-4


BROKEN_CONFIGS = ['{"steps": 5', "[]", '{"no_such_setting": 1}', "", '{"steps": "many"}', '{"rebalance": 7}']


@pytest.mark.parametrize("text", BROKEN_CONFIGS)
def test_resume_with_a_broken_config(text, broken):
    (broken / "config.json").write_text(text, encoding="utf-8")
    assert_one_line(run_here(["--resume", broken]), str(broken / "config.json"))
