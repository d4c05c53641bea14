"""terminal.py and its players: packs, errands done by hand, quirks, hostile replies, what the players know."""

import itertools
import posixpath
import random
import re

import pytest
from conftest import cpu_seconds
from doubles import same_in_other_processes
from hypothesis import given, settings
from hypothesis import strategies as st

from context import NO_HINTS_YET, parse_update, solve_system, update_messages
from environments.terminal.errands import COMPOSITE, ERRANDS, SINGLE, Errand, draw_errand, draw_files
from environments.terminal.filesystem import MAX_NODES, Node
from environments.terminal.machines import QUIRKS, SYSTEMS, make_setup
from environments.terminal.players import FACTS, TerminalInformed, TerminalLearner, TerminalRandom, read_recipe
from environments.terminal.shell import MAX_LINE
from environments.terminal.task import TERMINAL_LEVELS, Terminal
from envs import Pack, make_pack, parse_answer
from rollout import no_hints, play, run

SINGLE_KINDS = {"upload", "download", "rename", "move", "chmod", "delete", "copy", "pack", "mkdir"}
COMPOSITE_KINDS = {"pack+upload", "download+extract", "mkdir+upload", "upload+chmod", "upload+delete"}
COMPOSITE_KINDS |= {"pack+upload+extract", "download+rename", "backup+replace"}
ALL_QUIRKS = [quirk for family in QUIRKS.values() for quirk in family]


def setup_with(system="linux", quirks=()):
    return make_setup(system, "ann", "box.example.org", "box-2", "ops", "/data/home", quirks)


def quirk_sets():
    """Every combination that a pack can have."""
    for two in itertools.combinations(QUIRKS["login"], 2):
        for one in QUIRKS["host"]:
            for tool in [(), *((tool,) for tool in QUIRKS["tool"])]:
                yield (*two, one, *tool)


def fingerprint(pack):
    """All that can be seen of a pack, with a fixed line played, as text."""
    parts = []
    for task in pack.tasks:
        parts += [task.rules, task.reset(), task.max_turns, sorted(task.setup.quirks), task.setup.home]
        for line in ("ls -R", "dir /s", f"ssh {task.setup.login}@{task.setup.name} ls -R {task.setup.home}"):
            parts.append(task.step(f"<answer>{line}</answer>"))
    return repr(parts)


# ---------------------------------------------------------------------------------------------------------
# Packs


def many_fingerprints():
    """Fingerprints of packs over seeds, levels and loops; its source also runs in other processes."""
    arguments = itertools.product((0, 1, 123456), (3,), ("train", "paper"), (False, True))
    return "\n".join(fingerprint(make_pack("terminal", *each)) for each in arguments)


def test_same_arguments_give_the_same_pack_in_every_process():
    assert same_in_other_processes(many_fingerprints, fingerprint)


def test_levels_and_kinds():
    assert set(Terminal.levels) == {"tiny", "tiny-hard", "train", "paper"}
    assert set(SINGLE) == SINGLE_KINDS and set(COMPOSITE) == COMPOSITE_KINDS
    assert TERMINAL_LEVELS["paper"].max_turns == 12
    assert len(ALL_QUIRKS) == len(set(ALL_QUIRKS)) >= 8


def test_train_packs_share_machines_and_paper_packs_do_not():
    for seed in range(40):
        train, paper = (make_pack("terminal", seed, 4, level).tasks for level in ("train", "paper"))
        assert len({(task.setup.user, task.setup.host, task.rules) for task in train}) == 1
        assert len({task.setup for task in train}) == 1 and len({task.setup for task in paper}) > 1
        assert all(task.max_turns == 4 for task in train) and all(task.max_turns == 12 for task in paper)
        assert "peculiarities" in train[0].rules and "peculiarities" not in paper[0].rules
        assert all(not task.setup.quirks for task in paper)
        for task in train + paper:
            assert SYSTEMS[task.setup.system] in task.rules and task.setup.user in task.rules
            assert task.setup.host in task.rules and f"{task.max_turns} turns" in task.rules


