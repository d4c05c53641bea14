"""The folder of a run: its name, settings, metrics, samples, pictures, adapter; a tracker; evaluations of it."""

import json
import math
import os
import re
from pathlib import Path
from unittest import mock

import accelerate
import pytest
from peft import load_peft_weights
from training import EVENTFUL, SMALL, assert_one_line, flags, metrics, run_here, samples, steps_of

import eval as evaluation
from context import HINT_HEADING, NO_HINT_AVAILABLE, NO_HINTS_YET, parse_update
from engine import processes
from engine.command_line import parse_flags
from engine.settings import Config
from envs import players
from evaluation.policies import load_policy
from evaluation.settings import EvalConfig
from record import pictures
from record.files import VALIDATION_SEEDS, new_folder
from record.metrics import as_text

STEP_KEYS = {
    "step", "success", "reward", "zero_variance", "broken_format", "broken_hint", "truncated", "turns", "reply_tokens",
    "hint_tokens", "episode_tokens", "tokens_sampled", "loss", "grad_norm", "lr", "clipped",
    "log_ratio_abs", "log_ratio_max", "entropy", "kl", "time_rollout", "time_train", "tokens_trained",
    "tokens_forward", "skipped", "memory_rollout", "memory_train", "speed_rollout", "speed_train",
}  # fmt: skip


def test_a_name_that_is_taken(plain):
    before = (plain / "metrics.jsonl").read_text(encoding="utf-8")
    message = run_here(flags(output=plain.parent, name="plain"))
    assert_one_line(message, "name='plain'", str(plain), "--resume")
    assert (plain / "metrics.jsonl").read_text(encoding="utf-8") == before


def test_runs_without_a_name_are_numbered(tmp_path):
    config = Config(output=str(tmp_path), seed=1)
    (tmp_path / "frozenlake-tiny-seed10").mkdir()
    names = [new_folder(config)[0].name for _ in range(3)]
    assert names == ["frozenlake-tiny-seed1", "frozenlake-tiny-seed1-2", "frozenlake-tiny-seed1-3"]


def test_names_of_runs_tell_ablations_apart():
    changed = Config(lr=1e-3, credit="sum", model="models/Some-1B", lora_targets="q_proj, v_proj", eval_every=3, seed=2)
    name = changed.base_name
    assert name == "frozenlake-tiny-model=Some-1B-lora_targets=q_proj_v_proj-credit=sum-lr=0.001-seed2"
    assert Config(kv_tokens=9, output="elsewhere").base_name == "frozenlake-tiny-seed0"  # another speed, the same run
    assert Config(envs="alchemy", steps=7).base_name == "mixed-steps=7-seed0"


def test_config_json_gives_the_settings_back(eventful):
    settings = {**SMALL, **EVENTFUL, "output": str(eventful.parent), "name": "eventful"}
    assert Config(**json.loads((eventful / "config.json").read_text(encoding="utf-8"))) == Config(**settings)
    assert parse_flags(Config, [str(eventful / "config.json")]) == Config(**settings)


def test_metrics_have_the_documented_keys_and_evaluations(plain):
    for line in steps_of(plain):
        assert set(line) >= STEP_KEYS
        assert all(math.isfinite(x) for value in line.values() for x in (value if type(value) is list else [value]))
        assert len(line["success"]) == len(line["reward"]) == len(line["zero_variance"]) == SMALL["pack_size"]
        assert line["tokens_sampled"] > 0
    assert [line["step"] for line in steps_of(plain)] == [1, 2, 3, 4]
    evaluations = [(line["step"], line["eval"]["label"]) for line in metrics(plain) if "eval" in line]
    assert evaluations[:4] == [
        (0, "before training"),
        (2, "validation"),
        (4, "after training"),
        (4, "after, hints blanked"),
    ]
    assert {label for _, label in evaluations[4:]} == set(players("frozenlake"))


def test_the_learning_rate_that_is_logged_follows_the_schedule(eventful):
    factors = [0.5, 1.0, 1.0, 2 / 3, 1 / 3]  # two steps of warm-up, then linear towards 0 after step 5
    assert [line["lr"] for line in steps_of(eventful)] == pytest.approx([5e-3 * factor for factor in factors])


