"""Several runs in one table and one picture, the seeds of the same settings merged.

    python -m record.compare runs/NAME runs/NAME ...            prints a table, writes compare.png
    python -m record.compare runs/*-seed* --picture FILE.png

Runs belong together if their settings differ in nothing but the seed and the names of files. A line is the mean over
the seeds, with the standard deviation between them. What tells the groups apart stands in their names. Runs with the
same settings and the same seed stay apart.
"""

import argparse
import os
import statistics
from pathlib import Path

import matplotlib

from engine.command_line import command_line
from engine.errors import BadInput
from record.files import NOT_COMPARED, Metrics, is_run, read_settings
from record.page import is_number, printable
from record.pictures import STYLES, drawable

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402 (after the choice of backend)

Records = dict[tuple[str, str], dict]  # (environment, label) -> the newest evaluation of a run


def read(folder: Path) -> tuple[dict, object, Records]:
    """(settings of a run, its seed, its evaluations). Raises BadInput for what is no run, and for damaged records."""
    if not is_run(folder):
        raise BadInput(f"{folder}: is not a run folder (no config.json and metrics.jsonl in it)")
    whole = read_settings(folder)
    settings = {name: value for name, value in whole.items() if name not in NOT_COMPARED}
    records: Records = {}
    metrics = Metrics(folder)
    for number, line in enumerate(metrics.read(), start=1):
        if "eval" in line:
            record = line["eval"]
            if not is_record(record):
                raise BadInput(f"{metrics.path}: line {number} holds no evaluation that can be read")
            if record["label"] != "validation":
                records[record["env"], record["label"]] = record
    return settings, whole.get("seed"), records


def is_record(record) -> bool:
    """Whether it has what is compared: names, and finite numbers by position."""
    if not isinstance(record, dict) or not all(isinstance(record.get(name), str) for name in ("env", "label")):
        return False
    lists = [record.get(name) for name in ("success", "gap")]
    return all(isinstance(values, list) and values and all(map(is_number, values)) for values in lists)


def groups(folders: list[Path]) -> list[tuple[str, list[Records]]]:
    """(what is different about them, the evaluations of each run) for the runs of the same settings, in their order.

    Raises BadInput for a run that is named twice: it would count as two seeds.
    """
    places = [folder.resolve() for folder in folders]
    for number, folder in enumerate(folders):
        if places[number] in places[:number]:
            raise BadInput(f"{folder}: is named twice ({places[number]})")
    runs = {folder: read(folder) for folder in folders}
    found: list[tuple[dict, list[Records]]] = []
    for folder, (settings, _, records) in runs.items():
        seeds = [str(other_seed) for others, other_seed, _ in runs.values() if others == settings]
        if len(set(seeds)) < len(seeds):  # a copy is no other seed: each has a line of its own
            settings = settings | {"run": str(folder)}
        for others, evaluations in found:
            if others == settings:
                evaluations.append(records)
                break
        else:
            found.append((settings, [records]))
    names = {name for settings, _ in found for name in settings}
    differing = sorted(n for n in names if any(settings.get(n) != found[0][0].get(n) for settings, _ in found))
    return [(" ".join(f"{n}={s.get(n)}" for n in differing if n != "run" or n in s), runs) for s, runs in found]


def merged(values: list[list[float]]) -> list[tuple[float, float]]:
    """Mean and standard deviation over runs of [runs][S], by position."""
    return [(statistics.mean(at), statistics.stdev(at) if len(at) > 1 else 0.0) for at in zip(*values, strict=True)]


def rows(folders: list[Path]) -> list[dict]:
    """A row for each group of runs, environment and label: name, label, runs, and (mean, deviation) by position and of
    the gap."""
    found = []
    for name, runs in groups(folders):
        for env, label in dict.fromkeys(key for records in runs for key in records):
            records = [of_run[env, label] for of_run in runs if (env, label) in of_run]
            title = printable(", ".join(filter(None, [name, env, label])))
            if len({(len(record["success"]), len(record["gap"])) for record in records}) > 1:
                raise BadInput(f"{title}: these runs have evaluations of different lengths")
            row = {"title": title, "label": label, "runs": len(records)}
            row |= {key: merged([record[key] for record in records]) for key in ("success", "gap")}
            found.append(row)
    return found


def table(found: list[dict]) -> str:
    """Markdown: mean (standard deviation) over seeds."""
    size = max(len(row["success"]) for row in found)
    lines = ["| | runs | " + " | ".join(f"position {j}" for j in range(size)) + " | gap |", "|---" * (size + 3) + "|"]
    for row in found:
        cells = [cell(*numbers, row["runs"]) for numbers in row["success"]]
        cells += [""] * (size - len(cells)) + [cell(*row["gap"][0], row["runs"])]
        title = row["title"].replace("|", "\\|")
        lines.append(f"| {title} | {row['runs']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def cell(mean: float, deviation: float, runs: int) -> str:
    return f"{mean:.3f} ({deviation:.3f})" if runs > 1 else f"{mean:.3f}"


def draw(found: list[dict], path: Path) -> None:
    """Success by position, a line for each row but those of scripted players (unless there are no others), with the
    deviation between its runs."""
    found = [row for row in found if row["label"] not in STYLES] or found
    figure, axis = plt.subplots(figsize=(7, 4.6))
    for number, row in enumerate(found):
        means, deviations = zip(*row["success"], strict=True)
        aside = 0.04 * (number - (len(found) - 1) / 2)
        title = f"{drawable(row['title'])} ({row['runs']} run{'s' if row['runs'] > 1 else ''})"
        axis.errorbar([j + aside for j in range(len(means))], means, deviations, label=title, marker="o", capsize=3)
    axis.set(xlabel="position in the pack", ylabel="success, mean and deviation over seeds", ylim=(-0.03, 1.03))
    axis.set_xticks(range(max(len(row["success"]) for row in found)))
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.14), frameon=False)
    figure.tight_layout()
    temporary = path.with_name(f".tmp-{path.name}")
    figure.savefig(temporary, dpi=120)
    os.replace(temporary, path)
    plt.close(figure)


def check_picture(path: Path) -> None:
    """Raise BadInput unless a picture can be written there."""
    kinds = sorted(plt.figure().canvas.get_supported_filetypes())
    plt.close()
    if path.suffix.lower().removeprefix(".") not in kinds:
        raise BadInput(f"picture={str(path)!r}: must end in one of {', '.join(f'.{kind}' for kind in kinds)}")
    if path.is_dir() or not path.parent.is_dir():
        raise BadInput(f"picture={str(path)!r}: must be a file in a folder that exists")


def main() -> None:
    parser = argparse.ArgumentParser(description="several runs in one table and one picture")
    parser.add_argument("runs", nargs="+", type=Path, help="run folders")
    parser.add_argument("--picture", type=Path, help="where the picture goes; else beside the first run")
    given = parser.parse_args()
    picture = given.picture or given.runs[0].resolve().parent / "compare.png"
    check_picture(picture)
    found = rows(given.runs)
    if not found:
        raise BadInput("these runs have no evaluation yet")
    draw(found, picture)  # first: the reader of the table may leave (head)
    print(table(found))
    print(f"written: {picture}")


if __name__ == "__main__":
    command_line(main)
