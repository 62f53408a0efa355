from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.conftest import CORPUS, MakeCheckpoint, load_at
from unlearnbench.checkpoints.options import LoadOptions
from unlearnbench.checkpoints.source import open_source
from unlearnbench.conditions.load import (
    load_model,
    make_how,
    pick_device,
    pick_dtype,
    require_available,
)
from unlearnbench.conditions.quantize import find_precision
from unlearnbench.errors import CheckpointError, ModelOutputError, OptionError, PrecisionError
from unlearnbench.models.decoding import logits_processors, token_statistics
from unlearnbench.models.hf import HFModel
from unlearnbench.requests import Generate, Sampling, Score

PROMPTS = [CORPUS[n][: 5 + 9 * n] for n in range(12)]


def load(path: Path, precision: str = "none", batch: int | None = None, **options: Any) -> HFModel:
    source = open_source(str(path), LoadOptions(**options))
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


def test_text_ends_at_the_end_token(tiny: Path) -> None:
    model: Any = load(tiny)
    row = [5, 6, 1, 7]
    answer = model.answer(Generate("a", "x", 4), row)
    assert (answer.text, answer.n_tokens) == (model._decode([5, 6]), 2)


def test_sampling_does_not_depend_on_the_batch(tiny: Path) -> None:
    sampling = Sampling(0.9, 50, seed=3)
    requests = [Generate(str(i), p, 12, (), sampling) for i, p in enumerate(PROMPTS)]
    one = {a.id: a.text for a in load(tiny, batch=1).generate(requests)}
    many = {a.id: a.text for a in load(tiny, batch=8).generate(requests[::-1])}
    assert one == many
    other = [Generate(r.id, r.prompt, 12, (), Sampling(0.9, 50, seed=4)) for r in requests]
    assert {a.id: a.text for a in load(tiny, batch=8).generate(other)} != one


def test_sampling_follows_the_softmax_of_the_top_k() -> None:
    logits: Any = torch.tensor([[2.0, 1.0, 0.0, -1.0]])
    ids: Any = torch.zeros(1, 1, dtype=torch.long)
    counts: Counter[int] = Counter()
    draws = 4000
    for seed in range(draws):
        chain = logits_processors(["a"], "none", Sampling(0.5, 3, seed))
        counts[int(chain(ids, logits).argmax())] += 1
    weights = [math.exp(x / 0.5) for x in (2.0, 1.0, 0.0)]
    assert counts[3] == 0
    for token, weight in enumerate(weights):
        expected = weight / sum(weights)
        error = 4 * math.sqrt(expected * (1 - expected) / draws)
        assert counts[token] / draws == pytest.approx(expected, abs=error)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_logits_that_are_not_finite_are_an_error_that_names_sample_and_precision(
    tiny: Path, value: float
) -> None:
    model: Any = load(tiny, "bnb-nf4")
    model._model.lm_head.weight.data[3] = value
    with pytest.raises(ModelOutputError, match="task:a/1 at bnb-nf4.*NaN or infinite"):
        list(model.generate([Generate("task:a/1", PROMPTS[0], 4)]))
    with pytest.raises(ModelOutputError, match="task:a/1 at bnb-nf4.*NaN or infinite"):
        list(model.score([Score("task:a/1", PROMPTS[0])]))


def test_the_finite_check_names_the_row_that_is_broken() -> None:
    ids: Any = torch.zeros(3, 1)
    scores: Any = torch.zeros(3, 4)
    scores[1, 2] = math.nan
    with pytest.raises(ModelOutputError, match="second at int4"):
        logits_processors(["first", "second", "third"], "int4", None)(ids, scores)


def test_a_prompt_beyond_the_context_is_an_error_naming_both_lengths(
    make_checkpoint: MakeCheckpoint,
) -> None:
    model = load(make_checkpoint("short", max_position_embeddings=32))
    with pytest.raises(ModelOutputError, match=r"t: \d+ tokens and 8 new ones .* context of 32"):
        list(model.generate([Generate("t", CORPUS[0], 8)]))
    with pytest.raises(ModelOutputError, match="context of 32"):
        list(model.score([Score("t", CORPUS[0])]))


def test_a_text_of_one_token_cannot_be_scored(tiny: Path) -> None:
    with pytest.raises(ModelOutputError, match="t: a text of 1 tokens"):
        list(load(tiny).score([Score("t", "")]))


