"""Imitation of scripted players, on rollouts of the same loop: what reinforcement learning starts from.

    python imitate.py --output my-policy                     build the embedded policy from nothing (10 minutes)
    python imitate.py --model FOLDER --output warm-start     teach a model the reply format by imitation; if broken off,
                                                             the same line goes on from the last tenth step

A scripted player plays packs; its replies are written into the episodes as if the model had sampled them, and the
model is trained on their likelihood. Small models that never produce the reply format need this before CoD training.

The embedded policy is a Qwen3-architecture model of 190,000 weights. It is built in stages, each of which has to reach
its goal: drills (copy the value that belongs to a key), a clean player, and at last a mediocre one that heads for the
goal most of the time, but rarely uses what it knows and writes bad hints. What is left for reinforcement learning is to
find out that good hints, and using them, pay.
"""

import engine.start  # noqa: F401, I001 (before torch is imported)

import dataclasses
import os
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Literal

import torch
from tqdm import tqdm

from engine.batches import training_batches
from engine.chat import ChatFormat
from engine.command_line import command_line, parse_flags
from engine.embedded import MEDIOCRE, build_model, build_tokenizer, drill, fingerprint
from engine.errors import BadInput, first_line
from engine.models import Lora, add_adapter, checkpoint_activations, load_model, merged_model
from engine.policy import Policy
from engine.settings import check_bounds, flag
from environments.frozenlake.players import Planner
from environments.player import Player
from envs import make_pack
from evaluation.statistics import game, summarise
from record.files import whole_folder
from record.run import phase
from rollout import Episode, Reply, Rollout, play, run

PLANNERS = {  # settings of the players that can be imitated
    "clean": {},
    "mediocre": MEDIOCRE,
}
SAVE_EVERY = 10  # optimiser steps, of a warm start


@dataclass(frozen=True)
class ImitateConfig:
    output: str = flag("", "folder for the model (must not exist yet)")
    model: str = flag("", "model folder or hub name to start from; empty: build the embedded policy from nothing")
    gguf_file: str = flag("", "name of a GGUF file in the model folder, to read the weights from (with --model)")
    player: Literal["clean", "mediocre"] = flag("clean", "whom to imitate (with --model)")
    spell_out: bool = flag(False, "it compares rows and columns, and says what it knows of good ways (with --model)")
    level: Literal["tiny", "train", "hard"] = flag("tiny", "level of FrozenLake (with --model)")
    steps: int = flag(100, "optimiser steps (with --model)", at_least=1, below=1e7)
    packs_per_step: int = flag(24, "packs played by the player in a step", at_least=1, below=1e6)
    pack_size: int = flag(4, "tasks in a pack", at_least=1, below=1e4)
    lr: float = flag(
        5e-4, "peak learning rate; it rises over the first tenth, then falls to a tenth (with --model)", above=0
    )
    lora_rank: int = flag(
        0,
        "train a LoRA adapter of this rank, merged at the end; 0: all weights (with --model)",
        at_least=0,
        below=65_537,
    )
    tokens_per_microbatch: int = flag(8192, "padded tokens in one forward pass (memory and speed only)", at_least=1)
    dtype: Literal["auto", "float32", "bfloat16"] = flag("auto", "weights; auto: as they are stored (with --model)")
    gradient_checkpointing: Literal["auto", "on", "off"] = flag(
        "auto", "compute activations again in the backward pass; auto: for models above 100 million weights"
    )
    compile: bool = flag(False, "train through compiled layers (with --model)")
    seed: int = flag(0, "seed of the weights, the packs and the player", at_least=0, below=2**32)


class Teacher:
    """A scripted player whose replies are written into the episodes as if a model had sampled them."""

    def __init__(self, player: Player, chat: ChatFormat):
        self.player, self.chat = player, chat

    def reply(self, episodes: list[Episode]) -> list[tuple[Episode, Reply]]:
        replies = self.player.reply(episodes)
        for episode, reply in replies:
            self.chat.open_turn(episode)
            ids = [*self.chat.encode(self.chat.clean(reply.text)), self.chat.turn_end]
            episode.add(ids, [0.0] * len(ids))
        return replies


def lessons(player: Player, chat: ChatFormat, config: ImitateConfig, first_seed: int) -> Iterator[list[Episode]]:
    """Endless batches of episodes of packs that a player plays, never the same pack twice."""
    teacher = Teacher(player, chat)
    for batch in count():
        seeds = range(first_seed + batch * config.packs_per_step, first_seed + (batch + 1) * config.packs_per_step)
        games = [play(make_pack("frozenlake", seed, config.pack_size, config.level)) for seed in seeds]
        yield [episode for rollout in run(games, teacher) for episode in rollout.episodes]


