"""filesystem.py and shell.py: sessions written by hand, and that no command line breaks out of the two machines."""

import contextlib
import os
import posixpath
import sys

import pytest
from conftest import cpu_seconds
from hypothesis import given, settings
from hypothesis import strategies as st

from environments.terminal.commands import new_mode
from environments.terminal.filesystem import FOLDER, MAX_NODES, Failure, Machine, Node
from environments.terminal.machines import Setup
from environments.terminal.shell import CMD, MAX_LINE, POSIX, Shell, parse, printable

HOMES = {"linux": "/home/ann", "macos": "/Users/ann", "windows": "/Users/ann"}


def machine(system, home, **files):
    """A machine with a.txt ("alpha") and docs/b.txt ("beta") in the home folder."""
    nodes = {"/": FOLDER, "/etc": FOLDER, "/etc/motd": Node("welcome")}
    for path in (posixpath.dirname(home), home, home + "/docs"):
        nodes[path] = FOLDER
    nodes |= {home + "/a.txt": Node("alpha"), home + "/docs/b.txt": Node("beta")}
    return Machine(system, home, nodes, (home,))


def shell(system="linux", quirks=(), **setup):
    values = dict(user="ann", host="box", name="box", login="ann", home="/home/ann") | setup
    remote = machine("linux", values["home"])
    remote.home = f"/home/{values['login']}"
    if "incoming" in quirks:
        remote.nodes["/incoming"] = FOLDER
        remote.writable += ("/incoming",)
    return Shell(
        machine(system, HOMES[system]), Setup(system, quirks=frozenset(quirks), **values), lambda: False, remote
    )


def say(session, line):
    """What a command line prints, without the notes that count commands."""
    session.output.clear()
    session.run(line)
    return "\n".join(text for text in session.output if not text.startswith("[command"))


def check(session, script):
    """Run "$ line" / expected output pairs."""
    for part in script.strip().split("$ ")[1:]:
        line, _, want = part.partition("\n")
        assert say(session, line.rstrip()) == want.rstrip("\n").replace("<nothing>", ""), line


POSIX_SESSION = r"""
$ ls
a.txt  docs/
$ pwd
{home}
$ cat a.txt docs/b.txt
alpha
beta
$ cat ./docs/../docs//b.txt
beta
$ cat ~/a.txt {home}/a.txt
alpha
alpha
$ cat nope
cat: {home}/nope: No such file or directory
$ cat docs
cat: docs: Is a directory
$ cat
cat: wrong number of operands
$ cd docs && pwd
{home}/docs
$ cat ../a.txt
alpha
$ cd ../../../../.. && pwd
/
$ cd etc; cat motd
welcome
$ cd a
cd: /etc/a: No such file or directory
$ cd motd
cd: motd: Not a directory
$ cd && ls -l
-rw-r--r-- a.txt
drwxr-xr-x docs/
$ cp a.txt c.txt && cat c.txt
alpha
$ cp a.txt docs && ls docs
a.txt  b.txt
$ cp docs/b.txt a.txt && cat a.txt c.txt
beta
alpha
$ cp docs more
cp: docs: omitting directory (no -r)
$ cp -r docs more && ls more
a.txt  b.txt
$ cp -r docs more && ls -R more
a.txt  b.txt  docs/  docs/a.txt  docs/b.txt
$ cp -r docs docs/inside
cp: {home}/docs: source and target are the same, or one is inside the other
$ cp a.txt a.txt
cp: {home}/a.txt: source and target are the same, or one is inside the other
$ cp a.txt nowhere/
cp: nowhere/: Not a directory
$ cp a.txt nowhere/x
cp: {home}/nowhere/x: No such file or directory
$ cp a.txt c.txt/x
cp: {home}/c.txt/x: Not a directory
$ cp -r docs c.txt
cp: {home}/c.txt: Not a directory
$ mv c.txt d.txt && ls
a.txt  d.txt  docs/  more/
$ mv d.txt more && mv more docs && ls -R docs
a.txt  b.txt  more/  more/a.txt  more/b.txt  more/d.txt  more/docs/  more/docs/a.txt  more/docs/b.txt
$ mv docs docs/more/docs/x
mv: {home}/docs: source and target are the same, or one is inside the other
$ mv nope a
mv: {home}/nope: No such file or directory
$ mkdir x/y
mkdir: {home}/x/y: No such file or directory
$ mkdir -p x/y && mkdir x
mkdir: x: File exists
$ mkdir -p x/y && mv x/y docs && mkdir docs/y/z && mv a.txt docs/y/z/a.txt && ls
docs/  x/
$ mkdir -p docs/y/z/a.txt/b
mkdir: {home}/docs/y/z/a.txt: Not a directory
$ mkdir x/z; mv docs/y/z x
mv: {home}/x/z: Directory not empty
$ rmdir x && rmdir docs
rmdir: x: Directory not empty
$ rm docs/y/z/a.txt docs/nope
rm: {home}/docs/nope: No such file or directory
$ rm docs
rm: docs: Is a directory
$ rm -f docs/nope && rm -rf docs && rmdir x/z && rmdir x && ls -a
<nothing>
$ rm -rf {home}
rm: {home}: Permission denied
$ rm /etc/motd
rm: /etc/motd: Permission denied
$ mv /etc/motd .
mv: /etc/motd: Permission denied
$ cp /etc/motd /etc/issue
cp: /etc/issue: Permission denied
$ cp -r / .
cp: /: Permission denied
$ chmod 600 /etc/motd
chmod: /etc/motd: Permission denied
$ cp /etc/motd . && chmod 600 motd && ls -l
-rw------- motd
$ chmod g=r,o+r motd && ls -l motd
-rw-r--r-- motd
$ chmod 888 motd
chmod: 888: invalid mode
$ chmod +q motd
chmod: +q: invalid mode
$ ls -z
ls: invalid option -- 'z'
$ dir
sh: dir: command not found
"""


