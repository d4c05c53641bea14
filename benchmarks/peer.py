"""Against a peer: the same training steps by TRL's GRPOTrainer and by this project, in turn, in one run.

    python -m venv VENV
    VENV/bin/pip install torch==2.13.0 trl==1.16.0 transformers==5.23.0 peft==0.21.2 accelerate==1.15.0
    python benchmarks/peer.py --peer-python VENV/bin/python --model FOLDER_OR_HUB_NAME

Two cases: replies in a single turn, and conversations of several turns, for which TRL has `environment_factory`: a
reply is read as the call of a tool, and what the tool returns is the next observation. Every side runs in a process of
its own, each as often as `--rounds` says, A B A B; its first step is not counted. The same on both: weights and their
precision, prompts (of FrozenLake, level train, as this project renders them), observations and number of turns, number
of sampled tokens (no reply ends early), temperature 1 without top-k or top-p, rank and places of the adapter, one
optimiser step a batch, gradient checkpointing, no reference model in the loss. Rewards are arbitrary, but all
different, so that every token is trained on.

What differs: TRL samples with transformers' generate, in every turn from the whole conversation (it can also use vLLM,
where that is installed and has room beside it; not measured here). Its loss is its default one. It suppresses the stop
token to keep replies at their length; here it may be sampled, and the reply goes on. TRL leaves out the end-of-turn
token of a reply that was cut, so its conversations are shorter by a token for every turn but the last. This project
spends a part of every step on a metric that TRL has not, the divergence from the model without its adapter. Memory is
the peak of the process while a step is under way, libraries included (on a GPU, of what torch has allocated).
"""

import contextlib
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.peer_trl import PACKAGES, Meter, report, reward
from engine.build import build
from engine.command_line import command_line, parse_flags
from engine.errors import BadInput
from engine.models import REPO
from engine.processes import launch
from engine.settings import Config, check_bounds, flag
from environments.frozenlake.task import FrozenLake
from envs import ENVS, Task
from record.files import TRAIN_SEEDS
from rollout import Reply, play
from train import training_step

TURNS = {"single": 1, "several": 3}  # case -> turns


class Recital(Task):
    """FrozenLake with the game taken out: whatever the reply, the observations of a random walk follow."""

    levels = tuple(TURNS)

    def __init__(self, rules: str, observations: list[str]):
        self.rules, self.observations, self.max_turns = rules, observations, len(observations)

    @classmethod
    def make_tasks(cls, rng, size, level):
        return [cls(*walk(rng, TURNS[level])) for _ in range(size)]

    def reset(self):
        self.turn = 0
        return self.observations[0]

    def step(self, reply):
        self.turn += 1
        self.reward = reward(reply)
        done = self.turn == self.max_turns
        return "" if done else self.observations[self.turn], done


def walk(rng, turns: int) -> tuple[str, list[str]]:
    """(rules, observations) of a walk that is not over after that many turns."""
    while True:
        [lake] = FrozenLake.make_tasks(rng, 1, "train")
        seen, done = [lake.reset()], False
        while len(seen) < turns and not done:
            observation, done = lake.step(f"<answer>Direction {rng.randint(1, 4)}</answer>")
            seen.append(observation)
        if not done:
            return lake.rules, seen


@dataclass(frozen=True)
class Settings:
    model: str = flag("embedded-policy", "model folder or hub name")
    peer_python: str = flag("", "Python of a virtual environment with trl (how to make it: see above)")
    dtype: Literal["auto", "float32", "bfloat16"] = flag(
        "auto", "weights, on both sides; auto: float32 on a CPU, bfloat16 on a GPU"
    )
    gradient_checkpointing: bool = flag(True, "compute activations again in the backward pass, on both sides")
    cases: str = flag("single,several", f"of {', '.join(TURNS)}")
    prompts: int = flag(1, "prompts in a step", at_least=1)
    group_size: int = flag(8, "replies or conversations for each", at_least=2)
    reply_tokens: int = flag(32, "tokens of each reply", at_least=1)
    lora_rank: int = flag(16, "rank of the LoRA adapter", at_least=1)
    steps: int = flag(1, "steps of each process that count", at_least=1)
    rounds: int = flag(2, "processes of each side, in turn", at_least=1)
    work: str = flag("", "used by this script itself: be the process of this project's side")


