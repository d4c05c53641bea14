"""What can be said of hints: the secret that they are about, and grades, against hints whose content is known."""

import copy
import itertools
import json
import random
import re
import textwrap
import time

import pytest
from doubles import REPO, Chatter

from environments.alchemy.grades import stated_recipes
from environments.alchemy.task import ALCHEMY_LEVELS, Alchemy, RecipeGraph
from environments.control.task import Control
from environments.finding import player_classes
from environments.frozenlake.players import Planner
from environments.frozenlake.task import LAKE_LEVELS, FrozenLake
from environments.gridnav.task import GridMap, GridNav
from environments.terminal.grades import verdicts
from environments.terminal.machines import QUIRKS, make_setup
from envs import ENVS, make_pack, players
from rollout import play, run

WAYS = ("up", "down", "left", "right")
ENV_LEVELS = [
    (env, level) for env in ("alchemy", "control", "frozenlake", "gridnav", "terminal") for level in ENVS[env].levels
]


def graded(env, level, player, seeds, size=4):
    """(pack, tasks played so far, hint) for every hint that a player writes, in the order of packs and positions."""
    packs = [make_pack(env, seed, size, level) for seed in seeds]
    for pack, rollout in zip(packs, run(map(play, packs), player), strict=True):
        tasks = [episode.task for episode in rollout.of("solve")]
        for position, update in enumerate(rollout.of("update")):
            yield pack, tasks[: position + 1], update.context


# ---------------------------------------------------------------------------------------------------------
# Secrets


def test_an_environment_need_not_say_anything():
    task = Chatter(["hello"])
    assert task.shared_secret() is None and task.grade_hint("any hint", [task]) == {}


def test_the_documented_example_tells_its_secret_and_grades_hints():
    [task] = re.findall(r"^```python\n(# guess.py.*?)^```", (REPO / "README.md").read_text("utf-8"), re.DOTALL | re.M)
    page = (REPO / "docs" / "environments.md").read_text("utf-8")
    [methods] = re.findall(r"^```python\n(def shared_secret.*?)^```", page, re.DOTALL | re.M)
    names = {}
    exec(task + "\n" + textwrap.indent(methods, "    "), names)
    tasks = names["Guess"].make_tasks(random.Random(0), 2, "tiny")
    secret = tasks[0].shared_secret()
    assert tasks[1].shared_secret() == secret and 1 <= secret <= 20
    assert tasks[0].grade_hint(f"It is {secret}.", tasks) == {"right": 1.0}
    assert tasks[0].grade_hint(f"It is {secret}{secret}.", tasks) == {"right": 0.0}


@pytest.mark.parametrize(("env", "level"), ENV_LEVELS)
def test_a_secret_belongs_to_the_pack(env, level):
    """Equal for all its tasks, before and after playing, and for hardly any other pack, as far as there are many."""
    packs = [make_pack(env, seed, 3, level) for seed in range(12)]
    before = [copy.deepcopy(pack.tasks[0].shared_secret()) for pack in packs]
    rollouts = run(map(play, packs), players(env)["random"])
    for pack, secret, rollout in zip(packs, before, rollouts, strict=True):
        played = [episode.task for episode in rollout.of("solve")]
        assert all(task.shared_secret() == secret for task in [*pack.tasks, *played, *pack.fresh().tasks])
    equal = sum(one == other for one, other in itertools.combinations(before, 2))
    few = env == "frozenlake" or level.startswith("tiny")
    assert before == [None] * 12 if (env, level) == ("terminal", "paper") else equal <= (15 if few else 0)


@pytest.mark.parametrize(("env", "level"), ENV_LEVELS)
def test_asking_for_secrets_and_grades_changes_no_game(env, level):
    class Curious:
        def __init__(self, player):
            self.player, self.asked = player, 0

        def reply(self, episodes):
            answers = self.player.reply(episodes)
            for episode, reply in answers:
                episode.task.shared_secret(), episode.task.grade_hint(reply.text, [episode.task])
                self.asked += 1
            return answers

    def story(policy):
        rollouts = run([play(make_pack(env, seed, 3, level)) for seed in range(3)], policy)
        return [(e.messages, e.outcome, e.context) for rollout in rollouts for e in rollout.episodes]

    curious = Curious(player_classes(env)["random"](seed=5))
    assert story(curious) == story(player_classes(env)["random"](seed=5)) and curious.asked > 0


