"""Stand-ins that several test files use: a task that only talks, small random models, conversations by hand."""

import inspect
import os
import random
import subprocess
import sys
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from engine.embedded import build_model
from engine.models import Lora, add_adapter
from envs import Pack, Task
from rollout import Episode, Reply

REPO = Path(__file__).parents[1]


def same_in_other_processes(describe, *helpers):
    """Whether a function that describes packs returns the same text in processes that hash strings in other ways.

    Its source and that of its helpers run there, with itertools and make_pack at hand.
    """
    sources = [inspect.getsource(function) for function in (*helpers, describe)]
    code = "\n".join(["import itertools", "from envs import make_pack", *sources, f"print({describe.__name__}())"])
    for hash_seed in ("0", "4242"):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        result = subprocess.run([sys.executable, "-c", code], cwd=REPO, env=environment, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        if result.stdout.strip() != describe():
            return False
    return True


def message(role, *lines):
    return {"role": role, "content": "\n".join(lines)}


class Chatter(Task):
    """Any reply will do: the observations come one after the other."""

    rules = "Say something."

    def __init__(self, observations):
        self.observations, self.max_turns = observations, len(observations)

    def reset(self):
        self.turn = 0
        return self.observations[0]

    def step(self, reply):
        self.turn += 1
        return (self.observations[self.turn], False) if self.turn < self.max_turns else ("over", True)


def chatter_packs(n, seed=0):
    rng = random.Random(seed)

    def task():
        return Chatter(["x" * rng.choice([1, 5, 30, 100]) for _ in range(rng.randint(1, 4))])

    return [Pack("chatter", k, 2, "train", False, [task(), task()]) for k in range(n)]


def small_llama(tokenizer, kind=LlamaForCausalLM, config=LlamaConfig, attention="sdpa", **options):
    """A random model in which two query heads share a key-value head."""
    options = {"max_position_embeddings": 4096, "initializer_range": 0.1} | options
    settings = config(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
        pad_token_id=None,
        **options,
    )
    return kind._from_config(settings, attn_implementation=attention)


def small_model(name, tokenizer, stop_bias=5.5, **options):
    """A random model that ends its turn now and then: the output head gets a bias for the stop token."""
    torch.manual_seed(0)
    model = small_llama(tokenizer, **options) if name == "llama" else build_model(tokenizer)
    head = torch.nn.Linear(64, len(tokenizer))
    torch.nn.init.normal_(head.weight, std=0.2)
    torch.nn.init.zeros_(head.bias)
    head.weight.data[tokenizer.eos_token_id] = 0.0
    head.bias.data[tokenizer.eos_token_id] = stop_bias
    model.set_output_embeddings(head)
    if name == "qwen3 with an adapter":
        model = add_adapter(model, Lora(rank=4, alpha=8))
        for parameter in model.parameters():
            if parameter.requires_grad:
                torch.nn.init.normal_(parameter, std=0.1)
    return model.eval()


def take_turns(policy, episodes, observation):
    """One reply in each conversation, followed by an observation."""
    asking, waiting = list(episodes), set(episodes)
    while waiting:
        for episode, reply in policy.reply(asking):
            waiting.remove(episode)
            episode.replies.append(reply)
            episode.messages += [message("assistant", reply.text), message("user", observation)]
        asking = []


def new_conversations(*observations):
    return [Episode("solve", 0, [message("system", "R"), message("user", text)], "") for text in observations]


class Script:
    """A policy with known replies. A reply of n tokens (stop token included) gets log-probabilities -1, ..., -n."""

    def __init__(self, chat, replies):
        self.chat, self.replies = chat, list(replies)

    def reply(self, episodes):
        answers = []
        for episode in episodes:
            text = self.replies.pop(0)
            ids = self.chat.tokenizer(text + "<|end|>").input_ids
            self.chat.open_turn(episode)
            episode.add(ids, [-float(k + 1) for k in range(len(ids))])
            answers.append((episode, Reply(text, len(ids))))
        return answers


def tokens(tokenizer, pieces):
    """ids, mask and log-probabilities of pieces (text, whether it was sampled)."""
    ids, mask, logps = [], [], []
    for text, sampled in pieces:
        piece = tokenizer(text).input_ids
        ids += piece
        mask += [sampled] * len(piece)
        logps += [-float(k + 1) if sampled else 0.0 for k in range(len(piece))]
    return ids, mask, logps
