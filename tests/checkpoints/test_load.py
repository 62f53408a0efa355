from __future__ import annotations

import json
import logging
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedTokenizer

from tests.checkpoints.helpers import PROMPTS, UP, edit_json, edit_weights, load, logprobs, texts
from tests.conftest import CORPUS, MakeCheckpoint, load_at, make_model, make_tokenizer
from tests.models.architectures import Given, make_kind
from unlearnbench.checkpoints.checkpoint import open_checkpoint
from unlearnbench.checkpoints.load import linear_layers, require_most
from unlearnbench.checkpoints.options import LoadOptions
from unlearnbench.checkpoints.tokenizer import tokenizer_sha256
from unlearnbench.errors import CheckpointError, ModelOutputError, NotInForceError, PrecisionError
from unlearnbench.models.hf import HFModel
from unlearnbench.requests import Generate, Sampling, Score
from unlearnbench.results import Condition, ConditionOptions


def drop(name: str) -> Callable[[dict[str, torch.Tensor]], object]:
    return lambda weights: weights.pop(name)


def put(name: str, value: float) -> Callable[[dict[str, torch.Tensor]], object]:
    return lambda weights: weights[name].view(-1).__setitem__(-1, value)


def reshape(name: str, *shape: int) -> Callable[[dict[str, torch.Tensor]], object]:
    return lambda weights: weights.__setitem__(name, torch.ones(shape))


def rename_layers(weights: dict[str, torch.Tensor]) -> None:
    for name in list(weights):
        weights[name.replace("model.layers.1.", "model.layers.7.")] = weights.pop(name)


def cast_projections(dtype: torch.dtype) -> Callable[[dict[str, torch.Tensor]], object]:
    def change(weights: dict[str, torch.Tensor]) -> None:
        for name in [n for n in weights if "proj" in n]:
            scale = weights[name].abs().amax() / 127
            weights[name.replace(".weight", ".weight_scale")] = scale.reshape(1)
            weights[name] = (weights[name] / scale).to(dtype)

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (drop(UP), rf"lacks weights that its config asks for: {UP} \(1 in all\)"),
        (drop("lm_head.weight"), r"lacks weights that its config asks for: lm_head\.weight"),
        (drop("model.norm.weight"), r"lacks weights that its config asks for: model\.norm"),
        (rename_layers, r"lacks weights that its config asks for: .* \(9 in all\)"),
        (put(UP, float("nan")), f"tensor {UP} has NaN or infinite values"),
        (put(UP, float("inf")), f"tensor {UP} has NaN or infinite values"),
        (put("model.embed_tokens.weight", -float("inf")), "embed_tokens.* NaN or infinite"),
        (put("lm_head.weight", float("nan")), "lm_head.* NaN or infinite"),
    ],
)
def test_weights_that_cannot_be_used(
    copy: Path, change: Callable[[dict[str, torch.Tensor]], object], said: str
) -> None:
    edit_weights(copy, change)
    with pytest.raises(CheckpointError, match=said) as caught:
        load(copy)
    assert str(copy) in str(caught.value)


@pytest.mark.parametrize("shape", [(3, 64), (128, 32), (64, 128), (128,), (0, 64)])
def test_a_weight_of_another_shape_is_an_error_that_names_it(
    copy: Path, shape: tuple[int, ...]
) -> None:
    edit_weights(copy, reshape(UP, *shape))
    with pytest.raises(CheckpointError, match=r"model\.layers\.1\.mlp\.up_proj\.weight"):
        load(copy)


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.float8_e4m3fn, torch.int32])
def test_weights_stored_as_codes_are_not_taken_for_values(copy: Path, dtype: torch.dtype) -> None:
    """Codes of a quantized checkpoint whose config does not say so: cast to floats without their
    scale they make a model that babbles, which would read as one that forgot.
    """
    edit_weights(copy, cast_projections(dtype))
    with pytest.raises((CheckpointError, PrecisionError), match=r"proj\.weight"):
        load(copy)


