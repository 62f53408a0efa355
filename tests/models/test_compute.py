from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.conftest import CORPUS, Toy
from tests.evaluation.test_evaluate import Spy, script
from tests.models.architectures import PROMPTS, make_kind, wrap
from unlearnbench import evaluate
from unlearnbench.checkpoints.options import LoadOptions
from unlearnbench.checkpoints.source import open_source
from unlearnbench.conditions.load import load_model, make_how, pick_dtype
from unlearnbench.conditions.quantize import find_precision
from unlearnbench.errors import OptionError
from unlearnbench.models import compute
from unlearnbench.models.compute import compile_layers, set_attention
from unlearnbench.models.hf import HFModel
from unlearnbench.requests import Generate, Score
from unlearnbench.util import explain


def load(folder: Path, precision: str = "none", **how: Any) -> HFModel:
    spec = find_precision(precision)
    asked = replace(make_how(spec, "fp32", "cpu", "auto", None), **how)
    return load_model(open_source(str(folder), LoadOptions()), spec, asked)


def answers(model: HFModel) -> tuple[list[str], Any]:
    texts = [a.text for a in model.generate([Generate(p, p, 12) for p in PROMPTS])]
    scored = model.score([Score(str(i), text) for i, text in enumerate(CORPUS[:6])])
    return texts, np.concatenate([np.asarray(a.logprobs) for a in scored])


@pytest.mark.slow  # a minute of C++ compilation
@pytest.mark.parametrize("precision", ["none", "bnb-nf4"])
def test_compiled_layers_give_the_same_answers(
    tiny: Path, precision: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "unlearnbench.explain")
    texts, logprobs = answers(load(tiny, precision))
    model = load(tiny, precision, compiled=True)
    found, its = answers(model)
    assert found == texts
    np.testing.assert_allclose(its, logprobs, atol=1e-4)
    assert not isinstance(model._continuer, str), "rows without padding, as without --compile"
    assert "torch.compile: 2 layers" in caplog.text


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_a_kernel_that_rounds_may_attend_as_asked(
    monkeypatch: pytest.MonkeyPatch, tiny: Path, attention: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR, "bitsandbytes")
    model = load(tiny, "bnb-int8", attention=attention)
    assert model.network.config._attn_implementation == attention
    # What one attention makes other than another by a last bit, a step of int8 makes larger: that
    # is allowed only where products round, and attentions are compared without their rounding.
    before = compute._few_logits(model.network)
    assert not compute._apart(before, before * 1.01, model.network, is_rounded=True)
    assert compute._apart(before, before * 1.01, model.network, is_rounded=False)
    dense = load(tiny, "bnb-nf4").network
    assert compute._apart(before, before * 1.01, dense, is_rounded=True)
    make_attention_wrong(monkeypatch)
    with pytest.raises(OptionError, match="--attention eager: gives other logits than sdpa"):
        load(tiny, "bnb-int8", attention="eager")


@pytest.mark.parametrize("precision", ["none", "rtn-int4"])
def test_eager_attention_gives_the_same_answers(tiny: Path, precision: str) -> None:
    texts, logprobs = answers(load(tiny, precision))
    model = load(tiny, precision, attention="eager")
    assert model.network.config._attn_implementation == "eager"
    found, its = answers(model)
    assert found == texts
    np.testing.assert_allclose(its, logprobs, atol=1e-4)


def make_attention_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.models.llama import modeling_llama

    own = modeling_llama.eager_attention_forward

    def wrong(*args: Any, **kwargs: Any) -> Any:
        values, weights = own(*args, **kwargs)
        return values * 1.5, weights

    monkeypatch.setattr(modeling_llama, "eager_attention_forward", wrong)


def test_attention_that_gives_other_logits_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    make_attention_wrong(monkeypatch)
    model = make_kind("llama")
    with pytest.raises(OptionError, match="--attention eager: gives other logits than sdpa"):
        set_attention(model, "eager", "cpu")
    assert model.config._attn_implementation == "sdpa"


