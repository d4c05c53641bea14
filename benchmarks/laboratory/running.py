"""Jobs as processes, so many at a time: each in a folder of its own, from which it goes on if all is killed."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tqdm import tqdm

from benchmarks.laboratory.jobs import POLICY, TINY, Job, built
from benchmarks.laboratory.plan import Plan
from benchmarks.laboratory.results import Store
from record.files import write_text

LOOK = 0.2  # seconds between two looks at the processes


def worker(folder: Path) -> list[str]:
    return [sys.executable, str(Path(__file__).with_name("work.py")), str(folder)]


@dataclass
class Runner:
    """Does the jobs of a plan that are not in the store yet. `command` is what does the job of a folder."""

    plan: Plan
    store: Store
    scratch: Path
    at_once: int = 2
    command: Callable[[Path], list[str]] = worker
    failed: dict[str, str] = field(default_factory=dict)  # key -> why
    under_way: dict[subprocess.Popen, Job] = field(default_factory=dict)

    def folder(self, job: Job) -> Path:
        return self.scratch / job.key

    def product(self, job: Job) -> Path:
        """The last file of what others need of a job: the model of a build, the adapter of a teacher."""
        if job.variant.kind == "built":
            return self.folder(job) / "model" / "config.json"
        return self.folder(job) / "run" / "adapter" / "adapter_config.json"

    def todo(self) -> list[Job]:
        """What is missing, and before each of these what it needs, where that is gone from its folder."""
        found: dict[str, Job] = {}
        for job in self.plan.jobs.values():
            if job not in self.store:
                needed = [need for need in self.plan.needs(job) if not self.product(need).exists()]
                found |= {each.key: each for each in (*needed, job) if each.key not in found}
        return list(found.values())

    def run(self) -> dict[str, str]:
        """Do all that is missing; returns why jobs failed, by their names."""
        waiting = self.todo()
        minutes = sum(job.seconds for job in waiting) / 60
        with self.stopping(), tqdm(total=minutes, unit="min", unit_scale=True, disable=None) as bar:
            while waiting or self.under_way:
                bar.set_description(f"{len(waiting) + len(self.under_way)} jobs left")
                waiting = [job for job in waiting if not self.is_hopeless(job)]
                ready = [job for job in waiting if all(self.product(need).exists() for need in self.plan.needs(job))]
                for job in ready[: self.at_once - len(self.under_way)]:
                    waiting.remove(job)
                    self.start(job)
                time.sleep(LOOK)
                for process in [process for process in self.under_way if process.poll() is not None]:
                    job = self.under_way.pop(process)
                    self.finish(job, process.returncode)
                    bar.update(job.seconds / 60)
        names = {job.key: job.name for job in self.plan.jobs.values()}
        return {names[key]: why for key, why in self.failed.items()}

    def is_hopeless(self, job: Job) -> bool:
        """Whether what it needs has failed."""
        for need in self.plan.needs(job):
            if need.key in self.failed:
                self.fail(job, f"it needs {need.name}, which failed")
                return True
        return False

    def start(self, job: Job) -> None:
        folder = self.folder(job)
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / "job.json", json.dumps(self.order(job), indent=1))
        environment = os.environ | {"OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}
        with (folder / "log.txt").open("ab") as log:
            # in a session of its own: Ctrl-C reaches it once, by `stopping`
            options = {"stdout": log, "stderr": subprocess.STDOUT, "env": environment, "start_new_session": True}
            self.under_way[subprocess.Popen(self.command(folder), **options)] = job

    def order(self, job: Job) -> dict:
        """What work.py is told."""
        variant = job.variant
        taught = {each.config.env: self.plan.jobs[each, job.seed] for each in variant.teachers}
        teachers = ",".join(f"{env}/{TINY}={self.folder(each) / 'run'}" for env, each in taught.items())
        base = POLICY
        if variant.words != "shared" and variant.kind != "built":
            base = str(self.folder(self.plan.jobs[built(variant.words), 0]) / "model")
        return {
            "job": job.name,
            "kind": variant.kind,
            "words": variant.words,
            "seed": job.seed,
            "flags": job.flags(base, teachers),
            "evaluations": [asdict(each) for each in job.evaluations],
        }

    def finish(self, job: Job, code: int) -> None:
        folder = self.folder(job)
        if code == 0:
            self.store.add(job, json.loads((folder / "result.json").read_text(encoding="utf-8")))
            shutil.rmtree(folder / "run" / "checkpoints", ignore_errors=True)  # most of what it has written
            tqdm.write(f"done: {job.name}")
            return
        lines = (folder / "log.txt").read_text(encoding="utf-8", errors="replace").split("\n")
        said = next((line.strip() for line in reversed(lines) if line.strip()), "no message")
        self.fail(job, f"exit code {code}: {said} ({folder / 'log.txt'})")

    def fail(self, job: Job, why: str) -> None:
        self.failed[job.key] = why
        tqdm.write(f"FAILED: {job.name}: {why}")

    @contextlib.contextmanager
    def stopping(self) -> Iterator[None]:
        """Whatever ends the block ends the processes, too: a training ends its step and saves it."""
        numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
        numbers = [number for number in numbers if signal.getsignal(number) != signal.SIG_IGN]  # as nohup leaves it
        before = {number: signal.signal(number, signal.default_int_handler) for number in numbers}
        try:
            yield
        finally:
            for process in self.under_way:
                process.terminate()
            for process in self.under_way:
                process.wait()
            for number, handler in before.items():
                signal.signal(number, handler)
