"""envs.py: packs are reproducible and isolated, maps are what the levels say, any reply is survived."""

import itertools
import random
import re

import pytest
from doubles import same_in_other_processes
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import BadInput
from environments.frozenlake.task import LAKE_LEVELS, FrozenLake, LakeMap
from envs import ENVS, make_pack, parse_answer

STEPS = {"up": (-1, 0), "down": (1, 0), "left": (0, -1), "right": (0, 1)}
TURNS = {"tiny": 4, "tiny-hard": 5, "train": 8, "hard": 10}


def answer(k):
    return f"I go. <answer>Direction {k}</answer>"


def fingerprint(pack):
    """Everything about a pack that a player or the rules of the game can see, as text."""
    parts = []
    for task in pack.tasks:
        lake = task.lake
        parts.append([task.reset(), task.rules, task.max_turns, task.mapping])
        parts.append([lake.size, sorted(lake.holes), lake.start, lake.goal])
    return repr(parts)


def play_steps(task, actions):
    """Play known actions on one task, one per `next`; yields all that can be seen each time."""
    yield task.reset(), False
    for k in actions:
        observation, done = task.step(answer(k))
        yield observation, done, task.reward, task.feedback, task.cell
        if done:
            return


def a_lake(size=3, holes=(), start=(0, 0), goal=(2, 2), level="train", mapping=("up", "down", "left", "right")):
    task = FrozenLake(LakeMap(size, frozenset(holes), start, goal), mapping, LAKE_LEVELS[level])
    task.reset()
    return task


# ---------------------------------------------------------------------------------------------------------
# Packs


def many_fingerprints():
    """Fingerprints of packs over seeds, levels and loops; its source also runs in other processes."""
    arguments = itertools.product((0, 1, 123456), (3,), ("tiny", "tiny-hard", "train", "hard"), (False, True))
    return "\n".join(fingerprint(make_pack("frozenlake", *each)) for each in arguments)


def test_same_arguments_give_the_same_pack_in_every_process():
    assert same_in_other_processes(many_fingerprints, fingerprint)


def test_different_seeds_and_levels_give_different_packs():
    packs = [make_pack("frozenlake", seed, 4, level) for seed in range(50) for level in LAKE_LEVELS]
    assert len({fingerprint(pack) for pack in packs}) == len(packs)
    mappings = {level: [pack.tasks[0].mapping for pack in packs if pack.level == level] for level in LAKE_LEVELS}
    assert len(set(map(tuple, mappings.values()))) == len(
        LAKE_LEVELS
    )  # a level does not give away another one's secret


def test_drawing_a_pack_does_not_touch_the_global_random_state():
    state = random.getstate()
    make_pack("frozenlake", 0, 4)
    assert random.getstate() == state


@pytest.mark.parametrize("level", LAKE_LEVELS)
def test_pack_fields_and_sizes(level):
    for size in (1, 2, 8):
        pack = make_pack("frozenlake", 7, size, level)
        assert (pack.env, pack.seed, pack.size, pack.level, pack.ralph) == ("frozenlake", 7, size, level, False)
        assert len(pack.tasks) == size


def test_a_pack_shares_one_mapping_and_all_24_occur():
    seen = set()
    for seed in range(400):
        tasks = make_pack("frozenlake", seed, 4, "tiny").tasks
        assert len({task.mapping for task in tasks}) == 1
        seen.add(tasks[0].mapping)
    assert seen == set(itertools.permutations(STEPS))


def test_the_maps_of_a_pack_differ():
    packs = [make_pack("frozenlake", seed, 4) for seed in range(20)]
    assert all(len({task.lake for task in pack.tasks}) == 4 for pack in packs)


