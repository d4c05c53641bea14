"""The self-check: does this model, with this chat template, train here the way it samples?

    python train.py --check --model ...     all of it, a line for each check, and one conversation with the trained
                                            tokens in colour

Every training begins with the short form, which ends the run if something is wrong.
"""

from dataclasses import dataclass, replace

import torch

from engine.batches import one_batch
from engine.errors import BadInput
from engine.models import adapted_weights
from engine.policy import Policy
from envs import Pack
from rollout import Episode, Penalties, play, run

GREEN, RESET = "\033[32m", "\033[0m"


@dataclass
class Finding:
    """The outcome of one check. `problem` is empty if all is well, else it says what is wrong and what to do."""

    name: str
    detail: str
    problem: str = ""

    def __str__(self) -> str:
        line = f"{self.name}: {self.detail}"
        return f"BAD {line}; {self.problem}" if self.problem else f"OK  {line}"


def check_numbers(policy: Policy, episodes: list[Episode]) -> list[Finding]:
    """Sampler against trainer, in a batch against alone, and whether a gradient reaches the adapter."""
    # what two ways of computing the same may differ by, in nats per token
    tolerance = 1e-3 if policy.model.dtype == torch.float32 else 0.1
    tasks = sorted((e for e in episodes if e.kind == "solve"), key=lambda episode: len(episode.ids))
    pair = one_batch([tasks[0], tasks[-1]], policy)  # the shortest and the longest, which both begin with the rules
    each = [one_batch([tasks[0]], policy), one_batch([tasks[-1]], policy)]
    policy.train_mode()
    for layer, _, _ in adapted_weights(policy.model):
        layer.lora_dropout.eval()
    with torch.no_grad():
        together = policy.logprobs_of(pair)[0][pair.mask]  # [n]
        alone = torch.cat([policy.logprobs_of(one)[0][one.mask] for one in each])  # [n]
    gaps = (together - pair.logps[pair.mask]).abs()  # [n]
    batching = (together - alone).abs()  # [n]
    findings = []
    for name, gap, problem in (
        (
            "sampler and trainer agree",
            gaps,
            "the model predicts otherwise when sampling; try --dtype float32, or --sampler generate",
        ),
        (
            "padding and a common beginning change nothing",
            batching,
            "the model reads a batch otherwise than one conversation; try another attention implementation",
        ),
    ):
        detail = f"log-probabilities differ by {gap.mean():.1e} in the mean, {gap.max():.1e} at most"
        findings.append(Finding(name, detail, "" if gap.mean() < tolerance else problem))

    parameters = {name: p for name, p in policy.model.named_parameters() if p.requires_grad}
    policy.train_mode()
    gpu = [policy.device] if policy.device.type == "cuda" else []
    with torch.random.fork_rng(devices=gpu):  # dropout draws from the global random state
        likelihood = policy.logprobs_of(each[0])[0].sum()
        gradients = torch.autograd.grad(likelihood, list(parameters.values()), allow_unused=True)
    norms = {name: 0.0 if g is None else g.norm().item() for name, g in zip(parameters, gradients, strict=True)}
    total = sum(norm**2 for norm in norms.values()) ** 0.5
    layers = {name.split(".lora_")[0] for name in norms}
    dead = layers - {name.split(".lora_")[0] for name, norm in norms.items() if norm > 0}
    problem = ""
    if not 0 < total < float("inf"):
        problem = "nothing can be learnt; is the adapter on layers that are used (--lora-targets)?"
    elif dead:
        problem = f"no gradient at {len(dead)} of {len(layers)} layers, {min(dead)} for one"
    findings.append(Finding("a gradient reaches the adapter", f"norm {total:.2e}", problem))
    return findings


def check_replies(policy: Policy, episodes: list[Episode]) -> list[Finding]:
    """Which tokens are trained, whether replies end, whether they can be read."""
    stops = policy.chat.stop_ids
    replies = [reply for episode in episodes for reply in episode.replies]
    n_trained, n_sampled = sum(e.n_sampled for e in episodes), sum(reply.n_tokens for reply in replies)
    n_stops = sum(token in stops for e in episodes for token, trained in zip(e.ids, e.mask, strict=True) if trained)
    ended = sum(not reply.truncated for reply in replies)
    names = ", ".join(map(repr, policy.chat.tokenizer.convert_ids_to_tokens(sorted(stops))))
    exact = n_trained == n_sampled and n_stops == ended
    broken = sum(episode.broken_format for episode in episodes)
    return [
        Finding(
            "exactly the sampled tokens are trained",
            f"{n_trained} of {n_sampled}, with {n_stops} stop tokens of {ended} replies that ended",
            "" if exact else "please report this, with the name of the model",
        ),
        Finding(
            "replies end",
            f"{ended} of {len(replies)} by a stop token ({names})",
            "" if ended else "raise --max-reply-tokens, or warm-start the model with imitate.py",
        ),
        Finding(
            "replies can be read",
            f"{len(episodes) - broken} of {len(episodes)} episodes",
            "" if broken < len(episodes) else "there is nothing to learn from; warm-start the model with imitate.py",
        ),
    ]


def coloured(policy: Policy, episode: Episode) -> str:
    """A conversation as the model reads it, special tokens included; what is trained is green."""
    parts, green = [], False
    for token, trained in zip(episode.ids, episode.mask, strict=True):
        if trained != green:
            parts.append(GREEN if trained else RESET)
            green = trained
        parts.append(policy.chat.tokenizer.decode([token]))
    return "".join(parts) + RESET


def play_a_little(policy: Policy, pack: Pack, games: int) -> list[Episode]:
    """The episodes of a few rollouts of one pack that have something sampled in them."""
    with policy.sampling():
        rollouts = run([play(pack, Penalties()) for _ in range(games)], policy, "check")
    return [episode for rollout in rollouts for episode in rollout.episodes if episode.n_sampled]


def short_check(policy: Policy, pack: Pack) -> str:
    """One line if the model trains as it samples; raises BadInput if it does not."""
    settings = policy.settings
    policy.settings = replace(settings, max_reply_tokens=min(settings.max_reply_tokens, 64))  # enough for this
    findings = check_numbers(policy, play_a_little(policy, pack, 2))
    policy.settings = settings
    for finding in findings:
        if finding.problem:
            raise BadInput(f"self-check: {finding.name}: {finding.detail}; {finding.problem}")
    return "self-check: " + "; ".join(f"{finding.name} ({finding.detail})" for finding in findings)


def full_check(policy: Policy, pack: Pack) -> None:
    """Print every finding and one conversation; raises BadInput if one of them is a problem."""
    episodes = play_a_little(policy, pack, 4)
    turn = policy.chat.before + policy.chat.TEXT + policy.chat.after
    findings = [Finding("the chat template continues conversations", f"a turn is {turn!r}")]  # else it had been refused
    findings += check_numbers(policy, episodes) + check_replies(policy, episodes)
    print(coloured(policy, max(episodes, key=lambda episode: len(episode.replies))))
    print("\n".join(map(str, findings)))
    problems = [finding for finding in findings if finding.problem]
    if problems:
        raise BadInput(f"self-check: {len(problems)} of {len(findings)} checks found a problem")
