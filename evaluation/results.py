"""The games of an evaluation on disk, a line each as soon as it has ended: what was stopped goes on from there."""

import json
import os
from pathlib import Path

from filelock import FileLock

from engine import processes
from engine.errors import BadInput
from record.files import lock, write_text

Part = tuple[str, str, str]  # setting, policy, context: what is played together, each of its packs once


class Results:
    """The folder of an evaluation: settings.json, and games-RANK.jsonl of every process that has played. Raises
    BadInput for games that cannot be read. Before games can be added it has to be opened by `require`."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.lock: FileLock | None = None  # the main process has it, as long as it lives
        self.is_open = False
        self._load()

    def _load(self) -> None:
        self.games: dict[Part, dict[int, dict]] = {}  # part -> number of the pack -> its line
        for file in sorted(self.folder.glob("games-*.jsonl")):
            self._read(file)

    def _open(self) -> None:
        """Make the folder and lock it, then read it again: another process may have been at work on it."""
        if processes.is_main():
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
        file = self.folder / "settings.json"
        try:
            before = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
            other = next((name for name in facts if before.get(name, facts[name]) != facts[name]), None)
        except (ValueError, AttributeError, RecursionError) as error:
            raise BadInput(f"{file}: cannot be read; name another --output, or remove the folder") from error
        if other is not None:
            raise BadInput(
                f"{other}={facts[other]!r}: the games in {self.folder} were played with {before[other]!r}; "
                "name another --output, or remove that folder to play anew"
            )
        processes.wait()  # until all have read it
        if processes.is_main() and not facts.keys() <= before.keys():
            write_text(file, json.dumps(before | facts, indent=1) + "\n")
        processes.wait()

    def _read(self, file: Path) -> None:
        lines = file.read_bytes().splitlines(keepends=True)
        for number, line in enumerate(lines, start=1):
            try:
                game = json.loads(line)
                part, index = tuple(game.pop("part")), game.pop("number")
                if len(part) != 3 or type(index) is not int:
                    raise ValueError
            except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
                if not line.endswith(b"\n"):  # broken off while it was written: that pack is played again
                    continue
                raise BadInput(
                    f"{file}: line {number} cannot be read; remove the line to play its pack again"
                ) from error
            self.games.setdefault(part, {}).setdefault(index, game)

    def of(self, part: Part) -> dict[int, dict]:
        """number of the pack -> its line."""
        return self.games.setdefault(part, {})

    def add(self, part: Part, number: int, game: dict) -> None:
        """Keep a game that has just ended, unless it was there."""
        if number in self.of(part):
            return
        self.games[part][number] = game
        line = json.dumps({"part": part, "number": number, **game}, ensure_ascii=True) + "\n"
        with self.file.open("a", encoding="utf-8") as file:
            file.write(line)

    def share(self) -> None:
        """Every process gets to know the games that the others have played."""
        for part, number, game in processes.objects_of_all(
            [(part, number, game) for part, games in self.games.items() for number, game in games.items()]
        ):
            self.of(part).setdefault(number, game)


def repair(file: Path) -> None:
    """Cut off a last line that was broken off while it was written, so that the next one does not join it."""
    if not file.exists():
        return
    text = file.read_bytes()
    whole = text.rfind(b"\n") + 1
    if whole < len(text):
        os.truncate(file, whole)
