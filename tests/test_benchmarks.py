"""The scripts in benchmarks/: settings that cannot work end in one line, before anything is measured."""

import importlib
import subprocess
import sys

import pytest
from doubles import REPO

from engine.errors import BadInput


@pytest.mark.parametrize(
    ("script", "flags", "message"),
    [
        ("architectures", ["--jobs", "0"], "jobs=0: must be at least 1"),
        ("architectures", ["--types", "llama,lama"], "'lama' is no causal-LM type"),
        ("decisions", ["--packs", "-1"], "packs=-1: must be at least 1"),
        ("limits", ["--rows", "0"], "rows=0: must be at least 1"),
        ("limits", ["--shape", "Qwen3-5B"], "shape='Qwen3-5B': unknown shape"),
        ("memory", ["--episode-tokens", "3"], "episode_tokens=3: must be at least 256"),
        ("packs", ["--pack-size", "0"], "pack_size=0: must be at least 1"),
        ("peer", ["--group-size", "1"], "group_size=1: must be at least 2"),
        ("peer", ["--cases", "single,double"], "not 'double'"),
        ("references", ["--env", "nowhere"], "env='nowhere': unknown environment"),
        ("references", ["--packs", "0"], "packs=0: must be at least 1"),
        ("rollout", ["--repeats", "0"], "repeats=0: must be at least 1"),
        ("training", ["--temperature", "0"], "temperature=0.0: must be above 0"),
    ],
)
def test_settings_that_cannot_work(script, flags, message, monkeypatch):
    module = importlib.import_module(f"benchmarks.{script}")
    monkeypatch.setattr(sys, "argv", [script, *flags])
    if script == "peer":
        monkeypatch.setitem(module.ENVS, "recital", module.Recital)  # is taken out again
    with pytest.raises(BadInput) as error:
        module.main()
    assert message in str(error.value) and "\n" not in str(error.value)


def test_scripts_start_from_any_folder(tmp_path):
    command = [sys.executable, str(REPO / "benchmarks" / "packs.py"), "--packs", "0"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (1, "error: packs=0: must be at least 1, and finite\n")
