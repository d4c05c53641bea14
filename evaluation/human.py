"""A person as the policy, and a look at how any policy plays."""

import io
import re
import sys

from rollout import Episode, Reply, Rollout

CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # a terminal would obey them
TITLES = {"system": "what the player is told", "user": "what it sees", "assistant": "what it replies"}


class Human:
    """Reads each reply from the terminal, up to an empty line. `Watched` shows the conversation before."""

    def __init__(self):
        if isinstance(sys.stdin, io.TextIOWrapper):
            sys.stdin.reconfigure(errors="replace")  # a slip of the keyboard, or a file in another encoding

    def reply(self, episodes: list[Episode]) -> list[tuple[Episode, Reply]]:
        return [(episode, Reply(self.ask())) for episode in episodes]

    def ask(self) -> str:
        """Raises KeyboardInterrupt at the end of the input: what has been played before is kept."""
        print("--- your reply; an empty line ends it", flush=True)
        lines: list[str] = []
        while True:
            line = sys.stdin.readline()
            if not line:
                raise KeyboardInterrupt
            if line.strip():
                lines.append(line.rstrip("\r\n"))
            elif lines:
                return "\n".join(lines)


class Watched:
    """A policy whose conversations are printed while it plays. They must come one at a time (`run` with at_once=1)."""

    def __init__(self, policy):
        self.policy = policy
        self.episode: Episode | None = None  # that is being shown
        self.shown = 0  # of its messages

    def reply(self, episodes: list[Episode]) -> list[tuple[Episode, Reply]]:
        for episode in episodes:
            self.show(episode)
        return self.policy.reply(episodes)

    def show(self, episode: Episode) -> None:
        """What is new in the conversation; of the one before, how it ended."""
        if episode is not self.episode:
            self.end()
            what = "the next hint" if episode.kind == "update" else f"task {episode.position + 1}"
            print(f"\n===== {what} =====")
            self.episode, self.shown = episode, 0
        for message in episode.messages[self.shown :]:
            if message["role"] != "assistant" or not isinstance(self.policy, Human):  # who has just typed it
                print(f"\n[{TITLES[message['role']]}]\n{CONTROL.sub('�', message['content'])}", flush=True)
        self.shown = len(episode.messages)

    def end(self) -> None:
        """The rest of the conversation that has been shown."""
        if self.episode is not None:
            self.show(self.episode)
            print(f"\n--- reward {self.episode.reward:.3f}")
            self.episode = None

    def finished(self, rollout: Rollout) -> None:
        """A pack has ended."""
        self.end()
        successes = " ".join(f"{task.outcome:.2f}" for task in rollout.of("solve"))
        print(f"\n===== end of the pack; success by position: {successes} =====")
