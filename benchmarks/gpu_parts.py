"""What `gpu.py` starts: one part of the GPU benchmark, in this process.

    python benchmarks/gpu_parts.py smoke FOLDER SECONDS

Each part writes its figures into FOLDER/figures.jsonl as soon as it has them. SECONDS matter to the last part alone,
which trains until they are over. With REHEARSAL=1 everything is tiny.
"""

import contextlib
import functools
import gc
import importlib.util
import io
import itertools
import json
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from unittest import mock

import limits
import memory
import torch
import transformers
from gpu import SKIPPED, read_figures
from record.folder import checkpoints, open_run, save_checkpoint
from shared import Settings, counted_replays

import train
from engine.batches import pad_batch
from engine.check import play_a_little
from engine.models import REPO, checkpoint_activations, load_model
from engine.policy import Policy
from engine.settings import Sampling
from environments.frozenlake.players import Planner
from envs import BadInput, make_pack
from eval import command_line, parse_flags
from imitate import PLANNERS, imitate, lessons, rise_and_fall
from imitate import ImitateConfig as Imitation
from rollout import play, run

# benchmarks/rollout.py, beside which there is rollout.py
spec = importlib.util.spec_from_file_location("rollout_benchmark", Path(__file__).with_name("rollout.py"))
rollouts = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(rollouts)

REHEARSAL = os.environ.get("REHEARSAL", "") not in ("", "0")
CUDA = torch.cuda.is_available()
MEMORY = ("memory_rollout", "memory_train")
SHAPE = "tiny" if REHEARSAL else "Qwen3-1.7B"


class Figures:
    """Writes a line for each figure, at once."""

    def __init__(self, part: str, path: Path):
        self.part, self.path = part, path

    def __call__(self, name: str, value: float | str, unit: str = "", goal: str = "") -> None:
        """goal: a comparison that the value should pass, as in ">= 3"."""
        if isinstance(value, float):
            value = float(f"{value:.4g}")
        with self.path.open("a") as file:
            line = {"part": self.part, "figure": name, "value": value, "unit": unit, "goal": goal}
            file.write(json.dumps(line) + "\n")
        print(f"FIGURE {name}: {value} {unit}")

    @contextlib.contextmanager
    def in_memory(self, name: str):
        """If what is measured inside does not fit into the GPU, that is its figure."""
        try:
            yield
        except torch.OutOfMemoryError as error:
            print(error)
            self(name, "out of memory")
            return
        finally:
            if CUDA:
                torch.cuda.empty_cache()


def start(script: str, *arguments: object) -> subprocess.Popen:
    print("+", script, *arguments, flush=True)
    return subprocess.Popen([sys.executable, "-u", str(REPO / script), *map(str, arguments)], cwd=REPO)


def finish(process: subprocess.Popen) -> None:
    if code := process.wait():
        raise BadInput(f"{Path(process.args[2]).name} ended with exit code {code}")


def flags(**settings: object) -> list[str]:
    return [part for name, value in settings.items() for part in (f"--{name.replace('_', '-')}", str(value))]


def metrics_of(run_folder: Path) -> tuple[list[dict], dict[str, dict]]:
    """(lines of training steps, evaluations by label) of a run, which may be under way."""
    lines = read_figures(run_folder / "metrics.jsonl")  # the same kind of file
    return [line for line in lines if "eval" not in line], {x["eval"]["label"]: x["eval"] for x in lines if "eval" in x}


# ---------------------------------------------------------------------------------------------------------
# 1. Does it work at all?


def smoke(figure: Figures, _folder: Path, _seconds: float) -> None:
    with tempfile.TemporaryDirectory() as folder:
        killed_and_resumed(figure, Path(folder))
    finish(start("train.py", "--check"))
    policy = Settings().policy()
    as_trained(figure, policy, "embedded policy", "<= 0.001")
    with_graphs(figure, policy, "embedded policy", ">= 1")
    shape = "tiny" if REHEARSAL else "Qwen3-0.6B"
    policy = Settings(shape=shape).policy()
    policy.settings = replace(policy.settings, max_reply_tokens=32)
    as_trained(figure, policy, f"shape {shape}", "<= 0.1")
    with_graphs(figure, policy, f"shape {shape}")


