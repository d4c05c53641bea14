"""How a model learns from scripted players: their replies are written into the episodes as if the model had sampled
them, and their likelihood is maximised.
"""

import os
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from tqdm import tqdm

from engine.batches import training_batches
from engine.chat import ChatFormat
from engine.errors import BadInput, first_line
from engine.policy import Policy
from environments.player import Player
from envs import demonstrator, make_pack
from rollout import Episode, Reply, play, run

SAVE_EVERY = 10  # optimiser steps


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


@dataclass(frozen=True)
class Lessons:
    """Batches of episodes of packs that demonstrators play, by their number; no two have a pack in common.

    Pack i of a batch is of the domain i, counted round; a share `harder` of the packs is of level `tiny-hard`.
    """

    chat: ChatFormat
    domains: Sequence[tuple[str, str]]  # (environment, level)
    first_pack: int
    packs: int = 24  # in a batch
    pack_size: int = 4
    knobs: Mapping[str, dict] = field(default_factory=dict)  # environment -> settings of its demonstrator
    harder: float = 0.0
    seed: int = 0

    def __call__(self, number: int) -> list[Episode]:
        rng = random.Random(f"{self.seed}/{self.first_pack}/{number}")
        teachers: dict[tuple[str, str], Teacher] = {}
        episodes = []
        for i in range(self.packs):
            env, level = self.domains[i % len(self.domains)]
            if rng.random() < self.harder:
                level = "tiny-hard"
            if (env, level) not in teachers:
                player = demonstrator(env, level)(seed=rng.random(), **self.knobs.get(env, {}))
                teachers[env, level] = Teacher(player, self.chat)
            pack = make_pack(env, self.first_pack + number * self.packs + i, self.pack_size, level)
            episodes += run([play(pack)], teachers[env, level])[0].episodes
        return episodes


@dataclass
class Partial:
    """An imitation that is under way, on disk: the trained weights, the optimiser's state, and how many steps of which
    stage are done."""

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

    def write(
        self,
        stage: tuple[int, int],
        done: int,
        parameters: list[torch.nn.Parameter],
        optimizer: torch.optim.Optimizer | None,
    ) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_name(f".tmp-{self.path.name}")
        saved = {
            "settings": self.settings,
            "stage": stage,
            "done": done,
            "weights": [parameter.detach() for parameter in parameters],
            "optimizer": optimizer.state_dict() if optimizer else None,
        }
        torch.save(saved, temporary)
        os.replace(temporary, self.path)


def trained(policy: Policy) -> list[torch.nn.Parameter]:
    return [parameter for parameter in policy.model.parameters() if parameter.requires_grad]


@torch.no_grad()
def restore(policy: Policy, weights: list[torch.Tensor]) -> None:
    """Put back the weights that a Partial has saved."""
    for parameter, kept in zip(trained(policy), weights, strict=True):
        parameter.copy_(kept)


def imitate(
    policy: Policy,
    batches: Callable[[int], list[Episode]],
    steps: int,
    lr: Callable[[float], float],
    name: str,
    budget: int,
    reached: Callable[[int, float], bool] | None = None,
    partial: Partial | None = None,
    stage: tuple[int, int] = (0, 0),
) -> bool:
    """Maximise the likelihood of the masked tokens; `batches` maps the number of a step to its episodes, `lr` progress
    in [0, 1) to a learning rate.

    Ends after `steps`, or as soon as `reached(step, loss)`; returns whether that happened (True if there is no goal).
    With `partial` it goes on from what is saved there for this stage, and saves every SAVE_EVERY steps.
    """
    parameters = trained(policy)
    optimizer = torch.optim.AdamW(parameters, weight_decay=0.0)
    done = 0
    if partial is not None and (saved := partial.read()) and saved["stage"] == stage and saved["done"]:
        done = saved["done"]
        optimizer.load_state_dict(saved["optimizer"])
        restore(policy, saved["weights"])
        del saved
    bar = tqdm(range(done, steps), desc=name, unit="step", initial=done, total=steps)
    for step in bar:
        for group in optimizer.param_groups:
            group["lr"] = lr(step / steps)
        episodes = batches(step)
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
            partial.write(stage, step + 1, parameters, optimizer)
        if reached is not None and reached(step, total):
            bar.close()
            return True
    return reached is None


def rise_and_fall(peak: float) -> Callable[[float], float]:
    """A learning rate that rises over the first tenth and then falls to a tenth of its peak."""
    return lambda progress: peak * min(1.0, 10 * progress + 0.02, 1.1 - progress)
