"""All that is to be found out about one type: a tiny model of it goes the whole way of a training.

It is written to a folder and loaded, gets an adapter on all linear layers, is sampled from and checked. Then
conversations of mixed lengths, some longer than every window, are sampled, and the log-probabilities of the sampler are
compared with those of the trainer, in a padded batch and in training mode, and with the model's own forward pass on one
conversation; again with an adapter that has random weights. That adapter is saved and read again, and merged into a
model that transformers loads by itself.
"""

import contextlib
import io
import tempfile
import time
import traceback
import warnings
from dataclasses import replace
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from benchmarks.models.rules import APART
from benchmarks.models.tiny import build
from engine.batches import pad_batch
from engine.check import short_check
from engine.embedded import build_tokenizer
from engine.errors import BadInput, first_line
from engine.models import Lora, LoraLayer, add_adapter, load_model, text_decoder
from engine.policy import Policy
from engine.settings import Config, Sampling
from envs import make_pack
from eval import merge
from evaluation.settings import EvalConfig
from record.files import write_settings
from rollout import Episode

TOLERANCE = 1e-3  # nats, in single precision
CHECK_REPLY, REPLY = 24, 10  # tokens of a reply at most: in the self-check, in the conversations
# (words of the first message, of each later one): beyond every window from the start, in later turns, never
CONVERSATIONS = [(140, [12, 3]), (20, [30, 5, 20]), (2, [1]), (2, [])]


def message(role: str, words: int, seed: int) -> dict:
    text = " ".join(f"{(seed + 7 * k) % 89}" for k in range(words))
    return {"role": role, "content": text}


def converse(policy: Policy) -> list[Episode]:
    """Conversations of mixed lengths with their replies."""
    episodes = [
        Episode("solve", 0, [message("system", 2, 5), message("user", words, n)], "", rng_key=str(n))
        for n, (words, _) in enumerate(CONVERSATIONS)
    ]
    turns = {episode: list(later) for episode, (_, later) in zip(episodes, CONVERSATIONS, strict=True)}
    with policy.sampling():
        asking, waiting = episodes, set(episodes)
        while waiting:
            answers, asking = policy.reply(asking), []
            for episode, reply in answers:
                waiting.remove(episode)
                if turns[episode] and not reply.context_full:
                    words = turns[episode].pop(0)
                    episode.messages += [{"role": "assistant", "content": reply.text}, message("user", words, 3)]
                    asking.append(episode)
            waiting |= set(asking)
    return [episode for episode in episodes if episode.n_sampled]  # others do not fit into the model


def alone(policy: Policy, episode: Episode) -> torch.Tensor:
    """Differences [n] of the log-probabilities that the model itself gives to a conversation from the sampler's."""
    ids, mask, logps = pad_batch([episode], policy.device)  # [1, t] each
    with policy.precision():
        logits = policy.model(input_ids=ids, use_cache=False).logits.float()  # [1, t, V]
    all_logp = (logits / policy.settings.temperature).log_softmax(-1)[:, :-1]  # [1, t-1, V]
    logp = all_logp.gather(2, ids[:, 1:, None])[..., 0]  # [1, t-1]
    return (logp - logps[:, 1:])[mask[:, 1:]]


@torch.no_grad()
def gaps(policy: Policy, episodes: list[Episode]) -> dict[str, torch.Tensor]:
    """Differences [n] from the sampler's log-probabilities: of the trainer's, in one padded batch, and of those that
    the model itself gives to each conversation alone."""
    ids, mask, logps = pad_batch(episodes, policy.device)  # [B, T] each
    policy.train_mode()
    trained = policy.logprobs(ids, mask)[0]  # [B, T]
    policy.model.eval()
    own = torch.cat([alone(policy, episode) for episode in episodes])  # [n]
    return {"trainer": (trained - logps)[mask].abs(), "own": own.abs()}


def adapted(model) -> str:
    """Which layers have an adapter, and how much of the text decoder that is."""
    names, covered = set(), set()
    for name, module in model.named_modules():
        if isinstance(module, LoraLayer):
            parts = [part for part in name.split(".") if part != "base_layer" and not part.isdigit()]
            names.add(parts[-1])
            covered |= {id(p) for n, p in module.named_parameters() if ".lora_" not in n and not n.startswith("lora_")}
    decoder = text_decoder(model.get_base_model())
    tables = {id(p) for m in decoder.modules() if isinstance(m, torch.nn.Embedding) for p in m.parameters()}
    inner = [p for n, p in decoder.named_parameters() if "lora_" not in n and p.ndim > 1 and id(p) not in tables]
    share = sum(p.numel() for p in inner if id(p) in covered) / max(1, sum(p.numel() for p in inner))
    return f"{' '.join(sorted(names))} ({share:.0%})"


@torch.no_grad()
def shake(model) -> None:
    """Give the adapter random weights that change the predictions."""
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parameter.normal_(std=0.05 if "lora_B" in name or "lora_embedding_B" in name else 0.2)


@torch.no_grad()
def predictions(model, ids: torch.Tensor) -> torch.Tensor:
    return model.eval()(input_ids=ids, use_cache=False).logits.float().log_softmax(-1)  # [B, T, V]


def apart(one: torch.Tensor, other: torch.Tensor) -> float:
    return (one - other).abs().max().item()


class NotBuilt(Exception):
    """There is no such model that could be trained here."""


class Wrong(Exception):
    """Something was computed, and it is not right."""