# ---------------------------------------------------------------------------------------------------------
# FrozenLake: hints made from known meanings


SAYS = (  # a direction and an action
    "- {way}: Direction {k}",
    "* **{way}**: Direction {k}",
    "{way}: {k}",
    "Direction {k}: {way}",
    "Direction {k} = {way}",
    "- `Direction {k}` -> {way}",
    "Direction {k} moves {way}",
    "Direction {k} leads {way}",
    "To go {way} use Direction {k}",
    "To go {way}, use Direction {k}",
    "If you want to go {way}, choose Direction {k}",
    "Use Direction {k} for {way}",
    "{way} is Direction {k}",
    "{way} (Direction {k})",
    "Direction {k} ({way})",
    "I used Direction {k} and moved {way}",
    "Direction {k} seems to move {way}wards",
    "| Direction {k} | {way} |",
    "| {way} | Direction {k} |",
    "Direction {k} is {way}, not {other}",
    "- {way}: Direction {k} (not Direction {m})",
)
DOES_NOT_SAY = (  # the same, where k and m are different actions, {way} and {other} different directions
    "- {way}: unknown",
    "- {way}: Direction {k}, Direction {m}",
    "- {way}: Direction {k} or Direction {m}",
    "Direction {k}: {way}, {other}",
    "Direction {k} is {way} or {other}",
    "Directions {k} and {m} have not been tried for {way}",
    "Direction {k} and Direction {m} lead {way}",
    "Direction {k} is not {way}",
    "Direction {k} does not go {way}",
    "Direction {k} isn't {way}, so try Direction {m}",
    "{way} is neither Direction {k} nor Direction {m}",
    "{way}: not Direction {k}",
    "Direction {k} might be {way}",
    "Maybe Direction {k} goes {way}",
    "Is Direction {k} {way}?",
    "- {way}: Direction {k}?",
    "Direction {k} moved nothing at the {way} edge",
    "Direction {k} is unknown",
    "The goal was {way}",
    "Try Direction {k} next to find {way}",
    "",
)


@pytest.mark.parametrize("seed", range(4))
def test_lake_grades_count_what_hints_say(seed):
    """Every direction is said right, wrong, both or not at all, each in random words."""
    rng, seen = random.Random(seed), set()
    for _ in range(1500):
        mapping = tuple(rng.sample(WAYS, 4))
        lines, counts = [], dict.fromkeys(("right", "wrong", "unsaid"), 0)
        for way in WAYS:
            k = mapping.index(way) + 1
            m = rng.choice([each for each in (1, 2, 3, 4) if each != k])
            other = rng.choice([each for each in WAYS if each != way])
            fate = rng.choice(("right", "wrong", "both", "unsaid"))
            forms = [(rng.choice(SAYS), k, m)] * (fate in ("right", "both")) + [(rng.choice(SAYS), m, k)] * (
                fate in ("wrong", "both")
            )
            forms += [(rng.choice(DOES_NOT_SAY), *rng.sample((1, 2, 3, 4), 2)) for _ in range(rng.randint(0, 2))]
            lines += [form.format(way=way, k=x, m=y, other=other) for form, x, y in forms]
            counts["wrong" if fate == "both" else fate] += 1
        rng.shuffle(lines)
        hint = "".join(
            rng.choice(["", "- ", "  * ", "1. "]) * (rng.random() < 0.3) + line + rng.choice(["\n", ".\n", ". ", "; "])
            for line in lines
        )
        hint = rng.choice([str, str, str.upper, str.title])(hint)
        tasks = [FrozenLake(None, mapping, LAKE_LEVELS["tiny"])]
        grade = FrozenLake.grade_hint(hint, tasks)
        assert grade == {name: count / 4 for name, count in counts.items()}, (hint, mapping)
        seen.add(tuple(counts.values()))
    assert len(seen) == 15  # all there are


@pytest.mark.parametrize(
    "form", ["Direction {k} is {way}", "{way} is Direction {k}", "{way}: {k}", "{k}={way}", "{k} -> {way}"]
)
@pytest.mark.parametrize("joints", [(", ", " and "), (", ", ", and "), (" and ", " and "), (", ", ", ")])
def test_lake_grades_read_all_in_one_sentence(form, joints):
    for mapping in itertools.permutations(WAYS):
        parts = [form.format(k=k, way=way) for k, way in enumerate(mapping, start=1)]
        hint = f"What I know: {joints[0].join(parts[:3])}{joints[1]}{parts[3]}."
        grade = FrozenLake.grade_hint(hint, [FrozenLake(None, mapping, LAKE_LEVELS["tiny"])])
        assert grade == {"right": 1.0, "wrong": 0.0, "unsaid": 0.0}, hint


