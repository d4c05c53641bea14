"""The fast sampler: a KV cache of its own, in which every conversation keeps what has been read of it.

For models whose layers keep keys and values, and nothing else. A conversation is read once, however many turns it has;
a reply that is complete makes way for the next while others are still being sampled; prompts that begin alike are read
once; on a GPU a block of tokens is sampled without waiting for each, through CUDA graphs.
"""

import contextlib
import functools
import inspect
import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from engine.batches import ATTENTION, PASS, batches_by_length, prefix_groups
from engine.draft import Draft
from engine.errors import first_line
from engine.row_cache import RowCache
from engine.weights import Weights
from rollout import Episode

CHOICES = "index_topk keep_window_size".split()  # names of how many keys a layer chooses, where there are more
PREFILL_TOKENS = 1 << 13  # at most this many prompt tokens go through the model in one forward pass
# a pass keeps a GPU's host busy for 20 to 40 ms, in which the GPU could read thousands of tokens: rather few passes
PASS_ON_GPU, STRETCH_ON_GPU = 4096, 4


def refusal(weights: Weights) -> str:
    """Why the fast sampler cannot serve this model; empty if it may, which `probe.choose` then has to see."""
    config, kinds = weights.text_config, set(getattr(weights.text_config, "layer_types", None) or [])
    others = kinds - {"full_attention", "sliding_attention"}
    if others:
        return f"it has layers of other kinds than full and sliding attention ({', '.join(sorted(others))})"
    if getattr(weights.base, "_is_stateful", False):
        return "it keeps a state"
    if any(getattr(config, name, None) for name in CHOICES):
        return "its layers choose among the keys"
    if getattr(config, "is_encoder_decoder", False):
        return "it has an encoder"
    takes = inspect.signature(weights.decoder.forward).parameters
    for name in ("attention_mask", "position_ids", "past_key_values"):
        if name not in takes:
            return f"its decoder takes no {name}"
    return ""


@functools.cache
def side_stream(device: torch.device) -> torch.cuda.Stream:
    """One for all captures: cuBLAS keeps a workspace (32 MiB on an H100) for every stream that computes a product."""
    return torch.cuda.Stream(device)


@contextlib.contextmanager
def planned_attention():
    """A block in which cuDNN's attention may be used (`Weights` says why not elsewhere): many steps share a plan."""
    before = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(True)
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)


class CapturedStep:
    """A decoding step as a CUDA graph: the GPU replays it, without Python launching a thousand kernels one by one.

    It reads its inputs from buffers of its own. Raises RuntimeError if the step does something that cannot be captured.
    """

    def __init__(self, step: Callable, inputs: tuple[Tensor, ...], pool: tuple[int, int]):
        self.inputs = [value.clone() for value in inputs]
        stream = side_stream(inputs[0].device)
        stream.wait_stream(torch.cuda.current_stream())
        with planned_attention():
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


