"""The rollout loop.

`play` is the Connect-the-Dots loop over one pack: solve a task, write a hint, solve the next task with it, ... It is a
plain generator that yields the conversation waiting for a reply, so anything that turns conversations into text can
drive it: a language model (engine/), a scripted player (environments/player.py), a test. `run` drives many at once.
"""

import copy
import math
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass, field

from tqdm import tqdm

from context import NO_HINTS_YET, encodable, parse_update, quote, solve_system, update_messages
from engine.errors import BadInput
from envs import Pack, Task, name_of

BAR_DELAY = 3  # progress bars show after this many seconds
TOO_LONG = "The conversation has become too long, so the task ends here."


@dataclass
class Reply:
    """What a policy answered to a conversation.

    `truncated`: cut by the length cap before a stop token came. `context_full`: nothing was sampled, because the
    conversation is longer than the model can read.
    """

    text: str
    n_tokens: int = 0
    truncated: bool = False
    context_full: bool = False
    n_read: int = 0  # tokens of the conversation that it answers
    n_thought: int = 0  # tokens of reasoning beside the text
    cost: float = 0.0  # as the endpoint charges it


@dataclass(eq=False)  # an episode is an object with an identity: the sampler keeps its KV cache by it
class Episode:
    """One conversation, the unit of credit and of training: a solved task, or the hint update after it.

    `ids`, `mask` and `logps` have an entry for every token of the conversation up to the last reply: its id, whether
    the policy sampled it, and its log-probability when it did (0 elsewhere). The observation that ends a task is in
    `messages` only: no reply follows it. A policy without tokens leaves all three empty.
    """

    kind: str  # "solve" or "update"
    position: int  # index of its task in the pack
    messages: list[dict]  # the same conversation as text
    context: str  # solve: the hint it was given; update: the hint it wrote
    ids: list[int] = field(default_factory=list)
    mask: list[bool] = field(default_factory=list)
    logps: list[float] = field(default_factory=list)
    rng_key: str = ""  # names the stream of random numbers that its replies are sampled with; set by `run`
    outcome: float = 0.0  # solve: the environment's reward
    reward: float = 0.0  # what is trained on: outcome with the length penalty, or the update's format reward
    ret: float = 0.0  # its return, and
    advantage: float = 0.0  # its advantage, set by the trainer
    advantages: list[float] = field(default_factory=list)  # that of every token, where they differ (distillation)
    broken_format: bool = False  # a reply that could not be read ended the task, or the hint could not be read
    replies: list[Reply] = field(default_factory=list)
    task: Task | None = None  # that is being played or has just been played, for players that know what is hidden

    def add(self, ids: Iterable[int], logps: Iterable[float] | None = None) -> None:
        """Append tokens: sampled ones with their log-probabilities, others without."""
        ids = list(ids)
        self.ids += ids
        self.mask += [logps is not None] * len(ids)
        self.logps += [0.0] * len(ids) if logps is None else logps

    def cut(self, length: int) -> None:
        """Keep the first `length` tokens."""
        del self.ids[length:], self.mask[length:], self.logps[length:]

    @property
    def n_sampled(self) -> int:
        """Number of tokens that the policy sampled."""
        return sum(self.mask)


@dataclass
class Rollout:
    """One playthrough of a pack: solve 0, update 0, solve 1, ..., solve S-1."""

    pack_seed: int
    episodes: list[Episode]
    env: str = ""  # environment and level of the pack, as in "frozenlake/tiny"

    def of(self, kind: str) -> list[Episode]:
        return [episode for episode in self.episodes if episode.kind == kind]


@dataclass(frozen=True)
class Penalties:
    """Length penalty of solved tasks (coefficient, range of reply tokens) and format penalty of hint updates."""

    length: float = 0.1
    tokens_lo: float = 1e6
    tokens_hi: float = 2e6
    bad_hint: float = 0.1

    def solve_reward(self, outcome: float, reply_tokens: list[int], max_turns: int) -> float:
        """The reward r of a task whose outcome is above 0 (others keep theirs):

        max(0, outcome - length * (mean over turns of clip((tokens - tokens_lo) / (tokens_hi - tokens_lo), 0, 1)
                                   + turns / max_turns))
        """
        if outcome <= 0 or not reply_tokens:
            return outcome
        spans = [(n - self.tokens_lo) / (self.tokens_hi - self.tokens_lo) for n in reply_tokens]
        verbosity = sum(min(max(span, 0.0), 1.0) for span in spans) / len(spans)
        return max(0.0, outcome - self.length * (verbosity + len(reply_tokens) / max_turns))


def own_hints(episodes: list[Episode]) -> str | None:
    """The policy is asked for every hint."""
    return None


def no_hints(episodes: list[Episode]) -> str | None:
    """No hints are asked for and every task sees the initial context: the ablation "hints blanked"."""
    return NO_HINTS_YET