@pytest.mark.parametrize("system", ["linux", "macos"])
def test_posix_session(system):
    check(shell(system), POSIX_SESSION.replace("{home}", HOMES[system]))


def test_windows_session():
    check(
        shell("windows"),
        r"""
$ dir
a.txt  docs\
$ cd
C:\Users\ann
$ type a.txt docs\b.txt
alpha
beta
$ type C:\Users\ann\docs\b.txt docs/b.txt ..\ann\a.txt \Users\ann\a.txt
beta
beta
alpha
alpha
$ TYPE DOCS\B.TXT
beta
$ type nope
The system cannot find the file specified.
$ type d:\a.txt
The system cannot find the file specified.
$ type docs
Access is denied.
$ cd docs && cd
C:\Users\ann\docs
$ cd ..\..\..\.. && cd && cd /d c:\users\ANN && cd
C:\
C:\Users\ann
$ copy a.txt docs && dir docs
a.txt  b.txt
$ copy a.txt
The syntax of the command is incorrect.
$ copy docs more
Access is denied.
$ xcopy docs more /E /I && dir /s more
a.txt  b.txt
$ move more\a.txt c.txt && move c.txt more\ && dir more
b.txt  c.txt
$ ren more\c.txt d.txt && dir more
b.txt  d.txt
$ ren more\d.txt B.TXT
A duplicate file name exists, or the file cannot be found.
$ ren more\d.txt ..\d.txt
The syntax of the command is incorrect.
$ rename more other && dir /s
a.txt  docs\  docs\a.txt  docs\b.txt  other\  other\b.txt  other\d.txt
$ del other\d.txt other\nope
The system cannot find the file specified.
$ del other
Access is denied.
$ rmdir other
The directory is not empty.
$ rd /s /q other && md p\q && dir /s
a.txt  docs\  docs\a.txt  docs\b.txt  p\  p\q\
$ mkdir P
A subdirectory or file of that name already exists.
$ rmdir p\q && rmdir p && dir
a.txt  docs\
$ dir /z
Invalid switch - "z".
$ ls
'ls' is not recognized as an internal or external command.
$ copy a.txt "my file.txt" && type "my file.txt"
alpha
$ type \etc\motd && del \etc\motd
welcome
Access is denied.
$ dir | more
| was unexpected at this time.
$ dir &&
&& was unexpected at this time.
""",
    )


