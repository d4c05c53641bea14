"""The endpoint policy against a real server: `transformers serve` with the embedded policy, on this machine.

The server's packages are installed aside (36 MB, kept in the temporary folder); where that cannot be done the tests
are skipped. The bounds are wide enough to hold whatever the server draws (a false alarm in some 200 runs).
"""

import json
import math
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
import torch
from doubles import REPO, new_conversations

from engine.errors import BadInput
from envs import make_pack
from eval import evaluate
from evaluation.endpoint import Endpoint
from evaluation.policies import load_policy
from evaluation.settings import EvalConfig
from evaluation.statistics import game, summarise
from rollout import Penalties, play, run

WHEELS = (
    *("fastapi==0.165.0", "starlette==1.10.0", "uvicorn==0.54.0", "openai==3.57.0"),
    *("jiter==0.19.0", "sniffio==1.3.1", "opentelemetry-api==1.45.2"),
)
MODEL = REPO / "embedded-policy"
# unless it is told so, the server takes the likeliest token, or one of the 50 likeliest
PLAIN = {"generation_config": json.dumps({"do_sample": True, "top_k": 0, "top_p": 1.0})}
# how the server finds the reply in what was sampled; else it takes all models of the Qwen3 architecture for ChatML's
REPLY = {"start_anchor": "<|assistant|>", "fields": {"content": {"close": "<|end|>", "content": "text"}}}
PACKS = 25


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The embedded policy, with a word to the server."""
    folder = Path(shutil.copytree(MODEL, tmp_path_factory.mktemp("models") / "embedded"))
    settings = json.loads((folder / "tokenizer_config.json").read_text("utf-8"))
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"response_template": REPLY}), "utf-8")
    return str(folder)


@pytest.fixture(scope="module")
def server(install_aside, model, tmp_path_factory):
    """The URL of `transformers serve`."""
    environment = os.environ | {"PYTHONPATH": str(install_aside(*WHEELS)), "NO_PROXY": "*"}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    argv = ["serve", model, "--host", "127.0.0.1", "--port", port, "--device", "cpu", "--default-seed", "0"]
    command = [sys.executable, "-m", "transformers.cli.transformers", *map(str, argv)]
    log = tmp_path_factory.mktemp("serve") / "log.txt"
    with open(log, "wb") as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + 120
        while not healthy(port):
            assert process.poll() is None and time.monotonic() < deadline, log.read_text("utf-8", "replace")
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.kill()
        process.wait()


def healthy(port: int) -> bool:
    try:
        return urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).status == 200
    except OSError:
        return False


def client(url, model):
    return Endpoint(url, model, 1.0, 256, concurrency=4, extra_body=PLAIN, patience=60)


def packs(n):
    return [make_pack("frozenlake", seed, 4, "tiny") for seed in range(n)]


@pytest.fixture(scope="module")
def rollouts(server, model):
    """Packs played through the server."""
    with client(server, model) as policy:
        return run([play(pack) for pack in packs(PACKS)], policy)


@pytest.fixture(scope="module")
def direct():
    """The same policy in this process."""
    return load_policy(str(MODEL), EvalConfig(level="tiny"))


def test_it_plays_as_well_as_the_same_policy_played_directly(rollouts, direct):
    """At every position, within the 99.9 % interval of so many packs."""
    served = summarise("served", [game(rollout) for rollout in rollouts])
    with direct.sampling():
        record = evaluate(direct, "direct", packs(10 * PACKS), Penalties())
    for share, expected in zip(served["success"], record["success"], strict=True):
        assert abs(share - expected) < 3.3 * math.sqrt(expected * (1 - expected) / PACKS), (served, record)
    assert served["truncated"] < 0.02 and served["broken_format"] < 0.05


def test_it_reads_the_same_tokens_and_samples_the_plain_distribution(rollouts, direct):
    """Prompts have as many tokens as the chat template gives them. Over all sampled tokens, the stop token included,
    log p + entropy has mean 0 and a known variance if they were drawn from the model's own distribution."""
    surplus, variance, odd, n_replies = 0.0, 0.0, 0, 0
    for episode in [episode for rollout in rollouts for episode in rollout.episodes]:
        for k, reply in enumerate(episode.replies):
            prompt = tokens(direct, episode.messages[: 2 * k + 2], add_generation_prompt=True)
            ids = tokens(direct, episode.messages[: 2 * k + 3])
            assert reply.n_read == len(prompt) and ids[: len(prompt)] == prompt
            assert "<|" not in reply.text and reply.n_thought == 0 and reply.cost == 0
            n_replies += 1
            if reply.truncated or reply.n_tokens != len(ids) - len(prompt):
                odd += 1  # sampled as other tokens than those that the text is split into
                continue
            with torch.no_grad():
                logits = direct.model(torch.tensor([ids])).logits[0, len(prompt) - 1 : -1]  # [n, V]
            logp = logits.double().log_softmax(-1)
            entropy = -(logp.exp() * logp).sum(-1)  # [n]
            drawn = logp.gather(1, torch.tensor(ids[len(prompt) :])[:, None])[:, 0]  # [n]
            surplus += (drawn + entropy).sum().item()
            variance += ((logp.exp() * logp**2).sum(-1) - entropy**2).sum().item()
    assert n_replies > 10 * PACKS and odd < 0.02 * n_replies
    assert abs(surplus) < 3.3 * math.sqrt(variance), (surplus, variance)


def tokens(policy, messages, **options):
    return policy.chat.tokenizer.apply_chat_template(messages, **options)["input_ids"]


def test_a_model_that_the_server_does_not_know_ends_in_one_line(server):
    with client(server, "another") as policy, pytest.raises(BadInput) as error:
        policy.reply(new_conversations("x"))
    assert "HTTP 400" in str(error.value) and "another" in str(error.value) and "\n" not in str(error.value)
