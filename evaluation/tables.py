"""Records as markdown."""

from record.page import printable

DETAILS = {  # name in `statistics.details` -> title
    "turns": "turns",
    "reply_tokens": "tokens of the replies",
    "thought_tokens": "tokens of reasoning",
    "read_tokens": "tokens read",
    "cost": "cost",
    "broken_task": "broken format",
    "hint_tokens": "tokens of the hint update",
    "hint_words": "words of the hint",
    "hint_kept": "lines kept from the hint before",
}


def markdown(header: list[str], rows: list[list[str]]) -> str:
    """A table whose columns are aligned, so that it reads well as it is, too."""
    cells = [[printable(text).replace("|", "\\|") for text in row] for row in [header, *rows]]
    widths = [max(len(row[k]) for row in cells) for k in range(len(header))]
    lines = [
        "| " + " | ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)) + " |" for row in cells
    ]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])


def with_interval(record: dict, key: str, k: int) -> str:
    mean, low, high = (round(record[name][k], 2) + 0.0 for name in (key, f"{key}_low", f"{key}_high"))  # no -0.00
    return f"{mean:.2f} [{low:.2f}, {high:.2f}]" if record["packs"] > 1 else f"{mean:.2f}"  # one pack has none


def positions(records: list[dict]) -> str:
    """Success by position with 95 % intervals, a row for each record, and the gap."""
    size = len(records[0]["success"])
    header = ["success", *(f"position {j}" for j in range(size)), *(["gap"] if size > 1 else [])]
    rows = []
    for record in records:
        cells = [with_interval(record, "success", j) for j in range(size)]
        rows.append([record["label"], *cells, *([with_interval(record, "gap", 0)] if size > 1 else [])])
    return markdown(header, rows)


def signed(each: dict, k: int) -> str:
    """A difference with its interval if it has one, bold if that leaves out 0."""
    low, high = each["difference_low"][k], each["difference_high"][k]
    if low is None:
        return f"{each['difference'][k]:+.2f}"
    text = f"{each['difference'][k]:+.2f} [{low:+.2f}, {high:+.2f}]"
    return f"**{text}**" if low > 0 or high < 0 else text


def differences(found: list[dict]) -> str:
    """Paired differences by position and in the mean."""
    size = len(found[0]["difference"]) - 1
    rows = [[each["label"], *(signed(each, k) for k in range(size + 1))] for each in found]
    return markdown(["difference", *(f"position {j}" for j in range(size)), "mean"], rows)


def details(records: list[dict]) -> str:
    """Turns, tokens and hints by position; what belongs to a hint stands at the task that it was given to."""
    size = len(records[0]["success"])
    rows = []
    for record in records:
        grades = [name for name in record["details"] if name.startswith("grade_")]
        for name, title in (DETAILS | {name: f"hint: {name.removeprefix('grade_')}" for name in grades}).items():
            values = record["details"][name]
            if any(values):
                cells = ["" if value is None else f"{value:.3g}" for value in values]
                rows.append([record["label"], title, *[""] * (size - len(cells)), *cells])
    return markdown(["", "mean of", *(f"position {j}" for j in range(size))], rows)


def overview(settings: list[dict]) -> str:
    """A row for each policy and context in each setting: first and last position, the mean over all, and its paired
    difference to the first policy."""
    rows = []
    for setting in settings:
        differences = {each["label"]: each for each in setting["differences"]}
        for record in setting["records"]:
            first = next(r for r in setting["records"] if r["context"] == record["context"])
            difference = differences.get(f"{record['label']} - {first['label']}")
            success = record["success"]
            row = [setting["title"], record["label"], str(record["packs"]), with_interval(record, "success", 0)]
            row += [with_interval(record, "success", -1), f"{sum(success) / len(success):.2f}"]
            rows.append([*row, signed(difference, -1) if difference else ""])
    header = ["setting", "policy", "packs", "first position", "last position", "mean", "mean, minus the first policy's"]
    return markdown(header, rows)


def formats(records: list[dict]) -> str:
    """Replies that could not be read, and those that were cut, a line for each record."""
    lines = [
        f"{record['label']}: broken format {record['broken_format']:.2%}, truncated replies {record['truncated']:.2%}"
        for record in records
    ]
    return "\n".join(lines)
