"""The commands of a session that stay on its machine: files and folders, and archives of them.

Each is given the set of its flags and its other arguments. shell.py says what flags and arguments it takes.
"""

import posixpath
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from environments.terminal.filesystem import (
    EXISTS,
    FOLDER,
    FULL,
    IS_FOLDER,
    MAX_NODES,
    MISSING,
    NO_FOLDER,
    NOT_EMPTY,
    USAGE,
    Failure,
    Machine,
    Node,
    copy_tree,
)
from environments.terminal.machines import Setup

# why a command failed, where that is one of the machines' peculiarities
USE_TRASH = ("disabled on this machine, use trash instead",) * 2
ASKS = ("remove? Not removed: no terminal to ask on; -f does not ask", "Delete (Y/N)? Not deleted; /Q does not ask.")


@dataclass
class Session:
    """A session on one machine. `output` collects what its commands print."""

    machine: Machine
    setup: Setup
    finished: Callable[[], bool]  # asked after every command; when it says yes, the rest of the line is not run
    remote: Machine | None = None  # the host; None in a session on the host itself
    output: list[str] = field(default_factory=list)

    def __post_init__(self):
        self.listings: dict[tuple, str] = {}  # of folders, since the line that is being run began
        self.cwd = self.machine.home
        if not self.machine.is_folder(self.cwd):
            self.output.append(f"Could not chdir to home directory {self.cwd}: {MISSING[0]}")
            self.cwd = "/"

    def path(self, text: str) -> str:
        return self.machine.resolve(text, self.cwd)


class FileCommands(Session):
    """Looking at files and folders, and changing them."""

    def ls(self, flags: set[str], texts: list[str]) -> None:
        for text in texts or ["."]:
            path = self.path(text)
            node = self.machine.get(path)
            self.output.append(self.listing(path, flags) if node.is_folder else self.shown([(text, node)], flags))

    def listing(self, path: str, flags: set[str]) -> str:
        """What ls prints of a folder; put together once as long as the line that is being run changes nothing."""
        key = (path, frozenset(flags), self.machine.changes)
        if key not in self.listings:
            inside = sorted(self.machine.below(path)) if flags & set("Rs") else self.machine.children(path)
            found = [(known[len(path) :].strip("/"), self.machine.nodes[known]) for known in inside if known != path]
            found = [(name, node) for name, node in found if "a" in flags or not name.startswith(".")]
            self.listings[key] = self.shown(found, flags)
        return self.listings[key]

    def shown(self, found: list[tuple[str, Node]], flags: set[str]) -> str:
        slash = "\\" if self.machine.system == "windows" else "/"
        names = [name.replace("/", slash) + slash * node.is_folder for name, node in found]
        if "l" not in flags:
            return "  ".join(names)
        kinds = [("d" if node.is_folder else "-") + node.permissions for _, node in found]
        return "\n".join(f"{kind} {name}" for kind, name in zip(kinds, names, strict=True))

    def cat(self, flags: set[str], texts: list[str]) -> None:
        for text in texts:
            node = self.machine.get(self.path(text))
            if node.is_folder:
                raise Failure(IS_FOLDER, text)
            self.output.append("(binary data)" if node.members else node.content)

    def echo(self, flags: set[str], args: list[str]) -> None:
        self.output.append(" ".join(args))

    def pwd(self, flags: set[str], args: list[str]) -> None:
        self.output.append(self.machine.show(self.cwd))

    def cd(self, flags: set[str], texts: list[str]) -> None:
        if not texts and self.machine.system == "windows":
            return self.pwd(flags, texts)
        path = self.path(texts[0] if texts else "~")
        if not self.machine.get(path).is_folder:
            raise Failure(NO_FOLDER, texts[0])
        self.cwd = path

    def cp(self, flags: set[str], texts: list[str]) -> None:
        self.copy((self, texts[0]), (self, texts[1]), deep=bool(flags & set("rRae")))

    def copy(self, source: tuple["FileCommands", str], target: tuple["FileCommands", str], deep: bool) -> None:
        """Copy a file, or if `deep` a folder, between sessions; source and target are (session, path as typed)."""
        (here, text), (there, to_text) = source, target
        path = here.path(text)
        node = here.machine.get(path)
        if node.is_folder and not deep:
            raise Failure(("omitting directory (no -r)", IS_FOLDER[1]), text)
        copy_tree(here.machine, path, there.machine, there.destination(to_text, path))

    def destination(self, text: str, path: str) -> str:
        """Where what is at `path` ends up when it is copied or moved to `text`: in it, if that is a folder."""
        to = self.path(text)
        if self.machine.is_folder(to):
            return posixpath.join(to, posixpath.basename(path))
        if text.endswith(("/", "\\")):
            raise Failure(NO_FOLDER, text)
        return to

    def mv(self, flags: set[str], texts: list[str]) -> None:
        path = self.path(texts[0])
        self.move(path, self.destination(texts[1], path))

    def ren(self, flags: set[str], texts: list[str]) -> None:
        path = self.path(texts[0])
        to = self.machine.resolve(texts[1], posixpath.dirname(path))
        if posixpath.dirname(to) != posixpath.dirname(path):
            raise Failure(USAGE)
        if to in self.machine.nodes:
            raise Failure("A duplicate file name exists, or the file cannot be found.")
        self.move(path, to)

    def move(self, path: str, to: str) -> None:
        self.machine.get(path)
        self.machine.check_writable(path)
        if to != path and self.machine.is_folder(to):
            raise Failure(NOT_EMPTY, self.machine.show(to))
        copy_tree(self.machine, path, self.machine, to)
        self.machine.remove(path)

    def rm(self, flags: set[str], texts: list[str]) -> None:
        if "trash" in self.setup.quirks:
            raise Failure(USE_TRASH)
        for text in texts:
            path = self.path(text)
            if path not in self.machine.nodes and "f" in flags:
                continue
            if self.machine.get(path).is_folder and not flags & set("rR"):
                raise Failure(IS_FOLDER, text)
            if "force" in self.setup.quirks and not flags & set("fq"):
                raise Failure(ASKS, text)
            self.machine.remove(path)

    def trash(self, flags: set[str], texts: list[str]) -> None:
        for text in texts:
            self.machine.get(self.path(text))
            self.machine.remove(self.path(text))

    def rmdir(self, flags: set[str], texts: list[str]) -> None:
        for text in texts:
            path = self.path(text)
            if not self.machine.get(path).is_folder:
                raise Failure(NO_FOLDER, text)
            if self.machine.children(path) and "s" not in flags:
                raise Failure(NOT_EMPTY, text)
            self.machine.remove(path)

    def mkdir(self, flags: set[str], texts: list[str]) -> None:
        one_level = "levels" in self.setup.quirks
        if one_level and "p" in flags:
            raise Failure("unrecognized option: p")
        for text in texts:
            path = self.path(text)
            if path in self.machine.nodes and "p" not in flags:
                raise Failure(EXISTS, text)
            if "p" in flags or self.machine.system == "windows" and not one_level:
                self.machine.make_folders(path)
            else:
                self.machine.put(path, FOLDER)

    def chmod(self, flags: set[str], args: list[str]) -> None:
        mode, *texts = args
        if "symbolic" in self.setup.quirks and not mode[:1].isalpha():
            raise Failure("not a symbolic mode (such as u=rw,g=r,o=)", mode)
        for text in texts:
            path = self.path(text)
            node = self.machine.get(path)
            self.machine.check_writable(path)
            self.machine.put(path, replace(node, mode=new_mode(mode, node.mode)))


