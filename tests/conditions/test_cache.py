"""The key-value cache in few bits: against numpy token by token, and against transformers' own."""

from __future__ import annotations

import importlib.util
import json
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, DynamicCache, QuantizedCache

from tests.conditions.helpers import TEXTS, load, require_library, scores
from tests.conftest import CORPUS, MakeCheckpoint, load_at, make_tokenizer
from unlearnbench.checkpoints.checkpoint import CheckpointSource, open_checkpoint
from unlearnbench.checkpoints.options import LoadOptions
from unlearnbench.conditions import find_condition
from unlearnbench.errors import NotInForceError, PrecisionError
from unlearnbench.models import cached, packable
from unlearnbench.models.gradients import why_none
from unlearnbench.models.vllm import require_vllm
from unlearnbench.requests import Generate, Generated, Score


def by_numpy(states: torch.Tensor, bits: int) -> torch.Tensor:
    """Each head's vector of a token, or of more than 64 numbers each 64, on even levels from the
    least to the most.
    """
    rows = states.numpy().astype(np.float64)
    rows = rows.reshape(*rows.shape[:-1], -1, min(64, rows.shape[-1]))
    low, high = rows.min(-1, keepdims=True), rows.max(-1, keepdims=True)
    step = (high - low) / (2**bits - 1)
    found = (np.rint((rows - low) / step) * step + low).astype(np.float32)
    return torch.from_numpy(found.reshape(states.shape))


class Reference(DynamicCache):
    bits = 4

    def update(self, key_states: Any, value_states: Any, *args: Any, **kwargs: Any) -> Any:
        key, value = (by_numpy(states, self.bits) for states in (key_states, value_states))
        return super().update(key, value, *args, **kwargs)


def token_by_token(model: Any, ids: list[int], bits: int) -> np.ndarray[Any, Any]:
    """Log-probabilities of all tokens but the first."""
    cache, found = Reference(config=model.config), []
    cache.bits = bits
    with torch.no_grad():
        for token, following in pairwise(ids):
            given = torch.tensor([[token]])
            logits = model(input_ids=given, past_key_values=cache, use_cache=True).logits
            found.append(float(logits[0, -1].log_softmax(-1)[following]))
    return np.array(found)


@pytest.mark.parametrize("bits", [4, 8])
def test_scores_are_those_of_a_rounded_cache_token_by_token(tiny: Path, bits: int) -> None:
    model = load(open_checkpoint(str(tiny), LoadOptions()), f"kv-int{bits}")
    plain = load(open_checkpoint(str(tiny), LoadOptions()), "none")
    own = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)
    found, without = scores(model), scores(plain)
    for text in TEXTS:
        due = token_by_token(own, model.tokens.encode(text), bits)
        # A number between two levels may take either, where products differ in a last bit.
        assert np.abs(found[text] - due).max() < (0.02 if bits == 4 else 0.002)
    apart = max(np.abs(found[text] - without[text]).max() for text in TEXTS)
    assert apart > (0.5 if bits == 4 else 0.01)


def test_four_bits_are_what_transformers_own_cache_holds(tiny: Path) -> None:
    """Of a prompt, which that rounds once; later it rounds all again, and leaves recent ones."""
    require_library("quanto-int4")
    own = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)
    theirs = QuantizedCache("quanto", own.config, nbits=4, q_group_size=16, residual_length=1)
    ours, ids = cached.Rounding(4), torch.arange(3, 40)[None]
    plain: Any = DynamicCache(config=own.config)
    with torch.no_grad():
        own(input_ids=ids, past_key_values=theirs, use_cache=True)
        own(input_ids=ids, past_key_values=plain, use_cache=True)
    for layer, exact in zip(theirs.layers, plain.layers, strict=True):
        held: Any = layer
        for kept, given in (
            (held._quantized_keys, exact.keys),
            (held._quantized_values, exact.values),
        ):
            assert torch.equal(held._dequantize(kept), ours(given))


