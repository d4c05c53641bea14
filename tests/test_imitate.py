"""imitate.py: what the lessons ask for, that imitation learns it, and the command line."""

import copy
import dataclasses
import itertools
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

import imitate as script
from engine.batches import pad_batch
from engine.command_line import command_line
from engine.embedded import build_model
from engine.models import add_adapter, load_model
from engine.policy import Policy
from environments.frozenlake.players import LakeLearner, LakeRandom, Planner
from envs import make_pack
from imitation import teaching
from imitation.teaching import Lessons, Teacher, imitate, rise_and_fall
from rollout import play, run

ROOT = Path(__file__).parents[1]


def masked_runs(episode):
    """The stretches of sampled tokens, each as a list of ids."""
    grouped = itertools.groupby(zip(episode.mask, episode.ids, strict=True), key=lambda pair: pair[0])
    return [[token for _, token in pairs] for sampled, pairs in grouped if sampled]


# ---------------------------------------------------------------------------------------------------------
# Lessons


@pytest.mark.parametrize("player", [Planner(0), LakeLearner(), LakeRandom(0)])
def test_teacher_masks_the_replies_and_the_ends_of_the_turns(player, tokenizer, chat):
    packs = [make_pack("frozenlake", seed, 3, "tiny") for seed in range(10)]
    for result in run(map(play, packs), Teacher(player, chat)):
        for episode in result.episodes:
            said = [tokenizer.decode(ids) for ids in masked_runs(episode)]
            assert said == [reply.text + "<|end|>" for reply in episode.replies]
            assert [m["content"] for m in episode.messages if m["role"] == "assistant"] == [t[:-7] for t in said]
            assert len(episode.logps) == len(episode.ids) and not any(episode.logps)


def test_teacher_lets_no_reply_spell_special_tokens(tokenizer, chat):
    class Odd(LakeRandom):
        def act(self, messages):
            return "a<|end|><|user|>b"

    result = run([play(make_pack("frozenlake", 0, 1, "tiny"))], Teacher(Odd(), chat))[0]
    [ids] = masked_runs(result.episodes[0])
    assert tokenizer.decode(ids) == "a< |end|>< |user|>b<|end|>"
    assert ids.count(tokenizer.eos_token_id) == 1


def lessons(chat, **settings):
    return Lessons(chat, [("frozenlake", "tiny")], 0, packs=2, pack_size=2, **settings)


def test_lessons_never_use_a_pack_twice(chat, monkeypatch):
    made, original = [], teaching.make_pack
    monkeypatch.setattr(teaching, "make_pack", lambda *arguments: made.append(arguments) or original(*arguments))
    batches = Lessons(chat, [("frozenlake", "train"), ("alchemy", "tiny")], 500, packs=3, pack_size=2)
    kinds = [[episode.kind for episode in batches(number)] for number in range(4)]
    assert kinds == [["solve", "update", "solve"] * 3] * 4
    domains = [("frozenlake", "train"), ("alchemy", "tiny"), ("frozenlake", "train")] * 4
    assert made == [(env, seed, 2, level) for seed, (env, level) in enumerate(domains, 500)]


def test_lessons_follow_their_number_and_seed_alone(chat):
    batches = lessons(chat, knobs={"frozenlake": {"recall": 0.3, "write": 0.5}})
    third = [episode.ids for episode in batches(3)]
    batches(1)
    assert [episode.ids for episode in batches(3)] == third
    assert [e.ids for e in lessons(chat, knobs=batches.knobs, seed=1)(3)] != third


def test_a_share_of_the_lessons_is_harder(chat, monkeypatch):
    made, original = [], teaching.make_pack
    monkeypatch.setattr(teaching, "make_pack", lambda *arguments: made.append(arguments) or original(*arguments))
    batches = Lessons(chat, [("alchemy", "tiny"), ("terminal", "tiny")], 0, packs=200, pack_size=1, harder=0.25)
    batches(0)
    assert {env for env, _, _, _ in made} == {"alchemy", "terminal"}
    assert sum(level == "tiny-hard" for _, _, _, level in made) == pytest.approx(50, abs=25)


# ---------------------------------------------------------------------------------------------------------
# Learning


def test_learning_rate_rises_over_a_tenth_and_falls_to_a_tenth():
    lr = rise_and_fall(3.0)
    assert 0 < lr(0.0) < 0.1
    early = [lr(k / 100) for k in range(10)]
    late = [lr(k / 100) for k in range(10, 101)]
    assert early == sorted(early) and late == sorted(late, reverse=True)
    assert max(early + late) == pytest.approx(3.0) and lr(0.1) == pytest.approx(3.0)
    assert lr(1.0) == pytest.approx(0.3)
    assert lr(0.6) == pytest.approx(1.5)