def play(
    pack: Pack,
    penalties: Penalties = Penalties(),
    next_hint: Callable[[list[Episode]], str | None] = own_hints,
) -> Generator[Episode, Reply, Rollout]:
    """Play one pack: yields the episode whose conversation waits for a reply, is sent the reply, returns a Rollout.

    `next_hint` is given the episodes so far, once a task is done, and returns the hint for the next task; or None, and
    the policy is asked to write it. Task-by-task RL is a pack of one task, a Ralph loop one made with ralph=True. The
    tasks that are played are copies, made together, for they may share what playing changes (a map that is uncovered
    from task to task).
    """
    episodes = []
    context = NO_HINTS_YET
    tasks = copy.deepcopy(pack.tasks)
    for position, task in enumerate(tasks):
        observation, done = task.reset(), False
        system = {"role": "system", "content": solve_system(task.rules, context)}
        episode = Episode(
            "solve", position, [system, {"role": "user", "content": quote(observation)}], context, task=task
        )
        while not done:
            reply = yield episode
            episode.replies.append(reply)
            observation, done = (TOO_LONG, True) if reply.context_full else task.step(reply.text)
            episode.messages.append({"role": "assistant", "content": encodable(reply.text)})
            episode.messages.append({"role": "user", "content": quote(observation)})
        feedback = TOO_LONG if reply.context_full else task.feedback
        outcome = 0.0 if reply.context_full else finite_reward(pack, position, task)
        episode.outcome, episode.broken_format = outcome, task.broken_format
        lengths = [reply.n_tokens for reply in episode.replies]
        episode.reward = penalties.solve_reward(outcome, lengths, task.max_turns)
        episodes.append(episode)
        context = next_hint(episodes) if position + 1 < len(tasks) else NO_HINTS_YET
        if context is None:
            transcript = [{"role": "system", "content": task.rules}, *episode.messages[1:]]
            messages = update_messages(episode.context, transcript, episode.reward, feedback)
            update = Episode("update", position, messages, episode.context, task=task)
            reply = yield update
            update.replies.append(reply)
            text = encodable(reply.text)
            update.messages.append({"role": "assistant", "content": text})
            context, readable = parse_update(text)
            update.context, update.broken_format = context, not readable
            update.reward = 0.0 if readable else -penalties.bad_hint
            episodes.append(update)
    return Rollout(pack.seed, episodes, f"{name_of(pack.env)}/{pack.level}")


def finite_reward(pack: Pack, position: int, task: Task) -> float:
    """The reward of a finished task. Raises BadInput if it is no finite number: the mean over a group would be none."""
    try:
        reward = float(task.reward)
    except (TypeError, ValueError, OverflowError):
        reward = math.nan
    if not math.isfinite(reward):
        shown = " ".join(repr(task.reward).split())[:60]
        where = f"env={pack.env!r}, level={pack.level!r}: position {position} of pack {pack.seed}"
        raise BadInput(f"{where}: the reward is {shown}; it must be a finite number")
    return reward


def run(
    games: Iterable[Generator],
    policy,
    seed: str = "",
    numbers: Sequence[int] | None = None,
    at_once: int = 256,
    progress: str | None = None,
    finished: Callable[[int, Rollout], None] = lambda number, rollout: None,
) -> list[Rollout]:
    """Drive many `play` generators with one policy; their rollouts, in order.

    `policy.reply(list[Episode]) -> list[tuple[Episode, Reply]]` is given the conversations that newly wait for a reply
    and returns those it has finished, one at least, of all it was ever given; a game goes on as soon as its reply is
    there. At most `at_once` games are under way; the next one starts when one ends. `progress` names a progress bar.

    A game's random numbers follow from `seed` and its number (0, 1, ..., unless `numbers` says otherwise) alone, not
    from what else is under way: a run shared out over processes or played fewer at a time samples the same. Every run
    that is to be independent of others needs a seed of its own. `finished` is told of every game that has ended.
    """
    games = list(games)
    numbers = range(len(games)) if numbers is None else numbers
    rollouts: list[Rollout | None] = [None] * len(games)
    unstarted = list(range(len(games)))[::-1]
    under_way: dict[Episode, int] = {}  # the conversation that waits for a reply -> index of its game
    asking: list[Episode] = []
    hidden = True if progress is None else None  # None: shown on a terminal only
    with tqdm(total=len(games), desc=progress, unit="pack", disable=hidden, delay=BAR_DELAY, leave=False) as bar:

        def ask(i: int, episode: Episode) -> None:
            episode.rng_key = f"{seed}/{numbers[i]}/{episode.kind}/{episode.position}"
            under_way[episode] = i
            asking.append(episode)

        while True:
            while unstarted and len(under_way) < at_once:
                i = unstarted.pop()
                ask(i, next(games[i]))
            if not under_way:
                return rollouts
            answers = policy.reply(asking)
            asking.clear()
            for episode, reply in answers:
                i = under_way.pop(episode)
                try:
                    ask(i, games[i].send(reply))
                except StopIteration as stop:
                    rollouts[i] = stop.value
                    finished(numbers[i], stop.value)
                    bar.update()
