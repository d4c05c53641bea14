"""A training run on disk: its folder, metrics, checkpoints and pictures; time and memory of its phases."""

import contextlib
import dataclasses
import json
import math
import os
import shutil
import signal
import sys
import time
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, load

from engine.errors import BadInput, first_line
from engine.policy import Policy
from environments.player import Player
from envs import name_of, players
from eval import World, draw, evaluate, gap_closed, table
from models import read_adapter
from rollout import Rollout

if TYPE_CHECKING:
    from train import Config

# Which packs are played: seeds from 0 on in the evaluations before and after training, from VALIDATION_SEEDS on in
# those during it, and from TRAIN_SEEDS * (seed + 1) on in training itself.
VALIDATION_SEEDS, TRAIN_SEEDS = 10**8, 10**9


def write_text(path: Path, text: str) -> None:
    """Write a whole file or leave the old one: to a temporary file, then renamed."""
    temporary = path.with_name(f".tmp-{path.name}")
    temporary.write_text(text)
    os.replace(temporary, path)


def open_run(config: "Config", accelerator: Accelerator) -> Path:
    """Create the run folder of a new run and write its config.json (main process; the others are told)."""
    folder = None
    if accelerator.is_main_process:
        base = f"{'mixed' if config.envs else f'{name_of(config.env)}-{config.level}'}-seed{config.seed}"
        names = [config.name] if config.name else chain([base], (f"{base}-{n}" for n in count(2)))
        folders = (Path(config.output) / name for name in names)
        files = ("config.json", "metrics.jsonl")
        folder = next((f for f in folders if not any((f / file).exists() for file in files)), None)
        if folder is not None:
            (folder / "samples").mkdir(parents=True, exist_ok=True)
            (folder / "checkpoints").mkdir(exist_ok=True)
            (folder / "metrics.jsonl").write_text("")
            write_text(folder / "config.json", json.dumps(dataclasses.asdict(config), indent=1) + "\n")
    [folder] = broadcast_object_list([folder])
    if folder is None:
        there = Path(config.output) / config.name
        raise BadInput(
            f"name={config.name!r}: {there} already holds a run; --resume {there} goes on with it, or rename it"
        )
    return folder


def checkpoints(folder: Path) -> list[Path]:
    return sorted((folder / "checkpoints").glob("step_*"))


def save_checkpoint(folder: Path, step: int, metric_lines: int, policy: Policy, accelerator: Accelerator) -> None:
    """Everything that going on needs, written beside the older checkpoints and then renamed; the last two are kept.

    If writing fails, the older checkpoints are untouched.
    """
    final = folder / "checkpoints" / f"step_{step:06d}"
    temporary = folder / "checkpoints" / f".tmp-step_{step:06d}"
    if accelerator.is_main_process:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
    accelerator.wait_for_everyone()
    try:
        accelerator.save_state(str(temporary))  # optimiser and random states
        if accelerator.is_main_process:
            policy.model.save_pretrained(temporary / "adapter")
            write_text(temporary / "state.json", json.dumps({"step": step, "metric_lines": metric_lines}) + "\n")
    except Exception as error:  # the writers below torch and safetensors raise errors of their own for a full disk
        shutil.rmtree(temporary, ignore_errors=True)
        kept = checkpoints(folder)
        raise BadInput(
            f"{final}: the checkpoint could not be written ({first_line(error)}); "
            + (f"{kept[-1]} is kept, go on with --resume {folder}" if kept else "there is no older one")
        ) from error
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        os.replace(temporary, final)
        for old in checkpoints(folder)[:-2]:
            shutil.rmtree(old)


def load_checkpoint(folder: Path, policy: Policy, accelerator: Accelerator) -> int:
    """Restore the newest checkpoint and cut metrics.jsonl back to it; returns the number of steps done (0: none)."""
    done, metric_lines = 0, 0
    if newest := checkpoints(folder)[-1:]:
        try:
            state = json.loads((newest[0] / "state.json").read_text())
            done, metric_lines = state["step"], state["metric_lines"]
            read_adapter(policy.model, newest[0] / "adapter")
            load(newest[0] / f"random_states_{accelerator.process_index}.pkl")  # load_state passes over a damaged one
            accelerator.load_state(str(newest[0]))
        except Exception as error:  # whatever a damaged file makes the readers raise
            raise BadInput(
                f"{newest[0]}: this checkpoint cannot be read ({type(error).__name__}: {first_line(error)}); "
                "delete it to go on from the one before"
            ) from error
    if accelerator.is_main_process:
        lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
        if len(lines) < metric_lines:
            raise BadInput(
                f"{folder / 'metrics.jsonl'}: {len(lines)} lines, but {metric_lines} when {newest[0]} was saved"
            )
        write_text(folder / "metrics.jsonl", "".join(lines[:metric_lines]))
    return done


def as_text(rollout: Rollout) -> str:
    """A rollout for reading: every episode's messages, with its rewards and its advantage."""
    parts = [f"pack {rollout.pack_seed}"]
    for e in rollout.episodes:
        parts.append(
            f"===== position {e.position}, {e.kind}: reward {e.reward:.3f}, advantage {e.advantage:+.3f} ====="
        )
        parts += [f"[{message['role']}]\n{message['content']}" for message in e.messages]
    return "\n\n".join(parts) + "\n"