LAKE_TEXTS = {  # -> what it says of up, down, left, right: actions, 0 for nothing
    "- up: Direction 3\n- down: unknown\n- left: Direction 1\n- right: Direction 2": (3, 0, 1, 2),
    '{"up": "Direction 3", "down": "Direction 1", "left": null}': (3, 1, 0, 0),
    "| Direction | Effect |\n|---|---|\n| 1 | up |\n| 2 | left |": (1, 0, 2, 0),
    "Direction 2 hit the left wall. 3 moves left. Direction 4 moves left.": (0, 0, 4, 0),
    "The right answer was Direction 3. Direction 1 left me where I was.": (0, 0, 0, 0),
    "You have up to 8 turns. Write down what Direction 2 does.": (0, 0, 0, 0),
    "Directions 1 and 3 are up and down in some order; Direction 2 is left.": (0, 0, 2, 0),
    "Direction 1-4 move up, down, left or right.": (0, 0, 0, 0),
    "If Direction 3 is up, Direction 1 is down.": (0, 0, 0, 0),
    "Only Direction 4 is left to be tried.": (0, 0, 0, 0),
    "Best path: up (Direction 3), then right (Direction 1).": (3, 0, 0, 1),
    "Direction 2: right (confirmed), Direction 1: left (not sure).": (0, 0, 0, 2),
    "Direction 1 moves up but Direction 2 does not move down while Direction 3 moves right": (1, 0, 0, 3),
    "Direction 1, 2 and 4 are untested, Direction 3 goes down.": (0, 3, 0, 0),
    "Goal was down and right of me. dir 2 moved me downwards from row 1, column 3 to row 2, column 3.": (0, 2, 0, 0),
    "DIRECTION 3 = UP; Direction 13 = down": (3, 0, 0, 0),
    "Direction 1 is up or Direction 2 is up.": (0, 0, 0, 0),
    "To reach the goal at the bottom right, use Direction 2 (down) and Direction 4 (right).": (0, 2, 0, 4),
    "The goal is often up, so start with Direction 2. The hole on the right is near Direction 1.": (0, 0, 0, 0),
    "Mapping: 1=Left 2=Down 3=Right 4=Up": (4, 2, 1, 3),
    "Directions: 1 \N{RIGHTWARDS ARROW} Left, 2 \N{RIGHTWARDS ARROW} Down; D3 = right": (0, 2, 1, 3),
    "Direction 1 = down/up? Direction 2 (left?), Direction 3 (right)": (0, 0, 0, 3),
    "Direction 3 = unknown, but is right or down; the others (Direction 1, Direction 4) are up and left": (0, 0, 0, 0),
    "Direction 3 and Direction 4 are left/right (unknown which). **Up**: Direction 1 | *Down*: D2": (
        1,
        2,
        0,
        0,
    ),
    "Direction 2: Moves you UP one row (e.g., row 3 to 2). Direction 1 did nothing at the top": (
        2,
        0,
        0,
        0,
    ),
    "Direction 3 caused no movement at the top, suggesting it is up": (0, 0, 0, 0),
    "(no hint available)": (0, 0, 0, 0),
}


@pytest.mark.parametrize("hint", LAKE_TEXTS)
def test_lake_grades_of_free_text(hint):
    """With every mapping: what is said is right where it agrees, and wrong elsewhere."""
    for mapping in itertools.permutations(WAYS):
        said = [(way, k) for way, k in zip(WAYS, LAKE_TEXTS[hint], strict=True) if k]
        right = sum(mapping[k - 1] == way for way, k in said)
        want = {"right": right / 4, "wrong": (len(said) - right) / 4, "unsaid": 1 - len(said) / 4}
        assert FrozenLake.grade_hint(hint, [FrozenLake(None, mapping, LAKE_LEVELS["tiny"])]) == want


