"""Every causal-LM type of the installed transformers, at tiny size: does it train here as it samples?

    python benchmarks/architectures.py                     all of them, and docs/models.md (an hour on one core)
    python benchmarks/architectures.py --types llama,lfm2  some only, as lines
    python benchmarks/architectures.py --jobs 2            two at a time

For each type (and for the shapes of published models, tiny_models.SHAPES) a folder with a tiny random model is written
and goes the whole way that train.py goes: it is loaded, gets an adapter on all linear layers, is sampled from and
checked. Then conversations of mixed lengths, some longer than every window, are sampled, and the log-probabilities of
the sampler are compared with those of the trainer, in a padded batch and in training mode, and with the model's own
forward pass on one conversation; again with an adapter that has random weights. That adapter is saved and read again,
and merged into a model that transformers loads by itself. Each type has a process of its own with limits of time and
memory. What has been found is kept in a file, a JSON line for each type, and a sweep that was broken off goes on there.
"""

import argparse
import contextlib
import dataclasses
import io
import json
import os
import resource
import signal
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path

sys.path.insert(0, str(Path.cwd() if (Path.cwd() / "models.py").exists() else Path(__file__).parents[1]))
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"

import peft  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from tiny_models import APART, CAUSAL, SHAPES, build  # noqa: E402
from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: E402

import train  # noqa: E402
from batches import pad_batch  # noqa: E402
from check import short_check  # noqa: E402
from engine.errors import BadInput, first_line  # noqa: E402
from engine.policy import Policy  # noqa: E402
from envs import make_pack  # noqa: E402
from eval import EvalConfig, merge  # noqa: E402
from models import HERE, Lora, LoraLayer, add_adapter, load_model, text_decoder  # noqa: E402
from rollout import Episode  # noqa: E402

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
        Episode("solve", 0, [message("system", 2, 5), message("user", words, n)], "", noise=str(n))
        for n, (words, _) in enumerate(CONVERSATIONS)
    ]
    turns = {episode: list(later) for episode, (_, later) in zip(episodes, CONVERSATIONS, strict=True)}
    with policy.sampling():
        asking, waiting = episodes, set(episodes)
        while waiting:
            answers, asking = policy.reply(asking), []
            for episode, reply in answers:
                waiting.remove(episode)
                if turns[episode] and not reply.outgrown:
                    words = turns[episode].pop(0)
                    episode.messages += [{"role": "assistant", "content": reply.text}, message("user", words, 3)]
                    asking.append(episode)
            waiting |= set(asking)
    return [episode for episode in episodes if episode.n_sampled]  # others do not fit into the model


@torch.no_grad()
def gaps(policy: Policy, episodes: list[Episode]) -> dict[str, torch.Tensor]:
    """Differences [n] from the sampler's log-probabilities: of the trainer's, in one padded batch, and of those that
    the model itself gives to each conversation alone."""
    ids, mask, logps = pad_batch(episodes, policy.device)  # [B, T] each
    policy.train_mode()
    trained = policy.logprobs(ids, mask)[0]  # [B, T]
    policy.model.eval()
    own = []
    for episode in episodes:
        one_ids, one_mask, one_logps = pad_batch([episode], policy.device)  # [1, t] each
        with policy.precision():
            logits = policy.model(input_ids=one_ids, use_cache=False).logits.float()  # [1, t, V]
        logp = (logits / policy.temperature).log_softmax(-1)[:, :-1].gather(2, one_ids[:, 1:, None])[..., 0]  # [1, t-1]
        own.append((logp - one_logps[:, 1:])[one_mask[:, 1:]])
    return {"trainer": (trained - logps)[mask].abs(), "own": torch.cat(own).abs()}


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


class NotBuilt(Exception):
    """There is no such model that could be trained here."""


class Wrong(Exception):
    """Something was computed, and it is not right."""


