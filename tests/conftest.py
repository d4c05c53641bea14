"""Shared by all tests: one thread, no GPU, no network; tokenizers, models, wheels and runs that several files need."""

import copy
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

# read when torch and transformers are imported; the scripts that tests start inherit them
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["GOMP_SPINCOUNT"] = "1000"  # of whatever runs beside each other here
os.environ["CUDA_VISIBLE_DEVICES"] = ""  # on every machine the same results
os.environ["HF_HUB_OFFLINE"] = "1"

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as in a job in the background; what tests start inherits it
    signal.signal(signal.SIGINT, signal.default_int_handler)

import psutil  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402

torch.set_num_threads(1)
REPO = Path(__file__).parents[1]


# a minute and more each: first, so that at the end no worker waits for another
SLOW_FILES = "test_real_model test_resume test_processes test_memory test_damage test_policy test_run_folder".split()


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: item.path.stem not in SLOW_FILES)  # else in their order


@pytest.fixture(scope="session")
def tokenizer():
    """The embedded policy's tokenizer. Tests must not change it."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(REPO / "embedded-policy")


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


# ---------------------------------------------------------------------------------------------------------
# Pages in a browser


@pytest.fixture(scope="module")  # not longer, so that no browser stays for the other tests
def chromium(tmp_path_factory):
    if shutil.which("chromium") is None:
        pytest.skip("there is no chromium here (on Debian: apt-get install chromium)")
    from chromium import Chromium

    browser = Chromium(tmp_path_factory.mktemp("chromium"))
    yield browser
    browser.close()


@pytest.fixture
def opened(chromium, tmp_path):
    """A function that opens the page of a report in the browser, and returns the browser."""
    from record.page import write_page

    def open_page(data, **options):
        write_page(data, tmp_path / "report.html")
        chromium.open(tmp_path / "report.html", **options)
        return chromium

    return open_page


# ---------------------------------------------------------------------------------------------------------
# Runs of train.py. Tests must not change them.


@pytest.fixture
def start_process():
    """Starts train.py, or another script, as a process of its own, which does not outlive the test."""
    started = []

    def start(argv, launcher=(), script="train.py", **options):
        command = [sys.executable, *launcher, REPO / script, *map(str, argv)]
        options = {"cwd": REPO, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True} | options
        started.append(subprocess.Popen(command, **options))
        return started[-1]

    yield start
    for process in started:
        if process.poll() is None:
            for each in [*psutil.Process(process.pid).children(recursive=True), process]:  # a launcher's workers, too
                each.kill()
        process.communicate()


@pytest.fixture(scope="session")
def output(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="session")
def plain(output):
    """A finished run."""
    from training import flags, run_here

    assert run_here(flags(output=output, name="plain")) == 0
    return output / "plain"


@pytest.fixture(scope="session")
def eventful(output):
    """A finished run that nothing interrupted, to compare interrupted ones with."""
    from training import EVENTFUL, flags, run_here

    assert run_here(flags(**EVENTFUL, output=output, name="eventful")) == 0
    return output / "eventful"


@pytest.fixture(scope="session")
def unfinished(output):
    """The same run, killed in its last step, with the checkpoints of steps 2 and 4."""
    from training import EVENTFUL, flags, kill, run_until

    assert run_until(flags(**EVENTFUL, output=output, name="unfinished"), "update", 5, kill) == "killed"
    return output / "unfinished"


@pytest.fixture
def broken(unfinished, tmp_path):
    """A copy of the unfinished run, to be damaged."""
    return Path(shutil.copytree(unfinished, tmp_path / "broken"))


@pytest.fixture(scope="session")
def played():
    """One step's rollouts, [packs][G]."""
    from training import PLAYED, fresh_policy

    import train

    return train.collect(fresh_policy(), PLAYED, 0)


@pytest.fixture
def groups(played):
    """The same, to be changed."""
    return copy.deepcopy(played)
