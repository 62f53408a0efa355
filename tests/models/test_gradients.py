"""``gradnorm``: the norm of a text's gradient, against a plain backward pass in float64."""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tests.conftest import CORPUS, TOY_TASKS, Toy, load_at
from tests.models.test_batches_tokens import asked
from unlearnbench import evaluate
from unlearnbench.checkpoints.checkpoint import open_checkpoint
from unlearnbench.checkpoints.options import LoadOptions
from unlearnbench.errors import MetricError, ModelOutputError
from unlearnbench.evaluation.answers import _decode, _encode
from unlearnbench.metrics.membership import auc
from unlearnbench.models.gradients import add_gradients
from unlearnbench.requests import Generate, Score
from unlearnbench.results import LikelihoodRecord
from unlearnbench.runs.folder import RunFolder


def by_backward(model: Any, request: Score) -> float:
    """Of a copy in float64: the mean over its parameters of the norm of each one's ``grad``."""
    ids, start = model.tokens.answer_ids(request)
    network = copy.deepcopy(model.network).double().requires_grad_(True)
    logits = network(input_ids=torch.tensor([ids])).logits[0]
    own = [logits[at - 1].log_softmax(-1)[ids[at]] for at in range(start, len(ids))]
    (-torch.stack(own).mean()).backward()
    norms = [weight.grad.norm() for weight in network.parameters() if weight.grad is not None]
    return float(torch.stack(norms).mean())


def test_it_is_that_of_a_plain_backward_pass(tiny: Path) -> None:
    """Behind a prompt, with an end token and without; nothing stays trainable behind it."""
    model = asked(tiny)
    requests = [
        Score("a", CORPUS[0], gradient=True),
        Score("b", " the keeper", "Who asked?", end=True, gradient=True),
        Score("c", CORPUS[1]),
    ]
    trainable = [weight.requires_grad for weight in model.network.parameters()]
    found = {answer.id: answer for answer in model.score(requests)}
    for request in requests[:2]:
        expected = by_backward(model, request)
        assert found[request.id].gradient == pytest.approx(expected, rel=1e-4)
    assert found["c"].gradient is None
    assert [weight.requires_grad for weight in model.network.parameters()] == trainable
    again = _decode(_encode(found["b"]))
    assert again.gradient == found["b"].gradient, "a journal keeps it"  # type: ignore[union-attr]


def test_large_layers_that_multiply_otherwise_have_it_too(
    make_checkpoint: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Answers come first, so the products are chosen (packed ones too) before a gradient is."""
    monkeypatch.setattr("unlearnbench.models.packable.LARGE", 1)
    model = asked(make_checkpoint("wide", hidden_size=128, intermediate_size=256))
    request = Score("a", CORPUS[0], gradient=True)
    expected = by_backward(model, request)
    list(model.generate([Generate("g", CORPUS[1], 4)]))
    (answer,) = model.score([request])
    assert answer.gradient == pytest.approx(expected, rel=1e-4)


def test_weights_in_codes_have_none_and_that_is_said(
    tiny: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """In codes a condition has none; written back in plain numbers it has."""
    with caplog.at_level(logging.WARNING, "unlearnbench"):
        (answer,) = load_at(
            open_checkpoint(str(tiny), LoadOptions()), "bnb-nf4", kernel="native"
        ).score([Score("a", CORPUS[0], gradient=True)])
    assert answer.gradient is None
    assert "bnb-nf4: no gradnorm: weights are stored as" in caplog.text
    dense = load_at(open_checkpoint(str(tiny), LoadOptions()), "rtn-int4", kernel="dequantized")
    (answer,) = dense.score([Score("a", CORPUS[0], gradient=True)])
    assert answer.gradient == pytest.approx(by_backward(dense, Score("a", CORPUS[0])), rel=1e-4)


def test_a_gradient_that_does_not_reach_the_weights_is_refused(tiny: Path) -> None:
    model = asked(tiny)
    (answer,) = model.score([Score("a", CORPUS[0])])
    body = model.network.get_decoder()
    body.register_forward_hook(lambda *given: given[-1].__class__(given[-1][0].detach()))
    places = {"a": model.tokens.answer_ids(Score("a", CORPUS[0]))}
    made = add_gradients(model.network, model.condition, model.tokens, places, [answer])
    with pytest.raises(ModelOutputError, match=r"reaches 1 of \d+ matrices"):
        list(made)


def test_a_pass_without_a_gradient_is_refused_in_a_line(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = asked(tiny)
    monkeypatch.setattr(model.network, "forward", torch.no_grad()(model.network.forward))
    with pytest.raises(
        ModelOutputError, match="a at none: the loss has no gradient by the weights"
    ):
        list(model.score([Score("a", CORPUS[0], gradient=True)]))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_is_refused(tiny: Path, value: float) -> None:
    """The loss itself is finite."""
    model = asked(tiny)
    model.network.get_output_embeddings().weight.register_hook(lambda given: given * value)
    with pytest.raises(ModelOutputError, match="a at none: the norm of the loss's gradient is not"):
        list(model.score([Score("a", CORPUS[0], gradient=True)]))


def test_a_rounded_cache_has_none(tiny: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What passes through its rounding is the gradient of a group's ends alone."""
    with caplog.at_level(logging.WARNING, "unlearnbench"):
        (answer,) = load_at(open_checkpoint(str(tiny), LoadOptions()), "kv-int8").score(
            [Score("a", CORPUS[0], gradient=True)]
        )
    assert answer.gradient is None
    assert "kv-int8: no gradnorm: attention meets rounded keys and values" in caplog.text


def test_a_run_records_the_scores_and_their_auc(toy: Toy, tiny: Path) -> None:
    where: dict[str, Any] = {"data_dir": toy.data, "include_path": [toy.tasks]}
    (run,) = evaluate(
        str(tiny), "toy_privleak", output=toy.out, gradnorm=True, dtype="fp32", **where
    )
    assert run.settings.gradnorm is True
    result = run.tasks["toy_privleak"]
    (folder,) = toy.out.glob("*/none")
    records = RunFolder(folder).read_records("toy_privleak", result.records_sha256)
    sides: dict[str, list[float]] = {"forget": [], "holdout": []}
    for record in records:
        assert isinstance(record, LikelihoodRecord)
        sides[record.split].append(record.scores["gradnorm"])
    assert result.attacks is not None
    assert result.attacks["gradnorm"].auc == auc(sides["forget"], sides["holdout"])


def test_a_task_of_that_attack_asks_for_it_and_is_refused_without(toy: Toy, tiny: Path) -> None:
    folder = toy.tasks.parent / "more"
    folder.mkdir()
    content = yaml.safe_load(TOY_TASKS["toy_privleak"]) | {"attack": "gradnorm"}
    content = {"task": "toy_gradnorm", **content}
    (folder / "toy_gradnorm.yaml").write_text(yaml.safe_dump(content))
    where: dict[str, Any] = {"data_dir": toy.data, "include_path": [folder], "dtype": "fp32"}
    (run,) = evaluate(str(tiny), "toy_gradnorm", output=toy.out, **where)
    assert run.tasks["toy_gradnorm"].attack == "gradnorm"
    with pytest.raises(MetricError, match="the weights of this condition have no gradient"):
        evaluate(
            str(tiny), "toy_gradnorm", "bnb-nf4", output=toy.out, quant_kernel="native", **where
        )