def killed_and_resumed(figure: Figures, folder: Path) -> None:
    """The default training for 5 steps: killed in the fifth, and begun again from the checkpoint of the third."""
    small = {"packs_per_step": 4, "group_size": 2, "test_packs": 8} if REHEARSAL else {"test_packs": 64}
    run_folder = folder / "run"
    process = start(
        "train.py", *flags(steps=5, checkpoint_every=3, eval_every=0, output=folder, name=run_folder.name, **small)
    )
    while len(steps := metrics_of(run_folder)[0]) < 4:
        if process.poll() is not None:
            raise BadInput(f"the training ended by itself, with exit code {process.returncode}")
        time.sleep(0.02)
    process.kill()
    process.wait()
    begun_again = int(checkpoints(run_folder)[-1].name.removeprefix("step_"))
    finish(start("train.py", "--resume", run_folder))
    again, tests = metrics_of(run_folder)
    if [line["step"] for line in again] != [1, 2, 3, 4, 5]:
        raise BadInput(f"the resumed run has the steps {[line['step'] for line in again]}")
    figure("seconds of a step of the default training", again[1]["time_rollout"] + again[1]["time_train"], "s")
    figure("success at position 3 after five of them", tests["after training"]["success"][3])
    gaps = [
        abs(new - old) / max(abs(old), 1e-9)
        for line in steps[begun_again:4]  # what was done behind the checkpoint before the kill, and again after it
        for name, value in line.items()
        if not name.startswith(("time_", "memory_", "speed_"))
        for old, new in zip(*map(as_list, (value, again[line["step"] - 1][name])), strict=True)
        if old is not None and new is not None  # as what is not finite is written
    ]
    figure(
        "largest relative change of a metric where a step is done again after kill -9",
        max(gaps) if gaps else "none was done again",
    )


def as_list(value: object) -> list:
    return value if isinstance(value, list) else [value]


def as_trained(figure: Figures, policy: Policy, name: str, goal: str) -> None:
    """Sampler against trainer."""
    episodes = play_a_little(policy, make_pack("frozenlake", 0, 2, "tiny"), 4)
    ids, mask, logps = pad_batch(episodes, policy.device)  # [B, T] each
    with torch.no_grad():
        gaps = (policy.logprobs(ids, mask)[0] - logps)[mask].abs()  # [n]
    figure(f"sampler and trainer differ, {name}: mean", gaps.mean().item(), "nats", goal)
    figure(f"sampler and trainer differ, {name}: at most", gaps.max().item(), "nats")


def with_graphs(figure: Figures, plain: Policy, name: str, goal: str = "") -> None:
    """CUDA graphs against plain steps, on the same games: the same tokens?"""
    captured = Policy(plain.model, plain.chat.tokenizer, replace(plain.settings, cuda_graphs=True))
    found = []
    with counted_replays() as replays, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for policy in (plain, captured):
            pack = make_pack("frozenlake", 1, 4, "tiny")
            games = [play(pack.fresh()) for _ in range(4 if REHEARSAL else 32)]
            with policy.sampling():
                found.append([e.ids for rollout in run(games, policy, "graphs") for e in rollout.episodes])
    if CUDA and not replays:
        reasons = [str(warning.message) for warning in caught]
        raise BadInput(f"no CUDA graph was replayed: {'; '.join(reasons) or 'for no reason given'}")
    same = [a == b for a, b in itertools.zip_longest(*found)]
    figure(f"episodes that are the same with CUDA graphs, {name}", sum(same) / len(same), "", goal)
    figure(f"CUDA graphs replayed, {name}", len(replays))


# ---------------------------------------------------------------------------------------------------------
# 2. How far from what the device can do?


def limits_part(figure: Figures, _folder: Path, _seconds: float) -> None:
    tiny = {"rows": 4, "length": 64, "episode_tokens": 32, "tokens_per_microbatch": 64, "repeats": 1, "matrix": 256}
    settings = limits.LimitSettings(shape=SHAPE, **(tiny if REHEARSAL else {"repeats": 3}))
    policy = settings.policy()

    def training(name: str) -> None:
        with figure.in_memory(f"training over the matrix rate, {name}"):
            done, rate = limits.training(policy, settings)
            figure(f"training over the matrix rate, {name}", done / rate, "", ">= 0.35")
            figure(f"matrix rate when that was measured, {name}", rate / 1e12, "TFLOP/s")

    def decoding(policy: Policy, name: str) -> None:
        with figure.in_memory(f"decoding step over its limit, {name}"):
            step, limit = limits.decoding(policy, settings)
            figure(f"decoding step over its limit, {name}", step / limit, "times", "<= 4")
            figure(f"decoding step, {name}", 1e3 * step, "ms")

    checkpoint_activations(policy.model.get_base_model(), "on")  # as train.py does it for models of this size
    training("eager")
    decoding(policy, "eager")
    with counted_replays() as replays:
        decoding(Policy(policy.model, policy.chat.tokenizer, Sampling(cuda_graphs=True)), "CUDA graphs")
    figure("CUDA graphs replayed", len(replays))
    policy = settings.policy()  # one whose activations are kept
    training("eager, activations kept")
    checkpoint_activations(policy.model.get_base_model(), "on")
    if REHEARSAL:  # all but the compiler itself
        eager = functools.partialmethod(torch.nn.Module.compile, backend="eager")
        mock.patch.object(torch.nn.Module, "compile", eager).start()
        mock.patch("shutil.which", return_value="c++").start()
    policy.compile()
    training("--compile")


