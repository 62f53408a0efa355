from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.conditions.test_asking import records_of, toy_task
from tests.conftest import Toy, load_at
from unlearnbench import conditions, evaluate
from unlearnbench.checkpoints.checkpoint import CheckpointSource, open_checkpoint
from unlearnbench.checkpoints.options import LoadOptions
from unlearnbench.conditions import find_condition
from unlearnbench.conditions.base import Materials
from unlearnbench.conditions.load import prepare
from unlearnbench.conditions.options import KernelOptions
from unlearnbench.errors import PrecisionError
from unlearnbench.recovery.controls import leaves
from unlearnbench.requests import Generate
from unlearnbench.runs.folder import read_run

QUANTS = ["rtn-int4", "bnb-nf4", "gguf-q4_0", "bf16"]


@pytest.fixture(scope="module")
def source(tiny: Path) -> CheckpointSource:
    return open_checkpoint(str(tiny), LoadOptions())


@pytest.mark.parametrize("change", ["prune-magnitude-50", "noise-2"])
@pytest.mark.parametrize("quant", QUANTS)
def test_a_chain_is_a_precision_of_what_the_change_gives(
    source: CheckpointSource, tmp_path: Path, change: str, quant: str
) -> None:
    """As if the changed model had been saved and opened."""
    whole = load_at(source, change)
    whole.network.save_pretrained(tmp_path)
    source.tokenizer.save_pretrained(tmp_path)
    expected = load_at(open_checkpoint(str(tmp_path), LoadOptions()), quant)
    found = load_at(source, f"{change}+{quant}")
    for name, weight in expected.network.state_dict().items():
        assert torch.equal(found.network.state_dict()[name], weight), name
    condition = found.condition
    assert condition.first is not None
    assert condition.first == whole.condition
    assert condition.options.further == expected.condition.options.further
    ours, theirs = condition.proof, expected.condition.proof
    assert ours is not None
    assert theirs is not None
    assert ours == theirs
    assert condition.kind == whole.condition.kind + ("" if quant == "bf16" else "-quantized")


def test_a_chain_needs_what_its_parts_need() -> None:
    spec = find_condition("noise-2.0+nf4")
    assert spec.name == "noise-2+bnb-nf4"
    assert spec.bits == 4
    assert not spec.needs_control
    assert not conditions.has_codes(spec)
    assert find_condition("merge-0.5+int8").needs_control
    assert find_condition("merge-0.5+int8").needs_target
    assert find_condition("noise-2+gptq-int4-g64").calibrated


@pytest.mark.parametrize(
    "name",
    [
        *("nf4+noise-2", "noise-2+none", "noise-2+noise-3", "nf4+int4", "noise-2+nf4+int4"),
        *("none+nf4", "nf4+prefix-1", "prefix-1+noise-2", "prefix-1+none"),
    ],
)
def test_what_is_no_chain(name: str) -> None:
    with pytest.raises(PrecisionError, match="a change of the weights and then a precision"):
        find_condition(name)


def test_what_is_asked_is_changed_under_a_precision(
    source: CheckpointSource, tiny: Path, toy: Toy
) -> None:
    """The prompts of the first part, the weights of the second, both recorded."""
    tasks = "toy_knowmem_f,toy_verbmem"
    names = ["rtn-int4", "hints-1", "hints-1+int4"]
    plain, hints, both = evaluate(str(tiny), tasks, names, **toy.options)
    assert (both.condition.name, both.condition.kind) == ("hints-1+rtn-int4", "asked-quantized")
    assert both.condition.proof == plain.condition.proof
    assert both.condition.first is not None
    assert both.condition.first.options == hints.condition.options
    assert both.tasks["toy_verbmem"].unchanged
    assert both.tasks["toy_verbmem"].value == plain.tasks["toy_verbmem"].value
    assert both.tasks["toy_knowmem_f"].unchanged is None
    quantized = load_at(source, "rtn-int4")
    put = [(record, record.asked) for record in records_of(toy, both)]
    assert [asked for _, asked in put] == [record.asked for record in records_of(toy, hints)]
    for record, asked in put:
        assert asked is not None
        assert asked.prompt is not None
        (answer,) = quantized.generate([Generate("x", asked.prompt, 8, ("\n\n", "Question:"))])
        assert record.output == answer.text
    verbmem = toy_task(toy, "toy_verbmem").spec
    assert [leaves(name, verbmem) for name in (both.condition.name, names[0])] == [True, False]
    assert evaluate(str(tiny), tasks, names[2:], **toy.options) == [both]


def test_a_budget_bounds_the_search_of_a_chain() -> None:
    spec = find_condition("suffix-5+nf4")
    (found,) = conditions.base.bounded([spec], 99)
    assert found.chain is not None
    assert found.chain[0].options["budget"] == 99
    assert "budget" not in found.options


def test_a_part_that_is_unknown_is_told() -> None:
    with pytest.raises(PrecisionError, match="unknown condition 'nf5'"):
        find_condition("noise-2+nf5")
    with pytest.raises(PrecisionError, match="noise-0: use a percentage"):
        find_condition("noise-0+nf4")


def test_the_quantizer_runs_by_the_kernel_that_was_asked_for(source: CheckpointSource) -> None:
    options = KernelOptions.of({"device": "cpu", "dtype": "fp32", "quant_kernel": "native"})
    prepared = prepare(source, find_condition("noise-2+bnb-nf4"), options, Materials())
    assert prepared.condition.options.kernel == "native"
    assert prepared.condition.first is not None
    assert prepared.condition.first.options.kernel is None


def test_a_run_of_a_chain_is_kept_and_read_back(tiny: Path, toy: Toy) -> None:
    (result,) = evaluate(str(tiny), "toy_verbmem", "prune-magnitude-30+int4", **toy.options)
    (folder,) = toy.out.glob("*/prune-magnitude-30+rtn-int4")
    assert read_run(folder) == result
    first = result.condition.first
    assert first is not None
    assert first.proof is not None
    assert first.proof.figures is not None
    assert first.proof.figures["zero_share"] == pytest.approx(0.3, abs=1e-3)
    (again,) = evaluate(str(tiny), "toy_verbmem", "prune-magnitude-30+int4", **toy.options)
    assert again == result
