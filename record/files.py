"""The files of a run: its settings, its metrics and its checkpoints, written so that what was there is never lost."""

import contextlib
import dataclasses
import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterator
from itertools import chain, count
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from filelock import FileLock, Timeout

from engine import processes
from engine.command_line import as_flags, parse_flags
from engine.errors import BadInput, first_line
from engine.models import STUDENT, read_adapter
from engine.policy import Policy
from engine.settings import Config

# Which packs are played: seeds from 0 on in the evaluations before and after training, from VALIDATION_SEEDS on in
# those during it, and from TRAIN_SEEDS * (seed + 1) on in training itself.
VALIDATION_SEEDS, TRAIN_SEEDS = 10**8, 10**9
NOT_COMPARED = {"seed", "name", "output", "resume", "check", "tracker"}  # in what runs of the same settings may differ


def write_text(path: Path, text: str) -> None:
    """Write a whole file or leave the old one: to a temporary file, then renamed."""
    temporary = path.with_name(f".tmp-{path.name}")
    temporary.write_text(text, encoding="utf-8", errors="replace")
    os.replace(temporary, path)


@contextlib.contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A folder to write into, which takes its name when all is written. Raises BadInput if that fails: on a full disk
    the writers of weights raise errors of their own. Then nothing of it is left, and what was there before stays."""
    temporary = path.with_name(f".tmp-{path.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        yield temporary
        shutil.rmtree(path, ignore_errors=True)
        os.replace(temporary, path)
    except Exception as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise BadInput(f"{path}: could not be written ({first_line(error)})") from error


def write_settings(folder: Path, config: Config) -> None:
    write_text(folder / "config.json", json.dumps(dataclasses.asdict(config), indent=1) + "\n")


def is_run(path: Path) -> bool:
    return (path / "config.json").exists() and (path / "metrics.jsonl").exists()


def read_settings(folder: Path) -> dict:
    """The settings of a run (its config.json)."""
    try:
        settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{folder / 'config.json'}: cannot be read ({first_line(error)})") from error
    if not isinstance(settings, dict):
        raise BadInput(f"{folder / 'config.json'}: must hold settings by name")
    return settings


def teacher_adapters(config: Config) -> dict[str, Path]:
    """ "ENV/LEVEL" -> the adapter of the run that teaches it. Raises BadInput unless it has ended, on this model."""
    found = {}
    for (env, level), run in config.taught.items():
        where = f"teachers: {env}/{level}={run}"
        if not is_run(Path(run)):
            raise BadInput(f"{where}: not a run folder (no config.json and metrics.jsonl in it)")
        settings = read_settings(Path(run))
        for name in ("model", "gguf_file"):
            if settings.get(name, "") != getattr(config, name):
                raise BadInput(
                    f"{where}: its {name} is {settings.get(name, '')!r}, that of the student {getattr(config, name)!r}"
                )
        found[f"{env}/{level}"] = Path(run) / "adapter"
        if not (found[f"{env}/{level}"] / "adapter_config.json").exists():
            raise BadInput(f"{where}: this run has not ended; go on with it by --resume {run}")
    return found


def resumed_settings(folder: Path) -> Config:
    """The settings of a run that is to go on: those of its config.json, and the flags that may change them."""
    if not is_run(folder):
        raise BadInput(f"resume={str(folder)!r}: not a run folder (no config.json and metrics.jsonl in it)")
    saved = as_flags(Config, folder / "config.json", read_settings(folder))
    try:
        old = parse_flags(Config, [], saved)
    except BadInput as error:
        raise BadInput(f"{folder / 'config.json'}: {error}") from error
    new = dataclasses.replace(parse_flags(Config, defaults=saved), resume=old.resume)
    may_change = [f.name for f in dataclasses.fields(Config) if f.metadata["may_change"]]
    for name, value in dataclasses.asdict(new).items():
        if value != getattr(old, name) and name not in may_change:
            raise BadInput(
                f"{name}={value!r}: the run in {folder} has {getattr(old, name)!r}; "
                f"with --resume only these may change: {', '.join(may_change)}"
            )
    return new


# ---------------------------------------------------------------------------------------------------------
# The folder


def lock(folder: Path) -> FileLock | None:
    """A run folder for this process alone, until it ends; None if another one has it."""
    held = FileLock(folder / ".lock")
    try:
        held.acquire(timeout=0)
    except Timeout:
        return None
    return held


def new_folder(config: Config) -> tuple[Path, FileLock]:
    """A locked run folder with the settings in it: of the given name, or of the first free one."""
    names = chain([config.base_name], (f"{config.base_name}-{n}" for n in count(2)))
    for name in [config.name] if config.name else names:
        folder = Path(config.output) / name
        taken = folder / "metrics.jsonl"  # what is written last: without it a folder is no run yet, and may be begun
        if not taken.exists():
            folder.mkdir(parents=True, exist_ok=True)
            held = lock(folder)
            if held and not taken.exists():
                for part in ("samples", "checkpoints"):
                    (folder / part).mkdir(exist_ok=True)
                write_settings(folder, config)
                taken.touch()
                return folder, held
    raise BadInput(
        f"name={config.name!r}: {folder} already holds a run; --resume {folder} goes on with it, or rename it"
    )


def open_folder(config: Config, folder: Path | None) -> tuple[Path, FileLock | None]:
    """The folder of a new run, or that of the run to go on with, locked by the main process; the others are told."""
    found: list = [folder]
    held = None
    if processes.is_main():
        try:
            if folder is None:
                found[0], held = new_folder(config)
            else:
                held = lock(folder)
                if held is None:
                    raise BadInput(f"resume={str(folder)!r}: another process is at work on this run")
        except (BadInput, OSError) as error:
            found[0] = error
    [found] = broadcast_object_list(found)
    if isinstance(found, Exception):
        raise found
    return found, held


# ---------------------------------------------------------------------------------------------------------
# Metrics


class Metrics:
    """metrics.jsonl, an object a line: {"step", ...metrics} or {"step", "eval": record}."""

    def __init__(self, folder: Path):
        self.path, self.lines = folder / "metrics.jsonl", 0

    def cut(self, lines: int) -> None:
        """Keep the first lines. Raises BadInput unless they can all be read."""
        self.lines = lines
        if processes.is_main():
            kept = self.path.read_bytes().splitlines(keepends=True)[:lines]
            if len(kept) < lines:
                raise BadInput(f"{self.path}: {len(kept)} lines, but {lines} when the newest checkpoint was saved")
            for _ in parsed(self.path, kept):
                pass
            write_text(self.path, b"".join(kept).decode())

    def add(self, step: int, values: dict) -> None:
        self.lines += 1
        if processes.is_main():
            finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": step, **finite}) + "\n")

    def read(self) -> list[dict]:
        return list(parsed(self.path, self.path.read_bytes().splitlines(keepends=True)))


def parsed(path: Path, lines: list[bytes]) -> Iterator[dict]:
    """The objects of a metrics.jsonl; raises BadInput with the number of a line that holds none."""
    for number, line in enumerate(lines, start=1):
        try:
            values = json.loads(line)
        except (ValueError, RecursionError):  # what is not UTF-8 is a ValueError, too
            values = None
        if not line.endswith(b"\n") or not isinstance(values, dict) or "step" not in values:
            raise BadInput(f"{path}: line {number} cannot be read")
        yield values


# ---------------------------------------------------------------------------------------------------------
# Checkpoints


def checkpoints(folder: Path) -> list[Path]:
    return sorted((folder / "checkpoints").glob("step_*"))


def checksums(folder: Path) -> dict[str, str]:
    """file -> SHA-256, of all files in a checkpoint but its state.json."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "state.json")
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def save_checkpoint(folder: Path, step: int, metric_lines: int, policy: Policy, accelerator: Accelerator) -> None:
    """Everything that going on needs, written beside the older checkpoints and then renamed; the last two are kept.

    If writing fails, the older checkpoints are untouched.
    """
    final = folder / "checkpoints" / f"step_{step:06d}"
    temporary = folder / "checkpoints" / f".tmp-step_{step:06d}"
    if processes.is_main():
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
    accelerator.wait_for_everyone()
    try:
        accelerator.save_state(str(temporary))  # optimiser and random states
        accelerator.wait_for_everyone()
        if processes.is_main():
            policy.model.save_pretrained(temporary / "adapter", selected_adapters=[STUDENT])
            state = {"step": step, "metric_lines": metric_lines, "processes": processes.count()}
            write_text(temporary / "state.json", json.dumps(state | {"files": checksums(temporary)}) + "\n")
    except Exception as error:  # the writers below torch and safetensors raise errors of their own for a full disk
        shutil.rmtree(temporary, ignore_errors=True)
        kept = checkpoints(folder)
        raise BadInput(
            f"{final}: the checkpoint could not be written ({first_line(error)}); "
            + (f"{kept[-1]} is kept, go on with --resume {folder}" if kept else "there is no older one")
        ) from error
    accelerator.wait_for_everyone()
    if processes.is_main():
        os.replace(temporary, final)
        for old in checkpoints(folder)[:-2]:
            shutil.rmtree(old)


