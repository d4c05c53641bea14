"""environments/alchemy: graphs are what the levels say, every target can be made, any reply is survived,
and the players against exhaustive search."""

import itertools
import random
import re
from collections import Counter

import pytest
from conftest import cpu_seconds
from doubles import same_in_other_processes
from hypothesis import given, settings
from hypothesis import strategies as st

from context import NO_HINTS_YET, solve_system, update_messages
from environments.alchemy.players import AlchemyInformed, AlchemyLearner, AlchemyRandom, read_alchemy, shortest_way
from environments.alchemy.task import ALCHEMY_LEVELS, Alchemy, AlchemyLevel, RecipeGraph, draw_recipe_graph
from envs import make_pack, parse_answer
from rollout import play, run

LEVELS = ("train", "hard")
TURNS = {"train": 8, "hard": 15}
FORM = "Your reply did not have the form <answer>name + name</answer>."

# tier 0: ash, bog, cod; ash + bog = dew, cod + cod = elm; dew + elm = fig (or elm + elm); fig + dew = gum
HAND = RecipeGraph(
    (("ash", "bog", "cod"), ("dew", "elm"), ("fig",), ("gum",)),
    {("ash", "bog"): "dew", ("cod", "cod"): "elm", ("dew", "elm"): "fig", ("elm", "elm"): "fig", ("dew", "fig"): "gum"},
    frozenset(),
)


def answer(a, b):
    return f"I mix. <answer>{a} + {b}</answer>"


def hand_task(target="fig", level="train", units=1, graph=HAND):
    task = Alchemy(graph, target, ALCHEMY_LEVELS[level], units)
    task.reset()
    return task


def packs_of(level, seeds, size=4):
    return [make_pack("alchemy", seed, size, level) for seed in seeds]


# ---------------------------------------------------------------------------------------------------------
# Exhaustive searches


def steps_forwards(graph, stock, target, limited, at_most):
    """Fewest combinations that make the target, trying all pairs in every state; None if `at_most` do not suffice."""
    states = {tuple(sorted(stock.items()))}
    for depth in range(at_most + 1):
        if any(dict(state).get(target) for state in states):
            return depth
        after = set()
        for state in states:
            for a, b in itertools.combinations_with_replacement([name for name, _ in state], 2):
                left = Counter(dict(state))
                if limited:
                    left.subtract([a, b])
                    if min(left[a], left[b]) < 0:
                        continue
                if product := graph.recipes.get((min(a, b), max(a, b))):
                    left[product] = left[product] + 1 if limited else 1
                after.add(tuple(sorted((+left).items())))
        states = after
    return None


def base_needs(graph, target):
    """All base elements that making the target can take, as sorted names: needs are replaced one by one, backwards."""
    found, pending = set(), {(target,)}
    while pending:
        needs = list(pending.pop())
        higher = [name for name in needs if name not in graph.tiers[0]]
        if not higher:
            found.add(tuple(needs))
            continue
        needs.remove(higher[-1])
        sources = [pair for pair, product in graph.recipes.items() if product == higher[-1]]
        pending |= {tuple(sorted([*needs, *pair])) for pair in sources}
    return found


def steps_backwards(graph, units, target):
    """Fewest combinations with `units` of each base element and limited material; None if it cannot be made."""
    affordable = [needs for needs in base_needs(graph, target) if max(Counter(needs).values()) <= units]
    return min((len(needs) - 1 for needs in affordable), default=None)


def test_the_two_searches_agree():
    """By hand: gum takes dew and fig, fig takes elm and dew or elm twice."""
    assert base_needs(HAND, "gum") == {
        ("ash", "ash", "bog", "bog", "cod", "cod"),
        ("ash", "bog", "cod", "cod", "cod", "cod"),
    }
    for units, want in ((1, None), (2, 5), (3, 5)):
        stock = dict.fromkeys(HAND.tiers[0], units)
        assert steps_backwards(HAND, units, "gum") == want
        assert steps_forwards(HAND, stock, "gum", True, 5) == want
    assert steps_forwards(HAND, dict.fromkeys(HAND.tiers[0], 1), "gum", False, 8) == 4  # dew is used twice
    for pack in packs_of("hard", range(8)):
        for task in pack.tasks:
            if task.target in task.graph.tiers[1] + task.graph.tiers[2]:
                want = steps_backwards(task.graph, task.units, task.target)
                stock = dict.fromkeys(task.graph.tiers[0], task.units)
                assert steps_forwards(task.graph, stock, task.target, True, 3) == want


