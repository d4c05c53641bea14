"""A reply that is being sampled."""

import random
from dataclasses import dataclass, field

from rollout import Episode


@dataclass(eq=False)
class Draft:
    """A reply that is being sampled: at most `max_new_tokens` tokens, or up to a token of `stops`.

    `rng` is the conversation's own: what is drawn does not depend on what else is in the batch. `row` is the fast
    sampler's place for the conversation.
    """

    episode: Episode
    max_new_tokens: int
    stops: set[int]
    rng: random.Random
    ids: list[int] = field(default_factory=list)
    logps: list[float] = field(default_factory=list)
    row: int = -1

    @property
    def complete(self) -> bool:
        return len(self.ids) == self.max_new_tokens or bool(self.ids) and self.ids[-1] in self.stops

    @property
    def most(self) -> int:
        """Tokens of the conversation when the reply is as long as it may be."""
        return len(self.episode.ids) + self.max_new_tokens

    def add(self, token: int, logp: float) -> None:
        """The next token and its log-probability; behind the end of the reply nothing is added."""
        if not self.complete:
            self.ids.append(token)
            self.logps.append(logp)