def test_truncate_counts_special_tokens(tiny: Path) -> None:
    model: Any = load(tiny)
    text = CORPUS[3]
    ids = model._encode(text)
    assert ids[0] == 0, "the tokenizer adds its begin token"
    assert model._encode(model.truncate(text, 9)) == ids[:9]
    assert model.truncate(text, len(ids)) == text


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
    whole = HFModel._score_batch
    sizes = []

    def small_only(self: HFModel, batch: Sequence[Any]) -> list[Any]:
        sizes.append(len(batch))
        if len(batch) > 3:
            raise error
        return whole(self, batch)

    monkeypatch.setattr(HFModel, "_score_batch", small_only)
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
    whole = HFModel._score_batch

    def count(self: HFModel, batch: Sequence[Any]) -> list[Any]:
        sizes.append(len(batch))
        return whole(self, batch)

    monkeypatch.setattr(HFModel, "_score_batch", count)
    by_length = sorted(PROMPTS, key=len, reverse=True)
    assert len([*load(tiny, batch=4).score([Score(p, p) for p in PROMPTS], by_length[:9])]) == 3
    assert sizes == [4], "the two batches before it held only what was done"


@pytest.mark.parametrize(("batch", "hint"), [(4, "--batch-size auto"), (1, "smaller model")])
def test_a_batch_that_was_asked_for_and_does_not_fit_is_an_error(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, batch: int, hint: str
) -> None:
    def fail(self: HFModel, batch: Sequence[Any]) -> list[Any]:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(HFModel, "_score_batch", fail)
    with pytest.raises(ModelOutputError, match=hint):
        list(load(tiny, batch=batch).score([Score(p, p) for p in PROMPTS]))


def test_other_runtime_errors_are_not_taken_for_a_lack_of_memory(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: HFModel, batch: Sequence[Any]) -> list[Any]:
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(HFModel, "_score_batch", fail)
    with pytest.raises(RuntimeError, match="shapes"):
        list(load(tiny).score([Score("a", PROMPTS[0])]))


def test_statistics_do_not_depend_on_the_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, targets = torch.randn(23, 11), torch.arange(23) % 11
    whole = np.stack(token_statistics(logits, targets, "x"))
    monkeypatch.setattr("unlearnbench.models.decoding._CHUNK_BYTES", 4 * 11 * 4)
    np.testing.assert_allclose(np.stack(token_statistics(logits, targets, "x")), whole, atol=1e-6)


@pytest.mark.parametrize(
    ("asked", "precision", "own", "device", "expected"),
    [
        ("auto", "none", "bf16", "cpu", "bf16"),
        ("auto", "none", "fp16", "cpu", "fp32"),
        ("auto", "none", "fp16", "cuda:0", "fp16"),
        ("auto", "bnb-fp4", "fp16", "cpu", "fp32"),
        ("auto", "bnb-fp4", "fp32", "cpu", "fp32"),
        ("auto", "fp16", "fp32", "cpu", "fp16"),
        ("bf16", "fp32", "fp32", "cpu", "bf16"),
    ],
)
def test_compute_dtype(asked: str, precision: str, own: str, device: str, expected: str) -> None:
    assert pick_dtype(asked, find_precision(precision), own, device) == expected


def test_unknown_device() -> None:
    with pytest.raises(OptionError, match="device 'nowhere'"):
        pick_device("nowhere")
    assert pick_device("cpu") == "cpu"


def test_a_checkpoint_without_end_token_runs_to_the_limit(make_checkpoint: MakeCheckpoint) -> None:
    path = make_checkpoint("endless")
    answer = next(iter(load(path).generate([Generate("a", PROMPTS[3], 6)])))
    assert answer.n_tokens <= 6


def test_an_ordinary_word_as_end_token_is_refused(make_checkpoint: MakeCheckpoint) -> None:
    import json

    path = make_checkpoint("ends-early")
    config = path / "generation_config.json"
    content = json.loads(config.read_text(encoding="utf-8"))
    config.write_text(json.dumps(content | {"eos_token_id": [1, 40]}), encoding="utf-8")
    with pytest.raises(CheckpointError, match="token 40, an ordinary word"):
        load(path)