def test_flash_attention_is_taken_where_it_is(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "unlearnbench.explain")
    changed: list[str] = []
    model = make_kind("llama")

    def change(name: str) -> None:
        changed.append(name)
        model.config._attn_implementation_internal = name

    monkeypatch.setattr(compute, "_no_flash", lambda *_: None)
    monkeypatch.setattr(compute, "_few_logits", lambda _: torch.ones(2, 3))
    monkeypatch.setattr(model, "set_attn_implementation", change)
    set_attention(model, "auto", "cuda:0")
    assert changed == ["flash_attention_2"]
    assert "attention flash_attention_2: it is installed" in caplog.text
    assert wrap(model).attention == "flash_attention_2", "which run.json names"
    assert wrap(make_kind("llama")).attention is None


@pytest.mark.parametrize(
    ("taken", "recorded"),
    [("flash_attention_2", "flash_attention_2"), (None, None), (object(), None)],
)
def test_a_run_records_the_attention_that_auto_took(
    toy: Toy, taken: object, recorded: str | None
) -> None:
    class Attending(Spy):
        attention = taken  # a Model object may have something else of that name

    (result,) = evaluate(script(toy, kind=Attending), "toy_knowmem_f", **toy.options)
    assert result.environment.attention == recorded


@pytest.mark.parametrize(
    ("asked", "precision", "own", "why"),
    [
        ("bf16", "none", "fp32", "none: compute dtype bf16, asked for by --dtype"),
        ("auto", "fp16", "fp32", "fp16: compute dtype fp16, what the precision stores"),
        ("auto", "bnb-nf4", "fp16", "bnb-nf4: compute dtype fp32, fp16 products are slow on CPU"),
        ("auto", "bnb-nf4", "bf16", "compute dtype bf16, what the checkpoint is stored in"),
    ],
)
def test_a_dtype_is_explained(
    caplog: pytest.LogCaptureFixture, asked: str, precision: str, own: str, why: str
) -> None:
    caplog.set_level(logging.INFO, "unlearnbench.explain")
    pick_dtype(asked, find_precision(precision), own, "cpu")
    assert why in caplog.text


def test_threads_are_explained(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "unlearnbench.explain")
    monkeypatch.setattr(explain, "_THREADS", dict(explain._THREADS))
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    for asked, why in [(None, "torch's own choice"), (3, "asked for by --threads")]:
        explain.set_threads(asked)
        explain.explain_loaded("cpu", "fp32", None)
        assert caplog.records[-1].getMessage().endswith(f"threads: {why}")


def test_flash_attention_that_fails_leaves_the_model_as_it_was(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "unlearnbench.explain")
    monkeypatch.setattr(compute, "_no_flash", lambda *_: None)  # it is not installed here
    model = make_kind("llama")
    set_attention(model, "auto", "cuda:0")
    assert model.config._attn_implementation == "sdpa"
    assert "attention sdpa: flash-attn fails (" in caplog.text
    with pytest.raises(OptionError, match="--attention flash_attention_2: fails"):
        set_attention(model, "flash_attention_2", "cuda:0")


@pytest.mark.parametrize(
    ("device", "dtype", "reason"),
    [
        ("cpu", torch.bfloat16, "GPUs only"),
        ("cuda:0", torch.float32, "does not compute in float32"),
        ("cuda:0", torch.bfloat16, "not installed"),
    ],
)
def test_why_there_is_no_flash_attention(device: str, dtype: torch.dtype, reason: str) -> None:
    found = compute._no_flash(make_kind("llama").to(dtype), device)
    assert found is not None
    assert reason in found


def test_a_compiler_that_fails_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("No working C++ compiler found in\ng++")

    def compile_(self: torch.nn.Module, **options: Any) -> None:
        self.register_forward_pre_hook(broken)

    monkeypatch.setattr(torch.nn.Module, "compile", compile_)
    with pytest.raises(OptionError, match=r"torch.compile failed \(No working C\+\+ compiler"):
        compile_layers(make_kind("llama"))


def test_compiled_layers_with_other_logits_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def compile_(self: torch.nn.Module, **options: Any) -> None:
        self.register_forward_hook(lambda _module, _args, out: out * 1.5)

    monkeypatch.setattr(torch.nn.Module, "compile", compile_)
    with pytest.raises(OptionError, match="compiled layers give other logits"):
        compile_layers(make_kind("llama"))