def test_lake_grades_of_the_form_that_the_embedded_policy_writes():
    """Read by an expression of their own, from planners that err and forget."""
    grades = []
    for pack, played, hint in graded("frozenlake", "tiny", Planner(0, write=0.8, wrong=0.2), range(60)):
        entries = dict(re.findall(r"^- (\w+): Direction (\d)$", hint, re.MULTILINE))
        right = sum(pack.tasks[0].mapping[int(k) - 1] == way for way, k in entries.items())
        grades.append(FrozenLake.grade_hint(hint, played))
        assert grades[-1] == {"right": right / 4, "wrong": (len(entries) - right) / 4, "unsaid": 1 - len(entries) / 4}
    assert len({json.dumps(grade) for grade in grades}) > 8


# ---------------------------------------------------------------------------------------------------------
# Alchemy


FORMULAS = (
    "- {a} + {b} = {c}",
    "{a}+{b}={c}",
    "`{a}` + `{b}` -> **{c}**",
    "{a} + {b} makes {c}.",
    "{c} = {a} + {b}",
    "| {a} + {b} = {c} |",
)
WORDS = (
    "Combine {a} and {b} to make {c}.",
    "To get {c}, combine {a} and {b}",
    "{c} is made from {a} and {b}",
    "Mixing {a} with {b} gives {c}",
    "{a} + {b}: {c}",
)
NO_RECIPE = (
    "{a} + {b} does not make {c}",
    "{a} + {b} made nothing",
    "{a} + {b} = nothing",
    "- {a} makes nothing with {b}, {c}",
    "maybe {a} + {b} = {c}",
    "{a} + {b} = {c}?",
    "Try {a} + {b}",
    "{c} is the target",
    "{a} + {b} != {c}",
    "Do not combine {a} and {b} to make {c}",
)
ELEMENTS = "abc bcde cdefg dxy exyz fjkl gjklm hop iopq jopqr kst lstu".split()


@pytest.mark.parametrize("seed", range(3))
def test_alchemy_grades_count_what_hints_state(seed):
    rng = random.Random(seed)
    for _ in range(300):
        pairs = rng.sample(list(itertools.combinations_with_replacement(ELEMENTS, 2)), 12)
        recipes = {pair: rng.choice(ELEMENTS) for pair in pairs}
        task = Alchemy(
            RecipeGraph((tuple(ELEMENTS),), dict(list(recipes.items())[:8]), frozenset()),
            "abc",
            ALCHEMY_LEVELS["train"],
        )
        task.discovered = set(rng.sample(pairs[:8], rng.randint(0, 6)))
        lines, kept, invented = [], set(), 0
        for pair, product in recipes.items():
            if rng.random() < 0.6:  # those of the last four are false, and so is any with another product
                false = rng.random() < 0.3
                product = rng.choice([each for each in ELEMENTS if each != product]) if false else product
                a, b = rng.sample(pair, 2)
                lines.append(rng.choice(FORMULAS + WORDS).format(a=a, b=b, c=product))
                kept |= {pair} if not false else set()
                invented += false or pair in pairs[8:]
        for _ in range(rng.randint(0, 4)):
            a, b, c = rng.sample(ELEMENTS, 3)
            lines.append(rng.choice(NO_RECIPE).format(a=a, b=b, c=c))
        rng.shuffle(lines)
        grade = Alchemy.grade_hint("\n".join(lines), [task])
        want = {"invented": invented}
        if task.discovered:
            want["kept"] = len(task.discovered & kept) / len(task.discovered)
        assert grade == want, (lines, recipes)


def test_alchemy_grades_by_hand():
    graph = RecipeGraph((("abc", "def"), ("ghi",)), {("abc", "def"): "ghi"}, frozenset())
    first, second = (Alchemy(graph, "ghi", ALCHEMY_LEVELS["train"]) for _ in range(2))
    first.reset(), second.reset()
    assert Alchemy.grade_hint("abc + abc = ghi", [first, second]) == {"invented": 1}
    assert Alchemy.grade_hint("zzz + yyy = xxx", [first]) == {"invented": 1}  # of another pack, say
    assert Alchemy.grade_hint("you and me make tea. Format: name + name = result", [first]) == {"invented": 0}
    second.step("<answer>def + abc</answer>")
    assert Alchemy.grade_hint("nothing yet", [first, second]) == {"invented": 0, "kept": 0}
    for played in ([first, second], [second, first]):
        assert Alchemy.grade_hint("def + abc = ghi", played) == {"invented": 0, "kept": 1}
    assert Alchemy.grade_hint("abc + abc = def\nabc + abc = ghi", [second]) == {"invented": 2, "kept": 0}
    assert Alchemy.grade_hint("def + abc = ghi\nabc + def = abc", [first, second]) == {"invented": 1, "kept": 0}
    assert stated_recipes("abc with itself makes def", frozenset({"abc", "def"})) == {("abc", "abc", "def")}


