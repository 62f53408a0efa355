from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.test_results import make_result
from unlearnbench.errors import OptionError, ResultError
from unlearnbench.runs.entries import (
    Entry,
    LoadedRun,
    join_trainings,
    require_alike,
    require_same_condition,
    run_key,
)

SAMPLED = {"gen_kwargs": '{"do_sample": true, "temperature": 0.7}'}


def loaded(
    condition: str = "none", settings: dict[str, Any] | None = None, **options: Any
) -> LoadedRun:
    """A run in bf16 with seed 0, but for ``settings`` and the condition's ``options``."""
    made = make_result(condition=condition)
    how = made.condition.options.model_copy(update=options)
    update = {
        "settings": made.settings.model_copy(update=settings or {}),
        "condition": made.condition.model_copy(update={"options": how}),
    }
    return LoadedRun(Path("out") / condition, made.model_copy(update=update))


def entry(*runs: LoadedRun) -> Entry:
    return Entry("ga", {run.condition: run for run in runs})


def trained(name: str, **origin: str) -> Entry:
    run = loaded()
    checkpoint = run.result.checkpoint.model_copy(update={"origin": origin})
    result = run.result.model_copy(update={"checkpoint": checkpoint})
    return Entry(name, {"none": LoadedRun(run.path, result)})


@pytest.mark.parametrize(
    ("names", "joined"),
    [
        (["npo-seed0", "npo-seed1"], "npo"),
        (["npo-seed1", "npo-seed10", "npo-seed12"], "npo"),
        (["sure-20-s1", "sure-20-s2"], "sure-20"),
        (["one", "two"], "one"),
        (["npo", "npo-2"], "npo"),
        (["ga-1", "ga-2"], "ga-1"),  # another entry is called ga
    ],
)
def test_trainings_of_one_recipe_join(names: list[str], joined: str) -> None:
    other = trained("ga", recipe="b", seed="0")
    given = [trained(name, recipe="a", seed=str(k)) for k, name in enumerate(names)]
    first, last = join_trainings([*given, other])
    assert first.name == joined
    assert [each.runs for each in first.trainings] == [each.runs for each in given]
    assert last is other


def test_what_is_no_second_training_stands_alone() -> None:
    copy = [trained("a", recipe="r", seed="0"), trained("b", recipe="r", seed="0")]
    assert join_trainings(copy) == copy, "a copy of unlearning.json, as a quantized export has"
    other = [trained("a", recipe="r", seed="0"), trained("b", recipe="r", seed="1", lr="1")]
    assert join_trainings(other) == other, "a recipe that was copied, not followed"
    more = Entry("c", {**other[0].runs, "rtn-int4": loaded("rtn-int4")})
    assert join_trainings([other[0], more]) == [other[0], more], "other conditions"
    odd = [trained("a"), trained("b", recipe="0"), trained("c", recipe="entry 0")]
    assert join_trainings(odd) == odd
    pairs = [trained(f"ga-s{k}", recipe="rs"[k // 2], seed=str(k)) for k in range(4)]
    assert [each.name for each in join_trainings(pairs)] == ["ga", "ga-s2"]
    unknown = [trained("a"), trained("b")]
    assert join_trainings(unknown) == unknown


@pytest.mark.parametrize(
    ("condition", "settings", "said"),
    [
        ("rtn-int4", {"dtype": "fp32"}, "dtype bf16 and out/rtn-int4 with fp32"),
        ("rtn-int4", {"dtype": "fp32\x1b[31m"}, r"dtype bf16 and out/rtn-int4 with fp32\\x1b"),
        ("rtn-int4", {"seed": 7, "protocol": "zhang2025"}, "seed 0 and out/rtn-int4 with 7"),
        ("bf16", {"seed": 7, "protocol": "zhang2025"}, "seed 0 and out/bf16 with 7"),
        ("rtn-int4", {"seed": 7, **SAMPLED}, "seed 0 and out/rtn-int4 with 7"),
    ],
)
def test_an_entrys_runs_differ_in_their_weights_alone(
    condition: str, settings: dict[str, Any], said: str
) -> None:
    shared = {k: v for k, v in settings.items() if k in ("protocol", "gen_kwargs")}
    runs = loaded("none", shared), loaded(condition, settings)
    with pytest.raises(OptionError, match=f"out/none was made with {said}.*evaluate one of them"):
        require_alike(entry(*runs))


def with_tokenizer(condition: str, content: str, does: str | None) -> LoadedRun:
    run = loaded(condition)
    update = {"tokenizer_sha256": content * 64, "tokenizer_probe_sha256": does and does * 64}
    checkpoint = run.result.checkpoint.model_copy(update=update)
    return LoadedRun(run.path, run.result.model_copy(update={"checkpoint": checkpoint}))


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (("a", None), ("a", None), True),
        (("a", None), ("a", "c"), True),
        (("a", "c"), ("b", "c"), True),
        (("a", None), ("b", "c"), False),
        (("a", "c"), ("a", "d"), False),
    ],
)
def test_an_entrys_runs_have_one_tokenizer(
    one: tuple[str, str | None], other: tuple[str, str | None], same: bool
) -> None:
    runs = with_tokenizer("none", *one), with_tokenizer("rtn-int4", *other)
    assert run_key(runs[0]).split()[:-1] == run_key(runs[1]).split()[:-1], "one checkpoint"
    if same:
        require_alike(entry(*runs))
        return
    said = "out/rtn-int4 cannot be compared with out/none: tokenizer is"
    with pytest.raises(OptionError, match=said):
        require_alike(entry(*runs))


@pytest.mark.parametrize(
    ("condition", "settings"),
    [
        ("rtn-int4", {}),
        ("rtn-int4", {"seed": 7}),  # greedy decoding draws nothing
        ("rtn-int4", {"seed": 7, "gen_kwargs": '{"do_sample": false}'}),
        ("fp32", {"dtype": "fp32"}),
        ("fp16", {"dtype": "fp16"}),
        ("bf16", {"dtype": "bf16"}),
    ],
)
def test_a_storage_precision_has_a_dtype_of_its_own_and_greedy_decoding_no_seed(
    condition: str, settings: dict[str, Any]
) -> None:
    require_alike(entry(loaded("none"), loaded(condition, settings)))


@pytest.mark.parametrize(
    ("bits", "dtype", "want"),
    [
        (32.0, "bf16", 16),  # as older files have it
        (32.0, "fp16", 16),
        (32.0, "fp32", 32),
        (16.0, "fp32", 16),
        (4.0, "bf16", 4),
        (None, "bf16", None),
        (32.0, "unknown", 32),
    ],
)
def test_the_bits_of_a_run_are_those_in_force(
    bits: float | None, dtype: str, want: float | None
) -> None:
    assert loaded(settings={"dtype": dtype}, bits=bits).bits == want


def test_four_bits_are_no_full_precision_and_sixteen_are() -> None:
    assert entry(loaded(bits=32.0)).full.bits == 16
    with pytest.raises(ResultError, match="quantized already"):
        _ = entry(loaded(bits=4.0)).full


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_what_a_checkpoint_is_computed_in_is_no_other_condition(dtype: str) -> None:
    plain = "as stored in the checkpoint"
    older, newer = loaded(scheme=plain), loaded(scheme=f"{plain} (fp32), computed in {dtype}")
    require_same_condition(newer, older)
    with pytest.raises(OptionError, match="scheme is as stored: GPTQ"):
        require_same_condition(newer, loaded(scheme="as stored: GPTQ"))
