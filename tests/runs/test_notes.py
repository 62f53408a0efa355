from __future__ import annotations

from typing import Any

from tests.runs.test_entries import entry, loaded
from tests.test_results import make_task
from unlearnbench.results import ImportedFrom
from unlearnbench.runs.entries import LoadedRun
from unlearnbench.runs.fingerprint import mixed_versions
from unlearnbench.runs.notes import machine_notes


def measured(run: LoadedRun, **packages: dict[str, str]) -> LoadedRun:
    """The run with tasks that were measured with ``packages``, by task."""
    own = run.result.environment
    tasks = {
        name: make_task().model_copy(
            update={"environment": own.model_copy(update={"packages": found})}
        )
        for name, found in packages.items()
    }
    return LoadedRun(run.path, run.result.model_copy(update={"tasks": tasks}))


def on(condition: str = "none", settings: dict[str, Any] | None = None, **versions: str) -> Any:
    return measured(loaded(condition, settings), toy_verbmem={"numpy": "2", **versions})


def test_a_run_whose_tasks_had_other_packages() -> None:
    run = measured(
        loaded(),
        b={"torch": "2", "transformers": "5.23.0"},
        a={"torch": "2", "transformers": "5.24.0"},
        c={"torch": "2", "transformers": "5.23.0", "vllm": "1"},
    )
    said = "transformers 5.23.0 for b and c, 5.24.0 for a"
    assert mixed_versions(run.result) == said
    assert machine_notes(entry(run), {}) == [f"out/none: {said}"]
    assert mixed_versions(loaded().result) == ""


def test_only_the_first_packages_are_named_on_one_line() -> None:
    old = {f"p\n{n}": "1" for n in range(5)}
    run = measured(loaded(), a=old, b={**dict.fromkeys(old, "2"), "p\n0": "\x1b[31m" * 99})
    said = mixed_versions(run.result)
    assert said.startswith("p 0 1 for a, \\x1b[31m")
    assert said.endswith("; p 1 1 for a, 2 for b; p 2 1 for a, 2 for b; and 2 more")
    assert "\x1b" not in said
    assert "\n" not in said
    assert len(said) < 200


def test_nothing_is_said_where_nothing_differs() -> None:
    runs = entry(on(), on("rtn-int4"))
    assert machine_notes(runs, {"target": entry(on(), on("rtn-int4")), "retrained": runs}) == []


def test_what_differs_from_the_references_has_a_line_each() -> None:
    runs = entry(on(torch="2.13"), on("rtn-int4", torch="2.13"))
    target = entry(on(torch="2.12"), on("rtn-int4", torch="2.12"), on("bf16", torch="2.12"))
    retrained = entry(on(settings={"dtype": "fp32", "device": "cuda"}, torch="2.13"))
    assert machine_notes(runs, {"target": target, "retrained": retrained}) == [
        "out/none was measured otherwise than the target's out/none: torch is 2.12 there and 2.13 "
        "here (1 more of its runs differ too)",
        "out/none was measured otherwise than the retrained's out/none: compute dtype at none is "
        "fp32 there and bf16 here; device is cuda there and cpu here",
    ]


def test_an_entrys_own_runs_are_held_against_its_first() -> None:
    (line,) = machine_notes(entry(on(torch="1"), on("rtn-int4", torch="2")), {})
    assert line == (
        "out/rtn-int4 was measured otherwise than out/none: torch is 1 there and 2 here"
    )


def test_the_bits_in_force_are_compared() -> None:
    wide, narrow = (loaded(settings={"dtype": "fp32"}, bits=bits) for bits in (32.0, 16.0))
    (line,) = machine_notes(entry(narrow), {"target": entry(wide)})
    assert line.endswith("a weight at none is 32 bits there and 16 bits here")
    older, newer = loaded(bits=32.0), loaded(bits=16.0)  # both computed in bf16
    assert machine_notes(entry(newer), {"target": entry(older)}) == []


def test_the_seed_counts_where_answers_are_sampled() -> None:
    def seeded(seed: int, protocol: str) -> Any:
        return entry(on(settings={"seed": seed, "protocol": protocol}))

    assert machine_notes(seeded(1, "muse"), {"target": seeded(0, "muse")}) == []
    (line,) = machine_notes(seeded(1, "zhang2025"), {"target": seeded(0, "zhang2025")})
    assert line.endswith("seed is 0 there and 1 here")


def test_tasks_are_held_against_the_same_task_alone() -> None:
    a = entry(measured(loaded(), x={"torch": "1"}))
    assert machine_notes(a, {"target": entry(measured(loaded(), y={"torch": "2"}))}) == []


def test_what_an_imported_run_was_measured_with_is_not_known() -> None:
    source = ImportedFrom(format="muse", files={}, stated={}, differences={})
    made = on(torch="2")
    imported = LoadedRun(made.path, made.result.model_copy(update={"imported": source}))
    assert machine_notes(entry(imported), {"target": entry(on(torch="1"))}) == []
