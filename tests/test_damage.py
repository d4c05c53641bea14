"""Runs on disk that are damaged, or cannot be written: one line, and nothing is lost."""

import json
import re
import resource
import shutil
from pathlib import Path
from unittest import mock

import pytest
from peft import PeftModel
from safetensors import SafetensorError
from training import assert_one_line, assert_same_run, flags, run_here, steps_of, truncate, weights_file
from transformers import Qwen3ForCausalLM

import eval as evaluation
import record.files
from engine import processes
from record.files import read_state


def tree(folder):
    """What is in a folder, but for the lock."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}


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


def change_state(folder, **values):
    state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    (folder / "state.json").write_text(json.dumps(state | values), encoding="utf-8")


DAMAGES = {
    "truncated adapter": lambda folder: truncate(weights_file(folder)),
    "truncated optimiser": lambda folder: truncate(folder / "optimizer.bin"),
    "empty optimiser": lambda folder: (folder / "optimizer.bin").write_bytes(b""),
    "missing optimiser": lambda folder: (folder / "optimizer.bin").unlink(),
    "truncated random states": lambda folder: truncate(folder / "random_states_0.pkl"),
    "missing random states": lambda folder: (folder / "random_states_0.pkl").unlink(),
    "broken state.json": lambda folder: (folder / "state.json").write_text('{"step": 4, ', encoding="utf-8"),
    "state.json without a step": lambda folder: (folder / "state.json").write_text("{}", encoding="utf-8"),
    "state.json that is a list": lambda folder: (folder / "state.json").write_text("[]", encoding="utf-8"),
    "state.json without checksums": lambda folder: change_state(folder, files=None),
    "a file too many": lambda folder: (folder / "more").touch(),
    "a negative step": lambda folder: change_state(folder, step=-1),
    "half a step": lambda folder: change_state(folder, step=2.5),
    "a step that is a float": lambda folder: change_state(folder, step=4.0),
    "no step": lambda folder: change_state(folder, step=None),
    "a step that is true": lambda folder: change_state(folder, step=True),
    "a step as text": lambda folder: change_state(folder, step="4"),
    "the step of another checkpoint": lambda folder: change_state(folder, step=2),
    "a step beyond the run": lambda folder: change_state(folder, step=6),
    "negative lines": lambda folder: change_state(folder, metric_lines=-1),
    "half a line": lambda folder: change_state(folder, metric_lines=2.5),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_checkpoint_is_named_and_nothing_else_is_touched(damage, broken):
    newest = broken / "checkpoints" / "step_000004"
    damage(newest)
    before = (broken / "metrics.jsonl").read_text(encoding="utf-8")
    message = run_here(["--resume", broken])
    assert isinstance(message, str), "the run went on as if nothing were wrong"
    assert_one_line(message, str(newest), "cannot be read", "delete it")
    assert (broken / "metrics.jsonl").read_text(encoding="utf-8") == before


def test_a_byte_that_was_changed_in_any_file_of_a_checkpoint_is_noticed(broken):
    newest = broken / "checkpoints" / "step_000004"
    files = [path for path in newest.rglob("*") if path.is_file() and path.name != "state.json"]
    assert {"optimizer.bin", "random_states_0.pkl", "adapter_model.safetensors"} <= {path.name for path in files}
    assert read_state(newest, 5)[0] == 4
    for file in files:
        whole = file.read_bytes()
        middle = len(whole) // 2
        file.write_bytes(whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])
        with pytest.raises(ValueError, match=re.escape(file.relative_to(newest).as_posix())):
            read_state(newest, 5)
        file.write_bytes(whole)
    assert read_state(newest, 5)[0] == 4


def test_fewer_steps_than_are_done_are_refused_and_the_run_stays_as_it_is(eventful, broken):
    before = (broken / "config.json").read_text(encoding="utf-8")
    assert_one_line(run_here(["--resume", broken, "--steps", 3]), "steps=3", "step_000004")
    assert (broken / "config.json").read_text(encoding="utf-8") == before
    assert run_here(["--resume", broken]) == 0
    assert_same_run(broken, eventful)


def test_another_number_of_processes_is_refused_and_the_run_stays_as_it_is(eventful, broken):
    before = tree(broken)
    with mock.patch.object(processes, "count", lambda: 2):
        message = run_here(["--resume", broken, "--eval-packs", 3])
    assert_one_line(message, "a run of 1 processes", "this one has 2", "--num_processes 1")
    assert "delete" not in message and tree(broken) == before
    assert run_here(["--resume", broken]) == 0
    assert_same_run(broken, eventful)


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
    lines = (broken / "metrics.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (broken / "metrics.jsonl").write_text("".join(lines[:2]), encoding="utf-8")
    assert_one_line(run_here(["--resume", broken]), "metrics.jsonl", "2 lines")


# what is wrong with a line -> from the line as it was
BAD_LINES = {
    "torn": lambda line: line[: len(line) // 2] + b"\n",
    "garbage": lambda line: b"garbage\n",
    "blank": lambda line: b"\n",
    "no object": lambda line: b"17\n",
    "without a step": lambda line: b"{}\n",
    "no UTF-8": lambda line: b'{"step": 1, "x": "\xff"}\n',
    "deep": lambda line: b"[" * 10**5 + b"\n",
}


@pytest.mark.parametrize("change", BAD_LINES.values(), ids=BAD_LINES)
@pytest.mark.parametrize("number", [1, 4])
def test_a_bad_line_of_metrics_before_the_checkpoint_is_refused_before_training(number, change, broken):
    lines = (broken / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    lines[number - 1] = change(lines[number - 1])
    (broken / "metrics.jsonl").write_bytes(b"".join(lines))
    before = tree(broken)
    assert_one_line(run_here(["--resume", broken]), f"metrics.jsonl: line {number} cannot be read")
    assert tree(broken) == before


def saved_lines(run):
    state = json.loads((run / "checkpoints" / "step_000004" / "state.json").read_text(encoding="utf-8"))
    return state["metric_lines"]


def test_a_last_line_without_its_end_is_refused_where_the_checkpoint_has_it(broken):
    lines = (broken / "metrics.jsonl").read_bytes().splitlines(keepends=True)[: saved_lines(broken)]
    (broken / "metrics.jsonl").write_bytes(b"".join(lines)[:-1])
    assert_one_line(run_here(["--resume", broken]), f"metrics.jsonl: line {len(lines)} cannot be read")


BEHIND = {**{name: change(b'{"step": 5, "loss": 0.5}\n') for name, change in BAD_LINES.items()}}
BEHIND |= {"unfinished": b'{"step": 5, "loss', "without its end": b'{"step": 5}', "unfinished UTF-8": b'{"step": "\xc3'}


@pytest.mark.parametrize("rest", BEHIND.values(), ids=BEHIND)
def test_what_follows_the_lines_of_the_checkpoint_is_cut_away(rest, eventful, broken):
    lines = (broken / "metrics.jsonl").read_bytes().splitlines(keepends=True)[: saved_lines(broken)]
    (broken / "metrics.jsonl").write_bytes(b"".join(lines) + rest)
    assert run_here(["--resume", broken]) == 0
    assert_same_run(broken, eventful)


# ---------------------------------------------------------------------------------------------------------
# A full disk


def full(*arguments, **options):
    raise OSError(28, "No space left on device")


def test_settings_that_cannot_be_written_leave_the_name_free(tmp_path, monkeypatch):
    argv = flags(output=tmp_path, name="a", steps=1, eval_every=0)
    real = record.files.os.replace
    monkeypatch.setattr(
        record.files.os, "replace", lambda old, new: full() if Path(new).name == "config.json" else real(old, new)
    )
    assert_one_line(run_here(argv), "No space left")
    assert not (tmp_path / "a" / "metrics.jsonl").exists()
    monkeypatch.undo()
    assert run_here(argv) == 0
    assert len(steps_of(tmp_path / "a")) == 1


def test_a_run_that_was_killed_before_it_had_metrics_leaves_the_name_free(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "config.json").write_text('{"steps"', encoding="utf-8")
    assert run_here(flags(output=tmp_path, name="a", steps=1, eval_every=0)) == 0


def part_of_it(error):
    """Like save_pretrained on a disk that is full before all is written."""

    def save(model, folder, **options):
        Path(folder).mkdir(parents=True, exist_ok=True)
        (Path(folder) / "adapter_config.json").write_text("{", encoding="utf-8")
        raise error

    return save


DISK_ERRORS = [OSError(28, "No space left on device"), SafetensorError("Error while serializing: I/O error\nmore")]


@pytest.mark.parametrize("error", DISK_ERRORS, ids=lambda error: type(error).__name__)
def test_an_adapter_that_cannot_be_written_at_the_end_loses_nothing(error, eventful, broken, monkeypatch):
    assert run_here(["--resume", broken]) == 0
    shutil.rmtree(broken / "adapter")
    monkeypatch.setattr(PeftModel, "save_pretrained", part_of_it(error))
    message = run_here(["--resume", broken])
    monkeypatch.undo()
    assert_one_line(message, str(broken / "adapter"), "could not be written", f"--resume {broken}")
    assert not [path for path in broken.iterdir() if "adapter" in path.name]
    assert sorted(path.name for path in (broken / "checkpoints").iterdir()) == ["step_000004", "step_000005"]
    assert run_here(["--resume", broken]) == 0
    assert_same_run(broken, eventful)


@pytest.mark.parametrize("error", DISK_ERRORS, ids=lambda error: type(error).__name__)
def test_a_merged_model_that_cannot_be_written_leaves_nothing(error, eventful, tmp_path, monkeypatch):
    argv = ["--policy", eventful, "--merge-to", tmp_path / "new" / "merged"]
    monkeypatch.setattr(Qwen3ForCausalLM, "save_pretrained", part_of_it(error))
    assert_one_line(run_here(argv, evaluation.main), str(tmp_path / "new" / "merged"), "could not be written")
    assert not list((tmp_path / "new").iterdir())
    monkeypatch.undo()
    assert run_here(argv, evaluation.main) == 0
    assert (tmp_path / "new" / "merged" / "model.safetensors").exists()


# ---------------------------------------------------------------------------------------------------------
# Evaluations of damaged runs


def set_config(text):
    return lambda run: (run / "config.json").write_text(text, encoding="utf-8")


DAMAGED_RUNS = {
    "no adapter": (lambda run: shutil.rmtree(run / "adapter"), ["has not ended", "--resume"]),
    "no weights": (lambda run: weights_file(run).unlink(), ["adapter", "cannot be read"]),
    "torn weights": (lambda run: truncate(weights_file(run)), ["adapter", "cannot be read"]),
    "empty weights": (lambda run: weights_file(run).write_bytes(b""), ["adapter", "cannot be read"]),
    "torn settings of the adapter": (
        lambda run: truncate(run / "adapter" / "adapter_config.json"),
        ["adapter", "cannot be read"],
    ),
    "odd settings of the adapter": (
        lambda run: (run / "adapter" / "adapter_config.json").write_text('{"r": "x"}', encoding="utf-8"),
        ["adapter", "cannot be read"],
    ),
    "config.json is no JSON": (set_config("{"), ["config.json", "cannot be read"]),
    "config.json is empty": (set_config(""), ["config.json", "cannot be read"]),
    "config.json is a list": (set_config("[]"), ["config.json", "settings by name"]),
    "config.json is a number": (set_config("5"), ["config.json", "settings by name"]),
    "config.json is deep": (set_config("[" * 10**5), ["config.json", "cannot be read"]),
    "no model": (set_config("{}"), ["config.json", "model=None"]),
    "a number for a model": (set_config('{"model": 5}'), ["config.json", "model=5"]),
    "text for a number": (set_config('{"model": "embedded-policy", "temperature": "hot"}'), ["config.json", "hot"]),
    "odd environments": (set_config('{"model": "embedded-policy", "envs": 7}'), ["env"]),
}


@pytest.mark.parametrize("damage, parts", DAMAGED_RUNS.values(), ids=DAMAGED_RUNS)
def test_an_evaluation_of_a_damaged_run_ends_in_one_line(damage, parts, plain, tmp_path):
    run = Path(shutil.copytree(plain, tmp_path / "run"))
    damage(run)
    argv = ["--policy", run, "--packs", 2, "--output", tmp_path / "new"]
    assert_one_line(run_here(argv, evaluation.main), *parts)
    assert not (tmp_path / "new").exists()