def dtype_of(settings: Settings) -> str:
    """Many CPUs compute in bfloat16 several times slower than in float32, so there float32 is fair to both."""
    plain = "bfloat16" if torch.cuda.is_available() else "float32"
    return plain if settings.dtype == "auto" else settings.dtype


def config_of(settings: Settings, case: str) -> Config:
    """The training in the words of this project."""
    return Config(
        model=settings.model,
        dtype=dtype_of(settings),
        gradient_checkpointing="on" if settings.gradient_checkpointing else "off",
        lora_rank=settings.lora_rank,
        env="recital",
        level=case,
        pack_size=1,
        steps=settings.steps + 1,
        packs_per_step=settings.prompts,
        group_size=settings.group_size,
        max_reply_tokens=settings.reply_tokens,
        lr=1e-5,
        lr_schedule="constant",
    )


def games(settings: Settings, case: str) -> list[dict]:
    """Prompts and later observations of all steps, in order, as rows of a data set for the peer."""
    rows, config = [], config_of(settings, case)
    for number in range(config.steps * config.packs_per_step):
        game = play(config.pack(TRAIN_SEEDS + number))
        episode = next(game)
        with contextlib.suppress(StopIteration):
            while True:
                game.send(Reply("A stand-in."))
        contents = [message["content"] for message in episode.messages[:-1] if message["role"] == "user"]
        rows.append({"prompt": episode.messages[:2], "observations": contents[1:]})
    return rows


def our_side(work: dict) -> None:
    """The steps that `work` describes, by this project; prints their JSON line."""
    settings = Settings(**work["settings"])
    config = config_of(settings, work["case"])
    config.validate()
    policy, optimizer = build(config, launch(config))
    policy.chat.stop_ids.clear()  # no reply ends early
    meter, sampled, trained = Meter(), [], []
    for step in range(config.steps):
        meter.start()
        metrics, _ = training_step(policy, optimizer, config, step)
        meter.stop()
        if policy.device.type == "cuda":  # every phase has begun its peak anew
            meter.memory[-1] = max(metrics["memory_rollout"], metrics["memory_train"])
        sampled.append(metrics["tokens_sampled"])
        trained.append(metrics["tokens_forward"])
    report("this project", PACKAGES, meter, sampled, trained)


def run_side(command: list[str], work: dict, scratch: str) -> dict:
    """What a process given this work reports."""
    file = Path(scratch, "work.json")
    file.write_text(json.dumps(work))
    quiet = {"TRL_EXPERIMENTAL_SILENCE": "1", "TOKENIZERS_PARALLELISM": "false"}
    result = subprocess.run([*command, str(file)], capture_output=True, text=True, env=os.environ | quiet)
    lines = [line for line in result.stdout.splitlines() if line.startswith("{")]
    if result.returncode or not lines:
        said = (result.stderr.strip() or result.stdout.strip() or "nothing").splitlines()[-1]
        raise BadInput(f"{Path(command[1]).name} ended with {result.returncode}, and said: {said}")
    return json.loads(lines[-1])


def check_peer(python: str) -> None:
    """Raise BadInput unless that is a Python with trl."""
    if not python:
        raise BadInput("peer_python: name the Python of a virtual environment with trl (how to make it: see the top)")
    try:
        result = subprocess.run([python, "-c", "import trl.trainer.grpo_trainer"], capture_output=True, text=True)
    except OSError as error:
        raise BadInput(f"peer_python={python!r}: cannot be started ({error.strerror})") from error
    if result.returncode:
        said = (result.stderr.strip() or "nothing").splitlines()[-1]
        raise BadInput(f"peer_python={python!r}: has no working trl ({said})")


def check_equal(ours: dict, peer: dict) -> None:
    """Raise BadInput unless both sides have done the same work in every step."""
    for a, b in zip(ours["sampled"], peer["sampled"], strict=True):
        if a != b:
            raise BadInput(f"not comparable: this project sampled {a} tokens in a step, the peer {b}")
    for a, b in zip(ours["trained"], peer["trained"], strict=True):
        if abs(a - b) > 0.01 * b:
            raise BadInput(f"not comparable: this project trained on {a} tokens in a step, the peer on {b}")


