"""What the tasks of a pack are given in place of the policy's own hints: the comparisons that tell what hints do.

    own         the policy writes its hints itself
    none        blanked: no hints are asked for
    transcript  no hints; the earlier tasks as they went, whole, as much as the window takes
    shuffled    the hints that the policy wrote in another pack, with another secret
    perfect     the hints that the environment's learner wrote on the same tasks
    from=NAME   the hints that another policy wrote on the same tasks
    frozen=K    its own hints, kept as they are after K tasks (frozen: after one)

A hint that comes from elsewhere stands at the position for which it was written.
"""

import re
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from context import NO_HINTS_YET
from engine.errors import BadInput
from envs import Pack
from rollout import Episode, no_hints, own_hints

NextHint = Callable[[list[Episode]], str | None]  # as rollout.play asks for
NAMES = "own none transcript shuffled perfect from=POLICY frozen=K"


@dataclass(frozen=True)
class Context:
    """One mode: `writer` names the policy whose hints are read ("" for its own or none)."""

    name: str  # as it was given
    kind: str  # own, none, transcript, shuffled, from or frozen
    writer: str = ""
    after: int = 0  # of frozen: tasks


OWN = Context("own", "own")


def parse(text: str, policies: Mapping[str, str] = MappingProxyType({})) -> list[Context]:
    """The modes of a list with commas; "own" is added where another one needs it. `policies` (label -> name) are called
    by their labels, however they were named. Raises BadInput for what is no mode."""
    found: list[Context] = []
    for name in map(str.strip, text.split(",")):
        context = parse_one(name, policies)
        for other in found:
            if (other.kind, other.writer, other.after) == (context.kind, context.writer, context.after):
                raise BadInput(f"context={name!r}: is the same as {other.name!r}, which is named before")
        found.append(context)
    if any(context.kind == "shuffled" for context in found) and OWN not in found:  # it reads what "own" has written
        found.insert(0, OWN)
    return found


def parse_one(name: str, policies: Mapping[str, str]) -> Context:
    kind, _, value = name.partition("=")
    if name in ("own", "none", "transcript", "shuffled"):
        return Context(name, name)
    if name == "perfect":
        return Context(name, "from", writer="learner")
    if kind == "from" and value:
        writer = next((label for label, named in policies.items() if named == value), value)
        return Context(f"from={writer}", "from", writer=writer)
    if name == "frozen" or re.fullmatch("frozen=[1-9][0-9]{0,3}", name):
        return Context(name, "frozen", after=int(value or 1))
    raise BadInput(f"context={name!r}: unknown; choose from {NAMES}")


def given(hints: Sequence[str]) -> NextHint:
    """Hints that are there already, one for each task but the first."""
    return lambda episodes: hints[episodes[-1].position]


def frozen(after: int) -> NextHint:
    """The hint after so many tasks, for the rest of the pack."""
    return lambda episodes: None if episodes[-1].position < after else episodes[-1].context


def transcript(fits: Callable[[str], bool]) -> NextHint:
    """All that was seen and replied in the earlier tasks; what is oldest is left out until the text `fits`."""

    def next_hint(episodes: list[Episode]) -> str:
        blocks = [block for episode in episodes for block in blocks_of(episode)]
        first = bisect_left(range(len(blocks)), True, key=lambda i: fits("\n".join(blocks[i:])))
        return "\n".join(blocks[first:]) or NO_HINTS_YET

    return next_hint


def blocks_of(episode: Episode) -> list[str]:
    """A task as it went, as pieces of text."""
    names = {"user": "You saw:", "assistant": "You replied:"}
    lines = [f"{names[message['role']]}\n{message['content']}" for message in episode.messages[1:]]
    return [f"Task {episode.position + 1}", *lines, f"Reward: {episode.reward:.3f}"]


def others(packs: Sequence[Pack]) -> list[int]:
    """For every pack the index of the next one, in a circle, with another secret. Raises BadInput if there is none."""
    secrets = [pack.tasks[0].shared_secret() for pack in packs]
    found = []
    for i in range(len(packs)):
        ahead = (j % len(packs) for j in range(i + 1, i + len(packs)))
        other = next((j for j in ahead if secrets[j] is None or secrets[j] != secrets[i]), None)
        if other is None:
            raise BadInput("context='shuffled': no two of these packs have different secrets; take more --packs")
        found.append(other)
    return found


def next_hints(
    context: Context, packs: Sequence[Pack], hints_of: Callable[[str, int], list[str]], fits: Callable[[str], bool]
) -> list[NextHint]:
    """Of every pack. `hints_of(writer, pack)` are the hints that a policy ("": the one that plays) wrote in a pack."""
    if context.kind == "shuffled":
        return [given(hints_of("", other)) for other in others(packs)]
    if context.kind == "from":
        return [given(hints_of(context.writer, i)) for i in range(len(packs))]
    same = {"own": own_hints, "none": no_hints, "transcript": transcript(fits), "frozen": frozen(context.after)}
    return [same[context.kind]] * len(packs)
