"""eval.py: the numbers in a record, the table and the picture, and its command line."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import eval as script
from engine.build import check_window
from engine.command_line import command_line
from engine.errors import BadInput
from engine.models import Lora, add_adapter, load_model
from engine.policy import Policy
from engine.settings import Config
from environments.frozenlake.players import LakeLearner, LakeRandom
from environments.task import Task
from envs import make_pack
from eval import evaluate, load_policy
from evaluation import playing
from evaluation.settings import EvalConfig
from evaluation.statistics import game, summarise
from record import pictures
from record.pictures import draw, gap_closed, table
from rollout import Episode, Penalties, Reply, Rollout, no_hints, own_hints, play, run

ROOT = Path(__file__).parents[1]


# ---------------------------------------------------------------------------------------------------------
# Records


def rollout_of(outcomes, penalty=0.0):
    """A rollout of solved tasks with these outcomes."""
    episodes = []
    for j, outcome in enumerate(map(float, outcomes)):
        reward = max(0.0, outcome - penalty)
        episodes.append(Episode("solve", j, [], "", outcome=outcome, reward=reward, replies=[Reply("")], task=Task()))
    return Rollout(0, episodes)


def summary(label, rollouts):
    """Of rollouts of a pack each."""
    return summarise(label, [game(rollout) | {"pack": pack} for pack, rollout in enumerate(rollouts)])


def test_record_by_hand():
    rollouts = [rollout_of([0, 1, 1], 0.25), rollout_of([0, 1, 0], 0.25), rollout_of([1, 1, 0]), rollout_of([0, 0, 0])]
    update = Episode("update", 0, [], "", reward=-0.1, broken_format=True)
    update.replies = [Reply("", truncated=True)]
    rollouts[0].episodes.insert(1, update)
    rollouts[1].episodes[2].broken_format = True
    rollouts[2].episodes[0].replies = [Reply(""), Reply("", truncated=True), Reply("")]
    record = summary("mine", rollouts)
    assert (record["label"], record["packs"]) == ("mine", 4)
    assert record["success"] == [0.25, 0.75, 0.25]
    assert record["reward"] == [0.25, 0.625, 0.1875]
    assert record["gap"] == [0.0]
    assert record["broken_format"] == pytest.approx(2 / 13)
    assert record["truncated"] == pytest.approx(2 / 15)


def test_gap_is_last_minus_first():
    assert summary("", [rollout_of([0.25, 0, 1]), rollout_of([0, 0, 0.75])])["gap"] == [0.75]
    assert summary("", [rollout_of([1, 1, 0])])["gap"] == [-1.0]
    assert summary("", [rollout_of([1]), rollout_of([0])])["gap"] == [0.0]  # one position: nothing to compare


def test_intervals_contain_the_mean_and_shrink_with_more_packs():
    widths = []
    for n in (8, 80, 800):
        record = summary("", [rollout_of([0, 1, 1]), rollout_of([0, 0, 1]), rollout_of([1, 1, 1])] * n)
        for key in ("success", "reward", "gap"):
            for low, mean, high in zip(record[f"{key}_low"], record[key], record[f"{key}_high"], strict=True):
                assert low <= mean <= high
        widths.append(record["success_high"][0] - record["success_low"][0])
        assert record["success_low"][2] == record["success_high"][2] == 1.0
    assert widths[0] > 2 * widths[1] > 4 * widths[2] > 0


def test_interval_has_the_width_of_a_95_percent_one():
    """Of a mean of n coin flips: 2 * 1.96 * 0.5 / sqrt(n)."""
    record = summary("", [rollout_of([0]), rollout_of([1])] * 200)
    assert record["success_high"][0] - record["success_low"][0] == pytest.approx(2 * 1.96 * 0.5 / 20, rel=0.1)


def test_packs_are_resampled_whole():
    """First and last task of a pack always end alike: so sure is the gap, however unsure either is."""
    record = summary("", [rollout_of([0, 0]), rollout_of([1, 1])] * 10)
    assert record["success_low"][0] < 0.4 < 0.6 < record["success_high"][0]
    assert (record["gap_low"], record["gap"], record["gap_high"]) == ([0.0], [0.0], [0.0])


def test_record_is_the_same_every_time():
    rollouts = [rollout_of([k % 2, k % 3 == 0]) for k in range(30)]
    first = summary("a", rollouts)
    torch.rand(5)
    assert summary("a", rollouts) == first
    assert json.loads(json.dumps(first)) == first


def test_evaluate_plays_the_packs_it_is_given():
    packs = [make_pack("frozenlake", seed, 3, "tiny") for seed in (4, 2, 9)]
    for next_hint in (own_hints, no_hints):
        rollouts = run([play(pack.fresh(), Penalties(), next_hint) for pack in packs], LakeLearner())
        assert evaluate(LakeLearner(), "learner", packs, Penalties(), next_hint) == summary("learner", rollouts)
        assert all(len(rollout.episodes) == (5 if next_hint is own_hints else 3) for rollout in rollouts)


# ---------------------------------------------------------------------------------------------------------
# Table and picture


def record_of(label, *means):
    """A record with intervals of +- 0.05."""
    record = {"label": label, "gap": [means[-1] - means[0]], "gap_low": [-0.25], "gap_high": [0.5]}
    for name in ("success", "reward"):
        shift = 0.0 if name == "success" else 0.1
        record[name] = [mean - shift for mean in means]
        record[f"{name}_low"] = [mean - shift - 0.05 for mean in means]
        record[f"{name}_high"] = [mean - shift + 0.05 for mean in means]
    return record


def test_table_has_a_line_for_each_record():
    records = [record_of("mine", 0.25, 0.5), record_of("a longer name", 0.3, 0.9)]
    header, *lines = table(records).split("\n")
    assert header.split() == ["position", "0", "position", "1", "gap"]
    assert lines == [
        "mine            0.25 [ 0.20, 0.30]   0.50 [ 0.45, 0.55]   0.25 [-0.25, 0.50]",
        "a longer name   0.30 [ 0.25, 0.35]   0.90 [ 0.85, 0.95]   0.60 [-0.25, 0.50]",
    ]
    assert "0.15 [ 0.10, 0.20]   0.40 [ 0.35, 0.45]   0.25 [-0.25, 0.50]" in table(records, "reward")


def test_table_of_packs_of_one_task_has_no_gap():
    header, *lines = table([record_of("mine", 0.25), record_of("random", 0.5)]).split("\n")
    assert header.split() == ["position", "0"]
    assert lines == ["mine     0.25 [ 0.20, 0.30]", "random   0.50 [ 0.45, 0.55]"]


@pytest.mark.parametrize("title", ["costs $x$", "$\\frac$", "l\udcc3\udca4ufer", "läufer\nseed 0"])
def test_picture_takes_names_of_any_kind(title, tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(pictures.plt, "close", figures.append)
    draw([record_of(title, 0.25, 0.5)], tmp_path / "picture.png", title)
    drawn = figures[0].axes[0].get_title()
    assert drawn.replace(r"\$", "$") == ("läufer" if "\udcc3" in title else title)
    assert figures[0].axes[0].get_legend_handles_labels()[1] == [drawn]


@pytest.mark.parametrize("steps", [0, 1, 5])
def test_picture_shows_every_record_and_the_history(steps, tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(pictures.plt, "close", figures.append)
    records = [
        record_of("mine", 0.25, 0.5, 0.75),
        record_of("random", 0.3, 0.4, 0.5),
        record_of("learner", 0.5, 0.9, 1),
    ]
    history = [
        {"step": 10 * k, "success": [0.1, 0.2, 0.1 * k], "broken_format": 0.2, "broken_hint": 0.3 / (k + 1)}
        for k in range(steps)
    ]
    draw(records, tmp_path / "picture.png", "The title", history or None)
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
    [figure] = figures
    left, *right = figure.axes
    handles, labels = left.get_legend_handles_labels()
    assert labels == ["mine", "random", "learner"] and left.get_title() == "The title"
    asides = []
    for handle, record in zip(handles, records, strict=True):
        aside = handle[0].get_xdata()[0]
        assert list(handle[0].get_xdata()) == pytest.approx([aside, 1 + aside, 2 + aside])
        asides.append(aside)
        assert list(handle[0].get_ydata()) == pytest.approx(record["success"])
        [bars] = handle[2]
        ends = [tuple(segment[:, 1]) for segment in bars.get_segments()]
        assert ends == [pytest.approx(pair) for pair in zip(record["success_low"], record["success_high"], strict=True)]
    assert len(set(asides)) == 3 and max(map(abs, asides)) < 0.1  # beside each other, and near their position
    assert len(right) == (steps > 0)
    for axis in right:
        expected = {f"position {j}": [h["success"][j] for h in history] for j in range(3)}
        expected |= {"broken format": [0.2] * steps, "broken hint": [h["broken_hint"] for h in history]}
        assert {line.get_label(): list(line.get_ydata()) for line in axis.get_lines()} == expected
        assert all(list(line.get_xdata()) == [h["step"] for h in history] for line in axis.get_lines())


# ---------------------------------------------------------------------------------------------------------
# Policies


@pytest.fixture(scope="session")
def run_folder(model_folder, tmp_path_factory):
    """A run of train.py as far as eval.py reads it; its adapter does something."""
    folder = tmp_path_factory.mktemp("runs") / "a-run"
    torch.manual_seed(0)
    model = add_adapter(load_model(str(model_folder))[0], Lora(rank=2, alpha=4))
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder / "adapter")
    settings = {"model": str(model_folder), "env": "frozenlake", "level": "train"}
    (folder / "config.json").write_text(json.dumps(settings), encoding="utf-8")
    (folder / "metrics.jsonl").write_text("", encoding="utf-8")
    return folder


def first_logits(policy):
    ids = torch.arange(10)[None]
    return policy.model(input_ids=ids).logits


@torch.no_grad()
def test_policy_of_a_run_is_its_model_with_its_adapter(run_folder, model_folder):
    bare = load_policy(str(model_folder), EvalConfig(temperature=0.5, max_reply_tokens=7))
    trained = load_policy(str(run_folder), EvalConfig(temperature=0.5, max_reply_tokens=7))
    assert isinstance(trained, Policy) and (trained.settings.temperature, trained.settings.max_reply_tokens) == (0.5, 7)
    assert not torch.allclose(first_logits(trained), first_logits(bare), atol=0.01)
    with trained.model.disable_adapter():
        torch.testing.assert_close(first_logits(trained), first_logits(bare))


def test_policy_may_be_a_player_or_a_model_in_another_precision(model_folder):
    assert isinstance(load_policy("learner", EvalConfig()), LakeLearner)
    assert isinstance(load_policy("random", EvalConfig()), LakeRandom)
    assert load_policy(str(model_folder), EvalConfig(dtype="bfloat16")).model.dtype == torch.bfloat16


WORDS = (Path(__file__).parent / "words.py").read_text("utf-8")


def test_a_scripted_player_that_an_environment_lacks_is_not_looked_for_on_the_hub(tmp_path):
    (tmp_path / "mute.py").write_text(WORDS.replace("PLAYERS", "OTHERS"), encoding="utf-8")
    with pytest.raises(BadInput, match="policy='learner': .*mute.py has no such scripted player; it has none"):
        load_policy("learner", EvalConfig(env=str(tmp_path / "mute.py")))


OUTSIDE = """
import sys, torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

