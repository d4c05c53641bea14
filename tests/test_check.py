"""The self-check at the beginning of every run, and with --check."""

import dataclasses
import re

import pytest
import torch
from training import PLAYED, assert_one_line, flags, fresh_policy, run_here

from engine import check
from engine.policy import Policy
from engine.settings import Config


def test_the_check_of_the_embedded_policy_finds_all_well(tmp_path, capsys):
    assert run_here(flags(output=tmp_path / "runs", max_reply_tokens=64, check=True)) == 0
    out = capsys.readouterr().out
    lines = out.splitlines()[-7:]
    assert all(line.startswith("OK ") for line in lines), lines
    green = re.findall("\033\\[32m(.*?)\033\\[0m", out, re.DOTALL)
    assert green and all(text.endswith("<|end|>") and "<answer>" in text for text in green)
    assert not (tmp_path / "runs").exists()


def test_the_check_says_what_is_wrong_with_a_model_that_knows_nothing(model_folder, tmp_path, capsys):
    message = run_here(flags(output=tmp_path / "runs", model=model_folder, check=True, max_reply_tokens=2))
    assert_one_line(message, "2 of 7 checks")
    bad = [line for line in capsys.readouterr().out.splitlines() if line.startswith("BAD ")]
    assert ["replies end" in line or "replies can be read" in line for line in bad] == [True, True]
    assert all("imitate.py" in line for line in bad)


def wrong_logprobs(policy, ids, mask, *shared):
    logp, entropy = right_logprobs(policy, ids, mask, *shared)
    return logp - 0.3 * mask, entropy


def padded_logprobs(policy, ids, mask, *shared):
    logp, entropy = right_logprobs(policy, ids, mask, *shared)
    return logp + 0.3 * mask * (len(ids) > 1), entropy


def unshared_logprobs(policy, ids, mask, shared=0):
    logp, entropy = right_logprobs(policy, ids, mask, shared)
    return logp + 0.3 * mask * (shared > 0), entropy


def detached_logprobs(policy, ids, mask, *shared):
    logp, entropy = right_logprobs(policy, ids, mask, *shared)
    return logp.detach() + 0 * logp, entropy


right_logprobs = Policy.logprobs


@pytest.mark.parametrize("wrong, named", [
    (wrong_logprobs, "no sampler fits"),
    (padded_logprobs, "no sampler fits"),
    (unshared_logprobs, "sampler and trainer agree"),
    (detached_logprobs, "a gradient reaches the adapter"),
])  # fmt: skip
def test_a_run_whose_trainer_is_wrong_does_not_start(wrong, named, tmp_path, monkeypatch):
    monkeypatch.setattr(Policy, "logprobs", wrong)
    assert_one_line(run_here(flags(output=tmp_path / "runs")), named)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("wrong", [padded_logprobs, unshared_logprobs])
def test_a_batch_that_is_read_otherwise_is_found(wrong, monkeypatch):
    policy = fresh_policy()
    episodes = check.play_a_little(policy, Config().pack(0), 1)
    monkeypatch.setattr(Policy, "logprobs", wrong)
    problems = [finding.name for finding in check.check_numbers(policy, episodes) if finding.problem]
    assert any(name.startswith("padding and ") for name in problems)


def test_the_check_leaves_no_trace():
    """Neither in the global random state (dropout draws from it) nor in gradients."""
    config = dataclasses.replace(PLAYED, lora_dropout=0.5)
    policy = fresh_policy(config)
    before = torch.get_rng_state()
    check.short_check(policy, config.pack(0))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(parameter.grad is None for parameter in policy.model.parameters())


def test_tokens_that_were_not_sampled_are_found():
    policy = fresh_policy()
    episodes = check.play_a_little(policy, Config().pack(0), 1)
    assert not any(finding.problem for finding in check.check_replies(policy, episodes))
    episodes[0].mask[0] = True
    assert check.check_replies(policy, episodes)[0].problem