class Fast:
    """`sample` goes on sampling, the new drafts included, until a quarter of the open ones is complete.

    The KV cache holds at most `kv_tokens` tokens (rows times the longest of them), unless one conversation alone is
    longer. Conversations that would go beyond wait. With `cuda_graphs`, a GPU decodes by replaying captured steps.
    """

    def __init__(self, weights: Weights, kv_tokens: int, cuda_graphs: bool = False):
        self.weights, self.device, self.kv_tokens = weights, weights.device, kv_tokens
        on_gpu = self.device.type == "cuda"
        self.block = 4 if on_gpu else 1  # tokens that are sampled before the host looks at them
        self.pass_cost, self.stretch = (PASS_ON_GPU, STRETCH_ON_GPU) if on_gpu else (PASS, 2)
        self.cuda_graphs = cuda_graphs and on_gpu
        config = weights.text_config
        self.layer_types = set(getattr(config, "layer_types", None) or [])
        slides = not self.layer_types or "sliding_attention" in self.layer_types
        self.window = getattr(config, "sliding_window", None) if slides else None  # tokens that a layer looks back
        self.fresh()

    def fresh(self) -> None:
        """An empty KV cache, and no memory taken by it."""
        self.cache = RowCache()
        self.conversations: list[Episode] = []  # which conversation each row of the cache belongs to
        self.cached: list[int] = []  # how many of its tokens are in there
        self.waiting: list[Draft] = []  # replies for which there is no room in the cache yet
        self.drafts: list[Draft] = []  # the replies being sampled; of each the last token is not in the cache yet
        self.captured: dict[int, CapturedStep] = {}  # decoding steps as CUDA graphs, by the length of their view
        self.captured_at = None  # where the cache was then

    def sample(self, drafts: list[Draft]) -> list[Draft]:
        """Drafts that are complete now, of all that were ever given; the others go on in the next call. So a long reply
        holds up nobody, and the prompts of those that go on are read in batches."""
        self._open(drafts)
        complete: list[Draft] = []
        enough = max(1, len(self.drafts) // 4)
        while True:
            complete += [draft for draft in self.drafts if draft.complete]
            self.drafts = [draft for draft in self.drafts if not draft.complete]
            if not self.drafts or len(complete) >= enough:
                return complete
            self._decode()

    def bytes_per_token(self) -> int:
        """Size of a token in the KV cache, all layers together, once something has been read into it."""
        stores = self.cache.keys + self.cache.values
        return sum(store.shape[1] * store.shape[3] * store.element_size() for store in stores)

    def _decode(self) -> None:
        """Sample the next token of every draft, or a block of tokens that a GPU computes without being waited for.

        All rows of the cache take part, so that its keys and values are read where they lie. What rows without a draft
        write, and drafts behind their end, is written over before anything sees it.
        """
        n, rows = self.block, len(self.conversations)
        last, draws = [0] * rows, [[0.0] * n] * rows
        for draft in self.drafts:
            last[draft.row], draws[draft.row] = draft.ids[-1], [draft.rng.random() for _ in range(n)]
        longest = max(self.cached[draft.row] for draft in self.drafts)
        length = min(longest + n, max(longest + 1, *(draft.most for draft in self.drafts)))
        self.cache.reserve(rows, max(length, max(self.cached) + 1), self.kv_tokens)
        tokens = torch.tensor(last, device=self.device)[:, None]  # [rows, 1]
        uniform = torch.tensor(draws, dtype=torch.float64, device=self.device)  # [rows, n]
        positions = torch.tensor(self.cached, device=self.device)[:, None]  # [rows, 1]
        step = self._captured_step if self.cuda_graphs else self._step
        sampled = []
        for k in range(n):
            tokens, logps = step(tokens, positions + k, uniform[:, k : k + 1], length)  # [rows, 1] each
            sampled.append((tokens, logps))
        all_ids, all_logps = (torch.cat(parts, dim=1).tolist() for parts in zip(*sampled, strict=True))  # [rows][n]
        for draft in self.drafts:
            before = len(draft.ids)
            for token, logp in zip(all_ids[draft.row], all_logps[draft.row], strict=True):
                draft.add(token, logp)
            self.cached[draft.row] += len(draft.ids) - before

    def _step(self, tokens: Tensor, positions: Tensor, uniform: Tensor, length: int) -> tuple[Tensor, Tensor]:
        """Read a token of every row of the cache and sample the next: tokens, positions, uniform [rows, 1] -> the next
        tokens and their log-probabilities [rows, 1]. With the new token no row with a draft is longer than `length`."""
        self.cache.view(None, positions.clamp(max=self.cache.capacity - 1), length)
        return self._draw(self._read(tokens, positions)[:, 0], uniform)

    def _draw(self, hidden: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
        """hidden [b, d], uniform [b, 1] -> the next tokens and their log-probabilities [b, 1]."""
        return self.weights.draw(self.weights.logits(hidden), uniform)

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

    def _open(self, drafts: list[Draft]) -> None:
        """Read their conversations into the cache, as far as it has room, and sample the first token of each reply."""
        self.waiting += drafts
        new = self._admit()
        for draft, row in zip(new, self._rows([draft.episode for draft in new]), strict=True):
            draft.row = row
        self._ingest(new)
        self.drafts += new
        if len(self.conversations) > 2 * len(self.drafts):  # most rows belong to conversations that are over
            self._compact({draft.episode for draft in self.drafts + self.waiting})

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
        for group, prefix in prefix_groups(list(fresh), self.pass_cost):
            if (len(group) - 1) * prefix > self.pass_cost:  # what they have in common is fed once
                rows = [fresh[episode] for episode in group]
                self._forward(torch.tensor([group[0].ids[:prefix]], device=self.device), rows[:1], [prefix])
                self.cache.copy(rows[0], rows[1:], prefix)
                for row in rows:
                    self.cached[row] = prefix
        pending = {draft: draft.episode.ids[self.cached[draft.row] :] for draft in drafts}
        lengths = {draft: len(ids) for draft, ids in pending.items()}
        for batch in batches_by_length(lengths, PREFILL_TOKENS, self.stretch):
            counts = [len(pending[draft]) for draft in batch]
            ids = [torch.tensor(pending[draft]) for draft in batch]
            padded = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True).to(self.device)  # [b, t]
            states = self._forward(padded, [draft.row for draft in batch], counts)  # [b, t, d]
            last = states[range(len(batch)), [count - 1 for count in counts]]  # [b, d]
            uniform = torch.tensor([[draft.rng.random()] for draft in batch], dtype=torch.float64)  # [b, 1]
            tokens, logps = self._draw(last, uniform.to(self.device))  # [b, 1] each
            for draft, count, [token], [logp] in zip(batch, counts, tokens.tolist(), logps.tolist(), strict=True):
                self.cached[draft.row] += count
                draft.add(token, logp)

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
            masks = {"full_attention": self._mask(visible), "sliding_attention": self._mask(near)}
            mask = masks if self.layer_types else masks["sliding_attention"]
        else:
            mask = self._mask(visible)
        inputs = {"input_ids": tokens, "attention_mask": mask, "position_ids": positions}
        with self.weights.precision():
            decoder = self.weights.decoder
            return decoder(**inputs, past_key_values=self.cache, use_cache=True).last_hidden_state

    def _mask(self, visible: Tensor) -> Tensor:
        """visible [b, 1, t, length] as this model's attention takes it: some add the mask to the scores."""
        if self.weights.text_config._attn_implementation in ("sdpa", ATTENTION):
            return visible
        dtype = self.weights.dtype
        return torch.zeros(visible.shape, dtype=dtype, device=self.device).masked_fill(~visible, torch.finfo(dtype).min)
