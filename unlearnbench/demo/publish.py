"""The demo's last stages: the recovery table, and the board with its page."""

from __future__ import annotations

import json
from collections.abc import Callable

from unlearnbench.demo.options import ENDS, DemoOptions
from unlearnbench.demo.recipe import TASKS
from unlearnbench.recovery import UTILITY_FLOOR


def make_table(options: DemoOptions) -> None:
    """Write ``recovery.json``, as ``compare --json`` does."""
    from unlearnbench.recovery.compare import compare, open_comparison

    entries = [options.runs(name) for name in options.methods]
    opened = open_comparison(entries, options.runs("target"), options.runs("retrained"))
    content = [row.model_dump(mode="json", exclude_none=True) for row in compare(opened)]
    text = json.dumps(content, indent=2, allow_nan=False) + "\n"
    options.table.write_text(text, encoding="utf-8")


def make_board(options: DemoOptions, tick: Callable[[], object] = lambda: None) -> None:
    """Write ``board.yaml``, the entries, and what is generated from them. ``tick`` is called after
    each entry, and at the end.
    """
    import yaml

    from unlearnbench.boards import add_entry, read_board
    from unlearnbench.boards.build import build_board
    from unlearnbench.boards.entry import Submission
    from unlearnbench.tasks.spec import load_registry

    weights = "dense weights (the control)" if options.dense else "sparse weights"
    versions = {s.task: s.metadata.version for s in load_registry(()).resolve(TASKS)}
    rules = {
        "title": "The demo's board",
        "description": f"A tiny Llama with {weights}, trained with seed {options.seed} on an "
        "invented corpus: it shows the effect, and says nothing of other models.",
        "base_model": "a Llama of 2 layers with random weights",
        "tasks": versions,
        "precisions": list(options.precisions),
        "utility_floor": UTILITY_FLOOR,
        "ranking": ["demo_knowmem_f", "demo_verbmem"],
        "publish_texts": True,
    }
    text = yaml.safe_dump(rules, sort_keys=False, allow_unicode=True)
    (options.out / "board.yaml").write_text(text, encoding="utf-8")
    board = read_board(options.out)
    for name in (*ENDS, *options.methods):
        role = name if name in ENDS else "unlearned"
        add_entry(board, [options.runs(name)], Submission(name, role))  # type: ignore[arg-type]
        tick()
    build_board(board)
    tick()
