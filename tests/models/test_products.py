"""Ways to multiply: the fastest is taken, on a faked slow kernel too, and answers stay."""

from __future__ import annotations

import gc
import json
import logging
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import linear
from transformers.pytorch_utils import Conv1D

from tests.conftest import CORPUS, MakeCheckpoint, load_at
from unlearnbench import evaluate
from unlearnbench.checkpoints.checkpoint import open_checkpoint
from unlearnbench.checkpoints.options import LoadOptions
from unlearnbench.models import packable, products
from unlearnbench.models.batches import generation_budget
from unlearnbench.models.hf import HFModel
from unlearnbench.models.products import WAYS, Choice, Product, choose, measure, quicken
from unlearnbench.requests import Generate, Score
from unlearnbench.runs.fingerprint import Fingerprint

PROMPTS = [CORPUS[n][: 5 + 9 * n] for n in range(12)]
FORCED = [("onednn", "torch"), ("torch", "onednn"), ("turned", "onednn"), ("packed", "packed")]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(packable, "LARGE", 1)
    return tmp_path / "cache" / "unlearnbench" / "products.json"


def force(monkeypatch: pytest.MonkeyPatch, few: str, many: str) -> None:
    """A choice for every shape; Choice("packed") where it can be packed."""

    def measured(_: object, names: list[str]) -> Choice:
        return Choice(few, many, {"packed few": 0.5}) if {few, many} <= {*names} else Choice()

    monkeypatch.setattr(products, "measure", measured)


def load(path: Path, condition: str = "none", **options: Any) -> HFModel:
    return load_at(open_checkpoint(str(path), LoadOptions()), condition, **options)


def layer(out: int = 96, width: int = 64, bias: bool = True, dtype: Any = torch.float32) -> Any:
    generator = torch.Generator().manual_seed(out + width)
    made = nn.Linear(width, out, bias=bias)
    for parameter in made.parameters():
        parameter.data.normal_(generator=generator)
    return made.to(dtype).requires_grad_(False)


@pytest.mark.parametrize("few", [{"torch": 1.0, "turned": 0.95, "onednn": 0.9, "packed": 0.5}])
@pytest.mark.parametrize(
    ("packed_many", "onednn_many", "expected"),
    [
        (1.0, 1.0, ("packed", "packed")),
        (1.2, 1.0, ("torch", "torch")),  # packed loses too much where rows are many
        (1.2, 0.7, ("torch", "onednn")),
        (0.7, 0.7, ("packed", "packed")),
    ],
)
def test_a_gain_is_taken_and_a_loss_is_not(
    few: Mapping[str, float], packed_many: float, onednn_many: float, expected: tuple[str, str]
) -> None:
    found = choose(few, {"torch": 1.0, "onednn": onednn_many, "packed": packed_many})
    assert (found.few, found.many) == expected
    assert found.shares is not None
    assert found.shares["packed few"] == 0.5


