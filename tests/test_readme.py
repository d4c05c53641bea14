"""What the README promises."""

import dataclasses
import json
import os
import re
import subprocess
import sys

import pytest
from doubles import REPO
from training import steps_of

from engine.settings import Config

README = REPO / "README.md"


needs_readme = pytest.mark.skipif(not README.exists(), reason="there is no README.md yet")


def named_blocks():
    """file name -> text of the fenced Python blocks of the README whose first line is a comment with a file name."""
    blocks = re.findall(r"^```python\n(.*?)^```", README.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    named = [(re.match(r"# (\w+\.py)\b", block), block) for block in blocks]
    return {match.group(1): block for match, block in named if match}


@needs_readme
def test_the_environment_of_the_readme_can_be_trained_on(tmp_path):
    for name, text in named_blocks().items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    assert len((tmp_path / "guess.py").read_text(encoding="utf-8").splitlines()) < 60
    argv = "--env guess --steps 1 --packs-per-step 1 --group-size 2 --pack-size 2 --test-packs 2 --eval-every 0"
    result = subprocess.run(
        [sys.executable, "guess.py", *argv.split(), "--max-reply-tokens", "8", "--output", tmp_path / "runs"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(REPO)},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    [run] = (tmp_path / "runs").iterdir()
    assert json.loads((run / "config.json").read_text(encoding="utf-8"))["env"] == "guess"
    assert len(steps_of(run)) == 1


@needs_readme
def test_the_readme_lists_every_flag_and_no_other():
    rows = re.findall(r"^\| *`--([\w-]+)` *\|", README.read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(row.replace("-", "_") for row in rows) == sorted(field.name for field in dataclasses.fields(Config))


@needs_readme
def test_the_readme_explains_every_metric(plain):
    rows = re.findall(r"^\| *(`[^|]*`) *\|", README.read_text(encoding="utf-8"), re.MULTILINE)
    explained = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    assert {key for line in steps_of(plain) for key in line} - {"step"} <= explained
