"""Several processes (accelerate launch, torchrun): each plays and trains its share of a batch, and what is defined over
the whole batch is added up here. With one process every function returns what it was given."""

import importlib.util
import os

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import gather, gather_object, reduce
from torch import Tensor

from engine.errors import BadInput
from engine.settings import Config

try:
    import bitsandbytes
except ImportError:  # needed for 8-bit optimisers and 4-bit weights only
    bitsandbytes = None


def launch(config: Config) -> Accelerator:
    """The engine; raises BadInput if these processes or packages cannot do what the settings ask for."""
    if config.tracker != "none" and importlib.util.find_spec(config.tracker) is None:
        raise BadInput(f"tracker={config.tracker!r}: not installed; pip install {config.tracker}")
    if int(os.environ.get("WORLD_SIZE", 1)) > 1 and "LOCAL_RANK" not in os.environ:
        size = os.environ["WORLD_SIZE"]
        raise BadInput(f"WORLD_SIZE={size}: these processes would not work together; start them with accelerate launch")
    tracker = None if config.tracker == "none" else config.tracker
    # without a GPU of NVIDIA's kind, the CPU: sampling takes double precision, which others (Apple's) do not have
    # precision is the model's own affair, whatever a user's defaults for accelerate are
    options = {"mixed_precision": "no", "log_with": tracker, "project_dir": config.output}
    accelerator = Accelerator(cpu=not torch.cuda.is_available(), **options)
    if config.optimizer != "adamw" and bitsandbytes is None:
        raise BadInput(f"optimizer={config.optimizer!r}: needs bitsandbytes; pip install bitsandbytes")
    if config.packs_per_step % count():
        raise BadInput(f"packs_per_step={config.packs_per_step}: must divide by {count()} processes")
    return accelerator


def state() -> PartialState:
    """What accelerate knows of this process and the others."""
    return PartialState(cpu=not torch.cuda.is_available())


def device() -> torch.device:
    """Of this process."""
    return state().device


def rank() -> int:
    return state().process_index


def count() -> int:
    return state().num_processes


def is_main() -> bool:
    return state().is_main_process


def say(text: str) -> None:
    """Print a line, once for all processes."""
    if is_main():
        print(text)


def share(n: int) -> range:
    """Which of n things are this process's."""
    return range(n * rank() // count(), n * (rank() + 1) // count())


def wait() -> None:
    """Until all processes have come this far."""
    state().wait_for_everyone()


def total(values: list[float], dtype: torch.dtype = torch.float32) -> list[float]:
    """Sums over all processes."""
    return reduce(torch.tensor(values, dtype=dtype, device=device()), "sum").tolist()


def of_all(values: list[list[float]]) -> Tensor:
    """Rows of numbers [n, k] of every process, one after the other [processes * n, k]."""
    return gather(torch.tensor(values, device=device())).cpu()


def objects_of_all(things: list) -> list:
    """Python objects of every process, one after the other."""
    return gather_object(things) if count() > 1 else things


def add_up_gradients(parameters: list[torch.nn.Parameter]) -> None:
    """Every process gets the sum of the gradients of all."""
    for parameter in parameters:
        if parameter.grad is None:  # every process must bring one
            parameter.grad = torch.zeros_like(parameter)
        parameter.grad = reduce(parameter.grad, "sum")