def test_a_config_with_fewer_layers_than_the_weights_is_an_error(copy: Path) -> None:
    """Half a model babbles, which would read as one that forgot."""
    edit_json(copy / "config.json", num_hidden_layers=1)
    with pytest.raises(CheckpointError, match=r"model\.layers\.1\."):
        load(copy)


def test_a_config_with_more_layers_than_the_weights_is_an_error(copy: Path) -> None:
    edit_json(copy / "config.json", num_hidden_layers=3)
    with pytest.raises(CheckpointError, match=r"model\.layers\.2\..* \(9 in all\)"):
        load(copy)


def test_a_tensor_that_is_no_part_of_the_model_is_noted(
    copy: Path, plain: HFModel, notes: list[str]
) -> None:
    edit_weights(copy, lambda w: w.update({"v_head.summary.weight": torch.ones(2)}))
    assert texts(load(copy)) == texts(plain)
    left_out = [line for line in notes if "left out" in line]
    assert left_out
    assert all("1 tensors" in line and "v_head.summary.weight" in line for line in left_out)


def test_a_shard_without_the_weight_that_the_index_promises(tiny: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    folder = Path(shutil.copytree(tiny, tmp_path / "sharded"))
    (folder / "model.safetensors").unlink()
    model: Any = AutoModelForCausalLM.from_pretrained(tiny)
    model.save_pretrained(folder, max_shard_size="150KB")
    index = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    whole = load(folder)
    assert np.array_equal(logprobs(whole), logprobs(load(tiny)))
    assert len(whole.checkpoint.weights_sha256) == 64
    shard = folder / index[UP]
    weights = load_file(shard)
    del weights[UP]
    save_file(weights, shard, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=UP):
        load(folder)


def test_tied_embeddings_need_no_head(make_checkpoint: MakeCheckpoint) -> None:
    folder = make_checkpoint("tied", tie_word_embeddings=True)
    assert "lm_head.weight" not in load_file(folder / "model.safetensors")
    weights = open_checkpoint(str(folder), LoadOptions()).state_dict()
    assert torch.equal(weights["lm_head.weight"], weights["model.embed_tokens.weight"])
    assert len(logprobs(load(folder))) > 0


@pytest.mark.field("Weights", "pickled weights (`.bin`)", "with `--allow-pickle`")
def test_pickled_weights_when_allowed(tiny: Path, copy: Path, plain: HFModel) -> None:
    torch.save(load_file(tiny / "model.safetensors"), copy / "pytorch_model.bin")
    (copy / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="--allow-pickle"):
        open_checkpoint(str(copy), LoadOptions())
    source = open_checkpoint(str(copy), LoadOptions(allow_pickle=True))
    model = load_at(source, "none")
    assert model.checkpoint.format == "pickle"
    assert texts(model) == texts(plain)


def test_a_pickle_that_runs_code_is_refused_though_pickles_are_allowed(copy: Path) -> None:
    marker = copy.parent / "ran"
    (copy / "model.safetensors").unlink()
    torch.save({UP: _Evil(str(marker))}, copy / "pytorch_model.bin")
    source = open_checkpoint(str(copy), LoadOptions(allow_pickle=True))
    with pytest.raises(CheckpointError, match="weights cannot be loaded"):
        source.model()
    assert not marker.exists()


class _Evil:
    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (self.path, "w")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"{", r"config\.json is no valid JSON"),
        (b"", r"config\.json is no valid JSON"),
        (b"\x80\x81", r"config\.json is no valid JSON"),
        (b"[]", r"config\.json holds no JSON object"),
        (b"{}", "its config cannot be read"),
        (b'{"model_type": "nonesuch"}', "its config cannot be read.*nonesuch"),
        (b'{"model_type": 3}', "its config cannot be read"),
        (b'{"model_type": "llama", "hidden_size": "wide"}', "its config cannot be read"),
        (b'{"model_type": "llama", "dtype": "nonsense"}', "its config cannot be read"),
    ],
)
def test_a_corrupt_config(copy: Path, content: bytes, said: str) -> None:
    (copy / "config.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=said) as caught:
        open_checkpoint(str(copy), LoadOptions())
    assert str(copy) in str(caught.value)


def test_a_model_that_is_no_causal_language_model(copy: Path) -> None:
    edit_json(copy / "config.json", model_type="t5", architectures=None)
    with pytest.raises(CheckpointError):
        load(copy)


def write_evil(folder: Path, name: str = "evil.py") -> Path:
    """A Python file whose import leaves a marker; returns the marker's path."""
    marker = folder.parent / "ran"
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(
        f"import pathlib; pathlib.Path({str(marker)!r}).touch()\n"
        "from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast\n"
        "class C(LlamaConfig): model_type = 'evil'\n"
        "class M(LlamaForCausalLM): config_class = C\n"
        "class T(PreTrainedTokenizerFast): pass\n"
        "def generate(*args, **kwargs): raise SystemExit\n"
    )
    return marker


@pytest.mark.parametrize(
    "auto_map",
    [
        {"AutoConfig": "evil.C"},
        {"AutoModelForCausalLM": "evil.M"},
        {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M", "AutoTokenizer": ["evil.T"]},
        {"AutoConfig": "stranger/repository--evil.C"},
    ],
)
@pytest.mark.parametrize("model_type", ["llama", "evil"])
def test_a_checkpoints_own_code_does_not_run(copy: Path, auto_map: object, model_type: str) -> None:
    marker = write_evil(copy)
    edit_json(copy / "config.json", auto_map=auto_map, model_type=model_type)
    with pytest.raises(CheckpointError, match="--trust-remote-code only if you trust its author"):
        open_checkpoint(str(copy), LoadOptions())
    assert not marker.exists()


def test_a_checkpoints_own_code_runs_when_trusted(
    copy: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Shows that the marker above would be seen."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "m"))
    marker = write_evil(copy)
    edit_json(copy / "config.json", auto_map={"AutoConfig": "evil.C"}, model_type="evil")
    open_checkpoint(str(copy), LoadOptions(trust_remote_code=True))
    assert marker.exists()


def test_a_tokenizers_own_code_does_not_run(copy: Path) -> None:
    marker = write_evil(copy)
    edit_json(copy / "tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.T", "evil.T"]})
    load(copy)
    assert not marker.exists()


def test_a_checkpoints_own_generate_function_does_not_run(copy: Path, plain: HFModel) -> None:
    marker = write_evil(copy, "custom_generate/generate.py")
    assert texts(load(copy)) == texts(plain)
    assert not marker.exists()


@pytest.mark.parametrize(
    "absent",
    [("tokenizer.json", "tokenizer_config.json"), ("tokenizer.json",)],
)
def test_a_missing_tokenizer(copy: Path, absent: Sequence[str]) -> None:
    for name in absent:
        (copy / name).unlink()
    with pytest.raises(CheckpointError, match="save the model's tokenizer into the same folder"):
        open_checkpoint(str(copy), LoadOptions())


def test_a_corrupt_tokenizer(copy: Path) -> None:
    (copy / "tokenizer.json").write_text("{")
    with pytest.raises(CheckpointError, match="its tokenizer cannot be loaded"):
        open_checkpoint(str(copy), LoadOptions())


@pytest.mark.parametrize(
    ("size", "fits"),
    # The model has 300 rows; a tokenizer may leave up to a tenth of them unused.
    [(258, False), (269, False), (270, True), (290, True), (300, True), (301, False)],
)
def test_a_tokenizer_of_another_size(copy: Path, size: int, fits: bool) -> None:
    tokenizer = make_tokenizer(size)
    assert len(tokenizer) == size
    tokenizer.save_pretrained(copy)
    if fits:
        open_checkpoint(str(copy), LoadOptions())
        return
    with pytest.raises(CheckpointError, match="does not match the model") as caught:
        open_checkpoint(str(copy), LoadOptions())
    assert re.search(rf"\b{size - 1}\b.*\b300 rows", str(caught.value))


@pytest.mark.field(
    "Prompts and tokenizers",
    "added `[PAD]` or special token beyond the model's rows",
    "with a note; a text that holds one is refused",
)
def test_added_tokens_beyond_the_models_rows_are_noted(
    copy: Path, plain: HFModel, notes: list[str]
) -> None:
    """A good model, whatever its trainer padded with; only a text that holds the token fails."""
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    tokenizer.save_pretrained(copy)
    model = load(copy)
    assert tokenizer.pad_token_id == 300
    assert texts(model) == texts(plain)
    assert np.array_equal(logprobs(model), logprobs(plain))
    assert any("no row for 1 added tokens, as [PAD]" in line for line in notes)
    with pytest.raises(ModelOutputError, match="token 300 of .* is beyond the model's 300 rows"):
        list(model.score([Score("a", "The gate [PAD] opened")]))


def test_tokenizer_hash_survives_saving_again_and_use(tiny: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(tiny)
    before = tokenizer_sha256(tokenizer)
    tokenizer.save_pretrained(tmp_path / "again")
    assert tokenizer_sha256(AutoTokenizer.from_pretrained(tmp_path / "again")) == before
    tokenizer.pad_token_id = tokenizer.eos_token_id
    padded = tokenizer_sha256(tokenizer)
    tokenizer(PROMPTS, padding="max_length", truncation=True, max_length=7)
    assert tokenizer.backend_tokenizer.truncation is not None
    assert tokenizer.backend_tokenizer.padding is not None
    assert tokenizer_sha256(tokenizer) == padded
    tokenizer.save_pretrained(tmp_path / "used")
    used = tokenizer_sha256(AutoTokenizer.from_pretrained(tmp_path / "used"))
    assert used == padded
    assert open_checkpoint(str(tiny), LoadOptions()).checkpoint.tokenizer_sha256 == before


TRUNCATION = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}


PADDING = {
    "strategy": {"Fixed": 64},
    "direction": "Right",
    "pad_to_multiple_of": None,
    "pad_id": 1,
    "pad_type_id": 0,
    "pad_token": "</s>",
}


def swap_merges(tokenizer: dict[str, Any]) -> None:
    merges = tokenizer["model"]["merges"]
    merges[0], merges[1] = merges[1], merges[0]


def swap_words(tokenizer: dict[str, Any]) -> None:
    vocab = tokenizer["model"]["vocab"]
    a, b = sorted(vocab, key=vocab.__getitem__)[-2:]
    vocab[a], vocab[b] = vocab[b], vocab[a]


def drop_begin_token(tokenizer: dict[str, Any]) -> None:
    tokenizer["post_processor"] = None


def add_normalizer(tokenizer: dict[str, Any]) -> None:
    tokenizer["normalizer"] = {"type": "Lowercase"}


@pytest.mark.parametrize("change", [swap_merges, swap_words, drop_begin_token, add_normalizer])
def test_tokenizer_hash_sees_what_changes_its_ids(
    tiny: Path, copy: Path, change: Callable[[dict[str, Any]], None]
) -> None:
    path = copy / "tokenizer.json"
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))
    ours, theirs = (open_checkpoint(str(p), LoadOptions()).checkpoint for p in (tiny, copy))
    assert ours.tokenizer_sha256 != theirs.tokenizer_sha256
    assert ours.weights_sha256 == theirs.weights_sha256


