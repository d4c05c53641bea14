"""The hint: how it is shown to the agent, asked for, and read back.

Three texts make up the protocol: the system prompt of a solve-task episode (rules, then the current hint), the
conversation of an update-context episode, and the reply to it, which must hold the new hint between two marker
lines. Every heading and marker starts with "###". Text that comes from elsewhere (an observation, a reply, a
hint) passes through `quote`, which breaks up any "###" in it, so data can never look like a piece of the protocol.
"""

import re

NO_HINTS_YET = "(no hints yet)"  # the context z_0, before the first task
NO_HINT_AVAILABLE = "(no hint available)"  # the context after an update that could not be read
BEGIN, END = "### BEGIN HINTS", "### END HINTS"

HINT_HEADING = "### Hints from earlier tasks of this series (they may help, but they may be wrong)"

UPDATE_SYSTEM = (
    "You are working through a series of related tasks that share something hidden. "
    "Between two tasks you write hints to yourself: they are all that you will remember. "
    "You see the hints you had, and everything that happened in the task just finished.\n"
    "Say in a sentence or two what you found out. Then write the new hints, which replace the old ones: "
    "keep what is still useful, correct what was wrong, add what is new, leave out what matters to that one task only. "
    f"Put them between a line {BEGIN} and a line {END}, each marker exactly once and alone on its line."
)
UPDATE_REQUEST = "### Now write the hints for the next task"


def encodable(text: str) -> str:
    """The text without lone surrogates, which no file and no tokenizer takes; a "?" in place of each."""
    return text.encode("utf-8", "replace").decode()


def quote(text: str) -> str:
    """Data as it may appear in a prompt: no three '#' in a row, hence no heading and no marker; and encodable."""
    return re.sub("#(?=##)", "# ", encodable(text))


def solve_system(rules: str, context: str) -> str:
    """System prompt of a solve-task episode: the rules, with the hint at the end."""
    return f"{quote(rules)}\n\n{HINT_HEADING}\n{quote(context)}"


def update_messages(context: str, transcript: list[dict], reward: float, feedback: str) -> list[dict]:
    """The conversation that asks for the next hint.

    `transcript` is the finished task as messages: the rules without hints ("system"), then observations ("user")
    and replies ("assistant") in turn. `reward` is shown with three decimals.
    """
    headings = {"system": "### Rules of the task", "user": "### What you saw", "assistant": "### What you replied"}
    lines = ["### Hints you had", quote(context)]
    for message in transcript:
        lines += [headings[message["role"]], quote(message["content"])]
    lines += ["### How it ended", quote(feedback), f"Reward: {reward:.3f}", UPDATE_REQUEST]
    return [{"role": "system", "content": UPDATE_SYSTEM}, {"role": "user", "content": "\n".join(lines)}]


def parse_update(reply: str) -> tuple[str, bool]:
    """The hint in an update-context reply: (context, True), or (NO_HINT_AVAILABLE, False) if it cannot be read.

    A marker counts where it stands alone on its line (spaces around it are ignored). There must be exactly one BEGIN
    and, after it, exactly one END, with something between them. Markers that appear twice, nested, in the wrong
    order or on a line of their own inside the reasoning make the whole reply unreadable rather than guessed at;
    a marker in the middle of a line is ordinary text.
    """
    # not splitlines(): a marker must stand on a real line of its own
    lines = reply.replace("\r\n", "\n").split("\n")
    begins = [i for i, line in enumerate(lines) if line.strip() == BEGIN]
    ends = [i for i, line in enumerate(lines) if line.strip() == END]
    if len(begins) != 1 or len(ends) != 1:
        return NO_HINT_AVAILABLE, False
    context = "\n".join(lines[begins[0] + 1 : ends[0]]).strip()  # empty if END comes first
    return (context, True) if context else (NO_HINT_AVAILABLE, False)
