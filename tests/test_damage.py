"""Runs on disk that are damaged, or cannot be written: one line, and nothing is lost."""

import re
import resource
import shutil

import pytest
from training import assert_one_line, assert_same_run, run_here, truncate, weights_file

# ---------------------------------------------------------------------------------------------------------
#  Checkpoints


def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before(start_process, eventful, broken):
    files = broken / "checkpoints" / "step_000004"
    limit = (weights_file(files).stat().st_size + (files / "optimizer.bin").stat().st_size) // 2
    process = start_process(
        ["--resume", broken], preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    )
    _, err = process.communicate()
    assert process.returncode == 1
    assert re.fullmatch(r"error: .*step_000005: .* could not be written .*step_000004 is kept.*--resume .*\n", err), err
    assert sorted(path.name for path in (broken / "checkpoints").iterdir()) == ["step_000002", "step_000004"]
    assert run_here(["--resume", broken]) == 0
    assert_same_run(broken, eventful)


DAMAGES = {
    "truncated adapter": lambda folder: truncate(weights_file(folder)),
    "truncated optimiser": lambda folder: truncate(folder / "optimizer.bin"),
    "empty optimiser": lambda folder: (folder / "optimizer.bin").write_bytes(b""),
    "missing optimiser": lambda folder: (folder / "optimizer.bin").unlink(),
    "truncated random states": lambda folder: truncate(folder / "random_states_0.pkl"),
    "missing random states": lambda folder: (folder / "random_states_0.pkl").unlink(),
    "broken state.json": lambda folder: (folder / "state.json").write_text('{"step": 4, '),
    "state.json without a step": lambda folder: (folder / "state.json").write_text("{}"),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_checkpoint_is_named_and_nothing_else_is_touched(damage, broken):
    newest = broken / "checkpoints" / "step_000004"
    damage(newest)
    before = (broken / "metrics.jsonl").read_text()
    message = run_here(["--resume", broken])
    assert isinstance(message, str), "the run went on as if nothing were wrong"
    assert_one_line(message, str(newest), "cannot be read", "delete it")
    assert (broken / "metrics.jsonl").read_text() == before


def test_without_the_damaged_checkpoint_the_run_goes_on_from_the_older_one(eventful, broken):
    truncate(broken / "checkpoints" / "step_000004" / "optimizer.bin")
    assert isinstance(run_here(["--resume", broken]), str)
    shutil.rmtree(broken / "checkpoints" / "step_000004")
    assert run_here(["--resume", broken]) == 0
    assert_same_run(broken, eventful)


def test_only_the_last_two_checkpoints_are_kept(plain):
    assert sorted(path.name for path in (plain / "checkpoints").iterdir()) == ["step_000003", "step_000004"]


# ---------------------------------------------------------------------------------------------------------
#  Metrics


def test_metrics_that_are_shorter_than_the_checkpoint_says_are_refused(broken):
    lines = (broken / "metrics.jsonl").read_text().splitlines(keepends=True)
    (broken / "metrics.jsonl").write_text("".join(lines[:2]))
    assert_one_line(run_here(["--resume", broken]), "metrics.jsonl", "2 lines")
