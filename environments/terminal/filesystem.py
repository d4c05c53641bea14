"""The files of a simulated machine. They live in a dictionary; no file of the real computer is touched."""

import functools
import posixpath
import re
from dataclasses import dataclass

MAX_NODES = 300  # files and folders on one machine: it bounds what any command can cost
MAX_SHOWN = 60  # characters of a path or word that a message repeats


@dataclass(frozen=True)
class Node:
    """A file or a folder. It is never changed in place, so machines and archives can share it."""

    content: str | None = None  # None: a folder; of an archive "tar" or "zip"
    mode: int = 0o644
    members: tuple[tuple[str, "Node"], ...] = ()  # of an archive: (path in it, node)

    @property
    def is_folder(self) -> bool:
        return self.content is None

    @property
    def permissions(self) -> str:
        """The mode as ls shows it, such as rw-r-----."""
        return letters_of(self.mode)


@functools.cache
def letters_of(mode: int) -> str:
    return "".join(letter if mode >> 8 - i & 1 else "-" for i, letter in enumerate("rwxrwxrwx"))


FOLDER = Node(mode=0o755)

# why a command failed: (what a POSIX command says, what one of cmd says)
MISSING = ("No such file or directory", "The system cannot find the file specified.")
NO_PARENT = ("No such file or directory", "The system cannot find the path specified.")
EXISTS = ("File exists", "A subdirectory or file of that name already exists.")
IS_FOLDER = ("Is a directory", "Access is denied.")
NO_FOLDER = ("Not a directory", "The directory name is invalid.")
NOT_EMPTY = ("Directory not empty", "The directory is not empty.")
DENIED = ("Permission denied", "Access is denied.")
FULL = ("No space left on device", "There is not enough space on the disk.")
SAME = ("source and target are the same, or one is inside the other", "The file cannot be copied onto itself.")
USAGE = ("wrong number of operands", "The syntax of the command is incorrect.")


class Failure(Exception):
    """A command failed; `reason` is a text, or a pair of texts as above."""

    def __init__(self, reason: str | tuple[str, str], path: str = ""):
        self.reasons = (reason, reason) if isinstance(reason, str) else reason
        self.path = path

    def text(self, command: str, cmd: bool) -> str:
        """The message of a POSIX command, or of one of cmd."""
        where = f"{self.path[:MAX_SHOWN]}: " if self.path else ""
        return self.reasons[1] if cmd else f"{command[:MAX_SHOWN]}: {where}{self.reasons[0]}"


@dataclass
class Machine:
    """A machine's files. Paths inside are absolute, normalised, with "/" (on Windows without the drive C:)."""

    system: str  # "linux", "macos" or "windows"
    home: str  # where logins start, if it exists
    nodes: dict[str, Node]  # all files and folders by path
    writable: tuple[str, ...]  # only what is below these folders can be changed
    changes: int = 0  # how often anything was

    def resolve(self, text: str, cwd: str) -> str:
        """The path that a command means by `text`. Only Linux tells upper from lower case."""
        if self.system == "windows":
            text = text.replace("\\", "/")
            if drive := re.match("[A-Za-z]:", text):
                if drive[0].upper() != "C:":
                    raise Failure(MISSING, text)
                text = text[2:]
        if text == "~" or text.startswith("~/"):
            text = self.home + text[1:]
        path = "/" + posixpath.normpath(posixpath.join(cwd, text)).lstrip("/")
        return path if self.system == "linux" else self.spelling(path)

    def spelling(self, path: str) -> str:
        """The path with the upper and lower case that it, or else its folder, was created with."""
        spelled = {known.casefold(): known for known in self.nodes}
        folder, name = posixpath.split(path)
        in_folder = posixpath.join(spelled.get(folder.casefold(), folder), name)
        return spelled.get(path.casefold(), in_folder)

    def show(self, path: str) -> str:
        return "C:" + path.replace("/", "\\") if self.system == "windows" else path

    def get(self, path: str) -> Node:
        if path not in self.nodes:
            raise Failure(MISSING, self.show(path))
        return self.nodes[path]

    def is_folder(self, path: str) -> bool:
        return path in self.nodes and self.nodes[path].is_folder

    def below(self, path: str) -> list[str]:
        """The path itself, if it exists, and all below it; folders come before what they hold, as they were made."""
        inside = path.rstrip("/") + "/"
        return [known for known in self.nodes if known == path or known.startswith(inside)]

    def children(self, path: str) -> list[str]:
        start = len(path.rstrip("/")) + 1
        return sorted(known for known in self.below(path) if known != path and "/" not in known[start:])

    def check_writable(self, path: str) -> None:
        if not any(path.startswith(root + "/") for root in self.writable):
            raise Failure(DENIED, self.show(path))

    def put(self, path: str, node: Node) -> None:
        """Create a file or folder, or replace a file."""
        folder = posixpath.dirname(path)
        if not self.is_folder(folder):
            raise Failure(NO_FOLDER if folder in self.nodes else NO_PARENT, self.show(path))
        self.check_writable(path)
        if path in self.nodes and self.nodes[path].is_folder != node.is_folder:
            raise Failure(IS_FOLDER if self.nodes[path].is_folder else NO_FOLDER, self.show(path))
        if path not in self.nodes and len(self.nodes) >= MAX_NODES:
            raise Failure(FULL, self.show(path))
        self.nodes[path] = node
        self.changes += 1

    def make_folders(self, path: str) -> None:
        """Create a folder with all folders above it; those that exist are fine."""
        names = path.strip("/").split("/")
        for depth in range(1, len(names) + 1):
            folder = "/" + "/".join(names[:depth])
            if not self.is_folder(folder):
                self.put(folder, FOLDER)

    def remove(self, path: str) -> None:
        self.check_writable(path)
        for known in self.below(path):
            del self.nodes[known]
        self.changes += 1


def copy_tree(source: Machine, path: str, target: Machine, to: str) -> None:
    """Copy a file or a folder with all in it; folders that exist are merged, files replaced."""
    node = source.get(path)
    if path == "/":
        raise Failure(DENIED, path)
    if source is target and (to == path or node.is_folder and to.startswith(path + "/")):
        raise Failure(SAME, source.show(path))
    for known in source.below(path):
        target.put(to + known[len(path) :], source.nodes[known])
