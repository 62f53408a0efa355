"""The command line with a log of every answer that it kept; in a process that forks one child a
command, so that the libraries are imported once.

    python -m tests.durability.counted LOG ARGUMENT...     one command
    python -m tests.durability.counted --fork              commands as JSON lines on standard input
"""

from __future__ import annotations

import gc
import json
import os
import signal
import sys
import time
from importlib import import_module
from pathlib import Path

# What a child would spend seconds on.
WARM = (
    "rouge_score.rouge_scorer",
    "scipy.stats",
    "sklearn.metrics",
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto",
    "transformers.models.encoder_decoder",
    "transformers.models.llama.modeling_llama",
    "unlearnbench.cli",
    "unlearnbench.evaluation.evaluate",
    "unlearnbench.conditions.load",
    "unlearnbench.checkpoints.source",
    "unlearnbench.evaluation.outcome",
)


def run(log: str, arguments: list[str]) -> None:
    """Call the command line; ``log`` gets a line for every answer, once it is in the journal. Where
    ``LOG.hold`` holds a number, it waits once the log has so many lines, for a signal.
    """
    from unlearnbench.cli import main
    from unlearnbench.evaluation.answers import Journal
    from unlearnbench.requests import Answer

    # A shell starts what it leaves in the background with this signal ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    keep, hold = Journal.keep, Path(f"{log}.hold")
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def counted(self: Journal, answer: Answer) -> None:
        keep(self, answer)
        where = f"{self.path.parents[1].name} {answer.id}\n"
        os.write(descriptor, where.encode())
        while hold.exists() and Path(log).read_bytes().count(b"\n") >= int(hold.read_text()):
            time.sleep(0.002)

    Journal.keep = counted  # type: ignore[method-assign]
    main(arguments)


def serve() -> None:
    """Fork a child for every line ``[log, arguments, errors]``; answer with its process id."""
    for name in WARM:
        import_module(name)
    import torch

    from unlearnbench import conditions

    conditions.resolve(["none", "rtn-int8", "rtn-int4"])
    torch.set_num_threads(1)
    gc.collect()
    gc.freeze()  # a child's collections would go through all of the libraries' objects
    for line in sys.stdin:
        log, arguments, errors = json.loads(line)
        child = os.fork()
        if child == 0:
            descriptor = os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            os.dup2(descriptor, 1)
            os.dup2(descriptor, 2)
            status = 70
            try:
                run(log, arguments)
            except SystemExit as end:
                status = end.code if isinstance(end.code, int) else 0
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(status)
        print(child, flush=True)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "--fork":
        serve()
    else:
        run(sys.argv[1], sys.argv[2:])