def examine(name: str, folder: Path, found: dict) -> None:
    """All that is to be found out about one type; the folder is for its files."""
    found["stage"] = "build"
    if name in APART:
        raise NotBuilt(APART[name])
    tokenizer = AutoTokenizer.from_pretrained(HERE / "embedded-policy")
    model = build(name, len(tokenizer))
    base = folder / "base"
    model.save_pretrained(base)
    tokenizer.save_pretrained(base)
    found["weights"] = sum(p.numel() for p in model.parameters())

    found["stage"] = "load"
    torch.manual_seed(0)
    ids = torch.randint(len(tokenizer), (1, 100))
    want = predictions(model, ids)
    model, tokenizer = load_model(str(base))
    found["load"] = (predictions(model, ids) - want).abs().max().item()
    if not found["load"] < TOLERANCE:
        raise Wrong(f"loaded, it predicts otherwise than when it was saved, by {found['load']:.1e}")
    found["stage"] = "adapter"
    model = add_adapter(model, Lora())
    found["adapted"] = adapted(model)
    found["stage"] = "policy"
    policy = Policy(model, tokenizer, max_reply_tokens=CHECK_REPLY)
    found |= {"sampler": policy.sampler_name, "why": policy.why}
    found["stage"] = "self-check"
    found["check"] = short_check(policy, make_pack("frozenlake", 0, 2, "tiny"))
    policy.max_reply_tokens = REPLY
    wrong = []
    changed = (predictions(model, ids) - want).abs().max().item()
    if not changed < TOLERANCE:
        wrong.append(f"with a fresh adapter the model predicts otherwise than without, by {changed:.1e}")
    for stage in ("fresh adapter", "random adapter"):
        found["stage"] = stage
        if stage == "random adapter":
            before = predictions(model, ids)
            shake(model)
            changed = (predictions(model, ids) - before).abs().max().item()
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

    found["stage"] = "reload"
    run = folder / "run"
    run.mkdir()
    (run / "config.json").write_text(json.dumps(dataclasses.asdict(train.Config(model=str(base)))))
    (run / "metrics.jsonl").touch()
    model.save_pretrained(run / "adapter")
    want = predictions(model, ids)
    again = add_adapter(load_model(str(base))[0], folder=run / "adapter")
    found["reload"] = (predictions(again, ids) - want).abs().max().item()
    if not found["reload"] < TOLERANCE:
        wrong.append(f"the adapter read again predicts otherwise, by {found['reload']:.1e}")
    found["stage"] = "merge"
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            merge(EvalConfig(policy=str(run), merge_to=str(folder / "merged")))
    except BadInput as refusal:
        found["merged"] = str(refusal)
    else:
        try:
            merged = AutoModelForCausalLM.from_pretrained(folder / "merged")
            found["merged"] = (predictions(merged, ids) - want).abs().max().item()
            if not found["merged"] < TOLERANCE:
                wrong.append(f"the merged model predicts otherwise, by {found['merged']:.1e}")
        except ValueError as error:
            wrong.append(f"transformers cannot read the merged model: {first_line(error)}")
    if wrong:
        raise Wrong("; ".join(wrong))


def outcome(name: str) -> dict:
    """What `examine` finds, or where and why it ended."""
    found: dict = {"type": name, "outcome": "trains"}
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            examine(name, Path(folder), found)
        except Wrong as error:
            found |= {"outcome": "wrong", "reason": str(error)}
        except NotBuilt as error:
            found |= {"outcome": "not built", "reason": str(error)}
        except ImportError as error:
            found |= {"outcome": "not built", "reason": first_line(error)}
        except BadInput as error:
            late = found["stage"] not in ("load", "adapter", "policy", "self-check")
            text = str(error).replace(folder, "FOLDER")
            found |= {"outcome": "wrong", "reason": f"accepted at first: {text}"} if late else {
                "outcome": "refused", "reason": text}  # fmt: skip
        except Exception as error:
            frames = traceback.extract_tb(error.__traceback__)
            ours = [f for f in frames if "site-packages" not in f.filename]
            places = [f"{'/'.join(Path(f.filename).parts[-2:])}:{f.lineno}" for f in (ours[-1], frames[-1])]
            text = " ".join(f"{type(error).__name__}: {error}".split())[:400].replace(folder, "FOLDER")
            kind = "not built" if found["stage"] == "build" else "error"
            found |= {"outcome": kind, "reason": text, "place": " <- ".join(dict.fromkeys(places[::-1]))}
    return found | {"seconds": round(time.perf_counter() - start, 1)}


def warm_up() -> None:
    """What every process would do again for itself: the lists that transformers makes when it first saves and loads."""
    with tempfile.TemporaryDirectory() as folder:
        build("llama", 100).save_pretrained(folder)
        add_adapter(AutoModelForCausalLM.from_pretrained(folder))


def start_process(name: str, lines: Path, limits: argparse.Namespace) -> int:
    """Examine a type in a process of its own; returns its id."""
    process = os.fork()
    if process:
        return process
    resource.setrlimit(resource.RLIMIT_AS, (limits.gigabytes << 30,) * 2)
    resource.setrlimit(resource.RLIMIT_CPU, (limits.seconds,) * 2)
    signal.alarm(10 * limits.seconds)  # of the clock: other processes may take most of it
    try:
        found = outcome(name)
        with lines.open("a") as file:
            file.write(json.dumps(found) + "\n")
        os._exit(0)
    finally:  # an error must not go on in what is the other process's part of the work
        os._exit(1)


def sweep(names: list[str], lines: Path, limits: argparse.Namespace) -> None:
    """Examine these types, a few at a time."""
    waiting, running = list(names), {}
    while waiting or running:
        while waiting and len(running) < limits.jobs:
            name = waiting.pop(0)
            running[start_process(name, lines, limits)] = name
        process, status = os.wait()
        name = running.pop(process)
        if status:
            timeouts = (signal.SIGALRM, signal.SIGXCPU, signal.SIGKILL)
            reason = "took too long" if status & 127 in timeouts else f"its process ended with status {status}"
            with lines.open("a") as file:
                file.write(json.dumps({"type": name, "outcome": "error", "reason": reason}) + "\n")
        found = read(lines)[name]
        print(f"{name}: {found['outcome']}, {summary(found)}", flush=True)


