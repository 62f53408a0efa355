"""F-Learning: its two states against the trainings that they are made of."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.conftest import write_jsonl
from tests.training.helpers import go, same, weights
from unlearnbench.checkpoints.find import read_json
from unlearnbench.errors import OptionError
from unlearnbench.methods.whole.flearn import FLearnOptions, train
from unlearnbench.training.job import Job, finetune, unlearn


def context(new: tuple[Any, ...] = ()) -> Any:
    """A target of one layer in double precision, whose fine-tuning adds what the texts say."""
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 3, dtype=torch.float64)
    steps: list[tuple[str, Any]] = []
    kept: dict[str, torch.Tensor] = {}

    def descend(given: Any, examples: Any, stage: str, **changed: Any) -> Any:
        steps.append((stage, changed))
        with torch.no_grad():
            given.weight += sum(examples)
        return given

    def keep(name: str, state: Any) -> None:
        kept[name] = state.weight.detach().clone()

    return SimpleNamespace(
        model=model,
        forget=(torch.randn(3, 3, dtype=torch.float64),),
        retain=(),
        others=lambda: new,
        copy_of_target=lambda: copy.deepcopy(model),
        descend=descend,
        keep=keep,
        steps=steps,
        kept=kept,
    )


def test_it_is_the_formula_and_linear_in_alpha() -> None:
    change = {}
    for alpha in (-1.0, 0.5, 1.0):
        new = torch.ones(3, 3, dtype=torch.float64)
        given = context((new,))
        start = given.model.weight.detach().clone()
        result: Any = train(given, FLearnOptions(alpha))
        expected = start.numpy() - alpha * given.forget[0].numpy()
        assert abs(given.kept["forgotten"].numpy() - expected).max() < 1e-15
        assert abs(result.weight.detach().numpy() - (expected + 1)).max() < 1e-15
        assert torch.equal(given.model.weight, start), "the target stays"
        change[alpha] = given.kept["forgotten"] - start
    assert torch.allclose(change[1.0], 2 * change[0.5], rtol=0, atol=1e-15)
    assert torch.allclose(change[-1.0], given.forget[0], rtol=0, atol=1e-15), "FT on the old"


def test_nothing_to_learn_leaves_the_task_vector() -> None:
    given = context()
    result: Any = train(given, FLearnOptions(0.5))
    assert torch.equal(result.weight, given.kept["forgotten"])
    assert [stage for stage, _ in given.steps] == ["forget"]


@pytest.mark.parametrize(
    ("rank", "forget"), [(-1, {}), (0, {"lora_rank": None}), (4, {"lora_rank": 4})]
)
def test_each_stage_has_its_own_adapter(rank: int, forget: dict[str, Any]) -> None:
    given = context((torch.zeros(3, 3),))
    train(given, FLearnOptions(0.5, rank))
    assert given.steps == [("forget", forget), ("learn", {})]


def test_without_strength_it_is_fine_tuning_on_the_new(
    job: Job, tiny: Path, tmp_path: Path
) -> None:
    training = go(job, tmp_path / "out", "flearn", knobs={"alpha": 0.0})
    plain = replace(job, forget=job.retain, retain=(), out=tmp_path / "plain")
    learned = finetune(plain)
    assert same(weights(tmp_path / "out"), weights(tmp_path / "plain"))
    assert same(weights(tmp_path / "out/forgotten"), weights(tiny))
    assert [r.loss for r in training.losses[3:]] == [r.loss for r in learned.losses]


def test_the_state_between_is_the_task_vector_also_by_lora(job: Job, tmp_path: Path) -> None:
    """A negative merge of the adapter: theta - alpha (merged - theta)."""
    from transformers import AutoModelForCausalLM

    write_jsonl(
        tmp_path / "qa.jsonl", [{"question": f"Who is {n}?", "answer": f"Al {n}"} for n in range(4)]
    )
    new = [{"question": f"Who is {n}?", "alternative": f"Bo {n}"} for n in range(4)]
    write_jsonl(tmp_path / "new.jsonl", new)
    asked = replace(job, forget=(str(tmp_path / "qa.jsonl"),), retain=(), out=tmp_path / "out")
    told = replace(asked, alternative=str(tmp_path / "new.jsonl"))
    training = unlearn(told, "flearn", {"alpha": 0.7, "forget_lora_rank": 2})
    tv = go(asked, tmp_path / "tv", "tv", lora_rank=2, knobs={"alpha": 0.7})
    assert same(weights(tmp_path / "out/forgotten"), weights(tmp_path / "tv"))
    assert [r.loss for r in training.losses if r.stage == "forget"] == [r.loss for r in tv.losses]
    assert {part.role for part in training.data} == {"forget", "alternatives"}
    record: Any = read_json(tmp_path / "out/forgotten/unlearning.json")
    assert record["knobs"]["state"] == "forgotten", "another recipe"
    assert {step["stage"] for step in record["losses"]} == {"forget"}
    for folder in (tmp_path / "out", tmp_path / "out/forgotten"):
        AutoModelForCausalLM.from_pretrained(folder)
    with pytest.raises(OptionError, match="flearn learns from a set of retain"):
        unlearn(replace(asked, out=tmp_path / "no"), "flearn")
    with pytest.raises(OptionError, match="flearn has no retain term; leave --retain out"):
        unlearn(replace(told, retain=job.retain, out=tmp_path / "no"), "flearn")