@pytest.mark.parametrize("ralph", [False, True])
def test_copies_of_a_pack_do_not_affect_each_other(ralph):
    """Copies played move by move in turns, with different actions, see exactly what each would see alone."""
    rng = random.Random(5)
    for seed in range(10):
        pack = make_pack("frozenlake", seed, 3, ralph=ralph)
        actions = [[[rng.randint(1, 4) for _ in range(8)] for _ in range(3)] for _ in range(4)]  # [copy][task][turn]
        copies = [pack, pack.fresh(), pack.fresh(), pack.fresh().fresh()]
        games = {}
        for i, copy in enumerate(copies):
            for j, task in enumerate(copy.tasks):
                games[i, j] = play_steps(task, actions[i][j])
        seen = {key: [] for key in games}
        alive = list(games)
        while alive:
            key = rng.choice(alive)
            try:
                seen[key].append(next(games[key]))
            except StopIteration:
                alive.remove(key)
        for i, j in games:
            alone = make_pack("frozenlake", seed, 3, ralph=ralph).tasks[j]
            assert seen[i, j] == list(play_steps(alone, actions[i][j]))


def test_fresh_starts_anew_after_a_pack_was_partly_played():
    pack = make_pack("frozenlake", 3, 2)
    want = fingerprint(make_pack("frozenlake", 3, 2))
    pack.tasks[0].reset()
    pack.tasks[0].step("no action at all")
    pack.tasks[1].reset()
    pack.tasks[1].step(answer(1))
    copy = pack.fresh()
    assert all(mine is not theirs for mine, theirs in zip(copy.tasks, pack.tasks, strict=True))
    assert all((task.reward, task.feedback, task.broken_format) == (0.0, "", False) for task in copy.tasks)
    assert fingerprint(copy) == want
    assert pack.tasks[0].broken_format  # the played one is as it was


def test_ralph_repeats_one_task_with_its_own_state():
    pack = make_pack("frozenlake", 11, 3, ralph=True)
    assert pack.ralph and pack.fresh().ralph and len(pack.tasks) == 3
    assert len({(task.lake, task.mapping, task.reset()) for task in pack.tasks}) == 1
    first = [task.reset() for task in pack.tasks]
    pack.tasks[0].step("no action at all")
    assert pack.tasks[0].done and not pack.tasks[1].done
    pack.tasks[1].step(answer(1))
    assert pack.tasks[2].cell == pack.tasks[2].lake.start and pack.tasks[2].turn == 0
    assert [task.reset() for task in pack.tasks] == first


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("lake", 0, 4), ["'lake'", "frozenlake"]),
        (("a\nb", 0, 4), ["frozenlake"]),
        (("frozenlake", 0, 4, "easy"), ["'easy'", "tiny", "train", "hard"]),
        (("frozenlake", 0, 4, "x\ny"), ["tiny", "train", "hard"]),
        (("frozenlake", 0, 0), ["0", "at least 1"]),
        (("frozenlake", 0, -3), ["-3", "at least 1"]),
    ],
)
def test_bad_arguments_are_named_in_one_line(arguments, named):
    with pytest.raises(BadInput) as error:
        make_pack(*arguments)
    assert len(str(error.value).splitlines()) == 1
    assert all(word in str(error.value) for word in named)


def test_environments_declare_their_levels():
    assert ENVS["frozenlake"] is FrozenLake
    assert set(FrozenLake.levels) == {"tiny", "tiny-hard", "train", "hard"}


# ---------------------------------------------------------------------------------------------------------
# Maps


def plain_distance(size, holes, start, goal):
    """Shortest path by Floyd-Warshall over all cells that are not holes; None if there is none."""
    cells = [(row, col) for row in range(size) for col in range(size) if (row, col) not in holes]
    far = size * size + 1
    length = {(a, b): 0 if a == b else far for a in cells for b in cells}
    for row, col in cells:
        for row_step, col_step in STEPS.values():
            if (row + row_step, col + col_step) in cells:
                length[(row, col), (row + row_step, col + col_step)] = 1
    for via, a, b in itertools.product(cells, cells, cells):
        length[a, b] = min(length[a, b], length[a, via] + length[via, b])
    return None if length[start, goal] == far else length[start, goal]