def test_separators_quotes_and_syntax_errors():
    check(
        shell(),
        r"""
$ nope && echo no; echo yes
sh: nope: command not found
yes
$ nope; echo yes && echo also
sh: nope: command not found
yes
also
$ nope && echo no && echo no
sh: nope: command not found
$ echo one;;echo two;
one
two
$ echo 'a && b' "c;  d" e\;f "g"'h'i "" \"
a && b c;  d e;f ghi  "
$ echo 'it\' "a\"b\\c\d"
it\ a"b\c\d
$ echo "open
sh: unexpected EOF while looking for a matching quote
$ echo 'open
sh: unexpected EOF while looking for a matching quote
$ echo a &&
sh: syntax error near unexpected token '&&'
$ && echo a
sh: syntax error near unexpected token '&&'
$ echo a && ; echo b
sh: syntax error near unexpected token '&&'
$ echo a | cat
sh: syntax error near unexpected token '|'
$ echo a > x
sh: syntax error near unexpected token '>'
$ echo $(rm a.txt)
sh: syntax error near unexpected token '('
$ echo * ~ $HOME
* ~ $HOME
""",
    )
    session = shell()
    session.run("cat nope; ls && cat nope")
    assert [text for text in session.output if text[0] == "["] == ["[command 1 of 3 failed]", "[command 3 of 3 failed]"]
    assert say(session, "echo a\necho b") == "a\nb"
    assert say(session, "") == say(session, " ; ") == ""
    assert parse(r"type a\b 'c\d' " '"e\\"', windows=True) == [(";", ["type", r"a\b", r"c\d", "e\\"])]


def test_archives():
    check(
        shell(),
        r"""
$ tar czf d.tar.gz docs a.txt && cat d.tar.gz
(binary data)
$ mkdir x && tar -xzf d.tar.gz -C x && ls -R x
a.txt  docs/  docs/b.txt
$ tar -c -z -f e.tgz -C docs . && tar xf e.tgz && ls
a.txt  b.txt  d.tar.gz  docs/  e.tgz  x/
$ cd x && tar czf up.tgz ../docs /etc/motd && tar xzf up.tgz && ls -R
a.txt  docs/  docs/b.txt  etc/  etc/motd  up.tgz
$ cd ..; unzip d.tar.gz
unzip: d.tar.gz: not a zip archive
$ zip -r d docs && unzip d.zip -d y/z && ls -R y
z/  z/docs/  z/docs/b.txt
$ zip flat.zip docs && unzip -q flat.zip -d w && ls -R w
docs/
$ tar xzf d.zip
tar: d.zip: not a tar archive
$ tar xzf a.txt
tar: a.txt: not a tar archive
$ tar xzf nope
tar: /home/ann/nope: No such file or directory
$ tar czf x.tgz nope
tar: /home/ann/nope: No such file or directory
$ tar czf x.tgz
tar: nothing to put into the archive
$ tar czf
tar: use -czf ARCHIVE NAMES or -xzf ARCHIVE, and -C FOLDER if need be
$ tar qf x a.txt
tar: use -czf ARCHIVE NAMES or -xzf ARCHIVE, and -C FOLDER if need be
$ unzip
unzip: wrong number of operands
$ unzip d.zip -d
unzip: use unzip ARCHIVE [-d FOLDER]
""",
    )
    check(
        shell("windows"),
        r"""
$ tar czf d.tgz docs C:\Users\ann\a.txt && mkdir x && tar xzf d.tgz -C x && dir /s x
Users\  Users\ann\  Users\ann\a.txt  docs\  docs\b.txt
$ zip -r d.zip docs\b.txt && unzip d.zip -d z && type z\docs\b.txt
beta
""",
    )


def test_extracted_files_replace_those_of_the_same_name_and_archives_are_snapshots():
    session = shell()
    assert (
        say(session, "tar czf t.tgz a.txt && cp docs/b.txt a.txt && cat a.txt && tar xzf t.tgz && cat a.txt")
        == "beta\nalpha"
    )