def test_gguf_files_need_a_transformers_that_reads_them(monkeypatch: pytest.MonkeyPatch) -> None:
    from unlearnbench.checkpoints.load import require_gguf_support

    monkeypatch.setattr("transformers.__version__", "5.23.0")
    require_gguf_support()
    monkeypatch.setattr("transformers.__version__", "5.20.2")
    with pytest.raises(CheckpointError, match="reads GGUF files wrongly"):
        require_gguf_support()


def edit_tokenizer(path: Path, **changes: Any) -> None:
    import json

    config = path / "tokenizer_config.json"
    content = json.loads(config.read_text(encoding="utf-8")) | changes
    config.write_text(json.dumps(content), encoding="utf-8")


def test_an_ordinary_word_as_special_token_is_refused(make_checkpoint: MakeCheckpoint) -> None:
    path = make_checkpoint("word")
    edit_tokenizer(path, eos_token="k")
    with pytest.raises(CheckpointError, match="'k', an ordinary word"):
        load(path)


def test_a_tokenizer_that_ends_prompts_is_an_error(make_checkpoint: MakeCheckpoint) -> None:
    import json

    path = make_checkpoint("ends-prompts")
    tokenizer = json.loads((path / "tokenizer.json").read_text(encoding="utf-8"))
    end = {"SpecialToken": {"id": "</s>", "type_id": 0}}
    tokenizer["post_processor"]["single"].append(end)
    tokenizer["post_processor"]["special_tokens"]["</s>"] = {
        "id": "</s>",
        "ids": [1],
        "tokens": ["</s>"],
    }
    (path / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    with pytest.raises(ModelOutputError, match="t: the tokenizer ends prompts"):
        list(load(path).generate([Generate("t", PROMPTS[4], 4)]))


def test_the_token_count_does_not_depend_on_the_batch(tiny: Path) -> None:
    free = {a.id: a.text for a in load(tiny).generate([Generate(p, p, 16) for p in PROMPTS])}
    stop = (free[PROMPTS[2]][3:5],)
    requests = [Generate(p, p, 16, stop) for p in PROMPTS]
    one, many = (
        {a.id: (a.text, a.n_tokens) for a in load(tiny, batch=n).generate(requests)} for n in (1, 8)
    )
    assert one == many
    assert one[PROMPTS[2]][1] < 16


def test_weights_are_loaded_as_they_are_stored(make_checkpoint: MakeCheckpoint) -> None:
    import json

    path = make_checkpoint("says-bf16")
    config = path / "config.json"
    content = json.loads(config.read_text(encoding="utf-8")) | {"dtype": "bfloat16"}
    config.write_text(json.dumps(content), encoding="utf-8")
    source = open_source(str(path), LoadOptions())
    assert source.own_dtype == "fp32"
    assert source.model().dtype == torch.float32
    weight = source.state_dict()["lm_head.weight"]
    assert not torch.equal(weight, weight.bfloat16().float())


@pytest.mark.parametrize("name", ["meta", "mps"])
def test_only_cpu_and_cuda(name: str) -> None:
    with pytest.raises(OptionError, match="only cpu, cuda and auto"):
        pick_device(name)


def test_a_revision_of_a_local_path_is_an_error(tiny: Path) -> None:
    with pytest.raises(OptionError, match="--revision"):
        open_source(str(tiny), LoadOptions(revision="main"))


def test_auto_spreads_over_several_gpus_only(monkeypatch: pytest.MonkeyPatch) -> None:
    assert pick_device("auto") == pick_device(None)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert pick_device("auto") == "auto"
    with pytest.raises(PrecisionError, match="hqq-int4.* is made on one device"):
        require_available(find_precision("hqq-int4-g64"), "auto")


@pytest.mark.parametrize("precision", ["none", "rtn-int4", "bnb-nf4", "gguf-q4_0"])
def test_a_spread_model_answers_as_one_on_one_device(
    tiny: Path, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Accelerate's hooks on every layer, as where a model is spread; the devices are all CPU."""
    from accelerate import dispatch_model

    texts = [Score(p, p) for p in PROMPTS]
    prompts = [Generate(p, p, 8) for p in PROMPTS]
    spec = find_precision(precision)
    source = open_source(str(tiny), LoadOptions())
    spread = load_model(source, spec, make_how(spec, "fp32", "auto", "dequantized", None))
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