@pytest.mark.parametrize("level", ALCHEMY_LEVELS)
def test_alchemy_discovers_what_its_observations_tell(level):
    for seed in range(6):
        pack = make_pack("alchemy", seed, 3, level)
        [rollout] = run([play(pack)], players("alchemy")["random"])
        for episode in rollout.of("solve"):
            text = "\n".join(message["content"] for message in episode.messages if message["role"] == "user")
            made = re.findall(r"^(\w+) \+ (\w+) made (\w+)\.$", text, re.MULTILINE)
            assert episode.task.discovered == {tuple(sorted(pair)) for *pair, product in made if product != "nothing"}


# ---------------------------------------------------------------------------------------------------------
# Terminal, GridNav, control


EVERYTHING = make_setup(
    "linux",
    "ann",
    "birch.example.org",
    "birch-3",
    "deploy",
    "/data/home",
    [quirk for family in QUIRKS.values() for quirk in family],
)
TERMINAL_TEXTS = {
    "scp is not available, use rsync": {"rsync": True},
    "rsync is missing": {"rsync": False},
    "use rsync instead of scp; scp: command not found": {"rsync": True},
    "sudo is not needed": {"sudo": False},
    "Never use sudo.": {"sudo": False},
    "sudo: not needed": {"sudo": False},
    "- The remote login user is `deploy`, not `ann`.\n- Home directory on birch-3: /data/home/deploy": (
        {"user": True, "alias": True, "home": True}
    ),
    "Nothing on the host can be changed without sudo!": {"sudo": True},
    'ssh deploy@birch-3 "sudo mv a b"': {"sudo": True, "user": True, "alias": True},
    'Log in as the user "deploy" rather than the user "ann"': {"user": True},
    "ssh ann@birch-4": {"user": False, "alias": False},
    "The host is birch-3. Or is it birch-4?": {"alias": False},
    "home is /data/home/deploy, not /home/deploy": {"home": True},
    "The home folder is /srv/users/deploy": {"home": False},
    "There is no tar, but zip and unzip.": {"zip": True},
    "Pack it as x.zip or as x.tar.gz; keep a copy as backup in incoming-mail": {},
    "mkdir has no -p, rm needs -f": {"levels": True, "force": True},
    "mkdir -p works": {"levels": False},
    "rm is disabled: use trash": {"trash": True},
    "Numeric modes fail; chmod u=rw,g=r,o= FILE": {"symbolic": True},
    "Upload to /incoming and move it from there": {"incoming": True},
    "use scp FILE HOST:FILE, and tar czf": {},
    "sudo is needed. sudo is not needed.": {"sudo": False},
}


@pytest.mark.parametrize("hint", TERMINAL_TEXTS)
def test_terminal_verdicts_by_hand(hint):
    """On machines with all peculiarities; on those with none, what was a true statement is an invented one."""
    assert verdicts(hint, EVERYTHING) == TERMINAL_TEXTS[hint]
    usual = make_setup("linux", "ann", "birch.example.org", "birch-3", "deploy", "/data/home")
    for quirk in set(TERMINAL_TEXTS[hint]) - {"user", "alias", "home"}:
        if hint.count(quirk) < 2:
            assert verdicts(hint, usual)[quirk] is not TERMINAL_TEXTS[hint][quirk]


def test_terminal_grades_by_hand():
    task = make_pack("terminal", 0, 1).tasks[0]
    task.setup = make_setup(
        "linux", "ann", "birch.example.org", "birch-3", "deploy", "/srv/users", ["user", "alias", "sudo", "trash"]
    )
    hint = "Log in as deploy. The host is called birch-7. Use sudo. Use rsync."
    assert task.grade_hint(hint, [task]) == {"right": 0.5, "wrong": 0.25, "unsaid": 0.25, "invented": 1}
    assert task.shared_secret() == {"user": "deploy", "alias": "birch-3", "sudo": "", "trash": ""}