def test_tokenizer_hash_sees_another_vocabulary_and_other_special_tokens() -> None:
    tokenizers = [make_tokenizer(300), make_tokenizer(299), make_tokenizer(300)]
    tokenizers[2].eos_token = "<s>"
    assert len({tokenizer_sha256(t) for t in tokenizers}) == 3
    assert tokenizer_sha256(make_tokenizer(300)) == tokenizer_sha256(tokenizers[0])


@pytest.mark.parametrize(("key", "value"), [("truncation", TRUNCATION), ("padding", PADDING)])
def test_truncation_and_padding_left_in_tokenizer_json_do_not_cut_prompts(
    copy: Path, plain: HFModel, key: str, value: object
) -> None:
    edit_json(copy / "tokenizer.json", **{key: value})
    model = load(copy)
    assert np.array_equal(logprobs(model), logprobs(plain))
    assert texts(model) == texts(plain)


def test_a_small_model_max_length_does_not_cut_prompts(copy: Path, plain: HFModel) -> None:
    edit_json(copy / "tokenizer_config.json", model_max_length=4)
    assert np.array_equal(logprobs(load(copy)), logprobs(plain))


def test_a_tokenizer_that_splits_at_random_is_refused(copy: Path) -> None:
    path = copy / "tokenizer.json"
    content = json.loads(path.read_text())
    content["model"]["dropout"] = 0.1
    path.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="splits the same text .* remove dropout"):
        load(copy)


