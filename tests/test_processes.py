"""Training with several processes, and beside others: together, stopped, at work on one run."""

import contextlib
import importlib
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import weakref
from pathlib import Path

import psutil
import pytest
import torch
from doubles import REPO
from training import (
    TWO,
    assert_one_line,
    assert_same_run,
    flags,
    metrics,
    run_here,
    run_until,
    saved_steps,
    send,
    steps_of,
    wait_for,
    without_times,
)

import record.files
import train
from engine import start
from engine.command_line import command_line
from engine.errors import BadInput
from engine.settings import Config
from record.files import new_folder


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
    settings = (again / "config.json").read_bytes()
    alone = run_here(["--resume", again, "--eval-packs", 3])
    assert_one_line(alone, "a run of 2 processes", "this one has 1", "accelerate launch --num_processes 2")
    assert (again / "config.json").read_bytes() == settings
    assert_same_run(again, whole)


def first_gradient(run):
    """The gradient of the first step, from the first moment in its checkpoint (AdamW's is 0.1 times the gradient)."""
    state = torch.load(run / "checkpoints" / "step_000001" / "optimizer.bin", weights_only=True)["state"]
    return torch.cat([state[k]["exp_avg"].flatten() for k in sorted(state)]) / 0.1


def test_two_processes_make_the_update_that_one_makes(start_process, tmp_path):
    argv = flags(output=tmp_path, steps=1, packs_per_step=4, group_size=4, max_reply_tokens=64, grad_clip=1e9)
    argv += ["--updates-per-batch", 1]  # each process splits its own episodes
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
        "train.command_line(train.main)\n",
        encoding="utf-8",
    )
    command = [sys.executable, *TWO, script, *map(str, flags(output=tmp_path / "runs"))]
    result = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert result.returncode != 0
    assert "error: the second process has failed" in result.stderr


# ---------------------------------------------------------------------------------------------------------
# Several at work on one folder


def test_a_second_process_that_resumes_a_run_ends_in_one_line_and_harms_nothing(start_process, eventful, broken):
    first = start_process(["--resume", broken])
    assert any("from step 4" in line for line in first.stdout)
    first.send_signal(signal.SIGSTOP)
    before = {path: path.read_bytes() for path in broken.rglob("*") if path.is_file()}
    second = start_process(["--resume", broken, "--eval-packs", "3"])
    _, err = second.communicate()
    assert second.returncode == 1
    assert_one_line(err.removesuffix("\n"), f"resume='{broken}'", "another process")
    assert {path: path.read_bytes() for path in broken.rglob("*") if path.is_file()} == before
    first.send_signal(signal.SIGCONT)
    _, err = first.communicate()
    assert first.returncode == 0, err
    assert_same_run(broken, eventful)