def read_state(checkpoint: Path, steps: int) -> tuple[int, int]:
    """(steps done, lines of metrics.jsonl) of a checkpoint. Raises BadInput if it is of another number of processes or
    of a longer run, and ValueError if it is damaged."""
    state = json.loads((checkpoint / "state.json").read_text(encoding="utf-8"))
    numbers = [state[name] for name in ("step", "metric_lines", "processes")]
    if not all(type(number) is int and number >= 0 for number in numbers):
        raise ValueError("state.json holds odd values")
    done, metric_lines, written_by = numbers
    if written_by != processes.count():
        raise BadInput(
            f"{checkpoint}: was written by a run of {written_by} processes, and this one has {processes.count()}; "
            f"start {written_by} (accelerate launch --num_processes {written_by})"
        )
    if checkpoint.name != f"step_{done:06d}":
        raise ValueError(f"state.json is that of step {done}")
    if done > steps:
        raise BadInput(f"steps={steps}: {checkpoint} has more steps behind it")
    was, found = state["files"], checksums(checkpoint)
    damaged = [name for name in sorted(was.keys() | found.keys()) if was.get(name) != found.get(name)]
    if damaged:
        raise ValueError(f"{damaged[0]} is not as it was written")
    return done, metric_lines


def load_checkpoint(folder: Path, steps: int, policy: Policy, accelerator: Accelerator) -> tuple[int, int]:
    """Restore the newest checkpoint; returns the steps done, and the lines of metrics.jsonl then (0, 0: there is none).

    Raises BadInput if it cannot be read, or does not belong to a run of so many steps and processes.
    """
    newest = checkpoints(folder)[-1:]
    if not newest:
        return 0, 0
    try:
        done, metric_lines = read_state(newest[0], steps)
        read_adapter(policy.model, newest[0] / "adapter")
        accelerator.load_state(str(newest[0]))
    except BadInput:
        raise
    except Exception as error:  # whatever a damaged file makes the readers raise
        raise BadInput(
            f"{newest[0]}: this checkpoint cannot be read ({type(error).__name__}: {first_line(error)}); "
            "delete it to go on from the one before"
        ) from error
    return done, metric_lines
