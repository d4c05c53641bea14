"""context.py: hints are read back exactly or not at all, and no data can pass for a piece of the protocol."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from context import (
    BEGIN,
    END,
    HINT_HEADING,
    NO_HINT_AVAILABLE,
    UPDATE_REQUEST,
    UPDATE_SYSTEM,
    parse_update,
    quote,
    solve_system,
    update_messages,
)

UNREADABLE = (NO_HINT_AVAILABLE, False)
HEADINGS = [
    "### Hints you had",
    "### Rules of the task",
    "### What you saw",
    "### What you replied",
    "### How it ended",
]


def lines(*parts):
    return "\n".join(parts)


# ---------------------------------------------------------------------------------------------------------
# Reading a hint


@pytest.mark.parametrize(
    ("reply", "hint"),
    [
        (lines("Up is 1.", BEGIN, "1 is up", END), "1 is up"),
        (lines(BEGIN, "1 is up", END), "1 is up"),
        (lines(BEGIN, "1 is up", "2 is down", "", "3 is left", END), "1 is up\n2 is down\n\n3 is left"),
        (lines(BEGIN, "", "  1 is up  ", "", END), "1 is up"),
        (lines("ok", f"  {BEGIN}\t", "1 is up", f"\t{END}  "), "1 is up"),
        (lines("ok", BEGIN, "1 is up", END, "That was it.", "Bye."), "1 is up"),
        (lines(f"I write {BEGIN} first", BEGIN, "1 is up", END, f"and {END} last"), "1 is up"),
        (lines(BEGIN, f"a line {BEGIN} is not a marker", f"nor is {END} here", END), None),
        (lines(BEGIN, "# one", "## two", "### three", "### BEGIN", "### END", END), None),
        (lines(BEGIN, f"{BEGIN}.", f"#{END}", END.lower(), "###  END HINTS", END), None),
    ],
)
def test_readable_hints(reply, hint):
    """None stands for: all that is between the first and the last line."""
    assert parse_update(reply) == ("\n".join(reply.split("\n")[1:-1]) if hint is None else hint, True)


@pytest.mark.parametrize(
    "reply",
    [
        "",
        "no markers at all",
        lines(BEGIN, "1 is up"),
        lines("1 is up", END),
        lines(END, "1 is up", BEGIN),
        lines(BEGIN, "1 is up", END, BEGIN, "2 is up", END),
        lines(BEGIN, "1 is up", END, END),
        lines(BEGIN, BEGIN, "1 is up", END),
        lines(BEGIN, "1 is up", BEGIN, "2 is up", END, END),
        lines("First the marker", BEGIN, "then more thoughts.", BEGIN, "1 is up", END),
        lines("The last line will be", END, "so:", BEGIN, "1 is up", END),
        lines(BEGIN, END),
        lines(BEGIN, "", " \t ", END),
        f"{BEGIN} 1 is up {END}",
        lines(f"Hints: {BEGIN}", "1 is up", END),
        lines(BEGIN, "1 is up", f"{END} of hints"),
        lines(BEGIN.lower(), "1 is up", END.lower()),
        lines(BEGIN[1:], "1 is up", END[1:]),
        lines(f"# {BEGIN}", "1 is up", END),
    ],
)
def test_unreadable_hints(reply):
    """A marker that is missing, doubled, nested, in the wrong order or not alone on its line, or an empty block."""
    assert parse_update(reply) == UNREADABLE


ODD_SEPARATORS = ["\r", "\x0b", "\x0c", "\x1c", "\x1d", "\x1e", "\x85", "\u2028", "\u2029"]


@pytest.mark.parametrize("separator", ODD_SEPARATORS)
def test_odd_separators_do_not_make_lines(separator):
    assert parse_update(separator.join([BEGIN, "1 is up", END])) == UNREADABLE
    assert parse_update(lines(f"so{separator}{BEGIN}", "1 is up", END)) == UNREADABLE
    assert parse_update(lines(BEGIN, "1 is up", f"{END}{separator}bye")) == UNREADABLE
    inside = f"1 is up{separator}{END}{separator}2 is down"
    assert parse_update(lines(f"see{separator}{BEGIN}{separator}below", BEGIN, inside, END)) == (inside, True)


def test_windows_line_ends_are_read():
    """The markers count as alone on their line; the line ends inside the hint stay as they are."""
    assert parse_update(f"ok\r\n{BEGIN}\r\n1 is up\r\n2 is down\r\n{END}\r\n") == ("1 is up\n2 is down", True)
    assert parse_update(f"{BEGIN}\r\n\r\n{END}") == UNREADABLE


def has_marker(block):
    return any(line.strip() in (BEGIN, END) for line in block.split("\n"))


PIECES = [BEGIN, END, "###", "#", "\n", "\r\n", " ", "\u2028", "\x0b", "1 is up", "BEGIN HINTS", "### "]
texts = st.text() | st.lists(st.sampled_from(PIECES) | st.text(max_size=3), max_size=12).map("".join)
blocks = texts.filter(lambda text: not has_marker(text))


@given(before=blocks, block=blocks, after=blocks)
def test_any_block_without_marker_lines_is_read_back(before, block, after):
    block = block.replace("\r\n", "\n")  # line ends are made uniform
    want = (block.strip(), True) if block.strip() else UNREADABLE
    assert parse_update(lines(before, BEGIN, block, END, after)) == want


@given(before=blocks, block=blocks, extra=st.sampled_from([BEGIN, END]), place=st.integers(0, 4))
def test_one_more_marker_line_makes_any_reply_unreadable(before, block, extra, place):
    parts = [before, BEGIN, block, END]
    parts.insert(place, f" {extra} ")
    assert parse_update(lines(*parts)) == UNREADABLE


@given(texts)
def test_any_reply_is_read_or_refused(reply):
    context, readable = parse_update(reply)
    assert (context, readable) == UNREADABLE or (readable and context == context.strip() != "" and context in reply)


# ---------------------------------------------------------------------------------------------------------
# Showing data


@pytest.mark.parametrize("text", ["", "plain", "# one", "## two", "a#b##c", "##\n#", "## #", "\u0663 < > & ``` \x00"])
def test_quote_leaves_text_without_headings_alone(text):
    assert quote(text) == text


hashes = st.lists(st.sampled_from(["#", "##", "###", "####", " ", "\n", "x", BEGIN, END]), max_size=15).map("".join)


@given(st.text() | hashes)
def test_quote_breaks_every_heading_and_is_idempotent(text):
    quoted = quote(text)
    assert "###" not in quoted
    assert quote(quoted) == quoted
    assert quoted.replace("# ", "#").replace(" ", "") == text.replace(" ", "")  # nothing but spaces is added


def test_solve_prompt_is_rules_then_hint():
    prompt = solve_system("Reach the goal.", "1 is up\n2 is down")
    assert prompt.startswith("Reach the goal.\n")
    assert prompt.endswith(f"\n{HINT_HEADING}\n1 is up\n2 is down")
    assert prompt.count("###") == 1
    assert "may help" in HINT_HEADING and "may be wrong" in HINT_HEADING


@given(rules=texts | hashes, context=texts | hashes)
def test_solve_prompt_has_one_heading_and_the_hint_at_its_end(rules, context):
    prompt = solve_system(rules, context)
    assert prompt.count("###") == 1
    assert prompt == f"{quote(rules)}\n\n{HINT_HEADING}\n{quote(context)}"
    assert BEGIN not in prompt and END not in prompt


def transcript_of(rules, observations, replies, last):
    messages = [{"role": "system", "content": rules}]
    for observation, reply in zip(observations, replies, strict=True):
        messages += [{"role": "user", "content": observation}, {"role": "assistant", "content": reply}]
    return [*messages, {"role": "user", "content": last}]


def test_update_conversation_in_full():
    transcript = transcript_of("Reach the goal.", ["seen a", "seen b"], ["did a", "did b"], "seen c")
    system, user = update_messages("1 is up", transcript, 0.86251, "You won.")
    assert system == {"role": "system", "content": UPDATE_SYSTEM}
    assert user["role"] == "user"
    want = ["### Hints you had", "1 is up", "### Rules of the task", "Reach the goal.", "### What you saw", "seen a"]
    want += ["### What you replied", "did a", "### What you saw", "seen b", "### What you replied", "did b"]
    want += ["### What you saw", "seen c", "### How it ended", "You won.", "Reward: 0.863", UPDATE_REQUEST]
    assert user["content"].split("\n") == want


def test_update_instructions_name_both_markers():
    assert UPDATE_SYSTEM.count(BEGIN) == UPDATE_SYSTEM.count(END) == 1
    assert parse_update(UPDATE_SYSTEM) == UNREADABLE  # repeating the instructions is no hint


@pytest.mark.parametrize(("reward", "shown"), [(0, "0.000"), (1, "1.000"), (0.9125, "0.912"), (2 / 3, "0.667")])
def test_reward_has_three_decimals(reward, shown):
    _, user = update_messages("h", transcript_of("r", [], [], "o"), reward, "f")
    assert f"\nReward: {shown}\n" in user["content"]


hostile = st.one_of(
    texts, hashes, st.sampled_from([*HEADINGS, UPDATE_REQUEST, HINT_HEADING]).map(lambda h: f"x\n{h}\ny")
)


@given(
    context=hostile,
    rules=hostile,
    turns=st.lists(st.tuples(hostile, hostile), max_size=4),
    last=hostile,
    feedback=hostile,
    reward=st.floats(0, 1),
)
def test_update_conversation_holds_all_data_in_order_and_only_its_own_headings(
    context, rules, turns, last, feedback, reward
):
    observations, replies = [seen for seen, _ in turns], [did for _, did in turns]
    system, user = update_messages(context, transcript_of(rules, observations, replies, last), reward, feedback)
    assert system["content"] == UPDATE_SYSTEM
    sections = user["content"].split("###")  # every heading starts a new section
    assert len(sections) == 1 + 5 + 2 * len(turns)
    data = [context, rules, *(text for turn in turns for text in turn), last, f"{feedback}\nReward: {reward:.3f}"]
    names = ["Hints you had", "Rules of the task"] + ["What you saw", "What you replied"] * len(turns)
    names += ["What you saw", "How it ended"]
    assert sections[0] == ""
    want = [f" {name}\n{quote(text)}\n" for name, text in zip(names, data, strict=True)]
    assert sections[1:-1] == want
    assert "###" + sections[-1] == UPDATE_REQUEST


@given(hint=blocks.filter(str.strip))
def test_a_hint_survives_the_way_from_reply_to_prompt(hint):
    """What was written is what the next task shows, but for the spaces that `quote` adds."""
    context, readable = parse_update(lines("ok", BEGIN, hint, END))
    assert readable
    assert solve_system("rules", context).split(f"{HINT_HEADING}\n")[1] == quote(hint.replace("\r\n", "\n").strip())
