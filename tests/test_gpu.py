"""benchmarks/gpu/run.py: what becomes of parts that fail, run over or have nothing to do; the table."""

import os
import subprocess
import sys
import time

import pytest
from doubles import REPO

from benchmarks.gpu import run as gpu

# starts a process that would go on
CHILD = "import subprocess, sys; p = subprocess.Popen([sys.executable, '-S', '-c', 'import time; time.sleep(60)']);"


def python(code):
    return [sys.executable, "-S", "-c", code]


def outcomes_of(tmp_path, *codes, total=60.0, limit=30.0, last=False):
    """The outcomes of parts a, b, ... that run these pieces of Python."""
    names = "abcdefg"[: len(codes)]
    parts = [gpu.Part(name, f"{name}.log", limit, last and name == names[-1]) for name in names]
    scripts = dict(zip(names, codes, strict=True))
    return gpu.run_parts(parts, lambda part, seconds: python(scripts[part.name]), total, tmp_path)


def test_a_part_that_fails_is_named_and_the_next_one_starts(tmp_path):
    failed, fine = outcomes_of(tmp_path, "print('begun'); raise ValueError('no luck')", "print('here')")
    assert failed.bad and failed.text == "failed (1): ValueError: no luck"
    assert (fine.text, fine.bad) == ("ok", False)
    assert (tmp_path / "b.log").read_text() == "here\n"


def test_a_part_that_runs_over_is_ended_with_all_that_it_started(tmp_path):
    slow = CHILD + "print('child', p.pid, flush=True); p.wait()"
    began = time.monotonic()
    over, fine = outcomes_of(tmp_path, slow, "pass", limit=3.0)
    assert time.monotonic() - began < 20
    pid = int((tmp_path / "a.log").read_text().split()[1])
    assert over.bad and over.text == f"ran over its 3 s; at last: child {pid}"
    assert fine.text == "ok"
    for _ in range(100):  # until whoever inherits it has seen that it is gone
        if not running(pid):
            break
        time.sleep(0.05)
    assert not running(pid)


def running(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True).stdout.strip()
    return bool(state) and not state.startswith("Z")


def test_a_part_that_ends_leaves_no_process_behind(tmp_path):
    [fine] = outcomes_of(tmp_path, CHILD + "print(p.pid)")
    assert fine.text == "ok"
    time.sleep(0.2)
    assert not running(int((tmp_path / "a.log").read_text()))


def test_a_part_without_work_is_skipped_with_its_reason(tmp_path):
    [skipped] = outcomes_of(tmp_path, f"print('no file'); raise SystemExit({gpu.SKIPPED})")
    assert (skipped.text, skipped.bad) == ("skipped: no file", False)


def test_the_last_part_has_all_the_time_that_is_left(tmp_path):
    given = []

    def command(part, seconds):
        given.append(seconds)
        return python("import time; time.sleep(1)")

    parts = [gpu.Part("a", "a.log", 5.0), gpu.Part("b", "b.log", 5.0, last=True)]
    gpu.run_parts(parts, command, 100.0, tmp_path)
    assert given[0] == 1.0  # as its margin takes the rest
    assert 100 - gpu.MARGIN - 20 < given[1] < 100 - gpu.MARGIN - 0.9


def test_parts_beyond_the_whole_time_are_not_started(tmp_path):
    first, second = outcomes_of(tmp_path, "import time; time.sleep(30)", "print('never')", total=1.0)
    assert first.text.startswith("ran over its 1 s")
    assert second.bad and second.text == "not started: no time was left"
    assert not (tmp_path / "b.log").exists()


def test_parts_that_share_a_log_each_show_their_own_last_line(tmp_path):
    parts = [gpu.Part(name, "both.log", 30.0) for name in "ab"]
    scripts = {"a": "raise SystemExit('first')", "b": "raise SystemExit(2)"}
    first, second = gpu.run_parts(parts, lambda part, _: python(scripts[part.name]), 60.0, tmp_path)
    assert first.text == "failed (1): first"
    assert second.text == "failed (2): it wrote nothing"