def test_the_host():
    session = shell()
    check(
        session,
        r"""
$ ssh box pwd
/home/ann
$ ssh ann@box "cd docs && pwd; cat b.txt"
/home/ann/docs
beta
$ ssh box cat a.txt && pwd
alpha
/home/ann
$ ssh box "cat nope" && echo no
cat: /home/ann/nope: No such file or directory
$ ssh box 'cat "a.txt'
sh: unexpected EOF while looking for a matching quote
$ ssh box rm -f a.txt; ssh box ls; ls
docs/
a.txt  docs/
$ scp a.txt box: && scp a.txt ann@box:docs/c.txt && scp a.txt box:/home/ann/docs && ssh box ls -R
a.txt  docs/  docs/a.txt  docs/b.txt  docs/c.txt
$ scp box:docs .
scp: docs: omitting directory (no -r)
$ scp -r box:docs back && ls back && scp box:~/docs/c.txt . && ls
a.txt  b.txt  c.txt
a.txt  back/  c.txt  docs/
$ rsync -avz back box: && ssh box ls back
a.txt  b.txt  c.txt
$ scp a.txt copy.txt && cat copy.txt
alpha
$ scp box:a.txt box:b.txt
scp: source and target cannot both be on the host
$ scp a.txt box:/etc/
scp: /etc/a.txt: Permission denied
$ scp a.txt box:nowhere/a.txt
scp: /home/ann/nowhere/a.txt: No such file or directory
$ scp box:nope .
scp: /home/ann/nope: No such file or directory
$ ssh bob@box ls
ssh: Permission denied (publickey).
$ scp a.txt fox:
scp: Could not resolve hostname fox: Name or service not known
$ ssh box
ssh: no terminal for a session on the host; give the command to run there
$ ssh -p 22 box ls
ssh: -p: this ssh takes no options
$ ssh box ssh box ls
sh: ssh: command not found
$ ssh box sudo ls && sudo ls
a.txt  back/  docs/
a.txt  back/  c.txt  copy.txt  docs/
""",
    )
    windows = shell("windows")
    check(
        windows,
        r"""
$ scp docs\b.txt box:new.txt && ssh box "cat new.txt && dir"
beta
sh: dir: command not found
$ scp C:\Users\ann\a.txt box:docs/ && scp box:docs/a.txt docs\x.txt && type docs\x.txt
alpha
""",
    )


QUIRKS = {
    "user": r"""
$ ssh box pwd
ssh: Please log in as the user "ops" rather than the user "ann".
$ ssh ops@box pwd
/home/ops
""",
    "alias": r"""
$ scp a.txt box:
scp: Could not resolve hostname box: Name or service not known
$ scp a.txt box-2:x && ssh box-2 cat x
alpha
""",
    "home": r"""
$ ssh box pwd
Could not chdir to home directory /home/ann: No such file or directory
/
$ scp a.txt box:
Could not chdir to home directory /home/ann: No such file or directory
scp: /a.txt: Permission denied
$ ssh box ls ~
Could not chdir to home directory /home/ann: No such file or directory
ls: /home/ann: No such file or directory
$ scp a.txt box:/data/ann/x
Could not chdir to home directory /home/ann: No such file or directory
""",
    "rsync": r"""
$ scp a.txt box:x
sh: scp: command not found
$ rsync a.txt box:x && ssh box cat x
alpha
""",
    "incoming": r"""
$ scp a.txt box:x
scp: /home/ann/x: Permission denied (uploads are accepted in /incoming only)
$ scp a.txt box:/incoming && ssh box "mv /incoming/a.txt x && cat x && ls /incoming"
alpha
<nothing>
$ scp box:x y && cat y
alpha
""",
    "sudo": r"""
$ ssh box mkdir x
mkdir: Permission denied (changes on this host need sudo)
$ ssh box "sudo mkdir x && sudo mv a.txt x && ls x" && mkdir x
a.txt
""",
    "zip": r"""
$ tar czf d.tgz docs
sh: tar: command not found
$ ssh box tar xzf d.tgz
sh: tar: command not found
$ zip -r d.zip docs && unzip d.zip -d x && ls x
docs/
""",
    "trash": r"""
$ rm a.txt
rm: disabled on this machine, use trash instead
$ trash a.txt && ssh box trash a.txt && ls && ssh box ls
docs/
docs/
""",
    "force": r"""
$ rm a.txt
rm: a.txt: remove? Not removed: no terminal to ask on; -f does not ask
$ rm -f a.txt && ssh box rm -f a.txt && ls && ssh box ls
docs/
docs/
""",
    "levels": r"""
$ mkdir -p x/y
mkdir: unrecognized option: p
$ mkdir x/y
mkdir: /home/ann/x/y: No such file or directory
$ mkdir x && mkdir x/y && ls x
y/
""",
    "symbolic": r"""
$ chmod 640 a.txt
chmod: 640: not a symbolic mode (such as u=rw,g=r,o=)
$ chmod u=rw,g=r,o= a.txt && ls -l a.txt
-rw-r----- a.txt
""",
}
CHANGES = {"user": {"login": "ops", "home": "/home/ops"}, "alias": {"name": "box-2"}, "home": {"home": "/data/ann"}}