@contextlib.contextmanager
def phase(name: str, remedy: str, device: torch.device, metrics: dict):
    """Time and peak memory (GiB; on a CPU what the process holds at the end) of a part of the step, into `metrics`.

    Running out of GPU memory becomes one line with the remedy.
    """
    cuda = device.type == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats(device)
    started = time.perf_counter()
    try:
        yield
    except torch.OutOfMemoryError as error:
        peak = torch.cuda.max_memory_allocated(device) / 2**30 if cuda else 0.0
        raise BadInput(f"out of memory in {name}, at {peak:.1f} GiB; {remedy}") from error
    metrics[f"time_{name}"] = time.perf_counter() - started
    peak = torch.cuda.max_memory_allocated(device) if cuda else psutil.Process().memory_info().rss
    metrics[f"memory_{name}"] = peak / 2**30


class Journal:
    """Writes metrics.jsonl, an object a line: {"step", ...metrics} or {"step", "eval": record}; and to the tracker."""

    def __init__(self, folder: Path, config: "Config", accelerator: Accelerator):
        self.folder, self.config, self.accelerator = folder, config, accelerator
        self.lines = len(self.read())

    def read(self) -> list[dict]:
        return [json.loads(line) for line in (self.folder / "metrics.jsonl").read_text().splitlines()]

    def write(self, step: int, values: dict) -> None:
        self.lines += 1
        if self.accelerator.is_main_process:
            finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}
            with (self.folder / "metrics.jsonl").open("a") as file:
                file.write(json.dumps({"step": step, **finite}) + "\n")
        record = values.get("eval", values)
        prefix = f"{record['label']}/" if "eval" in values else ""
        if "eval" in values and self.config.envs:
            prefix += f"{record['env']}/"
        flat = {}
        for key, value in record.items():
            if isinstance(value, list):
                flat |= {f"{prefix}{key}/{j}": x for j, x in enumerate(value)}
            elif key not in ("label", "env"):
                flat[prefix + key] = value
        self.accelerator.log(flat, step=step)

    def test(self, label: str, step: int, policy: Policy, hints: bool = True) -> None:
        """Evaluate the policy in every environment and log the records; "validation" has packs of its own."""
        remedy = "lower --kv-tokens (or use --load-in-4bit)"
        for world in self.config.worlds:
            with phase("evaluation", remedy, self.accelerator.device, {}), policy.sampling():
                self._evaluate(label, step, policy, world, hints)

    def test_players(self, step: int) -> None:
        """Evaluate the scripted players of every environment, for the reference lines."""
        for world in self.config.worlds:
            for name, player in players(world[0]).items():
                self._evaluate(name, step, player, world, True)

    def _evaluate(self, label: str, step: int, policy: Policy | Player, world: World, hints: bool) -> None:
        config = self.config
        seeds = range(config.test_packs)
        if label == "validation":
            seeds = range(VALIDATION_SEEDS, VALIDATION_SEEDS + config.eval_packs)
        packs = [config.pack(seed, world) for seed in seeds]
        record = evaluate(policy, label, packs, config.penalties, hints, config.seed, config.rollouts_at_once)
        env = f"{name_of(world[0])}/{world[1]}"
        self.write(step, {"eval": {"env": env, **record}})
        where = f"{env} | " if config.envs else ""
        self.accelerator.print(f"{where}{label} | success", *(f"{x:.2f}" for x in record["success"]))

    def report(self) -> None:
        """For every environment print the table of the evaluations on the test packs and draw them, curves.png."""
        lines, config = self.read(), self.config
        for world in config.worlds:
            env = f"{name_of(world[0])}/{world[1]}"
            records = [line["eval"] for line in lines if "eval" in line and line["eval"]["env"] == env]
            records = [record for record in records if record["label"] != "validation"]
            key = f"success/{env}" if len(config.worlds) > 1 else "success"
            history = [{**line, "success": line[key]} for line in lines if "eval" not in line]
            picture = self.folder / (f"curves-{'-'.join(world)}.png" if config.envs else "curves.png")
            draw(records, picture, f"{name_of(world[0])}, level {world[1]}, {config.test_packs} packs", history)
            print(f"\n{env}: success on {config.test_packs} fresh packs, mean and 95 % interval")
            print(*filter(None, [table(records), gap_closed(records)]), sep="\n")
            print(f"written: {picture}")
        print(f"written: {self.folder / 'adapter'}")


class Stop:
    """Ctrl-C or SIGTERM raises KeyboardInterrupt; but during a step the first one waits for the step's end."""

    def __init__(self):
        self.in_step = self.asked = False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self.ask)

    def ask(self, *_) -> None:
        if self.asked or not self.in_step:
            raise KeyboardInterrupt
        self.asked = True
        print("\nstopping after this step with a checkpoint; once more to stop at once", file=sys.stderr, flush=True)

    def end_step(self, accelerator: Accelerator) -> None:
        """What was asked of any process stops all of them."""
        self.in_step = False
        if accelerator.reduce(torch.tensor(float(self.asked), device=accelerator.device), "sum").item():
            raise KeyboardInterrupt
