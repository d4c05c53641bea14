"""TRL's side of benchmarks/peer.py, which starts this file with the peer's Python: nothing of this project is imported.

    VENV/bin/python benchmarks/peer_trl.py WORK.json

WORK.json says what to train on; what comes back is a JSON line, the last of the output.
"""

import json
import resource
import sys
import time
import zlib
from importlib.metadata import version
from pathlib import Path

import torch

PACKAGES = ("torch", "transformers", "peft", "accelerate")
# put before a chat template that knows no tools, as most do: a call is text, and what a tool returns is a user turn
TOOLS_AS_TEXT = """{%- set plain = namespace(messages=[]) -%}
{%- for m in messages -%}
{%- set role = 'user' if m.role == 'tool' else m.role -%}
{%- set content = m.content ~ (m.tool_calls | tojson) if m.tool_calls else m.content -%}
{%- set plain.messages = plain.messages + [{'role': role, 'content': content}] -%}
{%- endfor -%}
{%- set messages = plain.messages -%}
"""


class Meter:
    """Seconds, those of its processor cores together, and peak memory (GiB) of successive steps: of the GPU what torch
    has allocated, without one what of the process is resident, weights and libraries included."""

    def __init__(self):
        self.seconds: list[float] = []
        self.core_seconds: list[float] = []  # hardly longer on a machine that is busy with other work
        self.memory: list[float] = []

    def start(self) -> None:
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        elif Path("/proc/self/clear_refs").exists():
            Path("/proc/self/clear_refs").write_text("5")  # Linux forgets the peak so far, that of loading
        self.started = time.perf_counter(), time.process_time()

    def stop(self) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
            peak = torch.cuda.max_memory_allocated()
        else:
            peak = resident_peak()
        self.seconds.append(time.perf_counter() - self.started[0])
        self.core_seconds.append(time.process_time() - self.started[1])
        self.memory.append(peak / 2**30)


def resident_peak() -> int:
    """Bytes of the process that were in memory at most, since the last time that it was told to forget it."""
    status = Path("/proc/self/status")
    if status.exists():
        [line] = [line for line in status.read_text().splitlines() if line.startswith("VmHWM:")]
        return int(line.split()[1]) << 10
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # of the whole life of the process
    return peak if sys.platform == "darwin" else peak << 10


def report(side: str, packages: tuple[str, ...], meter: Meter, sampled: list[int], trained: list[int]) -> None:
    """The JSON line: `sampled` and `trained` are tokens by step, `trained` those of whole sequences."""
    line = {"side": side, "versions": {name: version(name) for name in packages}}
    line |= {"seconds": meter.seconds, "core_seconds": meter.core_seconds, "memory": meter.memory}
    line |= {"sampled": sampled, "trained": trained}
    print(json.dumps(line), flush=True)


def reward(text: object) -> float:
    """Anything in [0, 1) that differs between replies, so that all of a group are trained on."""
    return zlib.crc32(repr(text).encode()) / 2**32


class Environment:
    """Answers a reply with the next of the observations that the data set has for this prompt."""

    def reset(self, observations: list[str], **columns) -> None:
        self.left = iter(observations)

    def act(self, reply: str) -> str:
        """Plays a turn.

        Args:
            reply: What the player says.

        Returns:
            What the player sees next.
        """
        return next(self.left)


def tokenizer_of(work: dict):
    """The model's. In several turns any reply at all is a call of the environment's only tool, with the reply as its
    argument."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(work["model"], padding_side="left")
    if work["turns"] > 1:
        tokenizer.chat_template = TOOLS_AS_TEXT + tokenizer.chat_template
        call = {"type": "function", "function": {"name": "act", "arguments": {"reply": "{content}"}}}
        tokenizer.response_template = {
            "defaults": {"role": "assistant"},
            "start_anchor_pattern": r"\Z",
            "fields": {"tool_calls": {"content": "text", "repeats": True, "transform": call}},
        }
    return tokenizer


def config_of(work: dict):
    """The training in the words of TRL."""
    from trl import GRPOConfig

    several, length = work["turns"] > 1, work["reply_tokens"]
    return GRPOConfig(
        output_dir=work["scratch"],
        use_cpu=not torch.cuda.is_available(),
        model_init_kwargs={"dtype": work["dtype"]},
        bf16=work["dtype"] == "bfloat16",
        gradient_checkpointing=work["gradient_checkpointing"],
        num_generations=work["group_size"],
        per_device_train_batch_size=work["group_size"] * work["prompts"],
        max_steps=work["steps"],
        shuffle_dataset=False,
        max_completion_length=work["longest"] if several else length,
        max_tool_calling_iterations=work["turns"] - 1 if several else None,
        generation_kwargs={"min_new_tokens": length, "max_new_tokens": length},
        beta=0.0,
        learning_rate=work["lr"],
        save_strategy="no",
        report_to="none",
        logging_strategy="no",
        disable_tqdm=True,
        dataloader_pin_memory=False,
        seed=0,
    )


def main() -> None:
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import TrainerCallback
    from trl import GRPOTrainer

    work = json.loads(Path(sys.argv[1]).read_text())
    meter, sampled, trained = Meter(), [], []

    class Counting(GRPOTrainer):
        def compute_loss(self, model, inputs, *args, **options):
            of_replies = inputs["completion_mask"]  # [B, T], observations included
            sampled.append(int((of_replies * inputs.get("tool_mask", 1)).sum()))
            trained.append(int(inputs["prompt_mask"].sum() + of_replies.sum()))
            return super().compute_loss(model, inputs, *args, **options)

    class Measure(TrainerCallback):
        def on_step_begin(self, *args, **options):
            meter.start()

        def on_step_end(self, *args, **options):
            meter.stop()

    trainer = Counting(
        work["model"],
        reward_funcs=lambda completion_ids, **columns: [reward(ids) for ids in completion_ids],
        args=config_of(work),
        train_dataset=Dataset.from_list(work["games"]),
        processing_class=tokenizer_of(work),
        callbacks=[Measure()],
        peft_config=LoraConfig(r=work["lora_rank"], lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"),
        environment_factory=Environment if work["turns"] > 1 else None,
    )
    trainer.train()
    report("TRL", (*PACKAGES, "trl"), meter, sampled, trained)


if __name__ == "__main__":
    main()