def test_distance_matches_floyd_warshall():
    rng = random.Random(0)
    found = []
    for _ in range(150):
        size = rng.randint(2, 4)
        cells = list(itertools.product(range(size), repeat=2))
        start, goal = rng.sample(cells, 2)
        holes = frozenset(cell for cell in cells if rng.random() < 0.4) - {start, goal}
        found.append(LakeMap(size, holes, start, goal).distance())
        assert found[-1] == plain_distance(size, holes, start, goal)
    assert None in found and max(d for d in found if d) >= 5


@pytest.mark.parametrize(
    ("level", "sizes", "distances"),
    [
        ("tiny", {3}, {2, 3}),
        ("tiny-hard", {4}, {3, 4}),
        ("train", {4, 5}, set(range(1, 7))),
        ("hard", {6, 7}, set(range(1, 9))),
    ],
)
def test_maps_of_a_level(level, sizes, distances):
    """All sizes and distances of a level occur, and no others."""
    seen_sizes, seen_distances = set(), set()
    for seed in range(50):
        for task in make_pack("frozenlake", seed, 4, level).tasks:
            lake = task.lake
            inside = set(itertools.product(range(lake.size), repeat=2))
            assert lake.start != lake.goal and {lake.start, lake.goal} | lake.holes <= inside
            assert lake.start not in lake.holes and lake.goal not in lake.holes
            assert task.max_turns == TURNS[level]
            seen_sizes.add(lake.size)
            seen_distances.add(lake.distance())
    assert seen_sizes == sizes
    assert seen_distances == distances


def test_share_of_holes():
    """Below what the tile probabilities say, since maps without a short path are drawn again."""
    share = {}
    for level in LAKE_LEVELS:
        lakes = [task.lake for seed in range(50) for task in make_pack("frozenlake", seed, 4, level).tasks]
        share[level] = sum(len(lake.holes) for lake in lakes) / sum(lake.size**2 for lake in lakes)
    assert (
        0.03 < share["tiny"] < 0.12
        and 0.03 < share["tiny-hard"] < 0.15
        and 0.2 < share["train"] < 0.4
        and 0.2 < share["hard"] < 0.4
    )


# ---------------------------------------------------------------------------------------------------------
# Playing


def test_first_observation_shows_turn_map_and_goal():
    task = a_lake(holes=[(0, 2), (1, 0)], start=(1, 1), goal=(2, 0))
    observation = task.reset()
    assert observation.splitlines()[-3:] == ["_ _ O", "O P _", "G _ _"]
    assert "Turn 1 of 8" in observation
    assert "goal at row 3, column 1" in observation
    assert "row 2, column 2" in observation


def test_a_move_shows_both_positions_and_the_new_map():
    task = a_lake(mapping=("left", "up", "right", "down"))
    observation, done = task.step(answer(3))
    assert not done and task.cell == (0, 1)
    assert "Direction 3: row 1, column 1 to row 1, column 2" in observation
    assert "Turn 2 of 8" in observation
    assert observation.splitlines()[-3:] == ["_ P _", "_ _ _", "_ _ G"]


@pytest.mark.parametrize("level", ["tiny", "train"])
def test_a_step_over_the_edge_stays_in_place_and_takes_a_turn(level):
    task = a_lake(level=level)
    for turn, k in enumerate((1, 3), start=2):  # up and left from the corner
        observation, done = task.step(answer(k))
        assert not done and task.cell == (0, 0)
        assert f"Nothing moved with Direction {k}: still at row 1, column 1" in observation
        assert f"Turn {turn} of" in observation


def test_a_hole_ends_the_task_with_0():
    task = a_lake(holes=[(0, 1)])
    observation, done = task.step(answer(4))
    assert done and task.reward == 0 and not task.broken_format
    assert "hole" in task.feedback and task.feedback in observation
    assert "row 1, column 1 to row 1, column 2" in observation


