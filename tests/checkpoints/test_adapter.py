from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.conftest import CORPUS, MakeCheckpoint, load_at, make_tokenizer
from unlearnbench.checkpoints.checkpoint import open_checkpoint
from unlearnbench.checkpoints.find import files_sha256
from unlearnbench.checkpoints.options import LoadOptions
from unlearnbench.errors import CheckpointError, ModelOutputError, OptionError
from unlearnbench.models.hf import HFModel
from unlearnbench.requests import Generate, Score
from unlearnbench.util.files import content_sha256

TEXTS = [CORPUS[n][:90] for n in range(3)]
ALL = ["none", "fp32", "bf16", "fp16", "bnb-int8", "bnb-fp4", "bnb-nf4", "rtn-int8", "rtn-int4"]


# PEFT uses a deprecated method of transformers; unlearnbench keeps that off the screen itself.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated")


def make_adapter(base: Path, folder: Path, **config: Any) -> Path:
    """Save a LoRA adapter whose second factor is not zero, so that it changes the model."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(base)
    settings: dict[str, Any] = {
        "r": 4,
        "lora_alpha": 8,
        "target_modules": ["q_proj", "v_proj", "down_proj"],
    }
    torch.manual_seed(7)
    adapted = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **(settings | config)))
    for name, weight in adapted.named_parameters():
        if "lora_B" in name or "lora_embedding_A" in name:
            torch.nn.init.normal_(weight, std=0.3)
    adapted.save_pretrained(str(folder))
    return folder


@pytest.fixture(scope="module")
def adapter(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter of the tiny checkpoint. Not to be changed."""
    return make_adapter(tiny, tmp_path_factory.mktemp("adapter") / "lora")


@pytest.fixture
def copy(adapter: Path, tmp_path: Path) -> Path:
    """A copy of the adapter that may be changed."""
    return Path(shutil.copytree(adapter, tmp_path / "copy"))


def load(path: Path, precision: str = "none", dtype: str = "fp32", **options: Any) -> HFModel:
    source = open_checkpoint(str(path), LoadOptions(**options))
    return load_at(source, precision, dtype)


def logprobs(model: HFModel) -> list[np.ndarray[Any, Any]]:
    found = {s.id: s.logprobs for s in model.score([Score(t, t) for t in TEXTS])}
    return [found[t] for t in TEXTS]


def close(a: HFModel, b: HFModel, tolerance: float) -> bool:
    pairs = zip(logprobs(a), logprobs(b), strict=True)
    return all(bool(np.allclose(x, y, rtol=0, atol=tolerance)) for x, y in pairs)


def texts(model: HFModel) -> dict[str, str]:
    return {a.id: a.text for a in model.generate([Generate(t, t[:30], 12) for t in TEXTS])}


def edit_config(folder: Path, **changes: object) -> None:
    path = folder / "adapter_config.json"
    value = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in value.items() if v is not None}))


def edit_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    path = folder / "adapter_model.safetensors"
    weights = load_file(path)
    change(weights)
    save_file(weights, path, metadata={"format": "pt"})


