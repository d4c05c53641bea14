"""Environments by name and by path: imported when asked for, the same packs wherever they lie, errors in one line."""

import os
import shutil
import subprocess
import sys

import pytest
from doubles import REPO

from engine.errors import BadInput
from engine.settings import parse_envs
from environments.frozenlake.players import LakeInformed, LakeLearner, LakeRandom
from environments.frozenlake.task import FrozenLake
from envs import ENVS, Task, make_pack, name_of, players, task_class, whole

ECHO = """
from envs import Task
{more}
class Echo(Task):
    levels = ("easy", "train")
    max_turns = 1

    def __init__(self, word):
        self.word, self.rules = word, f"Say {{word}}."

    @classmethod
    def make_tasks(cls, rng, size, level):
        return [cls(rng.choice(WORDS)) for _ in range(size)]

    def reset(self):
        return "Now."

    def step(self, reply):
        self.reward = float(self.word in reply)
        return "That was it.", True
"""
WORDS = "WORDS = 'one two three four five six seven'.split()\n"
PARROT = """
from environments.player import InformedPlayer


class Parrot(InformedPlayer):
    def plan(self, task):
        return task.word


PLAYERS = {"informed": Parrot}
"""


@pytest.fixture
def file(tmp_path):
    """An environment in a file."""
    path = tmp_path / "elsewhere" / "echo.py"
    path.parent.mkdir()
    path.write_text(ECHO.format(more=WORDS + PARROT))
    return path


@pytest.fixture
def folder(tmp_path):
    """The same environment in a folder, in parts."""
    path = tmp_path / "parts" / "echo"
    path.mkdir(parents=True)
    (path / "task.py").write_text(ECHO.format(more="from .words import WORDS\n"))
    (path / "words.py").write_text(WORDS)
    (path / "players.py").write_text(PARROT)
    return path


def rules_of(env, level="easy"):
    return [task.rules for seed in range(20) for task in make_pack(env, seed, 3, level).tasks]


# ---------------------------------------------------------------------------------------------------------
# By name


def test_the_environments_of_this_project_are_found_by_name():
    assert list(ENVS) == ["alchemy", "control", "frozenlake", "gridnav", "terminal"] and len(ENVS) == 5
    assert ENVS["frozenlake"] is FrozenLake is task_class("frozenlake")
    assert "frozenlake" in ENVS and "task" not in ENVS and "player" not in ENVS and ENVS.get("lake") is None
    kinds = {label: type(player) for label, player in players("frozenlake").items()}
    assert kinds == {"random": LakeRandom, "informed": LakeInformed, "learner": LakeLearner}
    assert all(set(players(env)) == {"random", "informed", "learner"} for env in ENVS)


def test_an_environment_can_be_set_for_a_while(monkeypatch):
    class Mine(FrozenLake):
        pass

    with monkeypatch.context() as patch:
        patch.setitem(ENVS, "mine", Mine)
        patch.setitem(ENVS, "frozenlake", Mine)
        assert "mine" in ENVS and "mine" in list(ENVS) and players("mine") == {}
        assert type(make_pack("mine", 0, 1).tasks[0]) is type(make_pack("frozenlake", 0, 1).tasks[0]) is Mine
    assert "mine" not in ENVS and ENVS["frozenlake"] is FrozenLake


def test_a_new_file_in_the_folder_is_found_and_a_broken_one_harms_no_other(tmp_path):
    """In a copy of the part of the project that environments need, used from another folder."""
    project, elsewhere = tmp_path / "project", tmp_path / "elsewhere"
    shutil.copytree(REPO / "environments", project / "environments", ignore=shutil.ignore_patterns("__pycache__"))
    (project / "engine").mkdir()
    for name in ("envs.py", "rollout.py", "context.py", "engine/__init__.py", "engine/errors.py"):
        shutil.copy(REPO / name, project / name)
    elsewhere.mkdir()
    (project / "environments" / "echo.py").write_text(ECHO.format(more=WORDS + PARROT))
    (project / "environments" / "broken.py").write_text("import there_is_no_such_module\n")
    code = """
import sys
from envs import ENVS, make_pack, players
imported = {name for name in sys.modules if name.startswith("environments.")}
assert imported == {"environments.finding", "environments.task"}, imported
assert list(ENVS) == ["alchemy", "broken", "control", "echo", "frozenlake", "gridnav", "terminal"], list(ENVS)
print(make_pack("echo", 0, 1).tasks[0].rules, list(players("echo")))
make_pack("frozenlake", 0, 1, "tiny")
assert "torch" not in sys.modules and "environments.gridnav" not in sys.modules
make_pack(sys.argv[1], 0, 1)
"""
    for env in ("broken", str(project / "environments" / "broken.py")):
        result = subprocess.run(
            [sys.executable, "-c", code, env],
            cwd=elsewhere,
            env=os.environ | {"PYTHONPATH": str(project)},
            capture_output=True,
            text=True,
        )
        assert result.stdout.startswith("Say ") and result.stdout.endswith("['informed']\n"), result.stderr
        line = result.stderr.splitlines()[-1]
        assert "broken.py:1: ModuleNotFoundError: No module named 'there_is_no_such_module'" in line


# ---------------------------------------------------------------------------------------------------------
# By path


