"""Training with several processes, and beside others: together, stopped, at work on one run."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from doubles import REPO
from training import TWO, assert_same_run, flags, metrics, run_here, without_times


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
        "from engine.errors import BadInput\n"
        "def collect(policy, config, step):\n"
        "    if train.processes.rank() == 1: raise BadInput('the second process has failed')\n"
        "    return real(policy, config, step)\n"
        "real, train.collect = train.collect, collect\n"
        "train.command_line(train.main)\n"
    )
    command = [sys.executable, *TWO, script, *map(str, flags(output=tmp_path / "runs"))]
    result = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert result.returncode != 0
    assert "error: the second process has failed" in result.stderr
