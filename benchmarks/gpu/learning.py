"""Part 5: a real model learns. Imitation, then CoD training till the time is up; the run is kept in one file."""

import gc
import importlib.util
import io
import json
import os
import sys
import tarfile
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.gpu.common import CUDA, REHEARSAL, Figures, finish, metrics_of, start
from benchmarks.gpu.run import SKIPPED
from engine.build import build
from engine.errors import BadInput
from engine.models import load_model
from engine.processes import launch
from engine.settings import Config
from imitate import knobs
from imitation.teaching import Lessons, imitate, rise_and_fall
from record.files import checkpoints, open_folder, save_checkpoint

MEMORY = ("memory_rollout", "memory_train")


def learning(figure: Figures, folder: Path, seconds: float) -> None:
    """Imitation of the clean and then of the mediocre player, then CoD training till the time is up.

    All that is learnt, by imitation and after it, is in one small adapter on the weights of the GGUF file: imitation
    ends in the run's checkpoint of step 0. So the run folder and the file are all that going on takes.
    """
    deadline = time.monotonic() + (min(seconds, 60) if REHEARSAL else seconds)
    file = os.environ.get("GGUF", "")
    if not file and not REHEARSAL:
        skip("no GGUF file is named; GGUF=FILE bash benchmarks/gpu.sh")
    if file and importlib.util.find_spec("gguf") is None:
        raise BadInput("the package gguf is missing, which reads GGUF files; install it or put it on PYTHONPATH")
    with tempfile.TemporaryDirectory() as scratch:
        archive = folder / "run.tar.gz"
        source = {"model": str(Path(file).parent), "gguf_file": Path(file).name} if file else {}
        config = train_config(unpacked(source, Path(scratch)) if file else "embedded-policy")
        if os.environ.get("RUN"):
            run_folder = unpack(Path(os.environ["RUN"]), Path(scratch), config.model)
            first = int(checkpoints(run_folder)[-1].name.removeprefix("step_"))
        else:
            run_folder, first = imitated(figure, Path(scratch), config, deadline, spell_out=bool(file)), 0
            gc.collect()  # what imitation has taken of the GPU is for the training
            if CUDA:
                torch.cuda.empty_cache()
        if archive.exists():
            os.replace(archive, folder / "run-before.tar.gz")
        pack(run_folder, archive, source)
        train_until(deadline, run_folder)
        pack(run_folder, archive, source)
        steps, tests = metrics_of(run_folder)
        report(figure, config, steps[first:], tests)
        finish(start("train.py", "--resume", run_folder, "--steps", len(steps)))  # the evaluations that come at the end
        pack(run_folder, archive, source)
        print(f"written: {archive}, {archive.stat().st_size / 2**20:.1f} MiB")
        at_last = metrics_of(run_folder)[1]
    report_tests(figure, {label: test for label, test in at_last.items() if test != tests.get(label)})


def unpacked(source: dict, scratch: Path) -> str:
    """A folder with the weights of a GGUF file: to read that takes long, and every start would do it again."""
    base = str(scratch / "base")
    model, tokenizer = load_model(**source)
    model.save_pretrained(base)
    tokenizer.save_pretrained(base)
    return base


def report(figure: Figures, config: Config, steps: list[dict], tests: dict[str, dict]) -> None:
    """The figures of these training steps and of the evaluations up to then."""
    figure("training steps", len(steps))
    figure("rollouts in them", len(steps) * config.packs_per_step * config.group_size)
    for name in ("time_rollout", "time_train"):
        figure(f"seconds a step, {name.removeprefix('time_')}", sum(s[name] for s in steps) / max(1, len(steps)), "s")
    for name in ("speed_rollout", "speed_train"):
        mean = sum(s[name] for s in steps) / max(1, len(steps))
        figure(f"{name.removeprefix('speed_')}, mean", mean, "tokens/s")
    figure("largest peak of memory", max((s[m] for s in steps for m in MEMORY), default=0.0), "GiB")
    report_tests(figure, tests)


def report_tests(figure: Figures, tests: dict[str, dict]) -> None:
    for label, test in tests.items():
        ranges = zip(test["success"], test["success_low"], test["success_high"], strict=True)
        cells = " ".join(f"{mean:.2f} [{low:.2f}, {high:.2f}]" for mean, low, high in ranges)
        figure(f"success by position, {label}", cells)


def skip(reason: str) -> None:
    print(reason)
    sys.exit(SKIPPED)