# ---------------------------------------------------------------------------------------------------------
# 3. Rollouts against other ways to sample them


def rollout_settings() -> rollouts.RolloutSettings:
    games = {"rollouts": 2, "pack_size": 1} if REHEARSAL else {"rollouts": 64, "pack_size": 2, "spell_out": True}
    return rollouts.RolloutSettings(shape=SHAPE, **games)


def rollouts_part(figure: Figures, _folder: Path, _seconds: float) -> None:
    settings = rollout_settings()
    policy = settings.policy(rollouts.FixedLengths)
    graphs = rollouts.FixedLengths(policy.model, policy.chat.tokenizer, cuda_graphs=True)

    def timed(kind: type, policy: Policy, name: str) -> float:
        seconds, sampled = rollouts.measure(kind, policy, settings, name)
        figure(f"rollouts, {name}", seconds, "s")
        figure(f"rollouts, {name}: speed", sampled / seconds, "tokens/s")
        return seconds

    # what is loaded at first use is not to count
    rollouts.measure(rollouts.Ours, policy, replace(settings, rollouts=2, pack_size=1), "warm-up")
    ours = timed(rollouts.Ours, policy, "ours")
    with counted_replays() as replays:
        captured = timed(rollouts.Ours, graphs, "ours with CUDA graphs")
    figure("CUDA graphs replayed", len(replays))
    naive = timed(rollouts.Naive, policy, "naive loop")
    figure("naive loop over ours", naive / ours, "times", ">= 3")
    figure("naive loop over ours with CUDA graphs", naive / captured, "times", ">= 3")


def continuous(figure: Figures, folder: Path, _seconds: float) -> None:
    settings = rollout_settings()
    if REHEARSAL:  # else its cache takes most of the memory
        few = functools.partial(rollouts.ContinuousBatchingConfig, num_blocks=8, max_batch_tokens=128)
        rollouts.ContinuousBatchingConfig = few
    policy = settings.policy(rollouts.FixedLengths)
    seconds, sampled = rollouts.measure(rollouts.Continuous, policy, settings, "continuous batching")
    figure("rollouts, continuous batching", seconds, "s")
    figure("rollouts, continuous batching: speed", sampled / seconds, "tokens/s")
    if ours := value(folder, "rollouts, ours"):
        figure("continuous batching over ours", seconds / ours, "times")


def value(folder: Path, name: str) -> float | None:
    """A figure that another part has written."""
    found = [f["value"] for f in read_figures(folder / "figures.jsonl") if f["figure"] == name]
    return found[-1] if found else None


# ---------------------------------------------------------------------------------------------------------
# 4. Memory


def memory_part(figure: Figures, _folder: Path, _seconds: float) -> None:
    transformers.utils.logging.set_verbosity_error()
    unit = "GiB" if CUDA else "GiB, computed"
    todo: list[tuple[str, memory.Settings, list[str]]] = []
    for file in sorted((REPO / "configs").glob("gpu-*.yaml")):
        peaks = re.search(r"([0-9.]+) GiB in training, ([0-9.]+) GiB in rollouts", file.read_text())
        todo.append((file.name, parse_flags(memory.Settings, [str(file)]), [f"<= {peak}" for peak in peaks.groups()]))
    for settings in sorted(memory.table(), key=lambda s: -s.episode_tokens):
        bits = "4 bits" if settings.load_in_4bit else "bfloat16"
        todo.append((f"{settings.model}, {bits}, episodes of {settings.episode_tokens}", settings, ["", ""]))
    if REHEARSAL:
        little = {"model": "tiny", "rollouts_at_once": 4, "tokens_per_microbatch": 256, "kv_tokens": 0}
        todo = [(name, replace(s, **little, episode_tokens=128), goals) for name, s, goals in todo[:2]]
    for name, settings, goals in todo:
        if settings.load_in_4bit and train.bitsandbytes is None:
            figure(f"peak, {name}", "not measured: bitsandbytes is not installed")
            continue
        try:
            found = memory.peaks(settings)
        except torch.OutOfMemoryError as error:
            print(error)
            found = None
        for phase, i in (("training", 0), ("rollouts", 1)):
            figure(f"peak in {phase}, {name}", found[i] if found else "out of memory", unit, goals[i])


