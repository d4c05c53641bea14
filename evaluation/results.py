"""The games of an evaluation on disk, a line each as soon as it has ended: what was stopped goes on from there."""

import contextlib
import json
import math
import os
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock

from engine import processes
from engine.errors import BadInput, first_line
from envs import name_of
from evaluation.statistics import BY_POSITION, COUNTS, REWARDS
from evaluation.suites import Setting
from record.files import is_run, lock, write_text
from record.page import is_number
from record.pictures import STYLES

Part = tuple[str, str, str]  # setting, policy, context: what is played together, each of its packs once

# ---------------------------------------------------------------------------------------------------------
# Lines


def parse(line: bytes) -> tuple[Part, int, dict]:
    """(part, number of the pack, the rest) of a line. Raises ValueError or RecursionError if it holds no game."""

    def refuse(name: str):
        raise ValueError(f"{name} is no number")

    values = json.loads(line, parse_constant=refuse)
    if not isinstance(values, dict):
        raise ValueError("it is no object")
    part, number = values.pop("part", None), values.pop("number", None)
    if not isinstance(part, list) or len(part) != 3 or not all(isinstance(name, str) for name in part):
        raise ValueError("part must be three names")
    if type(number) is not int:
        raise ValueError("number must be a whole number")
    return tuple(part), number, values


def check(part: Part, number: int, game: dict, facts: dict) -> None:
    """Raise ValueError unless an evaluation with these facts (`playing.Plan.facts`) can have written this game."""
    name, label, _ = part
    known = {"seed", f"setting {name!r}"} | ({f"policy {label!r}"} if label not in STYLES else set())
    if not known <= facts.keys():
        raise ValueError("settings.json does not say with what it was played")
    fact = facts[f"setting {name!r}"]
    setting = Setting(**{key: value for key, value in fact.items() if key != "source"})
    size = setting.pack_size
    if not 0 <= number < setting.games:
        raise ValueError(f"number={number}: must be at least 0 and below {setting.games}")
    expected = {"env": f"{name_of(setting.env)}/{setting.level}", "pack": setting.pack_seed(facts["seed"], number)}
    for field, value in expected.items():
        if type(game.get(field)) is not type(value) or game[field] != value:
            raise ValueError(f"{field}={game.get(field)!r}: must be {value!r}")
    for field in (*REWARDS, *BY_POSITION):
        length = size - 1 if field.startswith("hint_") else size
        values = game.get(field)
        if not isinstance(values, list) or len(values) != length or not all(map(is_number, values)):
            raise ValueError(f"{field} must be {length} finite numbers")
        most = 1 if field in ("hint_kept", "broken_task") else math.inf
        if field not in REWARDS and not all(0 <= value <= most for value in values):
            raise ValueError(f"{field} must lie between 0 and {most}")
    for some, all_of_them in zip(COUNTS[::2], COUNTS[1::2], strict=True):
        counts = [game.get(some), game.get(all_of_them)]
        if not all(type(count) is int for count in counts) or not 0 <= counts[0] <= counts[1] < 1e9 or counts[1] == 0:
            raise ValueError(f"{some} must be a whole number up to {all_of_them}, and that one above 0")
    check_texts(game, size)


def check_texts(game: dict, size: int) -> None:
    """The same for the hints, what is said of them, and the conversations, where they were kept."""
    hints, grades, conversations = game.get("hints"), game.get("grades"), game.get("conversations", [])
    if not isinstance(hints, list) or len(hints) != size - 1 or not all(isinstance(hint, str) for hint in hints):
        raise ValueError(f"hints must be {size - 1} texts")
    if not isinstance(grades, list) or len(grades) != size - 1 or not all(isinstance(each, dict) for each in grades):
        raise ValueError(f"grades must be {size - 1} objects")
    if not all(is_number(value) for of_hint in grades for value in of_hint.values()):
        raise ValueError("grades must be finite numbers by name")
    if not isinstance(conversations, list) or not all(
        isinstance(episode, dict) and isinstance(episode.get("messages"), list) for episode in conversations
    ):
        raise ValueError("conversations must be objects with messages")


# ---------------------------------------------------------------------------------------------------------
# The folder