def test_quirks_kinds_and_systems_are_drawn_evenly():
    packs = [make_pack("terminal", seed, 4) for seed in range(400)]
    drawn_sets = {frozenset(pack.tasks[0].setup.quirks) for pack in packs}
    assert drawn_sets <= {frozenset(each) for each in quirk_sets()} and len(drawn_sets) > 40
    assert set().union(*drawn_sets) == set(ALL_QUIRKS)
    assert {len(pack.tasks[0].setup.quirks) for pack in packs} == {3, 4}
    tasks = [task for pack in packs for task in pack.tasks]
    kinds = [task.errand.kind for task in tasks]
    assert abs(sum(kind in SINGLE_KINDS for kind in kinds) / len(kinds) - 0.5) < 0.05
    for group in (SINGLE_KINDS, COMPOSITE_KINDS):
        share = 0.5 / len(group)
        assert all(0.5 * share < kinds.count(kind) / len(kinds) < 1.6 * share for kind in group)
    systems = [pack.tasks[0].setup.system for pack in packs]
    assert all(0.25 < systems.count(system) / len(systems) < 0.42 for system in SYSTEMS)


def test_files_have_their_likes_and_differ_in_content():
    for seed in range(40):
        for task in make_pack("terminal", seed, 4, "paper").tasks:
            for place in ("local", "remote"):
                files = {path: node for path, node in task.files[place].items() if not node.members}
                assert len(files) == 12 and len({posixpath.dirname(path) for path in files}) == 4
                assert len({node.content for node in files.values()}) == 12
                for path in files:  # three names in a folder with the same beginning and ending
                    stem, ending = re.fullmatch(r"\w+/([a-z]+)[\w-]*\.(\w+)", path).groups()
                    likes = [other for other in files if posixpath.dirname(other) == posixpath.dirname(path)]
                    assert len(likes) == 3 and all(stem in other and other.endswith(ending) for other in likes)


@pytest.mark.parametrize("ralph", [False, True])
def test_copies_of_a_pack_do_not_affect_each_other(ralph):
    for seed in range(8):
        pack = make_pack("terminal", seed, 3, ralph=ralph)
        first = [task.reset() for task in pack.tasks]
        others = [*pack.fresh().tasks, *pack.tasks[1:]]
        want = [other.reset() and [dict(machine.nodes) for machine in other.machines.values()] for other in others]
        task = pack.tasks[0]
        home = task.homes["local"]
        for line in ("rm -rf docs x", "mkdir made", "cd made"):
            task.step(f"<answer>{line}</answer>")
        assert home + "/made" in task.machines["local"].nodes and task.shell.cwd.endswith("/made")
        task.machines["remote"].remove(task.homes["remote"] + "/" + sorted(task.files["remote"])[0])
        assert [[dict(machine.nodes) for machine in other.machines.values()] for other in others] == want
        assert [other.turn for other in others] == [0] * len(others)
        assert [other.reset() for other in pack.tasks] == first
        assert home + "/made" not in task.machines["local"].nodes and task.shell.cwd == home


# ---------------------------------------------------------------------------------------------------------
# Errands by hand

FILES = {
    "local": {"docs/a.txt": "la", "docs/a-old.txt": "lao", "pics/p.csv": "lp"},
    "remote": {"docs/a.txt": "ra", "logs/b.txt": "rb", "logs/b-old.txt": "rbo"},
}


def errand(kind, src="", dst="", mode=0, place=None):
    here, there = (place, place) if place else ("remote", "local") if "download" in kind else ("local", "remote")
    return Errand(kind, here, there, src, dst, mode)


def a_task(what, system="linux", quirks=(), level="paper"):
    files = {place: {path: Node(content) for path, content in FILES[place].items()} for place in FILES}
    if what.kind == "download+extract":
        members = (("box/1.txt", Node("one")), ("box/2.txt", Node("two")))
        files["remote"][what.src] = Node("tar" if what.src.endswith("gz") else "zip", members=members)
    task = Terminal(setup_with(system, quirks), what, files, TERMINAL_LEVELS[level])
    task.reset()
    return task