@pytest.mark.parametrize("name", ["", "a"])
def test_runs_that_begin_at_once_never_share_a_folder(name, tmp_path, monkeypatch):
    write = record.files.write_settings
    monkeypatch.setattr(record.files, "write_settings", lambda *a: time.sleep(0.02) or write(*a))
    config, barrier = Config(output=str(tmp_path), name=name), threading.Barrier(8)
    found, refused = [], []

    def begin():
        barrier.wait()
        try:
            found.append(new_folder(config))
        except BadInput as error:
            refused.append(str(error))

    threads = [threading.Thread(target=begin) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({folder for folder, _ in found}) == len(found) == (1 if name else 8)
    assert len(refused) == 8 - len(found) and all("name='a'" in message for message in refused)


# ---------------------------------------------------------------------------------------------------------
# Signals


@pytest.fixture
def hang_up():
    """As in a terminal: pytest itself may have been started by nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_run_that_is_told_to_end_finishes_its_step_and_saves_it(number, hang_up, tmp_path, capsys):
    argv = flags(output=tmp_path, name="a", checkpoint_every=100)
    assert run_until(argv, "assign_advantages", 3, send(number)) == 130
    assert saved_steps(tmp_path / "a") == ["step_000003"]
    assert f"stopped after step 3; python script.py --resume {tmp_path / 'a'}" in capsys.readouterr().out


def test_a_hang_up_that_is_ignored_stays_so(hang_up, tmp_path):
    """Under nohup."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    assert run_until(flags(output=tmp_path, name="a", eval_every=0), "assign_advantages", 2, send(signal.SIGHUP)) == 0
    assert len(steps_of(tmp_path / "a")) == 4


def test_ctrl_c_during_the_report_says_how_to_go_on(plain, tmp_path, capsys):
    run = Path(shutil.copytree(plain, tmp_path / "a"))
    (run / "curves.png").unlink()
    assert run_until(["--resume", run], "report", 1, send(signal.SIGINT)) == 130
    assert f"--resume {run}" in capsys.readouterr().out and not (run / "curves.png").exists()
    assert run_here(["--resume", run]) == 0
    assert_same_run(run, plain)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_stop_that_comes_while_garbage_is_collected_is_not_lost(tmp_path, capsys):
    """Python handles a signal in whatever a finaliser or a weak reference calls then, and drops what that raises."""

    class Garbage:
        pass

    def collect():
        garbage = Garbage()
        weakref.finalize(garbage, lambda: (os.kill(os.getpid(), signal.SIGTERM), time.sleep(0.01)))

    argv = flags(output=tmp_path, name="a", checkpoint_every=100, eval_packs=1000)
    assert run_until(argv, "evaluate_all", 2, collect) == 130
    assert saved_steps(tmp_path / "a") == ["step_000002"] and len(steps_of(tmp_path / "a")) == 2


@pytest.mark.parametrize("stops", [0, 1, 3])
def test_a_run_leaves_signals_as_they_were(stops, hang_up, tmp_path, monkeypatch, capsys):
    """However often it was stopped; and nothing is left that would stop what comes after it."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.getsignal(number) for number in numbers]
    real, ended = train.evaluate_all, []

    def evaluate_all(policy, config, label, *rest):
        for _ in range(stops * (label == "validation")):
            with contextlib.suppress(KeyboardInterrupt):  # as a finaliser would
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(0.01)
        return real(policy, config, label, *rest)

    monkeypatch.setattr(train, "evaluate_all", evaluate_all)
    monkeypatch.setattr(sys, "argv", ["train.py", *flags(output=tmp_path, name="a", eval_packs=1000)])
    try:
        command_line(train.main)
    except SystemExit as stop:
        ended.append(stop.code)
    assert ended == ([130] if stops else [])
    assert [signal.getsignal(number) for number in numbers] == before
    assert not [thread for thread in threading.enumerate() if "stop_again" in thread.name]


@pytest.mark.parametrize("rank", [0, 1])
def test_one_of_two_processes_that_is_ended_in_an_evaluation_ends_the_other(rank, start_process, tmp_path):
    """After step 1, which has no checkpoint: what it would have to save needs both."""
    run = tmp_path / "a"
    settings = {"eval_every": 1, "eval_packs": 2000, "test_packs": 2, "checkpoint_every": 100, "max_reply_tokens": 64}
    process = start_process(flags(output=tmp_path, name="a", **settings), TWO)
    log = run / "metrics.jsonl"
    assert wait_for(process, lambda: log.exists() and '"loss"' in log.read_text(encoding="utf-8"))
    time.sleep(0.5)
    [worker] = [
        child for child in psutil.Process(process.pid).children() if child.environ().get("LOCAL_RANK") == str(rank)
    ]
    worker.send_signal(signal.SIGTERM)
    began = time.monotonic()
    out, err = process.communicate(timeout=120)
    assert time.monotonic() - began < 25  # less than the 30 s after which the launcher kills what hangs
    assert process.returncode != 0 and len(steps_of(run)) == 1
    assert re.search(rf"accelerate launch --num_processes 2 .*train.py --resume {run} goes on", out), out + err


FAKE_TORCH = """
import os, time
print(os.environ["GOMP_SPINCOUNT"], flush=True)
time.sleep(60)
"""


@pytest.fixture
def fake_torch(tmp_path):
    """An environment in which importing torch takes a minute."""
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text(FAKE_TORCH, encoding="utf-8")
    return {k: v for k, v in os.environ.items() if k != "GOMP_SPINCOUNT"} | {"PYTHONPATH": str(tmp_path)}


@pytest.mark.parametrize("script", ["train.py", "eval.py", "imitate.py"])
def test_ctrl_c_while_torch_is_imported_shows_no_traceback(script, fake_torch, start_process):
    process = start_process([], script=script, env=fake_torch)
    assert process.stdout.readline() in ("1000\n", "10000\n")
    process.send_signal(signal.SIGINT)
    assert process.communicate() == ("", "") and process.returncode == 130


@pytest.mark.parametrize(("percent", "turns"), [(90.0, "1000"), (10.0, "10000")])
def test_threads_spin_less_where_the_machine_is_busy(percent, turns, monkeypatch):
    monkeypatch.delenv("GOMP_SPINCOUNT")
    monkeypatch.setattr(psutil, "cpu_percent", lambda interval: percent)
    importlib.reload(start)
    assert os.environ["GOMP_SPINCOUNT"] == turns


def test_what_the_user_has_set_stays(fake_torch, start_process):
    """The number of turns, and that Ctrl-C is ignored, as in a job in the background."""
    ignore = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_IGN)}
    process = start_process([], env=fake_torch | {"GOMP_SPINCOUNT": "7"}, **ignore)
    assert process.stdout.readline() == "7\n"
    process.send_signal(signal.SIGINT)
    time.sleep(0.2)
    assert process.poll() is None


def test_whoever_imports_a_script_keeps_his_own_way_with_ctrl_c():
    code = "import signal, engine.start; print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True, check=True)
    assert done.stdout == "True\n"