def values(numbers: list[float]) -> str:
    """Their median, and all of them."""
    return f"{statistics.median(numbers):.2f} ({' '.join(f'{number:.2f}' for number in numbers)})"


def summary(sides: dict[str, list[dict]]) -> list[str]:
    """A line for each side and one with how the first compares to the second.

    Times are medians over the steps of all processes, memory the median of the processes' peaks. The first step of a
    process does not count.
    """
    lines, medians = [], []
    for side, reports in sides.items():
        seconds, core_seconds = ([s for r in reports for s in r[key][1:]] for key in ("seconds", "core_seconds"))
        peaks = [max(r["memory"][1:]) for r in reports]
        medians.append([statistics.median(numbers) for numbers in (seconds, core_seconds, peaks)])
        tokens = f"{reports[0]['sampled'][-1]} tokens sampled, {reports[0]['trained'][-1]} in sequences trained on"
        lines.append(
            f"{side}: {tokens}; a step: seconds {values(seconds)}, core seconds {values(core_seconds)}, "
            f"peak GiB {values(peaks)}"
        )
    (seconds, core_seconds, peak), (peer_seconds, peer_core_seconds, peer_peak) = medians
    lines.append(
        f"this project is {peer_seconds / seconds:.2f} times as fast ({peer_core_seconds / core_seconds:.2f} by core "
        f"seconds), with {peak / peer_peak:.2f} of the memory"
    )
    return lines


def work_of(settings: Settings, case: str) -> dict:
    """What both sides are told of a case, but for the folder in which they may write."""
    config = config_of(settings, case)
    config.validate()
    return {
        "settings": dataclasses.asdict(settings),
        "case": case,
        "turns": TURNS[case],
        "games": games(settings, case),
        "longest": 1 << 16,  # no conversation is cut
        "prompts": config.packs_per_step,
        "model": str(REPO / config.model) if (REPO / config.model).exists() else config.model,
        **{key: getattr(config, key) for key in ("dtype", "group_size", "lora_rank", "steps", "lr")},
        "reply_tokens": settings.reply_tokens,
        "gradient_checkpointing": settings.gradient_checkpointing,
    }


def measure(settings: Settings, case: str) -> None:
    """Let both sides work in turn; prints what comes of it."""
    here = Path(__file__).parent
    commands = {
        "this project": [sys.executable, str(here / "peer.py"), "--work"],
        "TRL": [settings.peer_python, str(here / "peer_trl.py")],
    }
    sides: dict[str, list[dict]] = {side: [] for side in commands}
    with tempfile.TemporaryDirectory() as scratch:
        work = work_of(settings, case) | {"scratch": scratch}
        for _ in range(settings.rounds):
            for side, command in commands.items():
                sides[side].append(run_side(command, work, scratch))
                print(f"{case}, {side}: {' '.join(f'{s:.1f}' for s in sides[side][-1]['seconds'])} s")
            check_equal(*(reports[-1] for reports in sides.values()))
    print(f"{case}: turns {TURNS[case]}, {settings.reply_tokens} tokens each, group of {settings.group_size}")
    for side, reports in sides.items():
        print(f"  {side}: " + ", ".join(f"{name} {number}" for name, number in reports[0]["versions"].items()))
    print("\n".join(f"  {line}" for line in summary(sides)))


def main() -> None:
    settings = parse_flags(Settings)
    check_bounds(settings)
    ENVS["recital"] = Recital
    if settings.work:
        return our_side(json.loads(Path(settings.work).read_text()))
    cases = settings.cases.split(",")
    if unknown := set(cases) - set(TURNS):
        raise BadInput(f"cases={settings.cases!r}: choose from {', '.join(TURNS)}, not {unknown.pop()!r}")
    check_peer(settings.peer_python)
    for case in cases:
        measure(settings, case)


if __name__ == "__main__":
    command_line(main)