def slowed(way: products.Way) -> products.Way:
    def slow(rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        for _ in range(30):
            found = way(rows, weight, bias)
        return found

    return slow


def test_a_slow_library_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """Faked, because the processor that runs this may like either."""
    weights = [layer(512, 256).weight for _ in range(2)]
    monkeypatch.setattr(products, "WAYS", {**WAYS, "torch": slowed(WAYS["torch"])})
    found = measure(weights, ["torch", "turned", "onednn", "packed"])
    assert found.few != "torch"
    assert found.many != "torch"
    others = {name: slowed(WAYS[name]) for name in ("turned", "onednn", "packed")}
    monkeypatch.setattr(products, "WAYS", {**WAYS, **others})
    found = measure(weights, ["torch", "turned", "onednn", "packed"])
    assert (found.few, found.many) == ("torch", "torch")


def test_what_gains_on_eight_rows_and_loses_on_two_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two rows are what one answer's decoding has."""
    weights = [layer(512, 256).weight for _ in range(2)]

    def at_eight(rows: torch.Tensor, *rest: Any) -> torch.Tensor:
        return (WAYS["torch"] if len(rows) == 8 else slowed(WAYS["torch"]))(rows, *rest)

    ways = {**WAYS, "torch": slowed(WAYS["torch"]), "turned": at_eight}
    monkeypatch.setattr(products, "WAYS", ways)
    assert measure(weights, ["torch", "turned"]).few == "torch"
    monkeypatch.setattr(products, "WAYS", {**ways, "turned": WAYS["torch"]})
    assert measure(weights, ["torch", "turned"]).few == "turned"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("ways", FORCED)
def test_products_are_those_of_double_precision(
    ways: tuple[str, str], bias: bool, dtype: Any
) -> None:
    if dtype is torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        pytest.skip("oneDNN multiplies no bf16 on this processor")
    made = layer(bias=bias, dtype=dtype)
    weight, added = made.weight.double().numpy(), made.bias.double().numpy() if bias else 0.0
    if ways[0] == "packed":
        packed = torch.ops.mkldnn._reorder_linear_weight(made.weight, 8)
        made.weight = nn.Parameter(packed, requires_grad=False)
    product = Product(made, Choice(*ways))
    generator = torch.Generator().manual_seed(1)
    for shape in ((0, 64), (64,), (1, 64), (3, 64), (2, 33, 64), (8, 64), (5, 0, 64), (300, 64)):
        rows = torch.randn(shape, generator=generator).to(dtype)
        found, exact = product(rows), rows.double().numpy() @ weight.T + added
        assert found.shape == exact.shape
        assert found.dtype == dtype
        assert found.is_contiguous()
        step = 2e-6 if dtype == torch.float32 else 1e-2
        np.testing.assert_allclose(found.double().numpy(), exact, rtol=step, atol=step * 20)


@pytest.mark.parametrize("ways", FORCED)
def test_answers_are_those_of_torch(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, ways: tuple[str, str]
) -> None:
    """Texts to the letter, log-probabilities within fp32's rounding, in any batch."""
    asked = [Generate(str(i), p, 12) for i, p in enumerate(PROMPTS[4:])]
    texts = [Score(p, p * 3) for p in PROMPTS[-3:]]
    monkeypatch.setattr(packable, "LARGE", 2**40)
    plain = load(tiny)
    expected = {a.id: a.text for a in plain.generate(asked)}
    scored = {a.id: a.logprobs for a in plain.score(texts)}
    assert plain.products is None
    monkeypatch.setattr(packable, "LARGE", 1)
    force(monkeypatch, *ways)
    for batch in (None, 3):
        model = load(tiny, batch=batch)
        assert {a.id: a.text for a in model.generate(asked)} == expected
        for answer in model.score(texts):
            np.testing.assert_allclose(answer.logprobs, scored[answer.id], rtol=1e-4, atol=1e-5)
        assert model.products is not None
        assert f"64x64 {'/'.join(ways)}" in model.products


@pytest.mark.parametrize("condition", ["rtn-int4", "bnb-nf4"])
def test_every_dense_condition_takes_them(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, condition: str
) -> None:
    asked = [Generate(str(i), p, 12) for i, p in enumerate(PROMPTS[2:5])]
    monkeypatch.setattr(packable, "LARGE", 2**40)
    expected = {a.id: a.text for a in load(tiny, condition).generate(asked)}
    monkeypatch.setattr(packable, "LARGE", 1)
    force(monkeypatch, "packed", "packed")
    model = load(tiny, condition)
    assert {a.id: a.text for a in model.generate(asked)} == expected
    assert model.products


def test_packed_takes_the_place_of_plain(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No weight is held twice, and batches, which follow from the model's size, stay."""
    force(monkeypatch, "packed", "packed")
    model = load(tiny)
    network: Any = model.network
    before = generation_budget(network, "cpu").most
    layers = [m for m in network.modules() if type(m) is nn.Linear]
    old: list[Any] = [weakref.ref(each.weight) for each in layers]
    memory: list[Any] = [weakref.ref(each.weight.untyped_storage()) for each in layers]
    assert len(layers) == 15
    model.quicken()
    gc.collect()
    assert all(ref() is None for ref in [*old, *memory])
    assert all(each.weight.is_mkldnn for each in layers)
    assert generation_budget(network, "cpu").most == before


def test_a_model_that_nobody_holds_is_gone_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    force(monkeypatch, "packed", "packed")
    model = nn.Sequential(layer(), layer(64, 96))
    assert quicken(model)
    kept = weakref.ref(model[0])
    gc.disable()
    try:
        del model
        assert kept() is None
    finally:
        gc.enable()


def test_a_weight_that_is_held_twice_stays(
    make_checkpoint: MakeCheckpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    force(monkeypatch, "packed", "packed")
    model = load(make_checkpoint("tied", tie_word_embeddings=True))
    model.quicken()
    network: Any = model.network
    assert not network.lm_head.weight.is_mkldnn
    assert network.lm_head.weight is network.model.embed_tokens.weight
    assert network.model.layers[0].mlp.up_proj.weight.is_mkldnn


def test_without_free_memory_nothing_is_packed(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    force(monkeypatch, "packed", "packed")
    model = load(tiny)
    monkeypatch.setattr("psutil.virtual_memory", lambda: type("", (), {"available": 2**20}))
    model.quicken()
    assert model.products is None


def test_gradients_are_those_of_the_plain_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    """A search for a suffix asks for them, after other tasks were answered."""
    force(monkeypatch, "packed", "packed")
    made = layer()
    rows = torch.randn(3, 64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    (expected,) = torch.autograd.grad(made(rows).square().sum(), rows)
    assert quicken(made) == "96x64 packed/packed"
    assert made.weight.is_mkldnn
    (found,) = torch.autograd.grad(made(rows).square().sum(), rows)
    torch.testing.assert_close(found, expected)


def test_gpt2s_layers_hold_their_weight_turned(monkeypatch: pytest.MonkeyPatch) -> None:
    force(monkeypatch, "packed", "packed")
    made = Conv1D(96, 64)
    rows = torch.randn(2, 5, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = made(rows)
        assert quicken(made) == "96x64 packed/packed"
        torch.testing.assert_close(made(rows), expected)


class Own(nn.Linear):
    """As a quantizing library's."""


def test_layers_of_other_kinds_are_left(monkeypatch: pytest.MonkeyPatch) -> None:
    force(monkeypatch, "onednn", "onednn")
    hooked, part = layer(), layer()
    hooked.forward = hooked.forward  # as LLM.int8()'s and accelerate's
    part.weight = nn.Parameter(torch.zeros(64, 96).t(), requires_grad=False)
    model = nn.ModuleList([Own(64, 96), hooked, part, layer(dtype=torch.float16)])
    assert quicken(model) is None
    monkeypatch.setattr(packable, "LARGE", 96 * 64 + 1)
    assert quicken(layer()) is None


def test_a_choice_is_kept_for_the_next_run(
    cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """So that a task that goes on gets the same bits; what the file cannot mean is measured."""
    caplog.set_level(logging.INFO, "unlearnbench.explain")
    force(monkeypatch, "turned", "onednn")
    assert quicken(layer()) == "96x64 turned/onednn"
    force(monkeypatch, "onednn", "torch")
    assert quicken(layer()) == "96x64 turned/onednn"
    assert "turned for few rows, onednn for many (as measured here before)" in caplog.text
    kept = json.loads(cache.read_bytes())
    ((key, value),) = kept.items()
    assert value == ["turned", "onednn"]
    for content in (
        b"\xff no json",
        b"[" * 5000,
        b'{"deep": ' + b"[" * 900 + b"]" * 900 + b"}",
        b"[]",
        b" " * 2**21,
        *(
            json.dumps({key: bad}).encode()
            for bad in (7, ["turned"], ["onednn", "turned"], ["packed", "torch"], ["no", "torch"])
        ),
    ):
        cache.write_bytes(content)
        assert quicken(layer()) == "96x64 onednn/torch", content[:40]


def test_those_that_begin_together_take_the_same(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two processes of a sweep; what one of them measures meanwhile of another shape stays."""
    begun, go_on = threading.Event(), threading.Event()
    measured: list[object] = []

    def slow(*given: object) -> Choice:
        measured.append(given)
        if len(measured) == 1:
            begun.set()
            go_on.wait(30)
            return Choice("turned", "onednn", {})
        return Choice("onednn", "torch", {})

    monkeypatch.setattr(products, "measure", slow)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(quicken, layer())
        assert begun.wait(30)
        other = pool.submit(quicken, nn.ModuleList([layer(), layer(128)]))
        time.sleep(0.2)
        go_on.set()
        assert first.result(30) == "96x64 turned/onednn"
        assert other.result(30) == "96x64 turned/onednn, 128x64 onednn/torch"
    assert len(measured) == 2
    assert len(json.loads(cache.read_bytes())) == 2


def test_a_way_that_refuses_bf16_on_this_processor_is_not_tried(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its library does where there is neither AVX-512 nor AVX-NE-CONVERT."""
    tried: list[Sequence[str]] = []

    def measured(_: object, names: Sequence[str]) -> Choice:
        tried.append(names)
        return Choice()

    monkeypatch.setattr(products, "measure", measured)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    quicken(nn.ModuleList([layer(dtype=torch.bfloat16), layer()]))
    assert tried == [["torch", "turned"], ["torch", "turned", "onednn", "packed"]]


def test_where_no_choice_can_be_kept_it_is_made_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    for few in ("turned", "onednn"):
        force(monkeypatch, few, "torch")
        assert quicken(layer()) == f"96x64 {few}/torch"


def test_no_random_number_is_drawn() -> None:
    made, before = layer(), torch.random.get_rng_state()
    quicken(made)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_run_records_its_products_and_stays_comparable(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = []
    for few in ("torch", "onednn"):
        force(monkeypatch, few, few)
        out = tmp_path / few
        runs += evaluate(str(tiny), "demo_verbmem", limit=2, output=out, dtype="fp32")
        (tmp_path / "cache/unlearnbench/products.json").unlink()
    plain, quick = runs
    assert plain.environment.products is None
    assert "64x64 onednn/onednn" in str(quick.environment.products)
    assert plain.tasks["demo_verbmem"].records_sha256 == quick.tasks["demo_verbmem"].records_sha256
    one, other = (Fingerprint.of_run(r.checkpoint, r.settings, r.condition) for r in runs)
    assert one == other


def test_a_layer_that_asks_for_no_way_is_untouched(monkeypatch: pytest.MonkeyPatch) -> None:
    force(monkeypatch, "torch", "torch")
    made = layer()
    assert quicken(made) is None
    assert "forward" not in vars(made)
    rows: Callable[[], torch.Tensor] = lambda: torch.ones(2, 64)  # noqa: E731
    assert torch.equal(made(rows()), linear(rows(), made.weight, made.bias))
