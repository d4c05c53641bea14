"""Distillation: the scores of teachers against a teacher that is loaded by itself, and against the exact divergence."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from training import (
    PLAYED,
    assert_one_line,
    assert_same_run,
    flags,
    fresh_policy,
    kill,
    run_here,
    run_until,
    shake,
    steps_of,
    trained_weights,
)

import train
from engine.batches import batch_of
from engine.errors import BadInput
from engine.models import Lora, add_adapter, load_model
from engine.policy import Policy
from engine.settings import Config, parse_teachers, with_teachers
from engine.teachers import add_teachers, assign_gaps, teaching
from grpo import policy_loss
from imitation.teaching import Lessons, imitate

TINY, TRAIN = "frozenlake/tiny", "frozenlake/train"


def a_run(folder, size=0.05, seed=0, rank=4, targets="all-linear", **settings):
    """What a run leaves of itself that a teacher needs: its settings and its adapter, here with random weights."""
    torch.manual_seed(seed)
    model, _ = load_model("embedded-policy")
    model = add_adapter(model, Lora(rank, 2 * rank, targets=targets))
    for parameter in model.parameters():
        if parameter.requires_grad and size:
            parameter.data += size * torch.randn(parameter.shape)
    folder.mkdir()
    model.save_pretrained(folder / "adapter")
    config = {"model": "embedded-policy", "gguf_file": ""} | settings
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "metrics.jsonl").touch()
    return folder


def a_taught_run(folder):
    """The same of a run whose adapter has learnt something: how the clean player plays."""
    a_run(folder, size=0)
    model, tokenizer = load_model("embedded-policy")
    policy = Policy(add_adapter(model, Lora(4, 8)), tokenizer)
    lessons = Lessons(policy.chat, [("frozenlake", "tiny")], 10**6, packs=12)
    imitate(policy, lessons, 12, lambda _: 1e-2, "teacher", 8192)
    policy.model.save_pretrained(folder / "adapter")
    return folder


def student(config, teachers):
    policy = fresh_policy(config)
    shake(policy)
    add_teachers(policy, {env: folder / "adapter" for env, folder in teachers.items()})
    return policy


# ---------------------------------------------------------------------------------------------------------
# The estimator


def test_gradient_is_that_of_the_reverse_divergence():
    """A policy of one token: when it has sampled every token as often as it should, minus the loss' gradient is that of
    KL(student | teacher), here by finite differences."""
    counts = torch.tensor([4, 2, 1, 1])
    theta = (counts / 8.0).double().log().requires_grad_()  # the logits of a policy that samples like that
    teacher = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.double).log()
    tokens = torch.repeat_interleave(torch.arange(4), counts)[None]  # [1, 8]
    old = theta.detach().log_softmax(-1)[tokens]
    logp = theta.log_softmax(-1)[tokens]
    gaps = teacher[tokens] - old
    loss, _ = policy_loss(logp, old, gaps, torch.ones_like(tokens, dtype=torch.bool), n_tokens=8)
    loss.backward()

    def divergence(logits):
        p = logits.log_softmax(-1)
        return (p.exp() * (p - teacher)).sum()

    for k in range(4):
        step = torch.zeros(4, dtype=torch.double)
        step[k] = 1e-5
        slope = (divergence(theta.detach() + step) - divergence(theta.detach() - step)) / 2e-5
        assert theta.grad[k].item() == pytest.approx(slope.item(), abs=1e-8)
    assert -gaps.mean().item() == pytest.approx(divergence(theta.detach()).item())


# ---------------------------------------------------------------------------------------------------------
# Scores


@pytest.fixture(scope="module")
def teachers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teachers")
    return {TINY: a_run(folder / "a", seed=1, rank=8), TRAIN: a_run(folder / "b", seed=2)}


def test_advantages_are_those_of_the_teacher_of_the_environment(teachers):
    """Against each teacher loaded by itself; every token that was sampled, and no other."""
    config = with_teachers(replace(PLAYED, teachers=",".join(f"{env}={run}" for env, run in teachers.items())))
    policy = student(config, teachers)
    groups = train.collect(policy, config, 0)
    before = trained_weights(policy)
    episodes, metrics = assign_gaps(policy, groups, config)
    assert len(episodes) == config.packs_per_step * config.group_size * (2 * config.pack_size - 1)
    sums = {}
    for env, run in teachers.items():
        model, tokenizer = load_model("embedded-policy")
        alone = Policy(add_adapter(model, folder=run / "adapter"), tokenizer, config)
        of_env = [e for group in groups for r in group if r.env == env for e in r.episodes]
        assert of_env
        for episode in of_env:
            batch = batch_of([episode], 0, policy.device)
            with torch.no_grad():
                logp = alone.logprobs(batch.ids, batch.mask)[0][0]
            want = [x - old if m else 0.0 for x, old, m in zip(logp.tolist(), episode.logps, episode.mask, strict=True)]
            assert episode.advantages == pytest.approx(want, abs=1e-4)
            assert episode.advantage == pytest.approx(sum(want) / episode.n_sampled, abs=1e-4)
        gaps = [x for e in of_env for x, m in zip(e.advantages, e.mask, strict=True) if m]
        sums[f"gap/{env}"] = sum(gaps) / len(gaps)
        assert max(map(abs, gaps)) > 0.1
    assert metrics == pytest.approx(sums)
    assert torch.equal(trained_weights(policy), before)  # the student's again, and all of it


def test_a_batch_takes_every_token_s_own_advantage(teachers):
    config = with_teachers(replace(PLAYED, teachers=f"{TINY}={teachers[TINY]}", packs_per_step=2))
    policy = student(config, {TINY: teachers[TINY]})
    episodes, _ = assign_gaps(policy, train.collect(policy, config, 0), config)
    one, other = sorted(episodes, key=lambda e: len(e.ids))[:: len(episodes) - 1]
    batch = batch_of([one, other], 0, policy.device)
    assert batch.advantages[1].tolist() == pytest.approx(other.advantages)
    assert batch.advantages[0].tolist() == pytest.approx(one.advantages + [0.0] * (len(other.ids) - len(one.ids)))
    one.advantages, one.advantage = [], 0.5  # as without teachers
    assert batch_of([one], 0, policy.device).advantages.tolist() == [[0.5] * len(one.ids)]


def test_a_teacher_that_is_the_student_teaches_nothing(tmp_path):
    run = a_run(tmp_path / "same", size=0.0)  # a fresh adapter changes nothing, whatever its rank
    config = with_teachers(replace(PLAYED, teachers=f"{TINY}={run}"))
    policy = fresh_policy(config)
    add_teachers(policy, {TINY: run / "adapter"})
    episodes, metrics = assign_gaps(policy, train.collect(policy, config, 0), config)
    assert max(abs(x) for e in episodes for x in e.advantages) < 1e-4 and abs(metrics[f"gap/{TINY}"]) < 1e-5


def test_sampling_and_training_use_the_student(teachers):
    config = replace(PLAYED, packs_per_step=2)
    plain = fresh_policy(config)
    shake(plain)
    policy = student(config, teachers)
    with teaching(policy, TINY):
        pass
    texts = [
        [reply.text for group in train.collect(p, config, 0) for r in group for e in r.episodes for reply in e.replies]
        for p in (plain, policy)
    ]
    assert texts[0] == texts[1]
    assert [p.requires_grad for n, p in policy.model.named_parameters() if "teacher" in n].count(True) == 0
    assert torch.equal(trained_weights(plain), trained_weights(policy))


# ---------------------------------------------------------------------------------------------------------
# Runs


def test_a_run_comes_closer_to_its_teacher_and_saves_the_student_alone(tmp_path):
    options = {"steps": 10, "packs_per_step": 16, "group_size": 1, "max_reply_tokens": 48, "eval_every": 0}
    teacher = a_taught_run(tmp_path / "teacher")
    assert run_here(flags(teachers=f"{TINY}={teacher}", output=tmp_path, name="run", **options)) == 0
    gaps = [line[f"gap/{TINY}"] for line in steps_of(tmp_path / "run")]
    assert all(gap < 0 for gap in gaps) and sum(gaps[-3:]) / 3 > 0.5 * gaps[0]
    assert {path.name for path in (tmp_path / "run" / "adapter").iterdir()} >= {"adapter_model.safetensors"}
    assert not list((tmp_path / "run").rglob("teacher*"))


def test_an_interrupted_distillation_goes_on_exactly(teachers, tmp_path):
    both = ",".join(f"{env}={run}" for env, run in teachers.items())
    argv = flags(teachers=both, group_size=1, output=tmp_path)
    assert run_here([*argv, "--name", "whole"]) == 0
    assert run_until([*argv, "--name", "broken"], "training_step", 3, kill) == "killed"
    assert run_here(["--resume", tmp_path / "broken"]) == 0
    assert_same_run(tmp_path / "broken", tmp_path / "whole")
    for line in steps_of(tmp_path / "whole"):
        assert {f"gap/{env}" for env in teachers} <= set(line)


def test_only_what_has_a_teacher_is_played():
    config = with_teachers(Config(teachers=f"{TINY}=a,{TRAIN}=b"))
    assert config.env_levels == [("frozenlake", "tiny"), ("frozenlake", "train")]
    assert [Path(run).is_absolute() for run in config.taught.values()] == [True, True]
    assert with_teachers(Config(teachers=f"{TRAIN}=b")).env_levels == [("frozenlake", "train")]
    assert config.base_name == "distilled-seed0" and with_teachers(Config()) == Config()
    replace(config, envs=f"{TINY}=3,{TRAIN}=1").validate()
    with pytest.raises(BadInput, match="teachers=.*there is none for frozenlake/hard"):
        replace(config, envs=f"{TINY},frozenlake/hard").validate()
    with pytest.raises(BadInput, match="group_size=1"):
        Config(group_size=1).validate()


def test_teachers_are_read():
    assert parse_teachers("a/b=runs/x, c/d=y=z") == {("a", "b"): "runs/x", ("c", "d"): "y=z"}
    for bad in ("a=x", "a/b", "a/b/c=x", "/b=x", "a/b=", "a/b=x,", "a/b=x,a/b=y"):
        with pytest.raises(BadInput, match="teachers="):
            parse_teachers(bad)


def damage(kind, folder):
    run = folder / kind
    if kind == "missing":
        return run
    if kind == "other model":
        return a_run(run, model="another-model")
    if kind == "other layers":
        return a_run(run, targets="q_proj")
    a_run(run)
    if kind == "not ended":
        shutil.rmtree(run / "adapter")
    elif kind == "torn adapter":
        (run / "adapter" / "adapter_model.safetensors").write_bytes(b"torn")
    elif kind == "torn settings":
        (run / "adapter" / "adapter_config.json").write_text("{", encoding="utf-8")
    return run


BAD = {
    "missing": "not a run folder",
    "other model": "its model is 'another-model', that of the student 'embedded-policy'",
    "other layers": "adapts other layers",
    "not ended": "has not ended",
    "torn adapter": "cannot be read",
    "torn settings": "cannot be read",
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_teachers_end_in_one_line(kind, tmp_path):
    run = damage(kind, tmp_path)
    message = run_here(flags(teachers=f"{TINY}={run}", output=tmp_path / "runs"))
    assert_one_line(message, str(run), BAD[kind])
    assert not (tmp_path / "runs").exists()