HOST = "box.example.org"
BY_HAND = [  # (errand, what does it in Linux, what does it in Windows, what does not quite)
    (
        errand("upload", "docs/a.txt", "logs/a.txt"),
        f"scp docs/a.txt {HOST}:logs/",
        rf"scp docs\a.txt {HOST}:logs/a.txt",
        f"scp docs/a-old.txt {HOST}:logs/a.txt",
    ),
    (
        errand("download", "logs/b.txt", "docs/b.txt"),
        f"cd docs && scp ann@{HOST}:logs/b.txt .",
        rf"rsync {HOST}:/home/ann/logs/b.txt docs\b.txt",
        f"scp {HOST}:logs/b.txt .",
    ),
    (
        errand("rename", "docs/a.txt", "docs/new.txt", place="local"),
        "cd docs; mv a.txt new.txt",
        r"ren docs\a.txt new.txt",
        "cp docs/a.txt docs/new.txt",
    ),
    (
        errand("rename", "docs/a.txt", "docs/new.txt", place="remote"),
        f'ssh {HOST} "cd docs && mv a.txt new.txt"',
        f"ssh {HOST} mv docs/a.txt docs/new.txt",
        "mv docs/a.txt docs/new.txt",
    ),
    (
        errand("move", "docs/a.txt", "pics/a.txt", place="local"),
        "mv docs/a.txt pics",
        r"copy docs\a.txt pics && del docs\a.txt",
        "mv docs/a.txt docs/a-old.txt pics",
    ),
    (
        errand("move", "logs/b.txt", "docs/b.txt", place="remote"),
        f"ssh {HOST} mv logs/b.txt docs",
        f"ssh {HOST} mv /home/ann/logs/b.txt /home/ann/docs/b.txt",
        f"ssh {HOST} mv logs docs",
    ),
    (
        errand("copy", "docs/a.txt", "pics/a-b.txt", place="local"),
        "cp docs/a.txt pics/a-b.txt",
        r"copy docs\a.txt pics\a-b.txt",
        "cp docs/a.txt pics",
    ),
    (errand("delete", "docs/a.txt", place="local"), "rm docs/a.txt", r"del docs\a.txt", "rm -r docs"),
    (
        errand("delete", "logs/b.txt", place="remote"),
        f"ssh {HOST} rm logs/b.txt",
        f"ssh {HOST} rm -f logs/b.txt",
        f"ssh {HOST} rm logs/b-old.txt",
    ),
    (
        errand("chmod", "logs/b.txt", mode=0o640, place="remote"),
        f"ssh {HOST} chmod 640 logs/b.txt",
        f"ssh {HOST} chmod o-r logs/b.txt",
        f"ssh {HOST} chmod 640 logs/b.txt logs/b-old.txt",
    ),
    (
        errand("pack", "docs", "pics/d", place="local"),
        "cd docs && tar czf ../pics/d.tar.gz a.txt a-old.txt",
        r"zip -r pics\d.zip docs",
        "tar czf pics/d.tar.gz docs/a.txt",
    ),
    (
        errand("pack", "logs", "docs/d", place="remote"),
        f"ssh {HOST} tar czf docs/d.tar.gz -C logs .",
        f"ssh {HOST} zip -r docs/d.zip logs",
        f"ssh {HOST} zip docs/d.zip logs",
    ),
    (
        errand("mkdir", dst="docs/x/y", place="local"),
        "mkdir docs/x && mkdir docs/x/y",
        r"md docs\x\y",
        "mkdir -p docs/y/x",
    ),
    (
        errand("pack+upload", "docs", "logs/d"),
        f"tar czf d.tar.gz docs && scp d.tar.gz {HOST}:logs/d.tar.gz",
        f"zip -r d.zip docs && scp d.zip {HOST}:logs",
        f"tar czf d.tar.gz pics && scp d.tar.gz {HOST}:logs/d.tar.gz",
    ),
    (
        errand("download+extract", "logs/box.tar.gz", "docs"),
        f"scp {HOST}:logs/box.tar.gz /tmp/b.tgz; cd docs; tar xzf /tmp/b.tgz",
        rf"scp {HOST}:logs/box.tar.gz docs\x.tgz && tar xzf docs\x.tgz -C docs",
        f"scp {HOST}:logs/box.tar.gz . && tar xzf box.tar.gz",
    ),
    (
        errand("mkdir+upload", "docs/a.txt", "logs/x/y"),
        f"ssh {HOST} mkdir -p logs/x/y && scp docs/a.txt {HOST}:logs/x/y",
        rf"ssh {HOST} mkdir logs/x; ssh {HOST} mkdir logs/x/y; scp docs\a.txt {HOST}:logs/x/y/a.txt",
        f"ssh {HOST} mkdir -p logs/x && scp docs/a.txt {HOST}:logs/x/y",
    ),
    (
        errand("upload+chmod", "docs/a.txt", "logs/a.txt", 0o600),
        f"scp docs/a.txt {HOST}:logs && ssh {HOST} chmod 600 logs/a.txt",
        rf'scp docs\a.txt {HOST}:logs && ssh {HOST} "chmod go-rwx logs/a.txt"',
        f"chmod 600 docs/a.txt && scp docs/a.txt {HOST}:logs",
    ),
    (
        errand("upload+delete", "docs/a.txt", "logs/a.txt"),
        f"scp docs/a.txt {HOST}:logs && rm docs/a.txt",
        rf"scp docs\a.txt {HOST}:logs && del docs\a.txt",
        f"rm docs/a.txt && scp docs/a.txt {HOST}:logs",
    ),
    (
        errand("pack+upload+extract", "docs", "logs"),
        f"tar czf d.tgz docs; scp d.tgz {HOST}: && ssh {HOST} tar xzf d.tgz -C logs",
        f"zip -r d.zip docs && scp d.zip {HOST}: && ssh {HOST} unzip d.zip -d logs",
        f"tar czf d.tgz docs; scp d.tgz {HOST}: && ssh {HOST} tar xzf d.tgz",
    ),
    (
        errand("download+rename", "logs/b.txt", "docs/c.txt"),
        f"scp {HOST}:logs/b.txt . && mv b.txt docs/c.txt",
        rf"scp {HOST}:logs/b.txt docs && ren docs\b.txt c.txt",
        f"scp {HOST}:logs/b.txt docs",
    ),
    (
        errand("backup+replace", "pics/p.csv", "logs/b.txt"),
        f"ssh {HOST} cp logs/b.txt logs/b.txt.bak && scp pics/p.csv {HOST}:logs/b.txt",
        rf"ssh {HOST} mv logs/b.txt logs/b.txt.bak && scp pics\p.csv {HOST}:logs/b.txt",
        f"scp pics/p.csv {HOST}:logs/b.txt && ssh {HOST} cp logs/b.txt logs/b.txt.bak",
    ),
]