@pytest.mark.parametrize("level", LEVELS)
def test_every_target_can_be_made_and_the_informed_player_takes_the_fewest_steps(level):
    packs = packs_of(level, range(100))
    rollouts = run(map(play, packs), AlchemyInformed(0))
    most = 0
    for pack, rollout in zip(packs, rollouts, strict=True):
        for task, episode in zip(pack.tasks, rollout.of("solve"), strict=True):
            if level == "train":
                want = steps_forwards(task.graph, dict.fromkeys(task.graph.tiers[0], 1), task.target, False, 8)
            else:
                want = steps_backwards(task.graph, task.units, task.target)
            assert want is not None and want <= TURNS[level]
            assert (episode.outcome, len(episode.replies)) == (1.0, want)
            most = max(most, want)
    assert most >= {"train": 4, "hard": 7}[level]


@pytest.mark.parametrize("level", LEVELS)
def test_shortest_way_is_optimal_in_the_middle_of_a_game_too(level):
    """From states that random play leads to, hopeless ones among them."""
    rng = random.Random(3)
    found = []
    for seed in range(40):
        for task in make_pack("alchemy", seed, 2, level).tasks:
            task.reset()
            done = False
            for _ in range(rng.randint(1, 6)):
                owned = [name for name, units in task.stock.items() if units]
                done = done or task.step(answer(rng.choice(owned), rng.choice(owned)))[1]
            if done or (level == "hard" and task.target not in task.graph.tiers[1] + task.graph.tiers[2]):
                continue  # the search would take long
            limited = level == "hard"
            way = shortest_way((task.target,), task.stock, task.graph.recipes, limited)
            stock = {name: units for name, units in task.stock.items() if units}
            want = steps_forwards(task.graph, stock, task.target, limited, 3 if limited else 8)
            assert (None if way is None else len(way)) == want
            found.append(want)
    assert set(found) >= ({None, 1, 2, 3} if level == "hard" else {1, 2, 3})


# ---------------------------------------------------------------------------------------------------------
# Graphs and targets


def useful_sizes(graph):
    return [sum(name not in graph.noise for name in tier) for tier in graph.tiers]


@pytest.mark.parametrize(
    ("level", "bases", "shrinks", "recipes"),
    [("train", {3, 4}, (0.4, 0.6), {1}), ("hard", {4, 5, 6}, (0.4, 0.8), {1, 2})],
)
def test_graphs_of_a_level(level, bases, shrinks, recipes):
    """All sizes of a level occur, and no others; recipes connect the tiers that they should."""
    seen_bases, seen_tiers, seen_recipes, with_noise, lower, pairs = set(), set(), set(), 0, 0, 0
    grid = [shrinks[0] + (shrinks[1] - shrinks[0]) * i / 2000 for i in range(2001)]
    for pack in packs_of(level, range(300), 1):
        graph = pack.tasks[0].graph
        sizes = useful_sizes(graph)
        seen_bases.add(sizes[0])
        seen_tiers.add(len(sizes))
        steps = list(itertools.pairwise(sizes))
        assert any(all(after == max(1, round(size * shrink)) for size, after in steps) for shrink in grid)
        tier_of = {name: tier for tier, names in enumerate(graph.tiers) for name in names}
        assert len(tier_of) == sum(map(len, graph.tiers))  # no name twice
        assert all(re.fullmatch("[a-z]{3,5}", name) for name in tier_of)
        assert all(tier == tuple(sorted(tier)) for tier in graph.tiers)  # so its place does not give noise away
        count = Counter(graph.recipes.values())
        assert set(count) == set(tier_of) - set(graph.tiers[0])
        seen_recipes |= set(count.values())
        for (a, b), product in graph.recipes.items():
            below, under = sorted((tier_of[product] - tier_of[a], tier_of[product] - tier_of[b]))
            assert a <= b and below == 1 and under in (1, 2)
            assert product in graph.noise or not {a, b} & graph.noise
            if tier_of[product] > 1:
                lower, pairs = lower + (under == 2), pairs + 1
        if graph.noise:
            with_noise += 1
            for tier, size in zip(graph.tiers[1:], sizes[1:], strict=True):
                assert len(tier) - size <= round(0.3 * size) + round(0.15 * size)
    assert (seen_bases, seen_tiers, seen_recipes) == (bases, {3, 4}, recipes)
    assert (with_noise > 50) == (level == "hard")
    assert {"train": 0.02, "hard": 0.005}[level] < lower / pairs < {"train": 0.09, "hard": 0.06}[level]


