"""Rollouts against the naive loop: how much faster, on the same packs, in the same run.

    python benchmarks/rollout.py                                      the embedded policy, level tiny
    python benchmarks/rollout.py --model FOLDER_OR_HUB_NAME --level train
    python benchmarks/rollout.py --shape Qwen3-1.7B --spell-out True       random weights; replies of some 60 tokens

The naive loop renders and tokenises every conversation again in every turn, pads on the left, and waits for the slowest
reply of all (`model.generate`, sampling with the same temperature). All play FrozenLake with a LoRA adapter. So that
all have the same work, and any model will do, a scripted player's replies stand in for what has been sampled, and each
is as long as the player's text: the work is that of sampling, the games are those of the player.
"""

import contextlib
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import ContinuousBatchingConfig, GenerationConfig

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.shared import Settings, wait_for
from engine.command_line import command_line, parse_flags
from engine.errors import BadInput
from engine.policy import Policy
from engine.settings import check_bounds, flag
from environments.frozenlake.players import Planner
from rollout import Episode, Reply, play, run


class Scripted:
    """A player whose replies have to be sampled first: the model writes as many tokens as the player's text has."""

    def __init__(self, chat, spell_out: bool = False):
        self.chat, self.spell_out = chat, spell_out
        self.players: dict[str, Planner] = {}

    def texts(self, episodes: list[Episode]) -> list[str]:
        replies = []
        for episode in episodes:  # a player for each game: what one game draws does not depend on the others
            player = self.players.setdefault(episode.rng_key.split("/")[1], Planner(0, spell_out=self.spell_out))
            replies.append(player.reply([episode])[0][1].text)
        return replies


class Naive(Scripted):
    """Re-render, pad on the left, generate, wait for all."""

    def __init__(self, policy: Policy, spell_out: bool = False):
        super().__init__(policy.chat, spell_out)
        self.policy, self.model, self.tokenizer, self.sampled = policy, policy.model, policy.chat.tokenizer, 0

    @torch.no_grad()
    def reply(self, episodes: list[Episode]) -> list[tuple[Episode, Reply]]:
        self.model.eval()
        texts = self.texts(episodes)
        lengths = [len(self.chat.encode(text)) + 1 for text in texts]
        rendered = [
            self.tokenizer.apply_chat_template(episode.messages, tokenize=False, add_generation_prompt=True)
            for episode in episodes
        ]
        self.tokenizer.pad_token, self.tokenizer.padding_side = self.tokenizer.eos_token, "left"
        batch = self.tokenizer(rendered, return_tensors="pt", padding=True, add_special_tokens=False)
        with self.policy.precision():
            self.model.generate(
                **batch.to(self.model.device),
                do_sample=True,
                temperature=self.policy.settings.temperature,
                top_k=0,
                top_p=1.0,
                min_new_tokens=max(lengths),
                max_new_tokens=max(lengths),
                pad_token_id=self.tokenizer.eos_token_id,
            )
        self.sampled += sum(lengths)
        return [(e, Reply(text, n)) for e, text, n in zip(episodes, texts, lengths, strict=True)]


class Ours(Scripted):
    """The policy of this project, told where each reply ends."""

    def __init__(self, policy: Policy, spell_out: bool = False):
        super().__init__(policy.chat, spell_out)
        self.policy, self.sampled, self.text = policy, 0, {}

    def reply(self, episodes: list[Episode]) -> list[tuple[Episode, Reply]]:
        for episode, text in zip(episodes, self.texts(episodes), strict=True):
            self.text[episode] = text
        policy = self.policy
        policy.lengths = {e: len(self.chat.encode(text)) + 1 for e, text in self.text.items()}
        answers = []
        for episode, reply in policy.reply(episodes):
            self.sampled += reply.n_tokens
            answers.append((episode, Reply(self.text.pop(episode), reply.n_tokens)))
        return answers


class Continuous(Scripted):
    """transformers' continuous batching: a paged cache, in which prompts that begin alike share their pages."""

    def __init__(self, policy: Policy, spell_out: bool = False):
        super().__init__(policy.chat, spell_out)
        self.sampled, self.waiting = 0, {}
        sampling = GenerationConfig(
            do_sample=True, temperature=policy.settings.temperature, top_k=0, top_p=1.0, eos_token_id=-1
        )
        self.model = policy.model.get_base_model()  # its layers have the adapter in them, merged or not
        self.attention = self.model.config._attn_implementation
        self.model.set_attn_implementation("sdpa")  # from there it finds its own: flash attention, or a paged one
        self.manager = self.model.init_continuous_batching(sampling, ContinuousBatchingConfig(return_logprobs=True))
        self.manager.start()

    def stop(self) -> None:
        self.manager.stop()
        self.model.set_attn_implementation(self.attention)

    def reply(self, episodes: list[Episode]) -> list[tuple[Episode, Reply]]:
        for episode, text in zip(episodes, self.texts(episodes), strict=True):
            self.chat.open_turn(episode)
            length = len(self.chat.encode(text)) + 1
            self.waiting[self.manager.add_request(episode.ids, max_new_tokens=length)] = (episode, text)
        answers = []
        while not answers or not self.manager.output_router.output_queue.empty():
            result = self.manager.get_result(timeout=60)
            if result is None or result.error:
                raise BadInput(f"continuous batching: {result.error if result else 'no answer within a minute'}")
            episode, text = self.waiting.pop(result.request_id)
            episode.add(result.generated_tokens, result.logprobs)
            self.sampled += len(result.generated_tokens)
            answers.append((episode, Reply(text, len(result.generated_tokens))))
        return answers


class FixedLengths(Policy):
    """Replies are as long as `lengths` says."""

    lengths: dict[Episode, int]

    def max_new_tokens(self, episode: Episode) -> int:
        return self.lengths[episode]


@dataclass(frozen=True)
class RolloutSettings(Settings):
    continuous: bool = flag(False, "also measure transformers' continuous batching")
    spell_out: bool = flag(False, "the player whose replies stand in thinks aloud: they are longer")


def measure(kind: type[Scripted], policy: FixedLengths, settings: RolloutSettings, name: str) -> tuple[float, int]:
    """Seconds that the rollouts take that way, and how many tokens are sampled in them."""
    policy.chat.stop_ids = set()
    with contextlib.nullcontext() if kind is Naive else policy.sampling():
        player = kind(policy, settings.spell_out)
        wait_for(policy)
        started = time.perf_counter()
        rollouts = run(map(play, settings.packs()), player, "benchmark")
        wait_for(policy)
        seconds = time.perf_counter() - started
        if kind is Continuous:
            player.stop()
    turns = sum(len(e.replies) for rollout in rollouts for e in rollout.episodes)
    print(f"{name}: {player.sampled} tokens in {turns} replies, {seconds:.1f} s")
    return seconds, player.sampled


def main() -> None:
    settings = parse_flags(RolloutSettings)
    check_bounds(settings)
    policy = settings.policy(FixedLengths)
    ways = {"naive": Naive, "ours, not merged": Ours, "ours": Ours}
    if settings.continuous:
        ways["continuous batching"] = Continuous
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    mergeable = policy.merged
    for _ in range(settings.repeats):
        for name, kind in ways.items():
            policy.merged = [] if name == "ours, not merged" else mergeable
            taken, sampled = measure(kind, policy, settings, name)
            seconds[name].append(taken)
    print(f"{policy.device}, {settings.rollouts} rollouts, against the naive loop:")
    for name, times in seconds.items():
        print(f"  {min(seconds['naive']) / min(times):.2f} {name} ({sampled / min(times):.0f} tokens/s)")


if __name__ == "__main__":
    command_line(main)
