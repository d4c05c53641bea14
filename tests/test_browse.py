"""Rollouts as the page of a run shows them: their tokens, what they were credited with, what the update changed."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from training import PLAYED, fresh_policy

from engine.batches import one_batch
from engine.settings import Config
from record.browse import write_run_page, write_sample
from record.files import Metrics
from train import assign_advantages


def sample(groups, policy, folder):
    write_sample(folder / "sample.json", "step 1", groups, policy, budget=2048)
    return json.loads((folder / "sample.json").read_text(encoding="utf-8"))


def test_a_sample_has_every_token_with_the_credit_of_its_episode(groups, tmp_path):
    policy = fresh_policy()
    assign_advantages(groups, PLAYED)
    packs = sample(groups, policy, tmp_path)
    assert [len(pack["rollouts"]) for pack in packs] == [len(group) for group in groups]
    for pack, group in zip(packs, groups, strict=True):
        assert str(group[0].pack_seed) in pack["title"]
        for shown, rollout in zip(pack["rollouts"], group, strict=True):
            for e, episode in zip(shown["episodes"], rollout.episodes, strict=True):
                same = [x for other in group for x in other.of(episode.kind) if x.position == episode.position]
                mean = sum(x.ret for x in same) / len(same)
                assert e["return"] == episode.ret and e["baseline"] == pytest.approx(mean)
                assert e["advantage"] == pytest.approx(episode.ret - mean) and e["weighted"] == episode.advantage
                replies = [m for m in e["messages"] if m["role"] == "assistant"]
                assert [len(m["tokens"]) for m in replies] == [reply.n_tokens for reply in episode.replies]
                logps = [token[1] for m in replies for token in m["tokens"]]
                sampled = [logp for logp, mask in zip(episode.logps, episode.mask, strict=True) if mask]
                assert logps == pytest.approx(sampled, abs=1e-4)
                for message, reply in zip(replies, episode.replies, strict=True):
                    text = "".join(piece for piece, *_ in message["tokens"])
                    assert reply.truncated or text.endswith("<|end|>")
                if episode.kind == "update":
                    assert (e["before"], e["after"]) == (rollout.of("solve")[episode.position].context, episode.context)


def test_the_change_of_a_token_is_its_log_probability_after_the_update_minus_before(groups, tmp_path):
    policy = fresh_policy()
    assign_advantages(groups, PLAYED)
    for pack in sample(groups, policy, tmp_path):
        for rollout in pack["rollouts"]:
            for episode in rollout["episodes"]:
                tokens = [token for m in episode["messages"] for token in m["tokens"] or []]
                assert [change for *_, change in tokens] == pytest.approx([0] * len(tokens), abs=2e-4)
    with torch.no_grad():
        for parameter in policy.model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05)
    for pack, group in zip(sample(groups, policy, tmp_path), groups, strict=True):
        for shown, rollout in zip(pack["rollouts"], group, strict=True):
            for e, episode in zip(shown["episodes"], rollout.episodes, strict=True):
                batch = one_batch([episode], policy)
                with torch.no_grad():
                    now = policy.logprobs_of(batch)[0][batch.mask]
                expected = (now - batch.logps[batch.mask]).tolist()
                changes = [token[2] for m in e["messages"] for token in m["tokens"] or []]
                assert changes == pytest.approx(expected, abs=2e-4) and max(map(abs, changes)) > 0.01


@pytest.mark.parametrize("text", ["[{", "", "5", "[5]", '[{"rollouts": 5}]', "[" * 10**5, "\udcff"])
def test_a_sample_that_cannot_be_read_is_left_out_of_the_page(text, plain, tmp_path, capsys):
    """Of a run whose end has come: its adapter and its curves are worth more."""
    run = Path(shutil.copytree(plain, tmp_path / "run"))
    first, *_ = sorted((run / "samples").glob("step_*.json"))
    (run / "samples" / "step_000099.json").write_text(text, encoding="utf-8", errors="surrogateescape")
    write_run_page(run, resumed(run), Metrics(run).read())
    assert "step_000099.json: cannot be read and is left out of report.html" in capsys.readouterr().out
    page = (run / "report.html").read_text(encoding="utf-8")
    assert json.loads(first.read_text(encoding="utf-8"))[0]["title"] in page


def resumed(run):
    """The settings of a run."""
    return Config(**json.loads((run / "config.json").read_text(encoding="utf-8")))
