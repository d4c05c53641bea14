"""For tests of training: small runs in this process or in others, interrupted at chosen moments; what they leave.

Most runs happen in this process. An interruption is then an exception that nothing in the scripts catches, raised at a
chosen call, so that no clean-up runs: what is left on disk is what `kill -9` would leave there.
"""

import json
import os
import signal
import sys
import time
from unittest import mock

import torch
from accelerate.utils import set_seed

import eval as evaluation
import record.run
import train
from engine.command_line import command_line
from engine.models import Lora, add_adapter, load_model
from engine.policy import Policy
from engine.settings import Config
from record.files import checkpoints

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


def flags(**changes):
    return [text for key, value in {**SMALL, **changes}.items() for text in (f"--{key}", str(value))]


def run_here(argv, main=train.main):
    """Run a script's main in this process; its exit code (a string is a message on standard error and means 1)."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        with mock.patch.object(sys, "argv", ["script.py", *map(str, argv)]):
            command_line(main)
        return 0
    except SystemExit as stop:
        return stop.code
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


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


PLACES = {"evaluate": evaluation, "step_line": record.run, "save_checkpoint": record.run, "report": record.run}


def run_until(argv, function, call, act):
    """Run train.py in this process and act just before the given call of a function; "killed" or the exit code."""
    owner = PLACES.get(function, train)
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
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def steps_of(run):
    return [line for line in metrics(run) if "eval" not in line]


def without_times(lines):
    timings = ("time_", "speed_", "memory_")
    return [{key: value for key, value in line.items() if not key.startswith(timings)} for line in lines]


def weights_file(folder):
    return folder / "adapter" / "adapter_model.safetensors"


def samples(run):
    return {path.name: path.read_text(encoding="utf-8") for path in (run / "samples").iterdir()}


def saved_steps(run):
    return [folder.name for folder in checkpoints(run)]


def assert_same_run(run, other):
    assert without_times(metrics(run)) == without_times(metrics(other))
    assert weights_file(run).read_bytes() == weights_file(other).read_bytes()
    assert samples(run) == samples(other)


def wait_for(process, happened):
    """Look every millisecond; False if the process ends first."""
    while process.poll() is None:
        if happened():
            return True
        time.sleep(0.001)
    return False


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def assert_one_line(message, *parts):
    assert isinstance(message, str) and message.startswith("error: ") and "\n" not in message, message
    for part in parts:
        assert part in message, message


PLAYED = Config(packs_per_step=4, group_size=4, pack_size=3, max_reply_tokens=64, updates_per_batch=1)


def fresh_policy(config=PLAYED):
    set_seed(config.seed)
    model, tokenizer = load_model(config.model)
    model = add_adapter(model, Lora(config.lora_rank, config.lora_alpha, config.lora_dropout))
    return Policy(model, tokenizer, config)


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
