"""Terminal: file errands on a local machine and a remote host, whose peculiarities are hidden.

Level `paper` draws machines anew for every task, as the paper does, so that the tasks of a pack share little. In level
`train` (ours) a pack shares one local machine and one host with three or four peculiarities ("quirks") that nobody is
told: each shows as the error message of a command that would work elsewhere. A player that knows them does any errand
in one command line; one that does not runs into one after the other. The number of turns decides how much that matters:
with 3, 4 and 5 turns the scripted learner, which reads every error and never errs itself, does .11, .41 and .86 of its
first tasks (400 packs) and nearly all of its fourth ones. Level `train` has 4. The tiny levels are in tiny.py.
"""

import random
import re
from dataclasses import dataclass

from environments.task import Task, parse_answer
from environments.terminal.errands import COMPOSITE, SINGLE, Errand, draw_errand, draw_files, goal_of
from environments.terminal.filesystem import Node
from environments.terminal.grades import grade_quirks
from environments.terminal.machines import LOCAL_HOMES, SYSTEMS, UPLOADS, Files, Setup, draw_setup, make_machine
from environments.terminal.shell import MAX_LINE, MAX_OUTPUT, Shell, printable
from environments.terminal.tiny import TINY_LEVELS, TinyTerminal


@dataclass(frozen=True)
class TerminalLevel:
    max_turns: int
    shared: bool  # whether the tasks of a pack share their machines, with quirks


TERMINAL_LEVELS = {"train": TerminalLevel(4, True), "paper": TerminalLevel(12, False)}


class Terminal(Task):
    """Do an errand with files in a terminal; on level `train`, how machine and host are set up is the pack's secret."""

    levels = (*TINY_LEVELS, *TERMINAL_LEVELS)

    def __init__(self, setup: Setup, errand: Errand, files: dict[str, Files], level: TerminalLevel):
        self.setup, self.errand, self.files = setup, errand, files
        self.max_turns = level.max_turns
        self.goal = goal_of(errand, files)
        self.homes = {"local": LOCAL_HOMES[setup.system] + setup.user, "remote": setup.home}
        system = SYSTEMS[setup.system]
        windows = " (commands of cmd)" if setup.system == "windows" else ""
        secret = "This computer and this host have their peculiarities, the same in every task of this series. "
        self.rules = (
            f"You work in the terminal of a {system} computer{windows} as user {setup.user}. "
            f"The Linux host {setup.host} can be reached by ssh HOST COMMAND and scp, without a password. "
            "Each turn you give one command line and see what it prints. Commands can be joined by && and ;. "
            "There are no pipes, redirections, wildcards or variables. "
            "The terminal starts in your home folder, and paths in a task start in the home folder of their machine. "
            f"{secret if level.shared else ''}"
            "Do what the task says, and leave all other files as they are.\n"
            f"You have {self.max_turns} turns. Think briefly, then end each reply with your command line, "
            "like this: <answer>COMMAND LINE</answer>"
        )

    @classmethod
    def make_tasks(cls, rng: random.Random, size: int, level: str) -> list[Task]:
        if level in TINY_LEVELS:
            return TinyTerminal.make_tasks(rng, size, level)
        settings = TERMINAL_LEVELS[level]
        tasks, setup = [], draw_setup(rng, settings.shared)
        for _ in range(size):
            setup = setup if settings.shared else draw_setup(rng, False)
            files = {"local": draw_files(rng), "remote": draw_files(rng)}
            kind = rng.choice(sorted(rng.choice([SINGLE, COMPOSITE])))
            tasks.append(cls(setup, draw_errand(rng, kind, setup, files), files, settings))
        return tasks

    def reset(self) -> str:
        setup = self.setup
        config = Node(f"Host {setup.name}\n    IdentityFile ~/.ssh/id_ed25519")
        home, uploads = self.homes["local"], [UPLOADS] if "incoming" in setup.quirks else []
        local, remote = self.files["local"] | {".ssh/config": config}, self.files["remote"]
        self.machines = {
            "local": make_machine(setup.system, home, home, local),
            "remote": make_machine("linux", f"/home/{setup.login}", setup.home, remote, uploads),
        }
        self.shell = Shell(self.machines["local"], setup, self._reached, self.machines["remote"])
        self.turn, self.done = 0, False
        self.reward, self.feedback, self.broken_format = 0.0, "", False
        return f"{self.errand.text(setup.system)}\nTurn 1 of {self.max_turns}:"

    def step(self, reply: str) -> tuple[str, bool]:
        if self.done:
            raise RuntimeError("this task is over; call reset() to play it again")
        self.turn += 1
        line = parse_answer(reply)
        if line is None:
            self.broken_format = True
            return self._end(0.0, "Your reply did not have the form <answer>COMMAND LINE</answer>.")
        self.shell.output.clear()
        self.shell.run(printable(line[: MAX_LINE + 1]))
        text = "\n".join(self.shell.output)
        text = "(no output)" if not text else text if len(text) <= MAX_OUTPUT else text[:MAX_OUTPUT] + " ... (cut)"
        text = re.sub("#(?=##)", "# ", text) + "\n"
        if self._reached():
            return self._end(1.0, "You did what the task says.", text)
        if self.turn == self.max_turns:
            return self._end(0.0, "You ran out of turns before the task was done.", text)
        return f"{text}Turn {self.turn + 1} of {self.max_turns}:", False

    def shared_secret(self) -> dict[str, str] | None:
        """The peculiarities, without the machines' names that the rules tell; None on level `paper`, which has none."""
        return self.setup.peculiarities() or None

    @classmethod
    def grade_hint(cls, hint: str, played: list[Task]) -> dict[str, float]:
        """Shares of the pack's peculiarities that the hint states "right", "wrong" (another value, or denied) and not
        at all ("unsaid"), and the number of "invented" ones, by keywords; {} on level `paper`."""
        setup = played[0].setup
        return grade_quirks(hint, setup) if setup.quirks else {}

    def _reached(self) -> bool:
        return self.goal.reached(self.machines, self.homes)

    def _end(self, reward: float, feedback: str, text: str = "") -> tuple[str, bool]:
        self.reward, self.feedback, self.done = reward, feedback, True
        return text + feedback, True