def test_figures_that_were_cut_off_are_left_out(tmp_path):
    file = tmp_path / "figures.jsonl"
    assert gpu.read_figures(file) == []
    file.write_text('{"figure": "a", "value": 1}\n{"figure": "b", "va')
    assert [figure["figure"] for figure in gpu.read_figures(file)] == ["a"]


@pytest.mark.parametrize(
    ("value", "goal", "want"),
    [
        (3.0, ">= 3", "yes"),
        (2.9, ">= 3", "no"),
        (4, "<= 4", "yes"),
        (4.1, "<= 4", "no"),
        ("out of memory", "<= 4", "no"),
        (1.0, "", ""),
    ],
)
def test_goals(value, goal, want):
    assert gpu.met({"value": value, "goal": goal}) == want


def test_the_report_has_machine_parts_and_figures():
    outcomes = [gpu.Outcome("smoke", "failed (1): a | b", 2.4, True), gpu.Outcome("memory", "ok", 7.0, False)]
    figures = [
        {"part": "memory", "figure": "peak", "value": 12.34567, "unit": "GiB", "goal": "<= 12"},
        {"part": "memory", "figure": "other", "value": "out of memory", "unit": "", "goal": ""},
    ]
    lines = gpu.report({"device": "A card", "torch": "1.2"}, outcomes, figures).splitlines()
    assert lines[0] == "# A card"
    assert "| torch | 1.2 |" in lines
    assert "| smoke | failed (1): a \\| b | 2 |" in lines
    assert "| memory | ok | 7 |" in lines
    assert "| memory | peak | 12.3 GiB | <= 12 | no |" in lines
    assert "| memory | other | out of memory |  |  |" in lines


@pytest.mark.parametrize(
    ("arguments", "environment", "message"),
    [
        (["FOLDER", "smoke", "b"], {}, "part 'b': unknown; choose from 'smoke', "),
        (["--help"], {}, "usage: "),
        (["FILE"], {}, "is not a folder"),
        (["FOLDER"], {"GGUF": "nowhere.gguf"}, "GGUF='nowhere.gguf': there is no such file"),
        (["FOLDER"], {"RUN": "nowhere.tar.gz"}, "RUN='nowhere.tar.gz': there is no such file"),
        (["FOLDER"], {"TOTAL": "8 minutes"}, "TOTAL='8 minutes': must be a whole number of seconds"),
    ],
)
def test_what_cannot_work_ends_in_one_line(arguments, environment, message, tmp_path):
    (tmp_path / "FILE").write_text("")
    paths = [str(tmp_path / name) if name.isupper() else name for name in arguments]
    command = ["bash", "benchmarks/gpu.sh", *paths]
    environment = {**os.environ, "PYTHON": sys.executable, "REHEARSAL": "", **environment}
    done = subprocess.run(command, cwd=REPO, env=environment, capture_output=True, text=True)
    assert done.returncode == 1 and done.stdout == ""
    assert len(done.stderr.splitlines()) == 1 and done.stderr.startswith("error: ") and message in done.stderr


def test_only_the_parts_that_are_named_run(tmp_path):
    environment = {**os.environ, "PYTHON": sys.executable, "REHEARSAL": "1"}
    command = ["bash", "benchmarks/gpu.sh", str(tmp_path), "limits"]
    assert subprocess.run(command, cwd=REPO, env=environment, capture_output=True).returncode == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["2-limits.log", "figures.jsonl", "report.md"]
    assert {figure["part"] for figure in gpu.read_figures(tmp_path / "figures.jsonl")} == {"limits"}


def test_without_a_gpu_one_line_says_so(tmp_path):
    environment = {**os.environ, "PYTHON": sys.executable, "REHEARSAL": "", "CUDA_VISIBLE_DEVICES": ""}
    command = ["bash", "benchmarks/gpu.sh", str(tmp_path)]
    done = subprocess.run(command, cwd=REPO, env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "error: there is no NVIDIA GPU here; REHEARSAL=1 goes through the parts at tiny sizes on a CPU"
    ]