@pytest.mark.parametrize("quirk", QUIRKS)
def test_quirks(quirk):
    session = shell(quirks=[quirk], **CHANGES.get(quirk, {}))
    session.remote.nodes["/home"] = FOLDER
    check(session, QUIRKS[quirk])


def test_quirks_on_windows():
    check(
        shell("windows", quirks=["force", "zip", "levels", "rsync"]),
        r"""
$ del a.txt
Delete (Y/N)? Not deleted; /Q does not ask.
$ md x\y
The system cannot find the path specified.
$ tar czf d.tgz docs
'tar' is not recognized as an internal or external command.
$ SCP a.txt box:
'scp' is not recognized as an internal or external command.
$ del /Q a.txt && md x && md x\y && dir /s
docs\  docs\b.txt  x\  x\y\
""",
    )
    assert say(shell("windows", quirks=["trash"]), "del a.txt") == "disabled on this machine, use trash instead"


def test_all_octal_modes_and_their_symbolic_form():
    for mode in range(0o1000):
        digits = [f"{mode >> shift & 7:03b}" for shift in (6, 3, 0)]
        letters = ["".join(c for c, bit in zip("rwx", digit, strict=True) if bit == "1") for digit in digits]
        symbolic = ",".join(f"{who}={what}" for who, what in zip("ugo", letters, strict=True))
        assert new_mode(f"{mode:o}".zfill(3), 0o123) == new_mode(symbolic, 0o123) == mode
        text = "".join(c if bit == "1" else "-" for c, bit in zip("rwxrwxrwx", "".join(digits), strict=True))
        assert Node("", mode).permissions == text
    assert new_mode("+x", 0o640) == 0o751 and new_mode("a-w", 0o666) == 0o444 and new_mode("go=", 0o777) == 0o700


def test_a_finished_line_stops():
    session = shell()
    session.finished = lambda: "/home/ann/x" in session.remote.nodes
    assert say(session, 'ssh box "mkdir x; mkdir y"; mkdir z') == ""
    assert "/home/ann/y" not in session.remote.nodes and "/home/ann/z" not in session.machine.nodes


def test_a_full_disk_and_a_long_line():
    session = shell()
    for i in range(12):
        say(session, f"cp -r docs d{i}; cp -r d{i} docs")
    assert len(session.machine.nodes) == MAX_NODES
    assert say(session, "mkdir more").endswith("No space left on device")
    assert say(session, "echo " + "x" * MAX_LINE) == "sh: Argument list too long"
    assert len(say(session, "cat " + "x" * (MAX_LINE - 10))) < 200


def test_printable():
    assert printable("a\tb\nc\x00\x1b[0m\ud800\u202e\u00a0\u0663") == "a b\nc??[0m?? \u0663".replace("??[", "??[")


# ---------------------------------------------------------------------------------------------------------
# Hostile command lines