base, adapter, merged = sys.argv[1:]
assert "policy" not in sys.modules and "rollout" not in sys.modules
ids = torch.arange(5, 45)[None]
with torch.no_grad():
    bare = AutoModelForCausalLM.from_pretrained(base)
    before = bare(ids).logits
    trained = PeftModel.from_pretrained(bare, adapter).eval()(ids).logits
    logits = AutoModelForCausalLM.from_pretrained(merged)(ids).logits
    torch.testing.assert_close(logits, trained, atol=1e-3, rtol=0)
    assert (trained - before).abs().max() > 0.01
"""


@pytest.mark.parametrize("in_4_bits", [False, True])
def test_adapter_and_merged_model_load_without_this_project(in_4_bits, run_folder, model_folder, tmp_path, monkeypatch):
    """What was trained beside weights in 4 bits is merged into the weights as they were before."""
    run_folder = shutil.copytree(run_folder, tmp_path / "run")
    settings = json.loads((run_folder / "config.json").read_text(encoding="utf-8")) | {"load_in_4bit": in_4_bits}
    (run_folder / "config.json").write_text(json.dumps(settings), encoding="utf-8")
    call(monkeypatch, "--policy", run_folder, "--merge-to", tmp_path / "merged")
    command = [sys.executable, "-c", OUTSIDE, model_folder, run_folder / "adapter", tmp_path / "merged"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert load_model(str(tmp_path / "merged"))[1].chat_template
    with pytest.raises(SystemExit, match="merge_to="):
        call(monkeypatch, "--policy", run_folder, "--merge-to", tmp_path / "merged")


# ---------------------------------------------------------------------------------------------------------
# Command line


def call(monkeypatch, *argv):
    """Run the script's main in this process, as `python eval.py ARGV` does."""
    monkeypatch.setattr(sys, "argv", ["eval.py", *map(str, argv)])
    command_line(script.main)