def peft_logprobs(base: Path, adapter: Path) -> list[np.ndarray[Any, Any]]:
    """The adapted model's log-probabilities through PEFT and transformers alone."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model: Any = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter)
    model.float()  # after the start has taken its part out of the stored weights
    tokenizer: Any = AutoTokenizer.from_pretrained(base)
    found = []
    for text in TEXTS:
        ids = torch.tensor([tokenizer(text).input_ids])
        with torch.no_grad():
            logits = model(input_ids=ids).logits[0, :-1].double()
        found.append(logits.log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0].numpy())
    return found


@pytest.mark.parametrize("mode", ["merge", "keep"])
def test_an_adapted_model_answers_as_peft_says(tiny: Path, adapter: Path, mode: str) -> None:
    ours = logprobs(load(adapter, base=str(tiny), adapter=mode))
    for found, expected in zip(ours, peft_logprobs(tiny, adapter), strict=True):
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("mode", ["merge", "keep"])
def test_an_adapted_model_is_not_its_base(tiny: Path, adapter: Path, mode: str) -> None:
    adapted, plain = load(adapter, base=str(tiny), adapter=mode), load(tiny)
    assert not close(adapted, plain, 0.5)
    assert texts(adapted) != texts(plain)


def test_kept_equals_merged_in_fp32(tiny: Path, adapter: Path) -> None:
    merged, kept = (load(adapter, base=str(tiny), adapter=mode) for mode in ("merge", "keep"))
    assert close(merged, kept, 1e-4)
    assert texts(merged) == texts(kept)


@pytest.mark.parametrize("precision", ALL)
def test_kept_and_merged_at_each_precision(tiny: Path, adapter: Path, precision: str) -> None:
    """What is quantized differs: the sum of base and adapter, or the base alone."""
    merged, kept = (load(adapter, precision, base=str(tiny), adapter=m) for m in ("merge", "keep"))
    base = load(tiny, precision)
    assert not close(merged, base, 0.5)
    assert not close(kept, base, 0.5)
    assert close(merged, kept, 1e-4) is (precision in ("none", "fp32"))
    assert len(texts(merged)) == len(texts(kept)) == len(TEXTS)
    for model in (merged, kept):
        assert model.condition.name == precision
        assert model.condition.proof is not None


@pytest.mark.parametrize("precision", ["bnb-nf4", "rtn-int4"])
def test_a_kept_adapter_leaves_its_quantized_base_as_it_is(
    tiny: Path, adapter: Path, precision: str
) -> None:
    kept, base = load(adapter, precision, base=str(tiny), adapter="keep"), load(tiny, precision)
    assert kept.condition.proof == base.condition.proof


def test_an_adapter_without_effect_leaves_the_base(tiny: Path, copy: Path) -> None:
    """Shows that what differs above is the adapter's doing."""
    edit_weights(copy, lambda w: [t.zero_() for n, t in w.items() if "lora_B" in n])
    for precision in ("none", "bnb-nf4", "rtn-int4"):
        for mode in ("merge", "keep"):
            model = load(copy, precision, base=str(tiny), adapter=mode)
            assert close(model, load(tiny, precision), 1e-6)


def test_one_source_serves_several_precisions(tiny: Path, adapter: Path) -> None:
    """Merging must not happen twice, and a kept adapter must not stay in the source."""
    for mode in ("merge", "keep"):
        source = open_checkpoint(str(adapter), LoadOptions(base=str(tiny), adapter=mode))
        order = ["none", "bnb-nf4", "none", "rtn-int4", "bnb-nf4"]
        models = [load_at(source, n) for n in order]
        found = [[x.tolist() for x in logprobs(model)] for model in models]
        assert found[0] == found[2]
        assert found[1] == found[4]
        assert len({str(f) for f in found}) == 3
        assert not any("lora" in name for name in source.state_dict())


# Where the base comes from


