"""batches.py: batches of similar length, and sequences that begin alike."""

import itertools
import os
from unittest import mock

import pytest
import torch
from doubles import small_llama, small_model
from hypothesis import given
from hypothesis import strategies as st
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

import engine.batches as batching
from engine.batches import batches_by_length, micro_batches, pad_batch, prefix_groups
from engine.models import Lora, add_adapter, checkpoint_activations
from engine.policy import Policy
from engine.settings import Sampling
from envs import make_pack, players
from imitation.teaching import Teacher
from rollout import Episode, play, run


def test_batches_by_length_by_hand():
    lengths = {"e": 1, "b": 9, "a": 10, "d": 4, "c": 5}
    assert batches_by_length(lengths, 20) == [["a", "b"], ["c", "d"], ["e"]]
    assert batches_by_length(lengths, 19) == [["a"], ["b", "c"], ["d"], ["e"]]
    assert batches_by_length(lengths, 1) == [["a"], ["b"], ["c"], ["d"], ["e"]]
    assert batches_by_length(lengths, 20, stretch=5) == [["a", "b"], ["c", "d", "e"]]
    assert batches_by_length({}, 20) == []


@given(st.dictionaries(st.integers(), st.integers(1, 50)), st.integers(1, 300), st.integers(1, 4))
def test_batches_by_length_partition_within_the_budget(lengths, budget, stretch):
    batches = batches_by_length(lengths, budget, stretch)
    assert sorted(key for batch in batches for key in batch) == sorted(lengths)
    for batch in batches:
        longest, shortest = max(lengths[key] for key in batch), min(lengths[key] for key in batch)
        assert len(batch) == 1 or len(batch) * longest <= budget
        assert longest <= stretch * shortest
    for batch, after in itertools.pairwise(batches):  # no batch was closed too early
        longest = max(lengths[key] for key in batch)
        assert (len(batch) + 1) * longest > budget or stretch * lengths[after[0]] < longest


def test_pad_batch_by_hand():
    first, second = Episode("solve", 0, [], ""), Episode("solve", 1, [], "")
    first.add([5, 6])
    first.add([7], [-0.5])
    second.add([8])
    ids, mask, logps = pad_batch([first, second], "cpu")
    assert ids.tolist() == [[5, 6, 7], [8, 0, 0]] and ids.dtype == torch.long
    assert mask.tolist() == [[False, False, True], [False] * 3] and mask.dtype == torch.bool
    assert logps.tolist() == [[0, 0, -0.5], [0, 0, 0]] and logps.dtype == torch.float32
    assert first.n_sampled == 1 and second.n_sampled == 0


# ---------------------------------------------------------------------------------------------------------
# Common beginnings

LONGEST = 1 << 30


def episode_of(ids, sampled):
    """An episode with these ids, sampled at these places."""
    episode = Episode("solve", 0, [], "")
    for place, token in enumerate(ids):
        episode.add([token], [-1.0] if place in sampled else None)
    return episode


def test_prefix_groups_by_hand():
    """What is prefix ends before the token that the first sampled one is predicted from."""

    def prefix(*others):
        [(family, number)] = prefix_groups([episode_of([1, 2, 3, 4, 5, 6], {4}), *others], 1)
        assert len(family) == 1 + len(others)
        return number

    assert prefix(episode_of([1, 2, 9, 4, 5], {4})) == 2
    assert prefix(episode_of([1, 2, 3, 4, 5, 7], {5})) == 3
    assert prefix(episode_of([1, 2, 3, 4], {2})) == 1
    assert prefix(episode_of([9, 2, 3, 4], {3})) == 0
    assert prefix(episode_of([1, 2, 3], {0})) == 0
    assert prefix(episode_of([1, 2, 3], {1})) == 0
    assert prefix(episode_of([1, 2, 3, 8], ())) == 3  # nothing is sampled
    assert prefix() == 0
    assert prefix_groups([], 1) == []


def ranges(items):
    """All ways to cut a list into ranges."""
    if not items:
        return [[]]
    return [[items[:n], *rest] for n in range(1, len(items) + 1) for rest in ranges(items[n:])]