def results(folder):
    assert (folder / "eval.png").read_bytes().startswith(b"\x89PNG")
    saved = json.loads((folder / "eval.json").read_text(encoding="utf-8"))
    return saved | {"records": [record for setting in saved["settings"] for record in setting["records"]]}


def start(*argv, cwd):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, ROOT / "eval.py", *argv]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=120)


def test_random_player_from_the_shell(tmp_path):
    done = start("--policy", "random", "--packs", "3", "--pack-size", "2", "--output", "a/b", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "random" in done.stdout and "learner" in done.stdout and "position 1" in done.stdout
    saved = results(tmp_path / "a" / "b")
    assert saved["config"]["policy"] == ["random"] and saved["config"]["packs"] == 3
    assert [(record["label"], record["packs"]) for record in saved["records"]] == [
        ("random", 3),
        ("informed", 3),
        ("learner", 3),
    ]
    assert all(len(record["success"]) == 2 for record in saved["records"])


BAD = {
    "unknown policy folder": (["--policy", "no/such/folder"], ["no/such/folder"]),
    "unknown policy name": (["--policy", "nobody"], ["nobody"]),
    "folder without a model": (["--policy", "empty"], ["empty"]),
    "run without an adapter": (["--policy", "unfinished"], ["unfinished", "--resume"]),
    "run with a broken config": (["--policy", "broken"], ["broken/config.json"]),
    "unknown env": (["--policy", "random", "--env", "chess"], ["env='chess'", "frozenlake"]),
    "unknown level": (["--policy", "random", "--level", "easy"], ["level='easy'", "tiny"]),
    "no packs": (["--policy", "random", "--packs", "0"], ["packs=0"]),
    "empty packs": (["--policy", "random", "--pack-size", "0"], ["pack_size=0"]),
    "no temperature": (["--policy", "random", "--temperature", "-1"], ["temperature=-1.0"]),
    "temperature is no number": (["--policy", "random", "--temperature", "nan"], ["temperature=nan"]),
    "penalty is no number": (["--policy", "random", "--length-penalty", "nan"], ["length_penalty=nan", "finite"]),
    "negative penalty": (["--policy", "random", "--length-penalty", "-0.1"], ["length_penalty=-0.1", "at least 0"]),
    "huge packs": (["--policy", "random", "--pack-size", "999999999"], ["pack_size=999999999", "below 10,000"]),
    "seed beyond 32 bits": (["--policy", "random", "--seed", "4294967296"], ["seed=4294967296", "below 4,294,967,296"]),
    "no tokens": (["--policy", "random", "--max-reply-tokens", "0"], ["max_reply_tokens=0"]),
    "no rollouts": (["--policy", "random", "--rollouts-at-once", "-3"], ["rollouts_at_once=-3"]),
    "huge window": (["--policy", "random", "--window", str(10**400)], ["window=1000", "below 1,000,000,000"]),
    "unknown flag": (["--policy", "random", "--size", "3"], ["--size"]),
    "unknown context": (["--policy", "random", "--context", "all"], ["context=", "all", "own", "none"]),
    "output is a file": (["--policy", "random", "--packs", "2", "--output", "a-file"], ["output='a-file'", "folder"]),
    "output within a file": (["--policy", "random", "--packs", "2", "--output", "a-file/x"], ["output='a-file/x'"]),
    "output is a run": (["--policy", "random", "--output", "unfinished"], ["output='unfinished'", "training run"]),
}


@pytest.mark.parametrize(
    ("argv", "named"),
    BAD.values(),
    ids=BAD.keys(),
)
def test_bad_input_ends_in_one_line(argv, named, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a-file").write_text("kept", encoding="utf-8")
    (tmp_path / "empty").mkdir()
    for name, config in (("unfinished", '{"model": "x"}'), ("broken", "{")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(config, encoding="utf-8")
        (tmp_path / name / "metrics.jsonl").write_text("", encoding="utf-8")
    with pytest.raises(SystemExit) as raised:
        call(monkeypatch, *argv)
    line = raised.value.code  # what Python prints to stderr, with exit code 1
    assert isinstance(line, str) and line.startswith("error: ") and "\n" not in line
    assert all(part in line for part in named)
    assert capsys.readouterr() == ("", "")
    assert (tmp_path / "a-file").read_text(encoding="utf-8") == "kept" and not (tmp_path / "eval").exists()


def test_replies_that_cannot_fit_into_the_model_are_refused(model_folder, tmp_path, monkeypatch):
    """As in training; without hints there is more room."""
    argv = ["--policy", model_folder, "--output", tmp_path / "new", "--packs", 1, "--pack-size", 2]
    most = {}
    for context in ("own", "none"):
        with pytest.raises(SystemExit) as raised:
            call(monkeypatch, *argv, "--context", context, "--max-reply-tokens", 4000)
        assert raised.value.code.startswith("error: max_reply_tokens=4000: ") and "\n" not in raised.value.code
        most[context] = int(re.search(r"at most (\d+) fit", raised.value.code)[1])
        assert not (tmp_path / "new").exists()
    assert 0 < most["own"] < most["none"] < 8192
    policy = load_policy(str(model_folder), EvalConfig())
    check_window(policy, Config(pack_size=2, max_reply_tokens=most["own"]))  # what training takes, too
    with pytest.raises(BadInput, match=f"at most {most['own']} fit"):
        check_window(policy, Config(pack_size=2, max_reply_tokens=most["own"] + 1))


def test_out_of_memory_is_one_line_that_says_what_to_lower(tmp_path, monkeypatch):
    def fail(*arguments, **options):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nMore.")

    monkeypatch.setattr(playing, "run", fail)
    with pytest.raises(SystemExit) as raised:
        call(monkeypatch, "--policy", "random", "--output", tmp_path / "new")
    assert raised.value.code.startswith("error: CUDA out of memory.") and "--kv-tokens" in raised.value.code
    assert "\n" not in raised.value.code


def test_help_names_every_flag(monkeypatch, capsys):
    with pytest.raises(SystemExit) as raised:
        call(monkeypatch, "--help")
    assert not raised.value.code
    out = capsys.readouterr().out
    assert all(f"--{name}" in out for name in vars(EvalConfig()))


def played_packs(monkeypatch):
    """A list that gets every pack that is evaluated on."""
    packs, original = [], playing.play

    def watched(pack, *rest):
        packs.append(pack)
        return original(pack, *rest)

    monkeypatch.setattr(playing, "play", watched)
    return packs


def test_run_is_evaluated_on_its_own_level_unless_told_otherwise(run_folder, tmp_path, monkeypatch, capsys):
    made = played_packs(monkeypatch)
    options = ["--policy", run_folder, "--packs", 2, "--pack-size", 2, "--max-reply-tokens", 5, "--output", tmp_path]
    call(monkeypatch, *options, "--seed", 3)
    assert {pack.level for pack in made} == {"train"}
    assert {pack.seed for pack in made} == {6, 7}  # the packs of other seeds are others
    saved = results(tmp_path)
    assert [record["label"] for record in saved["records"]] == ["a-run", "random", "informed", "learner"]
    assert saved["records"][0]["truncated"] > 0 and "truncated" in capsys.readouterr().out
    made.clear()
    call(monkeypatch, *options, "--seed", 3, "--level", "tiny")
    assert {pack.level for pack in made} == {"tiny"}
    assert results(tmp_path)["config"]["level"] == "tiny"


def test_run_is_played_as_it_was_trained_unless_told_otherwise(run_folder, tmp_path, monkeypatch):
    run = shutil.copytree(run_folder, tmp_path / "b-run")
    of_the_run = {"pack_size": 3, "ralph": True, "temperature": 0.5, "max_reply_tokens": 5, "rollouts_at_once": 2}
    of_the_run |= {"dtype": "bfloat16", "length_penalty": 0.3, "length_lo": 1.0, "length_hi": 2.0}
    others = {"seed": 7, "output": "elsewhere", "name": "x", "steps": 3}
    settings = json.loads((run / "config.json").read_text(encoding="utf-8")) | of_the_run | others
    (run / "config.json").write_text(json.dumps(settings), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    call(monkeypatch, "--policy", run, "--packs", 2)
    config = results(tmp_path / "eval" / "b-run-on-frozenlake-train-3x2")["config"]
    assert config == config | of_the_run | {"env": "frozenlake", "level": "train", "seed": 0, "packs": 2}
    (tmp_path / "s.yaml").write_text("temperature: 0.7\npack-size: 2\n", encoding="utf-8")
    call(
        monkeypatch, "s.yaml", "--policy", run, "--packs", 2, "--pack-size", 1, "--ralph", "false", "--context", "none"
    )
    config = results(tmp_path / "eval" / "b-run-on-frozenlake-train-1x2")["config"]
    assert config == config | of_the_run | {"temperature": 0.7, "pack_size": 1, "ralph": False}


def test_evaluation_is_repeatable_and_its_seed_is_that_of_the_sampling_too(model_folder, tmp_path, monkeypatch):
    seeds, original = [], playing.run
    monkeypatch.setattr(playing, "run", lambda g, p, seed, **o: seeds.append(seed) or original(g, p, seed, **o))
    options = ["--policy", model_folder, "--packs", 3, "--max-reply-tokens", 5]
    for folder in ("a", "b"):
        call(monkeypatch, *options, "--output", tmp_path / folder)
    call(monkeypatch, *options, "--output", tmp_path / "c", "--seed", 1)
    assert results(tmp_path / "a")["records"] == results(tmp_path / "b")["records"]
    assert len(seeds) == 12 and seeds[0] == seeds[4] != seeds[8]  # each time the policy and three players


def test_hints_can_be_blanked(tmp_path, monkeypatch):
    asked, original = [], playing.play
    monkeypatch.setattr(playing, "play", lambda pack, p, hint: asked.append(hint) or original(pack, p, hint))
    call(monkeypatch, "--policy", "learner", "--context", "none", "--packs", 40, "--output", tmp_path)
    blanked, *others = results(tmp_path)["records"]
    labels = [blanked["label"], *(record["label"] for record in others)]
    assert labels == ["learner, hints blanked", "random", "informed"]
    assert asked == [own_hints] * 120 + [no_hints] * 40  # the players it is compared with keep their hints
    call(monkeypatch, "--policy", "learner", "--packs", 40, "--output", tmp_path)
    assert results(tmp_path)["records"][0]["success"][3] > blanked["success"][3] + 0.2
    assert len(asked) == 160  # they had been played before


def test_ralph_loop_is_a_flag(tmp_path, monkeypatch):
    made = played_packs(monkeypatch)
    call(monkeypatch, "--policy", "random", "--packs", 2, "--ralph", "--output", tmp_path)
    assert len(made) == 3 * 2 and all(pack.ralph for pack in made)  # three players


def test_length_penalty_is_in_the_reward_only(tmp_path, monkeypatch):
    records = []
    for name, coefficient in (("a", 0), ("b", 0.4)):
        options = ["--policy", "learner", "--packs", 20, "--length-penalty", coefficient, "--output", tmp_path / name]
        call(monkeypatch, *options)
        records.append(results(tmp_path / name)["records"][0])
    assert records[0]["success"] == records[1]["success"] == records[0]["reward"]
    assert all(less < more for less, more in zip(records[1]["reward"], records[0]["reward"], strict=True))


def test_share_of_the_gap_from_random_player_to_learner():
    values = {"random": (0.2, 0.2, 0.5), "learner": (0.6, 1.0, 0.5), "informed": (1, 1, 1), "mine": (0.3, 1.0, 0.7)}
    records = [record_of(label, *successes) for label, successes in values.items()]
    # (0.3 - 0.2) / (0.6 - 0.2), (1 - 0.2) / (1 - 0.2), and no gap at all
    assert gap_closed(records) == "mine: closes 25% 100% - of the gap from random to learner, by position"
    assert gap_closed(records[1:]) == ""
    assert gap_closed([record_of("random", 0.2), record_of("learner", 0.3), record_of("mine", 0.3)]) == ""