def train_config(model: str) -> Config:
    """Of the CoD training. Rank 4 keeps a run, with its optimiser, under 16 MiB; as the alpha is that of rank 16 and
    more, imitation changes the weights as much (alpha / rank times the rank). For reinforcement learning, which goes on
    with that adapter, the same rate is too high: 7e-4 destroyed the policy (docs/gpu.md)."""
    if REHEARSAL:
        tiny = {"packs_per_step": 2, "group_size": 2, "pack_size": 2, "test_packs": 4, "max_reply_tokens": 32}
        return Config(model=model, lora_rank=4, steps=1000, eval_every=0, checkpoint_every=1, **tiny)
    # activations need not be computed again where a micro-batch of a small model fits
    roomy = CUDA and torch.cuda.get_device_properties(0).total_memory > 40 * 2**30
    return Config(
        model=model,
        gradient_checkpointing="off" if roomy else "auto",
        lora_rank=4,
        lora_alpha=64,
        lr=1.5e-4,
        lr_schedule="constant",
        warmup_steps=2,
        packs_per_step=32,
        group_size=4,
        max_reply_tokens=96,
        steps=1000,
        eval_every=0,
        test_packs=128,
        checkpoint_every=1,
        tokens_per_microbatch=32768 if roomy else 8192,
    )


def imitated(figure: Figures, scratch: Path, config: Config, deadline: float, spell_out: bool) -> Path:
    """A run folder whose checkpoint of step 0 has imitated both players, in at most half of the time."""
    config = replace(config, name="run", output=str(scratch))
    accelerator = launch(config)
    policy, optimizer = build(config, accelerator)
    left = deadline - time.monotonic()
    for player, steps, lr, seed, share in (("clean", 120, 1e-3, 1, 0.35), ("mediocre", 15, 5e-4, 2, 0.5)):
        batches = Lessons(
            policy.chat,
            [("frozenlake", "tiny")],
            10**6 * (seed + 1),
            packs=2 if REHEARSAL else 4,
            pack_size=config.pack_size,
            knobs={"frozenlake": knobs("frozenlake", player, spell_out)},
            seed=seed,
        )
        clock = Clock(deadline - (1 - share) * left)
        steps = 2 if REHEARSAL else steps
        imitate(policy, batches, steps, rise_and_fall(lr), player, config.tokens_per_microbatch, clock.is_over)
        figure(f"imitation of the {player} player: steps", len(clock.losses), f"of {steps}")
        figure(f"imitation of the {player} player: loss at last", clock.losses[-1])
        figure(f"imitation of the {player} player", time.monotonic() - clock.began, "s")
    run_folder, lock = open_folder(config, None)
    save_checkpoint(run_folder, 0, 0, policy, accelerator)
    lock.release()  # for the process that goes on with it
    return run_folder


class Clock:
    """Ends imitation when its time is over, and keeps the losses."""

    def __init__(self, end: float):
        self.end, self.began = end, time.monotonic()
        self.losses: list[float] = []

    def is_over(self, _step: int, loss: float) -> bool:
        self.losses.append(loss)
        return time.monotonic() > self.end


def train_until(deadline: float, run_folder: Path) -> None:
    """Train, and stop in time for what comes after: loading once more, and two evaluations."""
    began = time.monotonic()
    have = len(metrics_of(run_folder)[0])
    process = start("train.py", "--resume", run_folder)
    evaluated = None  # seconds of loading and of an evaluation
    while process.poll() is None:
        steps, tests = metrics_of(run_folder)
        if evaluated is None and (len(steps) > have or "before training" in tests and not have):
            evaluated = time.monotonic() - began - sum(s["time_rollout"] + s["time_train"] for s in steps[have:])
        longest = max((s["time_rollout"] + s["time_train"] for s in steps[have:]), default=0.0)
        if len(steps) > have and time.monotonic() + longest + 2 * evaluated + 5 > deadline:
            process.terminate()  # it ends the step that it is in, writes a checkpoint and stops
            process.wait()
            return
        time.sleep(0.2)
    raise BadInput(f"the training ended by itself, with exit code {process.returncode}")


def pack(run_folder: Path, archive: Path, source: dict) -> None:
    """The run with its newest checkpoint alone, in one file, and with `source` in its settings: the GGUF file."""
    *older, _ = checkpoints(run_folder)  # the newest has the run's adapter in it, too
    left_out = (run_folder / "adapter", *older)
    temporary = archive.with_name(f".tmp-{archive.name}")
    with tarfile.open(temporary, "w:gz") as tar:
        for file in sorted(path for path in run_folder.rglob("*") if path.is_file()):
            name = Path("run") / file.relative_to(run_folder)
            if file.name == "config.json" and file.parent == run_folder:
                text = (json.dumps(json.loads(file.read_text()) | source, indent=1) + "\n").encode()
                entry = tar.gettarinfo(file, name)
                entry.size = len(text)
                tar.addfile(entry, io.BytesIO(text))
            elif not any(folder in file.parents for folder in left_out):
                tar.add(file, name)
    os.replace(temporary, archive)


def unpack(archive: Path, folder: Path, model: str) -> Path:
    """A run that `pack` has packed, to go on with these base weights."""
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    config, here = folder / "run" / "config.json", {"model": model, "gguf_file": "", "steps": 1000}
    config.write_text(json.dumps(json.loads(config.read_text()) | here, indent=1) + "\n")
    return folder / "run"