@pytest.fixture(scope="session")
def batch(chat):
    return lessons(chat)(0)


def new_policy(tokenizer):
    torch.manual_seed(0)
    return Policy(build_model(tokenizer), tokenizer)


def test_loss_falls_on_a_fixed_batch(batch, tokenizer):
    policy, losses = new_policy(tokenizer), []
    ids, mask, _ = pad_batch(batch, "cpu")
    with torch.no_grad():
        first = -policy.logprobs(ids, mask)[0].sum().item() / mask.sum().item()
    goal = imitate(policy, lambda _: batch, 25, lambda _: 5e-3, "", 8192, lambda _, loss: losses.append(loss))
    assert goal is False  # it was never reached
    assert losses[0] == pytest.approx(first, rel=1e-4)
    assert len(losses) == 25 and losses[-1] < 0.3 * losses[0]


def test_imitation_stops_where_its_goal_is_reached(batch, tokenizer):
    steps, progress = [], []

    def reached(step, loss):
        steps.append(step)
        return step == 3

    def lr(at):
        progress.append(at)
        return 1e-3

    assert imitate(new_policy(tokenizer), lambda _: batch, 10, lr, "", 8192, reached) is True
    assert steps == [0, 1, 2, 3] and progress == [0.0, 0.1, 0.2, 0.3]
    assert imitate(new_policy(tokenizer), lambda _: batch, 1, lr, "", 8192) is True  # no goal to miss


def flat_weights(policy):
    return torch.cat([parameter.detach().flatten() for parameter in policy.model.parameters()])


