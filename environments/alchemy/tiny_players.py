"""How the conversations of Alchemy's tiny levels are read by the players of hidden tables."""

import re
from functools import partial

from environments.alchemy.tiny import all_pairs
from environments.tables import Demonstrator, Table, TableInformed, TableLearner, TableRandom, entries, told

PAIR = r"[a-z]+ \+ [a-z]+"


def read_tiny_alchemy(messages: list[dict]) -> Table:
    text = told(messages)
    target = re.findall(r"^Turn [0-9] of [0-9]\. Make ([a-z]+): that is the target\.$", text, re.MULTILINE)[-1]
    elements, products = re.search(r"^The elements are (.+)\. The products are (.+)\.$", text, re.MULTILINE).groups()
    pairs = all_pairs(elements.split(", "))
    options = dict.fromkeys(products.split(", "), pairs)
    known = entries(text, options) | dict(re.findall(rf"^You made ([a-z]+): ({PAIR})\.$", text, re.MULTILINE))
    dead = re.findall(rf"^(?:Nothing comes of|- nothing:) ({PAIR})\.?$", text, re.MULTILINE)
    return Table(options, known, frozenset(dead), (target,), "{}")


TinyRandom = partial(TableRandom, read_tiny_alchemy)
TinyInformed = partial(TableInformed, read_tiny_alchemy)
TinyLearner = partial(TableLearner, read_tiny_alchemy, "nothing", False)
TinyDemonstrator = partial(Demonstrator, read_tiny_alchemy)
