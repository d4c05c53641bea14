"""record/compare.py: runs side by side, seeds merged."""

import json
import statistics

import pytest

from engine.errors import BadInput
from record.compare import draw, rows, table


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
