"""Batches of token sequences for one forward pass: of similar length, and read once where they begin alike.

The episodes of a training step begin with the same rules, those of a pack's first task with the same map. A batch
[B, T] whose rows have their first P tokens in common goes through the model as one sequence [1, P + B * (T - P)]: the
common beginning, then the rest of each row. What a layer does token by token it does once for the beginning; in
`attention` the rest of each row sees the beginning, too.
"""

import itertools
import os
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from rollout import Episode

ATTENTION = "sdpa_common_beginning"  # its name among the attention implementations of transformers
WORTHWHILE = 6  # a common beginning is used if it is at least 1/6 of the mean length
# where attention with a mask costs as much as plain causal attention; a GPU has faster kernels for the latter, and
# rather attends to the beginning once for each row
MASKS_ARE_CHEAP = ("cpu", "meta")
PASS = 512  # a further forward pass is taken to cost as much as so many tokens


def attention(module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options):
    """Causal attention in one sequence that holds a common beginning and the rest of B rows.

    query [1, H, P + B * t, D]; key and value [1, H_kv, P + B * t, D]; attention_mask [1, 1, t, P + t]: what the rest of
    a row sees of the row, which is all that came before. Returns [1, P + B * t, H, D] and None. A mask for every query,
    or none, is left to transformers.
    """
    if attention_mask is None or attention_mask.shape[2] == query.shape[2]:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    rest, length = attention_mask.shape[2:]
    prefix = length - rest
    first, own, rows = [], [], []
    for states in (query, key, value):
        first.append(states[:, :, :prefix])  # [1, heads, P, D]
        own.append(states[0, :, prefix:].unflatten(1, (-1, rest)).transpose(0, 1))  # [B, heads, t, D]
        rows.append(torch.cat([first[-1].expand(len(own[-1]), -1, -1, -1), own[-1]], dim=2))  # [B, heads, P + t, D]
    if query.device.type in MASKS_ARE_CHEAP:
        beginning, _ = sdpa_attention_forward(module, *first, None, **options)  # [1, P, H, D]
        others, _ = sdpa_attention_forward(module, own[0], *rows[1:], attention_mask, **options)  # [B, t, H, D]
    else:
        out, _ = sdpa_attention_forward(module, *rows, None, **options)  # [B, P + t, H, D]
        beginning, others = out[:1, :prefix], out[:, prefix:]
    return torch.cat([beginning, others.flatten(0, 1)[None]], dim=1), None


AttentionInterface.register(ATTENTION, attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)


def prefix_groups(episodes: list[Episode], cost: int) -> list[tuple[list[Episode], int]]:
    """(episodes that begin alike, how many first tokens they have in common), so that as few tokens as possible are
    read in all, if every group costs `cost` tokens more.

    What they have in common ends before the token that the first sampled one of any is predicted from.
    """
    ordered = sorted(episodes, key=lambda e: e.ids)  # so what a range has in common is the least of its neighbours
    prompts = [(e.mask.index(True) if True in e.mask else len(e.ids)) - 1 for e in ordered]
    pairs = zip(itertools.pairwise(ordered), itertools.pairwise(prompts), strict=True)
    alike = np.array([max(0, min(len(os.path.commonprefix([a.ids, b.ids])), *ends)) for (a, b), ends in pairs], int)
    # for the first `end` episodes: tokens saved by the best way to cut them, size of its last group, what that shares
    saved, sizes, prefix = (np.zeros(len(ordered) + 1, int) for _ in range(3))
    for end in range(1, len(ordered) + 1):
        common = np.concatenate([[0], np.minimum.accumulate(alike[: end - 1][::-1])])  # of the last 1, 2, ..., end
        ways = saved[:end][::-1] + common * np.arange(end) - cost  # by the size of the last group
        last = ways.argmax()
        saved[end], sizes[end], prefix[end] = ways[last], last + 1, common[last]
    found, end = [], len(ordered)
    while end:
        found.append((ordered[end - sizes[end] : end], int(prefix[end])))
        end -= sizes[end]
    return found


