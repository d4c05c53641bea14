"""benchmarks/study.py: which jobs there are, what becomes of them when all is killed, and what the report says."""

import importlib
import itertools
import json
import math
import sys
from unittest import mock

import pytest
import torch
from doubles import REPO
from scipy import stats
from training import Killed, kill

import train
from benchmarks.laboratory import claims, running, work
from benchmarks.laboratory.claims import AGREES, CANNOT, DISAGREES, Check, Claim, average, estimate, minus
from benchmarks.laboratory.effect import alone
from benchmarks.laboratory.experiments import EXPERIMENTS, chosen
from benchmarks.laboratory.jobs import Evaluation, Job, Scale, Variant, untrained
from benchmarks.laboratory.method import sized
from benchmarks.laboratory.page import write_report
from benchmarks.laboratory.plan import ORDER, Plan, make_plan
from benchmarks.laboratory.results import Found, Store
from benchmarks.laboratory.running import Runner
from benchmarks.laboratory.transfer import mixed, student
from engine.embedded import DOMAINS
from engine.errors import BadInput
from engine.settings import Config

study = importlib.import_module("benchmarks.study")
FULL = Scale()


def plan_of(*names, scale=FULL):
    return make_plan(chosen(list(names)), scale, "base")


# ---------------------------------------------------------------------------------------------------------
# Which jobs


@pytest.fixture(scope="module")
def plan():
    return plan_of()


def test_what_several_experiments_need_is_one_job(plan):
    keys = {job.key for job in plan.jobs.values()}
    facts = {(json.dumps(job.variant.facts(), sort_keys=True), job.seed) for job in plan.jobs.values()}
    assert len(keys) == len(facts) == len(plan.jobs)
    names = {experiment.name for experiment in EXPERIMENTS}
    assert set(plan.wanted_by[FULL.trained("alchemy"), 0]) == names - {"groups"}
    default = plan.jobs[FULL.trained("frozenlake"), 2]
    assert default.variant.flags == ()  # `python train.py`, but for the seed
    assert {name: len(plan.of(each)) for each in EXPERIMENTS for name in [each.name]} == {
        "effect": 15 + 5 + 18,  # default runs; the policy untrained, five times; task by task, on two budgets
        "credit": 9 + 3 + 27,
        "reweighting": 3 + 24,
        "groups": 3 + 15,
        "longer": 15 + 5,
        "across": 15 + 5 + 9 + 3,
        "ralph": 15 + 5 + 9,
        "words": 1 + 12 + 12,
        "dynamics": 15,
        "teachers": 9 + 3 + 3 + 3 + 3,
    }


def test_other_numbers_of_seeds(plan):
    more = plan_of(scale=Scale(seeds=4))
    assert plan.jobs.items() <= more.jobs.items()  # what is there is used
    of_single = [seed for variant, seed in plan.jobs if variant == FULL.trained("terminal")]
    of_pair = [seed for variant, seed in plan.jobs if variant == FULL.trained("alchemy", "terminal")]
    assert sorted(of_single) == [0, 1, 2, 3, 4] and sorted(of_pair) == [0, 1, 2]


def test_a_selection_has_the_jobs_of_the_whole(plan):
    some = plan_of("2", "words")
    assert [each.name for each in some.experiments] == ["credit", "words"]
    assert some.jobs.items() <= plan.jobs.items() and 0 < len(some.jobs) < len(plan.jobs)


def test_an_interrupted_study_has_complete_experiments_first(plan):
    places = [min(ORDER.index(name) for name in plan.wanted_by[place]) for place in plan.jobs]
    builds = [job.variant.kind == "built" for job in plan.jobs.values()]
    assert sorted(ORDER) == sorted(experiment.name for experiment in EXPERIMENTS)
    assert [p for p, built in zip(places, builds, strict=True) if not built] == sorted(
        p for p, built in zip(places, builds, strict=True) if not built
    )
    assert places[builds.index(True) + 1] == ORDER.index("teachers")  # begun while the other processor has work
    first = list(plan.jobs.values())[:9]
    assert {(job.variant, job.seed) for job in first} == {(FULL.trained(d), s) for d in DOMAINS for s in range(3)}