def test_graphs_where_pairs_run_out():
    """Far beyond the levels: two recipes each, tiers of one element, much noise; a pair is never used twice."""
    crowded = AlchemyLevel((3, 3), (0.4, 0.8), (2, 2), (0.3, 0.7), (0.9, 0.9), True, 15, (4, 4))
    dropped = 0
    for seed in range(200):
        graph = draw_recipe_graph(random.Random(seed), crowded)
        assert set(graph.recipes.values()) == {name for tier in graph.tiers[1:] for name in tier}
        assert max(Counter(graph.recipes.values()).values()) <= 2
        dropped += len(graph.noise) < sum(round(0.9 * n) + round(0.45 * n) for n in useful_sizes(graph)[1:])
    assert dropped > 0


def test_targets_differ_until_all_have_been_used():
    repeats = 0
    for level in LEVELS:
        for pack in packs_of(level, range(100), 8):
            graph, targets = pack.tasks[0].graph, [task.target for task in pack.tasks]
            candidates = {name for tier in graph.tiers[1:] for name in tier} - graph.noise
            n = min(len(candidates), 8)
            assert set(targets) <= candidates and len(set(targets[:n])) == n
            assert targets[n:] == [targets[j % n] for j in range(n, 8)]
            repeats += n < 8
    assert repeats > 50


def test_tiers_of_targets_are_weighted_and_their_order_is_random():
    first = Counter()
    for pack in packs_of("hard", range(900), 1):
        if len(pack.tasks[0].graph.tiers) == 4:
            first[next(t for t, tier in enumerate(pack.tasks[0].graph.tiers) if pack.tasks[0].target in tier)] += 1
    for tier in (1, 2, 3):
        assert abs(first[tier] / first.total() - (tier + 1) / 9) < 0.07
    whole = [pack for pack in packs_of("train", range(600)) if sum(useful_sizes(pack.tasks[0].graph)[1:]) == 4]
    top = [pack.tasks[0].target in pack.tasks[0].graph.tiers[-1] for pack in whole]  # a single element of four
    assert abs(sum(top) / len(top) - 0.25) < 0.1


def test_material_at_the_start():
    """1.5 to 2 times the most of any one base element on the cheapest tree, the same of every base element."""
    ratios = []
    for pack in packs_of("hard", range(150)):
        for task in pack.tasks:
            counts = [Counter(needs) for needs in base_needs(task.graph, task.target)]
            smallest = min(units.total() for units in counts)
            need = min(max(units.values()) for units in counts if units.total() == smallest)
            start = re.search(r"You own: (.*)\.$", task.reset())[1]
            assert start == ", ".join(f"{task.units} {name}" for name in task.graph.tiers[0])
            assert round(1.5 * need) <= task.units <= round(2 * need)
            ratios.append(task.units / need)
    assert min(ratios) < 1.6 and max(ratios) == 2


# ---------------------------------------------------------------------------------------------------------
# Playing by hand


def test_a_game_with_unlimited_material():
    task = hand_task("gum")
    assert task.reset() == (
        "Tier 0: ash, bog, cod\nTier 1: dew, elm\nTier 2: fig\nTier 3: gum\n"
        "Turn 1 of 8, target gum. You own: ash, bog, cod."
    )
    game = [
        (("bog", "ash"), "bog + ash made dew.\nTurn 2 of 8, target gum. You own: ash, bog, cod, dew."),
        (("ash", "ash"), "ash + ash made nothing.\nTurn 3 of 8, target gum. You own: ash, bog, cod, dew."),
        (("cod", "cod"), "cod + cod made elm.\nTurn 4 of 8, target gum. You own: ash, bog, cod, dew, elm."),
        (
            ("fig", "gold"),
            "Nothing happened: you do not own fig and you do not own gold.\n"
            "Turn 5 of 8, target gum. You own: ash, bog, cod, dew, elm.",
        ),
        (("ash", "bog"), "ash + bog made dew.\nTurn 6 of 8, target gum. You own: ash, bog, cod, dew, elm."),
        (("elm", "elm"), "elm + elm made fig.\nTurn 7 of 8, target gum. You own: ash, bog, cod, dew, elm, fig."),
        (
            ("zzz", "zzz"),
            "Nothing happened: you do not own zzz.\nTurn 8 of 8, target gum. You own: ash, bog, cod, dew, elm, fig.",
        ),
    ]
    for pair, want in game:
        assert task.step(answer(*pair)) == (want, False)
    assert task.step(answer("fig", "dew")) == (
        "fig + dew made gum.\nYou made the target gum.",
        True,
    )  # on the last turn
    assert (task.reward, task.feedback, task.broken_format) == (1.0, "You made the target gum.", False)


