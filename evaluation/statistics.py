"""From games to numbers: means by position with bootstrap intervals, and differences paired by pack."""

import math

import torch
from torch import Tensor

from context import NO_HINT_AVAILABLE, NO_HINTS_YET
from engine.errors import BadInput
from environments.task import Task
from rollout import Rollout

RESAMPLES = 2000
REWARDS = ("success", "reward")
COUNTS = ("broken_format", "episodes", "truncated", "replies")
# lists by position in the line of a game, S long; one shorter where they belong to the hints between the tasks
BY_POSITION = "turns reply_tokens thought_tokens read_tokens cost broken_task hint_tokens hint_words hint_kept".split()


def game(rollout: Rollout) -> dict:
    """What an evaluation keeps of a rollout: lists over its tasks [S], or over the hints between them [S - 1].

    "reply_tokens" are sampled in the replies of a task. "read_tokens" are those of the conversations that a task and
    the hint update after it answered, each read once; "thought_tokens" and "cost" are of both, too. "hint_kept" is the
    share of a hint's lines that stood in the one before. "grades" are what the environment says of each hint.
    "replies" counts all, "truncated" the cut ones.
    """
    tasks, updates = rollout.of("solve"), {update.position: update for update in rollout.of("update")}
    asked = [updates.get(j) for j in range(len(tasks) - 1)]
    with_updates = [[task, updates[j]] if j in updates else [task] for j, task in enumerate(tasks)]
    hints = [task.context for task in tasks[1:]]
    said = ["" if hint in (NO_HINTS_YET, NO_HINT_AVAILABLE) else hint for hint in hints]
    replies = [reply for episode in rollout.episodes for reply in episode.replies]
    played = [task.task for task in tasks]
    return {
        "pack": rollout.pack_seed,
        "env": rollout.env,
        "success": [task.outcome for task in tasks],
        "reward": [task.reward for task in tasks],
        "turns": [len(task.replies) for task in tasks],
        "reply_tokens": [sum(reply.n_tokens for reply in task.replies) for task in tasks],
        "read_tokens": [sum(e.replies[-1].n_read for e in both) for both in with_updates],
        "thought_tokens": [sum(reply.n_thought for e in both for reply in e.replies) for both in with_updates],
        "cost": [sum(reply.cost for e in both for reply in e.replies) for both in with_updates],
        "hint_tokens": [update.replies[-1].n_tokens if update else 0 for update in asked],
        "hint_words": [len(hint.split()) for hint in said],
        "hint_kept": [kept(before.context, hint) for before, hint in zip(tasks, said, strict=False)],
        "broken_format": sum(episode.broken_format for episode in rollout.episodes),
        "broken_task": [float(task.broken_format) for task in tasks],
        "episodes": len(rollout.episodes),
        "truncated": sum(reply.truncated for reply in replies),
        "replies": len(replies),
        "hints": hints,
        "grades": [grades(rollout.env, hint, played[: j + 1]) for j, hint in enumerate(hints)],
    }


def grades(env: str, hint: str, played: list[Task]) -> dict[str, float]:
    """What an environment says of a hint. Raises BadInput unless these are finite numbers by name: a game that is kept
    with anything else would spoil every report."""
    found = type(played[0]).grade_hint(hint, played)
    if not isinstance(found, dict):
        raise BadInput(f"env={env!r}: grade_hint gives {in_short(found)}; it must be a dictionary of numbers by name")
    for name in found:
        if not isinstance(name, str):
            raise BadInput(f"env={env!r}: grade_hint gives a grade called {in_short(name)}; names must be text")
    return {name: finite_grade(env, name, value) for name, value in found.items()}


def finite_grade(env: str, name: str, value) -> float:
    """A number of any library as a float."""
    try:
        number = math.nan if isinstance(value, (str, bytes, bytearray)) else float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):  # torch raises the last for several numbers
        number = math.nan
    if not math.isfinite(number):
        raise BadInput(
            f"env={env!r}: grade_hint gives {name!r} the grade {in_short(value)}; it must be a finite number"
        )
    return number


def in_short(value) -> str:
    """As it stands in a message of one line."""
    try:
        return " ".join(repr(value).split())[:60]
    except ValueError:  # an integer of more digits than Python writes
        return f"a huge {type(value).__name__}"


def kept(before: str, after: str) -> float:
    """Share of the lines of a hint that stood in the one before, too."""
    old, lines = set(before.splitlines()), after.splitlines()
    return sum(line in old for line in lines) / max(1, len(lines))