def test_budgets_are_equal(plan):
    def tasks(config):
        return config.steps * config.packs_per_step * config.group_size * config.pack_size

    def rollouts(config):
        return config.steps * config.packs_per_step * config.group_size

    default = FULL.default
    for domain in DOMAINS:
        assert tasks(alone(FULL, domain, "tasks").config) == tasks(default)
    for title, flags in sized(FULL):
        config = FULL.trained("frozenlake", **flags).config
        same = rollouts if title.startswith("G") else tasks
        assert same(config) == same(default), title
    few, many = (variant.config for variant in mixed(FULL).values())
    assert rollouts(student(FULL).config) == rollouts(few) == rollouts(default)
    assert rollouts(many) == 3 * rollouts(default)


@pytest.mark.parametrize("scale", [FULL, study.settings_from(["--quick"]).scale])
def test_all_settings_are_valid_and_the_budget_holds(scale):
    plan = plan_of(scale=scale)
    for (variant, seed), job in plan.jobs.items():
        teachers = ",".join(f"{domain}/tiny=RUN" for domain in DOMAINS) if variant.teachers else ""
        Config(**job.flags("embedded-policy", teachers)).validate()
        assert job.seed == seed
    hours = sum(job.seconds for job in plan.jobs.values()) / 3600 / 2
    assert hours <= (1 / 3 if scale.quick else 6)


def test_a_job_is_known_by_all_that_decides_what_comes_out(monkeypatch):
    job = plan_of().jobs[FULL.trained("frozenlake"), 0]
    others = [
        Job(job.variant, 1, job.evaluations, job.base),
        Job(job.variant, 0, job.evaluations[1:], job.base),
        Job(job.variant, 0, job.evaluations, "another policy"),
        Job(FULL.trained("frozenlake", words="own"), 0, job.evaluations, job.base),
        Job(FULL.trained("frozenlake", gamma=0.8), 0, job.evaluations, job.base),
    ]
    assert len({each.key for each in [job, *others]}) == 6
    facts = job.variant.facts()
    monkeypatch.setattr(Variant, "facts", lambda self: facts | {"settings": facts["settings"] | {"lr": 1e-3}})
    assert Job(job.variant, 0, job.evaluations, job.base).key != job.key  # defaults count, too


# ---------------------------------------------------------------------------------------------------------
# Jobs as processes

# does no work; `REPORT` gets a line for every job that it is given, and those named in `FAILING` fail
FAKE = """
import json, os, pathlib, sys
folder = pathlib.Path(sys.argv[1])
job = json.loads((folder / "job.json").read_text())
if not (folder / "result.json").exists():
    with open(os.environ["REPORT"], "a") as file:
        file.write(job["job"] + "\\n")
    if job["job"] in os.environ["FAILING"].split(";"):
        print("Traceback and so on")
        sys.exit("error: no luck")
    product = folder / ("model" if job["kind"] == "built" else "run/adapter")
    product.mkdir(parents=True, exist_ok=True)
    (product / ("config.json" if job["kind"] == "built" else "adapter_config.json")).touch()
    (folder / "new").write_text(json.dumps({"from": job["flags"].get("model", "embedded-policy")}))
    (folder / "new").replace(folder / "result.json")  # it may be killed anywhere, as a job may
"""


@pytest.fixture
def runner(tmp_path, monkeypatch):
    """A function that makes a runner of a study in the test's folder, whose jobs are done by a fake."""
    monkeypatch.setattr(running, "LOOK", 0.01)
    monkeypatch.setenv("REPORT", str(tmp_path / "report.txt"))

    def make(*names, failing=()):
        monkeypatch.setenv("FAILING", ";".join(failing))
        command = [sys.executable, "-S", "-c", FAKE]
        small = plan_of(*names, scale=Scale(seeds=1))
        return Runner(small, Store(tmp_path / "study"), tmp_path / "scratch", command=lambda f: [*command, str(f)])

    return make


def reported(tmp_path):
    return (tmp_path / "report.txt").read_text().splitlines()