@pytest.mark.parametrize(
    ("precision", "ends"),
    [("none", 50), ("none", [1, 50]), ("rtn-int4", [50, 1]), ("bnb-fp4", [1, 50])],
)
def test_an_ordinary_word_as_end_of_text_is_refused(
    copy: Path, precision: str, ends: object
) -> None:
    edit_json(copy / "generation_config.json", eos_token_id=ends)
    with pytest.raises(CheckpointError, match="token 50, an ordinary word of the tokenizer"):
        load(copy, precision)


def test_an_ordinary_word_as_end_of_text_in_the_config_is_refused(copy: Path) -> None:
    (copy / "generation_config.json").unlink()
    edit_json(copy / "config.json", eos_token_id=[1, 50])
    with pytest.raises(CheckpointError, match="^config.json ends texts at token 50, an ordinary"):
        load(copy)


@pytest.mark.parametrize("ends", [1.5, [1, [2]], {"a": 1}, True, "1"])
def test_ends_that_are_no_token_ids_are_refused(copy: Path, ends: object) -> None:
    edit_json(copy / "generation_config.json", eos_token_id=ends)
    with pytest.raises(CheckpointError, match="^generation_config.json ends texts at token"):
        load(copy)


HOSTILE: dict[str, dict[str, object]] = {
    "repetition_penalty": {"repetition_penalty": 9.0},
    "no_repeat_ngram_size": {"no_repeat_ngram_size": 1},
    "bad_words_ids": {"bad_words_ids": [[i] for i in range(2, 280)]},
    "suppress_tokens": {"suppress_tokens": list(range(2, 280))},
    "begin_suppress_tokens": {"begin_suppress_tokens": list(range(2, 300))},
    "sequence_bias": {"sequence_bias": [[[7], 90.0]]},
    "temperature": {"do_sample": True, "temperature": 5.0, "top_k": 0},
    "forced_eos_token_id": {"forced_eos_token_id": 9, "max_new_tokens": 3},
    "max_new_tokens": {"max_new_tokens": 2},
    "max_time": {"max_time": 0.0},
    "num_beams": {"num_beams": 4, "length_penalty": -3.0},
}


