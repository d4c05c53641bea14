"""Scripted players: policies without a model, driven by the same loop as the language model.

Three of them give every evaluation its reference lines, by the names that they have in an environment's PLAYERS:

    random    well-formed actions, drawn uniformly
    informed  knows the hidden thing and plays with it as well as can be
    learner   knows nothing at first, finds out within the pack, and carries what it knows in its hints

Random players and learners have nothing but the text that a model has, and read it with regular expressions.
"""

import random

from context import BEGIN, END
from environments.task import Task
from rollout import Episode, Reply


class Player:
    """Base of the scripted players: one text for each waiting conversation."""

    def __init__(self, seed: int | str = 0):
        self.rng = random.Random(seed)

    def reply(self, episodes: list[Episode]) -> list[tuple[Episode, Reply]]:
        return [(e, Reply(self.hint(e.messages) if e.kind == "update" else self.act(e.messages))) for e in episodes]

    def act(self, messages: list[dict]) -> str:
        """The reply to a solve-task conversation."""
        raise NotImplementedError

    def hint(self, messages: list[dict]) -> str:
        """The reply to an update-context conversation; this one says nothing."""
        return update_reply(["nothing"])


class InformedPlayer(Player):
    """Base of the players that know the hidden thing: they look into the task that is being played."""

    def reply(self, episodes: list[Episode]) -> list[tuple[Episode, Reply]]:
        return [(e, Reply(self.hint(e.messages) if e.kind == "update" else self.plan(e.task))) for e in episodes]

    def plan(self, task: Task) -> str:
        """The reply to the task in its present state."""
        raise NotImplementedError


def update_reply(lines: list[str], thought: str = "Here is what I know now.") -> str:
    return "\n".join([thought, BEGIN, *lines, END])