def test_jobs_are_done_in_order_once_and_never_again(runner, tmp_path):
    first = runner("teachers")
    names = [job.name for job in first.todo()]
    assert first.run() == {} and sorted(reported(tmp_path)) == sorted(names)
    assert runner("teachers").todo() == [] and runner("teachers").run() == {}
    everything = runner()
    missing = [job.name for job in everything.todo()]
    assert not set(missing) & set(names) and everything.run() == {}
    assert sorted(reported(tmp_path)) == sorted(names + missing)
    lines = [json.loads(line) for line in (tmp_path / "study" / "results.jsonl").read_text().splitlines()]
    assert len(lines) == len(everything.plan.jobs)
    model = tmp_path / "scratch" / everything.plan.jobs[Variant("built", words="own"), 0].key / "model"
    assert {line["from"] for line in lines} == {"embedded-policy", str(model)}
    assert all(line["from"] == str(model) for line in lines if line["words"] == "own" and line["kind"] != "built")


def test_at_most_so_many_at_a_time(runner):
    busy, most = runner("effect"), []
    start = busy.start

    def watched(job):
        start(job)
        most.append(len(busy.under_way))

    busy.start = watched
    busy.run()
    assert max(most) == 2


def test_a_job_that_fails_is_reported_and_the_rest_goes_on(runner, tmp_path, capsys):
    teacher = "alchemy, seed 0"
    broken = runner("teachers", failing=[teacher])
    failed = broken.run()
    distilled = next(job.name for job in broken.plan.jobs.values() if job.variant.teachers)
    assert failed.keys() == {teacher, distilled}
    assert failed[teacher].startswith("exit code 1: error: no luck (")
    assert failed[distilled] == f"it needs {teacher}, which failed"
    assert distilled not in reported(tmp_path)
    assert f"FAILED: {teacher}: exit code 1: error: no luck" in capsys.readouterr().out
    again = runner("teachers")
    assert sorted(job.name for job in again.todo()) == sorted([teacher, distilled]) and again.run() == {}


@pytest.mark.parametrize("when", ["before its line is written", "while it is written", "after it"])
def test_a_study_that_was_killed_goes_on(runner, tmp_path, when):
    """`kill -9` between any two lines of code: a job that has ended is not done again."""
    study, add, calls = runner("credit"), Store.add, []

    def interrupted(store, job, result):
        calls.append(job)
        if len(calls) != 3:
            return add(store, job, result)
        if when == "after it":
            add(store, job, result)
        if when == "while it is written":
            with store.path.open("a") as file:
                file.write('{"key": "0123')
        raise Killed

    with mock.patch.object(Store, "add", interrupted), pytest.raises(Killed):
        study.run()
    assert all(process.poll() is not None for process in study.under_way)
    again = runner("credit")
    assert len(again.store.lines) == (3 if when == "after it" else 2)
    assert again.run() == {} and len(Store(tmp_path / "study").lines) == len(again.plan.jobs)
    started = reported(tmp_path)
    assert sorted(set(started)) == sorted(job.name for job in again.plan.jobs.values())
    killed_at_work = {job.name for job in study.under_way.values()}
    assert all(started.count(name) == 1 for name in set(started) - killed_at_work)


def test_a_teacher_whose_folder_is_gone_is_trained_again(runner, tmp_path):
    runner("effect").run()
    for folder in (tmp_path / "scratch").iterdir():
        folder.rename(tmp_path / f"gone-{folder.name}")
    later = runner("teachers")
    teachers = [later.plan.jobs[FULL.trained(domain), 0].name for domain in DOMAINS]
    assert set(teachers) < {job.name for job in later.todo()}
    before = (tmp_path / "study" / "results.jsonl").read_text()
    assert later.run() == {}
    assert all(reported(tmp_path).count(name) == 2 for name in teachers)
    assert (tmp_path / "study" / "results.jsonl").read_text().startswith(before)
    lines = (tmp_path / "study" / "results.jsonl").read_text().splitlines()
    assert len(lines) == len(Store(tmp_path / "study").lines)  # none twice


# ---------------------------------------------------------------------------------------------------------
# What a job does

TINY = {"steps": 2, "packs_per_step": 2, "group_size": 2, "pack_size": 2, "max_reply_tokens": 16, "checkpoint_every": 1}
SMALL = Scale(seeds=1, packs=4, quick=True, base=tuple(TINY.items()))


