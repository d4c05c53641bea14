"""What an evaluation has found: tables, JSON, pictures and a page, from the games that were played."""

import json
import os
from pathlib import Path

import matplotlib.pyplot as plt
import torch

from evaluation import tables
from evaluation.contexts import OWN, Context
from evaluation.results import Results, writing
from evaluation.statistics import averaged, combination, details, difference, summarise, table_of
from record.files import write_text
from record.page import finite, printable, write_page
from record.pictures import STYLES, draw_positions, drawable, gap_closed

WORDS = {
    "own": "own hints",
    "none": "hints blanked",
    "transcript": "transcripts for hints",
    "shuffled": "hints of another secret",
    "perfect": "the learner's hints",
}


def words_for(context: Context) -> str:
    """What stands in place of hints."""
    if context.kind == "frozen":
        return f"hint after {context.after} task{'s' if context.after > 1 else ''}, kept"
    return WORDS.get(context.name, f"hints of {printable(context.writer)}")


def titled(label: str, context: Context) -> str:
    """How a policy with something in place of its hints is called."""
    return label if context == OWN else f"{label}, {words_for(context)}"


def records_of(setting: str, policies: dict[str, list[str]], contexts: list[Context], results: Results) -> list[dict]:
    """A record for each policy and context of a setting, then for the scripted players that are not among them.

    `policies` are titles with the labels that belong to them: several where the seeds of a run are merged.
    """
    asked = [(title, group, context) for title, group in policies.items() for context in contexts]
    references = [(name, [name], OWN) for name in STYLES if name not in policies]
    records = []
    for title, group, context in asked + references:
        # what a run does with its own hints stands for it where the other seeds read the hints of that run
        merged = len(group) > 1
        names = [OWN.name if merged and context.writer == label else context.name for label in group]
        parts = [results.of((setting, label, name)) for label, name in zip(group, names, strict=True)]
        if not all(parts):  # an environment without this player, or hints of its own
            continue
        runs = [[games[number] for number in sorted(games)] for games in parts]
        games = averaged(runs)
        record = {
            "policy": title,
            "context": context.name,
            "words": words_for(context),
            **summarise(titled(title, context), games),
        }
        if len(runs) > 1:
            means = torch.stack([table_of(run, "success").mean(dim=0) for run in runs])  # [seeds, S]
            record |= {"seeds": len(runs), "deviation": means.std(dim=0).tolist()}
        records.append(record | {"details": details([game for run in runs for game in run]), "games": games})
    return records


def compared(records: list[dict]) -> list[dict]:
    """Paired differences on the same packs: of a policy to the first one, with the same in place of hints; and of what
    stands in place of hints to what was named first, for the same policy."""
    if not records:
        return []
    at = {(r["policy"], r["context"]): r for r in records}
    first_policy, first_context = next(iter(at))
    found = []
    for (policy, context), record in at.items():
        for base in ((first_policy, context), (policy, first_context)):
            if base in at and base != (policy, context):
                label = f"{record['label']} - {at[base]['label']}"
                found.append({"label": label, **difference(at[base]["games"], record["games"])})
    return found


def explained(records: list[dict]) -> list[dict]:
    """How much of the gain of a policy over the first one is play, use of hints and writing of hints: three differences
    that add up to it. For policies played with own hints, none, and those of the first one."""
    at = {(r["policy"], r["context"]): r["games"] for r in records}
    first = records[0]["policy"] if records else ""
    found = []
    for policy in dict.fromkeys(policy for policy, _ in at):
        needed = [(policy, c) for c in ("own", "none", f"from={first}")] + [(first, "own"), (first, "none")]
        if policy != first and all(key in at for key in needed):
            own, none, read, first_own, first_none = (at[key] for key in needed)
            for what, plus, minus in (
                ("plays better without hints", [none], [first_none]),
                (f"uses the hints of {first} better", [read, first_none], [none, first_own]),
                ("writes better hints", [own], [read]),
                ("all together", [own], [first_own]),
            ):
                found.append({"label": f"{policy}: {what}", **combination(plus, minus)})
    return found


