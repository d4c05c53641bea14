"""Games on disk: an evaluation that was stopped goes on, and counts no pack twice."""

import json
import random
import shutil
from dataclasses import asdict
from pathlib import Path
from unittest import mock

import pytest
from doubles import REPO
from training import Killed, assert_one_line, run_here

import eval as script
from engine.errors import BadInput
from envs import players
from evaluation import playing
from evaluation.results import Results
from evaluation.statistics import game
from evaluation.suites import Setting
from rollout import play, run

WORDS = REPO / "tests" / "words.py"
PART = ("words", "mine", "own")
SETTING = Setting("words", str(WORDS), "tiny", 2, 4, "no", "given")
FACTS = {"seed": 1, "setting 'words'": asdict(SETTING) | {"source": "x"}, "policy 'mine'": "Learner"}


def a_game(number):
    """As it is kept of one of these packs."""
    return game(run([play(SETTING.make_packs(1)[number])], players(str(WORDS))["learner"])[0])


def line_of(place, **changes):
    """As it stands in the file, but for these fields; None leaves one out."""
    values = {"part": PART, "number": place} | a_game(place) | changes
    return json.dumps({name: value for name, value in values.items() if value is not None}).encode() + b"\n"


def saved(folder):
    return json.loads((folder / "eval.json").read_text(encoding="utf-8"))["settings"]


def lines(folder):
    return [json.loads(line) for file in folder.glob("games-*.jsonl") for line in file.open(encoding="utf-8")]


def evaluate_until(argv, games):
    """Run eval.py, killed when so many games are there; returns whether it was."""
    real = Results.add

    def add(self, part, number, game):
        if sum(map(len, self.games.values())) == games:
            raise Killed
        return real(self, part, number, game)

    with mock.patch.object(Results, "add", add):
        try:
            assert run_here(argv, script.main) == 0
        except Killed:
            return True
    return False


@pytest.mark.parametrize("seed", range(2))
def test_an_evaluation_killed_at_random_and_continued_equals_one_that_was_not(seed, model_folder, tmp_path):
    """A model, scripted players, and modes that read each other's hints; the last line torn, too."""
    argv = ["--policy", model_folder, "--policy", "random", "--pack-size", 2, "--packs", 4, "--max-reply-tokens", 6]
    argv += ["--context", "own,none,shuffled,perfect,from=random", "--seed", seed, "--output"]
    assert run_here([*argv, tmp_path / "whole"], script.main) == 0
    total, rng = len(lines(tmp_path / "whole")), random.Random(seed)
    cuts = sorted(rng.sample(range(1, total), 3))
    for cut in cuts:
        assert evaluate_until([*argv, tmp_path / "cut"], cut)
        with (tmp_path / "cut" / "games-0.jsonl").open("a", encoding="utf-8") as file:
            file.write('{"part": ["frozenlake/tiny, packs of 2", "ra')
    assert run_here([*argv, tmp_path / "cut"], script.main) == 0
    assert saved(tmp_path / "cut") == saved(tmp_path / "whole")
    keys = [(tuple(line["part"]), line["number"]) for line in lines(tmp_path / "cut")]
    assert len(keys) == len(set(keys)) == total


def test_what_has_been_played_is_not_played_again(tmp_path, monkeypatch):
    played = []
    original = playing.run
    monkeypatch.setattr(playing, "run", lambda games, *a, **o: played.append(len(games)) or original(games, *a, **o))
    argv = ["--policy", "learner", "--env", WORDS, "--packs", 3, "--output", tmp_path]
    assert run_here(argv, script.main) == 0
    assert played == [3, 3]  # the random player, and the learner
    assert run_here([*argv, "--context", "own,none"], script.main) == 0
    assert played == [3, 3, 3]
    assert [record["context"] for record in saved(tmp_path)[0]["records"]] == ["own", "none", "own"]


OTHERS = {
    "another penalty": (["--length-penalty", "0.3"], ["length_penalty=0.3", "0.1"]),
    "another temperature": (["--temperature", "0.5"], ["temperature=0.5", "1.0"]),
    "another window": (["--window", "99"], ["window=99", "32768"]),
    "another seed": (["--seed", "1"], ["seed=1"]),
    "another number of packs": (["--packs", "4"], ["setting 'words/tiny, packs of 4'", "'packs': 4"]),
}