def test_a_game_with_limited_material():
    task = hand_task("fig", "hard", 2)
    assert task.reset().endswith("Turn 1 of 15, target fig. You own: 2 ash, 2 bog, 2 cod.")
    game = [
        (("cod", "cod"), "cod + cod made elm.\nTurn 2 of 15, target fig. You own: 2 ash, 2 bog, 1 elm."),
        (("cod", "ash"), "Nothing happened: cod is used up.\nTurn 3 of 15, target fig. You own: 2 ash, 2 bog, 1 elm."),
        (("elm", "elm"), "Nothing happened: you own only one elm."),
        (("cod", "dew"), "Nothing happened: cod is used up and you do not own dew."),
        (("ash", "ash"), "ash + ash made nothing.\nTurn 6 of 15, target fig. You own: 2 bog, 1 elm."),
        (("bog", "elm"), "bog + elm made nothing.\nTurn 7 of 15, target fig. You own: 1 bog."),
    ]
    for pair, want in game[:-1]:
        observation, done = task.step(answer(*pair))
        assert observation.startswith(want) and not done
    lost = "Fewer than two units are left, and fig is not made."
    assert task.step(answer("bog", "elm")) == (f"bog + elm made nothing.\n{lost}", True)
    assert (task.reward, task.feedback, task.broken_format) == (0.0, lost, False)


def test_the_last_units_can_make_the_target():
    task = hand_task("elm", "hard", 2, RecipeGraph((("cod",), ("elm",)), {("cod", "cod"): "elm"}, frozenset()))
    assert task.step(answer("cod", "cod"))[1] and task.reward == 1.0
    task = hand_task("elm", "hard", 2, RecipeGraph((("cod",), ("elm",)), {}, frozenset()))
    assert task.step(answer("cod", "cod"))[1] and task.reward == 0.0 and "Fewer than two" in task.feedback


@pytest.mark.parametrize(("level", "units"), [("train", 1), ("hard", 99)])
def test_running_out_of_turns(level, units):
    task = hand_task("fig", level, units)
    dones = [task.step(answer("ash", "ash"))[1] for _ in range(TURNS[level])]
    assert dones == [False] * (TURNS[level] - 1) + [True]
    assert (task.reward, task.feedback) == (0.0, "You ran out of turns before making fig.")
    assert task.max_turns == TURNS[level]


def test_rules_say_what_differs_between_levels():
    train, hard = (hand_task(level=level).rules for level in LEVELS)
    for rules, level in ((train, "train"), (hard, "hard")):
        assert f"You have {TURNS[level]} turns" in rules and "<answer>name + name</answer>" in rules
        assert ("Nothing is ever used up" in rules) == (level == "train")
        assert ("fewer than two units" in rules) == (level == "hard")


def test_reset_plays_the_same_task_again():
    task = hand_task("fig", "hard", 2)
    first = task.reset()
    task.step("no action")
    assert task.broken_format and task.done
    with pytest.raises(RuntimeError, match="reset"):
        task.step(answer("ash", "bog"))
    assert task.reset() == first
    assert (task.reward, task.feedback, task.broken_format, task.done) == (0.0, "", False, False)
    for pair in (("ash", "bog"), ("cod", "cod"), ("dew", "elm")):
        task.step(answer(*pair))
    assert task.reward == 1.0
    assert task.reset() == first and task.reward == 0.0


@pytest.mark.parametrize("level", LEVELS)
def test_random_play_matches_a_plain_simulation(level):
    """Stocks as lists of units; names of elements that are not owned, or do not exist, are thrown in."""
    rng = random.Random(level)
    endings = Counter()
    for pack in packs_of(level, range(60), 2):
        for task in pack.tasks:
            task.reset()
            units = list(task.graph.tiers[0]) * task.units
            names = [name for tier in task.graph.tiers for name in tier] + ["aa"]
            done, turn = False, 0
            while not done:
                a, b = rng.choice(names if rng.random() < 0.2 else units), rng.choice(units)
                observation, done = task.step(answer(a, b))
                turn += 1
                rest = units.copy()
                try:
                    rest.remove(a)
                    if level == "hard" or a != b:
                        rest.remove(b)
                except ValueError:
                    assert observation.startswith("Nothing happened")
                else:
                    if level == "hard":
                        units = rest
                    product = task.graph.recipes.get((min(a, b), max(a, b)))
                    assert observation.startswith(f"{a} + {b} made {product or 'nothing'}.")
                    if product and (level == "hard" or product not in units):
                        units.append(product)
                won, stuck = task.target in units, level == "hard" and len(units) < 2
                assert done == (won or stuck or turn == TURNS[level])
                assert task.reward == won
            endings["won" if won else "stuck" if stuck else "turns"] += 1
    assert set(endings) == ({"won", "stuck", "turns"} if level == "hard" else {"won", "turns"})


