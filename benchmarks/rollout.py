"""Rollouts against the naive loop: how much faster, on the same packs, in the same run.

    python benchmarks/rollout.py                                      the embedded policy, level tiny
    python benchmarks/rollout.py --model FOLDER_OR_HUB_NAME --level train

The naive loop renders and tokenises every conversation again in every turn, pads on the left, and waits for the slowest
reply of all (`model.generate`, sampling with the same temperature). Both play FrozenLake with a LoRA adapter. So that
both have the same work, and any model will do, a scripted player's replies stand in for what has been sampled, and each
is as long as the player's text: the work is that of sampling, the games are those of the player.
"""

import time

import torch
from shared import Settings, wait_for

from eval import command_line, parse_flags
from players import Planner
from policy import Policy
from rollout import Episode, Reply, play, run


class Scripted:
    """A player whose replies have to be sampled first: the model writes as many tokens as the player's text has."""

    def __init__(self, chat):
        self.chat = chat
        self.players: dict[str, Planner] = {}

    def texts(self, episodes: list[Episode]) -> list[str]:
        replies = []
        for episode in episodes:  # a player for each game: what one game draws does not depend on the others
            player = self.players.setdefault(episode.noise.split("/")[1], Planner(0))
            replies.append(player.reply([episode])[0][1].text)
        return replies


class Naive(Scripted):
    """Re-render, pad on the left, generate, wait for all."""

    def __init__(self, policy: Policy):
        super().__init__(policy.chat)
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
        self.model.generate(
            **batch.to(self.model.device), do_sample=True, temperature=self.policy.temperature, top_k=0, top_p=1.0,
            min_new_tokens=max(lengths), max_new_tokens=max(lengths), pad_token_id=self.tokenizer.eos_token_id,
        )  # fmt: skip
        self.sampled += sum(lengths)
        return [(e, Reply(text, n)) for e, text, n in zip(episodes, texts, lengths, strict=True)]


class Ours(Scripted):
    """The policy of this project, told where each reply ends."""

    def __init__(self, policy: Policy):
        super().__init__(policy.chat)
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


class FixedLengths(Policy):
    """Replies are as long as `lengths` says."""

    lengths: dict[Episode, int]

    def room(self, episode: Episode) -> int:
        return self.lengths[episode]


def main() -> None:
    settings = parse_flags(Settings)
    policy = settings.policy(FixedLengths)
    policy.chat.stop_ids = set()
    seconds: dict[str, list[float]] = {"naive": [], "ours": []}
    tokens = {}
    for _ in range(settings.repeats):
        for name, kind in (("naive", Naive), ("ours", Ours)):
            policy.fresh_cache()
            player = kind(policy)
            started = time.perf_counter()
            rollouts = run(map(play, settings.packs()), player, "benchmark")
            wait_for(policy)
            seconds[name].append(time.perf_counter() - started)
            tokens[name] = player.sampled
            turns = sum(len(e.replies) for rollout in rollouts for e in rollout.episodes)
            print(f"{name}: {tokens[name]} tokens in {turns} replies, {seconds[name][-1]:.1f} s")
    assert tokens["naive"] == tokens["ours"]
    best = {name: min(times) for name, times in seconds.items()}
    print(
        f"{policy.device}, {settings.rollouts} rollouts: naive {tokens['naive'] / best['naive']:.0f} tokens/s, "
        f"ours {tokens['ours'] / best['ours']:.0f} tokens/s, ratio {best['naive'] / best['ours']:.2f}"
    )


if __name__ == "__main__":
    command_line(main)
