"""record/compare.py: runs side by side, seeds merged."""

import json
import os
import statistics
import subprocess
import sys

import pytest
from doubles import REPO
from training import assert_one_line, run_here

from engine.errors import BadInput
from record.compare import draw, main, rows, table


def write_run(folder, settings, successes):
    """A run folder with one evaluation for each label: label -> success by position."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model": "m", "lr": 1.0, "name": folder.name, **settings}))
    lines = [{"step": 1, "success": [0.5], "loss": 0.0}]
    for label, success in successes.items():
        record = {"env": "guess/tiny", "label": label, "success": success, "gap": [success[-1] - success[0]]}
        lines.append({"step": 1, "eval": record})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


@pytest.fixture
def runs(tmp_path):
    return [
        write_run(tmp_path / "a", {"seed": 0}, {"validation": [0.9, 0.9], "after training": [0.1, 0.4]}),
        write_run(tmp_path / "b", {"seed": 1}, {"after training": [0.3, 0.8]}),
        write_run(tmp_path / "c", {"seed": 0, "lr": 2.0}, {"after training": [0.5, 0.25], "random": [0.0, 0.0]}),
    ]


def test_seeds_of_the_same_settings_are_merged_and_others_are_named_by_what_differs(runs):
    first, second, reference = rows(runs)
    assert (first["title"], first["runs"]) == ("lr=1.0, guess/tiny, after training", 2)
    for found, values in zip(first["success"], [(0.1, 0.3), (0.4, 0.8)], strict=True):
        assert found == pytest.approx((statistics.mean(values), statistics.stdev(values)))
    assert first["gap"][0] == pytest.approx((0.4, statistics.stdev([0.3, 0.5])))
    assert (second["title"], second["runs"], second["success"]) == (
        "lr=2.0, guess/tiny, after training", 1, [(0.5, 0.0), (0.25, 0.0)],
    )  # fmt: skip
    assert reference["label"] == "random"


def test_a_deviation_is_printed_only_where_there_are_several_runs(runs):
    lines = table(rows(runs)).splitlines()
    assert "| 2 | 0.200 (0.141) | 0.600 (0.283) | 0.400 (0.141) |" in lines[2]
    assert "| 1 | 0.500 | 0.250 | -0.250 |" in lines[3]


def test_a_picture_is_drawn_and_other_folders_are_refused(runs, tmp_path):
    draw(rows(runs), tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(BadInput, match="not a run folder"):
        rows([tmp_path])


# ---------------------------------------------------------------------------------------------------------
# The command


def compare(*argv):
    return run_here(argv, main)


def test_a_run_that_is_named_twice_is_no_second_seed(runs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for other in ("a/", "../" + tmp_path.name + "/a", tmp_path / "a"):
        assert_one_line(compare("a", other), "is named twice")
    assert not (tmp_path / "compare.png").exists()


def test_a_copy_of_a_run_has_a_line_of_its_own(runs, tmp_path):
    copy = write_run(tmp_path / "copy", {"seed": 1}, {"after training": [0.3, 0.8]})
    found = rows([*runs[:2], copy])
    assert [row["runs"] for row in found] == [1, 1, 1]
    assert [str(folder) in row["title"] for folder, row in zip([*runs[:2], copy], found, strict=True)] == [True] * 3


@pytest.mark.parametrize("name", ["x.xyz", "x", "folder.png", "nowhere/x.png"])
def test_a_picture_that_cannot_be_written_ends_in_one_line(name, runs, tmp_path, capsys):
    (tmp_path / "folder.png").mkdir()
    assert_one_line(compare(runs[0], "--picture", tmp_path / name), f"picture={str(tmp_path / name)!r}")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("name", ["x.svg", "x.PNG", "x.pdf"])
def test_a_picture_of_another_kind_is_written(name, runs, tmp_path):
    assert compare(*runs, "--picture", tmp_path / name) == 0
    assert (tmp_path / name).stat().st_size > 1000 and not list(tmp_path.glob(".tmp-*"))


def test_scripted_players_alone_are_drawn(tmp_path, capsys):
    run = write_run(tmp_path / "a", {"seed": 0}, {"random": [0.1, 0.2], "learner": [0.1, 0.9]})
    assert compare(run) == 0
    assert (tmp_path / "compare.png").exists() and "learner" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["$x$", "$\\frac$", "a|b", "\x1b[31m"])
def test_names_of_any_kind_are_drawn_and_printed(name, tmp_path, capsys):
    written = [write_run(tmp_path / f"{k}", {"seed": 0, "model": f"{name}{k}"}, {name: [0.1, 0.2]}) for k in (0, 1)]
    assert compare(*written) == 0
    shown = capsys.readouterr().out
    assert "\x1b" not in shown and name.replace("|", "\\|").replace("\x1b", "?") in shown


GOOD = {"env": "guess/tiny", "label": "after training", "success": [0.5, 0.5], "gap": [0.0]}
DAMAGED = {
    "a number": 5,
    "no label": {key: GOOD[key] for key in ("env", "success", "gap")},
    "a label that is none": GOOD | {"label": 5},
    "no success": {key: GOOD[key] for key in ("env", "label", "gap")},
    "success in words": GOOD | {"success": ["a", "b"]},
    "no positions": GOOD | {"success": []},
    "a number for a list": GOOD | {"success": 0.5},
    "no number": GOOD | {"success": [float("nan"), 0.5]},
    "a huge number": GOOD | {"success": [10**400, 0.5]},
    "no gap": GOOD | {"gap": None},
}


@pytest.mark.parametrize("record", DAMAGED.values(), ids=DAMAGED)
def test_damaged_records_end_in_one_line(record, runs):
    with (runs[0] / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 2, "eval": record}) + "\n")
    assert_one_line(compare(*runs), "metrics.jsonl: line 4")


def test_evaluations_of_different_lengths_end_in_one_line(runs, tmp_path):
    write_run(tmp_path / "d", {"seed": 2}, {"after training": [0.3]})
    assert_one_line(compare(*runs, tmp_path / "d"), "different lengths")


def test_a_reader_who_leaves_early_gets_the_picture(runs, tmp_path):
    """Standard output is a pipe that nobody reads."""
    ends = os.pipe()
    os.close(ends[0])
    command = [sys.executable, "-m", "record.compare", *runs]
    subprocess.run(command, cwd=REPO, stdout=ends[1], stderr=subprocess.PIPE, timeout=120)
    os.close(ends[1])
    assert (tmp_path / "compare.png").read_bytes().startswith(b"\x89PNG")