@dataclass(frozen=True)
class Partial:
    """An imitation that is under way, on disk: the trained weights, the optimiser's state, how many steps are done."""

    path: Path
    settings: dict

    def read(self) -> dict | None:
        """What was saved, if anything. Raises BadInput if that belongs to other settings or cannot be read."""
        if not self.path.exists():
            return None
        try:
            saved = torch.load(self.path, map_location="cpu", weights_only=True)
            others = [name for name, value in self.settings.items() if saved["settings"].get(name) != value]
        except Exception as error:  # torch raises errors of many kinds
            raise BadInput(f"{self.path}: cannot be read ({first_line(error)}); remove it to start anew") from error
        if others:
            raise BadInput(
                f"{others[0]}={self.settings[others[0]]!r}: {self.path} was begun with "
                f"{saved['settings'].get(others[0])!r}; go on with that, or remove the file to start anew"
            )
        return saved

    def write(self, done: int, parameters: list[torch.nn.Parameter], optimizer: torch.optim.Optimizer) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_name(f".tmp-{self.path.name}")
        weights = [parameter.detach() for parameter in parameters]
        saved = {"settings": self.settings, "done": done, "weights": weights, "optimizer": optimizer.state_dict()}
        torch.save(saved, temporary)
        os.replace(temporary, self.path)


def imitate(
    policy: Policy,
    batches: Iterator[list[Episode]],
    steps: int,
    lr: Callable[[float], float],
    name: str,
    budget: int,
    reached: Callable[[int, float], bool] | None = None,
    partial: Partial | None = None,
) -> bool:
    """Maximise the likelihood of the masked tokens; `lr` maps progress in [0, 1) to a learning rate.

    Ends after `steps`, or as soon as `reached(step, loss)`; returns whether that happened (True if there is no goal).
    With `partial` it goes on from what is saved there, and saves every SAVE_EVERY steps.
    """
    parameters = [parameter for parameter in policy.model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, weight_decay=0.0)
    done = 0
    if partial is not None and (saved := partial.read()):
        done = saved["done"]
        optimizer.load_state_dict(saved["optimizer"])
        with torch.no_grad():
            for parameter, weights in zip(parameters, saved["weights"], strict=True):
                parameter.copy_(weights)
        del saved, weights
        for _ in range(done):  # the player's random numbers go on from there, too
            next(batches)
    bar = tqdm(range(done, steps), desc=name, unit="step", initial=done, total=steps)
    for step in bar:
        for group in optimizer.param_groups:
            group["lr"] = lr(step / steps)
        episodes = next(batches)
        n_tokens = sum(episode.n_sampled for episode in episodes)
        total = 0.0
        policy.train_mode()
        for batch in training_batches(episodes, budget, policy):
            logp, _ = policy.logprobs_of(batch)  # [B, T]
            loss = -logp.sum() / n_tokens
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        bar.set_postfix(loss=f"{total:.3f}")
        if partial is not None and (step + 1) % SAVE_EVERY == 0:
            partial.write(step + 1, parameters, optimizer)
        if reached is not None and reached(step, total):
            bar.close()
            return True
    return reached is None


def rise_and_fall(peak: float) -> Callable[[float], float]:
    """A learning rate that rises over the first tenth and then falls to a tenth of its peak."""
    return lambda progress: peak * min(1.0, 10 * progress + 0.02, 1.1 - progress)


def sample_packs(policy: Policy, packs: int, level: str, pack_size: int, seed: int) -> list[Rollout]:
    """Rollouts of the policy itself on packs that no lesson uses."""
    games = [play(make_pack("frozenlake", n, pack_size, level)) for n in range(packs)]
    with policy.sampling():
        return run(games, policy, f"imitate/{seed}")


# ---------------------------------------------------------------------------------------------------------
# The embedded policy


def hint_quality(rollouts: list[Rollout]) -> tuple[float, float]:
    """Share of right and of wrong entries in the hints written before the last task (the rest says unknown)."""
    right = wrong = 0
    for rollout in rollouts:
        mapping = make_pack("frozenlake", rollout.pack_seed, 1, "tiny").tasks[0].mapping
        for way, number in re.findall(r"^- (\w+): Direction ([1-4])$", rollout.of("update")[-1].context, re.MULTILINE):
            right += mapping[int(number) - 1] == way
            wrong += mapping[int(number) - 1] != way
    return right / (4 * len(rollouts)), wrong / (4 * len(rollouts))


