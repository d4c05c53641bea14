"""The two machines of a task, a local one and a Linux host, and the peculiarities ("quirks") of their setup."""

import posixpath
import random
from collections.abc import Iterable
from dataclasses import dataclass

from environments.terminal.filesystem import FOLDER, Machine, Node

SYSTEMS = {"linux": "Linux", "macos": "macOS", "windows": "Windows"}
LOCAL_HOMES = {"linux": "/home/", "macos": "/Users/", "windows": "/Users/"}  # each with the user's name behind it
USERS = "ann ben carla dev eva finn gita hugo ines jonas kim lena mia noor omar paula".split()
HOSTS = "atlas birch cedar delta ember falcon granite harbor iris juniper".split()
DOMAINS = "example.org example.net lab.example.com office.example.com".split()
LOGINS = "deploy ops service www backup".split()
HOMES = "/data/home /srv/users /mnt/people /export/home".split()

# Quirks by family; a pack has two of the first, one of the second and at most one of the third.
QUIRKS = {
    "login": (
        "user",  # the host lets in another user than the local one
        "alias",  # the host answers to another name, which stands in ~/.ssh/config
        "home",  # the home folder on the host is not in /home, and logins start in /
    ),
    "host": (
        "rsync",  # there is no scp, but rsync
        "incoming",  # uploads must go to /incoming
        "sudo",  # commands that change files on the host need sudo
    ),
    "tool": (  # on both machines
        "zip",  # there is no tar, but zip and unzip
        "trash",  # rm (del) is disabled, but there is trash
        "force",  # rm (del) removes nothing without -f (/Q)
        "levels",  # mkdir has no -p and makes one level at a time
        "symbolic",  # chmod takes symbolic modes only
    ),
}

UPLOADS = "/incoming"  # where uploads must go, under the quirk of that name

Files = dict[str, Node]  # by path relative to the home folder


@dataclass(frozen=True)
class Setup:
    """How the two machines are set up. Names of peculiarities that the shell knows are in `quirks`."""

    system: str  # of the local machine: "linux", "macos" or "windows"
    user: str  # of the local machine
    host: str  # the name of the host that the user is told
    name: str  # the name that it answers to
    login: str  # the user that it lets in
    home: str  # that user's home folder on it
    quirks: frozenset[str]

    def peculiarities(self) -> dict[str, str]:
        """quirk -> the name or path that one needs to know about it, "" where its name says it all."""
        values = {"user": self.login, "alias": self.name, "home": self.home}
        return {quirk: values.get(quirk, "") for quirk in self.quirks}


def draw_setup(rng: random.Random, with_quirks: bool) -> Setup:
    """Two machines; see QUIRKS."""
    quirks = []
    if with_quirks:
        tools = rng.sample(QUIRKS["tool"], rng.randint(0, 1))
        quirks = rng.sample(QUIRKS["login"], 2) + rng.sample(QUIRKS["host"], 1) + tools
    user, short = rng.choice(USERS), rng.choice(HOSTS)
    host = f"{short}.{rng.choice(DOMAINS)}"
    alias, login, homes = f"{short}-{rng.randint(2, 9)}", rng.choice(LOGINS), rng.choice(HOMES)
    return make_setup(rng.choice(sorted(SYSTEMS)), user, host, alias, login, homes, quirks)


def make_setup(
    system: str, user: str, host: str, alias: str, login: str, homes: str, quirks: Iterable[str] = ()
) -> Setup:
    """A setup in which what only a quirk would change is as usual."""
    login = login if "user" in quirks else user
    home = f"{homes if 'home' in quirks else '/home'}/{login}"
    return Setup(system, user, host, alias if "alias" in quirks else host, login, home, frozenset(quirks))


def make_machine(system: str, login_home: str, home: str, files: Files, uploads: Iterable[str] = ()) -> Machine:
    """A machine with these files in `home`; only there, in /tmp and in `uploads` can anything be changed."""
    machine = Machine(system, login_home, {"/": FOLDER}, writable=("",))  # everywhere, while it is made
    for folder in (posixpath.dirname(login_home), home, "/tmp", *uploads):
        machine.make_folders(folder)
    for path, node in files.items():
        machine.make_folders(posixpath.dirname(f"{home}/{path}"))
        machine.put(f"{home}/{path}", node)
    machine.writable = (home, "/tmp", *uploads)
    return machine
