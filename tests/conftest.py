"""Shared by all tests: one thread, no GPU, no network; tokenizers, model folder and wheels that several files need."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

# read when torch and transformers are imported; the scripts that tests start inherit them
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["CUDA_VISIBLE_DEVICES"] = ""  # on every machine the same results
os.environ["HF_HUB_OFFLINE"] = "1"

import pytest  # noqa: E402
import torch  # noqa: E402

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tokenizer():
    """The embedded policy's tokenizer. Tests must not change it."""
    from engine.embedded import build_tokenizer

    return build_tokenizer()


@pytest.fixture(scope="session")
def model_folder(tokenizer, tmp_path_factory):
    """A folder with a small random model, as save_pretrained leaves it. Tests must not change it."""
    from engine.embedded import build_model

    folder = tmp_path_factory.mktemp("models") / "small"
    torch.manual_seed(0)
    build_model(tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def install_aside():
    """A function that installs wheels into a folder of their own, which is kept for the next time, and returns it.
    Where that cannot be done, the test is skipped."""

    def install(*wheels):
        folder = Path(tempfile.gettempdir()) / "-".join(wheels).replace("==", "-")
        if not folder.exists():
            with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
                target = Path(scratch) / "wheels"
                pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--retries", "1", "--target", target]
                result = subprocess.run([*pip, *wheels], capture_output=True, text=True)
                if result.returncode:
                    reason = (result.stderr.strip().splitlines() or ["no message"])[-1]
                    pytest.skip(f"{' and '.join(wheels)} cannot be installed: {reason}")
                os.replace(target, folder)
        return folder

    return install


def cpu_seconds(limit: float, prepare: Callable, work: Callable) -> float:
    """CPU time of work(prepare()), without the preparation, in this thread: of the fastest of at most five tries.

    A single try may contain a garbage collection, or share its core with another process; so the work is tried again
    as long as no try stayed under `limit`.
    """
    fastest = float("inf")
    for _ in range(5):
        prepared = prepare()
        start = time.thread_time()
        work(prepared)
        fastest = min(fastest, time.thread_time() - start)
        if fastest < limit:
            break
    return fastest


def byte_tokenizer(template, special, eos, pad=None, plain=(), bos=None, rstrip=False):
    """One token for each byte, for each special token, and for each of the `plain` added ones.

    `rstrip`: special tokens take the white space behind them in."""
    from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
    from tokenizers.models import BPE
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(BPE(vocab={symbol: i for i, symbol in enumerate(alphabet)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens([AddedToken(token, special=True, normalized=False, rstrip=rstrip) for token in special])
    core.add_tokens([AddedToken(token, normalized=False) for token in plain])
    fast = PreTrainedTokenizerFast(tokenizer_object=core, eos_token=eos, pad_token=pad, bos_token=bos)
    fast.chat_template = template
    return fast


@pytest.fixture(scope="session")
def chat(tokenizer):
    """The embedded policy's."""
    from engine.chat import ChatFormat

    return ChatFormat(tokenizer)
