"""eval.py with several policies, modes and settings; people as policies; what cannot be played."""

import io
import json
import os
import re
import shutil
import subprocess
import sys
from unittest import mock

import pytest
from doubles import REPO
from training import assert_one_line, run_here

import eval as script
from engine.command_line import parse_flags
from engine.errors import BadInput
from evaluation import playing
from evaluation.policies import labels, merged_seeds, settings_of
from evaluation.settings import EvalConfig
from record.pictures import STYLES
from rollout import Reply

WORDS = str(REPO / "tests" / "words.py")


def evaluated(folder, *argv):
    """What eval.py says of tests/words.py, setting by setting."""
    assert run_here(["--env", WORDS, "--output", folder, *argv], script.main) == 0
    return json.loads((folder / "eval.json").read_text(encoding="utf-8"))["settings"]


def test_policies_and_modes_are_compared_pair_by_pair(tmp_path, capsys):
    """The silent one reads like the learner, but writes nothing: all of the learner's gain over it is writing."""
    [setting] = evaluated(
        tmp_path,
        "--policy",
        "silent",
        "--policy",
        "learner",
        "--packs",
        20,
        "--context",
        "own,none,from=silent,perfect",
    )
    success = {(r["policy"], r["context"]): r["success"] for r in setting["records"]}
    assert success["silent", "own"] == [0, 0, 0, 0] and success["learner", "own"] == [0, 1, 1, 1]
    assert success["silent", "perfect"] == [0, 1, 1, 1] and success["learner", "from=silent"] == [0, 0, 0, 0]
    assert ("silent", "from=silent") not in success  # its own hints
    differences = {each["label"]: each for each in setting["differences"]}
    assert differences["learner - silent"]["difference"] == [0, 1, 1, 1, 0.75]
    assert differences["learner - silent"]["difference_low"] == [0, 1, 1, 1, 0.75]
    assert differences["silent, the learner's hints - silent"]["difference"] == [0, 1, 1, 1, 0.75]
    assert [(each["label"], each["difference"][-1]) for each in setting["explained"]] == [
        ("learner: plays better without hints", 0),
        ("learner: uses the hints of silent better", 0),
        ("learner: writes better hints", 0.75),
        ("learner: all together", 0.75),
    ]
    graded = {(r["policy"], r["context"]): r["details"].get("grade_right") for r in setting["records"]}
    assert graded["learner", "own"] == [1, 1, 1] and graded["silent", "own"] == [0, 0, 0]
    printed = capsys.readouterr().out
    assert (
        "**+1.00 [+1.00, +1.00]**" in printed
        and (tmp_path / "eval.md").read_text(encoding="utf-8") in f"# silent, learner\n\n{printed}"
    )


def test_a_suite_has_an_overview_and_a_picture(tmp_path, capsys):
    (tmp_path / "s.yaml").write_text("- packs: 3\n- {packs: 2, pack_size: 2, ralph: each}\n", encoding="utf-8")
    settings = evaluated(tmp_path / "out", "--policy", "learner", "--suite", tmp_path / "s.yaml")
    assert [(each["title"], [r["packs"] for r in each["records"]]) for each in settings] == [
        ("words/tiny, packs of 4", [3, 3]),
        ("words/tiny, packs of 2, each task repeated", [2, 2]),  # two loops each
    ]
    assert len((tmp_path / "out" / "games-0.jsonl").read_text("utf-8").splitlines()) == 2 * (3 + 4)
    assert capsys.readouterr().out.startswith("| setting")
    assert (tmp_path / "out" / "eval.png").read_bytes().startswith(b"\x89PNG")


def test_conversations_are_kept_for_the_page(tmp_path):
    evaluated(tmp_path, "--policy", "learner", "--packs", 5, "--keep", 2, "--context", "own,none")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    data = json.loads(re.search('<script type="application/json"[^>]*>(.*?)</script>', page, re.DOTALL)[1])
    packs, records = data["packs"], data["evaluations"][0]["records"]
    assert [record["turns"] for record in records] == [[1, 1, 1, 1]] * 3  # what the page has tables of
    kinds = [[[episode["kind"] for episode in rollout["episodes"]] for rollout in pack["rollouts"]] for pack in packs]
    assert kinds == [[["solve", "update"] * 3 + ["solve"], ["solve"] * 4]] * 2


