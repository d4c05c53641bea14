"""One job in a process of its own: training, then all evaluations, with the same weights in memory.

    python benchmarks/laboratory/work.py FOLDER

The job is FOLDER/job.json (see `running.order`), what it has found becomes FOLDER/result.json. If it is broken off, the
same line goes on from the last checkpoint of the training.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import engine.start  # noqa: E402, F401, I001 (before torch is imported)

import json
import math
import time
from collections.abc import Sequence
from unittest import mock

from filelock import FileLock

import imitate
import train
from benchmarks.laboratory.jobs import LEARNER, fingerprint
from engine import processes
from engine.build import build
from engine.command_line import command_line
from engine.models import REPO
from engine.policy import Policy
from engine.settings import Config, with_teachers, with_whole_paths
from engine.teachers import add_teachers
from envs import Pack, players
from evaluation.contexts import OWN, NextHint, next_hints, parse
from evaluation.playing import room_for_hints
from evaluation.settings import EvalConfig
from evaluation.skills import skills
from evaluation.statistics import game
from evaluation.suites import Setting
from record.files import is_run, teacher_adapters, write_text
from record.run import Run
from rollout import Rollout, own_hints, play, run

STEPS = ("use", "write", "explore", "broken_format", "kl")  # metrics of every step that are kept


class WatchedRun(Run):
    """A run whose metrics say what the policy does with what it knows."""

    def log(self, metrics: dict, groups: list[list[Rollout]]) -> None:
        super().log(metrics | skills(rollout for group in groups for rollout in group), groups)


def do(job: dict, folder: Path) -> dict:
    """What is found: weights, tokens, seconds, metrics by step, evaluations."""
    if job["kind"] == "built":
        return make_build(job, folder / "model")
    config = with_teachers(with_whole_paths(Config(**job["flags"], output=str(folder), name="run")))
    config.validate()
    accelerator = processes.launch(config)
    taught = teacher_adapters(config)
    policy, optimizer = build(config, accelerator)
    add_teachers(policy, taught)
    found = {"model": fingerprint(model_folder(config.model))}
    if job["kind"] == "trained":
        begun = folder / "run" if is_run(folder / "run") else None
        with WatchedRun(config, policy, accelerator, begun) as training:
            train.train(config, policy, optimizer, training)
            training.finish()
        found |= of_training([line for line in training.metrics.read() if "eval" not in line])
    began = time.perf_counter()
    found["evaluations"] = {}
    for asked in job["evaluations"]:
        setting = Setting(**asked["setting"])
        found["evaluations"][setting.described()] = evaluated(policy, config, setting, asked["contexts"])
    found.setdefault("seconds", {})["evaluations"] = round(time.perf_counter() - began)
    return found


def model_folder(model: str) -> Path:
    return Path(model) if Path(model).is_absolute() else REPO / model


def make_build(job: dict, folder: Path) -> dict:
    """A second build of the embedded policy, with other words."""
    began = time.perf_counter()
    if not folder.exists():
        argv = ["imitate.py", "--words", job["words"], "--seed", str(job["seed"]), "--output", str(folder)]
        with mock.patch.object(sys, "argv", argv):
            imitate.main()
    return {"model": fingerprint(folder), "seconds": {"building": round(time.perf_counter() - began)}}


def of_training(lines: list[dict]) -> dict:
    """What is kept of the metrics of its steps."""
    steps = {name: [rounded(line[name]) for line in lines] for name in STEPS}
    for name, position in (("first", 0), ("last", -1)):
        steps[name] = [rounded(line["success"][position]) for line in lines]
    tokens = {name: sum(line[f"tokens_{name}"] for line in lines) for name in ("sampled", "forward")}
    seconds = sum(line["time_rollout"] + line["time_train"] for line in lines)  # of interrupted runs, too
    return {"tokens": tokens, "seconds": {"training": round(seconds)}, "steps": steps}


def rounded(number: float | None) -> float | None:
    return None if number is None or math.isnan(number) else round(number, 4)


def evaluated(policy: Policy, config: Config, setting: Setting, contexts: list[str]) -> dict:
    """context -> success of every game by position, as strings of digits; skills; share of broken replies and hints.

    Every seed has packs of its own, the same ones for every policy.
    """
    packs = setting.make_packs(config.seed)
    by_learner = played(players(setting.env)[LEARNER], packs, [own_hints] * len(packs), config)
    found = {LEARNER: kept(by_learner)} if LEARNER in contexts else {}
    written = {LEARNER: hints_of(by_learner)}  # whose hints others read -> pack -> hints
    for context in parse(",".join(name for name in contexts if name != LEARNER)):
        fits = room_for_hints(policy, evaluation_settings(config, setting), context)
        hints = next_hints(context, packs, lambda writer, number: written[writer][number], fits)
        with policy.sampling():
            rollouts = played(policy, packs, hints, config)
        if context == OWN:
            written[""] = hints_of(rollouts)
        found[context.name] = kept(rollouts)
    return found


def evaluation_settings(config: Config, setting: Setting) -> EvalConfig:
    where = {"env": setting.env, "level": setting.level, "pack_size": setting.pack_size}
    return EvalConfig(**where, max_reply_tokens=config.max_reply_tokens)


def played(policy, packs: list[Pack], hints: Sequence[NextHint], config: Config) -> list[Rollout]:
    games = [play(pack, config.penalties, next_hint) for pack, next_hint in zip(packs, hints, strict=True)]
    return run(games, policy, seed=f"eval/{config.seed}", at_once=config.rollouts_at_once)


def hints_of(rollouts: list[Rollout]) -> list[list[str]]:
    return [game(rollout)["hints"] for rollout in rollouts]


def kept(rollouts: list[Rollout]) -> dict:
    """Of an evaluation. All outcomes are 0 or 1 on the levels that are played here."""
    games = [game(rollout) for rollout in rollouts]
    by_position = zip(*(each["success"] for each in games), strict=True)  # [S][N]
    broken, episodes = (sum(each[name] for each in games) for name in ("broken_format", "episodes"))
    return {
        "success": ["".join(str(round(outcome)) for outcome in outcomes) for outcomes in by_position],
        "skills": {name: rounded(share) for name, share in skills(rollouts).items()},
        "broken_format": rounded(broken / episodes),
    }


def main() -> None:
    folder = Path(sys.argv[1])
    result = folder / "result.json"
    with FileLock(folder / ".lock"):  # a study that was killed may have left a process that is still at work on it
        if not result.exists():
            found = do(json.loads((folder / "job.json").read_text(encoding="utf-8")), folder)
            write_text(result, json.dumps(found, allow_nan=False))


if __name__ == "__main__":
    command_line(main)