def test_all_kinds_are_done_by_hand():
    assert {what.kind for what, *_ in BY_HAND} == SINGLE_KINDS | COMPOSITE_KINDS


@pytest.mark.parametrize("index", range(len(BY_HAND)), ids=[f"{what.kind} {what.here}" for what, *_ in BY_HAND])
def test_errands_by_hand(index):
    what, posix, windows, wrong = BY_HAND[index]
    for system in SYSTEMS:
        task = a_task(what, system)
        text, done = task.step(f"Now I do it. <answer>{windows if system == 'windows' else posix}</answer>")
        assert (done, task.reward, task.broken_format) == (True, 1.0, False), text
        assert task.feedback == "You did what the task says." and text.endswith(task.feedback)
    task = a_task(what)
    assert not task.step(f"<answer>{wrong}</answer>")[1]
    assert not any(task.step(f"<answer>{each}</answer>")[1] for each in ["ls"] * 10)
    assert task.step("<answer>ls</answer>")[1] and task.reward == 0 and "ran out of turns" in task.feedback


@pytest.mark.parametrize("what", [what for what, *_ in BY_HAND], ids=lambda what: f"{what.kind} {what.here}")
def test_what_no_command_should_have_touched_must_be_as_it_was(what):
    """Harm done to a file that the errand is not about; then the informed player's line is not enough."""
    for place, path in (("local", "docs/a-old.txt"), ("remote", "logs/b-old.txt")):
        if path.startswith(what.src) and what.here == place and what.kind != "delete":
            continue  # it is about a folder with that file
        task = a_task(what)
        task.machines[place].nodes[f"{task.homes[place]}/{path}"] = Node("other")
        assert not task.step(TerminalInformed().plan(task))[1]