class Results:
    """The folder of an evaluation: settings.json, and games-RANK.jsonl of every process that has played. Raises
    BadInput for games that cannot be read, and for those of which settings.json does not say with what they were
    played. Before games can be added it has to be opened by `require`."""

    def __init__(self, folder: Path):
        if is_run(folder):
            raise BadInput(f"output={str(folder)!r}: is a training run, whose report.html would be lost; name another")
        if folder.exists() and not folder.is_dir():
            raise BadInput(f"output={str(folder)!r}: is a file; name a folder")
        self.folder = folder
        self.lock: FileLock | None = None  # the main process has it, as long as it lives
        self.is_open = False
        self._load()

    def _load(self) -> None:
        self.games: dict[Part, dict[int, dict]] = {}  # part -> number of the pack -> its line
        lines = {file: file.read_bytes() for file in sorted(self.folder.glob("games-*.jsonl"))}
        facts = self._facts()  # after the games: another process that adds some has noted its facts before
        for file, text in lines.items():
            self._read(file, text, facts)

    def _facts(self) -> dict:
        """What settings.json says."""
        file = self.folder / "settings.json"
        try:
            facts = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
            if not isinstance(facts, dict):
                raise ValueError("it is no object")
        except (ValueError, RecursionError) as error:
            raise BadInput(f"{file}: cannot be read; name another --output, or remove the folder") from error
        return facts

    def _open(self) -> None:
        """Make the folder and lock it, then read it again: another process may have been at work on it."""
        if processes.is_main():
            with writing(self.folder):
                self.folder.mkdir(parents=True, exist_ok=True)
                self.lock = lock(self.folder)
            if self.lock is None:
                raise BadInput(f"output={str(self.folder)!r}: another process is at work on this evaluation")
        processes.wait()
        self._load()
        processes.wait()
        self.file = self.folder / f"games-{processes.rank()}.jsonl"
        repair(self.file)
        self.is_open = True

    def require(self, facts: dict) -> None:
        """The games here belong to these facts (settings by name). Raises BadInput if they were begun with others; what
        has not been said before is noted."""
        if not self.is_open:
            self._open()
        before = self._facts()
        for name, value in facts.items():
            if name in before:
                refuse_other(name, value, before[name], self.folder)
            elif any(self.games.values()) and not name.startswith(("setting ", "policy ")):  # these belong to all
                file = self.folder / "settings.json"
                raise BadInput(
                    f"{name}={value!r}: {file} does not say with which one the games there were played; "
                    "name another --output, or remove that folder to play anew"
                )
        processes.wait()  # until all have read it
        if processes.is_main() and not facts.keys() <= before.keys():
            with writing(self.folder):
                write_text(self.folder / "settings.json", json.dumps(before | facts, indent=1) + "\n")
        processes.wait()

    def _read(self, file: Path, text: bytes, facts: dict) -> None:
        for line_number, line in enumerate(text.splitlines(keepends=True), start=1):
            if is_torn(line):  # that pack is played again
                continue
            try:
                part, number, game = parse(line)
                check(part, number, game, facts)
                if self.of(part).setdefault(number, game) != game:
                    raise ValueError("the same pack stands there before, played in another way")
            except (ValueError, RecursionError, TypeError, KeyError, AttributeError) as error:  # facts of other types
                why = " ".join(first_line(error).split())[:200]
                raise BadInput(
                    f"{file}: line {line_number} cannot be read ({why}); remove the line to play its pack again"
                ) from error

    def of(self, part: Part) -> dict[int, dict]:
        """number of the pack -> its line."""
        return self.games.setdefault(part, {})

    def add(self, part: Part, number: int, game: dict) -> None:
        """Keep a game that has just ended, unless it was there."""
        if number in self.of(part):
            return
        self.games[part][number] = game
        line = json.dumps({"part": part, "number": number, **game}, ensure_ascii=True) + "\n"
        with writing(self.folder), self.file.open("a", encoding="utf-8") as file:
            file.write(line)

    def share(self) -> None:
        """Every process gets to know the games that the others have played."""
        for part, number, game in processes.objects_of_all(
            [(part, number, game) for part, games in self.games.items() for number, game in games.items()]
        ):
            self.of(part).setdefault(number, game)


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[None]:
    """What fails in here is said in one line with the folder's name: a full disk names nothing."""
    try:
        yield
    except OSError as error:
        why = first_line(error)
        raise BadInput(f"output={str(folder)!r}: cannot be written ({why}); the games there are kept") from error


def refuse_other(name: str, value, before, folder: Path) -> None:
    """Raise BadInput if these differ; of settings it shows what does."""
    if value == before:
        return
    if isinstance(value, dict) and isinstance(before, dict):
        keys = [key for key in value if key not in before or value[key] != before[key]] or [*before]
        value, before = ({key: each.get(key) for key in keys} for each in (value, before))
    raise BadInput(
        f"{name}={value!r}: the games in {folder} were played with {before!r}; "
        "name another --output, or remove that folder to play anew"
    )


def is_torn(line: bytes) -> bool:
    """Whether a line was broken off while it was written. Of a line that lacks its end alone nothing is lost."""
    if line.endswith(b"\n"):
        return False
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return True
    return False


def repair(file: Path) -> None:
    """Cut off a last line that was broken off, and end one that lacks its end, so that the next does not join it."""
    text = file.read_bytes() if file.exists() else b""
    whole = text.rfind(b"\n") + 1
    if whole == len(text):
        return
    if is_torn(text[whole:]):
        os.truncate(file, whole)
    else:
        with file.open("ab") as end:
            end.write(b"\n")