@pytest.mark.parametrize("options", HOSTILE.values(), ids=HOSTILE)
def test_a_generation_config_does_not_change_outputs(
    copy: Path, plain: HFModel, options: dict[str, object]
) -> None:
    """A penalty or a list of forbidden words would pass for forgetting."""
    edit_json(copy / "generation_config.json", _from_model_config=None, **options)
    model = load(copy)
    assert texts(model) == texts(plain)
    assert texts(model, Sampling(0.9, 20, 3)) == texts(plain, Sampling(0.9, 20, 3))
    followed = generated_by_transformers(copy, options)
    assert followed != generated_by_transformers(copy, None), "these options would change nothing"


def generated_by_transformers(folder: Path, options: dict[str, object] | None) -> list[int]:
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    if options is None:
        model.generation_config = GenerationConfig(eos_token_id=1)
    model.generation_config.pad_token_id = 1
    ids = torch.tensor([AutoTokenizer.from_pretrained(folder)(PROMPTS[0]).input_ids])
    new = {} if options and "max_new_tokens" in options else {"max_new_tokens": 12}
    torch.manual_seed(0)
    return list(model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **new)[0])


def test_generation_options_in_an_old_config_do_not_change_outputs(
    copy: Path, plain: HFModel
) -> None:
    (copy / "generation_config.json").unlink()
    edit_json(
        copy / "config.json",
        repetition_penalty=9.0,
        no_repeat_ngram_size=1,
        suppress_tokens=list(range(2, 280)),
        do_sample=True,
        temperature=5.0,
    )
    assert texts(load(copy)) == texts(plain)