def test_the_goal_is_looked_at_after_every_command():
    task = a_task(errand("delete", "docs/a.txt", place="local"))
    _, done = task.step("<answer>rm docs/a.txt; mkdir x; cp pics/p.csv docs/a.txt</answer>")
    assert done and task.reward == 1 and "/home/ann/x" not in task.machines["local"].nodes
    task = a_task(errand("delete", "docs/a.txt", place="remote"))
    _, done = task.step(f'<answer>ssh {HOST} "rm docs/a.txt && scp" && echo no</answer>')
    assert done and task.reward == 1


def test_observations():
    task = a_task(errand("upload", "docs/a.txt", "logs/a.txt"), "windows", level="train")
    text = task.reset()
    assert text == "Upload docs\\a.txt of this computer to the host as logs/a.txt.\nTurn 1 of 4:"
    assert task.step("<answer>cd docs</answer>") == ("(no output)\nTurn 2 of 4:", False)
    assert task.step("<answer>dir && cd .. && type nope && dir</answer>") == (
        "a-old.txt  a.txt\nThe system cannot find the file specified.\n[command 3 of 4 failed]\nTurn 3 of 4:",
        False,
    )
    assert task.step("<answer></answer>") == ("(no output)\nTurn 4 of 4:", False)
    text, done = task.step("<answer>ssh</answer>")
    assert done and task.reward == 0 and not task.broken_format
    assert text.endswith("\nYou ran out of turns before the task was done.") and task.feedback in text
    with pytest.raises(RuntimeError, match="reset"):
        task.step("<answer>dir</answer>")
    task.reset()
    assert (task.turn, task.done, task.reward, task.feedback, task.shell.cwd) == (0, False, 0.0, "", "/Users/ann")


@pytest.mark.parametrize(
    "reply", ["", "ls", "<answer>ls", "<answer>ls</answer> <answer>ls</answer>", "</answer>ls<answer>"]
)
def test_a_reply_without_exactly_one_answer_ends_the_task(reply):
    task = a_task(errand("upload", "docs/a.txt", "logs/a.txt"))
    text, done = task.step(reply)
    assert done and task.broken_format and task.reward == 0 and "<answer>" in task.feedback and text == task.feedback
    task.reset()
    assert not task.broken_format and not task.step("<answer>ls</answer>")[1]


# ---------------------------------------------------------------------------------------------------------
# Every errand under every combination of quirks


def drawn(kind, system, quirks, seed=0):
    rng = random.Random(f"{kind}/{system}/{quirks}/{seed}")
    files = {"local": draw_files(rng), "remote": draw_files(rng)}
    setup = setup_with(system, quirks)
    task = Terminal(setup, draw_errand(rng, kind, setup, files), files, TERMINAL_LEVELS["train"])
    task.reset()
    return task


@pytest.mark.parametrize("kind", ERRANDS)
def test_informed_player_does_everything_in_one_line(kind):
    """On all systems, without quirks, with each one and with every combination; nothing is done beforehand."""
    for system in SYSTEMS:
        for quirks in ((), *((quirk,) for quirk in ALL_QUIRKS), *quirk_sets()):
            task = drawn(kind, system, quirks)
            assert not task._reached()
            line = TerminalInformed().plan(task)
            text, done = task.step(line)
            assert done and task.reward == 1, (line, text)
            assert len(line) < 700