@given(
    prompts=st.lists(st.lists(st.integers(0, 1), min_size=2, max_size=8), min_size=1, max_size=7),
    cost=st.integers(0, 5),
)
def test_prefix_groups_are_the_cheapest_ranges(prompts, cost):
    """Against all ways to cut the episodes into ranges, in the order of their tokens."""
    episodes = [episode_of([*prompt, 7, 7, 7], {len(prompt) + 1}) for prompt in prompts]

    def saved(family):
        beginnings = [e.ids[: e.mask.index(True) - 1] for e in family]
        return (len(family) - 1) * len(os.path.commonprefix(beginnings)) - cost

    found = prefix_groups(episodes, cost)
    assert sorted(map(id, (e for family, _ in found for e in family))) == sorted(map(id, episodes))
    for family, prefix in found:
        assert len({tuple(e.ids[:prefix]) for e in family}) == 1
    ordered = sorted(episodes, key=lambda e: e.ids)
    most = max(sum(map(saved, way)) for way in ranges(ordered))
    assert sum((len(family) - 1) * prefix - cost for family, prefix in found) == most


episodes_that_begin_alike = st.lists(
    st.builds(
        lambda head, tail, sampled: episode_of([0] * head + tail, {place + max(head, 1) for place in sampled}),
        st.integers(0, 30),
        st.lists(st.integers(0, 3), min_size=12, max_size=30),
        st.sets(st.integers(0, 11), max_size=4),
    ),
    max_size=12,
)


@given(episodes=episodes_that_begin_alike, budget=st.integers(1, 400))
def test_micro_batches_partition_within_the_budget(episodes, budget):
    with mock.patch.object(batching, "PASS", 3):  # so that there are several prefix_groups
        passes = micro_batches(episodes, budget, LONGEST)
    assert sorted(map(id, (e for batch, _ in passes for e in batch))) == sorted(map(id, episodes))
    for batch, prefix in passes:
        longest = max(len(e.ids) for e in batch)
        assert len(batch) == 1 or len(batch) * longest <= budget
        assert len({tuple(e.ids[:prefix]) for e in batch}) == 1
        assert not any(sampled for e in batch for sampled in e.mask[: prefix + 1 if prefix else 0])


def test_prompts_that_fill_much_of_an_episode_are_shared_and_others_are_not(monkeypatch):
    monkeypatch.setattr(batching, "PASS", 10)
    alike = [episode_of([5] * 20 + [k] + [6] * 30, range(30, 51)) for k in range(4)]
    short = [episode_of([4] * 4 + [k] + [6] * 30, range(20, 35)) for k in range(4)]
    passes = micro_batches(short + alike, 1000, LONGEST)
    assert [(len(batch), prefix) for batch, prefix in passes] == [(4, 20), (4, 0)]
    assert passes[1][0] == short  # in their order


GEMMA = {"kind": Gemma3ForCausalLM, "config": Gemma3TextConfig, "layer_types": ["sliding_attention", "full_attention"]}
ARCHITECTURES = {
    "llama": {},
    "qwen2": {"kind": Qwen2ForCausalLM, "config": Qwen2Config},
    "mistral": {"kind": MistralForCausalLM, "config": MistralConfig, "sliding_window": 40},
    "gemma3": {**GEMMA, "sliding_window": 40},
}


def adapted(model):
    """The model with an adapter that is not at its start."""
    model = add_adapter(model, Lora(rank=4, alpha=8))
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.1)
    return model


