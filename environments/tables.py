"""What the tiny levels of alchemy and terminal have in common: the hidden thing is a table, key -> value, and every
reply gives values of it.

    alchemy      product -> the pair that it is made from         a turn takes the target's
    terminal     user, copy, delete -> user or tool               a command takes the user's and one of a tool

FrozenLake has such a table, too (direction -> action). Here are the scripted players that play any of them, and the
one that imitate.py teaches. An environment says how its conversations are read (`Reader`).
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from environments.player import Player, update_reply
from environments.task import Task, parse_answer
from rollout import Episode, Reply


@dataclass(frozen=True)
class Table:
    """What a conversation says of the hidden table, hints included, and what its next reply has to give."""

    options: dict[str, tuple[str, ...]]  # key -> the values that the rules allow; keys in the order of a hint
    known: dict[str, str]  # key -> value
    dead: frozenset[str]  # values that turned out to be no key's
    wanted: tuple[str, ...]  # the keys whose values a reply gives
    form: str  # the answer, with a {} for each of these values
    one_of: bool = False  # whether one of the wanted values is given, not all

    def untried(self, key: str) -> list[str]:
        """The values that an unknown key may have."""
        return [value for value in self.options[key] if value not in {*self.dead, *self.known.values()}]

    def answer(self, values: Sequence[str]) -> str:
        return f"<answer>{self.form.format(*values)}</answer>"


Reader = Callable[[list[dict]], Table]


def told(messages: list[dict]) -> str:
    """All that the conversation says to the player."""
    return "\n".join(message["content"] for message in messages if message["role"] != "assistant")


def entries(text: str, options: dict[str, tuple[str, ...]]) -> dict[str, str]:
    """The lines "- KEY: VALUE" of hints in a text, with a key and one of its values."""
    found = re.findall(r"^- (\w+): (.+)$", text, re.MULTILINE)
    return {key: value for key, value in found if value in options.get(key, ())}


class TableRandom(Player):
    """Gives any values that the rules allow, all equally likely."""

    def __init__(self, read: Reader, seed: int = 0):
        super().__init__(seed)
        self.read = read

    def act(self, messages: list[dict]) -> str:
        table = self.read(messages)
        return table.answer([self.rng.choice(table.options[key]) for key in table.wanted])


class TableInformed(Player):
    """Gives the true values; the task has them in `secret`."""

    def __init__(self, read: Reader, seed: int = 0):
        super().__init__(seed)
        self.read = read

    def reply(self, episodes: list[Episode]) -> list[tuple[Episode, Reply]]:
        return [(e, Reply(self.hint(e.messages) if e.kind == "update" else self.plan(e))) for e in episodes]

    def plan(self, episode: Episode) -> str:
        return (table := self.read(episode.messages)).answer([episode.task.secret[key] for key in table.wanted])


class TableLearner(TableRandom):
    """Gives the values that it knows, and for the others any that is still possible; all of these are equally likely,
    so for the task at hand nothing is better. It hands down what it knows, and the values that are no key's (`dead`
    names them). With `every` key having a value, the last one that is possible is known."""

    def __init__(self, read: Reader, dead: str, every: bool, seed: int = 0):
        super().__init__(read, seed)
        self.dead, self.every = dead, every

    def act(self, messages: list[dict]) -> str:
        table = self.read(messages)
        return table.answer([table.known.get(key) or self.rng.choice(table.untried(key)) for key in table.wanted])

    def hint(self, messages: list[dict]) -> str:
        table = self.read(messages)
        known = dict(table.known)
        for key in table.options:
            if self.every and key not in known and len(left := table.untried(key)) == 1:
                known[key] = left[0]
        lines = [f"- {key}: {known.get(key, 'unknown')}" for key in table.options]
        return update_reply(lines + [f"- {self.dead}: {value}" for value in sorted(table.dead)])


@dataclass(frozen=True)
class Words:
    """What a demonstrator says where it knows a value, where it guesses one, and in a hint of a value not known."""

    know: str = "I know"
    guess: str = "I guess"
    unknown: str = "unknown"


class Demonstrator(Player):
    """The player that imitate.py teaches: "I know KEY: VALUE" or "I guess: VALUE", then the answer; a hint with a line
    "- KEY: VALUE" for every key. The defaults are the clean player; the others are how often (shares)

    recall   it gives the value of a key that it knows; else it guesses
    explore  a guess is a value that the key may still have; else it is any value
    again    a guess is one that it made in this task already
    write    what it knows gets into the hint
    wrong    an entry of the hint is any value
    """

    def __init__(
        self,
        read: Reader,
        seed: int | str = 0,
        recall: float = 1.0,
        explore: float = 1.0,
        again: float = 0.0,
        write: float = 1.0,
        wrong: float = 0.0,
        words: Words = Words(),
    ):
        super().__init__(seed)
        self.read, self.words = read, words
        self.recall, self.explore, self.again, self.write, self.wrong = recall, explore, again, write, wrong

    def act(self, messages: list[dict]) -> str:
        table = self.read(messages)
        lines, values = zip(*(self.choose(table, key, messages) for key in table.wanted), strict=True)
        return "\n".join([*lines, table.answer(values)])

    def choose(self, table: Table, key: str, messages: list[dict]) -> tuple[str, str]:
        """(the line that says whether it knows the value of the key, the value that it gives)."""
        if key in table.known and self.rng.random() < self.recall:
            return f"{self.words.know} {key}: {table.known[key]}", table.known[key]
        answers = [parse_answer(m["content"]) or "" for m in messages if m["role"] == "assistant"]
        given = [value for value in table.options[key] if any(value in answer for answer in answers)]
        untried = table.untried(key)
        if given and self.again and self.rng.random() < self.again:
            value = self.rng.choice(given)
        elif untried and self.rng.random() < self.explore:
            value = self.rng.choice(untried)
        else:
            value = self.rng.choice(table.options[key])
        return f"{self.words.guess}: {value}", value

    def hint(self, messages: list[dict]) -> str:
        table = self.read(messages)
        lines = []
        for key, options in table.options.items():
            entry = table.known[key] if key in table.known and self.rng.random() < self.write else self.words.unknown
            if self.rng.random() < self.wrong:
                entry = self.rng.choice(options)
            lines.append(f"- {key}: {entry}")
        return update_reply(lines, self.thought(table))

    def thought(self, table: Table) -> str:
        return "Here is what I know now."


class ByTask(Player):
    """Lets every task be played by the player that belongs to its class: {class of tasks: maker of a player}."""

    def __init__(self, makers: dict[type[Task], Callable[..., Player]], seed: int = 0):
        super().__init__(seed)
        self.players = {kind: make(seed=seed) for kind, make in makers.items()}

    def reply(self, episodes: list[Episode]) -> list[tuple[Episode, Reply]]:
        return [answer for e in episodes for answer in self.players[type(e.task)].reply([e])]
