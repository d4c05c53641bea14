"""What a policy does with what it knows, decision by decision: success says whether it plays well, this says why not.

A key of the hidden table (a direction, a product, a kind of tool) counts as known if the environment's demonstrator
would know it, from the hint and from what the task at hand has shown, and rightly.
"""

from collections import Counter
from collections.abc import Iterable

from environments.tables import entries
from envs import demonstrator, parse_answer
from rollout import Episode, Rollout

SKILLS = ("use", "explore", "write", "wrong")


def skills(rollouts: Iterable[Rollout]) -> dict[str, float]:
    """Shares, of rollouts on levels that have a demonstrator (envs.demonstrator); nan where there was no such decision

    use      of the known values that a reply needs, those that it states ("KEY: VALUE") and gives
    explore  of the values given for keys that are not known, those that the key may still have
    write    of the known keys, those with their value in the hint
    wrong    of all keys, those with another than their true value in the hint
    """
    counts: Counter = Counter()
    for rollout in rollouts:
        read = demonstrator(*rollout.env.rsplit("/", 1))(seed=0).read
        for solved in rollout.of("solve"):
            counts += given(solved, read)
        for solved, update in zip(rollout.of("solve"), rollout.of("update"), strict=False):
            counts += written(update, solved, read)
    return {name: counts[name] / counts[name, "of"] if counts[name, "of"] else float("nan") for name in SKILLS}


def given(episode: Episode, read) -> Counter:
    """Counts of a solved task: "use" and "explore", and of how many decisions: ("use", "of")."""
    truth = episode.task.shared_secret()
    counts: Counter = Counter()
    for at, message in enumerate(episode.messages):
        if message["role"] != "assistant":
            continue
        table = read(episode.messages[:at])
        answer = parse_answer(message["content"]) or ""
        lines = message["content"].split("\n")
        known = [key for key in table.wanted if table.known.get(key) == truth[key]]
        # of several ways to the goal one is taken; of a command's tool and user both are needed
        if table.one_of:
            decisions = [known] if known else [table.wanted]
        else:
            decisions = [[key] for key in table.wanted]
        for keys in decisions:
            if keys[0] in known:
                stated = [
                    table.known[k] for k in keys if any(line.endswith(f"{k}: {table.known[k]}") for line in lines)
                ]
                counts["use"] += any(value in answer for value in stated)
                counts["use", "of"] += 1
            else:
                counts["explore"] += any(value in answer for value in table.untried(keys[0]))
                counts["explore", "of"] += 1
    return counts


def written(update: Episode, solved: Episode, read) -> Counter:
    """Counts of the hint after a task: "write" and "wrong", and of how many keys. What is known is read from the task,
    where replies stand apart from observations: a reply may say anything."""
    truth = solved.task.shared_secret()
    table = read(solved.messages)
    hint = entries(update.context, table.options)
    known = [key for key in truth if table.known.get(key) == truth[key]]
    return Counter(
        {
            "write": sum(hint.get(key) == truth[key] for key in known),
            ("write", "of"): len(known),
            "wrong": sum(value != truth[key] for key, value in hint.items()),
            ("wrong", "of"): len(truth),
        }
    )