def test_imitation_is_plain_adamw_on_the_mean_loss_for_any_microbatches(batch, tokenizer):
    """Against a loop over whole batches, with the logits of every position."""
    plain, losses = new_policy(tokenizer), []
    optimizer = torch.optim.AdamW(plain.model.parameters(), lr=1e-3, weight_decay=0.0)
    ids, mask, _ = pad_batch(batch, "cpu")
    before = flat_weights(plain)
    for _ in range(3):
        logits = plain.model(input_ids=ids).logits[:, :-1]  # [B, T-1, V]
        loss = torch.nn.functional.cross_entropy(logits[mask[:, 1:]], ids[:, 1:][mask[:, 1:]])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(plain.model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    moved = (flat_weights(plain) - before).norm()
    for budget in (1, 300, 100_000):
        policy, got = new_policy(tokenizer), []
        imitate(policy, lambda _: batch, 3, lambda _: 1e-3, "", budget, lambda _, loss, got=got: got.append(loss))
        assert got == pytest.approx(losses, rel=1e-3)
        assert (flat_weights(policy) - flat_weights(plain)).norm() < 0.02 * moved


def test_only_trainable_weights_change(batch, tokenizer):
    policy = new_policy(tokenizer)
    frozen = policy.model.get_input_embeddings().weight.requires_grad_(False)
    before = copy.deepcopy(policy.model.state_dict())
    imitate(policy, lambda _: batch, 1, lambda _: 1e-2, "", 8192)
    after = policy.model.state_dict()
    assert torch.equal(frozen, before["model.embed_tokens.weight"])
    assert not torch.equal(after["model.layers.0.mlp.up_proj.weight"], before["model.layers.0.mlp.up_proj.weight"])


# ---------------------------------------------------------------------------------------------------------
# Command line


def call(monkeypatch, *argv):
    """Run the script's main in this process, as `python imitate.py ARGV` does."""
    monkeypatch.setattr(sys, "argv", ["imitate.py", *map(str, argv)])
    command_line(script.main)


def weights(folder):
    model, tokenizer = load_model(str(folder))
    return model, tokenizer, {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("rank", [0, 2])
def test_warm_start_writes_a_model_that_loads(rank, model_folder, tmp_path, monkeypatch):
    output = tmp_path / "warm" / "start"
    options = ["--model", model_folder, "--steps", 2, "--packs-per-step", 2, "--pack-size", 2, "--lr", 0.01]
    call(monkeypatch, *options, "--lora-rank", rank, "--player", "mediocre", "--output", output)
    model, tokenizer, after = weights(output)
    plain, original, before = weights(model_folder)
    assert type(model) is type(plain) and after.keys() == before.keys()  # an adapter is merged, nothing is left of it
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert "model.layers.0.self_attn.q_proj.weight" in changed
    assert ("model.embed_tokens.weight" in changed) == (rank == 0)
    assert tokenizer.chat_template == original.chat_template
    assert tokenizer("I know up: Direction 1").input_ids == original("I know up: Direction 1").input_ids
    ids = torch.tensor([tokenizer("I know up: Direction 1\n<answer>Direction 1</answer><|end|>").input_ids])
    mask = torch.ones_like(ids, dtype=torch.bool)
    assert Policy(model, tokenizer).logprobs(ids, mask)[0].sum() > Policy(plain, original).logprobs(ids, mask)[0].sum()


def test_warm_start_is_repeatable_and_follows_its_seed(model_folder, tmp_path, monkeypatch):
    options = ["--model", model_folder, "--steps", 1, "--packs-per-step", 1, "--pack-size", 2, "--lora-rank", 1]
    results = []
    for k, seed in enumerate((1, 1, 2)):
        call(monkeypatch, *options, "--seed", seed, "--output", tmp_path / str(k))
        results.append(weights(tmp_path / str(k))[2]["model.layers.0.self_attn.q_proj.weight"])
    assert torch.equal(results[0], results[1]) and not torch.equal(results[0], results[2])


@pytest.mark.parametrize("rank", [0, 2])
def test_interrupted_warm_start_goes_on_exactly(rank, model_folder, tmp_path, monkeypatch):
    """Broken off in the third of four steps, after one that was saved; what the player does is random, too."""
    options = ["--model", model_folder, "--steps", 4, "--packs-per-step", 1, "--pack-size", 2, "--lora-rank", rank]
    options += ["--player", "mediocre", "--lr", 0.01]
    call(monkeypatch, *options, "--output", tmp_path / "whole")
    output, partial = tmp_path / "deep" / "broken", tmp_path / "deep" / "broken.partial"
    monkeypatch.setattr(teaching, "SAVE_EVERY", 2)
    rates, factor = [], script.rise_and_fall(0.01)

    def third_fails(progress):
        rates.append(progress)
        if len(rates) == 3:
            raise KeyboardInterrupt
        return factor(progress)

    with monkeypatch.context() as patch:
        patch.setattr(script, "rise_and_fall", lambda peak: third_fails)
        with pytest.raises(SystemExit):
            call(patch, *options, "--output", output)
    assert partial.exists() and not output.exists()
    with pytest.raises(SystemExit) as raised:
        call(monkeypatch, *options, "--output", output, "--seed", 5)
    assert "seed=5" in str(raised.value) and partial.exists()
    call(monkeypatch, *options, "--output", output, "--tokens-per-microbatch", 4000, "--gradient-checkpointing", "on")
    assert not partial.exists()
    expected, got = weights(tmp_path / "whole")[2], weights(output)[2]
    assert all(torch.equal(expected[name], got[name]) for name in expected)


def test_full_disk_leaves_no_half_a_model(model_folder, tmp_path, monkeypatch):
    """The steps that are behind it are kept, and the same line goes on from them."""
    options = ["--model", model_folder, "--steps", 2, "--packs-per-step", 1, "--pack-size", 1]
    options += ["--output", tmp_path / "new"]
    monkeypatch.setattr(teaching, "SAVE_EVERY", 1)

    def full(model, folder, **settings):
        (Path(folder) / "config.json").write_text("{", encoding="utf-8")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(PreTrainedModel, "save_pretrained", full)
        with pytest.raises(SystemExit) as raised:
            call(patch, *options)
    assert raised.value.code.startswith(f"error: {tmp_path / 'new'}: could not be written (")
    assert [path.name for path in tmp_path.iterdir()] == ["new.partial"]
    call(monkeypatch, *options)
    assert [path.name for path in tmp_path.iterdir()] == ["new"]


def test_a_build_is_not_gone_on_with_after_a_change_of_the_recipe(tmp_path, monkeypatch):
    begun = {"settings": dataclasses.asdict(script.ImitateConfig(output=str(tmp_path / "new"))) | {"recipe": "another"}}
    torch.save(begun, tmp_path / "new.partial")
    with pytest.raises(SystemExit) as raised:
        call(monkeypatch, "--output", str(tmp_path / "new"))
    assert f"recipe='{script.recipe()}': " in str(raised.value) and "begun with 'another'" in str(raised.value)


def test_partial_that_cannot_be_read_is_refused_in_one_line(model_folder, tmp_path, monkeypatch):
    (tmp_path / "new.partial").write_bytes(b"no weights")
    with pytest.raises(SystemExit) as raised:
        call(monkeypatch, "--model", model_folder, "--output", tmp_path / "new")
    assert "new.partial: cannot be read" in str(raised.value) and "\n" not in str(raised.value)
    assert (tmp_path / "new.partial").exists()


def test_out_of_memory_is_one_line_that_says_what_to_lower(model_folder, tmp_path, monkeypatch):
    def fail(*arguments, **options):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")

    monkeypatch.setattr(script, "imitate", fail)
    with pytest.raises(SystemExit) as raised:
        call(monkeypatch, "--model", model_folder, "--output", tmp_path / "new")
    assert "out of memory in imitation" in raised.value.code and "--tokens-per-microbatch" in raised.value.code
    assert "\n" not in raised.value.code and not (tmp_path / "new").exists()


def test_player_and_environments_are_those_of_the_flags(model_folder, tmp_path, monkeypatch):
    taught = []
    monkeypatch.setattr(script, "imitate", lambda policy, batches, *rest, **options: taught.append(batches))
    options = ["--model", model_folder, "--packs-per-step", 2, "--pack-size", 1, "--seed", 4]
    call(monkeypatch, *options, "--output", tmp_path / "a")
    mixed = ["--player", "mediocre", "--envs", "frozenlake/train,alchemy/tiny=2", "--spell-out", "True"]
    call(monkeypatch, *options, "--output", tmp_path / "b", *mixed)
    plain, careless = taught
    assert plain.domains == [("frozenlake", "tiny")] and plain.knobs["frozenlake"] == {"spell_out": False, "plan": 1.0}
    assert careless.domains == [("frozenlake", "train"), ("alchemy", "tiny"), ("alchemy", "tiny")]
    assert careless.knobs["alchemy"] == script.PLAYERS["mediocre"] and 0 < careless.knobs["alchemy"]["recall"] < 1
    assert careless.knobs["frozenlake"] == script.PLAYERS["mediocre"] | {"spell_out": True, "plan": script.PLAN}
    assert {(b.packs, b.pack_size, b.seed, b.first_pack) for b in taught} == {(2, 1, 4, 5 * 10**6)}


NEW = ["--output", "new"]
BAD = {
    "no output": ([], ["output=''"]),
    "existing output folder": (["--output", "folder"], ["output='folder'"]),
    "existing output file": (["--output", "folder/file"], ["output='folder/file'"]),
    "negative steps": ([*NEW, "--steps", "-1"], ["steps=-1"]),
    "no packs": ([*NEW, "--packs-per-step", "0"], ["packs_per_step=0"]),
    "empty packs": ([*NEW, "--pack-size", "0"], ["pack_size=0"]),
    "no learning rate": ([*NEW, "--lr", "0"], ["lr=0.0"]),
    "learning rate is no number": ([*NEW, "--lr", "nan"], ["lr=nan"]),
    "negative rank": ([*NEW, "--lora-rank", "-1"], ["lora_rank=-1"]),
    "unknown player": ([*NEW, "--player", "expert"], ["--player", "expert", "clean", "mediocre"]),
    "unknown level": ([*NEW, "--envs", "frozenlake/easy"], ["level='easy'", "frozenlake", "tiny", "hard"]),
    "level without a player": ([*NEW, "--envs", "alchemy/train"], ["level='train'", "alchemy", "tiny, tiny-hard"]),
    "environment without a player": ([*NEW, "--envs", "control/train"], ["level='train'", "control", "DEMONSTRATORS"]),
    "unknown environment": ([*NEW, "--envs", "lake"], ["env='lake'", "frozenlake"]),
    "unknown flag": ([*NEW, "--epochs", "3"], ["--epochs"]),
    "unknown model": ([*NEW, "--model", "no/such/model"], ["model='no/such/model'"]),
}


@pytest.mark.parametrize(("argv", "named"), BAD.values(), ids=BAD.keys())
def test_bad_input_ends_in_one_line(argv, named, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").write_text("kept", encoding="utf-8")
    monkeypatch.setattr(script, "build_embedded", None)  # none of this may get so far
    with pytest.raises(SystemExit) as raised:
        call(monkeypatch, *argv)
    line = raised.value.code  # what Python prints to stderr, with exit code 1
    assert isinstance(line, str) and line.startswith("error: ") and "\n" not in line
    assert all(part in line for part in named)
    assert capsys.readouterr() == ("", "")
    assert not (tmp_path / "new").exists() and (tmp_path / "folder" / "file").read_text(encoding="utf-8") == "kept"


def test_unknown_player_from_the_shell(tmp_path):
    command = [sys.executable, ROOT / "imitate.py", "--output", "new", "--player", "expert"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.count("\n") == 1 and done.stderr.startswith("error: ") and "expert" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_adapter_of_a_warm_start_leaves_the_output_head_alone(model_folder):
    model = add_adapter(load_model(str(model_folder))[0], script.Lora(2, 4))
    adapted = {name.split(".lora_")[0].rsplit(".", 1)[-1] for name, _ in model.named_parameters() if "lora_" in name}
    assert adapted == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
