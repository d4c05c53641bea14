"""What costs a GridNav hint states.

Read are single cells ("row 3, column 4: 17", "row 3, column 4 costs 17", "cost 17 at row 3, column 4") and rows of the
map, as the task draws them or as the learner writes them ("- row 3 from column 2: 17 ?? 20"). A cost that is not exact
("about 20", "cheap"), or of several cells at once, cannot be told right from wrong and is not read.
"""

import re

from environments.task import Cell, plain

NUMBER = "([0-9]{1,3})"
CELL = rf"\brow {NUMBER} ?,? ?(?:and )?col(?:umn)? {NUMBER}\b"
ENDS = r"(?! ?[0-9%]|\.[0-9])(?= ?$| ?[,;.)\]}|]| and\b)"  # so that "row 1, column 2 is 3 moves away" is none
COST = r" ?\)? ?(?:[:=|]|->|→)? ?(?:(?:is|was|has|had|costs?|a|the|of)\b ?[:=]? ?){0,4}"
COST_BEHIND = re.compile(rf"{CELL}{COST}{NUMBER}{ENDS}", re.MULTILINE)
COST_BEFORE = re.compile(rf"\bcosts?(?: of| is)? ?[:=]? ?{NUMBER} (?:at|in|for|on) {CELL}")
COSTS = r"([0-9?]{1,3}(?: [0-9?]{1,3})%s) ?$"
WHOLE_ROW = re.compile(rf"^[-* ]*(?:row )?{NUMBER}: ?{COSTS % '+'}", re.MULTILINE)
PART_OF_ROW = re.compile(rf"^[-* ]*row {NUMBER} from column {NUMBER}: ?{COSTS % '*'}", re.MULTILINE)


def stated_costs(hint: str) -> dict[Cell, set[int]]:
    """cell -> the costs that the hint states for it; several are a contradiction."""
    text = re.sub(r"[^\S\n]+", " ", plain(hint))
    stated: dict[Cell, set[int]] = {}

    def add(row: int, column: int, cost: int) -> None:
        stated.setdefault((row - 1, column - 1), set()).add(cost)

    for row, column, cost in COST_BEHIND.findall(text):
        add(int(row), int(column), int(cost))
    for cost, row, column in COST_BEFORE.findall(text):
        add(int(row), int(column), int(cost))
    rows = [(row, "1", costs) for row, costs in WHOLE_ROW.findall(text)] + PART_OF_ROW.findall(text)
    for row, first, costs in rows:
        for column, cost in enumerate(costs.split(), start=int(first)):
            if cost.isdigit():
                add(int(row), column, int(cost))
    return stated


def grade_costs(hint: str, costs: tuple[tuple[int, ...], ...]) -> dict[str, float]:
    """The number of cells whose cost is "stated", and the share of them that is "right", left out if there are none.
    Cells that are not on the grid count."""
    stated, side = stated_costs(hint), range(len(costs))
    right = sum(r in side and c in side and said == {costs[r][c]} for (r, c), said in stated.items())
    return {"stated": float(len(stated))} | ({"right": right / len(stated)} if stated else {})
