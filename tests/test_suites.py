"""The settings that an evaluation plays: suites by name and from files, Ralph loops, the order of tasks."""

import shutil

import pytest
from doubles import REPO

from engine.errors import BadInput
from envs import ENVS, make_pack, task_class
from evaluation.settings import EvalConfig
from evaluation.suites import Setting, settings_to_play, source_of

CONFIG = EvalConfig(packs=6, pack_size=3)


def tasks_of(pack):
    return [(task.lake, task.mapping) for task in pack.tasks]


def packs_of(config=CONFIG, **changes):
    return Setting(**changes).filled(config).make_packs(config.seed)


def test_without_a_suite_the_flags_decide():
    [setting] = settings_to_play(CONFIG)
    assert setting == Setting("frozenlake/tiny, packs of 3", "frozenlake", "tiny", 3, 6, "no", "given")
    assert [pack.seed for pack in setting.make_packs(2)] == [12, 13, 14, 15, 16, 17]
    assert tasks_of(setting.make_packs(0)[4]) == tasks_of(make_pack("frozenlake", 4, 3, "tiny"))


def test_the_order_of_tasks_is_another_one_of_the_same_tasks():
    given = [tasks_of(pack) for pack in packs_of()]
    assert [tasks_of(pack) for pack in packs_of(order="reversed")] == [tasks[::-1] for tasks in given]
    shuffled = [tasks_of(pack) for pack in packs_of(order="shuffled")]
    assert all(
        len(tasks) == 3 and all(task in before for task in tasks) for tasks, before in zip(shuffled, given, strict=True)
    )
    assert len({tuple(before.index(task) for task in tasks) for tasks, before in zip(shuffled, given, strict=True)}) > 2
    assert shuffled == [tasks_of(pack) for pack in packs_of(order="shuffled")]


@pytest.mark.parametrize("env", ["frozenlake", "alchemy"])
def test_ralph_loops_repeat_the_tasks_of_the_packs_themselves(env):
    config = EvalConfig(env=env, level="train", packs=4, pack_size=3)
    packs = packs_of(config)
    first, each = (packs_of(config, ralph=form) for form in ("first", "each"))
    rules = [[task.reset() for task in pack.tasks] for pack in packs]
    assert [[task.reset() for task in pack.tasks] for pack in first] == [[pack[0]] * 3 for pack in rules]
    assert [[task.reset() for task in pack.tasks] for pack in each] == [[one] * 3 for pack in rules for one in pack]
    assert all(pack.ralph for pack in first + each) and len({id(task) for task in first[0].tasks}) == 3
    assert [pack.tasks[0].reset() for pack in packs_of(EvalConfig(**{**vars(config), "ralph": True}))] == [
        pack[0] for pack in rules
    ]


def test_the_paper_s_suite():
    settings = settings_to_play(EvalConfig(suite="paper"))
    assert all(setting.packs == 500 for setting in settings)
    shapes = [(s.env, s.level, s.pack_size, s.ralph) for s in settings]
    assert shapes[:3] == [("frozenlake", "tiny", n, "no") for n in (8, 16)] + [("frozenlake", "tiny-hard", 8, "no")]
    assert {env for env, *_ in shapes} == set(ENVS)
    assert [ralph for *_, ralph in shapes[-2:]] == ["first", "each"]
    hardest = settings_to_play(EvalConfig(suite="paper", level="hard"))
    assert len(hardest) == len(settings) - 1  # nothing is harder
    assert all(s.level == ("hard" if "hard" in task_class(s.env).levels else "train") for s in hardest)


FILE = """
- packs: 5
- {name: longer, pack-size: 9, order: reversed}
- level: hard
  ralph: each
"""


def test_a_suite_from_a_file(tmp_path):
    (tmp_path / "s.yaml").write_text(FILE, encoding="utf-8")
    settings = settings_to_play(EvalConfig(packs=6, pack_size=3, suite=str(tmp_path / "s.yaml")))
    assert settings == [
        Setting("frozenlake/tiny, packs of 3", "frozenlake", "tiny", 3, 5, "no", "given"),
        Setting("longer", "frozenlake", "tiny", 9, 6, "no", "reversed"),
        Setting("frozenlake/hard, packs of 3, each task repeated", "frozenlake", "hard", 3, 6, "each", "given"),
    ]


BAD = {
    "unknown name": (None, ["suite=", "quick, paper"]),
    "no list": ("level: hard", ["s.yaml", "list"]),
    "empty": ("", ["s.yaml", "list"]),
    "empty list": ("[]", ["s.yaml", "list"]),
    "list of words": ("- hard\n- tiny", ["s.yaml", "line 1", "settings by name"]),
    "unknown key": ("- level: hard\n- lvel: hard", ["s.yaml", "line 2", "lvel", "did you mean level?"]),
    "given twice": ("- level: hard\n  level: tiny", ["s.yaml", "line 2", "second time"]),
    "unknown level": ("- level: easy", ["level='easy'", "tiny"]),
    "unknown environment": ("- env: chess", ["env='chess'"]),
    "unknown loop": ("- ralph: twice", ["s.yaml", "setting 1", "ralph", "twice"]),
    "no packs": ("- packs: 3\n- packs: -1", ["s.yaml", "setting 2", "packs=-1"]),
    "packs in words": ("- packs: many", ["s.yaml", "setting 1", "packs", "many"]),
    "same twice": ("- packs: 3\n- packs: 4", ["s.yaml", "two settings", "frozenlake/tiny"]),
    "a name that a terminal obeys": ('- name: "\\e[31mred"', ["s.yaml", "name='\\x1b[31mred'"]),
    "a name of two lines": ('- name: "a\\nb"', ["s.yaml", "name='a\\nb'"]),
    "no YAML": ("- [", ["s.yaml", "line"]),
    "nested": ("- level: {a: b}", ["s.yaml", "line 1", "nothing within"]),
}


@pytest.mark.parametrize("text, parts", BAD.values(), ids=BAD)
def test_a_suite_that_cannot_be_played_ends_in_one_line(text, parts, tmp_path):
    if text is not None:
        (tmp_path / "s.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(BadInput) as raised:
        settings_to_play(EvalConfig(suite="nightly" if text is None else str(tmp_path / "s.yaml")))
    assert "\n" not in str(raised.value) and all(part in str(raised.value) for part in parts), str(raised.value)


@pytest.mark.parametrize("form", ["no", "first", "each"])
def test_the_number_and_the_seeds_of_packs_are_known_without_making_them(form):
    setting = Setting(ralph=form).filled(CONFIG)
    packs = setting.make_packs(2)
    assert [pack.seed for pack in packs] == [setting.pack_seed(2, number) for number in range(setting.games)]


def test_an_edited_environment_has_another_source(tmp_path):
    file = tmp_path / "words.py"
    shutil.copy(REPO / "tests" / "words.py", file)
    folder = shutil.copytree(REPO / "environments" / "frozenlake", tmp_path / "lake")
    for env, edited in ((file, file), (folder, folder / "players.py"), (folder, folder / "more.py")):
        before = source_of(str(env))
        assert source_of(str(env)) == before
        with edited.open("a", encoding="utf-8") as text:
            text.write("# edited\n")
        assert source_of(str(env)) != before
    assert source_of("frozenlake") == source_of(str(REPO / "environments" / "frozenlake")) != source_of("alchemy")