NAMES = [
    "a.txt",
    "docs",
    "docs/b.txt",
    "new",
    "d.tgz",
    "d.zip",
    "..",
    "../../..",
    "/",
    "/etc/motd",
    "~",
    "box:",
    "box:docs",
]
NAMES += [
    "box:/etc/passwd",
    "/etc/passwd",
    "C:\\",
    "\\",
    ":",
    "@",
    "-r",
    "-rf",
    "-",
    "--",
    "/s",
    "/q",
    "-C",
    "-d",
    "*",
    "",
]
NAMES += [
    "$(touch x)",
    "`x`",
    "${HOME}",
    "%PATH%",
    "\x00",
    "\ud800",
    "\u0663",
    "\u202e",
    "a" * 300,
    "a/" * 200,
    "'",
    '"',
    "\\",
]
NAMES += ["640", "u+x", "czf", "xzf", "###", "<|im_end|>", "10**10**10", "((((((", "\n", "box", "ann@box", "sudo", "."]
words = st.sampled_from(sorted(POSIX | CMD) + NAMES) | st.text(max_size=4)
lines = st.lists(words | st.sampled_from(["&&", ";", "|"]), max_size=14).map(" ".join) | st.text(max_size=40)


TOUCHING = ("open", "os.", "subprocess.", "socket.", "shutil.", "glob.", "tempfile.", "import", "exec", "compile")
watched = []  # while it holds a list, that list collects how the real computer is touched


def watch(event, args):
    if watched and event.startswith(TOUCHING):
        watched[-1].append(event)


sys.addaudithook(watch)


@contextlib.contextmanager
def real_computer_untouched():
    watched.append([])
    try:
        yield
    finally:
        events = watched.pop()
    assert not events


def test_the_watch_sees():
    for touch in (lambda: open(os.devnull).close(), lambda: os.listdir("."), lambda: eval("1")):
        with pytest.raises(AssertionError), real_computer_untouched():
            touch()


def sound(at, before):
    """Every file is in a folder; nothing outside the writable folders has changed; the disk is not overfull."""
    for path, node in at.nodes.items():
        assert path == "/" or at.nodes[posixpath.dirname(path)].is_folder
        assert posixpath.normpath(path) == path and isinstance(node, Node)
    roots = tuple(root + "/" for root in at.writable)
    outside = {path: node for path, node in at.nodes.items() if not path.startswith(roots)}
    assert outside == {path: node for path, node in before.items() if not path.startswith(roots)}
    assert len(at.nodes) <= MAX_NODES


QUIRK_SETS = [(), ("force", "sudo"), ("trash", "rsync"), ("zip", "levels"), ("symbolic", "incoming")]


@settings(max_examples=800, deadline=None)
@given(system=st.sampled_from(sorted(HOMES)), quirks=st.sampled_from(QUIRK_SETS), script=st.lists(lines, max_size=5))
def test_any_lines_stay_on_the_machines(system, quirks, script):
    session = shell(system, quirks=quirks)
    local, remote = dict(session.machine.nodes), dict(session.remote.nodes)
    with real_computer_untouched():
        for line in script:
            session.run(printable(line))
    assert all(isinstance(text, str) for text in session.output)
    sound(session.machine, local)
    sound(session.remote, remote)


@settings(max_examples=500, deadline=None)
@given(text=st.text(alphabet="ab '\"\\;&|\n", max_size=20), windows=st.booleans())
def test_any_text_is_parsed_or_refused(text, windows):
    try:
        commands = parse(text, windows)
    except Failure as failure:
        assert failure.text("sh", windows)
    else:
        assert all(joint in ("&&", ";") and words for joint, words in commands)


def test_the_work_that_a_line_can_make_is_bounded():
    def full():
        session = shell()
        for i in range(12):
            say(session, f"cp -r docs d{i}; cp -r d{i} docs")
        return session

    deep = "x/" * 300
    for line in (
        "ls / " * 150,
        "ls -R /;" * 90,
        "tar czf a " + "/ " * 350,
        "mkdir -p " + deep,
        "cat " + deep,
        "mv docs e;mv e docs;" * 38,
        "tar cf t .;tar cf u t;" * 35,
        '"\\"' * 260,
        "echo " + "\\" * 700,
    ):
        assert cpu_seconds(0.1, full, lambda session, line=line: session.run(line[:MAX_LINE])) < 0.1, line[:20]