def write_report(
    results: Results, settings: list, policies: dict[str, list[str]], contexts: list[Context], about: dict
):
    """Write eval.md, eval.json, eval.png and report.html, then print the tables. `about` are the settings to be shown.
    Raises BadInput if they cannot be written."""
    folder, parts, everything = results.folder, [], []
    for setting in settings:
        records = records_of(setting.name, policies, contexts, results)
        if not records:  # no player that was asked for, and none to compare with
            continue
        own = [record for record in records if record["context"] == "own"]
        asked = [record for record in records if record["policy"] in policies]
        found = {"differences": compared(asked), "explained": explained(asked)}
        everything.append({"title": setting.name, "records": records, **found})
        parts += [f"## {setting.name}", tables.positions(records), gap_closed(own)]
        parts += [tables.differences(each) for each in found.values() if each]
        parts += [tables.formats(asked), tables.details(asked) if asked else ""]
    if len(settings) > 1:
        parts.insert(0, tables.overview(everything))
    text = "\n\n".join(filter(None, parts)) + "\n"
    title = ", ".join(policies)
    page = {"title": title, "settings": about, "packs": kept_packs(settings, policies, contexts, results)}
    page["evaluations"] = [
        {
            "title": each["title"],
            "records": [without_games(record) | record["details"] for record in each["records"]],
            "differences": each["differences"] + each["explained"],
        }
        for each in everything
    ]
    kept = [each | {"records": [without_games(record) for record in each["records"]]} for each in everything]
    saved = json.dumps(finite({"config": about, "settings": kept}), allow_nan=False, indent=1)
    with writing(folder):
        draw(everything, folder / "eval.png", title)
        write_text(folder / "eval.md", f"# {title}\n\n{text}")
        write_page(page, folder / "report.html")
        write_text(folder / "eval.json", saved + "\n")
    where = printable(str(folder))
    print(text if len(settings) == 1 else f"{parts[0]}\n\neach setting by position is in {where}/eval.md\n")
    print(f"written to {where}: eval.json, eval.md, eval.png, report.html")


def without_games(record: dict) -> dict:
    return {name: value for name, value in record.items() if name != "games"}


def kept_packs(settings: list, policies: dict[str, list[str]], contexts: list[Context], results: Results) -> list[dict]:
    """The packs whose conversations were kept, with those of every policy and context as their rollouts."""
    found = []
    for setting in settings:
        labels = [label for group in policies.values() for label in group]
        parts = {(label, c): results.of((setting.name, label, c.name)) for label in labels for c in contexts}
        for number in sorted(
            {number for games in parts.values() for number, game in games.items() if "conversations" in game}
        ):
            rollouts = [
                {"title": titled(label, context), "episodes": games[number]["conversations"]}
                for (label, context), games in parts.items()
                if "conversations" in games.get(number, {})
            ]
            found.append({"title": f"{setting.name}, pack {number}", "rollouts": rollouts})
    return found


def panels(setting: dict) -> list[tuple[str, list[dict]]]:
    """(title, records) of the pictures of a setting: all policies with their own hints (or the first of the contexts),
    beside the scripted players; and, where there are several contexts, each policy with all of them."""
    references = [record for record in setting["records"] if record["policy"] in STYLES]
    asked = [record for record in setting["records"] if record["policy"] not in STYLES] or references
    shown = "own" if any(record["context"] == "own" for record in asked) else asked[0]["context"]
    first = [record for record in asked if record["context"] == shown]
    found = [(setting["title"], first + [record for record in references if record not in first])]
    for policy in dict.fromkeys(record["policy"] for record in asked):
        of_policy = [record | {"label": record["words"]} for record in asked if record["policy"] == policy]
        if len(of_policy) > 1:
            found.append((f"{setting['title']}\n{policy}", of_policy))
    return found


def draw(settings: list[dict], path: Path, title: str) -> None:
    """Success by position, a row of pictures for each setting."""
    rows = [panels(setting) for setting in settings]
    across = max(map(len, rows))
    figure, axes = plt.subplots(len(rows), across, figsize=(5.5 * across, 4.8 * len(rows)), squeeze=False)
    for row, given in zip(axes, rows, strict=True):
        for axis, (name, records) in zip(row, given, strict=False):
            draw_positions(axis, records)
            axis.set_title(drawable(name), fontsize=10)
            axis.grid(alpha=0.3)
            axis.legend(fontsize=8, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.14), frameon=False)
        for axis in row[len(given) :]:
            axis.remove()
    figure.suptitle(drawable(title), fontsize=11)
    figure.tight_layout()
    temporary = path.with_name(f".tmp-{path.name}")
    figure.savefig(temporary, dpi=120)
    os.replace(temporary, path)
    plt.close(figure)
