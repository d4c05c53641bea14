"""How the conversations of Terminal's tiny levels are read by the players of hidden tables."""

import re
from functools import partial

from environments.tables import Demonstrator, Table, TableInformed, TableLearner, TableRandom, entries, told
from environments.terminal.tiny import FILE, NAMES, NEEDS


def read_tiny_terminal(messages: list[dict]) -> Table:
    text = told(messages)
    errand = re.findall(rf"^({'|'.join(NEEDS)}) {re.escape(FILE)}\.$", text, re.MULTILINE)[-1]
    listed = re.search(r"^The users are (.+)\. The tools are (.+) to copy and (.+) to delete\.$", text, re.MULTILINE)
    options = {key: tuple(names.split(", ")) for key, names in zip(NAMES, listed.groups(), strict=True)}
    known = entries(text, options)
    known |= dict(re.findall(r"^(?:Accepted|Able to) (user|copy|delete): ([a-z]+)\.$", text, re.MULTILINE))
    dead = re.findall(r"^(?:There is no user|There is no tool|- not there:) ([a-z]+)\.?$", text, re.MULTILINE)
    return Table(options, known, frozenset(dead), (NEEDS[errand], "user"), f"{{}} {FILE} {{}}@host")


TinyRandom = partial(TableRandom, read_tiny_terminal)
TinyInformed = partial(TableInformed, read_tiny_terminal)
TinyLearner = partial(TableLearner, read_tiny_terminal, "not there", True)
TinyDemonstrator = partial(Demonstrator, read_tiny_terminal)