class ArchiveCommands(Session):
    """Packing and unpacking."""

    def tar(self, flags: set[str], args: list[str]) -> None:
        letters, archive, base, texts = "", None, self.cwd, []
        words = ["-" + args[0].removeprefix("-"), *args[1:]]
        while words:
            word = words.pop(0)
            if word == "-C" and words:
                base = self.path(words.pop(0))
            elif word.startswith("-"):
                letters += word[1:]
                if word.endswith("f") and words:
                    archive = words.pop(0)
            else:
                texts.append(word)
        if archive is None or not re.fullmatch("[zvpf]*[cx][zvpf]*", letters):
            raise Failure("use -czf ARCHIVE NAMES or -xzf ARCHIVE, and -C FOLDER if need be")
        if "c" in letters:
            self.machine.put(self.path(archive), Node("tar", members=self.gather(texts, base)))
        else:
            self.unpack(archive, "tar", base)

    def zip(self, flags: set[str], texts: list[str]) -> None:
        archive = texts[0] if "." in posixpath.basename(texts[0]) else texts[0] + ".zip"
        members = self.gather(texts[1:], self.cwd, deep="r" in flags)
        self.machine.put(self.path(archive), Node("zip", members=members))

    def unzip(self, flags: set[str], args: list[str]) -> None:
        base, words = self.cwd, list(args)
        if "-d" in words[:-1]:
            at = words.index("-d")
            base = self.path(words[at + 1])
            del words[at : at + 2]
        words = [word for word in words if word not in ("-o", "-q")]
        if len(words) != 1:
            raise Failure("use unzip ARCHIVE [-d FOLDER]")
        self.machine.make_folders(base)
        self.unpack(words[0], "zip", base)

    def gather(self, texts: list[str], base: str, deep: bool = True) -> tuple[tuple[str, Node], ...]:
        """The members of a new archive of these files and folders, under their names as typed."""
        members = []
        for text in texts:
            path = self.machine.resolve(text, base)
            self.machine.get(path)
            typed = text.replace("\\", "/") if self.machine.system == "windows" else text
            typed = posixpath.normpath(path if re.match("~|[A-Za-z]:", typed) else typed)
            top = re.sub(r"^(/|\.\.?(/|$))+", "", typed)
            for known in self.machine.below(path) if deep else [path]:
                name = posixpath.join(top, known[len(path) :].lstrip("/")).rstrip("/")
                members += [(name, self.machine.nodes[known])] if name else []
            if len(members) > MAX_NODES:
                raise Failure(FULL)
        if not members:
            raise Failure("nothing to put into the archive")
        return tuple(members)

    def unpack(self, archive: str, form: str, base: str) -> None:
        node = self.machine.get(self.path(archive))
        if node.content != form or not node.members:
            raise Failure(f"not a {form} archive", archive)
        for name, member in node.members:
            path = posixpath.join(base, name)
            self.machine.make_folders(posixpath.dirname(path))
            self.machine.put(path, member)


def new_mode(text: str, mode: int) -> int:
    """The mode that chmod gives a file: octal such as 640, or symbolic such as u=rw,g+r,o-x."""
    if re.fullmatch("[0-7]{3,4}", text):
        return int(text, 8) & 0o777
    for clause in text.split(","):
        match = re.fullmatch("([ugoa]*)([=+-])([rwx]*)", clause)
        if not match:
            raise Failure("invalid mode", text)
        who = match[1].replace("a", "ugo") or "ugo"
        digit = sum({"r": 4, "w": 2, "x": 1}[letter] for letter in set(match[3]))
        bits = sum(digit << {"u": 6, "g": 3, "o": 0}[each] for each in set(who))
        everything = sum(7 << {"u": 6, "g": 3, "o": 0}[each] for each in set(who))
        mode = mode & ~bits if match[2] == "-" else (mode & ~everything if match[2] == "=" else mode) | bits
    return mode
