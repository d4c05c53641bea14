"""From experiments to jobs: what several of them need is one job, and the order is one in which an interrupted study
has complete experiments first."""

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.laboratory.experiments import EXPERIMENTS, Experiment
from benchmarks.laboratory.jobs import Evaluation, Job, Scale, Variant, built

ORDER = ("effect", "across", "credit", "ralph", "reweighting", "groups", "longer", "dynamics", "teachers", "words")


@dataclass(frozen=True)
class Plan:
    """Jobs in the order in which they are done, and which experiments of those that were asked for need each."""

    scale: Scale
    experiments: tuple[Experiment, ...]
    jobs: dict[tuple[Variant, int], Job]
    wanted_by: dict[tuple[Variant, int], tuple[str, ...]]

    def needs(self, job: Job) -> list[Job]:
        """Those whose folders it reads: its teachers, and the build that it starts from."""
        found = [self.jobs[teacher, job.seed] for teacher in job.variant.teachers]
        if job.variant.words != "shared" and job.variant.kind != "built":
            found.append(self.jobs[built(job.variant.words), 0])
        return found

    def of(self, experiment: Experiment) -> list[Job]:
        return [job for place, job in self.jobs.items() if experiment.name in self.wanted_by[place]]


def make_plan(experiments: Sequence[Experiment], scale: Scale, base: str) -> Plan:
    """The jobs of these experiments. `base` is the fingerprint of the embedded policy.

    A job has the evaluations that any experiment wants of it, asked for or not: so what is done for one serves all.
    """
    evaluations = merged_evaluations(scale)
    users: dict[tuple[Variant, int], dict[str, None]] = {}  # names of experiments, each once, in order
    for experiment in EXPERIMENTS:
        for want in experiment.wants(scale):
            for seed in range(want.seeds):
                users.setdefault((want.variant, seed), {})[experiment.name] = None
    asked = {experiment.name for experiment in experiments}

    def rank(place: tuple[Variant, int]) -> tuple:
        variant, seed = place
        first = min(ORDER.index(name) for name in users[place] if name in asked)
        # a build takes as long as many trainings, and all of its experiment waits for it: it begins one earlier
        return (first - (variant.kind == "built"), -len(users[place]), seed)

    order = sorted((place for place in users if asked & users[place].keys()), key=rank)
    jobs = {(variant, seed): Job(variant, seed, evaluations[variant], base) for variant, seed in order}
    wanted_by = {place: tuple(name for name in users[place] if name in asked) for place in order}
    return Plan(scale, tuple(experiments), jobs, wanted_by)


def merged_evaluations(scale: Scale) -> dict[Variant, tuple[Evaluation, ...]]:
    """All evaluations that any experiment wants of a variant, each setting once."""
    found: dict[Variant, dict] = {}
    for experiment in EXPERIMENTS:
        for want in experiment.wants(scale):
            settings = found.setdefault(want.variant, {})
            for evaluation in want.evaluations:
                contexts = (*settings.get(evaluation.setting, ()), *evaluation.contexts)
                settings[evaluation.setting] = tuple(dict.fromkeys(contexts))
    return {
        variant: tuple(Evaluation(setting, contexts) for setting, contexts in settings.items())
        for variant, settings in found.items()
    }