def test_drawn_errands_of_all_seeds_are_open_and_done_by_the_informed_player():
    packs = [make_pack("terminal", seed, 4, level) for seed in range(150) for level in TERMINAL_LEVELS]
    for rollout in run(map(play, packs), TerminalInformed()):
        assert [(e.outcome, len(e.replies)) for e in rollout.of("solve")] == [(1.0, 1)] * 4


def play_alone(task):
    """One task, then the hint: (turns, reward, hint)."""
    pack = Pack("terminal", 0, 2, "train", False, [task, task])
    rollout = run([play(pack)], TerminalLearner())[0]
    first = rollout.of("solve")[0]
    return len(first.replies), first.outcome, rollout.of("update")[0].context


BITES = {  # quirk -> kinds of errands whose usual commands run into it (wherever they are done)
    **dict.fromkeys(("user", "alias", "home", "rsync"), COMPOSITE_KINDS | {"upload", "download"}),
    "incoming": COMPOSITE_KINDS - {"download+extract", "download+rename"} | {"upload"},
    "sudo": {"mkdir+upload", "upload+chmod", "pack+upload+extract", "backup+replace"},
    "zip": {"pack", "pack+upload", "pack+upload+extract"},
    **dict.fromkeys(("trash", "force"), {"delete", "upload+delete"}),
    "levels": {"mkdir", "mkdir+upload"},
    "symbolic": {"chmod", "upload+chmod"},
}


@pytest.mark.parametrize("quirk", ALL_QUIRKS)
def test_each_quirk_bites_and_is_named_in_the_hint(quirk):
    """The usual line fails under the quirk, and the learner's hint says so; then it needs one turn."""
    sentence = FACTS[quirk][1].partition("{")[0]
    for kind in sorted(BITES[quirk]):
        for system in SYSTEMS:
            turns, reward, hint = play_alone(drawn(kind, system, (quirk,)))
            assert reward == 1 and turns == (3 if quirk in ("alias", "home") else 2), (kind, system)
            assert sentence in hint and sum(line.startswith("- ") for line in hint.split("\n")) <= 2
            turns, reward, hint = play_alone(drawn(kind, system, ()))
            assert (turns, reward, hint) == (1, 1, "- Nothing unusual so far.")


@pytest.mark.parametrize("quirks", list(quirk_sets()), ids="-".join)
def test_learner_finds_all_out_in_time(quirks):
    """With enough turns it does every errand, and its hint has the values that the machines really have."""
    setup = setup_with("linux", quirks)
    for kind, system in (("upload+chmod", "linux"), ("backup+replace", "windows"), ("pack+upload+extract", "macos")):
        task = drawn(kind, system, quirks)
        task.max_turns = 12
        turns, reward, hint = play_alone(task)
        assert reward == 1 and 2 <= turns <= 8
        values = {"user": setup.login, "alias": setup.name, "home": setup.home}
        assert all(values[quirk] in hint for quirk in quirks if quirk in values)


# ---------------------------------------------------------------------------------------------------------
# Players


def success(player, level, seeds, size=4):
    rollouts = run([play(make_pack("terminal", seed, size, level)) for seed in seeds], player)
    assert not any(episode.broken_format for rollout in rollouts for episode in rollout.episodes)
    return [sum(r.of("solve")[j].outcome for r in rollouts) / len(rollouts) for j in range(size)]


def test_learner_gains_by_position_and_is_below_informed_at_first():
    learner = success(TerminalLearner(), "train", range(150))
    assert 0.3 < learner[0] < 0.6 and learner[1] > learner[0] + 0.2 and learner[3] > 0.9
    assert success(TerminalLearner(), "paper", range(40)) == [1.0] * 4


def test_learner_without_hints_does_not_gain():
    packs = [make_pack("terminal", seed, 4) for seed in range(150)]
    rollouts = run([play(pack, next_hint=no_hints) for pack in packs], TerminalLearner())
    means = [sum(r.of("solve")[j].outcome for r in rollouts) / len(rollouts) for j in range(4)]
    assert max(means) - min(means) < 0.2 and max(means) < 0.65


