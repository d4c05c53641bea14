"""Part 1: does it work at all? Training that is killed and resumed, the self-check, CUDA graphs against plain steps,
the gradient against that of the CPU.
"""

import copy
import itertools
import tempfile
import time
import warnings
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.gpu.common import CUDA, REHEARSAL, SHAPE, Figures, finish, flags, metrics_of, start
from benchmarks.shared import Settings, counted_replays
from engine.batches import training_batches
from engine.check import play_a_little
from engine.errors import BadInput
from engine.policy import Policy
from engine.settings import Config
from envs import make_pack
from imitation.teaching import trained
from record.files import checkpoints
from rollout import Episode, play, run
from train import batch_loss


def smoke(figure: Figures, _folder: Path, _seconds: float) -> None:
    with tempfile.TemporaryDirectory() as folder:
        killed_and_resumed(figure, Path(folder))
    finish(start("train.py", "--check"))
    policy = Settings().policy()
    as_trained(figure, policy, "embedded policy", "<= 0.001")
    with_graphs(figure, policy, "embedded policy", ">= 1")
    as_on_a_cpu(figure, policy, "embedded policy", ">= 0.9999")
    policy = Settings(shape=SHAPE, max_reply_tokens=32).policy()
    as_trained(figure, policy, f"shape {SHAPE}", "<= 0.1")
    with_graphs(figure, policy, f"shape {SHAPE}")
    as_on_a_cpu(figure, policy, f"shape {SHAPE}", ">= 0.98")


def killed_and_resumed(figure: Figures, folder: Path) -> None:
    """The default training for 5 steps: killed in the fifth, and begun again from the checkpoint of the third."""
    small = {"packs_per_step": 4, "group_size": 2, "test_packs": 8} if REHEARSAL else {"test_packs": 64}
    run_folder = folder / "run"
    process = start(
        "train.py", *flags(steps=5, checkpoint_every=3, eval_every=0, output=folder, name=run_folder.name, **small)
    )
    while len(steps := metrics_of(run_folder)[0]) < 4:
        if process.poll() is not None:
            raise BadInput(f"the training ended by itself, with exit code {process.returncode}")
        time.sleep(0.02)
    process.kill()
    process.wait()
    begun_again = int(checkpoints(run_folder)[-1].name.removeprefix("step_"))
    finish(start("train.py", "--resume", run_folder))
    again, tests = metrics_of(run_folder)
    if [line["step"] for line in again] != [1, 2, 3, 4, 5]:
        raise BadInput(f"the resumed run has the steps {[line['step'] for line in again]}")
    figure("seconds of a step of the default training", again[1]["time_rollout"] + again[1]["time_train"], "s")
    figure("success at position 3 after five of them", tests["after training"]["success"][3])
    # what was done behind the checkpoint before the kill, and again after it
    changes = [largest_change(line, again[line["step"] - 1]) for line in steps[begun_again:4]]
    figure(
        "largest relative change of a metric where a step is done again after kill -9",
        max(changes) if changes else "none was done again",
    )


def largest_change(old: dict, new: dict) -> float:
    """Of a step's metrics, relative to the old value; time, memory and speed do not count."""
    largest = 0.0
    for name in old:
        if not name.startswith(("time_", "memory_", "speed_")):
            for before, after in zip(as_list(old[name]), as_list(new[name]), strict=True):
                if before is not None and after is not None:  # as what is not finite is written
                    largest = max(largest, abs(after - before) / max(abs(before), 1e-9))
    return largest


def as_list(value: object) -> list:
    return value if isinstance(value, list) else [value]


def as_trained(figure: Figures, policy: Policy, name: str, goal: str) -> None:
    """Sampler against trainer."""
    episodes = play_a_little(policy, make_pack("frozenlake", 0, 2, "tiny"), 4)
    differences = []
    with torch.no_grad():
        for batch in training_batches(episodes, 8192, policy):
            differences.append((policy.logprobs_of(batch)[0] - batch.logps)[batch.mask].abs())  # [n]
    gaps = torch.cat(differences)  # [all that was sampled]
    figure(f"sampler and trainer differ, {name}: mean", gaps.mean().item(), "nats", goal)
    figure(f"sampler and trainer differ, {name}: at most", gaps.max().item(), "nats")


def with_graphs(figure: Figures, captured: Policy, name: str, goal: str = "") -> None:
    """CUDA graphs against plain steps, on the same games: the same tokens?"""
    plain = Policy(captured.model, captured.chat.tokenizer, replace(captured.settings, cuda_graphs=False))
    found = []
    with counted_replays() as replays, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for policy in (plain, captured):
            pack = make_pack("frozenlake", 1, 4, "tiny")
            games = [play(pack) for _ in range(4 if REHEARSAL else 32)]
            with policy.sampling():
                found.append([e.ids for rollout in run(games, policy, "graphs") for e in rollout.episodes])
    if CUDA and not replays:
        reasons = [str(warning.message) for warning in caught]
        raise BadInput(f"no CUDA graph was replayed: {'; '.join(reasons) or 'for no reason given'}")
    same = [a == b for a, b in itertools.zip_longest(*found)]
    figure(f"episodes that are the same with CUDA graphs, {name}", sum(same) / len(same), "", goal)
    figure(f"CUDA graphs replayed, {name}", len(replays))


def as_on_a_cpu(figure: Figures, policy: Policy, name: str, goal: str) -> None:
    """The gradient of the adapter, of the loss of a few rollouts: on the GPU in the dtype of the weights against the
    same weights and tokens on the CPU in float32."""
    for parameter in trained(policy):
        if not parameter.any():  # LoRA's B begins at 0, where A has no gradient
            torch.nn.init.normal_(parameter, std=0.02)
    episodes = play_a_little(policy, make_pack("frozenlake", 2, 2, "tiny"), 4)
    for number, episode in enumerate(episodes):
        episode.advantage = (-1.0) ** number
    on_cpu = copy.deepcopy(policy.model).to("cpu", torch.float32)
    other = Policy(on_cpu, policy.chat.tokenizer, policy.settings)
    here, there = gradient(policy, episodes), gradient(other, episodes)
    cosine = torch.nn.functional.cosine_similarity(here, there, dim=0).item()
    figure(f"cosine of the gradient with that of the CPU in float32, {name}", cosine, "", goal)
    figure(f"its length, in that of the CPU, {name}", (here.norm() / there.norm()).item())


def gradient(policy: Policy, episodes: list[Episode]) -> torch.Tensor:
    """Of all that is trained, as one vector in float64 [n]."""
    policy.train_mode()
    n_tokens = sum(episode.n_sampled for episode in episodes)
    for batch in training_batches(episodes, 8192, policy):
        batch_loss(policy, batch, n_tokens, Config())[0].backward()
    return torch.cat([parameter.grad.flatten().double().cpu() for parameter in trained(policy)])