def test_the_goal_ends_the_task_with_1():
    task = a_lake(goal=(1, 0))
    assert task.reward == 0
    observation, done = task.step(answer(2))
    assert done and task.reward == 1 and not task.broken_format
    assert "goal" in task.feedback and task.feedback in observation
    assert "row 1, column 1 to row 2, column 1" in observation


def test_the_goal_counts_on_the_last_turn():
    task = a_lake(level="tiny", goal=(1, 0))
    replies = [task.step(answer(k)) for k in (1, 1, 1, 2)]
    assert [done for _, done in replies] == [False, False, False, True] and task.reward == 1


@pytest.mark.parametrize("level", LAKE_LEVELS)
def test_running_out_of_turns_ends_the_task_with_0(level):
    task = a_lake(level=level)
    dones = [task.step(answer(1))[1] for _ in range(TURNS[level])]
    assert dones == [False] * (TURNS[level] - 1) + [True]
    assert task.reward == 0 and not task.broken_format and "turns" in task.feedback


def test_reset_plays_the_same_task_again():
    task = a_lake(goal=(1, 0))
    first = task.reset()
    task.step(answer(2))
    assert task.reward == 1
    assert task.reset() == first
    assert (task.reward, task.feedback, task.broken_format, task.cell) == (0.0, "", False, (0, 0))
    task.step("no action at all")
    assert task.broken_format
    task.reset()
    assert not task.broken_format and not task.step(answer(4))[1]


def test_a_step_after_the_end_is_refused():
    task = a_lake()
    task.step("no action at all")
    with pytest.raises(RuntimeError, match="reset"):
        task.step(answer(1))


@pytest.mark.parametrize("level", LAKE_LEVELS)
def test_random_play_matches_a_plain_simulation(level):
    """Position, end and reward follow the rules; only level tiny ever names the direction of a move."""
    rng = random.Random(level)
    endings = set()
    for seed in range(40):
        for task in make_pack("frozenlake", seed, 2, level).tasks:
            lake, (row, col) = task.lake, task.lake.start
            said, done, turn = task.reset(), False, 0
            assert not re.search(r"\b(up|down|left|right)\b", said)
            while not done:
                k, before = rng.randint(1, 4), (row, col)
                said, done = task.step(answer(k))
                turn += 1
                direction = task.mapping[k - 1]
                row = min(max(row + STEPS[direction][0], 0), lake.size - 1)
                col = min(max(col + STEPS[direction][1], 0), lake.size - 1)
                assert task.cell == (row, col)
                over = (row, col) in lake.holes or (row, col) == lake.goal or turn == TURNS[level]
                assert done == over
                assert task.reward == ((row, col) == lake.goal)
                named = [direction] if level in ("tiny", "tiny-hard") and (row, col) != before else []
                assert re.findall(r"\b(up|down|left|right)\b", said) == named
            endings.add("hole" if (row, col) in lake.holes else "goal" if task.reward else "turns")
    assert endings == {"hole", "goal", "turns"}


# ---------------------------------------------------------------------------------------------------------
# Replies


@pytest.mark.parametrize(
    ("reply", "inside"),
    [
        ("<answer>Direction 1</answer>", "Direction 1"),
        ("thinking ...\n<answer>\n  Direction 1 \n</answer> that is it", "Direction 1"),
        ("<answer>two\nlines</answer>", "two\nlines"),
        ("<answer></answer>", ""),
        ("<answer><b></answer>", "<b>"),
        ("", None),
        ("Direction 1", None),
        ("<answer>Direction 1", None),
        ("Direction 1</answer>", None),
        ("</answer>Direction 1<answer>", None),
        ("<ANSWER>Direction 1</ANSWER>", None),
        ("<answer>1</answer><answer>1</answer>", None),
        ("<answer>1<answer>2</answer></answer>", None),
        ("<answer>1</answer></answer>", None),
        ("<answer><answer>1</answer>", None),
    ],
)
def test_parse_answer(reply, inside):
    assert parse_answer(reply) == inside


