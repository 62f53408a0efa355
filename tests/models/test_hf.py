from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.conftest import CORPUS, MakeCheckpoint, load_at
from unlearnbench.checkpoints.checkpoint import open_checkpoint
from unlearnbench.checkpoints.options import LoadOptions
from unlearnbench.conditions import find_condition
from unlearnbench.conditions.load import prepare
from unlearnbench.conditions.options import KernelOptions
from unlearnbench.errors import ModelOutputError
from unlearnbench.models.hf import HFModel
from unlearnbench.models.likelihood import Head
from unlearnbench.requests import Generate, Sampling, Score

PROMPTS = [CORPUS[n][: 5 + 9 * n] for n in range(12)]


def load(path: Path, precision: str = "none", batch: int | None = None, **options: Any) -> HFModel:
    source = open_checkpoint(str(path), LoadOptions(**options))
    return load_at(source, precision, batch=batch)


def plain_greedy(path: Path, prompt: str, new: int) -> str:
    """One prompt at a time through transformers alone."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(path)
    model: Any = AutoModelForCausalLM.from_pretrained(path)
    inputs = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
    output = model.generate(**inputs, max_new_tokens=new, do_sample=False, pad_token_id=1)
    new_ids = output[0, inputs.input_ids.shape[1] :]
    return str(tokenizer.decode(new_ids, skip_special_tokens=True))


@pytest.mark.parametrize("batch", [1, 8, None])
def test_generation_equals_one_prompt_at_a_time(tiny: Path, batch: int | None) -> None:
    requests = [Generate(str(i), p, 24) for i, p in enumerate(PROMPTS)]
    answers = {a.id: a.text for a in load(tiny, batch=batch).generate(requests)}
    assert answers == {str(i): plain_greedy(tiny, p, 24) for i, p in enumerate(PROMPTS)}
    assert len(set(answers.values())) > 3, "outputs that are all alike would prove nothing"


@pytest.mark.parametrize("batch", [1, 8])
def test_scores_equal_a_token_by_token_loop(tiny: Path, batch: int) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(tiny)
    reference: Any = AutoModelForCausalLM.from_pretrained(tiny)
    scored = {s.id: s for s in load(tiny, batch=batch).score([Score(p, p) for p in PROMPTS])}
    for prompt in PROMPTS:
        ids = tokenizer(prompt).input_ids
        for t in range(1, len(ids)):
            with torch.no_grad():
                logits = reference(torch.tensor([ids[:t]])).logits[0, -1].double()
            logp = logits - logits.exp().sum().log()
            mean = float((logp.exp() * logp).sum())
            spread = float((logp.exp() * (logp - mean) ** 2).sum().sqrt())
            found = scored[prompt]
            assert found.logprobs[t - 1] == pytest.approx(float(logp[ids[t]]), abs=1e-4)
            assert found.mean[t - 1] == pytest.approx(mean, abs=1e-4)
            assert found.std[t - 1] == pytest.approx(spread, abs=1e-4)
        assert len(scored[prompt].logprobs) == len(ids) - 1


def test_text_ends_before_the_first_stop_string(tiny: Path) -> None:
    model = load(tiny)
    free = next(iter(model.generate([Generate("a", PROMPTS[5], 24)]))).text
    stop = free[6:8]
    cut = next(iter(model.generate([Generate("a", PROMPTS[5], 24, (stop,))])))
    assert cut.text == free[: free.index(stop)]
    assert cut.n_tokens < 24


def test_sampling_does_not_depend_on_the_batch(tiny: Path) -> None:
    sampling = Sampling(0.9, 50, seed=3)
    requests = [Generate(str(i), p, 12, (), sampling) for i, p in enumerate(PROMPTS)]
    one = {a.id: a.text for a in load(tiny, batch=1).generate(requests)}
    many = {a.id: a.text for a in load(tiny, batch=8).generate(requests[::-1])}
    assert one == many
    other = [Generate(r.id, r.prompt, 12, (), Sampling(0.9, 50, seed=4)) for r in requests]
    assert {a.id: a.text for a in load(tiny, batch=8).generate(other)} != one


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_logits_that_are_not_finite_are_an_error_that_names_sample_and_precision(
    tiny: Path, value: float
) -> None:
    model: Any = load(tiny, "bnb-nf4")
    model.network.lm_head.weight.data[3] = value
    with pytest.raises(ModelOutputError, match="task:a/1 at bnb-nf4.*NaN or infinite"):
        list(model.generate([Generate("task:a/1", PROMPTS[0], 4)]))
    with pytest.raises(ModelOutputError, match="task:a/1 at bnb-nf4.*NaN or infinite"):
        list(model.score([Score("task:a/1", PROMPTS[0])]))


def test_a_text_of_one_token_cannot_be_scored(tiny: Path) -> None:
    with pytest.raises(ModelOutputError, match="t: a text of 1 tokens"):
        list(load(tiny).score([Score("t", "")]))


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
        MemoryError(),
    ],
    ids=["torch", "cuda", "cublas", "cpu", "python"],
)
def test_batches_halve_when_memory_runs_out(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    model = load(tiny)
    whole = Head.score
    sizes = []

    def small_only(self: Head, *given: Any) -> list[Any]:
        sizes.append(len(given[-1]))
        if len(given[-1]) > 3:
            raise error
        return whole(self, *given)

    monkeypatch.setattr(Head, "score", small_only)
    answers = [a.id for a in model.score([Score(p, p) for p in PROMPTS])]
    assert sorted(answers) == sorted(PROMPTS), "each exactly once"
    assert sizes == [12, 6, 3, 3, 3, 3]


def test_what_was_answered_before_is_skipped_and_moves_no_other_answer(tiny: Path) -> None:
    texts = [Score(p, p) for p in PROMPTS]
    prompts = [Generate(p, p, 8) for p in PROMPTS]
    model = load(tiny, batch=3)
    whole = {a.id: a for a in model.score(texts)}
    by_length = sorted(PROMPTS, key=len, reverse=True)
    done = {*by_length[:4], by_length[7]}  # a whole batch, and parts of others
    rest = {a.id: a for a in model.score(texts, done)}
    assert rest.keys() == set(PROMPTS) - done
    for name, answer in rest.items():
        assert (answer.logprobs == whole[name].logprobs).all(), "the same to the last bit"
    assert {a.id for a in model.generate(prompts, done)} == set(PROMPTS) - done
    assert not [*model.score(texts, set(PROMPTS))]


def test_a_batch_that_is_done_is_not_run(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    whole = Head.score

    def count(self: Head, *given: Any) -> list[Any]:
        sizes.append(len(given[-1]))
        return whole(self, *given)

    monkeypatch.setattr(Head, "score", count)
    by_length = sorted(PROMPTS, key=len, reverse=True)
    assert len([*load(tiny, batch=4).score([Score(p, p) for p in PROMPTS], by_length[:9])]) == 3
    assert sizes == [4], "the two batches before it held only what was done"


@pytest.mark.parametrize(("batch", "hint"), [(4, "--batch-size auto"), (1, "smaller model")])
def test_a_batch_that_was_asked_for_and_does_not_fit_is_an_error(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, batch: int, hint: str
) -> None:
    def fail(self: Head, *given: Any) -> list[Any]:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Head, "score", fail)
    with pytest.raises(ModelOutputError, match=hint):
        list(load(tiny, batch=batch).score([Score(p, p) for p in PROMPTS]))


def test_other_runtime_errors_are_not_taken_for_a_lack_of_memory(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: Head, *given: Any) -> list[Any]:
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(Head, "score", fail)
    with pytest.raises(RuntimeError, match="shapes"):
        list(load(tiny).score([Score("a", PROMPTS[0])]))


def test_a_checkpoint_without_end_token_runs_to_the_limit(make_checkpoint: MakeCheckpoint) -> None:
    path = make_checkpoint("endless")
    answer = next(iter(load(path).generate([Generate("a", PROMPTS[3], 6)])))
    assert answer.n_tokens <= 6


def test_the_token_count_does_not_depend_on_the_batch(tiny: Path) -> None:
    free = {a.id: a.text for a in load(tiny).generate([Generate(p, p, 16) for p in PROMPTS])}
    stop = (free[PROMPTS[2]][3:5],)
    requests = [Generate(p, p, 16, stop) for p in PROMPTS]
    one, many = (
        {a.id: (a.text, a.n_tokens) for a in load(tiny, batch=n).generate(requests)} for n in (1, 8)
    )
    assert one == many
    assert one[PROMPTS[2]][1] < 16


@pytest.mark.parametrize("precision", ["none", "rtn-int4", "bnb-nf4", "gguf-q4_0"])
def test_a_spread_model_answers_as_one_on_one_device(
    tiny: Path, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Accelerate's hooks on every layer, as where a model is spread; the devices are all CPU."""
    from accelerate import dispatch_model

    texts = [Score(p, p) for p in PROMPTS]
    prompts = [Generate(p, p, 8) for p in PROMPTS]
    source = open_checkpoint(str(tiny), LoadOptions())
    options = KernelOptions(device="cpu", quant_kernel="dequantized")
    prepared = prepare(source, find_condition(precision), options)
    spread = replace(prepared, plan=replace(prepared.plan, device="auto")).load()
    assert spread.device == "cpu"
    network: Any = spread.network
    places = {"model.embed_tokens": "cpu", "model.norm": "cpu", "model.rotary_emb": "cpu"}
    places |= {f"model.layers.{n}": "cpu" for n in range(len(network.model.layers))}
    dispatch_model(network, {**places, "lm_head": "cpu"}, force_hooks=True)
    plain = load_at(source, precision, kernel="dequantized")
    assert {a.id: a for a in spread.generate(prompts)} == {a.id: a for a in plain.generate(prompts)}
    scored = {a.id: a for a in plain.score(texts)}
    for answer in spread.score(texts):
        # On AMD's processors MKL's sums depend on where a tensor lies in memory: 5e-7 there.
        assert np.allclose(answer.logprobs, scored[answer.id].logprobs, rtol=0, atol=1e-5)
