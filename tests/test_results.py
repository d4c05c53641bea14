"""Games on disk: an evaluation that was stopped goes on, and counts no pack twice."""

import json
import random
import shutil
from unittest import mock

import pytest
from doubles import REPO
from training import Killed, assert_one_line, run_here

import eval as script
from engine.errors import BadInput
from evaluation import playing
from evaluation.results import Results

WORDS = REPO / "tests" / "words.py"
PART = ("setting", "policy", "own")


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


def write(folder, text):
    (folder / "games-0.jsonl").write_bytes(text)


DAMAGED = {
    "no JSON": (b"{\n", 1),
    "a list": (b"[1]\n", 1),
    "no part": (b'{"number": 1}\n', 1),
    "a short part": (b'{"part": ["a"], "number": 1}\n', 1),
    "a number in words": (b'{"part": ["a", "b", "c"], "number": "1"}\n', 1),
    "no text": (b"\xff\xfe\n", 1),
    "a blank line": (b"\n", 1),
    "in the middle": (b'{"part": ["a", "b", "c"], "number": 1}\n?\n', 2),
}


@pytest.mark.parametrize("text, line", DAMAGED.values(), ids=DAMAGED)
def test_games_that_cannot_be_read_end_in_one_line(text, line, tmp_path):
    write(tmp_path, text)
    with pytest.raises(BadInput, match=f"games-0.jsonl: line {line} cannot be read"):
        Results(tmp_path)
    assert (tmp_path / "games-0.jsonl").read_bytes() == text


@pytest.mark.parametrize("torn", [b"{", b'{"part": ["a", "b", "c"], "number": 2', b"\xff"])
def test_a_line_that_was_broken_off_is_left_out(torn, tmp_path):
    whole = b'{"part": ["a", "b", "c"], "number": 1, "success": [1.0]}\n'
    write(tmp_path, whole + torn)
    results = Results(tmp_path)
    results.require({})
    assert results.of(("a", "b", "c")) == {1: {"success": [1.0]}}
    results.add(("a", "b", "c"), 2, {"success": [0.0]})
    results.add(("a", "b", "c"), 1, {"success": [0.0]})  # it is there
    assert Results(tmp_path).of(("a", "b", "c")) == {1: {"success": [1.0]}, 2: {"success": [0.0]}}


@pytest.mark.parametrize("text", ["{", "[]", "5", "[" * 10**5])
def test_settings_that_cannot_be_read_end_in_one_line(text, tmp_path):
    (tmp_path / "settings.json").write_text(text, encoding="utf-8")
    with pytest.raises(BadInput, match="settings.json: cannot be read"):
        Results(tmp_path).require({"a": 1})
    assert (tmp_path / "settings.json").read_text(encoding="utf-8") == text


def test_a_second_process_does_not_write_into_the_same_evaluation(tmp_path):
    first, second = Results(tmp_path), Results(tmp_path)
    first.require({"a": 1})
    first.add(PART, 0, {"success": [1.0]})
    with pytest.raises(BadInput, match="another process is at work"):
        second.require({"a": 1})
    first.lock.release()
    second.require({"a": 1})
    assert second.of(PART) == {0: {"success": [1.0]}}


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
