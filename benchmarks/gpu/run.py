"""The parts of part.py one after the other, each in a process of its own and under a time limit of its own.

    python benchmarks/gpu/run.py [FOLDER [PART ...]]    what benchmarks/gpu.sh starts; docs/gpu.md says more

FOLDER gets a log for each part (both that measure rollouts share one), figures.jsonl with a line for each
figure as soon as it is there, and at the end report.md. A part that fails, runs over its time or is skipped is named
there, and the next one starts. The exit code is not zero if one failed or ran over.

This file knows neither torch nor the GPU, so that the memory of a part is free when the part is over.
"""

import datetime
import importlib.metadata
import json
import operator
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

HERE = Path(__file__).resolve().parent
TOTAL = 1800  # seconds of all parts together on a GPU, unless the environment names others
MARGIN = 12  # seconds before its limit that the last part, which takes all that is left, is told to be ready
SKIPPED = 77  # the exit code of a part that has nothing to do; its last line says why
PACKAGES = "torch transformers peft accelerate bitsandbytes huggingface_hub tokenizers triton".split()
GOALS = {">=": operator.ge, "<=": operator.le}
PROBE = """
import json, torch
found = torch.cuda.is_available()
gpu = torch.cuda.get_device_properties(0) if found else None
size = f"{gpu.total_memory / 2**30:.0f} GiB" if found else ""
print(json.dumps({"device": f"{gpu.name}, {size}" if found else "", "CUDA": torch.version.cuda}))
"""


@dataclass(frozen=True)
class Part:
    name: str
    log: str
    limit: float  # seconds
    last: bool = False  # takes all the time that is left


PARTS = [
    Part("smoke", "1-smoke.log", 120),
    Part("limits", "2-limits.log", 240),
    Part("rollouts", "3-rollouts.log", 240),
    Part("continuous batching", "3-rollouts.log", 90),
    Part("memory", "4-memory.log", 300),
    Part("learning", "5-learning.log", TOTAL, last=True),
]


@dataclass
class Outcome:
    part: str
    text: str  # ok, or what went wrong, or why it was skipped
    seconds: float
    bad: bool


def last_line(log: Path, start: int) -> str:
    """Of what has been written behind that place."""
    lines = log.read_bytes()[start:].decode(errors="replace").strip().splitlines()
    return lines[-1].strip()[-300:] if lines else "it wrote nothing"


def run_part(part: Part, command: list[str], limit: float, folder: Path) -> Outcome:
    """Run the command until it ends or the limit is reached; then no process of it is left."""
    log = folder / part.log
    started = time.monotonic()
    with log.open("ab") as file:
        start = file.tell()
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            code = process.wait(limit)
        except subprocess.TimeoutExpired:
            code = None
        finally:  # what it has started belongs to its group
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            process.wait()
    seconds = time.monotonic() - started
    if code is None:
        return Outcome(part.name, f"ran over its {limit:.0f} s; at last: {last_line(log, start)}", seconds, True)
    if code == SKIPPED:
        return Outcome(part.name, f"skipped: {last_line(log, start)}", seconds, False)
    if code:
        return Outcome(part.name, f"failed ({code}): {last_line(log, start)}", seconds, True)
    return Outcome(part.name, "ok", seconds, False)


def run_parts(parts: list[Part], command, total: float, folder: Path) -> list[Outcome]:
    """`command(part, seconds)` is what starts a part that should be done in so many seconds."""
    began = time.monotonic()
    outcomes = []
    for part in parts:
        left = total - (time.monotonic() - began)
        limit = left if part.last else min(part.limit, left)
        if limit <= 0:
            outcomes.append(Outcome(part.name, "not started: no time was left", 0.0, True))
        else:
            outcomes.append(run_part(part, command(part, max(1.0, limit - MARGIN)), limit, folder))
        print(f"{part.name}: {outcomes[-1].text} ({outcomes[-1].seconds:.0f} s)", flush=True)
    return outcomes


def read_figures(path: Path) -> list[dict]:
    """Those that are whole: the process that writes them may be killed at any time."""
    figures = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            figures.append(json.loads(line))
        except ValueError:
            continue
    return figures


def met(figure: dict) -> str:
    """Whether a figure reaches its goal; empty without a goal."""
    if not figure["goal"]:
        return ""
    sign, bound = figure["goal"].split()
    return "yes" if isinstance(figure["value"], int | float) and GOALS[sign](figure["value"], float(bound)) else "no"


