"""What has to be done before torch is imported, which takes seconds: the scripts import this first."""

import os
import signal
import sys
from pathlib import Path

import psutil

# Threads of OpenMP wait for each other by spinning. Beside other busy processes a step then takes many times as long;
# with few turns it takes three times as long, but a third longer on an idle machine. What the user has set stays.
os.environ.setdefault("GOMP_SPINCOUNT", "1000" if psutil.cpu_percent(interval=0.1) > 50 else "10000")


def stop_at_once(*_) -> None:
    os._exit(130)


def is_script() -> bool:
    """Whether a script of this project is run, not imported by somebody who has a way of his own with Ctrl-C."""
    main = getattr(sys.modules["__main__"], "__file__", None)
    return main is not None and Path(main).resolve().parent == Path(__file__).resolve().parents[1]


def begin_main() -> None:
    """From now on Ctrl-C is a KeyboardInterrupt, as usual."""
    if signal.getsignal(signal.SIGINT) is stop_at_once:
        signal.signal(signal.SIGINT, signal.default_int_handler)


# Ctrl-C shows no traceback of half an import. Where it is ignored (a job in the background), it stays so.
if is_script() and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, stop_at_once)