# ---------------------------------------------------------------------------------------------------------
# Packs


def transcript(pack):
    """What a fixed way of playing sees of a pack, as text; its source also runs in other processes."""
    seen = []
    for task in pack.tasks:
        seen += [task.rules, task.reset()]
        names = [name for tier in task.graph.tiers for name in tier]
        for turn in range(5):
            observation, done = task.step(f"<answer>{names[turn % 3]} + {names[turn * 5 % len(names)]}</answer>")
            seen.append(observation)
            if done:
                break
    return repr(seen)


def many_transcripts():
    return "\n".join(
        transcript(make_pack("alchemy", seed, 4, level, ralph))
        for seed in (0, 1, 99)
        for level in ("train", "hard")
        for ralph in (False, True)
    )


def test_same_arguments_give_the_same_pack_in_every_process():
    assert same_in_other_processes(many_transcripts, transcript)


def test_packs_share_recipes_and_differ_from_each_other():
    packs = [pack for level in LEVELS for pack in packs_of(level, range(50))]
    assert all(task.graph == pack.tasks[0].graph for pack in packs for task in pack.tasks)
    assert len({str(pack.tasks[0].graph) for pack in packs}) == len(packs)


@pytest.mark.parametrize("ralph", [False, True])
@pytest.mark.parametrize("level", LEVELS)
def test_copies_of_a_pack_do_not_affect_each_other(level, ralph):
    """Tasks of two copies played turn by turn in random order see exactly what each would see alone."""
    rng = random.Random(1)
    for seed in range(10):
        pack = make_pack("alchemy", seed, 3, level, ralph)
        tasks = [*pack.tasks, *pack.fresh().tasks]
        names = [name for tier in pack.tasks[0].graph.tiers for name in tier]
        replies = [[answer(*rng.choices(names, k=2)) for _ in range(15)] for _ in tasks]
        seen = [[task.reset()] for task in tasks]
        while alive := [i for i, task in enumerate(tasks) if not task.done]:
            i = rng.choice(alive)
            seen[i].append(tasks[i].step(replies[i][tasks[i].turn])[0])
        for i in range(len(tasks)):
            task = make_pack("alchemy", seed, 3, level, ralph).tasks[i % 3]
            alone = [task.reset()]
            while not task.done:
                alone.append(task.step(replies[i][task.turn])[0])
            assert seen[i] == alone and tasks[i].reward == task.reward
        assert (len({(task.target, task.units) for task in tasks}) == 1) or not ralph
        assert all((task.reward, task.feedback, task.broken_format) == (0.0, "", False) for task in pack.fresh().tasks)


# ---------------------------------------------------------------------------------------------------------
# Replies


def conforms(reply):
    """Whether a reply is an action, by splitting it up."""
    if len(parts := reply.split("<answer>")) != 2 or len(reply.split("</answer>")) != 2:
        return False
    inside, closed, _ = parts[1].partition("</answer>")
    left, plus, right = inside.strip().partition("+")
    names = left.removesuffix(" "), right.removeprefix(" ")
    return bool(closed and plus) and all(
        0 < len(n) <= 20 and set(n) <= set("abcdefghijklmnopqrstuvwxyz") for n in names
    )


def check_survives(reply):
    """One step with any reply; whether it was an action."""
    task = hand_task("fig", "hard", 2)
    observation, done = task.step(reply)
    assert isinstance(observation, str) and observation and len(observation) < 200 and "###" not in observation
    assert task.broken_format == (not conforms(reply))
    assert done == task.broken_format and task.reward == 0.0
    if done:
        assert observation == task.feedback == FORM
    return not task.broken_format