def examine(name: str, folder: Path, found: dict) -> None:
    """Everything, with the stage that it is at in `found`; the folder is for the files of the model and of the run."""
    found["stage"] = "build"
    if name in APART:
        raise NotBuilt(APART[name])
    tokenizer = build_tokenizer(packs=1)  # small, whatever the embedded policy's may grow to
    model = build(name, len(tokenizer))
    base = folder / "base"
    model.save_pretrained(base)
    tokenizer.save_pretrained(base)
    found["weights"] = sum(p.numel() for p in model.parameters())
    torch.manual_seed(0)
    ids = torch.randint(len(tokenizer), (1, 100))
    plain = predictions(model, ids)

    found["stage"] = "load"
    model, tokenizer = load_model(str(base))
    found["load"] = apart(predictions(model, ids), plain)
    if not found["load"] < TOLERANCE:
        raise Wrong(f"loaded, it predicts otherwise than when it was saved, by {found['load']:.1e}")
    found["stage"] = "adapter"
    model = add_adapter(model, Lora())
    found["adapted"] = adapted(model)
    found["stage"] = "policy"
    policy = Policy(model, tokenizer, Sampling(max_reply_tokens=CHECK_REPLY))
    found |= {"sampler": policy.sampler_name, "why": policy.why}
    found["stage"] = "self-check"
    found["check"] = short_check(policy, make_pack("frozenlake", 0, 2, "tiny"))
    wrong = []
    changed = apart(predictions(model, ids), plain)
    if not changed < TOLERANCE:
        wrong.append(f"with a fresh adapter the model predicts otherwise than without, by {changed:.1e}")
    wrong += sampled_as_trained(policy, ids, found)
    wrong += saved_and_merged(model, base, folder, ids, found)
    if wrong:
        raise Wrong("; ".join(wrong))


def sampled_as_trained(policy: Policy, ids: torch.Tensor, found: dict) -> list[str]:
    """What is wrong with the log-probabilities, with the fresh adapter and with random weights in it."""
    policy.settings = replace(policy.settings, max_reply_tokens=REPLY)
    wrong = []
    for stage in ("fresh adapter", "random adapter"):
        found["stage"] = stage
        if stage == "random adapter":
            before = predictions(policy.model, ids)
            shake(policy.model)
            changed = apart(predictions(policy.model, ids), before)
            if not changed > 0.05:
                wrong.append(f"a random adapter changes the predictions by {changed:.1e} only")
        episodes = converse(policy)
        for kind, gap in gaps(policy, episodes).items():
            if kind == "trainer":
                found["largest"] = max(found.get("largest", 0.0), gap.max().item())
                found["mean"] = max(found.get("mean", 0.0), gap.mean().item())
            if not gap.max() < TOLERANCE:
                what = {"trainer": "sampler and trainer", "own": "sampler and the model's own forward pass"}[kind]
                wrong.append(f"{what} differ by {gap.max():.1e} at most, {gap.mean():.1e} in the mean ({stage})")
    return wrong


def saved_and_merged(model, base: Path, folder: Path, ids: torch.Tensor, found: dict) -> list[str]:
    """What is wrong with the adapter when it is read again, and with the merged model."""
    found["stage"] = "reload"
    run = folder / "run"
    run.mkdir()
    write_settings(run, Config(model=str(base)))
    (run / "metrics.jsonl").touch()
    model.save_pretrained(run / "adapter")
    want = predictions(model, ids)
    again = add_adapter(load_model(str(base))[0], folder=run / "adapter")
    found["reload"] = apart(predictions(again, ids), want)
    wrong = []
    if not found["reload"] < TOLERANCE:
        wrong.append(f"the adapter read again predicts otherwise, by {found['reload']:.1e}")
    found["stage"] = "merge"
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            merge(EvalConfig(policy=[str(run)], merge_to=str(folder / "merged")))
    except BadInput as refusal:
        found["merged"] = str(refusal)
        return wrong
    try:
        merged = AutoModelForCausalLM.from_pretrained(folder / "merged")
    except ValueError as error:
        return [*wrong, f"transformers cannot read the merged model: {first_line(error)}"]
    found["merged"] = apart(predictions(merged, ids), want)
    if not found["merged"] < TOLERANCE:
        wrong.append(f"the merged model predicts otherwise, by {found['merged']:.1e}")
    return wrong


def outcome(name: str) -> dict:
    """What `examine` finds, or where and why it ended."""
    found: dict = {"type": name, "outcome": "trains"}
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            examine(name, Path(folder), found)
        except Exception as error:
            found |= ending(error, found["stage"], folder)
    return found | {"seconds": round(time.perf_counter() - start, 1)}


def ending(error: Exception, stage: str, folder: str) -> dict:
    """The outcome of an examination that ended with this error, and the reason."""
    if isinstance(error, Wrong):
        return {"outcome": "wrong", "reason": str(error)}
    if isinstance(error, NotBuilt):
        return {"outcome": "not built", "reason": str(error)}
    if isinstance(error, ImportError):
        return {"outcome": "not built", "reason": first_line(error)}
    if isinstance(error, BadInput):
        text = str(error).replace(folder, "FOLDER")
        if stage not in ("load", "adapter", "policy", "self-check"):
            return {"outcome": "wrong", "reason": f"accepted at first: {text}"}
        return {"outcome": "refused", "reason": text}
    frames = traceback.extract_tb(error.__traceback__)
    ours = [f for f in frames if "site-packages" not in f.filename]
    places = [f"{'/'.join(Path(f.filename).parts[-2:])}:{f.lineno}" for f in (ours[-1], frames[-1])]
    text = " ".join(f"{type(error).__name__}: {error}".split())[:400].replace(folder, "FOLDER")
    kind = "not built" if stage == "build" else "error"
    return {"outcome": kind, "reason": text, "place": " <- ".join(dict.fromkeys(places[::-1]))}
