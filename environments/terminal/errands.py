"""What there is to do in Terminal: errands with files, and the state of the machines in which one is done."""

import posixpath
import random
from dataclasses import dataclass, replace

from environments.terminal.filesystem import FOLDER, Machine, Node
from environments.terminal.machines import Files, Setup

FOLDERS = (
    "archive configs data docs drafts exports letters logs music notes photos plans reports scripts shared".split()
)
STEMS = (
    "agenda backlog budget chapter contract invoice journal minutes offer payroll recipe results sales summary".split()
)
ENDINGS = "txt md csv log json html".split()
VARIANTS = ("", "-old", "-draft", "-2023", "-2024", "-final", "_copy")
NEW_NAMES = "2025 april august backups inbox incoming-mail june later march october spring team week7".split()
MODES = (0o400, 0o440, 0o444, 0o600, 0o640, 0o660, 0o664, 0o700, 0o750, 0o755)

PLACES = {"local": "this computer", "remote": "the host"}
ONE_PLACE = {  # single errands that are done on either machine
    "rename": "On {place}, rename {src} to {dst}.",
    "move": "On {place}, move {src} to {dst}.",
    "copy": "On {place}, copy {src} to {dst}.",
    "delete": "On {place}, delete {src}.",
    "chmod": "On {place}, set the permissions of {src} to {mode}.",
    "pack": "On {place}, pack the folder {src} into the archive {dst}.tar.gz or {dst}.zip.",
    "mkdir": "On {place}, create the folder {dst}, of which the first part is there already.",
}
SINGLE = ONE_PLACE | {
    "upload": "Upload {src} of this computer to the host as {dst}.",
    "download": "Download {src} of the host to this computer as {dst}.",
}
COMPOSITE = {
    "pack+upload": "Pack the folder {src} of this computer and upload the archive to the host "
    "as {dst}.tar.gz or {dst}.zip.",
    "download+extract": "Download the archive {src} of the host and extract it into the folder {dst} of this computer.",
    "mkdir+upload": "Create the folder {dst} on the host, of which the first part is there already, "
    "and upload {src} of this computer into it.",
    "upload+chmod": "Upload {src} of this computer to the host as {dst} and set its permissions there to {mode}.",
    "upload+delete": "Upload {src} of this computer to the host as {dst}, then delete it on this computer.",
    "pack+upload+extract": "Pack the folder {src} of this computer, upload the archive to the host "
    "and extract it there, so that the folder {src} is in {dst}.",
    "download+rename": "Download {src} of the host to this computer and give it the name {dst}.",
    "backup+replace": "On the host, keep a copy of {dst} as {dst}.bak, then replace {dst} by {src} of this computer.",
}
ERRANDS = SINGLE | COMPOSITE


@dataclass(frozen=True)
class Errand:
    """What a task asks for. Paths are relative to the home folder of the machine that they are on, with "/"."""

    kind: str  # a key of ERRANDS
    here: str  # the machine of `src`, "local" or "remote"
    there: str  # and that of `dst`
    src: str
    dst: str
    mode: int  # permissions, where the kind is about them

    def text(self, system: str) -> str:
        """The errand in words, with paths as the machines write them."""

        def path(place: str, path: str) -> str:
            return path.replace("/", "\\") if system == "windows" and place == "local" else path

        mode = f"{self.mode:o} ({Node(mode=self.mode).permissions})"
        src, dst = path(self.here, self.src), path(self.there, self.dst)
        return ERRANDS[self.kind].format(place=PLACES[self.there], src=src, dst=dst, mode=mode)


def draw_files(rng: random.Random) -> Files:
    """Four folders with three files each, whose names are easily mixed up. All contents differ."""
    files = {}
    codes = iter(rng.sample(range(10_000, 100_000), 12))
    for folder in rng.sample(FOLDERS, 4):
        stem, ending = rng.choice(STEMS), rng.choice(ENDINGS)
        for variant in rng.sample(VARIANTS, 3):
            files[f"{folder}/{stem}{variant}.{ending}"] = Node(f"{stem} {next(codes)}")
    return files


