"""The settings of an evaluation."""

from dataclasses import dataclass
from typing import Literal

from engine.settings import Shared, flag


@dataclass(frozen=True)
class EvalConfig(Shared):
    """The settings of an evaluation. What it shares with training is a run's own setting unless it is given."""

    policy: list[str] = flag(
        [],
        "a run folder, a model folder or hub name, a scripted player (random, informed, learner), endpoint, or human; "
        "several are compared on the same packs; none: the embedded policy",
    )
    packs: int = flag(512, "number of packs", at_least=1, below=1e7)
    suite: str = flag("", "several settings at once: quick, paper, or a YAML file with a list of them")
    context: str = flag(
        "own",
        "what the tasks get in place of hints, with commas: own, none (blanked), transcript, shuffled, perfect, "
        "from=POLICY, frozen=K",
    )
    order: Literal["given", "reversed", "shuffled"] = flag("given", "order of the tasks within every pack")
    seed: int = flag(0, "seed of the packs and of the sampling", at_least=0, below=2**32)
    url: str = flag("", "of an OpenAI-compatible chat endpoint, as in http://127.0.0.1:8000/v1 (--policy endpoint)")
    model: str = flag("", "name of the model there (--policy endpoint)")
    concurrency: int = flag(16, "requests at the same time (--policy endpoint)", at_least=1, below=10_000)
    extra_body: str = flag("", "further fields of a request, as a JSON object (--policy endpoint)")
    window: int = flag(
        32_768, "tokens that a conversation there may have (--context transcript)", at_least=1, below=1e9
    )
    keep: int = flag(4, "packs whose conversations are kept for report.html", at_least=0, below=1e4)
    watch: bool = flag(False, "show every conversation while it is played, one pack at a time")
    output: str = flag(
        "", "folder for the results, which an evaluation that was stopped goes on from; empty: eval/NAME"
    )
    merge_to: str = flag("", "write a run's model with its adapter merged in to this new folder, and evaluate nothing")