GRID_SAYS = (
    "row {r}, column {c}: {x}",
    "- Row {r}, Column {c} costs {x}.",
    "(row {r}, column {c}) has a cost of {x}",
    "cost {x} at row {r}, column {c}",
    "| row {r}, column {c} | {x} |",
    "- row {r} from column {c}: {x} ?? ??",
    "row {r} column {c} = {x}, so avoid it",
)
GRID_SAYS_NOTHING = (
    "start at row {r}, column {c}",
    "row {r}, column {c} costs about {x}",
    "row {r}, column {c} is {x} moves away",
    "row {r} is cheap",
    "row {r}, column {c}: {x}.5",
)


def test_gridnav_grades_count_what_hints_state():
    rng = random.Random(0)
    for _ in range(400):
        costs = tuple(tuple(rng.randrange(100) for _ in range(5)) for _ in range(5))
        cells = rng.sample(list(itertools.product(range(6), range(5))), rng.randint(0, 12))  # row 6 is not on the grid
        lines, right = [], 0
        for row, col in cells:
            cost = rng.choice([costs[row % 5][col], rng.randrange(100)])
            right += row < 5 and cost == costs[row][col]
            lines.append(rng.choice(GRID_SAYS).format(r=row + 1, c=col + 1, x=cost))
        lines += [rng.choice(GRID_SAYS_NOTHING).format(r=rng.randint(1, 5), c=2, x=rng.randint(1, 9)) for _ in range(3)]
        rng.shuffle(lines)
        grade = GridNav.grade_hint("\n".join(lines), [GridNav(GridMap(costs, 1), (0, 0), (1, 1), 2)])
        assert grade == {"stated": len(cells)} | ({"right": right / len(cells)} if cells else {}), lines


def test_gridnav_grades_read_the_map_as_it_is_drawn():
    grid = GridMap(tuple(tuple(10 * row + col for col in range(8)) for row in range(8)), 1)
    grid.reveal_around((2, 3)), grid.reveal_around((7, 7))
    task = GridNav(grid, (0, 0), (1, 1), 2)
    assert GridNav.grade_hint(grid.draw(), [task]) == {"stated": 9 + 4, "right": 1}
    assert GridNav.grade_hint("row 1, column 2: 1\nrow 1, column 2: 2", [task]) == {"stated": 1, "right": 0}


CONTROL_TEXTS = {  # -> the errors for a = 0.8, b = -1.2
    "a = 0.83, b = -1.25": (0.03, 0.05),
    "**a** ≈ .8; b is about \N{MINUS SIGN}1.2": (0, 0),
    "a: 0.8\nb: 1": (0, 2.2),
    "a~0.8; b \N{ALMOST EQUAL TO} approx. -1.2 (\N{PLUS-MINUS SIGN}0.02)": (0, 0),
    "v becomes 0.9*v - 1.2*u": (0.1, 0),
    "v' = 0.8 v + 0.5 u, x' = x + v'": (0, 1.7),
    "a = 0.7. Later: a = 0.81": (0.1, None),
    "b = -1.2 and a between 0.7 and 0.9": (None, 0),
    "a = 0.8 to 0.9; b = 2 * 0.6; x = 0.5; gamma = 0.5; a 0.5; a = 1e3; a = 12345678": (None, None),
    "u = 0.3*(x_target - x) - 0.8*v": (None, None),
}


@pytest.mark.parametrize("hint", CONTROL_TEXTS)
def test_control_grades_by_hand(hint):
    want = dict(zip(("error_a", "error_b"), CONTROL_TEXTS[hint], strict=True))
    grade = Control.grade_hint(hint, [Control(0.8, -1.2, 0, 0, 1, 12)])
    assert grade == pytest.approx({name: error for name, error in want.items() if error is not None}, abs=1e-12)


# ---------------------------------------------------------------------------------------------------------
# All environments: learners, hints of other packs, any text


# what no hint of a learner may fail to have, and the mean of a grade after three tasks
ALWAYS = {
    "frozenlake": {"wrong": 0},
    "alchemy": {"kept": 1, "invented": 0},
    "terminal": {"wrong": 0, "invented": 0},
    "gridnav": {"right": 1},
    "control": {},
}
IN_THE_END = {
    "frozenlake": ("right", 0.9, 1),
    "terminal": ("right", 0.65, 1),  # on the tiny levels less is asked for in three tasks
    "gridnav": ("stated", 40, 256),
    "control": ("error_b", 0, 0.01),
    "alchemy": ("kept", 1, 1),
}