def draw_errand(rng: random.Random, kind: str, setup: Setup, files: dict[str, Files]) -> Errand:
    """An errand of a kind. An archive that it needs is put into `files`.

    Errands of ONE_PLACE are on the host two times in three, where most quirks are.
    """
    here, there = ("remote", "local") if kind.startswith("download") else ("local", "remote")
    if kind in ONE_PLACE:
        here = there = rng.choice(["local", "remote", "remote"])
        if kind == "chmod" and setup.system == "windows":
            here = there = "remote"
    src = rng.choice(sorted(files[here]))
    folder, name = posixpath.split(src)
    other = rng.choice(sorted({posixpath.dirname(path) for path in files[there]} - {folder}))
    stem, ending = posixpath.splitext(name)
    changed = f"{stem}-{rng.choice(['new', 'v2', 'b', 'checked'])}{ending}"
    same = changed if f"{other}/{name}" in files[there] else name
    new = rng.sample(NEW_NAMES, 2)
    match kind:
        case "rename":
            dst = f"{folder}/{changed}"
        case "copy" | "download+rename":
            dst = f"{other}/{changed}"
        case "pack" | "pack+upload":
            src, dst = folder, f"{other}/{folder}-{new[0]}"
        case "pack+upload+extract":
            src, dst = folder, other
        case "download+extract":
            form = "zip" if "zip" in setup.quirks else rng.choice(["tar", "zip"])
            members = tuple((f"{new[0]}/{i}{ending}", Node(f"{stem} part {i}")) for i in (1, 2))
            src, dst = f"{folder}/{new[0]}.{'tar.gz' if form == 'tar' else 'zip'}", other
            files["remote"][src] = Node(form, members=members)
        case "mkdir" | "mkdir+upload":
            src = src if kind == "mkdir+upload" else ""
            dst = f"{other}/{new[0]}/{new[1]}"
        case "delete" | "chmod":
            dst = ""
        case "backup+replace":
            dst = rng.choice(sorted(files["remote"]))
        case _:
            dst = f"{other}/{same}"
    return Errand(kind, here, there, src, dst, rng.choice(MODES) if "chmod" in kind else 0)


@dataclass(frozen=True)
class Goal:
    """The state in which an errand is done; all other files are as they were."""

    nodes: dict[tuple[str, str], Node | None]  # (machine, path): what must be there; None: nothing
    archive: tuple[str, str] | None = None  # (machine, path without its ending) of an archive that must be there
    packed: tuple[tuple[str, Node], ...] = ()  # what must be in it, (name, file), in whatever folder

    def reached(self, machines: dict[str, Machine], homes: dict[str, str]) -> bool:
        if any(machines[at].nodes.get(f"{homes[at]}/{path}") != node for (at, path), node in self.nodes.items()):
            return False
        if self.archive is None:
            return True
        at, path = self.archive
        found = [machines[at].nodes.get(f"{homes[at]}/{path}{ending}") for ending in (".tar.gz", ".zip")]
        return any(archive is not None and self.complete(archive) for archive in found)

    def complete(self, archive: Node) -> bool:
        return all(
            any(node == wanted and f"/{path}".endswith(f"/{name}") for path, node in archive.members)
            for name, wanted in self.packed
        )


def goal_of(errand: Errand, files: dict[str, Files]) -> Goal:
    """What the machines must hold in the end; `files` are what they hold at first."""
    nodes: dict[tuple[str, str], Node | None]
    nodes = {(place, path): node for place in files for path, node in files[place].items()}
    src, dst, mode = (errand.here, errand.src), (errand.there, errand.dst), errand.mode
    inside = {path: node for path, node in files[errand.here].items() if path.startswith(errand.src + "/")}
    match errand.kind:
        case "rename" | "move" | "upload+delete":
            nodes[dst], nodes[src] = nodes[src], None
        case "copy" | "upload" | "download" | "download+rename":
            nodes[dst] = nodes[src]
        case "delete":
            nodes[src] = None
        case "chmod":
            nodes[src] = replace(nodes[src], mode=mode)
        case "upload+chmod":
            nodes[dst] = replace(nodes[src], mode=mode)
        case "backup+replace":
            nodes[errand.there, errand.dst + ".bak"], nodes[dst] = nodes[dst], nodes[src]
        case "mkdir":
            nodes[dst] = FOLDER
        case "mkdir+upload":
            nodes[dst] = FOLDER
            nodes[errand.there, f"{errand.dst}/{posixpath.basename(errand.src)}"] = nodes[src]
        case "download+extract":
            nodes |= {(errand.there, f"{errand.dst}/{name}"): node for name, node in nodes[src].members}
        case "pack" | "pack+upload":
            return Goal(nodes, dst, tuple((posixpath.basename(path), node) for path, node in inside.items()))
        case "pack+upload+extract":
            nodes |= {(errand.there, f"{errand.dst}/{path}"): node for path, node in inside.items()}
    return Goal(nodes)
