"""engine/command_line.py: settings from flags and files, and errors of one line."""

import sys
from dataclasses import dataclass
from typing import Literal

import pytest

from engine.command_line import command_line, parse_flags
from engine.errors import BadInput
from engine.settings import flag


@dataclass(frozen=True)
class Settings:
    name: str = flag("x", "a text")
    count: int = flag(3, "a number of things")
    big_rate: float = flag(0.5, "a rate")
    loud: bool = flag(False, "a switch")
    mode: Literal["slow", "fast"] = flag("slow", "a choice")


FILES = {
    "a.yaml": "count: 5\nbig_rate: 1e-3\nloud: true\nname: some text\n",
    "a.yml": "mode: fast\n",
    "a.json": '{"count": 7, "loud": false, "mode": "fast"}',
    "typo.yaml": "count: 5\nbig_rat: 2\n",
    "hyphens.yaml": "big-rate: 2\ncount: null\nname:\n",
    "text.yaml": "just text\n",
    "empty.yaml": "",
    "broken.yaml": "count: [1, 2\nname: {",
    "value.yaml": "count: many\n",
    "choice.json": '{"mode": "medium"}',
    "binary.yaml": b"\xff\xfe\x00\x01",
}


@pytest.fixture
def files(tmp_path, monkeypatch):
    for name, content in FILES.items():
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("argv", "changed"),
    [
        ([], {}),
        (["--count", "-4", "--big_rate", "0.25"], {"count": -4, "big_rate": 0.25}),
        (["--big-rate=2", "--loud", "--mode", "fast"], {"big_rate": 2.0, "loud": True, "mode": "fast"}),
        (["--loud", "false", "--name", ""], {"name": ""}),
        (["a.yaml"], {"count": 5, "big_rate": 0.001, "loud": True, "name": "some text"}),
        (["a.yml"], {"mode": "fast"}),
        (["empty.yaml"], {}),
        (["hyphens.yaml"], {"big_rate": 2.0}),
        (["a.json"], {"count": 7, "mode": "fast"}),
        (
            ["a.yaml", "--count", "6", "--loud", "no"],
            {"count": 6, "big_rate": 0.001, "loud": False, "name": "some text"},
        ),
    ],
)
def test_settings_come_from_the_file_and_flags_win(argv, changed, files):
    assert parse_flags(Settings, argv) == Settings(**changed)


def test_settings_come_from_the_command_line(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["script.py", "--count", "9"])
    assert parse_flags(Settings) == Settings(count=9)


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (["--size", "3"], ["--size", "3"]),
        (["--coun", "3"], ["--coun", "3"]),  # no abbreviations
        (["stray"], ["stray"]),
        (["--count", "many"], ["--count", "many"]),
        (["--count", "1.5"], ["--count", "1.5"]),
        (["--count"], ["--count"]),
        (["--big-rate", "fast"], ["rate", "fast"]),
        (["--loud", "maybe"], ["--loud", "maybe"]),
        (["--mode", "medium"], ["--mode", "medium", "slow", "fast"]),
        (["value.yaml"], ["count", "many"]),
        (["choice.json"], ["mode", "medium", "slow", "fast"]),
        (["text.yaml"], ["text.yaml, line 1", "settings by name"]),
        (["broken.yaml"], ["broken.yaml"]),
        (["typo.yaml"], ["typo.yaml", "'big_rat'"]),
        (["binary.yaml"], ["binary.yaml"]),
    ],
)
def test_bad_settings_are_named_in_one_line(argv, named, files):
    with pytest.raises(BadInput) as raised:
        parse_flags(Settings, argv)
    assert all(part in str(raised.value) for part in named) and "\n" not in str(raised.value)


def test_missing_settings_file_is_an_error_of_one_line(files):
    with pytest.raises(SystemExit) as raised:
        command_line(lambda: parse_flags(Settings, ["nowhere.yaml"]))
    assert raised.value.code.startswith("error: ") and "nowhere.yaml" in raised.value.code


def test_an_interrupt_ends_without_a_traceback():
    def interrupted():
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as raised:
        command_line(interrupted)
    assert raised.value.code == 130


def test_bugs_are_not_hidden():
    """Only what the user can mend becomes one line."""

    def buggy():
        raise KeyError("a bug")

    with pytest.raises(KeyError):
        command_line(buggy)