@pytest.mark.parametrize(
    "inside",
    ["", "1", "Direction", "Direction 0", "Direction 5", "Direction 11", "Direction -1", "direction 1", "Direction  1"]
    + ["Direction\n1", "Direction 1.", "Direction 1 2", "Direction \u0661", "Direction \uff11", "Direction \u00b9"]
    + ["Direction 1\x00", "up", "Direction N", "### BEGIN HINTS"],
)
def test_an_action_that_is_not_one_ends_the_task(inside):
    task = a_lake()
    observation, done = task.step(f"<answer>{inside}</answer>")
    assert done and task.broken_format and task.reward == 0 and task.cell == (0, 0)
    assert "<answer>Direction N</answer>" in task.feedback and task.feedback in observation


@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_space_around_the_action_is_fine(k):
    task = a_lake(start=(1, 1))
    assert not task.step(f"<answer>\n  Direction {k}\t</answer>")[1] and not task.broken_format


@pytest.mark.parametrize(
    "reply",
    [
        "x" * 2_000_000,
        "<answer>" * 200_000,
        "<answer>" + " " * 2_000_000 + "</answer>",
        "</answer>" * 99_999 + "<answer>",
    ]
    + ["</answer><answer>" + "y" * 2_000_000, "\ud800<answer>Direction \ud800</answer>", "\x00"],
    ids=["long", "opening tags", "spaces", "closing tags", "wrong order", "surrogates", "nul"],
)
def test_huge_and_odd_replies_end_the_task(reply):
    task = a_lake()
    observation, done = task.step(reply)
    assert done and task.broken_format and task.reward == 0 and isinstance(observation, str)


def test_a_huge_reply_with_one_action_is_played():
    task = a_lake()
    assert not task.step("x" * 1_000_000 + answer(2) + "\n" * 1_000_000)[1]
    assert task.cell == (1, 0)


def conforms(reply):
    """Whether a reply is an action, by splitting at the tags."""
    if len(parts := reply.split("<answer>")) != 2 or len(reply.split("</answer>")) != 2:
        return False
    inside, closed, _ = parts[1].partition("</answer>")
    return bool(closed) and inside.strip() in {"Direction 1", "Direction 2", "Direction 3", "Direction 4"}


PIECES = ["<answer>", "</answer>", "<answer>Direction 1</answer>", "Direction ", "Direction 2", "Direction \u0663", "3"]
PIECES += ["4", "5", "\u0664", " ", "\n", "<ANSWER>", "<", ">", "</", "answer", "### END HINTS", "\x00", "Direction 44"]
texts = st.one_of(
    st.text(),
    st.lists(st.sampled_from(PIECES) | st.text(max_size=3), max_size=8).map("".join),
    st.text(max_size=12).map(lambda inside: f"<answer>{inside}</answer>"),
    st.sampled_from([answer(k) for k in (1, 2, 3, 4)]),
)


@settings(max_examples=300, deadline=None)
@given(
    seed=st.integers(0, 30),
    level=st.sampled_from(sorted(LAKE_LEVELS)),
    replies=st.lists(texts, min_size=10, max_size=10),
)
def test_any_text_is_survived(seed, level, replies):
    task = make_pack("frozenlake", seed, 1, level).tasks[0]
    task.reset()
    turns = 0
    for reply in replies:
        observation, done = task.step(reply)
        turns += 1
        assert type(observation) is str and type(done) is bool
        assert 0 <= task.cell[0] < task.lake.size and 0 <= task.cell[1] < task.lake.size
        assert task.reward in (0, 1)
        assert task.broken_format == (not conforms(reply))
        if task.broken_format:
            assert done and task.reward == 0
        if done:
            assert type(task.feedback) is str and task.feedback
            break
    assert done and turns <= task.max_turns