def by_pack(values: Tensor, games: list[dict]) -> Tensor:
    """Values of games [N, S] -> means over the games of each pack [P, S]. Ralph loops over each task of a pack are
    several games of it, with one hidden thing: they are no independent samples."""
    places: dict[int, list[int]] = {}
    for place, game in enumerate(games):
        places.setdefault(game["pack"], []).append(place)
    return torch.stack([values[at].mean(dim=0) for at in places.values()])


def interval(values: Tensor) -> tuple[list[float], list[float], list[float]]:
    """values [N, S] of N packs -> mean, lower and upper end of the bootstrap 95 % interval [S] each.

    Whole packs are resampled, 2,000 times, always the same way.
    """
    generator = torch.Generator().manual_seed(0)
    picks = torch.randint(len(values), (RESAMPLES, len(values)), generator=generator)  # [2000, N]
    shares = torch.zeros(picks.shape).scatter_add_(1, picks, torch.full(picks.shape, 1 / len(values)))  # [2000, N]
    low, high = (shares @ values).quantile(torch.tensor([0.025, 0.975]), dim=0)  # [S], [S]
    mean, low, high = ([round(number, 4) for number in numbers.tolist()] for numbers in (values.mean(dim=0), low, high))
    return mean, low, high


def table_of(games: list[dict], name: str) -> Tensor:
    """A list by position of all games [N, S]."""
    return torch.tensor([game[name] for game in games])


def summarise(label: str, games: list[dict]) -> dict:
    """The record of games: means by position, with intervals for the rewards, and the number of packs.

    "success" is the environment's reward, "reward" has the length penalty taken off; "gap" is the success at the last
    position minus that at the first. "broken_format" is the share of all episodes, tasks and hint updates, whose reply
    could not be read; "truncated" that of all replies that were cut.
    """
    success, reward = (by_pack(table_of(games, name), games) for name in REWARDS)  # [P, S]
    record: dict = {"label": label, "packs": len(success)}
    for name, values in (("success", success), ("reward", reward), ("gap", success[:, -1:] - success[:, :1])):
        record[name], record[f"{name}_low"], record[f"{name}_high"] = interval(values)
    record["broken_format"] = sum(game["broken_format"] for game in games) / sum(game["episodes"] for game in games)
    record["truncated"] = sum(game["truncated"] for game in games) / sum(game["replies"] for game in games)
    return record


def details(games: list[dict]) -> dict:
    """Means by position of what is no reward: turns, tokens, broken formats, hints, and the grades of these by name."""
    found = {name: table_of(games, name).double().mean(dim=0).tolist() for name in BY_POSITION}
    grades = [game["grades"] for game in games]  # [N][S - 1]
    for name in sorted({name for of_game in grades for of_hint in of_game for name in of_hint}):
        at = [[of_hint[name] for of_hint in same if name in of_hint] for same in zip(*grades, strict=True)]
        found[f"grade_{name}"] = [sum(values) / len(values) if values else None for values in at]
    return found


def averaged(runs: list[list[dict]]) -> list[dict]:
    """The games of several runs on the same packs as one: rewards are means over the runs, counts are sums."""
    if len(runs) == 1:
        return runs[0]
    found = []
    for same in zip(*runs, strict=True):
        lists = {name: [sum(at) / len(same) for at in zip(*(g[name] for g in same), strict=True)] for name in REWARDS}
        counts = {name: sum(g[name] for g in same) for name in COUNTS}
        found.append({"pack": same[0]["pack"], **lists, **counts})
    return found


def difference(first: list[dict], second: list[dict]) -> dict:
    """Success of the second minus that of the first on the same packs (see `combination`)."""
    return combination([second], [first])


def combination(plus: list[list[dict]], minus: list[list[dict]]) -> dict:
    """The sum of some successes minus that of others, all on the same packs: by position and, last, in the mean over
    positions [S + 1], with intervals that resample packs; one pack has none. What the packs have in common falls out.
    """
    up, down = (sum(table_of(games, "success") for games in side) for side in (plus, minus))  # [N, S] each
    values = by_pack(up - down, plus[0])  # [P, S]
    mean, low, high = interval(torch.cat([values, values.mean(dim=1, keepdim=True)], dim=1))
    if len(values) == 1:
        low = high = [None] * len(mean)
    return {"difference": mean, "difference_low": low, "difference_high": high}