NASTY = [
    *["", " ", "\x00", "\ud800", "ash + bog", "<answer></answer>", "<answer>+</answer>", "<answer> + </answer>"],
    *[
        "<answer>ash</answer>",
        "<answer>ash bog</answer>",
        "<answer>ash + bog + cod</answer>",
        "<answer>ash +  bog</answer>",
    ],
    *[
        "<answer>Ash + Bog</answer>",
        "<answer>ash + b0g</answer>",
        "<answer>ash - bog</answer>",
        "<answer>2 ash</answer>",
    ],
    *["<answer>ash + bog.</answer>", "<answer>ash\n+\nbog</answer>", "<answer>ash + bog\x00</answer>"],
    *["<answer>ash\u00a0+\u00a0bog</answer>", "<answer>\uff41sh + bog</answer>", "<answer>ash \uff0b bog</answer>"],
    *["<answer>\u0663 + \u00b2</answer>", "<answer>10**10**10 + a</answer>", "<answer>../../.. + $(ls)</answer>"],
    *["<answer>/etc/passwd + *</answer>", "<answer>" + "(" * 9999 + "</answer>", "<answer>ash + \ud800</answer>"],
    *["<answer>ash + bog</answer><answer>ash + bog</answer>", "<answer><answer>ash + bog</answer></answer>"],
    *["</answer>ash + bog<answer>", "<ANSWER>ash + bog</ANSWER>", "<|im_end|>", "<answer>ash + <|im_end|></answer>"],
    *["### BEGIN HINTS", "<answer>### + ###</answer>", "<answer>" + "a" * 21 + " + bog</answer>"],
    *["<answer>__class__ + __init__</answer>", "<answer>ash +\tbog</answer>", "<answer>name + name", "None"],
]


@pytest.mark.parametrize("reply", NASTY, ids=[f"{i}" for i in range(len(NASTY))])
def test_replies_that_are_no_action_end_the_task(reply):
    assert not check_survives(reply)


@pytest.mark.parametrize(
    "inside", ["ash + bog", "ash+bog", "ash +bog", "\n ash + bog\t", "zzz + a", "nothing + name", "a" * 20 + " + ash"]
)
def test_replies_that_are_actions(inside):
    assert check_survives(f"Let me think.\n<answer>{inside}</answer> So be it.")


HUGE = {
    "text": "x" * 5_000_000,
    "letters": "<answer>" + "a" * 5_000_000 + " + bog</answer>",
    "spaces": "<answer>ash" + " " * 5_000_000 + "+ bog</answer>",
    "blank": "<answer>" + " " * 5_000_000 + "</answer>",
    "plus": "<answer>" + "a + " * 1_250_000 + "a</answer>",
    "opening": "<answer>" * 600_000,
    "closing": "</answer>" * 500_000 + "<answer>",
    "almost closed": "<answer>" + "</answer" * 600_000,
    "hashes": "<answer>" + "#" * 5_000_000 + "</answer>",
}


@pytest.mark.parametrize("name", HUGE)
def test_huge_replies_take_little_time(name):
    assert cpu_seconds(0.05, hand_task, lambda task: task.step(HUGE[name])) < 0.05
    observation, done = hand_task().step(HUGE[name])
    assert done and observation == FORM


def test_a_huge_reply_with_one_action_is_played():
    assert check_survives("x" * 3_000_000 + answer("ash", "bog") + "\n" * 2_000_000)


pieces = st.sampled_from(
    ["<answer>", "</answer>", "ash", "bog", "dew", "gold", " + ", "+", " ", "\n", "###", "\x00", "made", "\u0663", "A"]
)


@settings(max_examples=1500, deadline=None)
@given(st.lists(pieces, max_size=9).map("".join) | st.text(max_size=60))
def test_any_reply_is_survived(reply):
    check_survives(reply)


@settings(max_examples=1500, deadline=None)
@given(st.lists(pieces | st.text(max_size=3), max_size=4).map("".join))
def test_any_answer_is_survived(inside):
    check_survives(f"<answer>{inside}</answer>")


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.tuples(*[st.sampled_from("ash bog cod dew elm fig gum hay".split())] * 2), max_size=15), st.booleans()
)
def test_any_game_keeps_the_books(pairs, limited):
    """Units are never negative, and limited ones drop by 2 (1 with a product) when two were combined."""
    task = hand_task("gum", "hard" if limited else "train", 3)
    for pair in pairs:
        before = sum(task.stock.values())
        observation, done = task.step(answer(*pair))
        assert min(task.stock.values()) >= 0
        drop = before - sum(task.stock.values())
        idle = observation.startswith("Nothing happened")
        if limited:
            assert drop == (0 if idle else 2 if "made nothing" in observation else 1)
        else:
            assert drop in (0, -1)
        assert task.reward in (0.0, 1.0) and (not done or task.feedback)
        if done:
            break


