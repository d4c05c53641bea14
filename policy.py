"""The language-model policy: sampling with a KV cache, and log-probabilities for training."""

import contextlib
import functools
import os
import random
import shutil
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field

import psutil
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import Cache

from batches import ATTENTION, PASS, batches_by_length, families
from chat import ChatFormat
from envs import BadInput, first_line
from models import LoraLayer, PeftModel
from rollout import Episode, Reply

OUTGROWN = Reply("", truncated=True, outgrown=True)
PREFILL_TOKENS = 1 << 13  # at most this many prompt tokens go through the model in one forward pass
HEAD_ELEMENTS = 1 << 26  # at most this many logits exist at a time in training (0.25 GiB in single precision)


class RowCache(Cache):
    """A KV cache whose rows have lengths of their own: each row is one conversation, which grows by any number of
    tokens at a time and can be replaced by a new one. Keys and values are [rows, heads, capacity, head_dim] per layer.

    `reserve` makes room; before a forward pass `view` says which rows take part, where in each its new tokens go, and
    how much of them to read.
    """

    def __init__(self):
        super().__init__(layers=[])
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []
        self.n_rows = self.capacity = 0  # capacity: tokens that fit into a row

    def reserve(self, n_rows: int, length: int, largest: int) -> None:
        """Make room for rows of that length. It grows beyond `largest` tokens in all only where `length` needs it."""
        if length > self.capacity:  # in growing steps, so that the copying does not add up
            self.capacity = max(length, min(2 * self.capacity, largest // n_rows))
        self.n_rows = max(self.n_rows, n_rows)
        for stores in (self.keys, self.values):
            for layer, store in enumerate(stores):
                rows, heads, capacity, head_dim = store.shape
                if rows < self.n_rows or capacity < self.capacity:
                    stores[layer] = store.new_zeros(self.n_rows, heads, self.capacity, head_dim)
                    stores[layer][:rows, :, :capacity] = store

    def view(self, rows: Tensor | None, positions: Tensor, length: int) -> None:
        """rows [b] (None: all); positions [b, t], where the new tokens go; length: of the part to attend to."""
        self.rows, self.positions, self.length = rows, positions, length
        self.write_rows = torch.arange(self.n_rows, device=positions.device) if rows is None else rows  # [b]

    def keep(self, rows: Tensor, length: int) -> None:
        """Drop all but these rows, and of them all that is behind `length`."""
        self.n_rows, self.capacity = len(rows), min(length, self.capacity)
        for stores in (self.keys, self.values):
            for layer, store in enumerate(stores):
                stores[layer] = store[rows, :, :length]  # [rows, heads, length, head_dim], a copy

    def copy(self, row: int, rows: list[int], length: int) -> None:
        """What the first `length` tokens of a row have left there goes into other rows, too."""
        for store in self.keys + self.values:
            store[rows, :, :length] = store[row, :, :length]

    def update(self, keys: Tensor, values: Tensor, layer_idx: int, *args, **kwargs) -> tuple[Tensor, Tensor]:
        return self._store(self.keys, keys, layer_idx), self._store(self.values, values, layer_idx)

    def _store(self, stores: list[Tensor], new: Tensor, layer: int) -> Tensor:
        """new [b, heads, t, head_dim] -> everything of these rows up to `length`, [b, heads, length, head_dim]."""
        if layer == len(stores):
            stores.append(new.new_zeros(self.n_rows, new.shape[1], self.capacity, new.shape[3]))
        store = stores[layer]
        store[self.write_rows[:, None], :, self.positions] = new.transpose(1, 2)  # so indexed it is [b, t, heads, dim]
        return store[:, :, : self.length] if self.rows is None else store[self.rows, :, : self.length]


@dataclass(eq=False)
class Draft:
    """A reply that is being sampled: at most `room` tokens for the conversation in a row of the cache."""

    episode: Episode
    row: int
    room: int
    rng: random.Random
    ids: list[int] = field(default_factory=list)
    logps: list[float] = field(default_factory=list)
    complete: bool = False

    @property
    def most(self) -> int:
        """Tokens of the conversation when the reply is as long as it may be."""
        return len(self.episode.ids) + self.room


class CapturedStep:
    """A decoding step as a CUDA graph: the GPU replays it, without Python launching a thousand kernels one by one.

    It reads its inputs from buffers of its own. Raises RuntimeError if the step does something that cannot be captured.
    """

    def __init__(self, step: Callable, inputs: tuple[Tensor, ...], pool: tuple[int, int]):
        self.inputs = [value.clone() for value in inputs]
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            # what is made at first use must not be made while capturing; the first replay does this step again
            step(*self.inputs)
        torch.cuda.current_stream().wait_stream(stream)
        self.graph = torch.cuda.CUDAGraph()
        # a capture that fails would not leave its stream by itself
        with torch.cuda.stream(torch.cuda.current_stream()), torch.cuda.graph(self.graph, pool=pool):
            self.outputs = step(*self.inputs)

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        for buffer, value in zip(self.inputs, inputs, strict=True):
            buffer.copy_(value)
        self.graph.replay()
        return tuple(output.clone() for output in self.outputs)


class Policy:
    """A Hugging Face causal language model that answers conversations by sampling.

    Temperature applies to the log-probabilities too; no top-k, no top-p. The weights must not change while it samples:
    a phase of sampling is a `with policy.sampling():` block. What is sampled follows from the weights, the conversation
    and its `noise`, whatever other conversations are in the batch (but for rounding).

    With `merge`, an adapter is merged into copies of the weights for the time of such a block: an adapter beside the
    weights costs a third of a decoding step and more. Weights in 4 bits are never merged. With `cuda_graphs`, a GPU
    decodes by replaying captured steps.

    The KV cache holds at most `kv_tokens` tokens (rows times the longest of them, 0: as many as fit into 60 % of the
    memory that is free now), unless one conversation alone is longer. Conversations that would go beyond wait.
    """

    def __init__(
        self,
        model,
        tokenizer,
        temperature: float = 1.0,
        max_reply_tokens: int = 256,
        kv_tokens: int = 0,
        merge: bool = True,
        cuda_graphs: bool = False,
    ):
        self.model = model
        self.chat = ChatFormat(tokenizer)
        self.temperature = temperature
        self.max_reply_tokens = max_reply_tokens
        self.device = next(model.parameters()).device
        on_gpu = self.device.type == "cuda"
        self.block = 4 if on_gpu else 1  # tokens that are sampled before the host looks at them
        self.cuda_graphs = cuda_graphs and on_gpu
        self.compiled = False
        text_config = model.config.get_text_config()
        self.max_length = getattr(text_config, "max_position_embeddings", None) or 1 << 30
        self.layer_types = set(getattr(text_config, "layer_types", None) or [])
        slides = not self.layer_types or "sliding_attention" in self.layer_types
        self.window = getattr(text_config, "sliding_window", None) if slides else None  # tokens that a layer looks back
        self.softcap = getattr(text_config, "final_logit_softcapping", None)
        base = model.get_base_model() if isinstance(model, PeftModel) else model
        self.decoder, self.head = base.get_decoder(), base.get_output_embeddings()
        self.chat.check_ids(base.get_input_embeddings().weight.shape[0])
        eos = base.generation_config.eos_token_id  # some models have further stop tokens there
        self.chat.stop_ids |= set(eos if isinstance(eos, list) else [eos]) - {None}
        if text_config._attn_implementation == "sdpa":
            base.set_attn_implementation(ATTENTION)
        self.kv_tokens = 1 << 62  # no bound while `_check` looks how large a token is
        self._check()
        # sequences up to this length can have a common beginning that goes through the model once (batches.py)
        self.shares_up_to = (self.window or self.max_length) if self._can_share() else 0
        self.adapted = self._mergeable_layers() if merge else []
        copies = sum(layer.weight.nbytes for layer in self.adapted)
        room = 0.6 * (free_memory(self.device) - copies)
        self.kv_tokens = kv_tokens or max(1, int(room / self._bytes_per_token()))
        self.fresh_cache()

    def _mergeable_layers(self) -> list[LoraLayer]:
        """The layers with an adapter; none if merging would go through a quantised weight or reach another layer."""
        layers = [module for module in self.model.modules() if isinstance(module, LoraLayer)]
        tied = {id(self.head.weight), id(self.decoder.get_input_embeddings().weight)}
        dtypes = (torch.float32, torch.bfloat16)
        plain = all(layer.weight.dtype in dtypes and id(layer.weight) not in tied for layer in layers)
        return layers if plain else []

    @contextlib.contextmanager
    def sampling(self):
        """A phase of sampling with the weights of now: an empty KV cache before it, no memory taken by it afterwards.

        The adapter is merged from the frozen weights into copies every time, so nothing drifts. These are rounded up or
        down at random: an adapter that has learnt little changes a weight by less than half the distance between two
        bfloat16 numbers, and would vanish if all were rounded to the nearest.
        """
        self.fresh_cache()
        frozen = [layer.weight.data for layer in self.adapted]
        plain = torch.compiler.set_stance("force_eager") if self.compiled else contextlib.nullcontext()
        try:
            self._merge()
            with plain:
                yield
        finally:
            for layer, weight in zip(self.adapted, frozen, strict=True):
                layer.weight.data = weight
                layer.merged_adapters.clear()
            self.fresh_cache()

    @torch.no_grad()
    def _merge(self) -> None:
        for number, layer in enumerate(self.adapted):
            [adapter] = layer.active_adapters
            merged = layer.weight + layer.get_delta_weight(adapter)  # [out, in], in single precision
            if not merged.isfinite().all():
                raise BadInput("the adapter cannot be merged: it is not finite")
            layer.weight.data = dithered(merged, layer.weight.dtype, number)
            layer.merged_adapters.append(adapter)

    def compile(self) -> None:
        """From now on run each layer as compiled code when training (torch.compile, for any shape; the first pass takes
        a minute). Sampling stays as it is: its steps are too short and too varied."""
        if not hasattr(self.decoder, "layers"):
            raise BadInput(f"compile=True: {type(self.decoder).__name__} has no list of layers to compile")
        if self.device.type == "cpu" and shutil.which(os.environ.get("CXX", "c++")) is None:
            raise BadInput("compile=True: on a CPU it needs a C++ compiler, and none is installed")
        # all layers share their code, in a version for each kind of pass (the first layer, whose input has no gradient,
        # and the others; one row, several, with a common beginning; the reference): PyTorch would stop after 8
        torch._dynamo.config.recompile_limit = 16
        for layer in self.decoder.layers:
            layer.compile(dynamic=True)
        self.compiled = True

    def precision(self) -> torch.autocast:
        """Half-precision models compute in their precision throughout, the adapter (whose weights are float32) too.

        Every forward pass of a model with an adapter has to be made in this context.
        """
        half = self.model.dtype != torch.float32
        return torch.autocast(self.device.type, self.model.dtype, enabled=half, cache_enabled=False)

    def _bytes_per_token(self) -> int:
        """Size of a token in the KV cache, all layers together (as `_check` has left it)."""
        stores = self.cache.keys + self.cache.values
        return sum(store.shape[1] * store.shape[3] * store.element_size() for store in stores)

    @torch.no_grad()
    def _check(self) -> None:
        """Raise BadInput unless reading two rows piece by piece through the cache gives the model's own predictions.

        It does not for architectures that scale their logits, keep other things than keys and values, or cannot take a
        mask for every row.
        """
        self.model.eval()
        self.fresh_cache()
        self.conversations, self.cached = [None, None], [0, 0]
        ids = torch.arange(24, device=self.device).view(2, 12) % self.head.weight.shape[0]  # [2, 12]
        try:
            with self.precision():
                want = self.model(input_ids=ids, use_cache=False).logits.float()  # [2, 12, V]
            self._forward(ids[:, :8], [0, 1], [8, 5])
            self.cached = [8, 5]
            hidden = self._forward(torch.stack([ids[0, 8:], ids[1, 5:9]]), [0, 1], [4, 4])  # [2, 4, d]
            error = self._logits(hidden) - torch.stack([want[0, 8:], want[1, 5:9]])  # [2, 4, V]
        except (AttributeError, TypeError, ValueError, RuntimeError, IndexError) as failure:
            raise BadInput(
                f"{type(self.model).__name__}: cannot be sampled from here ({first_line(failure)})"
            ) from failure
        tolerance = 1e-3 if hidden.dtype == torch.float32 else 0.1
        if not want.isfinite().all():
            raise BadInput(f"{type(self.model).__name__}: its weights give predictions that are not finite")
        if not error.abs().mean() < tolerance * want.std():
            raise BadInput(f"{type(self.decoder).__name__}: this architecture or attention implementation does not fit")

    @torch.no_grad()
    def _can_share(self) -> bool:
        """Whether it changes nothing for this model if a common beginning goes through it once."""
        if self.model.config.get_text_config()._attn_implementation != ATTENTION:
            return False
        ids = torch.arange(24, device=self.device).view(2, 12) % self.head.weight.shape[0]  # [2, 12]
        ids[1, :5] = ids[0, :5]
        try:
            apart, together = self._hidden_states(ids, 0)[:, 5:], self._hidden_states(ids, 5)  # [2, 7, d] each
        except (AttributeError, TypeError, ValueError, RuntimeError, IndexError):
            return False
        tolerance = 1e-3 if apart.dtype == torch.float32 else 0.1
        return bool((together - apart).abs().mean() < tolerance * apart.std())

    def fresh_cache(self) -> None:
        self.cache = RowCache()
        self.conversations: list[Episode] = []  # which conversation each row of the cache belongs to
        self.cached: list[int] = []  # how many of its tokens are in there
        self.waiting: list[Draft] = []  # replies for which there is no room in the cache yet
        self.drafts: list[Draft] = []  # the replies being sampled; of each the last token is not in the cache yet
        self.captured: dict[int, CapturedStep] = {}  # decoding steps as CUDA graphs, by the length of their view
        self.captured_at = None  # where the cache was then

    @torch.no_grad()
    def reply(self, episodes: list[Episode]) -> list[tuple[Episode, Reply]]:
        """Go on sampling, these conversations included, until a quarter of the open replies is complete.

        Complete replies are appended to their episodes (ids, mask, log-probabilities) and returned; the others go on in
        the next call. So a long reply holds up nobody, and the prompts of those that go on are read in batches.
        """
        self.model.eval()
        outgrown = self._open(episodes)
        complete: list[Draft] = []
        enough = max(1, len(self.drafts) // 4)
        while True:
            complete += [draft for draft in self.drafts if draft.complete]
            self.drafts = [draft for draft in self.drafts if not draft.complete]
            if not self.drafts or len(complete) + len(outgrown) >= enough:
                break
            self._decode()
        return [(draft.episode, self._close(draft)) for draft in complete] + [(e, OUTGROWN) for e in outgrown]

    def _decode(self) -> None:
        """Sample the next token of every draft, or a block of tokens that a GPU computes without being waited for.

        All rows of the cache take part, so that its keys and values are read where they lie. What rows without a draft
        write, and drafts behind their end, is written over before anything sees it.
        """
        n, rows = self.block, len(self.conversations)
        tokens, uniform = torch.zeros(rows, 1, dtype=torch.long), torch.zeros(n, rows, 1, dtype=torch.float64)
        for draft in self.drafts:
            tokens[draft.row] = draft.ids[-1]
            uniform[:, draft.row, 0] = torch.tensor([draft.rng.random() for _ in range(n)], dtype=torch.float64)
        longest = max(self.cached[draft.row] for draft in self.drafts)
        length = min(longest + n, max(longest + 1, *(draft.most for draft in self.drafts)))
        self.cache.reserve(rows, max(length, max(self.cached) + 1), self.kv_tokens)
        tokens, uniform = tokens.to(self.device), uniform.to(self.device)  # [rows, 1], [n, rows, 1]
        positions = torch.tensor(self.cached, device=self.device)[:, None]  # [rows, 1]
        step = self._captured_step if self.cuda_graphs else self._step
        sampled = []
        for k in range(n):
            tokens, logps = step(tokens, positions + k, uniform[k], length)  # [rows, 1] each
            sampled.append((tokens, logps))
        all_ids, all_logps = (torch.cat(parts, dim=1).tolist() for parts in zip(*sampled, strict=True))  # [rows][n]
        for draft in self.drafts:
            for token, logp in zip(all_ids[draft.row], all_logps[draft.row], strict=True):
                if not draft.complete:
                    self._append(draft, token, logp)
                    self.cached[draft.row] += 1

    def _step(self, tokens: Tensor, positions: Tensor, uniform: Tensor, length: int) -> tuple[Tensor, Tensor]:
        """Read a token of every row of the cache and sample the next: tokens, positions, uniform [rows, 1] -> the next
        tokens and their log-probabilities [rows, 1]. With the new token no row with a draft is longer than `length`."""
        self.cache.view(None, positions.clamp(max=self.cache.capacity - 1), length)
        return self._sample(self._read(tokens, positions)[:, 0], uniform)

    def _sample(self, hidden: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
        """hidden [b, d], uniform [b, 1] in [0, 1) -> the next tokens and their log-probabilities [b, 1].

        The cumulative distribution is summed in double precision: in single precision the tail of a large vocabulary
        would vanish from it.
        """
        all_logp = self._all_logprobs(hidden)  # [b, V]
        cumulative = all_logp.double().exp().cumsum(dim=-1)  # [b, V]
        drawn = uniform * cumulative[:, -1:]  # [b, 1]
        token = torch.searchsorted(cumulative, drawn, right=True).clamp(max=all_logp.shape[1] - 1)  # [b, 1]
        return token, all_logp.gather(1, token)

    def _captured_step(self, tokens: Tensor, positions: Tensor, uniform: Tensor, length: int) -> tuple[Tensor, Tensor]:
        """`_step` through a CUDA graph, or plainly from the time on that the model could not be captured."""
        length = min(-(-length // 128) * 128, self.cache.capacity)  # so that a graph serves many steps
        inputs = (tokens, positions, uniform)
        step = functools.partial(self._step, length=length)
        place = [(store.data_ptr(), store.shape) for store in self.cache.keys + self.cache.values]
        if place != self.captured_at:  # the cache has grown, and the graphs know where it was
            self.captured, self.captured_at, self.pool = {}, place, torch.cuda.graph_pool_handle()
        try:
            if length not in self.captured:
                self.captured[length] = CapturedStep(step, inputs, self.pool)
            return self.captured[length](*inputs)
        except RuntimeError as error:
            warnings.warn(f"decoding goes on without CUDA graphs: {first_line(error)}", stacklevel=1)
            self.cuda_graphs, self.captured = False, {}
            return step(*inputs)

    def _append(self, draft: Draft, token: int, logp: float) -> None:
        draft.ids.append(token)
        draft.logps.append(logp)
        draft.complete = token in self.chat.stop_ids or len(draft.ids) == draft.room

    def _open(self, episodes: list[Episode]) -> list[Episode]:
        """Bring the conversations to where a reply begins, read them into the cache, and add a draft for each, with its
        first token. Returns those that have outgrown the model and get no reply.
        """
        outgrown = []
        for episode in episodes:
            self.chat.open_turn(episode)
            room = self.room(episode)
            if room > 0:
                self.waiting.append(Draft(episode, -1, room, random.Random(f"{episode.noise}/{len(episode.ids)}")))
            else:
                outgrown.append(episode)
        new = self._admit()
        for draft, row in zip(new, self._rows([draft.episode for draft in new]), strict=True):
            draft.row = row
        self._ingest(new)
        self.drafts += new
        if len(self.conversations) > 2 * len(self.drafts):  # most rows belong to conversations that are over
            self._compact({draft.episode for draft in self.drafts + self.waiting})
        return outgrown

    def room(self, episode: Episode) -> int:
        """Tokens that its next reply may have at most."""
        return min(self.max_reply_tokens, self.max_length - len(episode.ids))

    def _admit(self) -> list[Draft]:
        """Of the replies that wait, as many as the cache has room for (one at least, if none is being sampled): first
        those whose conversations are in the cache already, then those that have waited longest."""
        cached = set(self.conversations)
        queue = sorted(self.waiting, key=lambda draft: draft.episode not in cached)
        longest = max((draft.most for draft in self.drafts), default=0)
        new: list[Draft] = []
        for draft in queue:
            longer = max(longest, draft.most)
            if (len(self.drafts) + len(new) + 1) * longer > self.kv_tokens and (self.drafts or new):
                break
            longest = longer
            new.append(draft)
        self.waiting = queue[len(new) :]
        rows = max(len(self.conversations), len(self.drafts) + len(new))
        if rows * max(longest, self.cache.capacity) > self.kv_tokens:
            self._compact({draft.episode for draft in self.drafts + new})
        return new

    def _compact(self, episodes: set[Episode]) -> None:
        """Keep nothing in the cache but these conversations."""
        rows = [row for row, episode in enumerate(self.conversations) if episode in episodes]
        for draft in self.drafts:
            draft.row = rows.index(draft.row)
        self.conversations = [self.conversations[row] for row in rows]
        self.cached = [self.cached[row] for row in rows]
        self.cache.keep(torch.tensor(rows, dtype=torch.long, device=self.device), max(self.cached, default=0))

    def _close(self, draft: Draft) -> Reply:
        draft.episode.add(draft.ids, draft.logps)
        truncated = draft.ids[-1] not in self.chat.stop_ids
        return Reply(self.chat.text(draft.ids), len(draft.ids), truncated)

    def _rows(self, episodes: list[Episode]) -> list[int]:
        """The cache row of each conversation; new ones take the rows of conversations that are over."""
        known = {episode: row for row, episode in enumerate(self.conversations)}
        taken = {known[episode] for episode in episodes if episode in known} | {draft.row for draft in self.drafts}
        free = [row for row in range(len(self.conversations)) if row not in taken][::-1]
        rows = []
        for episode in episodes:
            if episode not in known:
                if not free:
                    free.append(len(self.conversations))
                    self.conversations.append(episode)
                    self.cached.append(0)
                row = known[episode] = free.pop()
                self.conversations[row], self.cached[row] = episode, 0
            rows.append(known[episode])
        return rows

    def _ingest(self, drafts: list[Draft]) -> None:
        """Feed what the cache does not hold yet of each conversation, and sample the first token of the reply."""
        fresh = {draft.episode: draft.row for draft in drafts if self.cached[draft.row] == 0}
        for family, shared in families(list(fresh)):
            if (len(family) - 1) * shared > PASS:  # what they have in common is fed once
                rows = [fresh[episode] for episode in family]
                self._forward(torch.tensor([family[0].ids[:shared]], device=self.device), rows[:1], [shared])
                self.cache.copy(rows[0], rows[1:], shared)
                for row in rows:
                    self.cached[row] = shared
        pending = {draft: draft.episode.ids[self.cached[draft.row] :] for draft in drafts}
        for batch in batches_by_length({draft: len(ids) for draft, ids in pending.items()}, PREFILL_TOKENS):
            counts = [len(pending[draft]) for draft in batch]
            ids = [torch.tensor(pending[draft]) for draft in batch]
            padded = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True).to(self.device)  # [b, t]
            states = self._forward(padded, [draft.row for draft in batch], counts)  # [b, t, d]
            last = states[range(len(batch)), [count - 1 for count in counts]]  # [b, d]
            uniform = torch.tensor([[draft.rng.random()] for draft in batch], dtype=torch.float64)  # [b, 1]
            tokens, logps = self._sample(last, uniform.to(self.device))  # [b, 1] each
            for draft, count, [token], [logp] in zip(batch, counts, tokens.tolist(), logps.tolist(), strict=True):
                self.cached[draft.row] += count
                self._append(draft, token, logp)

    def _forward(self, tokens: Tensor, rows: list[int], counts: list[int]) -> Tensor:
        """tokens [b, t], of which `counts` are real, go behind what the cache holds of `rows`; hidden states [b, t, d].

        The padding on the right is written behind its row's last token, where a real token overwrites it before it is
        seen by anything; one place more than any row needs takes all that would go beyond.
        """
        at = torch.tensor([self.cached[row] for row in rows], device=self.device)  # [b]
        length = max(self.cached[row] + count for row, count in zip(rows, counts, strict=True)) + 1
        positions = at[:, None] + torch.arange(tokens.shape[1], device=self.device)  # [b, t]
        positions = positions.clamp(max=length - 1)
        self.cache.reserve(len(self.conversations), length, self.kv_tokens)
        self.cache.view(torch.tensor(rows, device=self.device), positions, length)
        return self._read(tokens, positions)

    def _read(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """tokens [b, t] at positions [b, t] -> hidden states [b, t, d], through the part of the cache in view."""
        keys = torch.arange(self.cache.length, device=self.device)  # [length]
        # rows without a draft may be beyond the view; what they compute is not used, but must be finite
        queries = positions.clamp(max=self.cache.length - 1)[:, None, :, None]  # [b, 1, t, 1]
        visible = keys <= queries  # [b, 1, t, length]
        if self.window is not None:
            near = visible & (keys > queries - self.window)  # [b, 1, t, length]
            visible = {"full_attention": visible, "sliding_attention": near} if self.layer_types else near
        inputs = {"input_ids": tokens, "attention_mask": visible, "position_ids": positions}
        with self.precision():
            return self.decoder(**inputs, past_key_values=self.cache, use_cache=True).last_hidden_state

    def logprobs(self, ids: Tensor, mask: Tensor, shared: int = 0) -> tuple[Tensor, Tensor]:
        """Log-probabilities [B, T] of the tokens of ids [B, T] where mask [B, T] is true (0 elsewhere), at the sampling
        temperature and with the weights of now, and the entropy [B, T] of the same distributions (no gradient).

        The first `shared` tokens, the same in all rows, with none sampled among them and the one after them, go through
        the model once (where T is at most `shares_up_to`). Logits are computed at sampled tokens only, at most
        HEAD_ELEMENTS of them at a time; where that takes several chunks, the backward pass computes each again. Padding
        on the right needs no mask: attention is causal.
        """
        hidden = self._hidden_states(ids, shared)  # [B, T - shared, d]
        behind = slice(shared + 1, None)  # token t is predicted by the hidden state at t - 1
        sampled = mask[:, behind]  # [B, T - shared - 1]
        hidden, targets = hidden[:, :-1][sampled], ids[:, behind][sampled]  # [n, d], [n]
        chunk = max(1, HEAD_ELEMENTS // self.head.weight.shape[0])
        if len(targets) <= chunk:
            parts = [self._head_logprobs(hidden, targets)]
        else:
            chunks = zip(hidden.split(chunk), targets.split(chunk), strict=True)  # [<= chunk, d], [<= chunk]
            parts = [checkpoint(self._head_logprobs, *part, use_reentrant=False) for part in chunks]
        logp, entropy = torch.zeros(ids.shape, device=ids.device), torch.zeros(ids.shape, device=ids.device)  # [B, T]
        logp[:, behind][sampled] = torch.cat([part[0] for part in parts])  # [n]
        entropy[:, behind][sampled] = torch.cat([part[1] for part in parts])  # [n]
        return logp, entropy

    def _hidden_states(self, ids: Tensor, shared: int) -> Tensor:
        """ids [B, T], of which the first `shared` are the same in all rows -> hidden states of the others
        [B, T - shared, d]."""
        inputs = {"input_ids": ids}
        if shared:
            rows, length = ids.shape
            at = torch.arange(length, device=ids.device)  # [T]
            inputs = {
                "input_ids": torch.cat([ids[0, :shared], ids[:, shared:].flatten()])[None],  # [1, P + B * (T - P)]
                "position_ids": torch.cat([at[:shared], at[shared:].repeat(rows)])[None],  # the same
                "attention_mask": (at <= at[shared:, None])[None, None],  # [1, 1, T - P, T]
            }
        with self.precision():
            hidden = self.decoder(**inputs, use_cache=False).last_hidden_state  # [B, T, d] or [1, P + B * (T - P), d]
        return hidden[0, shared:].view(len(ids), -1, hidden.shape[2]) if shared else hidden

    def _all_logprobs(self, hidden: Tensor) -> Tensor:
        """hidden [n, d] -> log-probabilities of all tokens [n, V] at the sampling temperature, in single precision."""
        return (self._logits(hidden) / self.temperature).log_softmax(dim=-1)

    def _logits(self, hidden: Tensor) -> Tensor:
        """hidden [..., d] -> [..., V], as the model's own forward pass gives them (`_check` has seen to that)."""
        logits = self.head(hidden).float()
        return logits if self.softcap is None else self.softcap * (logits / self.softcap).tanh()

    def _head_logprobs(self, hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """hidden [n, d], targets [n] -> log-probabilities of the targets [n], entropies [n] (no gradient)."""
        all_logp = self._all_logprobs(hidden)  # [n, V]
        logp = all_logp.gather(1, targets[:, None])[:, 0]  # [n]
        with torch.no_grad():
            entropy = -(all_logp.exp() * all_logp).sum(dim=-1)  # [n]
        return logp, entropy


def dithered(values: Tensor, dtype: torch.dtype, seed: int) -> Tensor:
    """Single-precision values in `dtype`; to bfloat16 each is rounded up with a probability of how far it is on its way
    up, so that in the mean nothing is lost. What bfloat16 can hold stays as it is. The same seed, the same rounding."""
    if dtype != torch.bfloat16:
        return values.to(dtype)
    generator = torch.Generator(values.device).manual_seed(seed)
    bits = torch.randint(1 << 16, values.shape, dtype=torch.int32, device=values.device, generator=generator)
    bits.add_(values.view(torch.int32)).bitwise_and_(-1 << 16)  # bfloat16 is the upper half of single precision
    return bits.view(torch.float32).to(dtype)


def free_memory(device: torch.device) -> int:
    """Bytes of memory that are free on the device."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