def run_of(folder, seed, **changes):
    """A run folder, as far as its settings matter."""
    folder.mkdir(parents=True)
    settings = {"model": "m", "lr": 0.1, "seed": seed, "name": folder.name, **changes}
    (folder / "config.json").write_text(json.dumps(settings), encoding="utf-8")
    (folder / "metrics.jsonl").touch()
    return str(folder)


def test_runs_that_differ_in_their_seeds_alone_are_merged(tmp_path):
    runs = [run_of(tmp_path / f"lake-seed{seed}", seed) for seed in (0, 1)]
    other = run_of(tmp_path / "other", 0, lr=0.2)
    assert merged_seeds(labels([*runs, other, "learner"])) == {
        "lake, 2 seeds": ["lake-seed0", "lake-seed1"],
        "other": ["other"],
        "learner": ["learner"],
    }


def test_groups_of_runs_have_titles_of_their_own(tmp_path):
    """What their names begin with is the same."""
    runs = [run_of(tmp_path / f"lake-seed{k}", k % 2, lr=0.1 * (k // 2 + 1)) for k in range(6)]
    runs.append(run_of(tmp_path / "lake", 0, lr=9))
    merged = merged_seeds(labels(runs))
    assert list(merged.values()) == [[f"lake-seed{k}", f"lake-seed{k + 1}"] for k in (0, 2, 4)] + [["lake"]]
    assert list(merged)[1] == "lake, 2 seeds: lake-seed2, lake-seed3"
    run_of(tmp_path / "x" / "lake, 2 seeds", 0, lr=10)
    merged = merged_seeds(labels([*runs[:2], str(tmp_path / "x" / "lake, 2 seeds")]))
    assert [len(group) for group in merged.values()] == [2, 1]


def test_the_same_run_is_no_second_seed(tmp_path, monkeypatch):
    run = run_of(tmp_path / "run-seed0", 0)
    (tmp_path / "link").symlink_to(run)
    monkeypatch.chdir(tmp_path)
    for other in ("run-seed0/", "./run-seed0", "link", f"{tmp_path}/x/../run-seed0", run):
        (tmp_path / "x").mkdir(exist_ok=True)
        with pytest.raises(BadInput, match="^policy='.*': is named twice"):
            labels(["learner", run, other])
    with pytest.raises(BadInput, match="policy='learner': is named twice"):
        labels(["learner", "learner"])
    copy = run_of(tmp_path / "run-seed0-copy", 0)
    other = run_of(tmp_path / "run-seed1", 1)
    assert [len(group) for group in merged_seeds(labels([run, copy, other])).values()] == [1, 1, 1]
    assert [len(group) for group in merged_seeds(labels([run, other])).values()] == [2]


def test_names_of_folders_cannot_take_over_the_terminal(tmp_path):
    runs = [run_of(tmp_path / f"a\x1b[31m{k}", k, lr=k) for k in (0, 1)]
    assert list(merged_seeds(labels(runs))) == ["a?[31m0", "a?[31m1"]


def test_policies_given_by_flags_take_the_place_of_those_in_a_file(tmp_path):
    (tmp_path / "s.yaml").write_text("policy: random\npacks: 2\n", encoding="utf-8")
    for flags, expected in ([], ["random"]), (["--policy", "learner", "silent"], ["learner", "silent"]):
        argv = [tmp_path / "s.yaml", "--env", WORDS, "--output", tmp_path / "out", *flags]
        assert run_here(argv, script.main) == 0
        saved = json.loads((tmp_path / "out" / "eval.json").read_text(encoding="utf-8"))
        assert (saved["config"]["policy"], saved["config"]["packs"]) == (expected, 2)


def test_labels_are_as_short_as_they_can_be():
    assert labels(["runs/a", "b"]) == {"a": "runs/a", "b": "b"}
    assert labels(["x/a", "y/a", "b"]) == {"x/a": "x/a", "y/a": "y/a", "b": "b"}
    for name in ("random", "informed", "learner"):  # the scripted players, whose games stand under these names
        assert labels([name, f"runs/{name}"]) == {name: name, f"runs/{name}": f"runs/{name}"}
        assert labels([f"runs/{name}"]) == {f"runs/{name}": f"runs/{name}"}


@pytest.mark.parametrize("name", ["random", "learner"])
def test_a_run_that_is_called_like_a_player_is_played(name, plain, tmp_path, monkeypatch):
    run = shutil.copytree(plain, tmp_path / name)
    argv = ["--policy", run, "--packs", 2, "--max-reply-tokens", 3, "--output", tmp_path / "out"]
    assert run_here(argv, script.main) == 0
    saved = json.loads((tmp_path / "out" / "eval.json").read_text(encoding="utf-8"))
    assert [record["label"] for record in saved["settings"][0]["records"]] == [str(run), *STYLES]
    lines = [json.loads(line) for line in (tmp_path / "out" / "games-0.jsonl").open(encoding="utf-8")]
    assert {line["part"][1] for line in lines if any(line["reply_tokens"])} == {str(run)}  # a model's


def test_a_person_plays_with_the_settings_of_the_run_beside_it(tmp_path):
    run = run_of(tmp_path / "run", 0, pack_size=3, temperature=0.5)
    argv = ["--policy", run, "human", "--temperature", "0.7"]
    with mock.patch("sys.argv", ["eval.py", *argv]):
        config = settings_of(parse_flags(EvalConfig))
    assert (config.pack_size, config.temperature, config.packs, config.watch) == (3, 0.7, 1, True)


@pytest.mark.parametrize("seeds", [1, 2])
def test_seeds_of_a_run_make_one_line(seeds, plain, tmp_path):
    runs = []
    for seed in range(seeds):
        run = shutil.copytree(plain, tmp_path / f"run-seed{seed}")
        settings = json.loads((run / "config.json").read_text(encoding="utf-8")) | {"seed": seed}
        (run / "config.json").write_text(json.dumps(settings), encoding="utf-8")
        runs += ["--policy", run]
    assert run_here([*runs, "--packs", 4, "--max-reply-tokens", 8, "--output", tmp_path / "out"], script.main) == 0
    [setting] = json.loads((tmp_path / "out" / "eval.json").read_text(encoding="utf-8"))["settings"]
    record, *references = setting["records"]
    assert record["label"] == ("run-seed0" if seeds == 1 else "run, 2 seeds") and record.get("seeds", 1) == seeds
    assert [each["label"] for each in references] == list(STYLES)
    if seeds == 2:  # the same adapter twice
        assert record["deviation"] == [0, 0]
        argv = [*runs, "--packs", 4, "--max-reply-tokens", 8, "--context", "own,from=run-seed0"]
        assert run_here([*argv, "--output", tmp_path / "out"], script.main) == 0
        [setting] = json.loads((tmp_path / "out" / "eval.json").read_text(encoding="utf-8"))["settings"]
        read = [record for record in setting["records"] if record["context"] == "from=run-seed0"]
        assert [(record["label"], record["seeds"]) for record in read] == [("run, 2 seeds, hints of run-seed0", 2)]


# ---------------------------------------------------------------------------------------------------------
# People


def test_a_person_plays_a_pack(tmp_path, monkeypatch, capsys):
    """The word is told after the first task; what is typed is read up to an empty line."""
    typed = "\n\nabc\n\n"  # empty lines before the reply do not count
    hint = "It is known now.\n### BEGIN HINTS\nthe word is what it was\n### END HINTS\n\n"
    monkeypatch.setattr("sys.stdin", io.StringIO(typed + hint + "abc\n\n"))
    [setting] = evaluated(tmp_path, "--policy", "human", "--pack-size", 2)
    assert setting["records"][0]["label"] == "human" and setting["records"][0]["packs"] == 1
    shown = capsys.readouterr().out
    for text in ("Task 0. What is it?", "The word is ", "the word is what it was", "Task 1.", "end of the pack"):
        assert text in shown
    assert shown.count("your reply") == 3 and "abc\n\n[what it sees]" not in shown  # who has typed it knows it


def test_a_person_who_leaves_keeps_the_packs_that_are_finished(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.StringIO("abc\n\nabc\n\nabc\n\n"))
    argv = ["--env", WORDS, "--output", tmp_path, "--policy", "human", "--pack-size", 1, "--packs", 5]
    assert run_here(argv, script.main) == 130
    lines = [json.loads(line) for line in (tmp_path / "games-0.jsonl").open(encoding="utf-8")]
    assert sum(line["part"][1] == "human" for line in lines) == 3
    monkeypatch.setattr("sys.stdin", io.StringIO("abc\n\nabc\n\n"))
    assert run_here(argv, script.main) == 0
    assert "games, which are not played again" in capsys.readouterr().out


def test_what_is_watched_cannot_take_over_the_terminal(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(playing, "players", lambda env: {"evil": Evil()})
    monkeypatch.setattr("evaluation.policies.players", lambda env: {"evil": Evil()})
    evaluated(tmp_path, "--policy", "evil", "--packs", 1, "--pack-size", 2, "--watch", "True")
    shown = capsys.readouterr().out
    assert "red" in shown and "\x1b" not in shown and "\x07" not in shown and "\x9b" not in shown


class Evil:
    """A policy whose replies would change a terminal's title and colours."""

    def reply(self, episodes):
        return [(episode, Reply("\x1b[31mred\x1b]0;title\x07\x9b")) for episode in episodes]


def test_what_a_person_types_may_be_in_any_encoding(tmp_path):
    argv = ["--env", WORDS, "--output", tmp_path / "out", "--policy", "human", "--pack-size", "1"]
    typed = b"caf\xe9 \xff\n\n"
    done = subprocess.run([sys.executable, REPO / "eval.py", *argv], input=typed, capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "caf\\ufffd \\ufffd" in page


def test_a_reader_who_leaves_early_loses_no_file(tmp_path):
    """Standard output is a pipe that nobody reads."""
    argv = ["--env", WORDS, "--output", tmp_path / "out", "--policy", "learner", "--packs", "2"]
    for _ in range(2):  # the second time it says that there are games
        ends = os.pipe()
        os.close(ends[0])
        command = [sys.executable, REPO / "eval.py", *argv]
        done = subprocess.run(command, stdout=ends[1], stderr=subprocess.PIPE, text=True, timeout=120)
        os.close(ends[1])
        assert (done.returncode, done.stderr) == (0, "")
        for name in ("eval.json", "eval.md", "eval.png", "report.html"):
            (tmp_path / "out" / name).unlink()


def test_a_player_that_some_environments_lack_is_left_out_there(tmp_path, capsys):
    """The silent one plays words only, wherever the flags lead; the other settings have their references."""
    (tmp_path / "s.yaml").write_text(f"- {{env: frozenlake}}\n- {{env: {WORDS}}}\n", encoding="utf-8")
    argv = ["--policy", "silent", "--suite", tmp_path / "s.yaml", "--packs", 2, "--output", tmp_path / "out"]
    assert run_here(argv, script.main) == 0
    saved = json.loads((tmp_path / "out" / "eval.json").read_text(encoding="utf-8"))["settings"]
    assert [[record["label"] for record in setting["records"]] for setting in saved] == [
        ["random", "informed", "learner"],
        ["silent", "random", "learner"],
    ]
    assert "frozenlake has no silent, which is left out there" in capsys.readouterr().out


# ---------------------------------------------------------------------------------------------------------
# What cannot be played

BAD = {
    "its own hints": (["--env", WORDS, "--policy", "learner", "--context", "perfect"], ["context='perfect'", "own"]),
    "its own hints by name": (
        ["--env", WORDS, "--policy", "random", "--context", "from=random"],
        ["context='from=random'", "own"],
    ),
    "no player anywhere": (
        ["--env", WORDS, "--policy", "learner", "informed"],
        ["policy='informed'", "words", "silent"],
    ),
    "a writer that an environment lacks": (
        ["--suite", "{suite}", "--policy", "learner", "--context", "own,from=silent"],
        ["context='from=silent'", "frozenlake has no silent"],
    ),
    "no learner, by its name": (
        ["--env", "{odd}", "--level", "train", "--context", "own,from=learner"],
        ["context='from=learner'", "odd"],
    ),
    "hints of a person": (["--env", WORDS, "--context", "own,from=human"], ["context='from=human'", "person"]),
    "kept beyond the pack": (
        ["--env", WORDS, "--policy", "learner", "--context", "own,frozen=3"],
        ["context='frozen=3'", "packs of 4"],
    ),
    "no learner": (["--env", "{odd}", "--level", "train", "--context", "perfect"], ["context='perfect'", "odd"]),
    "unknown writer": (["--env", WORDS, "--context", "from=nobody"], ["nobody"]),
    "unknown suite": (["--env", WORDS, "--suite", "nightly"], ["suite='nightly'", "quick, paper"]),
    "no file of that name": (["--env", WORDS, "--suite", "none.yaml"], ["none.yaml"]),
    "no address": (["--env", WORDS, "--policy", "endpoint", "--model", "m"], ["url: must look like"]),
    "no model": (["--env", WORDS, "--policy", "endpoint", "--url", "http://127.0.0.1:9"], ["model=''"]),
    **{
        f"extra fields: {body}": (
            ["--env", WORDS, "--policy", "endpoint", "--url", "http://127.0.0.1:9", "--model", "m"]
            + ["--extra-body", body],
            ["extra_body="],
        )
        for body in ('{"a": NaN}', '{"a": [1e999]}', '{"a": "\\ud800"}', "[1]")
    },
    "no JSON": (
        ["--env", WORDS, "--policy", "endpoint", "--url", "http://127.0.0.1:9", "--model", "m", "--extra-body", "{"],
        ["extra_body='{'", "JSON"],
    ),
    "nobody there": (
        ["--env", WORDS, "--policy", "endpoint", "--url", "http://127.0.0.1:9", "--model", "m"],
        ["127.0.0.1:9", "same command"],
    ),
}

ODD = """
from envs import Task

class Odd(Task):
    max_turns, rules = 1, "x"

    @classmethod
    def make_tasks(cls, rng, size, level):
        return [cls() for _ in range(size)]

    def reset(self):
        return "y"

    def step(self, reply):
        return "z", True
"""


@pytest.mark.parametrize("argv, parts", BAD.values(), ids=BAD)
def test_what_cannot_be_played_ends_in_one_line(argv, parts, tmp_path):
    (tmp_path / "odd.py").write_text(ODD, encoding="utf-8")
    (tmp_path / "s.yaml").write_text(f"- {{env: {WORDS}}}\n- {{env: frozenlake}}\n", encoding="utf-8")
    paths = {"{odd}": tmp_path / "odd.py", "{suite}": tmp_path / "s.yaml"}
    argv = [paths.get(word, word) for word in argv]
    if "--policy" not in argv:
        argv += ["--policy", "random" if WORDS in argv else "human"]
    assert_one_line(run_here([*argv, "--output", tmp_path / "out"], script.main), *parts)
    assert not list((tmp_path / "out").glob("games-*")) or "nobody" in str(parts) or "same command" in parts


def test_a_window_that_is_too_short_for_a_transcript(model_folder, tmp_path):
    """The model reads 8,192 tokens; a task takes some 70 beside its replies."""
    argv = ["--policy", model_folder, "--context", "transcript", "--pack-size", 2, "--packs", 1, "--output"]
    assert_one_line(
        run_here([*argv, tmp_path / "out", "--max-reply-tokens", 2025], script.main), "context='transcript'", "8192"
    )
    assert not (tmp_path / "out").exists()
    assert run_here([*argv, tmp_path / "out", "--max-reply-tokens", 4], script.main) == 0