def small_runner(folder, *jobs):
    plan = Plan(SMALL, (), {(job.variant, job.seed): job for job in jobs}, {})
    return Runner(plan, Store(folder / "study"), folder / "scratch")


def small_job(variant, *evaluations):
    return Job(variant, 0, evaluations, "base")


@pytest.fixture(scope="module")
def trained():
    here = SMALL.setting("frozenlake")
    asked = Evaluation(here, ("own", "none", "shuffled", "perfect")), Evaluation(SMALL.setting("alchemy"))
    return small_job(SMALL.trained("frozenlake"), *asked)


def done_here(runner, job):
    """In this process."""
    folder = runner.folder(job)
    folder.mkdir(parents=True, exist_ok=True)
    return work.do(json.loads(json.dumps(runner.order(job))), folder)


def without_seconds(result):
    return {name: value for name, value in result.items() if name != "seconds"}


@pytest.fixture(scope="module")
def uninterrupted(trained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    return folder, done_here(small_runner(folder, trained), trained)


def test_a_job_trains_and_evaluates(uninterrupted, trained):
    _, result = uninterrupted
    assert set(result) == {"model", "tokens", "seconds", "steps", "evaluations"}
    assert all(len(values) == 2 for values in result["steps"].values())
    assert {*result["steps"]} == {"use", "write", "explore", "broken_format", "kl", "first", "last"}
    own, alchemy = result["evaluations"].values()
    assert list(own) == ["own", "none", "shuffled", "perfect"] and list(alchemy) == ["own"]
    for found in own.values():
        assert [len(digits) for digits in found["success"]] == [4, 4] and set("".join(found["success"])) <= {*"01"}
    assert len({found["success"][0] for found in own.values()}) == 1  # nothing stands in place of a hint yet
    assert own["none"]["skills"]["write"] is None and own["own"]["skills"]["write"] is not None


@pytest.mark.parametrize(("owner", "function", "call"), [(train, "update", 2), (work, "kept", 2)])
def test_a_killed_job_goes_on_and_finds_the_same(uninterrupted, trained, tmp_path, owner, function, call):
    """In its second step, and in its second evaluation."""
    runner, real, calls = small_runner(tmp_path, trained), getattr(owner, function), []

    def interrupted(*args, **options):
        calls.append(function)
        return kill() if len(calls) == call else real(*args, **options)

    with mock.patch.object(owner, function, interrupted), pytest.raises(Killed):
        done_here(runner, trained)
    steps, step = [], train.training_step
    with mock.patch.object(train, "training_step", lambda *args: steps.append(args[-1]) or step(*args)):
        result = done_here(runner, trained)
    assert steps == ([1] if owner is train else [])
    assert without_seconds(result) == without_seconds(uninterrupted[1])


def test_a_student_learns_from_the_folder_of_its_teacher(uninterrupted, trained):
    folder, _ = uninterrupted
    variant = SMALL.trained("frozenlake", teachers=(trained.variant,), group_size=1, steps=1)
    taught = small_job(variant, Evaluation(SMALL.setting("frozenlake")))
    runner = small_runner(folder, trained, taught)
    assert runner.plan.needs(taught) == [trained] and runner.product(trained).exists()
    result = done_here(runner, taught)
    config = json.loads((runner.folder(taught) / "run" / "config.json").read_text())
    assert config["teachers"] == f"frozenlake/tiny={runner.folder(trained) / 'run'}"
    assert len(result["steps"]["kl"]) == 1


def test_a_build_has_words_of_its_own_and_is_made_once(tmp_path, monkeypatch):
    calls = []

    def imitate():
        calls.append(sys.argv[1:])
        (tmp_path / "model").mkdir()
        (tmp_path / "model" / "model.safetensors").touch()

    monkeypatch.setattr(work.imitate, "main", imitate)
    order = {"kind": "built", "words": "own", "seed": 0}
    first, again = work.do(order, tmp_path), work.do(order, tmp_path)
    assert calls == [["--words", "own", "--seed", "0", "--output", str(tmp_path / "model")]]
    assert first["model"] == again["model"] and set(first) == {"model", "seconds"}


def test_a_process_does_a_job_and_the_untrained_policy_is_the_base(tmp_path):
    job = small_job(untrained(), Evaluation(SMALL.setting("frozenlake")))
    broken = small_job(SMALL.trained("frozenlake", lora_targets="none_of_these"))
    runner = small_runner(tmp_path, job, broken)
    failed = runner.run()
    assert failed.keys() == {broken.name} and "lora_targets" in failed[broken.name]
    [line] = runner.store.lines.values()
    assert line["kind"] == "untrained" and "steps" not in line and line["evaluations"]


# ---------------------------------------------------------------------------------------------------------
# From numbers to verdicts


def test_points_of_the_t_distribution():
    for freedom, point in enumerate(claims.T, start=1):
        assert point == pytest.approx(stats.t.ppf(0.975, freedom), abs=6e-4)


def test_an_estimate_over_seeds_by_hand():
    found = estimate({0: torch.tensor([0.1, 0.3]), 1: torch.tensor([0.4]), 2: torch.tensor([0.6])})
    assert (found.seeds, found.mean, found.deviation) == (3, pytest.approx(0.4), pytest.approx(0.2))
    half = 4.303 * 0.2 / math.sqrt(3)
    assert (found.low, found.high) == (pytest.approx(0.4 - half), pytest.approx(0.4 + half))
    assert found.text == "+0.40 [-0.10, +0.90]"
    assert estimate({}) is None
    alone = estimate({4: torch.tensor([0.0, 1.0] * 50)})  # packs are resampled
    assert math.isnan(alone.deviation) and 0.35 < alone.low < 0.45 < 0.55 < alone.high < 0.65
    assert estimate({0: torch.tensor([0.5])}).text == "+0.50"


def test_differences_and_averages_are_of_the_seeds_that_all_have():
    first, second = {0: torch.tensor([1.0, 0.0]), 1: torch.tensor([1.0])}, {1: torch.tensor([0.25]), 2: torch.zeros(1)}
    assert {seed: values.tolist() for seed, values in minus(first, second).items()} == {1: [0.75]}
    averages = average([first, second, {1: torch.tensor([0.0, 0.5])}])
    assert {seed: values.tolist() for seed, values in averages.items()} == {1: [0.5]}
    assert average([first, {}]) == {} == average([])


def values(*numbers):
    return {seed: torch.tensor([number]) for seed, number in enumerate(numbers)}


@pytest.mark.parametrize(
    ("numbers", "bounds", "verdict"),
    [
        ((0.3, 0.4, 0.5), {"above": 0}, AGREES),
        ((0.3, 0.4, 0.5), {"above": 0.2}, CANNOT),  # the interval is .15 to .65
        ((0.3, 0.4, 0.5), {"above": 0.7}, DISAGREES),
        ((0.3, 0.4, 0.5), {"below": 0.1}, DISAGREES),
        ((-0.3, 0.4, 0.5), {"above": 0}, CANNOT),
        ((0.01, 0.0, -0.01), {"above": -0.1, "below": 0.1}, AGREES),
        ((0.4,), {"above": 0}, CANNOT),
        ((), {"above": 0}, CANNOT),
    ],
)
def test_the_rule(numbers, bounds, verdict):
    assert Check("it", values(*numbers), **bounds).verdict == verdict


def test_a_claim_agrees_if_all_of_it_does_and_disagrees_if_something_does():
    yes, no = (Check("it", values(0.3, 0.4, 0.5), above=bound) for bound in (0, 0.7))
    unclear = Check("it", values(0.3), above=0)
    for checks in itertools.product((yes, no, unclear), repeat=2):
        expected = DISAGREES if no in checks else CANNOT if unclear in checks else AGREES
        assert Claim("So it is", checks).verdict == expected
    assert Claim("So it is", ()).verdict == CANNOT
    assert Claim("So it is", (yes, unclear)).sentence == "So it is: **cannot be told** (1 agrees, 1 cannot be told)."
    assert Claim("So it is", (yes,)).sentence == "So it is: **agrees**."


# ---------------------------------------------------------------------------------------------------------
# The report, of made-up results

MADE_UP = Scale(seeds=3, packs=20)


def tenths(job, context, position):
    """Success in tenths: untrained 2, without hints 4; else it rises with the position and the seed."""
    if job.variant.kind == "untrained":
        return 2
    if context == "none" or dict(job.variant.flags).get("credit") == "sum":
        return 4
    return min(10, 4 + position + job.seed)


def made_up(job):
    found = {}
    for asked in job.evaluations:
        games, size = asked.setting.games, asked.setting.pack_size
        found[asked.setting.described()] = {
            context: {
                "success": [
                    "".join(str(int(10 * n < games * tenths(job, context, j))) for n in range(games))
                    for j in range(size)
                ],
                "skills": {"use": 0.5, "write": 0.25, "explore": 0.75, "wrong": None},
                "broken_format": 0.0,
            }
            for context in asked.contexts
        }
    steps = {name: [0.1, None, 0.3, 0.4, 0.5, 0.6] for name in ("use", "write", "explore")}
    steps |= {name: [0.0, 0.25, 0.0, 0.0, 0.0, 0.0] for name in ("broken_format", "kl", "first", "last")}
    tokens = {"sampled": 1000, "forward": 5000}
    return {"model": "m", "tokens": tokens, "seconds": {"training": 120}, "steps": steps, "evaluations": found}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Of a whole study."""
    store = Store(tmp_path_factory.mktemp("report") / "study")
    for job in plan_of(scale=MADE_UP).jobs.values():
        store.add(job, made_up(job))
    return store


@pytest.fixture(scope="module")
def page(store):
    return write_report(plan_of(scale=MADE_UP), store).read_text()


def cells(page, *starts):
    """The cells of the table lines that begin with these."""
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines() if line[:1] == "|"]
    return [line for line in lines if line[: len(starts)] == list(starts)]


def test_means_and_deviations_by_hand(page):
    """Position 3 of seeds 0, 1, 2: .7, .8, .9."""
    expected = ["0.50 (0.10)", "0.60 (0.10)", "0.70 (0.10)", "0.80 (0.10)", "0.30 (0.00)", "3"]
    assert cells(page, "mean") == [["mean", *expected]] * 3
    assert cells(page, "sum") == [["sum", *["0.40 (0.00)"] * 4, "0.00 (0.00)", "3"]] * 3
    [line] = cells(page, "S = 2")[:1]
    assert line[1:] == expected


def test_claims_by_hand(page):
    """Fine-grained minus coarse at position 3: .3, .4, .5; the gap has grown by .3 in every seed."""
    statement = "Fine-grained credit (mean) ends above coarse credit (sum) at the last position"
    [row] = cells(page, "2", statement)
    assert row[2:] == [AGREES, "; ".join(["**+0.40 [+0.15, +0.65]**"] * 3)]
    assert f"{statement}: **agrees** (3 agrees)." in page
    assert cells(page, "frozenlake", "**+0.40 [+0.15, +0.65]**") == [
        ["frozenlake", "**+0.40 [+0.15, +0.65]**", "above 0", "3", AGREES]
    ]
    [row] = cells(page, "1", "CoD training ends above task-by-task RL")
    assert row[2] == CANNOT and row[3] == "12 quantities from +0.00 to +0.40"
    [row] = cells(page, "2", "With coarse credit frozenlake cannot be trained (the gap grows by less than .1)")
    assert row[2] == AGREES


def test_the_matrix_for_the_readme(store, page):
    """Last positions of five seeds: .7 to 1; the gap of the fourth and fifth is .3 and .2 (nothing is above 1)."""
    matrix = (store.folder / "matrix.md").read_text()
    assert cells(matrix, "nothing") == [["nothing", "", *["0.20 (+0.00)"] * 3, "5"]]
    assert cells(matrix, "alchemy") == [["alchemy", "40", *["0.88 (+0.28)"] * 3, "5"]]
    assert cells(matrix, "alchemy + terminal") == [["alchemy + terminal", "40", *["0.80 (+0.30)"] * 3, "3"]]
    assert matrix.strip() in page


def test_nothing_of_results_that_are_gone_is_left(tmp_path):
    (tmp_path / "study").mkdir()
    for name in ("01-effect.png", "matrix.md", "notes.md"):
        (tmp_path / "study" / name).touch()
    write_report(plan_of(scale=MADE_UP), Store(tmp_path / "study"))
    assert [path.name for path in (tmp_path / "study").iterdir()] == ["notes.md"]


def test_games_of_one_pack_are_one(store):
    """Of Ralph loops over each task there are four games of a pack: 5 packs, 20 games, of which 14 are won at last."""
    found = Found(MADE_UP, plan_of(scale=MADE_UP).jobs, store)
    setting = MADE_UP.setting("terminal", ralph="each")
    packs = found.success(MADE_UP.trained("terminal"), setting)[0]  # [P, S]
    assert packs[:, 3].tolist() == [1, 1, 1, 0.5, 0] and setting.games == 20


def test_skills_over_steps(page):
    """The means of the first five and of the last five values that there are."""
    assert cells(page, "alchemy", "uses what it knows") == [
        ["alchemy", "uses what it knows", "0.38 (0.00)", "0.38 (0.00)"]
    ]


def test_every_experiment_has_its_section_and_pictures_stand_beside_the_page(store, page):
    for experiment in EXPERIMENTS:
        picture = f"{experiment.number:02d}-{experiment.name}.png"
        assert f"## {experiment.number}. {experiment.title}" in page and f"({store.folder.name}/{picture})" in page
        header = (store.folder / picture).read_bytes()[:24]
        assert int.from_bytes(header[16:20], "big") == 900
    assert "Not finished" not in page and str(REPO) not in page


def test_an_unfinished_study_says_what_is_missing(store, tmp_path):
    plan = plan_of("credit", "across", scale=MADE_UP)
    part = Store(tmp_path / "study")
    for job in plan.jobs.values():
        if "terminal" not in job.name and (job.seed == 0 or "credit" not in job.name):
            part.add(job, made_up(job))
    page = write_report(plan, part).read_text()
    of_credit = plan.of(chosen(["credit"])[0])
    missing = [job for job in of_credit if job not in part]
    assert f"Not finished: {len(missing)} of {len(of_credit)} jobs are missing ({missing[0].name}; " in page
    row = cells(page, "2", "Fine-grained credit (mean) ends above coarse credit (sum) at the last position")[0]
    assert row[2] == CANNOT and row[3].endswith("; -")
    nothing = write_report(plan_of(scale=MADE_UP), Store(tmp_path / "empty")).read_text()
    assert ".png" not in nothing and nothing.count("Not finished") == len(EXPERIMENTS)


# ---------------------------------------------------------------------------------------------------------
# The command


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["effects"], "names='effects': unknown experiment; choose from 1 (effect), 2 (credit)"),
        (["--names", "11"], "names='11': unknown experiment"),
        (["--seeds", "0"], "seeds=0: must be at least 1, and below 21"),
        (["--at-once", "0"], "at_once=0: must be at least 1"),
        (["effect", "--output", "FILE"], "is a file; name a folder"),
    ],
)
def test_settings_that_cannot_work(flags, message, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    argv = [str(tmp_path / "file") if flag == "FILE" else flag for flag in flags]
    monkeypatch.setattr(sys, "argv", ["study.py", *argv])
    with pytest.raises(BadInput) as error:
        study.main()
    assert message in str(error.value) and "\n" not in str(error.value)


def test_results_that_cannot_be_read(tmp_path):
    (tmp_path / "results.jsonl").write_text('{"key": "a"}\nnothing\n')
    with pytest.raises(BadInput, match="results.jsonl: line 2 cannot be read; remove it"):
        Store(tmp_path)


def test_a_dry_run_lists_the_jobs_and_leaves_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["study.py", "credit", "1", "--dry-run", "--output", str(tmp_path / "study")])
    study.main()
    out = capsys.readouterr().out.splitlines()
    jobs = len(plan_of("credit", "effect").jobs)
    assert len(out) == jobs + 1 and out[-1].startswith(f"{jobs} jobs to do, 0 of {jobs} are there; about ")
    assert list(tmp_path.iterdir()) == []


def test_a_quick_study_is_small_and_stands_elsewhere():
    quick = study.settings_from(["across", "--quick"])
    assert (quick.names, quick.seeds, quick.scale.seeds, quick.scale.single_seeds) == (["across"], 1, 1, 1)
    assert quick.output.endswith("study-quick") and study.settings_from([]).output.endswith("study")
    assert study.settings_from(["--quick", "--seeds", "2"]).seeds == 2