def alike(prefix, rows=3, length=40, seed=0):
    """ids and mask [rows, length]: rows whose first `prefix` tokens are the same, with padding at some ends."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(4, 200, (rows, length), generator=generator)
    ids[:, :prefix] = ids[0, :prefix]
    mask = torch.rand(rows, length, generator=generator) < 0.5
    mask[:, : prefix + 1] = False
    mask[1:, length - 5 :] = False
    return ids, mask


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("prefix", [1, 20, 30])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_common_beginning_changes_neither_probabilities_nor_gradients(
    name, prefix, checkpointing, masked, tokenizer, monkeypatch
):
    monkeypatch.setattr(batching, "MASKS_ARE_CHEAP", ("cpu",) if masked else ())
    torch.manual_seed(0)
    model = small_llama(tokenizer, **ARCHITECTURES[name])
    if checkpointing:
        checkpoint_activations(model, "on")
    policy = Policy(adapted(model), tokenizer, Sampling(temperature=0.7))
    policy.model.train()
    ids, mask = alike(prefix)
    lengths = []
    policy.decoder.register_forward_pre_hook(
        lambda module, args, kwargs: lengths.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    parameters = [parameter for parameter in policy.model.parameters() if parameter.requires_grad]
    outcomes = []
    for number in (0, prefix):
        assert 40 <= policy.prefix_limit
        logp, entropy = policy.logprobs(ids, mask, number)
        outcomes.append((logp.detach(), entropy, torch.autograd.grad(logp.square().mean(), parameters)))
    torch.testing.assert_close(outcomes[1], outcomes[0], atol=1e-5, rtol=1e-4)
    assert outcomes[0][0][mask].abs().min() > 0 and all(gradient.abs().max() > 1e-4 for gradient in outcomes[0][2])
    assert lengths == [120, prefix + 3 * (40 - prefix)]


def test_windows_bound_what_is_shared(tokenizer):
    assert Policy(small_llama(tokenizer), tokenizer).prefix_limit == 4096
    assert Policy(small_llama(tokenizer, **ARCHITECTURES["mistral"]), tokenizer).prefix_limit == 40
    assert Policy(small_llama(tokenizer, **ARCHITECTURES["gemma3"]), tokenizer).prefix_limit == 40
    episodes = [episode_of([5] * 20 + [k] * 20, range(30, 40)) for k in range(4)]
    assert [(len(batch), prefix) for batch, prefix in micro_batches(episodes, 1000, 40)] == [(4, 20)]
    assert [(len(batch), prefix) for batch, prefix in micro_batches(episodes, 1000, 39)] == [(4, 0)]
    assert [(len(batch), prefix) for batch, prefix in micro_batches(episodes, 80, 39)] == [(2, 0)] * 2


def test_an_attention_that_ignores_the_mask_is_noticed(tokenizer, monkeypatch):
    def careless(module, query, key, value, attention_mask, **options):
        if attention_mask is not None and attention_mask.shape[2] != query.shape[2]:
            attention_mask = None
        return batching.sdpa_attention_forward(module, query, key, value, attention_mask, **options)

    model = small_model("llama", tokenizer)
    monkeypatch.setitem(batching.AttentionInterface._global_mapping, batching.ATTENTION, careless)
    assert Policy(model, tokenizer).prefix_limit == 0


@pytest.mark.parametrize("budget", [1, 2500, 10**6])
def test_the_gradient_of_real_prompts_is_that_of_one_episode_at_a_time(budget, tokenizer):
    """Rules that this tokenizer spells in bytes are a large part of every episode."""
    policy = Policy(adapted(small_llama(tokenizer)), tokenizer)
    packs = [make_pack("control", seed, 2) for seed in (0, 0, 1)]
    teacher = Teacher(players("control")["learner"], policy.chat)
    episodes = [e for rollout in run(map(play, packs), teacher) for e in rollout.episodes]
    parameters = [parameter for parameter in policy.model.parameters() if parameter.requires_grad]

    def gradient(passes):
        likelihood = 0.0
        for batch, prefix in passes:
            ids, mask, _ = pad_batch(batch, "cpu")
            likelihood = likelihood + policy.logprobs(ids, mask, prefix)[0].sum()
        return torch.cat([g.flatten() for g in torch.autograd.grad(likelihood / 100, parameters)])

    passes = micro_batches(episodes, budget, LONGEST)
    assert any(prefix > 500 for _, prefix in passes) == (budget > 1)
    expected = gradient([([episode], 0) for episode in episodes])
    assert expected.abs().max() > 1e-3
    assert torch.allclose(gradient(passes), expected, atol=1e-5, rtol=1e-4)