# ---------------------------------------------------------------------------------------------------------
# Players


def success(rollouts):
    """Mean success by position."""
    outcomes = [[episode.outcome for episode in rollout.of("solve")] for rollout in rollouts]
    return [sum(column) / len(column) for column in zip(*outcomes, strict=True)]


@pytest.fixture(scope="module", params=LEVELS)
def played(request):
    """(level, packs, the rollouts of each player on them)."""
    packs = packs_of(request.param, range(120))
    players = {"random": AlchemyRandom(0), "informed": AlchemyInformed(0), "learner": AlchemyLearner(0)}
    return request.param, packs, {name: run(map(play, packs), player) for name, player in players.items()}


def test_players_never_break_the_format(played):
    for rollouts in played[2].values():
        for rollout in rollouts:
            assert [episode.kind for episode in rollout.episodes] == ["solve", "update"] * 3 + ["solve"]
            assert not any(episode.broken_format for episode in rollout.episodes)


def test_learner_gains_from_position_to_position(played):
    level, _, rollouts = played
    by_name = {name: success(each) for name, each in rollouts.items()}
    random_, informed, learner = by_name["random"], by_name["informed"], by_name["learner"]
    assert informed == [1.0] * 4
    assert max(random_) < learner[0] < {"train": 0.93, "hard": 0.55}[level]
    assert learner[3] > {"train": 0.97, "hard": 0.75}[level]
    assert learner[3] - learner[0] > {"train": 0.07, "hard": 0.3}[level]
    assert abs(random_[3] - random_[0]) < 0.15


def true_facts(task, replies):
    """(recipes, pairs that made nothing) that these replies showed, by the graph."""
    recipes, nothing = {}, set()
    for reply in replies:
        pair = tuple(sorted(parse_answer(reply.text).split(" + ")))
        if pair in task.graph.recipes:
            recipes[pair] = task.graph.recipes[pair]
        else:
            nothing.add(pair)
    return recipes, nothing


def test_learner_hands_down_all_it_saw_and_nothing_else(played):
    """Read back from its hint, in the conversation of the next task."""
    _, packs, rollouts = played
    for pack, rollout in zip(packs, rollouts["learner"], strict=True):
        recipes, nothing = {}, set()
        solved = rollout.of("solve")
        for task, episode, after in zip(pack.tasks, solved, solved[1:], strict=False):
            made, empty = true_facts(task, episode.replies)
            recipes |= made
            nothing |= empty
            view = read_alchemy(after.messages[:2])
            assert (view.recipes, set(view.nothing)) == (recipes, nothing)
            assert len(view.nothing) == len(nothing)


def test_learner_hint_is_plain():
    task = hand_task("fig")
    start = task.reset()
    messages = [{"role": "system", "content": task.rules}, {"role": "user", "content": start}]
    for pair in (("bog", "ash"), ("ash", "cod"), ("ash", "ash"), ("bog", "cod"), ("gum", "ash"), ("ash", "cod")):
        reply = answer(*pair)
        messages += [{"role": "assistant", "content": reply}, {"role": "user", "content": task.step(reply)[0]}]
    context = "- cod + cod = elm\n- bog makes nothing with bog"
    hint = AlchemyLearner().hint(update_messages(context, messages, 0.0, "Lost."))
    assert hint.split("\n")[2:-1] == [
        "- cod + cod = elm",
        "- ash + bog = dew",
        "- bog makes nothing with bog, cod",
        "- ash makes nothing with cod, ash",
    ]


def solve(task, hint, player):
    """Play a task with a hint; the replies."""
    messages = [{"role": "system", "content": solve_system(task.rules, hint)}]
    messages.append({"role": "user", "content": task.reset()})
    done, replies = False, []
    while not done:
        replies.append(player.act(messages))
        observation, done = task.step(replies[-1])
        messages.append({"role": "assistant", "content": replies[-1]})
        messages.append({"role": "user", "content": observation})
    return replies


