"""The tiny levels of Terminal: one file, one host, one command a turn, of a tool and a user that are hidden.

The pack's secret is which user may log in, which tool copies and which one deletes. Every command shows of its user and
of its tool whether it is the right one. With two turns for three of each (four on level `tiny-hard`), the first
tasks often fail.
"""

import random
import re
from dataclasses import dataclass

from environments.task import Task, parse_answer, plain

FILE = "notes.txt"
NAMES = {
    "user": ("alice", "bob", "carol", "dave"),
    "copy": ("scp", "rsync", "sftp", "rclone"),
    "delete": ("rm", "trash", "unlink", "shred"),
}
NEEDS = {"Upload": "copy", "Download": "copy", "Delete": "delete"}  # errand -> kind of tool
ERRANDS = ("Upload", "Download", "Delete", "Delete")  # all equally likely, so half of the errands need either tool


@dataclass(frozen=True)
class TinyLevel:
    choices: int  # how many users there are to choose from, and how many tools of each kind
    max_turns: int

    def names(self) -> dict[str, tuple[str, ...]]:
        return {key: names[: self.choices] for key, names in NAMES.items()}


TINY_LEVELS = {"tiny": TinyLevel(3, 2), "tiny-hard": TinyLevel(4, 2)}


class TinyTerminal(Task):
    """Do an errand with the right tool as the right user; which ones these are is the pack's secret."""

    def __init__(self, secret: dict[str, str], errand: str, level: TinyLevel):
        self.secret = secret  # "user", "copy", "delete" -> name
        self.errand = errand
        self.level = level
        self.max_turns = level.max_turns
        users, copying, deleting = (", ".join(names) for names in level.names().values())
        self.rules = (
            "You look after files on a remote host. Each turn you give one command: a tool, a file and a user.\n"
            "Only one user may log in, only one tool copies files (up and down), and only one deletes them. You are "
            "not told which, but they are the same in every task of this series.\n"
            f"The users are {users}. The tools are {copying} to copy and {deleting} to delete.\n"
            f"You have {self.max_turns} turns. Think briefly, then end each reply with your command, "
            "like this: <answer>TOOL FILE USER@host</answer>"
        )

    @classmethod
    def make_tasks(cls, rng: random.Random, size: int, level: str) -> list[Task]:
        settings = TINY_LEVELS[level]
        secret = {key: rng.choice(names) for key, names in settings.names().items()}
        return [cls(secret, rng.choice(ERRANDS), settings) for _ in range(size)]

    def reset(self) -> str:
        self.turn, self.done = 0, False
        self.reward, self.feedback, self.broken_format = 0.0, "", False
        return f"{self.errand} {FILE}.\n{self._scene()}"

    def step(self, reply: str) -> tuple[str, bool]:
        if self.done:
            raise RuntimeError("this task is over; call reset() to play it again")
        self.turn += 1
        command = re.fullmatch(r"([a-z]{1,20}) +([a-z.]{1,20}) +([a-z]{1,20})@host", parse_answer(reply) or "")
        if command is None:
            self.broken_format = True
            return self._end(0.0, "Your reply did not have the form <answer>TOOL FILE USER@host</answer>.")
        tool, file, user = command.groups()
        kind = NEEDS[self.errand]
        accepted, able = user == self.secret["user"], tool == self.secret[kind]
        effect = f"Accepted user: {user}.\n" if accepted else f"There is no user {user}.\n"
        if tool not in self.level.names()[kind]:
            effect += f"This is no tool to {kind}: {tool}.\n"
        else:
            effect += f"Able to {kind}: {tool}.\n" if able else f"There is no tool {tool}.\n"
        if file != FILE:
            effect += f"There is no file {file}.\n"
        elif accepted and able:
            return self._end(1.0, "The errand is done.", effect)
        if self.turn == self.max_turns:
            return self._end(0.0, "You ran out of turns before the errand was done.", effect)
        return effect + self._scene(), False

    def shared_secret(self) -> dict[str, str]:
        return self.secret

    @classmethod
    def grade_hint(cls, hint: str, played: list[Task]) -> dict[str, float]:
        """Shares of the three names that the hint states "right", "wrong" and not at all ("unsaid"). A name is stated
        if it is the only one of its kind in the hint, apart from those that a clause denies."""
        return grade_names(hint, played[0].secret, played[0].level.names())

    def _end(self, reward: float, feedback: str, effect: str = "") -> tuple[str, bool]:
        self.reward, self.feedback, self.done = reward, feedback, True
        return effect + feedback, True

    def _scene(self) -> str:
        return f"Turn {self.turn + 1} of {self.max_turns}:"


DENIAL = re.compile(
    r"\b(?:not?|never|none|cannot|fail(?:s|ed)?|missing|wrong|unknown|untested|maybe|perhaps|try|avoid)\b|\?"
)


def grade_names(hint: str, secret: dict[str, str], names: dict[str, tuple[str, ...]]) -> dict[str, float]:
    clauses = [
        clause for clause in re.split(r"[\n;,()]|[.!](?=\s|$)|\bbut\b", plain(hint)) if not DENIAL.search(clause)
    ]
    words = set(re.findall(r"[a-z]+", " ".join(clauses)))
    said = {key: words.intersection(some) for key, some in names.items()}
    right = sum(said[key] == {secret[key]} for key in secret)
    wrong = sum(len(said[key]) == 1 for key in secret) - right
    total = len(secret)
    return {"right": right / total, "wrong": wrong / total, "unsaid": (total - right - wrong) / total}
