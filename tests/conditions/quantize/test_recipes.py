"""Which type llama.cpp's files give a matrix, against tables of what its quantizer prints."""

from __future__ import annotations

from collections import Counter

import pytest

from unlearnbench.conditions.quantize import blocks, recipes
from unlearnbench.conditions.quantize.ggml import _BITS
from unlearnbench.errors import PrecisionError

SIZES = {
    "self_attn.q_proj": 4096 * 4096,
    "self_attn.k_proj": 4096 * 1024,
    "self_attn.v_proj": 4096 * 1024,
    "self_attn.o_proj": 4096 * 4096,
    "mlp.gate_proj": 4096 * 14336,
    "mlp.up_proj": 4096 * 14336,
    "mlp.down_proj": 4096 * 14336,
}
LLAMA = {"model_type": "llama", "num_attention_heads": 32, "num_key_value_heads": 8}
# Layers of 32 with more bits in Q4_K_M: the first and last four, and every third between.
MORE = [0, 1, 2, 3, 6, 9, 12, 15, 18, 21, 24, 27, 28, 29, 30, 31]


def names(layers: int) -> list[str]:
    return [f"model.layers.{i}.{name}" for i in range(layers) for name in SIZES]


def chosen(file: str, layers: int = 32, weighed: bool = False, **config: object) -> dict[str, str]:
    return recipes.types(file, names(layers), {**LLAMA, **config}, weighed)


def layers_with(found: dict[str, str], module: str, kind: str) -> list[int]:
    return [int(n.split(".")[2]) for n, k in found.items() if n.endswith(module) and k == kind]


def test_q4_k_m_of_llama_3_8b() -> None:
    """Of the published Meta-Llama-3-8B Q4_K_M file's 291 tensors 193 are Q4_K and 33 Q6_K, of which
    the embedding is one Q4_K and the head one Q6_K.
    """
    found = chosen("Q4_K_M")
    assert layers_with(found, "v_proj", "Q6_K") == MORE
    assert layers_with(found, "down_proj", "Q6_K") == MORE
    assert Counter(found.values()) == {"Q4_K": 192, "Q6_K": 32}


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ("Q2_K", {"v_proj": "Q4_K", "down_proj": "Q3_K", "o_proj": "Q3_K"}),
        ("Q3_K_L", {"v_proj": "Q5_K", "down_proj": "Q5_K", "o_proj": "Q5_K"}),
        ("IQ4_XS", {"v_proj": "Q5_K"}),
        ("IQ4_NL", {"v_proj": "Q5_K"}),
        ("Q3_K_S", {}),
        ("Q5_K_S", {}),
        ("Q6_K", {}),
    ],
)
def test_modules_of_the_middle_layers(file: str, expected: dict[str, str]) -> None:
    found = chosen(file)
    for name in SIZES:
        kind = expected.get(name.split(".")[1], recipes.FILES[file])
        assert found[f"model.layers.16.{name}"] == kind, name


@pytest.mark.parametrize(
    ("file", "module", "kind", "layers"),
    [
        ("Q3_K_M", "v_proj", "Q5_K", [0, 1]),
        ("Q3_K_M", "v_proj", "Q4_K", list(range(2, 32))),
        ("Q3_K_M", "down_proj", "Q5_K", [0, 1]),
        ("Q3_K_M", "o_proj", "Q4_K", list(range(32))),
        ("Q4_K_S", "v_proj", "Q5_K", [0, 1, 2, 3]),
        ("Q4_K_S", "down_proj", "Q5_K", [0, 1, 2, 3]),
        ("Q5_K_M", "v_proj", "Q6_K", MORE),
        ("IQ4_XS", "down_proj", "Q5_K", [0, 1, 2, 3]),
    ],
)
def test_layers_that_get_more(file: str, module: str, kind: str, layers: list[int]) -> None:
    assert layers_with(chosen(file), module, kind) == layers


def test_heads_and_importance_and_size_move_a_rule() -> None:
    alone = chosen("Q2_K", num_key_value_heads=32)
    assert layers_with(alone, "v_proj", "Q3_K") == list(range(32))
    assert layers_with(chosen("IQ4_XS", weighed=True), "down_proj", "Q5_K") == []
    large = chosen("Q4_K_S", layers=80)
    assert layers_with(large, "v_proj", "Q5_K") == list(range(80))
    other = chosen("Q4_K_S", layers=80, model_type="gemma2")
    assert layers_with(other, "v_proj", "Q5_K") == [0, 1, 2, 3]


def test_fused_and_unknown_matrices() -> None:
    kinds = recipes.types(
        "Q4_K_M",
        ["transformer.h.0.attn.c_attn", "transformer.h.0.attn.c_proj", "transformer.h.0.x.y", "a"],
        {"model_type": "gpt2"},
    )
    assert list(kinds.values()) == ["Q6_K", "Q4_K", "Q4_K", "Q4_K"]
    assert recipes.tensor_name("model.layers.7.mlp.down_proj") == "blk.7.ffn_down.weight"
    assert recipes.tensor_name("a") is None


def test_columns_that_make_no_blocks_take_what_llama_cpp_takes() -> None:
    instead = {kind: recipes.fitting(kind, 576) for kind in set(recipes.FILES.values())}
    assert instead == {
        **{"Q2_K": "Q4_0", "Q3_K": "Q4_0", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"},
        **{"IQ4_NL": "IQ4_NL", "IQ4_XS": "IQ4_NL"},
    }
    assert recipes.fitting("Q4_K", 512) == "Q4_K"


def test_falcon_is_refused() -> None:
    with pytest.raises(PrecisionError, match="another rule for Falcon"):
        recipes.types("Q4_K_M", ["a"], {"model_type": "falcon"})


@pytest.mark.parametrize("file", list(recipes.FILES))
def test_stated_bits_are_those_of_llama_3_8b(file: str) -> None:
    found = chosen(file)
    weights = {name: SIZES[name.split(".", 3)[3]] for name in found}
    stored = 0.0
    for name, kind in found.items():
        block, size = blocks.sizes(kind)
        stored += weights[name] * 8 * size / block
    assert stored / sum(weights.values()) == pytest.approx(_BITS[file], abs=6e-4)