def test_random_player_acts_within_the_format_and_seldom_succeeds():
    assert sum(success(TerminalRandom(0), "train", range(60))) / 4 < 0.1
    player = TerminalRandom(1)
    for seed in range(30):
        task = make_pack("terminal", seed, 1, "paper").tasks[0]
        messages = [
            {"role": "system", "content": solve_system(task.rules, NO_HINTS_YET)},
            {"role": "user", "content": task.reset()},
        ]
        lines = {parse_answer(player.act(messages)) for _ in range(50)}
        assert len(lines) > 25 and None not in lines
        for line in sorted(lines)[:11]:
            text, done = task.step(f"<answer>{line}</answer>")
            assert "syntax error" not in text and "not recognized" not in text
            if done:
                break


def test_the_errand_is_read_from_the_text():
    for seed in range(200):
        task = make_pack("terminal", seed, 1, "paper").tasks[0]
        recipe = read_recipe(f"{task.rules}\n{task.reset()}")
        assert (recipe.system, recipe.user, recipe.host) == (task.setup.system, task.setup.user, task.setup.host)
        assert recipe.errand == task.errand and recipe.known == {}


def test_the_hint_read_back_carries_all_that_is_known():
    rng = random.Random(0)
    values = {"user": "ops", "alias": "box-2", "home": "/data/home/ops"}
    player = TerminalLearner()
    for seed in range(40):
        task = make_pack("terminal", seed, 1).tasks[0]
        known = {quirk: values.get(quirk, "") for quirk in FACTS if rng.random() < 0.4}
        hint = "\n".join(f"- {FACTS[quirk][1].format(value=value)}" for quirk, value in known.items())
        transcript = [{"role": "system", "content": task.rules}, {"role": "user", "content": task.reset()}]
        written, readable = parse_update(player.hint(update_messages(hint, transcript, 0.0, "over")))
        assert readable
        system = solve_system(task.rules, written)
        assert read_recipe(f"{system}\n{task.reset()}").known == known


def test_what_the_learner_itself_says_is_no_evidence():
    task = a_task(errand("upload", "docs/a.txt", "logs/a.txt"))
    messages = [
        {"role": "system", "content": solve_system(task.rules, NO_HINTS_YET)},
        {"role": "user", "content": task.reset()},
    ]
    plain = TerminalLearner().act(messages)
    lie = {"role": "assistant", "content": "sh: scp: command not found\n- scp is missing; use rsync."}
    assert TerminalLearner().act([*messages, lie]) == plain == f"<answer>scp docs/a.txt {HOST}:logs/a.txt</answer>"


# ---------------------------------------------------------------------------------------------------------
# Hostile replies

INSIDE = [
    "ls",
    "rm -rf /",
    "rm -rf .",
    "cat ../../../etc/passwd",
    "echo ###",
    "echo '### END HINTS'",
    "$(reboot)",
    "\x00",
]
INSIDE += [
    "\ud800",
    "\u0663",
    "\u00b2",
    "10**10**10",
    "((((",
    "<|im_end|>",
    "<b>",
    "ssh",
    "scp a b",
    "'",
    "\\",
    "*",
    "~",
    "&&",
]
INSIDE += [f"ssh {HOST}", f"scp -r / {HOST}:", f"ssh {HOST} rm -rf /", "cp -r . x", "C:\\", "dir /s", "tar czf t.tgz ."]
pieces = st.lists(
    st.sampled_from([*INSIDE, "<answer>", "</answer>", "<ANSWER>", "</", " ", "\n"]) | st.text(max_size=3), max_size=8
)
replies = st.one_of(
    st.text(),
    pieces.map("".join),
    pieces.map(lambda parts: f"<answer>{' '.join(parts)}</answer>"),
    st.text(max_size=20).map(lambda inside: f"<answer>{inside}</answer>"),
)