def micro_batches(episodes: list[Episode], budget: int, longest: int) -> list[tuple[list[Episode], int]]:
    """(episodes, how many tokens they have in common at the beginning) for one forward pass each.

    The rows of a pass hold at most `budget` tokens, padding included (but at least one episode): attention takes memory
    for whole rows. What is common counts as 0 where an episode is longer than `longest` (Policy.prefix_limit), and
    where it is not worth while.
    """
    passes, others = [], {e: len(e.ids) for e in episodes}
    for group, prefix in prefix_groups(episodes, PASS):
        lengths = {e: len(e.ids) for e in group}
        if max(lengths.values()) <= longest and WORTHWHILE * prefix * len(group) >= sum(lengths.values()):
            for batch in batches_by_length(lengths, budget):
                if len(batch) > 1:
                    passes.append((batch, prefix))
                    for episode in batch:
                        del others[episode]
    return passes + [(batch, 0) for batch in batches_by_length(others, budget)]


@dataclass(frozen=True)
class Batch:
    """Episodes for one forward pass, padded on the right."""

    ids: Tensor  # [B, T]
    mask: Tensor  # [B, T], true where sampled
    logps: Tensor  # [B, T], when sampled
    advantages: Tensor  # [B, T], its episode's at every token, or its own
    prefix: int  # first tokens that all rows have in common, and that are read once; 0: none
    n_tokens: int  # without padding


def training_batches(episodes: list[Episode], budget: int, policy) -> list[Batch]:
    """The episodes in batches of at most `budget` padded tokens (but at least one episode) on the policy's device."""
    return [
        batch_of(rows, prefix, policy.device) for rows, prefix in micro_batches(episodes, budget, policy.prefix_limit)
    ]


def one_batch(episodes: list[Episode], policy) -> Batch:
    """The episodes in one batch on the policy's device; what they have in common is read once, however short it is."""
    ends = [episode.mask.index(True) - 1 for episode in episodes]
    prefix = min(len(os.path.commonprefix([episode.ids for episode in episodes])), min(ends))
    fits = len(episodes) > 1 and max(len(episode.ids) for episode in episodes) <= policy.prefix_limit
    return batch_of(episodes, prefix if fits else 0, policy.device)


def batch_of(episodes: list[Episode], prefix: int, device) -> Batch:
    ids, mask, logps = pad_batch(episodes, device)  # [B, T] each
    rows = [torch.tensor(e.advantages or [e.advantage] * len(e.ids)) for e in episodes]  # [T] each
    advantages = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True).to(device)  # [B, T]
    return Batch(ids, mask, logps, advantages, prefix, sum(len(episode.ids) for episode in episodes))


def batches_by_length(lengths: dict, budget: int, stretch: int = 2) -> list[list]:
    """Keys of `lengths` (key -> number of tokens) in batches of similar length, longest first: a padded batch holds at
    most `budget` tokens (but at least one key), and nothing in it is padded to more than `stretch` times its length."""
    batches: list[list] = []
    longest = 0
    for key in sorted(lengths, key=lambda key: -lengths[key]):
        if not batches or (len(batches[-1]) + 1) * longest > budget or stretch * lengths[key] < longest:
            batches.append([])
            longest = lengths[key]
        batches[-1].append(key)
    return batches


def pad_batch(episodes: list[Episode], device) -> tuple[Tensor, Tensor, Tensor]:
    """ids [B, T], mask [B, T] (true where sampled), logps [B, T] (when sampled), padded on the right."""

    def pad(rows: list[list], dtype) -> Tensor:
        tensors = [torch.tensor(row, dtype=dtype) for row in rows]
        return torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True).to(device)

    return (
        pad([episode.ids for episode in episodes], torch.long),
        pad([episode.mask for episode in episodes], torch.bool),
        pad([episode.logps for episode in episodes], torch.float32),
    )
