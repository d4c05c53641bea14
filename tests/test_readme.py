"""What README and docs promise."""

import json
import re
import sys
from pathlib import Path

from doubles import REPO
from training import metrics, run_here, steps_of

import eval as evaluation

sys.path.insert(0, str(REPO / "docs"))

import flags  # noqa: E402

README = (REPO / "README.md").read_text("utf-8")


def named_blocks():
    """file name -> text of the fenced Python blocks of the README whose first line is a comment with a file name."""
    blocks = re.findall(r"^```python\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
    named = [(re.match(r"# (\w+\.py)\b", block), block) for block in blocks]
    return {match.group(1): block for match, block in named if match}


def test_the_environment_of_the_readme_can_be_trained_on(start_process, tmp_path, monkeypatch, capsys):
    """From another folder, by a path relative to that; the run then goes on and is evaluated from a third one."""
    for name, text in named_blocks().items():
        (tmp_path / name).write_text(text)
    (tmp_path / "third").mkdir()
    argv = "--env ./guess.py --steps 2 --packs-per-step 1 --group-size 2 --pack-size 2 --test-packs 2 --eval-every 0"
    argv += " --max-reply-tokens 8 --output runs"

    monkeypatch.chdir(tmp_path)
    assert run_here([*argv.split(), "--model", REPO / "embedded-policy"]) == 0
    assert "guess/tiny: success" in capsys.readouterr().out
    [run] = (tmp_path / "runs").iterdir()
    assert json.loads((run / "config.json").read_text())["env"] == str(tmp_path / "guess.py")
    assert {line["eval"]["env"] for line in metrics(run) if "eval" in line} == {"guess/tiny"}
    assert len(steps_of(run)) == 2
    resumed = start_process(["--resume", run], cwd=tmp_path / "third")  # which has not imported the environment yet
    assert resumed.communicate() and resumed.returncode == 0
    monkeypatch.chdir(tmp_path / "third")
    assert run_here(["--policy", run, "--packs", "2"], evaluation.main) == 0
    [written] = (tmp_path / "third" / "eval").iterdir()
    assert written.name == f"{run.name}-on-guess-tiny-2x2"


def test_readme_is_read_in_ten_minutes():
    assert len(README.splitlines()) <= 180


def test_the_table_of_settings_is_current():
    assert (REPO / "docs" / "flags.md").read_text("utf-8") == flags.page()


def test_every_metric_is_explained(plain):
    rows = re.findall(r"^\| *(`[^|]*`) *\|", (REPO / "docs" / "runs.md").read_text("utf-8"), re.MULTILINE)
    explained = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    assert {key for line in steps_of(plain) for key in line} - {"step"} <= explained


def test_links_and_named_files_exist():
    for page in [REPO / "README.md", *(REPO / "docs").glob("*.md")]:
        text = page.read_text("utf-8")
        for target in re.findall(r"\]\(([^)#]+)\)", text):
            assert target.startswith("http") or (page.parent / target).exists(), (page.name, target)
        for name in re.findall(r"`((?:\w+/)*\w+\.(?:py|sh|yaml))`", text):
            found = (REPO / name).exists() or any(REPO.rglob(name)) or Path(name).name in named_blocks()
            assert found or name.startswith("environments/guess"), (page.name, name)