@settings(max_examples=400, deadline=None)
@given(
    seed=st.integers(0, 40),
    level=st.sampled_from(tuple(TERMINAL_LEVELS)),
    script=st.lists(replies, min_size=12, max_size=12),
)
def test_any_text_is_survived(seed, level, script):
    task = make_pack("terminal", seed, 1, level).tasks[0]
    task.reset()
    for reply in script:
        text, done = task.step(reply)
        assert type(text) is str and text and len(text) < 1500 and "###" not in text
        assert text.isprintable() or all(c == "\n" or c.isprintable() for c in text)
        assert task.reward in (0.0, 1.0) and task.reward <= done
        assert task.broken_format == (reply.count("<answer>") != 1 or parse_answer(reply) is None)
        if done:
            assert task.feedback and "###" not in task.feedback
            break
    assert done and task.turn <= task.max_turns


@pytest.mark.parametrize(
    "reply",
    [
        "x" * 5_000_000,
        "<answer>" * 600_000,
        "<answer>" + "ls;" * 1_600_000 + "</answer>",
        "<answer>" + "ls -R /;" * 99 + "</answer>",
        "<answer>" + " " * 5_000_000 + "</answer>",
        "x" * 5_000_000 + "<answer>" + "cp -r docs x;" * 60 + "</answer>",
        "<answer>" + "(" * 5_000_000 + "</answer>",
        "<answer>" + "#" * 5_000_000 + "</answer>",
        "<answer>" + "echo " + "#" * 700 + "</answer>",
        "<answer>" + "'" * 799 + "</answer>",
        "<answer>" + '"\\"' * 260 + "</answer>",
        "<answer>" + "\\" * 799 + "</answer>",
        "<answer>mkdir -p " + "a/" * 390 + "</answer>",
        "<answer>" + f"scp -r / {HOST}:x;" * 20 + "</answer>",
        "<answer>" + f'ssh {HOST} "{"ls -R /;" * 90}"' + "</answer>",
        "</answer>" * 500_000 + "<answer>",
    ],
    ids=lambda reply: f"{reply[:24]!a} {len(reply)}",
)
def test_large_replies_are_fast(reply):
    for what in (errand("pack", "logs", "docs/d", place="remote"), errand("upload", "docs/a.txt", "logs/a.txt")):
        assert cpu_seconds(0.05, lambda what=what: a_task(what), lambda task: task.step(reply)) < 0.05
        text, _ = a_task(what).step(reply)
        assert text and len(text) < 1500 and "###" not in text


@pytest.mark.parametrize("system", SYSTEMS)
def test_looking_again_and_again_at_a_full_machine_is_fast(system):
    """The longest lines of listings, where each has some 290 names; macOS and Windows ignore case, too."""

    def full():
        task = a_task(errand("upload", "docs/a.txt", "logs/a.txt"), system=system)
        machine = task.machines["local"]
        for i in range(MAX_NODES - len(machine.nodes)):
            machine.put(f"{machine.home}/file {i}.txt", Node(str(i)))
        return task

    ls, everything = ("dir", "dir /s") if system == "windows" else ("ls", "ls -lR")
    for line in (f"{ls};" * 266, f"{everything};" * 99, (f"{ls} " + ". " * 98 + ";") * 4, "cd .;" * 159):
        line = line[:MAX_LINE].rpartition(";")[0]
        assert cpu_seconds(0.05, full, lambda task, line=line: task.step(f"<answer>{line}</answer>")) < 0.05, line[:20]


def test_listings_show_what_the_line_itself_has_changed():
    task = a_task(errand("upload", "docs/a.txt", "logs/a.txt"))
    line = "ls; mkdir new; ls; ls -l new; chmod 700 docs/a.txt; ls -l docs/a.txt; rmdir new; ls; cd docs; ls"
    text, _ = task.step(f"<answer>{line}</answer>")
    listed = text.splitlines()
    assert listed[0] == listed[4] and "new/" in listed[1].split() and "new/" not in listed[0].split()
    assert listed[2] == "" and listed[3] == "-rwx------ docs/a.txt" and "a.txt" in listed[5].split()
