"""The life of a training run: begun or gone on with, steps that a stop waits for, metrics, checkpoints, the end."""

import contextlib
import signal
import sys
import threading
import time
from pathlib import Path

import psutil
import torch
from accelerate import Accelerator

from engine import processes
from engine.errors import BadInput
from engine.models import STUDENT
from engine.policy import Policy
from engine.settings import Config
from record.browse import write_run_page, write_sample
from record.files import (
    Metrics,
    load_checkpoint,
    open_folder,
    save_checkpoint,
    whole_folder,
    write_settings,
    write_text,
)
from record.metrics import as_text, step_line
from record.pictures import report
from rollout import Rollout


class Run:
    """A run of training on disk. `done` is the number of steps that are behind it.

    As a context it turns a stop (Ctrl-C, SIGTERM, SIGHUP) between two steps into a checkpoint, and `step()` is a
    context that the first stop waits for. Of several processes one that is stopped outside of a step just ends: the
    launcher then ends the others, and the newest checkpoint counts.
    """

    def __init__(self, config: Config, policy: Policy, accelerator: Accelerator, folder: Path | None = None):
        """A new run in a folder of its own, or the run in `folder` to go on with."""
        self.config, self.policy, self.accelerator = config, policy, accelerator
        self.folder, self.lock = open_folder(config, folder)
        self.metrics, self.done = Metrics(self.folder), 0
        if folder is not None:
            self.done, lines = load_checkpoint(self.folder, config.steps, policy, accelerator)
            self.metrics.cut(lines)
            if processes.is_main():
                write_settings(self.folder, config)
        self.saved = self.done  # the step of the newest checkpoint
        self.bad_steps = 0  # in a row, without a finite gradient
        self.in_step = self.asked_to_stop = self.stopped_together = False
        self.handlers: dict[int, object] = {}  # of signals, as they were before
        self.again: threading.Thread | None = None  # raises a stop again and again,
        self.over = threading.Event()  # until the end has come
        n = processes.count()
        launcher = "python" if n == 1 else f"accelerate launch --num_processes {n}"
        self.go_on = f"{launcher} {sys.argv[0]} --resume {self.folder}"
        accelerator.project_configuration.logging_dir = str(self.folder)
        accelerator.init_trackers("connect-the-dots", vars(config))
        processes.say(f"run {self.folder}, from step {self.done}")

    # -- stopping

    def __enter__(self) -> "Run":
        for name in ("SIGINT", "SIGTERM", "SIGHUP"):
            number = getattr(signal, name, None)  # Windows has no SIGHUP
            if number and signal.getsignal(number) != signal.SIG_IGN:  # as nohup leaves it
                self.handlers[number] = signal.signal(number, self.ask_to_stop)
        return self

    def __exit__(self, kind, error, trace) -> None:
        self.over.set()
        if self.again:
            self.again.join()
        for number, handler in self.handlers.items():
            signal.signal(number, handler)
        if kind is KeyboardInterrupt:
            # all processes save together; where this one alone was stopped, the others may be anywhere
            together = self.stopped_together or processes.count() == 1 and not self.in_step
            if together and self.saved < self.done:
                self.save()
            say = processes.say if together else print
            say(f"stopped after step {self.saved}; {self.go_on} goes on")
        if self.lock:
            self.lock.release()

    def ask_to_stop(self, number: int, _) -> None:
        if self.over.is_set():
            return
        if self.asked_to_stop or not self.in_step:
            if self.again is None:
                self.again = threading.Thread(target=self.stop_again, args=[number], daemon=True)
                self.again.start()
            raise KeyboardInterrupt
        self.asked_to_stop = True
        print("\nstopping after this step with a checkpoint; once more to stop at once", file=sys.stderr, flush=True)

    def stop_again(self, number: int) -> None:
        """In a thread of its own, for Python drops what is raised while garbage is collected."""
        while not self.over.wait(0.5):
            signal.raise_signal(number)

    @contextlib.contextmanager
    def step(self):
        """One step of training. What was asked of any process meanwhile stops all of them at its end."""
        self.in_step = True
        yield
        self.in_step = False
        if processes.total([float(self.asked_to_stop)])[0]:
            self.stopped_together = True
            raise KeyboardInterrupt

    # -- metrics and checkpoints

    def log(self, metrics: dict, groups: list[list[Rollout]]) -> None:
        """A step is done: its metrics, at times some of its rollouts, a checkpoint where one is due. Raises BadInput
        if training has broken down."""
        self.done += 1
        self.metrics.add(self.done, metrics)
        self.track(metrics)
        processes.say(step_line(self.done, self.config, metrics))
        if processes.is_main() and (self.done == 1 or self.done % self.config.sample_every == 0):
            sample = self.folder / "samples" / f"step_{self.done:06d}"
            write_text(sample.with_suffix(".txt"), as_text(groups[0][0]))
            kept, budget = groups[: self.config.sample_packs], self.config.tokens_per_microbatch
            write_sample(sample.with_suffix(".json"), f"step {self.done}", kept, self.policy, budget)
        if metrics["broken_format"] == 1:
            processes.say("no task got a reply of the asked-for form, so there is nothing to learn from")
        self.bad_steps = self.bad_steps + 1 if metrics["skipped"] else 0
        if self.bad_steps:
            processes.say("its gradient is not finite: the update is left out")
        if self.bad_steps == 3:
            raise BadInput(f"lr={metrics['lr']}: three steps in a row had no finite gradient; {self.go_on} --lr LOWER")
        if self.done == self.config.steps or self.done % self.config.checkpoint_every == 0:
            self.save()

    def log_evaluation(self, records: list[dict]) -> None:
        """Records of one evaluation, one for each environment."""
        for record in records:
            self.metrics.add(self.done, {"eval": record})
            where = f"{record['env']} | " if self.config.envs else ""
            processes.say(f"{where}{record['label']} | success {' '.join(f'{x:.2f}' for x in record['success'])}")
            prefix = f"{record['label']}/" + (f"{record['env']}/" if self.config.envs else "")
            self.track({prefix + key: value for key, value in record.items() if key not in ("label", "env")})

    def track(self, values: dict) -> None:
        """To the tracker, lists by position."""
        flat = {}
        for key, value in values.items():
            flat |= {f"{key}/{j}": x for j, x in enumerate(value)} if isinstance(value, list) else {key: value}
        self.accelerator.log(flat, step=self.done)

    def save(self) -> None:
        save_checkpoint(self.folder, self.done, self.metrics.lines, self.policy, self.accelerator)
        self.saved = self.done

    def finish(self) -> None:
        """Write the adapter, print and draw the evaluations."""
        if processes.is_main():
            try:
                with whole_folder(self.folder / "adapter") as adapter:
                    self.policy.model.save_pretrained(adapter, selected_adapters=[STUDENT])
            except BadInput as error:
                raise BadInput(f"{error}; the last checkpoint is kept, {self.go_on} tries again") from error
            lines = self.metrics.read()
            report(self.folder, self.config, lines)
            write_run_page(self.folder, self.config, lines)
        self.accelerator.end_training()


@contextlib.contextmanager
def phase(name: str, remedy: str, device: torch.device, metrics: dict):
    """Time and peak memory (GiB; on a CPU what the process holds at the end) of a part of the step, into `metrics`.

    Running out of GPU memory becomes one line with the remedy.
    """
    cuda = device.type == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats(device)
    started = time.perf_counter()
    try:
        yield
    except torch.OutOfMemoryError as error:
        peak = torch.cuda.max_memory_allocated(device) / 2**30 if cuda else 0.0
        raise BadInput(f"out of memory in {name}, at {peak:.1f} GiB; {remedy}") from error
    metrics[f"time_{name}"] = time.perf_counter() - started
    peak = torch.cuda.max_memory_allocated(device) if cuda else psutil.Process().memory_info().rss
    metrics[f"memory_{name}"] = peak / 2**30