def test_answers_are_a_rounded_caches_in_batches_with_a_prefix_and_with_drafts(
    tiny: Path,
) -> None:
    model = load_at(open_checkpoint(str(tiny), LoadOptions()), "kv-int4")
    own: Any = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)
    start = CORPUS[0][:60]
    prompts = [start + text for text in TEXTS[:4]] + [TEXTS[5]]
    due = {}
    for prompt in prompts:
        ids = model.tokens.encode(prompt)
        out = own.generate(
            input_ids=torch.tensor([ids]),
            attention_mask=torch.ones(1, len(ids), dtype=torch.long),
            past_key_values=Reference(),
            max_new_tokens=8,
            do_sample=False,
        )
        due[prompt] = model.tokens.answer(Generate(prompt, prompt, 8), out[0, len(ids) :].tolist())
    half = [due[prompt].text[:6] + " x" for prompt in prompts]
    for requests in (
        [Generate(prompt, prompt, 8) for prompt in prompts],
        [Generate(p, p, 8, drafts=(d,)) for p, d in zip(prompts, half, strict=True)],
    ):
        found: dict[str, Generated] = {a.id: a for a in model.generate(requests)}
        assert {p: found[p].text for p in prompts} == {p: due[p].text for p in prompts}
    assert sum(a.accepted for a in found.values()) > 0
    one = load_at(open_checkpoint(str(tiny), LoadOptions()), "kv-int4", batch=1)
    assert {a.id: a.text for a in one.generate([Generate(p, p, 8) for p in prompts])} == {
        p: due[p].text for p in prompts
    }