@pytest.mark.parametrize(("env", "level"), [pair for pair in ENV_LEVELS if pair != ("terminal", "paper")])
def test_hints_of_learners_are_good_and_those_for_other_packs_are_worse(env, level):
    hints = list(graded(env, level, players(env)["learner"], range(10)))
    for _, played, hint in hints:
        grade = played[0].grade_hint(hint, played)
        assert {name: grade[name] for name in ALWAYS[env] if name in grade} == {
            name: x for name, x in ALWAYS[env].items() if name in grade
        }
        if env == "gridnav":
            assert grade["stated"] == sum(len(re.findall(r"\d+", line.partition(":")[2])) for line in hint.split("\n"))
    last = hints[2::3]
    name, low, high = IN_THE_END[env]
    own = [played[0].grade_hint(hint, played)[name] for _, played, hint in last]
    assert low <= sum(own) / len(own) <= high

    worse = {
        "frozenlake": ("wrong", 1),
        "alchemy": ("kept", -1),
        "terminal": ("right", -1),
        "gridnav": ("right", -1),
        "control": ("error_a", 1),
    }
    name, sign = worse[env]
    total = 0
    for (_, played, hint), (pack, others, _) in zip(last, last[1:] + last[:1], strict=True):
        if pack.tasks[0].shared_secret() != played[0].shared_secret():
            mine, theirs = (tasks[0].grade_hint(hint, tasks)[name] for tasks in (played, others))
            assert sign * theirs > sign * mine or level.startswith("tiny") and theirs == mine, (hint, mine, theirs)
            total += sign * (theirs - mine)
    assert total > 0  # where there are few secrets, a hint may happen to fit another pack


def test_terminal_machines_of_their_own_have_no_grade():
    hints = graded("terminal", "paper", players("terminal")["learner"], range(3))
    assert [ENVS["terminal"].grade_hint(hint, played) for _, played, hint in hints] == [{}] * 9


PIECES = {  # "_" is a space
    "frozenlake": "Direction_ 1 2 3 4 up down left_ right : = , ; . ? not or and ( ) | -> maybe unknown 1=up, if",
    "alchemy": "abc def ghi + = -> : and with to_make is_made_from combine itself nothing not ? , |",
    "terminal": "not no sudo scp rsync tar zip -p -f rm works without need as user ann@ /data/home/ , ; u=r level",
    "gridnav": "row column 1 2 12 : , ?? = cost costs is at from_column - |",
    "control": "a b = is about 0.5 1 - + * v u ~ to . e9",
}
HOSTILE = [*" \n\t(-?*#|`\"'=9", "\x00", "\x85", "\ud800", "\u202e", "\u0130", "\uff19", "a=", "<answer>", "1=up,"]
HOSTILE += ["- up: Direction 1\n", "row 1, column 1: 1\n", "abc + abc = abc\n"]


@pytest.mark.parametrize("env", PIECES)
def test_any_text_at_all_is_graded_at_once(env):
    """No error and no long search, whatever the text: finite numbers within 50 ms."""
    rng = random.Random(env)
    played = [episode.task for episode in run([play(make_pack(env, 1, 3))], players(env)["learner"])[0].of("solve")]
    pieces = [piece.replace("_", " ") for piece in PIECES[env].split()]
    texts = [each * count for each in HOSTILE + pieces for count in (1, 8000 // len(each), 10**6)] + [""]
    for _ in range(60):  # one, two or three pieces again and again
        few = rng.choices(pieces, k=rng.randint(1, 3))
        texts.append(rng.choice(["", " "]).join(rng.choices(few, k=4000)))
    for _ in range(150):
        mixed = rng.choices(pieces + HOSTILE, k=rng.choice([3, 8, 30, 300, 3000]))
        texts.append(rng.choice(["", " "]).join(mixed))
    grade_of = ENVS[env].grade_hint

    def seconds(text):
        start = time.process_time()
        grade_of(text, played)
        return time.process_time() - start

    for text in texts:
        assert any(seconds(text) < 0.05 for _ in range(5)), text[:100]  # 5: other work slows this one down
        grade = grade_of(text, played)
        assert all(isinstance(number, float) for number in grade.values())
        json.dumps(grade, allow_nan=False)
        if "unsaid" in grade:
            assert grade["right"] + grade["wrong"] + grade["unsaid"] == pytest.approx(1)
        assert all(0 <= grade.get(name, 0) <= 1 for name in ("right", "wrong", "unsaid", "kept"))
