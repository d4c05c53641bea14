"""The study: the claims of the paper on the embedded policy, over seeds, by one command.

    python benchmarks/study.py                      all experiments, into docs/study.md and docs/study/ (6 hours)
    python benchmarks/study.py effect 6             some of them, by name or number
    python benchmarks/study.py --dry-run            the jobs and how long they will take, nothing else
    python benchmarks/study.py --only-report        the report of what is there
    python benchmarks/study.py --quick              a little of everything in 20 minutes, into runs/study-quick

A job is one training with all the evaluations that any experiment wants of it; two are done at a time, each by one
thread. What a job has found is a line of results.jsonl in the study's folder, and no job whose line is there is done
again; so whatever stops the study, the same line goes on. After a change of the method, remove that file and the folder
of the runs. Experiments are in laboratory/, a job's process is laboratory/work.py.

To stay below six hours on two threads of one core, G and S are varied on FrozenLake alone, re-weighting and clipping on
Alchemy alone, and other masks with the default number of updates alone.
"""

import sys
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import engine.start  # noqa: E402, F401, I001 (before torch is imported)

from benchmarks.laboratory.claims import MOST_SEEDS
from benchmarks.laboratory.experiments import EXPERIMENTS, chosen
from benchmarks.laboratory.jobs import Scale, fingerprint_of_policy
from benchmarks.laboratory.page import write_report
from benchmarks.laboratory.plan import Plan, make_plan
from benchmarks.laboratory.results import Store
from benchmarks.laboratory.running import Runner
from engine.command_line import command_line, parse_flags
from engine.errors import BadInput
from engine.models import REPO
from engine.settings import check_bounds, flag
from record.files import lock

QUICK = ["--seeds=1", f"--output={REPO / 'runs' / 'study-quick'}"]


@dataclass(frozen=True)
class Settings:
    names: list[str] = flag([], "experiments, by name or number (they may also stand first, without a flag); none: all")
    seeds: int = flag(3, "seeds of every run; of runs on one domain at least five", at_least=1, below=MOST_SEEDS + 1)
    at_once: int = flag(2, "jobs at the same time", at_least=1, below=65)
    output: str = flag(str(REPO / "docs" / "study"), "folder for results and pictures; the report stands beside it")
    scratch: str = flag("", "folder for the runs, which may be removed later; empty: scratch in the study's folder")
    quick: bool = flag(False, "a little of everything: one seed, fewer steps, packs and variants, no second build")
    dry_run: bool = flag(False, "list the jobs with the minutes that each is expected to take, and do nothing")
    only_report: bool = flag(False, "do no jobs; write the report of what is there")

    @property
    def scale(self) -> Scale:
        if self.quick:
            return Scale(seeds=self.seeds, packs=64, quick=True, base=(("steps", 12),))
        return Scale(seeds=self.seeds)


def settings_from(argv: list[str]) -> Settings:
    names = list(takewhile(lambda word: not word.startswith("-"), argv))
    argv = [*(["--names", *names] if names else []), *argv[len(names) :]]
    settings = parse_flags(Settings, argv)
    return parse_flags(Settings, argv, QUICK) if settings.quick else settings


def show(plan: Plan, store: Store, runner: Runner) -> None:
    todo = runner.todo()
    for job in todo:
        experiments = ", ".join(plan.wanted_by[job.variant, job.seed])
        games = sum(each.setting.games * len(each.contexts) for each in job.evaluations)
        print(f"{job.seconds / 60:5.1f} min  {job.name}  [{experiments}; {games} games in evaluations]")
    there = sum(job in store for job in plan.jobs.values())
    hours = sum(job.seconds for job in todo) / 3600 / runner.at_once
    print(f"{len(todo)} jobs to do, {there} of {len(plan.jobs)} are there; about {hours:.1f} hours")


def main() -> None:
    settings = settings_from(sys.argv[1:])
    check_bounds(settings)
    output = Path(settings.output)
    if output.exists() and not output.is_dir():
        raise BadInput(f"output={settings.output!r}: is a file; name a folder")
    base = fingerprint_of_policy()
    plan = make_plan(chosen(settings.names), settings.scale, base)
    store = Store(output)
    scratch = Path(settings.scratch or output / "scratch").resolve()
    runner = Runner(plan, store, scratch, settings.at_once)
    if settings.dry_run:
        return show(plan, store, runner)
    failed = {}
    if not settings.only_report:
        scratch.mkdir(parents=True, exist_ok=True)
        held = lock(scratch)
        if held is None:
            raise BadInput(f"scratch={str(scratch)!r}: another study is at work there")
        failed = runner.run()
    print(f"written: {write_report(make_plan(EXPERIMENTS, settings.scale, base), store)}")
    if failed:
        for name, why in failed.items():
            print(f"FAILED: {name}: {why}")
        raise BadInput(f"{len(failed)} of {len(plan.jobs)} jobs failed; the same line tries them again")


if __name__ == "__main__":
    command_line(main)