@pytest.mark.parametrize("options, parts", OTHERS.values(), ids=OTHERS)
def test_results_of_other_settings_are_not_gone_on_with(options, parts, tmp_path):
    argv = ["--policy", "learner", "--env", WORDS, "--packs", 3, "--output", tmp_path]
    assert run_here(argv, script.main) == 0
    before = contents(tmp_path)
    assert_one_line(run_here([*argv, *options], script.main), *parts, str(tmp_path))
    assert contents(tmp_path) == before


def test_another_model_of_the_same_name_is_noticed(model_folder, tmp_path):
    import torch

    from engine.models import load_model

    model = shutil.copytree(model_folder, tmp_path / "model")
    argv = ["--policy", model, "--pack-size", 1, "--packs", 1, "--max-reply-tokens", 3, "--output", tmp_path / "out"]
    assert run_here(argv, script.main) == 0
    loaded, _ = load_model(str(model))
    with torch.no_grad():
        for parameter in loaded.parameters():
            parameter.mul_(1.01)
    loaded.save_pretrained(model)
    assert_one_line(run_here(argv, script.main), "policy 'model'", str(tmp_path / "out"))


def contents(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def write(folder, text, facts=FACTS):
    (folder / "games-0.jsonl").write_bytes(text)
    (folder / "settings.json").write_text(json.dumps(facts), encoding="utf-8")


def test_an_edited_environment_is_not_gone_on_with(tmp_path):
    env = Path(shutil.copy(WORDS, tmp_path / "edited_words.py"))
    argv = ["--policy", "learner", "--env", env, "--packs", 3, "--output", tmp_path / "out"]
    assert run_here(argv, script.main) == 0
    env.write_text(env.read_text("utf-8").replace("Say the word.", "Say it."), encoding="utf-8")
    before = contents(tmp_path / "out")
    assert_one_line(run_here(argv, script.main), "setting 'edited_words/tiny, packs of 4'", "{'source': ")
    assert contents(tmp_path / "out") == before


@pytest.mark.parametrize("lost", ["all", "window", "setting 'words/tiny, packs of 4'", "policy 'silent'", "seed"])
def test_games_of_which_it_is_not_known_how_they_were_played_are_refused(lost, tmp_path):
    argv = ["--policy", "silent", "--env", WORDS, "--packs", 3, "--output", tmp_path]
    assert run_here(argv, script.main) == 0
    file = tmp_path / "settings.json"
    if lost == "all":
        file.unlink()
    else:
        facts = json.loads(file.read_text(encoding="utf-8"))
        file.write_text(json.dumps({name: facts[name] for name in facts if name != lost}), encoding="utf-8")
    before = contents(tmp_path)
    assert_one_line(run_here(argv, script.main), "settings.json does not say", str(tmp_path))
    assert contents(tmp_path) == before


WHOLE = line_of(1)
DAMAGED = {
    "no JSON": (b"{\n", 1, ""),
    "a list": (b"[1]\n", 1, "object"),
    "no part": (line_of(1, part=None), 1, "part"),
    "a short part": (line_of(1, part=["a"]), 1, "part"),
    "a number in words": (line_of(1, number="1"), 1, "number"),
    "a number that is true": (line_of(1, number=True), 1, "number"),
    "no text": (b"\xff\xfe\n", 1, ""),
    "a blank line": (b"\n", 1, ""),
    "in the middle": (WHOLE + b"?\n", 2, ""),
    "a pack beyond the last": (line_of(1, number=4), 1, "number=4"),
    "a pack before the first": (line_of(1, number=-1), 1, "number=-1"),
    "another pack": (line_of(1, number=2), 1, "pack=5: must be 6"),
    "another environment": (line_of(1, env="words/hard"), 1, "env='words/hard'"),
    "another setting": (line_of(1, part=["others", "mine", "own"]), 1, "settings.json does not say"),
    "another policy": (line_of(1, part=["words", "other", "own"]), 1, "settings.json does not say"),
    "no success": (line_of(1, success=None), 1, "success"),
    "success in words": (line_of(1, success=["1", "1"]), 1, "success"),
    "too many successes": (line_of(1, success=[1.0] * 3), 1, "success must be 2"),
    "one success": (line_of(1, success=1.0), 1, "success"),
    "not a number": (line_of(1, success=[float("nan"), 1.0]), 1, "NaN"),
    "an infinite reward": (line_of(1, reward=[float("inf"), 1.0]), 1, "Infinity"),
    "a number that is infinite to Python": (line_of(1).replace(b'"turns": [1, 1]', b'"turns": [1, 1e999]'), 1, "turns"),
    "a huge number": (line_of(1, turns=[10**400, 1]), 1, "turns"),
    "turns below 0": (line_of(1, turns=[-1, 1]), 1, "turns"),
    "a share above 1": (line_of(1, hint_kept=[2.0]), 1, "hint_kept"),
    "no replies": (line_of(1, replies=0, truncated=0), 1, "truncated"),
    "half an episode": (line_of(1, episodes=2.5), 1, "episodes"),
    "more broken than there are": (line_of(1, broken_format=9), 1, "broken_format"),
    "hints that are none": (line_of(1, hints=[1]), 1, "hints"),
    "too few hints": (line_of(1, hints=[]), 1, "hints must be 1"),
    "a list of grades": (line_of(1, grades=[[1]]), 1, "grades"),
    "a grade in words": (line_of(1, grades=[{"right": "1"}]), 1, "grades"),
    "odd conversations": (line_of(1, conversations=[{}]), 1, "conversations"),
    "the same pack with another end": (WHOLE + line_of(1, success=[1.0, 0.0]), 2, "another way"),
    "a bad last line": (WHOLE + line_of(2, success=[]).rstrip(), 2, "success"),
}


@pytest.mark.parametrize("text, line, named", DAMAGED.values(), ids=DAMAGED)
def test_games_that_cannot_be_read_end_in_one_line(text, line, named, tmp_path):
    write(tmp_path, text)
    with pytest.raises(BadInput, match=f"games-0.jsonl: line {line} cannot be read") as raised:
        Results(tmp_path)
    assert named in str(raised.value) and "\n" not in str(raised.value) and len(str(raised.value)) < 500
    assert (tmp_path / "games-0.jsonl").read_bytes() == text


@pytest.mark.parametrize("fact", [5, {}, {"packs": 3}, asdict(SETTING) | {"packs": "3"}, asdict(SETTING) | {"env": 1}])
def test_settings_of_another_form_end_in_one_line(fact, tmp_path):
    write(tmp_path, WHOLE, FACTS | {"setting 'words'": fact})
    with pytest.raises(BadInput, match="line 1 cannot be read"):
        Results(tmp_path)


def test_the_same_line_twice_counts_once(tmp_path):
    write(tmp_path, WHOLE + WHOLE)
    assert Results(tmp_path).games == {PART: {1: a_game(1)}}


@pytest.mark.parametrize("torn", [b"{", b'{"part": ["words", "mine", "own"], "number": 2', b"\xff"])
def test_a_line_that_was_broken_off_is_left_out(torn, tmp_path):
    write(tmp_path, WHOLE + torn)
    results = Results(tmp_path)
    results.require(FACTS)
    assert results.of(PART) == {1: a_game(1)}
    results.add(PART, 2, a_game(2))
    results.add(PART, 1, a_game(2))  # it is there
    assert Results(tmp_path).of(PART) == {1: a_game(1), 2: a_game(2)}


def test_a_last_line_that_lacks_its_end_alone_is_kept(tmp_path):
    write(tmp_path, WHOLE + line_of(2).rstrip())
    results = Results(tmp_path)
    results.require(FACTS)
    results.add(PART, 0, a_game(0))
    assert Results(tmp_path).of(PART) == {0: a_game(0), 1: a_game(1), 2: a_game(2)}


def test_a_full_disk_is_named_with_its_file(tmp_path, monkeypatch):
    results = Results(tmp_path)
    results.require(FACTS)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(BadInput, match="output=.*: cannot be written .*No space left"):
        results.add(PART, 0, a_game(0))


def test_settings_that_cannot_be_written_name_the_folder(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("evaluation.results.write_text", full)
    with pytest.raises(BadInput, match="output=.*: cannot be written .*No space left"):
        Results(tmp_path).require(FACTS)


def test_a_report_that_cannot_be_written_names_the_folder_and_keeps_the_games(tmp_path, monkeypatch):
    argv = ["--policy", "learner", "--env", WORDS, "--packs", 3, "--output", tmp_path]

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("evaluation.report.write_page", full)
        assert_one_line(run_here(argv, script.main), f"output={str(tmp_path)!r}", "No space left", "kept")
    assert len(lines(tmp_path)) == 6 and not (tmp_path / "eval.json").exists()


def test_a_picture_that_cannot_be_written_leaves_the_one_before(tmp_path, monkeypatch):
    argv = ["--policy", "learner", "--env", WORDS, "--packs", 3, "--output", tmp_path]
    assert run_here(argv, script.main) == 0
    before = (tmp_path / "eval.png").read_bytes()

    def half(figure, path, **_):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", half)
    assert_one_line(run_here(argv, script.main), f"output={str(tmp_path)!r}", "No space left")
    assert (tmp_path / "eval.png").read_bytes() == before


def test_what_is_no_number_is_never_written(tmp_path):
    """Rewards so large that no float32 holds them: the mean of infinities of both signs is none."""
    env = tmp_path / "large.py"
    text = WORDS.read_text("utf-8").replace("float(reply == self.word)", "1e300 * (-1) ** self.number")
    env.write_text(text, encoding="utf-8")
    argv = ["--policy", "learner", "--env", env, "--packs", 3, "--context", "own,none", "--output", tmp_path / "out"]
    assert run_here(argv, script.main) == 0

    def refuse(name):
        raise ValueError(name)

    json.loads((tmp_path / "out" / "eval.json").read_text(encoding="utf-8"), parse_constant=refuse)


@pytest.mark.parametrize("text", ["{", "[]", "5", "[" * 10**5])
def test_settings_that_cannot_be_read_end_in_one_line(text, tmp_path):
    (tmp_path / "settings.json").write_text(text, encoding="utf-8")
    with pytest.raises(BadInput, match="settings.json: cannot be read"):
        Results(tmp_path).require({"a": 1})
    assert (tmp_path / "settings.json").read_text(encoding="utf-8") == text


def test_a_second_process_does_not_write_into_the_same_evaluation(tmp_path):
    first, second = Results(tmp_path), Results(tmp_path)
    first.require(FACTS)
    first.add(PART, 0, a_game(0))
    with pytest.raises(BadInput, match="another process is at work"):
        second.require(FACTS)
    first.lock.release()
    second.require(FACTS)
    assert second.of(PART) == {0: a_game(0)}


def test_two_processes_share_an_evaluation(start_process, tmp_path):
    """And one goes on with what they have played; all as if one had played it."""
    from training import TWO

    argv = ["--policy", "learner", "--env", WORDS, "--packs", 5, "--context", "own,none,shuffled", "--output"]
    both = start_process([*argv, tmp_path / "two"], TWO, "eval.py")
    assert both.wait(120) == 0, both.stderr.read()
    assert {file.name for file in (tmp_path / "two").glob("games-*")} == {"games-0.jsonl", "games-1.jsonl"}
    assert run_here([*argv, tmp_path / "one"], script.main) == 0
    assert len(lines(tmp_path / "two")) == len(lines(tmp_path / "one")) == 4 * 5  # the random player, and three modes
    (tmp_path / "two" / "games-1.jsonl").unlink()
    assert run_here([*argv, tmp_path / "two"], script.main) == 0
    one, two = saved(tmp_path / "one"), saved(tmp_path / "two")
    for first, second in zip(one[0]["records"], two[0]["records"], strict=True):
        if first["policy"] != "random":
            assert first == second