# ---------------------------------------------------------------------------------------------------------
# 5. A real model learns


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
        raise BadInput(
            "the package gguf is missing, with which GGUF files are read; install it or put it on PYTHONPATH"
        )
    with tempfile.TemporaryDirectory() as scratch:
        archive, source = folder / "run.tar.gz", {}
        if file:  # unpacked once: every start would take as long
            source = {"model": str(Path(file).parent), "gguf_file": Path(file).name}
            base = str(Path(scratch) / "base")
            model, tokenizer = load_model(**source)
            model.save_pretrained(base)
            tokenizer.save_pretrained(base)
            del model
        config = train_config(base if file else "embedded-policy")
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
        done = len(metrics_of(run_folder)[0])
        finish(start("train.py", "--resume", run_folder, "--steps", done))  # the evaluations that come at the end
        pack(run_folder, archive, source)
        print(f"written: {archive}, {archive.stat().st_size / 2**20:.1f} MiB")
        steps, tests = metrics_of(run_folder)
    figure("training steps", done - first)
    figure("rollouts in them", (done - first) * config.packs_per_step * config.group_size)
    new = steps[first:]
    for name in ("time_rollout", "time_train"):
        figure(f"seconds a step, {name.removeprefix('time_')}", sum(s[name] for s in new) / max(1, len(new)), "s")
    for name in ("speed_rollout", "speed_train"):
        figure(f"{name.removeprefix('speed_')}, mean", sum(s[name] for s in new) / max(1, len(new)), "tokens/s")
    figure("largest peak of memory", max((s[m] for s in new for m in MEMORY), default=0.0), "GiB")
    for label, test in tests.items():
        ranges = zip(test["success"], test["success_low"], test["success_high"], strict=True)
        cells = " ".join(f"{mean:.2f} [{low:.2f}, {high:.2f}]" for mean, low, high in ranges)
        figure(f"success by position, {label}", cells)


def skip(reason: str) -> None:
    print(reason)
    sys.exit(SKIPPED)


def train_config(model: str) -> train.Config:
    """Of the CoD training. Rank 4 keeps a run, with its optimiser, under 16 MiB; as the alpha is that of rank 16 and
    more, a step changes the weights as much (alpha / rank times the rank)."""
    if REHEARSAL:
        tiny = {"packs_per_step": 2, "group_size": 2, "pack_size": 2, "test_packs": 4, "max_reply_tokens": 32}
        return train.Config(model=model, lora_rank=4, steps=1000, eval_every=0, checkpoint_every=1, **tiny)
    # activations need not be computed again where a micro-batch of a small model fits
    roomy = CUDA and torch.cuda.get_device_properties(0).total_memory > 40 * 2**30
    return train.Config(
        model=model,
        gradient_checkpointing="off" if roomy else "auto",
        lora_rank=4,
        lora_alpha=64,
        lr=1e-3,
        lr_schedule="constant",
        warmup_steps=2,
        packs_per_step=32,
        group_size=4,
        max_reply_tokens=96,
        steps=1000,
        eval_every=0,
        test_packs=128,
        checkpoint_every=1,
        tokens_per_microbatch=16384 if roomy else 8192,
    )


def imitated(figure: Figures, scratch: Path, config: train.Config, deadline: float, spell_out: bool) -> Path:
    """A run folder whose checkpoint of step 0 has imitated both players, in at most half of the time."""
    config = replace(config, name="run", output=str(scratch))
    accelerator = train.launch(config)
    policy, optimizer = train.build(config, accelerator)
    left = deadline - time.monotonic()
    for player, steps, lr, seed, share in (("clean", 120, 1e-3, 1, 0.35), ("mediocre", 15, 5e-4, 2, 0.5)):
        settings = Imitation(packs_per_step=2 if REHEARSAL else 8, pack_size=config.pack_size, level="tiny")
        teacher = Planner(seed, **PLANNERS[player], spell_out=spell_out)
        batches = lessons(teacher, policy.chat, settings, 10**6 * (seed + 1))
        clock = Clock(deadline - (1 - share) * left)
        steps = 2 if REHEARSAL else steps
        imitate(policy, batches, steps, rise_and_fall(lr), player, config.tokens_per_microbatch, clock.is_over)
        figure(f"imitation of the {player} player: steps", len(clock.losses), f"of {steps}")
        figure(f"imitation of the {player} player: loss at last", clock.losses[-1])
        figure(f"imitation of the {player} player", time.monotonic() - clock.began, "s")
    run_folder = open_run(config, accelerator)
    save_checkpoint(run_folder, 0, 0, policy, accelerator)
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
            evaluated = time.monotonic() - began
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


PARTS: dict[str, Callable[[Figures, Path, float], None]] = {
    "smoke": smoke,
    "limits": limits_part,
    "rollouts": rollouts_part,
    "continuous batching": continuous,
    "memory": memory_part,
    "learning": learning,
}


def main() -> None:
    name, folder, seconds = sys.argv[1:]
    folder = Path(folder)
    print(f"----- {name}")
    if not CUDA and not REHEARSAL:
        raise BadInput("there is no NVIDIA GPU here")
    PARTS[name](Figures(name, folder / "figures.jsonl"), folder, float(seconds))


if __name__ == "__main__":
    command_line(main)