def build_embedded(config: ImitateConfig) -> Policy:
    """Build the embedded policy stage by stage; raises BadInput if a stage does not reach its goal with this seed."""
    tokenizer = build_tokenizer()
    policy = Policy(build_model(tokenizer), tokenizer)
    chat, budget = policy.chat, config.tokens_per_microbatch
    rng = random.Random(config.seed)

    def require(goal: bool, stage: str, what: str) -> None:
        print(f"{stage}: {what}")
        if not goal:
            raise BadInput(f"seed={config.seed}: stage {stage!r} did not reach its goal; try another seed")

    drills = ([drill(chat, rng) for _ in range(64)] for _ in count())
    goal = imitate(policy, drills, 2500, lambda _: 2e-3, "drills", budget, lambda _, loss: loss < 0.15)
    require(goal, "drills", "loss under 0.15 on looking values up")

    def good_hints(step: int, _) -> bool:
        right, wrong = hint_quality(sample_packs(policy, 128, "tiny", 4, 0)) if step % 50 == 49 else (0.0, 1.0)
        return right >= 0.8 and wrong < 0.05

    clean = lessons(Planner(config.seed), chat, config, 10**6)
    goal = imitate(policy, clean, 600, lambda _: 3e-3, "clean player", budget, good_hints)
    require(goal, "clean player", "hints after three tasks: at least 80 % right, under 5 % wrong")
    # learnt at 2, sampled at 1: next to nothing is left for tokens that do not belong there
    policy.settings = dataclasses.replace(policy.settings, temperature=2.0)
    imitate(policy, clean, 200, lambda progress: 2e-3 * (1 - 0.95 * progress), "clean player, settling", budget)
    policy.settings = dataclasses.replace(policy.settings, temperature=1.0)
    record = summarise("clean", [game(rollout) for rollout in sample_packs(policy, 512, "tiny", 4, 0)])
    goal = record["success"][3] >= 0.9 and record["broken_format"] < 0.005
    require(goal, "clean player, settling", f"success {record['success']}, broken format {record['broken_format']:.2%}")

    mediocre = lessons(Planner(config.seed, **PLANNERS["mediocre"]), chat, config, 10**7)
    imitate(policy, mediocre, 250, rise_and_fall(3e-4), "mediocre player", budget)
    record = summarise("mediocre", [game(rollout) for rollout in sample_packs(policy, 512, "tiny", 4, 0)])
    goal = max(record["success"]) <= 0.3 and record["broken_format"] < 0.01
    require(goal, "mediocre player", f"success {record['success']}, broken format {record['broken_format']:.2%}")
    return policy


def imitate_player(config: ImitateConfig, partial: Partial) -> Policy:
    """Let the model of the settings imitate the player; returns it, its adapter not yet merged."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model, tokenizer = load_model(config.model, config.dtype, device, config.gguf_file)
    checkpoint_activations(model, config.gradient_checkpointing)
    if config.lora_rank:
        model = add_adapter(model, Lora(config.lora_rank, 2 * config.lora_rank))
    policy = Policy(model, tokenizer)
    if config.compile:
        policy.compile()
    player = Planner(config.seed, **PLANNERS[config.player], spell_out=config.spell_out)
    batches = lessons(player, policy.chat, config, 10**6 * (config.seed + 1))
    remedy = "lower --tokens-per-microbatch (or use --lora-rank); the same line goes on"
    with phase("imitation", remedy, policy.device, {}):
        imitate(
            policy,
            batches,
            config.steps,
            lr=rise_and_fall(config.lr),
            name=f"{config.player} player",
            budget=config.tokens_per_microbatch,
            partial=partial,
        )
    return policy


def main() -> None:
    config = parse_flags(ImitateConfig)
    check_bounds(config)
    if not config.output or Path(config.output).exists():
        raise BadInput(f"output={config.output!r}: name a folder that does not exist yet")
    settings = dataclasses.asdict(config)
    for name in ("tokens_per_microbatch", "gradient_checkpointing", "compile"):  # these may change on the way
        del settings[name]
    partial = Partial(Path(f"{config.output}.partial"), settings)
    partial.read()  # other settings end here
    torch.manual_seed(config.seed)
    if config.model:
        policy = imitate_player(config, partial)
    else:
        policy = build_embedded(dataclasses.replace(config, level="tiny", pack_size=4))
    model = merged_model(policy.model) if config.model and config.lora_rank else policy.model
    with whole_folder(Path(config.output)) as folder:
        model.save_pretrained(folder)
        policy.chat.tokenizer.save_pretrained(folder)
        if not config.model:
            (folder / "fingerprint.txt").write_text(fingerprint() + "\n", encoding="utf-8")
    partial.path.unlink(missing_ok=True)
    print(f"written: {config.output}")


if __name__ == "__main__":
    command_line(main)