def test_padded_generation_meets_it_too(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = open_checkpoint(str(tiny), LoadOptions())
    requests = [Generate(text, text, 8) for text in TEXTS[:4]]
    due = {a.id: a.text for a in load_at(source, "kv-int4").generate(requests)}
    monkeypatch.setattr(packable, "find_continuer", lambda *_: "for this test")
    model = load_at(open_checkpoint(str(tiny), LoadOptions()), "kv-int4")
    assert {a.id: a.text for a in model.generate(requests)} == due


def test_the_record_says_what_was_seen(tiny: Path) -> None:
    condition = load(open_checkpoint(str(tiny), LoadOptions()), "kv-int4").condition
    options = condition.options
    assert (condition.kind, options.bits) == ("cached", 32)  # of a weight
    assert options.further == {"cache_bits": 4, "residual_length": 0}
    assert condition.proof is not None
    figures = condition.proof.figures or {}
    assert (figures["cache_layers"], figures["cache_group"]) == (2, 16)
    assert 8 < figures["cache_codes"] <= 16
    assert 0.02 < figures["cache_error"] < 0.2


@pytest.mark.parametrize(
    ("width", "group"), [(8, 8), (64, 64), (80, 40), (96, 48), (128, 64), (66, 33), (130, 26)]
)
def test_groups_fill_a_heads_vector(width: int, group: int) -> None:
    assert cached.group_of(width) == group


def test_a_cache_that_rounds_nothing_is_refused(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = open_checkpoint(str(tiny), LoadOptions())
    before = cached.Rounding.__call__

    def only_watch(self: cached.Rounding, states: torch.Tensor) -> torch.Tensor:
        before(self, states)
        if self.watched is not None:
            self.watched[-1] = states, states
        return states

    monkeypatch.setattr(cached.Rounding, "__call__", only_watch)
    with pytest.raises(NotInForceError, match="kv-int8: a layer's cache does not hold what was"):
        load(source, "kv-int8")


def test_a_model_without_attention_is_refused(
    make_checkpoint: MakeCheckpoint, tmp_path: Path
) -> None:
    from transformers import MambaConfig, MambaForCausalLM

    tokenizer = make_tokenizer()
    config = MambaConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, state_size=4
    )
    MambaForCausalLM(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(PrecisionError, match="has no attention heads to cache"):
        load(open_checkpoint(str(tmp_path), LoadOptions()), "kv-int8")


def test_heads_that_part_into_small_groups_are_refused(make_checkpoint: MakeCheckpoint) -> None:
    """Of a group of two numbers rounding keeps both."""
    odd = make_checkpoint("cache-134", head_dim=134)
    with pytest.raises(PrecisionError, match="heads of 134 numbers .* groups of 2 alone"):
        load(open_checkpoint(str(odd), LoadOptions()), "kv-int4")


@pytest.mark.parametrize(
    "fields", [{"head_dim": -16}, {"head_dim": None, "num_attention_heads": -4}]
)
def test_widths_below_nothing_are_refused(
    tiny: Path, tmp_path: Path, fields: dict[str, Any]
) -> None:
    shutil.copytree(tiny, tmp_path / "a")
    path = tmp_path / "a" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    with pytest.raises(PrecisionError, match="has no attention heads to cache"):
        load(open_checkpoint(str(path.parent), LoadOptions()), "kv-int4")


def latent(folder: Path, **fields: int) -> CheckpointSource:
    """DeepSeek's, whose ``head_dim`` is the width of what turns, not of what is cached."""
    from transformers import CONFIG_MAPPING

    from tests.contracts.every_architecture import tiny_config

    torch.manual_seed(3)
    config = tiny_config(CONFIG_MAPPING["deepseek_v3"])
    for name, value in fields.items():
        setattr(config, name, value)
    config.qk_head_dim = config.qk_nope_head_dim + config.qk_rope_head_dim
    config.head_dim = config.qk_rope_head_dim
    AutoModelForCausalLM.from_config(config).float().save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return open_checkpoint(str(folder), LoadOptions())


def test_groups_are_of_what_is_cached(tmp_path: Path) -> None:
    """Of the latent vector, or in older transformers of values; ``head_dim`` is 32 and 64."""
    source = latent(tmp_path / "a", kv_lora_rank=16, qk_rope_head_dim=32, v_head_dim=16)
    proof = load(source, "kv-int4").condition.proof
    assert proof is not None
    assert (proof.figures or {})["cache_group"] == 16
    source = latent(tmp_path / "b", kv_lora_rank=4, qk_rope_head_dim=64, v_head_dim=4)
    with pytest.raises(PrecisionError, match="cached heads of 4 numbers .* groups of 4 alone"):
        load(source, "kv-int4")


@pytest.mark.parametrize("window", [16, 48])
def test_layers_with_a_window_meet_it(tmp_path: Path, window: int) -> None:
    """They hold their last tokens alone, fewer than the proof runs and fewer than a text has."""
    from transformers import MistralConfig, MistralForCausalLM

    tokenizer = make_tokenizer()
    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        sliding_window=window,
        initializer_range=0.2,
        bos_token_id=0,
        eos_token_id=1,
    )
    MistralForCausalLM(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    model = load(open_checkpoint(str(tmp_path), LoadOptions()), "kv-int4")
    own: Any = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    text = CORPUS[0][:300]
    (found,) = model.score([Score("a", text)])
    assert len(found.logprobs) > window
    due = token_by_token(own, model.tokens.encode(text), 4)
    assert np.abs(found.logprobs - due).max() < 0.02
    ids = model.tokens.encode(TEXTS[0])
    out = own.generate(
        input_ids=torch.tensor([ids]),
        attention_mask=torch.ones(1, len(ids), dtype=torch.long),
        past_key_values=Reference(),
        max_new_tokens=8,
        do_sample=False,
    )
    request = Generate("a", TEXTS[0], 8)
    (answer,) = model.generate([request])
    assert answer.text == model.tokens.answer(request, out[0, len(ids) :].tolist()).text


def saved(name: str, folder: Path) -> Any:
    """A tiny model of that type, whose windows, if any, hold 24 tokens."""
    from transformers import CONFIG_MAPPING

    from tests.contracts.every_architecture import tiny_config

    torch.manual_seed(3)
    config = tiny_config(CONFIG_MAPPING[name])
    if hasattr(config, "sliding_window"):
        config.sliding_window = 24
    model = AutoModelForCausalLM.from_config(config).float()
    model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.mark.field(
    "Weights",
    "kv-int8, kv-int4: windows (Gemma 2, 3, gpt-oss), heads that differ by layer (Gemma 4), "
    "DeepSeek's latent attention, attention beside a state in each layer (Falcon-H1)",
    "rounded, as in a cache token by token",
)
@pytest.mark.parametrize(
    "name",
    [
        *("gemma3_text", "gemma4_text"),
        *(pytest.param(n, marks=pytest.mark.slow) for n in ("gemma2", "gpt_oss")),
        *(pytest.param(n, marks=pytest.mark.slow) for n in ("deepseek_v3", "falcon_h1")),
    ],
)
def test_caches_of_other_kinds_are_rounded(tmp_path: Path, name: str) -> None:
    own = saved(name, tmp_path)
    model = load(open_checkpoint(str(tmp_path), LoadOptions()), "kv-int4")
    text = CORPUS[0][:120]
    (found,) = model.score([Score("a", text)])
    ids = model.tokens.encode(text)
    assert len(ids) > 48
    assert np.abs(found.logprobs - token_by_token(own, ids, 4)).max() < 0.02
    out = own.generate(
        input_ids=torch.tensor([ids]),
        attention_mask=torch.ones(1, len(ids), dtype=torch.long),
        past_key_values=Reference(config=own.config),
        max_new_tokens=8,
        do_sample=False,
    )
    request = Generate("a", text, 8)
    (answer,) = model.generate([request])
    assert answer.text == model.tokens.answer(request, out[0, len(ids) :].tolist()).text


@pytest.mark.field(
    "Weights",
    "kv-int8, kv-int4: models of which some layers are no attention (Qwen3-Next, Granite 4, Jamba)",
    "refused, with their number",
)
@pytest.mark.parametrize("name", ["qwen3_next", "granitemoehybrid", "jamba"])
def test_layers_that_are_no_attention_are_refused(tmp_path: Path, name: str) -> None:
    saved(name, tmp_path)
    with pytest.raises(NotInForceError, match="kv-int8: 1 of 2 layers cache keys and values"):
        load(open_checkpoint(str(tmp_path), LoadOptions()), "kv-int8")


def test_it_has_no_gradient(tiny: Path) -> None:
    model = load(open_checkpoint(str(tiny), LoadOptions()), "kv-int4")
    assert why_none(model.network, model.condition) == "attention meets rounded keys and values"
    chain = model.condition.model_copy(update={"kind": "pruned-cached"})
    assert why_none(model.network, chain) == "attention meets rounded keys and values"


def test_it_stands_behind_a_change_and_not_behind_a_search(tiny: Path) -> None:
    source = open_checkpoint(str(tiny), LoadOptions())
    chain = load(source, "prune-magnitude-50+kv-int4")
    assert chain.condition.kind == "pruned-cached"
    assert chain.condition.first is not None
    alone = load(source, "prune-magnitude-50")
    assert np.abs(scores(chain)[TEXTS[0]] - scores(alone)[TEXTS[0]]).max() > 0.01
    assert find_condition("hints-3+kv-int8").asks
    with pytest.raises(PrecisionError, match="no search goes through kv-int8"):
        find_condition("suffix-10+kv-int8")


def test_vllm_which_would_leave_it_out_is_refused(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name: find("json" if name == "vllm" else name)
    )
    kernels = {"kv-int8": find_condition("kv-int8").kernels}
    with pytest.raises(PrecisionError, match="kv-int8 has no plain weights that compute the same"):
        require_vllm(open_checkpoint(str(tiny), LoadOptions()), kernels, "auto")


def test_a_quantized_checkpoint_is_met_with_it_too(tiny: Path, tmp_path: Path) -> None:
    model = load(open_checkpoint(str(tiny), LoadOptions()), "bnb-nf4", kernel="native")
    model.network.save_pretrained(tmp_path)
    model.tokenizer.save_pretrained(tmp_path)
    packed = open_checkpoint(str(tmp_path), LoadOptions())
    both, plain = load(packed, "kv-int4"), load(packed, "none")
    found, without = scores(both), scores(plain)
    assert np.abs(found[TEXTS[3]] - without[TEXTS[3]]).max() > 0.01