def test_the_picture_and_the_samples(plain, eventful):
    assert (plain / "curves.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert set(samples(plain)) == {"step_000001.txt", "step_000001.json"}
    assert set(samples(eventful)) == {f"step_00000{step}.{kind}" for step in (1, 2, 4) for kind in ("txt", "json")}
    text = samples(plain)["step_000001.txt"]
    first, update, second = re.split(r"===== position \d, \w+: reward .* =====", text)[1:]
    assert f"{HINT_HEADING}\n{NO_HINTS_YET}" in first
    hint, _ = parse_update(update.split("[assistant]\n")[1])
    assert f"{HINT_HEADING}\n{hint}" in second


def test_a_hint_that_a_policy_wrote_is_shown_in_the_next_task(played):
    rollouts = [rollout for group in played for rollout in group]
    hints = [rollout.of("update")[0].context for rollout in rollouts]
    assert any(hint not in (NO_HINT_AVAILABLE, NO_HINTS_YET) for hint in hints)
    for rollout, hint in zip(rollouts, hints, strict=True):
        second = as_text(rollout).split("===== position 1, solve")[1]
        assert f"{HINT_HEADING}\n{hint}\n" in second


@pytest.mark.parametrize("context, label", [("own", "after training"), ("none", "after, hints blanked")])
def test_eval_of_the_run_repeats_the_evaluation_after_training(context, label, plain, tmp_path):
    argv = ["--policy", plain, "--packs", SMALL["test_packs"], "--context", context, "--output", tmp_path]
    assert run_here(argv, evaluation.main) == 0
    record = json.loads((tmp_path / "eval.json").read_text(encoding="utf-8"))["settings"][0]["records"][0]
    [logged] = [line["eval"] for line in metrics(plain) if line.get("eval", {}).get("label") == label]
    same = {name: record.get(name) for name in logged} | {"label": label, "env": "frozenlake/tiny"}
    assert logged["success"] and logged == same


def test_validation_and_test_packs_are_not_the_same(tmp_path):
    seeds = {}

    def evaluate(policy, label, packs, *rest, **options):
        seeds[label] = {pack.seed for pack in packs}
        return real(policy, label, packs, *rest, **options)

    real = evaluation.evaluate
    with mock.patch.object(evaluation, "evaluate", evaluate):
        assert run_here(flags(output=tmp_path, name="a", steps=2, eval_every=1, test_packs=2, eval_packs=3)) == 0
    validation = seeds.pop("validation")
    assert len(validation) == 3 and min(validation) >= VALIDATION_SEEDS
    assert set(map(frozenset, seeds.values())) == {frozenset(range(2))}


def test_the_adapter_that_is_saved_is_the_one_that_was_trained(plain):
    policy = load_policy(str(plain), EvalConfig())
    saved = load_peft_weights(str(plain / "checkpoints" / "step_000004" / "adapter"))
    loaded = {name: weights for name, weights in policy.model.state_dict().items() if "lora_" in name}
    assert {name.replace(".default", ""): weights.tolist() for name, weights in loaded.items()} == {
        name: weights.tolist() for name, weights in saved.items()
    }
    assert any("lora_B" in name and weights.any() for name, weights in loaded.items())


def test_a_model_that_never_keeps_the_format_is_pointed_out(model_folder, tmp_path, capsys):
    assert run_here(flags(output=tmp_path, model=model_folder, steps=1)) == 0
    assert "nothing to learn from" in capsys.readouterr().out


# ---------------------------------------------------------------------------------------------------------
#  A tracker


class Tracker(accelerate.tracking.GeneralTracker):
    """Writes what it is told into its folder, as accelerate's tracker for tensorboard does."""

    name, requires_logging_directory, main_process_only = "tensorboard", True, True

    def __init__(self, run_name, logging_dir):
        super().__init__()
        self.file = Path(logging_dir) / "tracked.jsonl"

    tracker = None

    def start(self):
        self.store_init_configuration({})

    def store_init_configuration(self, values):
        self.settings = values

    def log(self, values, step):
        with self.file.open("a", encoding="utf-8") as file:
            file.write(json.dumps([step, values]) + "\n")


def test_a_tracker_gets_every_number_of_steps_and_evaluations(tmp_path, monkeypatch):
    real = processes.importlib.util.find_spec
    monkeypatch.setattr(processes.importlib.util, "find_spec", lambda name, *a: name == "tensorboard" or real(name, *a))
    monkeypatch.setattr(
        accelerate.tracking, "get_available_trackers", lambda: [accelerate.utils.LoggerType.TENSORBOARD]
    )
    monkeypatch.setitem(accelerate.tracking.LOGGER_TYPE_TO_CLASS, "tensorboard", Tracker)
    monkeypatch.setattr(accelerate.accelerator, "LOGGER_TYPE_TO_CLASS", {"tensorboard": Tracker})
    assert run_here(flags(output=tmp_path, name="a", steps=2, eval_every=1, tracker="tensorboard")) == 0
    lines = [json.loads(line) for line in (tmp_path / "a" / "tracked.jsonl").read_text(encoding="utf-8").splitlines()]
    logged = metrics(tmp_path / "a")
    assert [step for step, _ in lines] == [line["step"] for line in logged]
    for (_, values), line in zip(lines, logged, strict=True):
        if "eval" in line:
            record = line["eval"]
            label = record["label"]
            assert values[f"{label}/success/1"] == record["success"][1] and values[f"{label}/packs"] == record["packs"]
        else:
            assert values["success/1"] == line["success"][1] and values["loss"] == line["loss"]
        assert all(isinstance(value, (int, float)) for value in values.values())


# ---------------------------------------------------------------------------------------------------------
# Packs of one task; other locales


def test_task_by_task_training_has_nothing_to_say_about_hints(tmp_path, capsys, monkeypatch):
    figures = []
    monkeypatch.setattr(pictures.plt, "close", figures.append)
    assert run_here(flags(output=tmp_path, name="a", pack_size=1, steps=1)) == 0
    labels = ["before training", "after training", *players("frozenlake")]
    assert [line["eval"]["label"] for line in metrics(tmp_path / "a") if "eval" in line] == labels
    out = capsys.readouterr().out.split("interval\n")[1].splitlines()
    assert out[0].split() == ["position", "0"]
    assert [line.split("  ")[0] for line in out[1 : 1 + len(labels)]] == labels
    assert all(re.fullmatch(r" +-?\d\.\d\d \[ *\S+, *\S+\]", line[len(max(labels, key=len)) :]) for line in out[1:6])
    assert out[6].startswith("written: ")
    [figure] = figures
    positions, training = figure.axes
    assert positions.get_legend_handles_labels()[1] == labels
    assert training.get_legend_handles_labels()[1] == ["position 0", "broken format"]
    assert all(line.get_marker() == "o" for line in training.get_lines())  # or a single step would not be seen
    assert [at for at in training.get_xticks() if 0.5 < at < 1.5] == [1]


def test_names_beyond_ascii_in_any_locale(start_process, tmp_path):
    """What is read and written is UTF-8; the name of a file is what the system says it is."""
    locale = {k: v for k, v in os.environ.items() if not k.startswith("LC_")}
    locale |= {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    settings = tmp_path / "größer.yaml"
    settings.write_text(f"# größer\noutput: {tmp_path}\n", encoding="utf-8")
    argv = flags(name="läufer", steps=1, eval_every=0, pack_size=1)
    run = tmp_path / "läufer"
    evaluation = ["--policy", run, "--packs", "2", "--output", tmp_path / "à"]
    for script, options in (("train.py", [settings, *argv]), ("eval.py", evaluation)):
        process = start_process(options, script=script, env=locale)
        _, err = process.communicate()
        assert process.returncode == 0, err
    assert (run / "curves.png").exists() and (tmp_path / "à" / "eval.png").exists()
    assert len(steps_of(run)) == 1 and run_here(["--resume", run]) == 0


def test_a_name_that_the_locale_cannot_write_ends_in_one_line(start_process, tmp_path):
    locale = {k: v for k, v in os.environ.items() if not k.startswith("LC_")} | {"LC_ALL": "C", "PYTHONUTF8": "0"}
    (tmp_path / "s.yaml").write_text(f"name: läufer\noutput: {tmp_path}\n", encoding="utf-8")
    process = start_process([tmp_path / "s.yaml", *flags()], env=locale)
    _, err = process.communicate()
    assert_one_line(err.removesuffix("\n"), "PYTHONUTF8=1")
    assert [path.name for path in tmp_path.iterdir()] == ["s.yaml"]