@pytest.mark.parametrize("level", LEVELS)
def test_learner_with_full_hints_plays_as_the_informed_player(level):
    for seed in range(30):
        for task in make_pack("alchemy", seed, 2, level).tasks:
            hint = "\n".join(f"- {a} + {b} = {product}" for (a, b), product in task.graph.recipes.items())
            start = dict.fromkeys(task.graph.tiers[0], task.units)
            want = shortest_way((task.target,), start, task.graph.recipes, level == "hard")
            assert len(solve(task, hint, AlchemyLearner())) == len(want) and task.reward == 1.0


def test_learner_never_tries_again_what_it_knows():
    """With unlimited material: no pair that made nothing and no element that it owns, in a whole pack."""
    packs = packs_of("train", range(60))
    for pack, rollout in zip(packs, run(map(play, packs), AlchemyLearner()), strict=True):
        nothing = set()
        for task, episode in zip(pack.tasks, rollout.of("solve"), strict=True):
            pairs = [tuple(sorted(parse_answer(reply.text).split(" + "))) for reply in episode.replies]
            assert len(set(pairs)) == len(pairs) and not nothing & set(pairs)
            nothing |= {pair for pair in pairs if pair not in task.graph.recipes}


def test_learner_believes_observations_only():
    """Its own words are no evidence."""
    task = hand_task("fig")
    lie = "ash + bog made fig.\nTurn 1 of 8, target gum. You own: gum."
    messages = [{"role": "system", "content": solve_system(task.rules, NO_HINTS_YET)}]
    messages += [{"role": "user", "content": task.reset()}, {"role": "assistant", "content": lie}]
    view = read_alchemy(messages)
    assert (view.recipes, view.nothing, view.target) == ({}, (), "fig")
    assert view.stock == {"ash": 1, "bog": 1, "cod": 1} and not view.limited and view.turns_left == 8
    assert view.tiers == HAND.tiers


def test_learner_tries_the_pair_that_can_make_the_target_at_once():
    """It owns the whole tier below the target, so no pair of base elements is worth a turn."""
    task = hand_task("fig", graph=RecipeGraph((("ash", "bog"), ("dew",), ("fig",)), {}, frozenset()))
    messages = [{"role": "system", "content": solve_system(task.rules, "- ash + bog = dew")}]
    scene = task.reset().replace("ash, bog.", "ash, bog, dew.")
    assert AlchemyLearner().act([*messages, {"role": "user", "content": scene}]) == "<answer>dew + dew</answer>"
    before = AlchemyLearner().act([*messages, {"role": "user", "content": task.reset()}])
    assert before == "<answer>ash + bog</answer>"  # the way to it


def test_learner_looks_for_what_a_known_recipe_lacks():
    """The target takes elm, which only base elements can make; dew + dew, more likely to make something, is no help."""
    task = hand_task("fig", graph=RecipeGraph((("ash", "bog", "cod"), ("dew", "elm"), ("fig", "fog")), {}, frozenset()))
    messages = [{"role": "system", "content": solve_system(task.rules, "- ash + bog = dew\n- elm + elm = fig")}]
    scene = task.reset().replace("ash, bog, cod.", "ash, bog, cod, dew.")
    reply = AlchemyLearner().act([*messages, {"role": "user", "content": scene}])
    assert set(parse_answer(reply).split(" + ")) <= {"ash", "bog", "cod"} and reply != "<answer>ash + bog</answer>"


@pytest.mark.parametrize(("level", "units", "n_pairs"), [("train", 1, 6), ("hard", 1, 3), ("hard", 2, 6)])
def test_random_player_chooses_all_pairs_evenly(level, units, n_pairs):
    task = hand_task("fig", level, units)
    messages = [{"role": "user", "content": task.reset()}]
    player = AlchemyRandom(0)
    counts = Counter(player.act(messages) for _ in range(3000))
    assert len(counts) == n_pairs
    assert all(abs(count / 3000 - 1 / n_pairs) < 0.04 for count in counts.values())
    for reply in counts:
        task.reset()
        assert "Nothing happened" not in task.step(reply)[0]


def test_players_follow_their_seed():
    def replies(player):
        rollouts = run(map(play, packs_of("hard", range(5))), player)
        return [reply.text for rollout in rollouts for episode in rollout.episodes for reply in episode.replies]

    assert replies(AlchemyRandom(1)) == replies(AlchemyRandom(1)) != replies(AlchemyRandom(2))
    assert replies(AlchemyLearner(1)) == replies(AlchemyLearner(2))


def test_informed_player_combines_anything_when_the_target_is_out_of_reach():
    task = hand_task("elm", "hard", 1)
    assert task.step(AlchemyInformed().plan(task))[0].startswith("ash + bog made dew.")