def shown(value) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def report(machine: dict, outcomes: list[Outcome], figures: list[dict]) -> str:
    """Markdown: the machine, the parts, the figures."""

    def cell(text) -> str:
        return str(text).replace("|", "\\|")

    lines = [f"# {machine['device']}", "", "| | |", "|---|---|"]
    lines += [f"| {cell(name)} | {cell(value)} |" for name, value in machine.items()]
    lines += ["", "| part | outcome | seconds |", "|---|---|---|"]
    lines += [f"| {o.part} | {cell(o.text)} | {o.seconds:.0f} |" for o in outcomes]
    lines += ["", "| part | figure | value | goal | met |", "|---|---|---|---|---|"]
    for f in figures:
        value = f"{shown(f['value'])} {f['unit']}".strip()
        lines.append(f"| {f['part']} | {cell(f['figure'])} | {cell(value)} | {f['goal']} | {met(f)} |")
    return "\n".join(lines) + "\n"


def version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def first_line_of(*command: str) -> str:
    """Of what a command prints."""
    try:
        return subprocess.run(command, capture_output=True, text=True).stdout.split("\n")[0] or "unknown"
    except OSError:
        return "unknown"


def look_around(rehearsal: bool) -> dict:
    """The machine and its versions; ends in one line if there is no GPU."""
    found = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True)
    if found.returncode:
        sys.exit(f"error: {(found.stderr.strip().splitlines() or ['torch cannot be imported'])[-1]}")
    probed = json.loads(found.stdout.splitlines()[-1])
    if not probed["device"] and not rehearsal:
        sys.exit("error: there is no NVIDIA GPU here; REHEARSAL=1 goes through the parts at tiny sizes on a CPU")
    driver = first_line_of("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    commit = first_line_of("git", "-C", str(HERE), "rev-parse", "--short", "HEAD")
    return {
        "device": "rehearsal on a CPU, at tiny sizes" if rehearsal else probed["device"],
        "driver; CUDA": "none" if rehearsal else f"{driver}; {probed['CUDA']}",
        "date": datetime.date.today().isoformat(),
        "commit": commit,
        "Python": platform.python_version(),
        **{package: version(package) for package in PACKAGES},
    }


def main() -> None:
    rehearsal = os.environ.get("REHEARSAL", "") not in ("", "0")
    if sys.argv[1:] and sys.argv[1].startswith("-"):
        sys.exit("error: usage: bash benchmarks/gpu.sh [FOLDER [PART ...]]")
    names = [part.name for part in PARTS]
    for name in sys.argv[2:]:
        if name not in names:
            sys.exit(f"error: part {name!r}: unknown; choose from {', '.join(map(repr, names))}")
    for name in ("GGUF", "RUN"):
        if os.environ.get(name) and not Path(os.environ[name]).is_file():
            sys.exit(f"error: {name}={os.environ[name]!r}: there is no such file")
    if not (seconds := os.environ.get("TOTAL") or str(TOTAL)).isdecimal():
        sys.exit(f"error: TOTAL={seconds!r}: must be a whole number of seconds")
    total = int(seconds)
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else HERE.parents[1] / "gpu-report").resolve()
    if folder.exists() and not folder.is_dir():
        sys.exit(f"error: {folder}: is not a folder")
    folder.mkdir(parents=True, exist_ok=True)
    for name in {part.log for part in PARTS} | {"figures.jsonl", "report.md"}:  # of an earlier time
        (folder / name).unlink(missing_ok=True)
    os.environ["HF_HUB_OFFLINE"] = "1"  # nothing is fetched, and nothing waits for a network that is not there
    compiled = tempfile.TemporaryDirectory()  # until the end
    if os.environ.pop("PYTHONDONTWRITEBYTECODE", ""):  # else every start would compile all packages, for 15 seconds
        os.environ["PYTHONPYCACHEPREFIX"] = compiled.name
    if rehearsal:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    for name in ("GGUF", "RUN"):
        if os.environ.get(name):
            os.environ[name] = str(Path(os.environ[name]).resolve())
    machine = look_around(rehearsal)
    print(f"{machine['device']}; into {folder}", flush=True)

    def command(part: Part, seconds: float) -> list[str]:
        return [sys.executable, "-u", str(HERE / "part.py"), part.name, str(folder), f"{seconds:.0f}"]

    parts = [part for part in PARTS if part.name in (sys.argv[2:] or names)]
    if rehearsal:  # it is short by its sizes; that a machine is slow is not to make it fail
        parts, total = [replace(part, limit=3 * part.limit) for part in parts], 3 * total
    outcomes = run_parts(parts, command, total, folder)
    text = report(machine, outcomes, read_figures(folder / "figures.jsonl"))
    (folder / "report.md").write_text(text)
    print(text)
    sys.exit(any(outcome.bad for outcome in outcomes))


if __name__ == "__main__":
    main()