def read(lines: Path) -> dict[str, dict]:
    """Type -> what has been found, the last time counts."""
    if not lines.exists():
        return {}
    return {found["type"]: found for found in map(json.loads, lines.read_text().splitlines())}


def summary(found: dict) -> str:
    if found["outcome"] == "trains":
        return (
            f"{found['sampler']}, {found['adapted']}, gap {found['largest']:.1e} at most, {found['mean']:.1e} in the "
            f"mean, read again {shown(found['reload'])}, merged {shown(found['merged'])}, {found['seconds']} s"
        )
    place = f" @ {found['place']}" if "place" in found else ""
    return f"[{found.get('stage', '')}] {found['reason']}{place}"


def shown(difference: float | str) -> str:
    """How far predictions are off, or why there are none."""
    return difference if isinstance(difference, str) else f"{difference:.0e}"


INTRODUCTION = """# Which models train here

Written by `python benchmarks/architectures.py` with transformers {transformers}, peft {peft} and torch {torch}, in
single precision on a CPU: every causal-LM type of that transformers version as a tiny random model, and the shapes of
published models cut to a few layers. Each goes the way of a training (adapter on all linear layers, sampler,
self-check); then conversations of 17 to 490 tokens and up to four turns are sampled in one batch, most of them longer
than every window (16 tokens) and than the length from which on rotary embeddings change (256).

- **sampler**: `fast`, or `generate` and why.
- **adapted**: the names of the layers with an adapter, and how much of the weights between embedding and output head
  they hold.
- **gap**: between the log-probabilities of the sampler and of the trainer, in nats per token, largest and mean, with a
  fresh and with a random adapter (the larger one). Above {tolerance:g} a type counts as wrong, also where the model's
  own forward pass on one conversation is as far from the sampler.
- **again**: how far log-probabilities are off after the adapter was saved and read into a fresh model; **merged**:
  after it was merged into a model that transformers loads by itself.

| | types of {n_types} | shapes of {n_shapes} |
|---|---|---|
{counts}
"""
TITLES = {
    "trains": "Trains",
    "wrong": "Accepted, and wrong",
    "error": "Ends in a traceback",
    "refused": "Refused, with the reason",
    "not built": "Not tried",
}


def report(found: dict[str, dict]) -> str:
    """docs/models.md"""
    found = {name: found[name] for name in [*SHAPES, *sorted(CAUSAL)] if name in found}
    groups = {title: [f for f in found.values() if f["outcome"] == outcome] for outcome, title in TITLES.items()}
    counts = [
        f"| {title.lower()} | {len(group) - n_shapes} | {n_shapes} |"
        for title, group in groups.items()
        for n_shapes in [sum(f["type"] in SHAPES for f in group)]
        if group
    ]
    n_shapes = sum(name in SHAPES for name in found)
    lines = [
        INTRODUCTION.format(
            transformers=transformers.__version__, peft=peft.__version__, torch=torch.__version__.split("+")[0],
            tolerance=TOLERANCE, n_types=len(found) - n_shapes, n_shapes=n_shapes, counts="\n".join(counts),
        )
    ]  # fmt: skip
    for title, group in groups.items():
        if not group:
            continue
        lines.append(f"## {title}\n")
        if title == "Trains":
            lines += ["| type | sampler | adapted | gap, largest | mean | again | merged |", "|" + "---|" * 7]
        else:
            lines += ["| type | |", "|---|---|"]
        lines += map(row, group)
        lines.append("")
    return "\n".join(lines)


def row(found: dict) -> str:
    name = found["type"] + (f" ({SHAPES[found['type']][0]})" if found["type"] in SHAPES else "")
    if found["outcome"] == "trains":
        why, *notes = found["why"].removeprefix("sampler ").split("; ")  # of the fast one the notes are enough
        sampler = "; ".join(["fast" if found["sampler"] == "fast" else why, *notes])
        gaps = f"{found['largest']:.0e} | {found['mean']:.0e}"
        cells = [name, sampler, found["adapted"], gaps, shown(found["reload"]), shown(found["merged"])]
    else:
        cells = [name, found["reason"].replace("|", "\\|") + (f" ({found['place']})" if "place" in found else "")]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--types", default="", help="names separated by commas; empty: all")
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time")
    parser.add_argument("--seconds", type=int, default=60, help="limit of computing time for a type")
    parser.add_argument("--gigabytes", type=int, default=16, help="limit of address space for a type")
    parser.add_argument("--lines", type=Path, default=Path("runs/architectures.jsonl"), help="what has been found")
    parser.add_argument("--output", type=Path, default=Path("docs/models.md"))
    parser.add_argument("--fresh", action="store_true", help="examine again what is in the file already")
    options = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    options.lines.parent.mkdir(parents=True, exist_ok=True)
    names = options.types.split(",") if options.types else [*CAUSAL, *SHAPES]
    done = {} if options.types or options.fresh else read(options.lines)
    warm_up()
    sweep([name for name in names if name not in done], options.lines, options)
    if not options.types:
        options.output.write_text(report(read(options.lines)))


if __name__ == "__main__":
    main()
