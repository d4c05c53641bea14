"""The report: docs/study.md with its pictures, and the matrix for the README, all from the results."""

from pathlib import Path

from benchmarks.laboratory import sections
from benchmarks.laboratory.claims import Claim
from benchmarks.laboratory.pictures import save
from benchmarks.laboratory.plan import Plan
from benchmarks.laboratory.results import Found, Store
from benchmarks.laboratory.sections import Experiment, Section
from benchmarks.laboratory.transfer import ACROSS, matrix
from evaluation.tables import markdown
from record.files import write_text

READING = """\
How to read it: success is the share of tasks that were solved; tables give its mean over seeds and, in brackets, the
standard deviation. Every seed has a training of its own and test packs of its own, the same ones for all policies, so
differences are paired by pack within a seed; their intervals are t intervals over seeds. **Agrees**: the intervals of
all quantities of a claim lie within the range that it expects. **Disagrees**: one of them lies outside. Else it
*cannot be told*, which is also all that one seed can say (its intervals are over packs). The rule is in
`benchmarks/laboratory/claims.py`. At 95 %, one check in forty that expects a sign sees it where there is nothing."""


def write_report(plan: Plan, store: Store) -> Path:
    """The page about all experiments of the plan; returns its path, which is the study's folder with .md at the end."""
    page = store.folder.with_name(store.folder.name + ".md")
    store.folder.mkdir(parents=True, exist_ok=True)
    for stale in [*store.folder.glob("[0-9][0-9]-*.png"), store.folder / "matrix.md"]:  # of results that may be gone
        stale.unlink(missing_ok=True)
    begun = [each for each in plan.experiments if any(job in store for job in plan.of(each))]
    found = {experiment: experiment.section(of(experiment, plan, store)) for experiment in begun}
    written = {experiment: section for experiment, section in found.items() if says_something(section)}
    parts = ["# The study", introduction(plan), READING, "## Claims", claims_table(written)]
    for experiment in plan.experiments:
        parts += [f"## {experiment.number}. {experiment.title}", experiment.question]
        if experiment in written:
            parts += section_of(experiment, written[experiment], store)
        parts.append(missing(experiment, plan, store))
    write_text(page, "\n\n".join(filter(None, parts)) + "\n")
    if ACROSS in begun:
        write_text(store.folder / "matrix.md", matrix(of(ACROSS, plan, store)) + "\n")
    return page


def says_something(section: Section) -> bool:
    """Whether there is a value for any of its claims yet."""
    return any(check.estimate for claim in section.claims for check in claim.checks)


def of(experiment: Experiment, plan: Plan, store: Store) -> Found:
    """The results of its own jobs: the same ones whichever experiments are asked for."""
    return Found(plan.scale, {(job.variant, job.seed): job for job in plan.of(experiment)}, store)


def introduction(plan: Plan) -> str:
    command = "python benchmarks/study.py" + (" --quick" if plan.scale.quick else "")
    default, packs = plan.scale.default, plan.scale.packs
    return (
        f"Written by `{command}`: the claims of the paper on the embedded policy, in three domains at level `tiny`. "
        f"A run on one domain has {default.steps} steps of {default.packs_per_step} packs x {default.group_size} "
        f"rollouts x {default.pack_size} tasks; an evaluation has {packs} packs of {default.pack_size}, where nothing "
        "else is said. What the policy can show and what not is said in its model card "
        "(`embedded-policy/README.md`)."
    )


def claims_table(written: dict[Experiment, Section]) -> str:
    rows = []
    for experiment, section in written.items():
        for claim in section.claims:
            rows.append([str(experiment.number), claim.statement, claim.verdict, in_short(claim)])
    return markdown(["", "claim", "verdict", "from"], rows)


def in_short(claim: Claim) -> str:
    """The quantities of a claim: all of a few, of many the least and the greatest."""
    found = [check.estimate for check in claim.checks]
    known = sorted((each for each in found if each), key=lambda each: each.mean)
    if not known:
        return "no runs yet"
    if len(known) > 3:
        return f"{len(known)} quantities from {known[0].mean:+.2f} to {known[-1].mean:+.2f}"
    return "; ".join(each.text if each else "-" for each in found)


def section_of(experiment: Experiment, section: Section, store: Store) -> list[str]:
    parts = [text for claim in section.claims for text in (claim.sentence, sections.checks(claim))]
    picture = store.folder / f"{experiment.number:02d}-{experiment.name}.png"
    save(section.picture(), picture)
    parts.append(f"![{experiment.title}]({store.folder.name}/{picture.name})")
    for caption, table in section.tables:
        parts += [f"*{caption}*", table]
    return parts


def missing(experiment: Experiment, plan: Plan, store: Store) -> str:
    """Which jobs of an experiment are not there; empty if all are."""
    jobs = plan.of(experiment)
    names = [job.name for job in jobs if job not in store]
    if not jobs:
        return "Left out of the quick study."
    if not names:
        return ""
    shown = "; ".join(names[:8]) + ("; ..." if len(names) > 8 else "")
    return f"Not finished: {len(names)} of {len(jobs)} jobs are missing ({shown})."