def test_a_path_is_as_good_as_a_name(file, folder, monkeypatch):
    for path in (file, folder):
        pack = make_pack(str(path), 0, 4, "easy")
        assert [task.rules for task in pack.fresh().tasks] == [task.rules for task in pack.tasks]
        assert name_of(str(path)) == "echo" and whole(str(path)) == str(path)
        assert [type(player).__name__ for player in players(str(path)).values()] == ["Parrot"]
        monkeypatch.chdir(path.parent)
        roundabout = f"{path.parent}/../{path.parent.name}/{path.name}"
        assert task_class(f"./{path.name}") is task_class(str(path)) is task_class(roundabout)
        assert name_of(f"./{path.name}") == "echo" and whole(f"./{path.name}") == str(path)
    monkeypatch.chdir(file.parent)
    assert task_class("echo.py") is task_class(str(file)) is not task_class(str(folder))
    assert task_class(str(folder / "task.py")) is task_class(str(folder)) and name_of(str(folder / "task.py")) == "echo"
    assert name_of("frozenlake") == whole("frozenlake") == "frozenlake"


def test_packs_do_not_depend_on_the_path(file, folder):
    assert rules_of(str(file)) == rules_of(str(folder)) != rules_of(str(file), "train")
    assert len(set(rules_of(str(file)))) == 7


def test_the_path_of_an_environment_of_this_project_is_its_name():
    for path in (REPO / "environments" / "frozenlake", REPO / "environments" / "frozenlake" / "task.py"):
        assert task_class(str(path)) is FrozenLake


def test_several_environments_are_given_by_name(file):
    for text in (f"{file}/easy=2,frozenlake/tiny", "frozenlake/tiny,echo.py/train", "frozenlake, ./echo/train=1"):
        with pytest.raises(BadInput, match="^envs=.*looks like a path") as error:
            parse_envs(text)
        assert "\n" not in str(error.value)


# ---------------------------------------------------------------------------------------------------------
# Errors


def bad(env, *named):
    with pytest.raises(BadInput) as error:
        make_pack(str(env), 0, 1)
    assert "\n" not in str(error.value) and str(error.value).startswith("env=")
    assert all(word in str(error.value) for word in named), str(error.value)


def test_names_and_paths_that_lead_nowhere(tmp_path):
    for name in ("", "lake", "task", "..", "a b", "tiny\n", "guess\x00"):
        bad(name, repr(name), "frozenlake", "path")
    bad(tmp_path / "no.py", "no such file")
    bad(tmp_path / "a\x00b.py", "no such file")
    bad(f"{tmp_path}/", "no task.py")
    (tmp_path / "notes.txt").write_text("")
    bad(tmp_path / "notes.txt", "NAME.py")
    bad(REPO / "environments" / "player.py", "unknown environment", "frozenlake")
    for name in ("my-guess.py", "2nd.py", "größe.py", "a b.py"):
        (tmp_path / name).write_text(ECHO.format(more=WORDS))
        bad(tmp_path / name, "letters, digits and underscores")


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("x = (\n", [":1: SyntaxError: '(' was never closed"]),
        ("x = 1\n\n  y = 2\n", [":3: IndentationError: unexpected indent"]),
        ("\n\nraise RuntimeError('first\\nsecond')\n", [":3: RuntimeError: first"]),
        ("def f():\n    return 1 / 0\n\n\nf()\n", [":2: ZeroDivisionError"]),
        ("import json\njson.loads('{')\n", [":2: JSONDecodeError"]),
        ("import sys\nsys.exit(3)\n", [":2: SystemExit: 3"]),
        ("from envs import Nothing\n", [":1: ImportError", "Nothing"]),
        ("x = 1\n", ["exactly one subclass of Task, not none"]),
        ("from environments.frozenlake.task import FrozenLake\n", ["not none"]),
        ("from envs import Task\nclass A(Task): pass\nclass B(A): pass\n", ["not A, B"]),
    ],
)
def test_a_file_that_is_no_environment(tmp_path, text, named):
    (tmp_path / "odd.py").write_text(text)
    for _ in range(2):
        bad(tmp_path / "odd.py", "odd.py", *named)


def test_bytes_that_are_no_text(tmp_path):
    (tmp_path / "odd.py").write_bytes(b"x = '\xff'\n")
    bad(tmp_path / "odd.py", "odd.py", "SyntaxError")
    (tmp_path / "zero.py").write_bytes(b"x = '\x00'\n")
    bad(tmp_path / "zero.py", "null bytes")


def test_a_broken_part_is_named_where_it_breaks(folder):
    (folder / "words.py").write_text("WORDS = [\n    one,\n]\n")
    bad(folder, "words.py:2: NameError")


@pytest.mark.parametrize(
    ("text", "named"),
    [("PLAYERS = {\n", ["players.py:1: SyntaxError"]), ("PLAYERS = [int]\n", ["players.py", "must be a dictionary"])],
)
def test_broken_players_are_named(folder, text, named):
    (folder / "players.py").write_text(text)
    assert issubclass(task_class(str(folder)), Task)
    with pytest.raises(BadInput) as error:
        players(str(folder))
    assert "\n" not in str(error.value) and all(word in str(error.value) for word in named)