def test_a_base_must_be_named(adapter: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(str(adapter), LoadOptions())
    assert "--base PATH" in str(caught.value)
    assert "--allow-adapter-base" in str(caught.value)
    assert str(adapter) in str(caught.value)


def test_the_named_base_is_followed_when_allowed(tiny: Path, adapter: Path) -> None:
    named = json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"]
    assert named == str(tiny)
    followed = load(adapter, allow_adapter_base=True)
    assert close(followed, load(adapter, base=str(tiny)), 0)
    assert followed.checkpoint.base is not None
    assert followed.checkpoint.base.path == str(tiny)


def test_the_base_that_is_given_wins_over_the_named_one(
    tiny: Path, adapter: Path, make_checkpoint: MakeCheckpoint
) -> None:
    other = make_checkpoint("other", seed=5)
    model = load(adapter, base=str(other), allow_adapter_base=True)
    assert model.checkpoint.base is not None
    assert model.checkpoint.base.path == str(other)
    assert not close(model, load(adapter, base=str(tiny)), 0.5)


@pytest.mark.parametrize("named", [None, "", 3, ["x"]])
def test_an_adapter_that_names_no_base(copy: Path, named: object) -> None:
    edit_config(copy, base_model_name_or_path=named)
    with pytest.raises(CheckpointError, match="names no base; pass --base PATH"):
        open_checkpoint(str(copy), LoadOptions(allow_adapter_base=True))


def test_a_named_base_is_shown_as_one_clean_line(copy: Path) -> None:
    edit_config(copy, base_model_name_or_path="\x1b]0;title\x07\nsecond")
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(str(copy), LoadOptions())
    assert str(caught.value).isprintable()


def test_a_named_base_is_not_looked_at_without_leave(
    tiny: Path, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PEFT asks the hub for the config of the base that an adapter names."""
    asked: list[object] = []

    def ask(repository: object, *_: object, **__: object) -> bool:
        asked.append(repository)
        return False

    monkeypatch.setattr("peft.utils.save_and_load.check_file_exists_on_hf_hub", ask)
    edit_config(copy, base_model_name_or_path="stranger/base")
    load(copy, base=str(tiny))
    load(copy, base=str(tiny), adapter="keep")
    assert asked == []


def test_a_base_that_is_not_there(adapter: Path) -> None:
    with pytest.raises(CheckpointError, match="no such path: /nope"):
        open_checkpoint(str(adapter), LoadOptions(base="/nope"))


def test_a_base_that_is_an_adapter_itself(adapter: Path, copy: Path) -> None:
    with pytest.raises(CheckpointError, match="is an adapter itself; merge it first") as caught:
        open_checkpoint(str(adapter), LoadOptions(base=str(copy)))
    assert str(copy) in str(caught.value)


def test_an_adapter_that_names_itself(copy: Path) -> None:
    edit_config(copy, base_model_name_or_path=str(copy))
    with pytest.raises(CheckpointError, match="is an adapter itself"):
        open_checkpoint(str(copy), LoadOptions(allow_adapter_base=True))


def test_a_base_for_a_full_checkpoint(tiny: Path) -> None:
    with pytest.raises(OptionError, match="--base is for adapter folders") as caught:
        open_checkpoint(str(tiny), LoadOptions(base=str(tiny)))
    assert str(tiny) in str(caught.value)


# An adapter that does not fit


@pytest.mark.parametrize("mode", ["merge", "keep"])
@pytest.mark.parametrize(
    "config",
    [
        {"hidden_size": 32, "intermediate_size": 64},
        {"num_hidden_layers": 3},
        {"num_hidden_layers": 1},
        {"num_key_value_heads": 4},
    ],
)
def test_a_base_of_another_shape(
    adapter: Path, make_checkpoint: MakeCheckpoint, mode: str, config: dict[str, Any]
) -> None:
    base = make_checkpoint("shaped", **config)
    with pytest.raises(CheckpointError, match="is --base the model that it was trained on") as e:
        load(adapter, base=str(base), adapter=mode)
    assert str(adapter) in str(e.value)


def drop_one(weights: dict[str, torch.Tensor]) -> None:
    del weights[next(n for n in sorted(weights) if "layers.1" in n and "lora_B" in n)]


def drop_layer(weights: dict[str, torch.Tensor]) -> None:
    for name in [n for n in weights if "layers.1" in n]:
        del weights[name]


def rename_all(weights: dict[str, torch.Tensor]) -> None:
    for name in list(weights):
        weights["base_model." + name] = weights.pop(name)


def add_one(weights: dict[str, torch.Tensor]) -> None:
    weights["base_model.model.model.layers.9.self_attn.q_proj.lora_A.weight"] = torch.ones(4, 64)


def reshape_one(weights: dict[str, torch.Tensor]) -> None:
    name = next(n for n in sorted(weights) if "lora_B" in n)
    weights[name] = torch.ones(3, 4)


@pytest.mark.parametrize("mode", ["merge", "keep"])
@pytest.mark.parametrize("change", [drop_one, drop_layer, rename_all, add_one, reshape_one])
def test_an_adapter_whose_weights_do_not_all_arrive(
    tiny: Path, copy: Path, mode: str, change: Callable[[dict[str, torch.Tensor]], None]
) -> None:
    """PEFT leaves them out or at their first values and at most warns."""
    edit_weights(copy, change)
    with pytest.raises(CheckpointError, match="is --base the model that it was trained on") as e:
        load(copy, base=str(tiny), adapter=mode)
    assert str(copy) in str(e.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_adapter_that_is_not_finite(tiny: Path, copy: Path, value: float) -> None:
    edit_weights(copy, lambda w: w[sorted(w)[0]].view(-1).__setitem__(0, value))
    with pytest.raises(CheckpointError, match="NaN or infinite"):
        load(copy, base=str(tiny))
    with pytest.raises((CheckpointError, ModelOutputError), match="NaN or infinite"):
        logprobs(load(copy, base=str(tiny), adapter="keep"))


@pytest.mark.parametrize(
    "changes",
    [
        {"peft_type": "NONESUCH"},
        {"peft_type": None},
        {"r": 0},
        {"target_modules": ["nonesuch"]},
        {"unknown_key_of_a_later_peft": True, "peft_version": "99.0"},
    ],
)
@pytest.mark.parametrize("mode", ["merge", "keep"])
def test_an_adapter_config_that_peft_cannot_use(
    tiny: Path, copy: Path, mode: str, changes: dict[str, object]
) -> None:
    edit_config(copy, **changes)
    with pytest.raises(CheckpointError) as caught:
        load(copy, base=str(tiny), adapter=mode)
    assert str(copy) in str(caught.value)


@pytest.mark.parametrize("mode", ["merge", "keep"])
@pytest.mark.parametrize("value", [False, None, [], {}])
def test_an_option_of_a_later_peft_that_is_off_does_no_harm(
    tiny: Path, adapter: Path, copy: Path, mode: str, value: object
) -> None:
    path = copy / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"use_later_idea": value}))
    ours, theirs = (load(p, base=str(tiny), adapter=mode) for p in (adapter, copy))
    assert close(ours, theirs, 0)


@pytest.mark.parametrize("content", [b"{", b"[]", b""])
def test_a_corrupt_adapter_config(tiny: Path, copy: Path, content: bytes) -> None:
    (copy / "adapter_config.json").write_bytes(content)
    with pytest.raises(CheckpointError):
        load(copy, base=str(tiny))
    with pytest.raises(CheckpointError, match="adapter_config.json"):
        open_checkpoint(str(copy), LoadOptions(allow_adapter_base=True))


def test_a_truncated_adapter(tiny: Path, copy: Path) -> None:
    path = copy / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(CheckpointError, match="truncated or damaged"):
        open_checkpoint(str(copy), LoadOptions(base=str(tiny)))


@pytest.mark.field(
    "Weights",
    "LoRA with DoRA, rsLoRA, modules to save, layers of its choice, trained biases",
    "runs",
)
@pytest.mark.parametrize("mode", ["merge", "keep"])
@pytest.mark.parametrize(
    "config",
    [
        {"use_dora": True},
        {"use_rslora": True, "lora_alpha": 3},
        {"modules_to_save": ["lm_head"]},
        {"layers_to_transform": [1]},
        {"target_modules": "all-linear"},
        {"bias": "lora_only"},
    ],
    ids=str,
)
def test_other_kinds_of_lora(tiny: Path, tmp_path: Path, mode: str, config: dict[str, Any]) -> None:
    folder = make_adapter(tiny, tmp_path / "kind", **config)
    ours = logprobs(load(folder, base=str(tiny), adapter=mode))
    for found, expected in zip(ours, peft_logprobs(tiny, folder), strict=True):
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


@pytest.mark.field("Weights", "adapter on a tied head or embedding", "untied, with a note")
@pytest.mark.filterwarnings("ignore::UserWarning:peft")
@pytest.mark.parametrize("mode", ["merge", "keep"])
@pytest.mark.parametrize(
    ("config", "untied"),
    [
        ({"target_modules": ["lm_head"]}, True),
        ({"target_modules": ["embed_tokens"]}, True),
        ({"target_modules": ["embed_tokens", "lm_head", "q_proj"]}, True),
        ({"modules_to_save": ["lm_head"]}, False),  # a copy, which training has not moved
        ({"target_modules": ["q_proj"]}, False),
    ],
    ids=str,
)
def test_an_adapter_of_a_tied_head(
    make_checkpoint: MakeCheckpoint, tmp_path: Path, mode: str, config: dict[str, Any], untied: bool
) -> None:
    """Merged into the matrix that both share, it would move the other end too."""
    base = make_checkpoint("tied", tie_word_embeddings=True)
    folder = make_adapter(base, tmp_path / "ends", **config)
    model = load(folder, base=str(base), adapter=mode)
    for found, expected in zip(logprobs(model), peft_logprobs(base, folder), strict=True):
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)
    if mode == "merge":
        own: Any = open_checkpoint(str(folder), LoadOptions(base=str(base))).model()
        assert (own.lm_head.weight is own.model.embed_tokens.weight) is not untied


@pytest.mark.field("Weights", "LoRA started by gaussian, orthogonal, mica, pissa, olora", "runs")
@pytest.mark.parametrize("start", ["pissa", "olora", "gaussian", "orthogonal", "mica"])
def test_a_start_that_reloads_is_taken(
    make_checkpoint: MakeCheckpoint, tmp_path: Path, start: str
) -> None:
    base = make_checkpoint("half", "bfloat16")
    folder = make_adapter(base, tmp_path / "start", init_lora_weights=start)
    model = load(folder, base=str(base))
    for found, expected in zip(logprobs(model), peft_logprobs(base, folder), strict=True):
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


@pytest.mark.field(
    "Weights",
    "LoRA started by pissa_niter, loftq, corda, lora_ga",
    "refused: another model at each load",
)
@pytest.mark.parametrize("start", ["pissa_niter_4", "loftq", "corda", "lora_ga", "OLORA", [1]])
def test_a_start_that_is_another_model_at_each_load_is_refused(
    tiny: Path, copy: Path, start: object
) -> None:
    edit_config(copy, init_lora_weights=start)
    with pytest.raises(CheckpointError, match="each load would be another model"):
        open_checkpoint(str(copy), LoadOptions(base=str(tiny)))


@pytest.mark.field(
    "Weights", "LoRA started by pissa, olora, with `--adapter keep`", "refused: `--adapter merge`"
)
@pytest.mark.parametrize("start", ["pissa", "olora"])
def test_a_start_from_the_bases_weights_is_not_kept(tiny: Path, copy: Path, start: str) -> None:
    """Beside a quantized base it would take its part out of the quantized weights."""
    edit_config(copy, init_lora_weights=start)
    with pytest.raises(CheckpointError, match="use --adapter merge"):
        open_checkpoint(str(copy), LoadOptions(base=str(tiny), adapter="keep"))


# What is recorded


@pytest.mark.parametrize(("mode", "said"), [("merge", "merged"), ("keep", "kept")])
def test_the_recorded_checkpoint(tiny: Path, adapter: Path, mode: str, said: str) -> None:
    options = LoadOptions(base=str(tiny), adapter=mode)  # type: ignore[arg-type]
    found = open_checkpoint(str(adapter), options).checkpoint
    own = open_checkpoint(str(tiny), LoadOptions()).checkpoint
    assert (found.path, found.format, found.adapter) == (str(adapter), "adapter", said)
    assert found.base is not None
    assert (found.base.path, found.base.format) == (str(tiny), "safetensors")
    assert found.base.weights_sha256 == own.weights_sha256
    assert found.base.tokenizer_sha256 == own.tokenizer_sha256


def test_the_weights_hash_is_of_both_adapter_and_base(
    tiny: Path, adapter: Path, copy: Path, make_checkpoint: MakeCheckpoint
) -> None:
    other = make_checkpoint("other", seed=5)
    edit_weights(copy, lambda w: w[sorted(w)[0]].view(-1).__setitem__(0, 0.125))
    pairs = [(adapter, tiny), (copy, tiny), (adapter, other)]
    sources = [open_checkpoint(str(a), LoadOptions(base=str(b))) for a, b in pairs]
    assert len({s.checkpoint.weights_sha256 for s in sources}) == 3
    both = [files_sha256(part.weights) for part in (sources[0].files, sources[0].full)]
    assert sources[0].checkpoint.weights_sha256 == content_sha256(both)


def test_the_adapters_scale_is_part_of_what_is_recorded(
    tiny: Path, adapter: Path, copy: Path
) -> None:
    """The same tensors with another alpha are another model."""
    edit_config(copy, lora_alpha=64)
    ours, theirs = (load(p, base=str(tiny)) for p in (adapter, copy))
    assert not close(ours, theirs, 0.1)
    assert ours.checkpoint.model_dump(exclude={"path"}) != theirs.checkpoint.model_dump(
        exclude={"path"}
    )


def test_config_hash_does_not_see_what_saving_an_adapter_again_changes(
    tiny: Path, adapter: Path, copy: Path
) -> None:
    """PEFT keeps the names of modules as a set, and writes them in any order."""
    named = json.loads((adapter / "adapter_config.json").read_text())["target_modules"]
    assert len(named) > 1
    edit_config(
        copy,
        target_modules=named[::-1],
        inference_mode=False,
        peft_version="0.1",
        base_model_name_or_path="/home/somebody/base",
    )
    ours, theirs = (
        open_checkpoint(str(p), LoadOptions(base=str(tiny))).checkpoint for p in (adapter, copy)
    )
    assert ours.config_sha256 == theirs.config_sha256


@pytest.mark.field("Weights", "fp32 adapter over a bf16 base", "merged in fp32, with a note")
def test_a_wider_adapter_is_merged_in_its_own_dtype(
    make_checkpoint: MakeCheckpoint, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Merged in the bf16 of its base, a small update would be rounded away, and the base measured.
    Kept beside the base, it needs no wider one.
    """
    base = make_checkpoint("half", "bfloat16")
    folder = make_adapter(base, tmp_path / "lora", lora_alpha=0.01)
    source = open_checkpoint(str(folder), LoadOptions(base=str(base)))
    assert (source.own_dtype, source.model().dtype) == ("fp32", torch.float32)
    assert "float32 (" in caplog.text
    assert "rounds none of them" in caplog.text
    name = "model.layers.0.self_attn.q_proj"
    before = load_file(base / "model.safetensors")[f"{name}.weight"]
    factors = load_file(folder / "adapter_model.safetensors")
    a, b = (factors[f"base_model.model.{name}.lora_{part}.weight"] for part in "AB")
    exact, found = before.float() + 0.01 / 4 * b @ a, source.state_dict()[f"{name}.weight"]
    torch.testing.assert_close(found, exact, rtol=0, atol=1e-7)
    assert (exact.bfloat16() == before).float().mean() > 0.7  # what bf16 would lose
    kept = open_checkpoint(str(folder), LoadOptions(base=str(base), adapter="keep"))
    assert kept.own_dtype == "bf16"


# Tokenizer


def test_the_bases_tokenizer_serves_an_adapter_without_one(tiny: Path, adapter: Path) -> None:
    assert not (adapter / "tokenizer.json").exists()
    found = open_checkpoint(str(adapter), LoadOptions(base=str(tiny))).checkpoint
    plain = open_checkpoint(str(tiny), LoadOptions()).checkpoint
    assert found.tokenizer_sha256 == plain.tokenizer_sha256


def test_an_adapters_own_tokenizer_is_used(tiny: Path, copy: Path) -> None:
    tokenizer = make_tokenizer(290)
    tokenizer.save_pretrained(copy)
    source = open_checkpoint(str(copy), LoadOptions(base=str(tiny)))
    assert len(source.tokenizer) == 290
    plain = open_checkpoint(str(tiny), LoadOptions()).checkpoint
    assert source.checkpoint.tokenizer_sha256 != plain.tokenizer_sha256


def test_the_recorded_bases_tokenizer_is_the_bases(tiny: Path, copy: Path) -> None:
    make_tokenizer(290).save_pretrained(copy)
    base = open_checkpoint(str(copy), LoadOptions(base=str(tiny))).checkpoint.base
    plain = open_checkpoint(str(tiny), LoadOptions()).checkpoint
    assert base is not None
    assert base.tokenizer_sha256 == plain.tokenizer_sha256


def test_an_adapters_tokenizer_that_does_not_fit_the_base(tiny: Path, copy: Path) -> None:
    make_tokenizer(260).save_pretrained(copy)
    with pytest.raises(CheckpointError, match="does not match the model"):
        open_checkpoint(str(copy), LoadOptions(base=str(tiny)))


def test_a_pickled_adapter(tiny: Path, copy: Path) -> None:
    path = copy / "adapter_model.safetensors"
    torch.save(load_file(path), copy / "adapter_model.bin")
    expected = load(copy, base=str(tiny))
    path.unlink()
    with pytest.raises(CheckpointError, match="--allow-pickle"):
        open_checkpoint(str(copy), LoadOptions(base=str(tiny)))
    assert close(load(copy, base=str(tiny), allow_pickle=True), expected, 0)


def test_a_pickled_adapter_with_a_missing_tensor(tiny: Path, copy: Path) -> None:
    path = copy / "adapter_model.safetensors"
    weights = load_file(path)
    drop_one(weights)
    torch.save(weights, copy / "adapter_model.bin")
    path.unlink()
    with pytest.raises(CheckpointError, match="is --base the model that it was trained on"):
        load(copy, base=str(tiny), allow_pickle=True)


@pytest.mark.field(
    "Weights", "an adapter that waits for certain words, or learns a prompt", "refused"
)
@pytest.mark.parametrize("mode", ["merge", "keep"])
def test_an_adapter_that_waits_for_certain_words_is_refused(
    tiny: Path, tmp_path: Path, mode: Any
) -> None:
    """Its layers alone, without PEFT's wrapper, are those of the base."""
    found = make_adapter(tiny, tmp_path / "alora", alora_invocation_tokens=[5, 6])
    with pytest.raises(CheckpointError, match="alora_invocation_tokens .* not supported"):
        load(found, base=str(tiny), adapter=mode)


@pytest.mark.field(
    "Weights", "an adapter that waits for certain words, or learns a prompt", "refused"
)
@pytest.mark.parametrize("mode", ["merge", "keep"])
def test_an_adapter_that_learns_a_prompt_is_refused(tiny: Path, copy: Path, mode: str) -> None:
    edit_config(copy, peft_type="PROMPT_TUNING", num_virtual_tokens=5)
    with pytest.raises(CheckpointError, match="changes prompts, not weights"):
        load(copy, base=str(tiny), adapter=mode)