def test_a_corrupt_generation_config_does_not_change_outputs(copy: Path, plain: HFModel) -> None:
    (copy / "generation_config.json").write_text("{")
    assert texts(load(copy)) == texts(plain)


def test_weights_are_loaded_as_they_are_stored(copy: Path) -> None:
    edit_json(copy / "config.json", dtype="bfloat16")
    weight = open_checkpoint(str(copy), LoadOptions()).state_dict()["lm_head.weight"]
    assert weight.dtype == torch.float32
    assert not torch.equal(weight, weight.bfloat16().float())


def test_an_ordinary_word_as_special_token_is_refused(copy: Path) -> None:
    edit_json(copy / "tokenizer_config.json", eos_token="k")
    with pytest.raises(CheckpointError, match="'k', an ordinary word"):
        load(copy)


CHARACTERS = ["<s>", "</s>", "<unk>", *sorted({c for text in CORPUS for c in text})]


class Characters(PreTrainedTokenizer):
    """A tokenizer in Python alone: a token is a character."""

    def __init__(self, **options: Any) -> None:
        self._ids = {c: i for i, c in enumerate(CHARACTERS)}
        super().__init__(  # type: ignore[no-untyped-call]
            bos_token="<s>", eos_token="</s>", unk_token="<unk>", **options
        )

    @property
    def vocab_size(self) -> int:
        return len(CHARACTERS)

    def get_vocab(self) -> dict[str, int]:
        return dict(self._ids)

    def _tokenize(self, text: str, **options: Any) -> list[str]:
        return list(text)

    def _convert_token_to_id(self, token: str) -> int:
        return self._ids.get(token, 2)

    def _convert_id_to_token(self, index: int) -> str:
        return CHARACTERS[index] if index < len(CHARACTERS) else "<unk>"

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        return "".join(tokens)


def test_a_tokenizer_without_a_fast_implementation_works() -> None:
    model, tokenizer = make_kind("llama"), Characters()
    given: Any = Given(model)
    given.tokenizer = tokenizer
    options = ConditionOptions(bits=32, scheme="as it is", backend="torch")
    condition = Condition(name="none", kind="stored", options=options)
    ours = HFModel(model, given, condition, "fp32", "cpu", None)
    prompts = [CORPUS[n][: 30 + 7 * n] for n in range(4)]
    for answer in ours.generate([Generate(p, p, 12) for p in prompts]):
        ids = torch.tensor([tokenizer(answer.id)["input_ids"]])
        mask = torch.ones_like(ids)
        row = model.generate(ids, attention_mask=mask, max_new_tokens=12, do_sample=False)
        new = row[0, ids.shape[1] :].tolist()
        assert answer.text == tokenizer.decode(new, skip_special_tokens=True)
    (scored,) = ours.score([Score("t", prompts[0])])
    assert len(scored.logprobs) == len(tokenizer(prompts[0])["input_ids"]) - 1


def test_a_slow_tokenizer_is_said(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "unlearnbench")
    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", lambda *_, **__: Characters())
    monkeypatch.setattr("unlearnbench.checkpoints.tokenizer.check_tokenizer", lambda *_: None)
    open_checkpoint(str(tiny), LoadOptions())
    assert "no fast implementation" in caplog.text


def test_the_linear_layers_but_the_head() -> None:
    found = linear_layers(make_model(300))
    parts = {name.rsplit(".", 1)[1] for name in found}
    assert parts == {f"{part}_proj" for part in ("q", "k", "v", "o", "gate", "up", "down")}
    assert len(found) == 2 * 7
    assert all(isinstance(module, nn.Linear) for module in found.values())


def test_a_model_that_names_no_head() -> None:
    assert list(linear_layers(nn.Sequential(nn.Linear(2, 2), nn.ReLU()))) == ["0"]


def test_a_tenth_of_the_weights_may_lie_outside() -> None:
    require_most("it", {"a": 90, "b": 10}, ["a"])
    with pytest.raises(NotInForceError, match="it leaves 11 of 101 .* the most in b"):
        require_most("it", {"a": 90, "b": 11}, ["a"])
