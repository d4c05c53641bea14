"""What the benchmarks have in common: settings, the model with an adapter, the packs."""

import sys
from dataclasses import dataclass
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from envs import Pack, make_pack  # noqa: E402
from eval import flag  # noqa: E402
from models import Lora, add_adapter, load_model  # noqa: E402
from policy import Policy  # noqa: E402


@dataclass(frozen=True)
class Settings:
    model: str = flag("embedded-policy", "model folder or hub name")
    dtype: str = flag("auto", "weights; auto: as they are stored")
    level: str = flag("tiny", "level of FrozenLake")
    pack_size: int = flag(4, "tasks in a pack")
    rollouts: int = flag(64, "rollouts, eight of each pack")
    tokens_per_microbatch: int = flag(8192, "padded tokens in one forward pass of training")
    repeats: int = flag(2, "times that each way is measured, in turn; the best counts")

    def packs(self) -> list[Pack]:
        return [make_pack("frozenlake", n // 8, self.pack_size, self.level) for n in range(self.rollouts)]

    def policy(self, kind: type[Policy] = Policy, **options) -> Policy:
        torch.manual_seed(0)
        model, tokenizer = load_model(self.model, self.dtype, "cuda" if torch.cuda.is_available() else "cpu")
        return kind(add_adapter(model, Lora()), tokenizer, **options)


def wait_for(policy: Policy) -> None:
    """Until the GPU has done its work, if there is one."""
    if policy.device.type == "cuda":
        torch.cuda.synchronize()
