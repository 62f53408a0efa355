"""lm-eval's tasks in our runs, held against stock lm-eval."""

from __future__ import annotations

import importlib.util
import logging
import math
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

import unlearnbench
from tests.conftest import MakeCheckpoint, Toy, load_at
from tests.lm_eval.conftest import N, Stock, numbers, ours_as_theirs, read_json, write_tasks
from unlearnbench import ScriptedModel
from unlearnbench.checkpoints.options import LoadOptions
from unlearnbench.conditions.load import open_source
from unlearnbench.errors import (
    DataError,
    EvaluationError,
    ModelOutputError,
    OptionError,
    ResultError,
    TaskError,
)
from unlearnbench.evaluation.evaluate import find_tasks
from unlearnbench.lm_eval.suite import samples_path
from unlearnbench.lm_eval.their_tasks import load_tasks, quiet_harness
from unlearnbench.results import RunResult
from unlearnbench.runs.fingerprint import mixed_versions
from unlearnbench.runs.folder import run_path
from unlearnbench.tasks.registry import load_registry

ALL = ["mc", "gen", "ppl"]


def evaluate(model: Any, tasks: str, theirs: Path, out: Path, **options: Any) -> RunResult:
    (result,) = unlearnbench.evaluate(
        model, tasks, output=out, include_path=[theirs], dtype="fp32", **options
    )
    return result


def folder_of(out: Path, result: RunResult) -> Path:
    return run_path(out, result.checkpoint, result.condition.name)


def require_same(result: RunResult, stock: dict[str, Any], names: list[str] = ALL) -> None:
    assert result.harness is not None
    for name in names:
        expected = numbers(stock["results"][name])
        assert expected, name
        assert ours_as_theirs(result.harness[name]) == pytest.approx(expected, abs=1e-6, rel=1e-6)


def test_full_precision_scores_are_those_of_stock_hf(
    tiny: Path, theirs: Path, tmp_path: Path, stock: Stock
) -> None:
    result = evaluate(tiny, "mc,gen,ppl", theirs, tmp_path)
    expected = stock(ALL, pretrained=str(tiny), dtype="float32")
    require_same(result, expected)
    found = result.harness or {}
    assert found["gen"].num_fewshot == 2
    assert found["mc"].version == "2.5"
    assert found["mc"].n == N
    assert [m.name for m in found["mc"].metrics] == ["acc", "acc_norm"]
    assert found["ppl"].metrics[0].higher_is_better is False
    answers = {r["doc_id"]: r["resps"] for r in expected["samples"]["gen"]}
    stored = samples_path(folder_of(tmp_path, result), "gen").read_text(encoding="ascii")
    import json

    ours = {r["doc_id"]: r["resps"] for r in map(json.loads, stored.splitlines())}
    assert ours == answers
    assert any(text for rows in answers.values() for (text,) in rows), "empty answers are no test"


def hf_in_nf4(path: Path, kernel: str) -> Any:
    """lm-eval's ``hf`` on a model that transformers quantized. (It has no argument for that which
    transformers 5 takes: ``load_in_4bit`` is gone there.) Where the processor multiplies in bf16
    the 4-bit kernel does so too, and a tiny model's answers are others than in fp32: so
    ``dequantized`` is transformers' own dequantization.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

    with quiet_harness():
        from lm_eval.models.huggingface import HFLM

        config = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32
        )
        model: Any = AutoModelForCausalLM.from_pretrained(
            path, quantization_config=config, dtype=torch.float32, device_map="cpu"
        )
        if kernel == "dequantized":
            model = model.dequantize()
        return HFLM(pretrained=model, tokenizer=AutoTokenizer.from_pretrained(path))


@pytest.mark.slow
@pytest.mark.parametrize("kernel", [pytest.param("dequantized", marks=pytest.mark.ci), "native"])
def test_nf4_scores_are_those_of_stock_hf_with_the_same_config(
    tiny: Path, theirs: Path, tmp_path: Path, stock: Stock, kernel: str
) -> None:
    result = evaluate(tiny, "mc,gen,ppl", theirs, tmp_path, quant="bnb-nf4", quant_kernel=kernel)
    require_same(result, stock(ALL, model=hf_in_nf4(tiny, kernel)))
    full = evaluate(tiny, "ppl", theirs, tmp_path)
    assert result.harness is not None
    assert full.harness is not None
    quantized, plain = (r.harness["ppl"].metrics[0].value for r in (result, full))  # type: ignore[index]
    assert abs(quantized - plain) > 1e-3 * plain, "the quantization must be seen in the score"


def test_lm_evals_adapter_changes_nothing_in_the_model(tiny: Path) -> None:
    """Its constructor ties weights again, which must not undo a precision."""
    import torch

    with quiet_harness():
        from unlearnbench.lm_eval.model import LoadedLM
    ids = torch.arange(2, 40)[None]
    for name in ("none", "rtn-int4", "bnb-nf4"):
        model = load_at(open_source(str(tiny), LoadOptions()), name)
        before = model.network(ids).logits
        pad = model.tokenizer.pad_token
        with quiet_harness():
            LoadedLM(model)
        assert torch.equal(model.network(ids).logits, before)
        assert model.tokenizer.pad_token == pad


@pytest.mark.parametrize(("precision", "size"), [("bnb-int8", 1), ("none", 4)])
def test_prompts_that_would_move_each_other_are_run_alone(
    tiny: Path,
    theirs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    precision: str,
    size: int,
) -> None:
    with quiet_harness():
        from unlearnbench.lm_eval.model import LoadedLM
    seen = []
    call = LoadedLM._model_call

    def spy(self: Any, inps: Any, *rest: Any, **more: Any) -> Any:
        seen.append(len(inps))
        return call(self, inps, *rest, **more)

    monkeypatch.setattr(LoadedLM, "_model_call", spy)
    unlearnbench.evaluate(
        str(tiny), "mc", precision, include_path=[theirs], output=tmp_path, batch_size=4
    )
    assert max(seen) == size


def test_resuming_computes_only_what_is_missing(
    tiny: Path, theirs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = evaluate(tiny, "mc", theirs, tmp_path)
    more = evaluate(tiny, "mc,both", theirs, tmp_path)
    assert more.harness is not None
    assert first.harness is not None
    assert set(more.harness) == {"mc", "mc2", "both"}
    assert more.harness["mc"] == first.harness["mc"]

    def fail(*_: object) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr("unlearnbench.conditions.load.Prepared.load", fail)
    assert evaluate(tiny, "mc,both", theirs, tmp_path) == more


def test_our_tasks_keep_theirs_in_the_same_run(toy: Toy, tiny: Path, theirs: Path) -> None:
    options: dict[str, Any] = {**toy.options, "include_path": [toy.tasks, theirs]}
    unlearnbench.evaluate(tiny, "mc", **options)
    (result,) = unlearnbench.evaluate(tiny, "toy_knowmem_f", **options)
    assert set(result.harness or {}) == {"mc"}
    assert set(result.tasks) == {"toy_knowmem_f"}
    content = read_json(folder_of(toy.out, result) / "run.json")
    assert set(content["harness"]) == {"mc"}


def test_a_group_is_aggregated_as_lm_eval_does(
    tiny: Path, theirs: Path, tmp_path: Path, stock: Stock
) -> None:
    result = evaluate(tiny, "both", theirs, tmp_path)
    require_same(result, stock(["both"], pretrained=str(tiny), dtype="float32"), ["both", "mc2"])
    assert result.harness is not None
    assert result.harness["both"].subtasks == ("mc", "mc2")
    assert result.harness["both"].n == 2 * N


def test_a_share_as_limit_is_lm_evals(
    tiny: Path, theirs: Path, tmp_path: Path, stock: Stock
) -> None:
    result = evaluate(tiny, "mc", theirs, tmp_path, limit=0.4)
    require_same(result, stock(["mc"], limit=0.4, pretrained=str(tiny), dtype="float32"), ["mc"])
    assert (result.harness or {})["mc"].n == math.ceil(0.4 * N)
    assert result.settings.limit == 0.4
    with pytest.raises(ResultError, match="limit is 0.4 there and absent here"):
        evaluate(tiny, "mc", theirs, tmp_path)


def test_data_that_cannot_be_loaded_keeps_the_other_results(
    toy: Toy, tiny: Path, theirs: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lost = toy.tasks.parent / "lost"
    lost.mkdir()
    text = (theirs / "mc.yaml").read_text(encoding="utf-8").replace("rows.jsonl", "none.jsonl")
    (lost / "gone.yaml").write_text(text.replace("task: mc", "task: gone"), encoding="utf-8")
    options: dict[str, Any] = {**toy.options, "include_path": [toy.tasks, theirs, lost]}
    with pytest.raises(EvaluationError, match="gone could not be .*none.jsonl.*finished") as raised:
        unlearnbench.evaluate(tiny, "gone,toy_knowmem_f,mc", "none,bnb-nf4", **options)
    assert "\n" not in str(raised.value)
    (failure,) = raised.value.failures
    assert (failure.task, failure.condition, failure.folder) == ("gone", None, None)
    assert len(raised.value.results) == 2
    for path in toy.out.glob("tiny-*/*/run.json"):
        content = read_json(path)
        assert set(content["tasks"]) == {"toy_knowmem_f"}
        assert set(content["harness"]) == {"mc"}
    assert len(list(toy.out.glob("tiny-*/*/run.json"))) == 2
    with pytest.raises(DataError, match="gone could not be loaded"):
        unlearnbench.evaluate("nowhere", "gone", **options)


def test_a_name_of_both_sides_is_ours_and_a_line_says_so(
    toy: Toy, tiny: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    theirs = write_tasks(tmp_path / "more")
    for name in ("both", "mc2", "gen", "ppl"):
        (theirs / f"{name}.yaml").unlink()
    text = (theirs / "mc.yaml").read_text(encoding="utf-8")
    (theirs / "mc.yaml").write_text(text.replace("task: mc", "task: toy_knowmem_f"), "utf-8")
    options: dict[str, Any] = {**toy.options, "include_path": [toy.tasks, theirs]}
    with caplog.at_level(logging.INFO, "unlearnbench"):
        (result,) = unlearnbench.evaluate(tiny, "toy_knowmem_f", **options)
    assert set(result.tasks) == {"toy_knowmem_f"}
    assert result.harness is None
    assert "ours is run, lm_eval:toy_knowmem_f is theirs" in caplog.text
    (result,) = unlearnbench.evaluate(tiny, "lm_eval:toy_knowmem_f", **options)
    assert set(result.harness or {}) == {"toy_knowmem_f"}
    assert (result.harness or {})["toy_knowmem_f"].metrics[0].name == "acc"


def test_a_task_of_the_users_that_lm_eval_ships_too_is_ours(toy: Toy) -> None:
    text = (toy.tasks / "toy_verbmem.yaml").read_text(encoding="utf-8")
    (toy.tasks / "mmlu.yaml").write_text(text.replace("task: toy_verbmem", "task: mmlu"), "utf-8")
    specs, theirs = find_tasks("mmlu,lm_eval:triviaqa,general,truthfulqa_mc1", [toy.tasks])
    assert [spec.task for spec in specs] == ["mmlu"]
    assert set(theirs) == {"triviaqa", "general", "truthfulqa_mc1"}


def test_none_of_our_own_names_is_lm_evals() -> None:
    packaged = importlib.util.find_spec("lm_eval")
    assert packaged is not None
    folder = Path(str(packaged.origin)).parent / "tasks"
    stems = {path.stem for path in folder.rglob("*.yaml")}
    registry = load_registry()
    assert not stems & {*registry.tasks, *registry.groups}


def test_an_unknown_name_is_one_line(tiny: Path, theirs: Path, tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="unknown task or group 'mcc'"):
        evaluate(tiny, "mcc", theirs, tmp_path)


def test_a_strangers_python_runs_only_when_allowed(theirs: Path, tmp_path: Path) -> None:
    folder = tmp_path / "unsafe"
    folder.mkdir()
    text = (theirs / "mc.yaml").read_text(encoding="utf-8")
    code = text.replace("task: mc", "task: odd") + "process_docs: !function evil.run\n"
    (folder / "odd.yaml").write_text(code, encoding="utf-8")
    (folder / "evil.py").write_text(
        "from pathlib import Path\nPath(__file__).with_name('ran').touch()\n"
        "def run(rows):\n    return rows\n",
        encoding="utf-8",
    )
    (folder / "by_include.yaml").write_text("include: odd.yaml\ntask: by_include\n", "utf-8")
    (folder / "grouped.yaml").write_text("group: grouped\ntask: [by_include]\n", "utf-8")
    for name in ("odd", "by_include", "grouped"):
        with pytest.raises(TaskError, match=r"odd.yaml:\d+: .*--confirm-run-unsafe-code"):
            load_tasks([name], [folder], trust=False)
    assert not (folder / "ran").exists()
    assert set(load_tasks(["grouped"], [folder], trust=True).tasks) == {"by_include"}
    assert (folder / "ran").exists()


def test_logits_that_are_not_finite_are_no_score(
    make_checkpoint: MakeCheckpoint, theirs: Path, tmp_path: Path
) -> None:
    broken = make_checkpoint("broken")
    weights = load_file(broken / "model.safetensors")
    weights["model.norm.weight"] *= 1e38
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    for name in ("mc", "gen"):
        with pytest.raises(ModelOutputError, match="NaN or infinite"):
            evaluate(broken, name, theirs, tmp_path)


def test_changed_samples_are_not_believed(tiny: Path, theirs: Path, tmp_path: Path) -> None:
    result = evaluate(tiny, "mc", theirs, tmp_path)
    path = samples_path(folder_of(tmp_path, result), "mc")
    path.write_bytes(path.read_bytes() + b"\n")
    with pytest.raises(ResultError, match="is not the file that run.json names"):
        evaluate(tiny, "mc", theirs, tmp_path)


def test_another_task_of_that_name_is_refused(tiny: Path, tmp_path: Path) -> None:
    theirs = write_tasks(tmp_path / "a")
    evaluate(tiny, "mc", theirs, tmp_path / "out")
    path = theirs / "mc.yaml"
    path.write_text(path.read_text("utf-8").replace("{{question}}", "Q: {{question}}"), "utf-8")
    with pytest.raises(ResultError, match="holds another mc: config_sha256"):
        evaluate(tiny, "mc", theirs, tmp_path / "out")


def test_a_scripted_model_cannot_be_given_to_lm_eval(theirs: Path, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="lm-eval's tasks need a checkpoint"):
        unlearnbench.evaluate(ScriptedModel({}, {}), "mc", output=tmp_path, include_path=[theirs])


def test_gen_kwargs_reach_lm_evals_tasks(
    tiny: Path, theirs: Path, tmp_path: Path, stock: Stock
) -> None:
    result = evaluate(tiny, "gen", theirs, tmp_path, gen_kwargs={"max_gen_toks": 2})
    lines = samples_path(folder_of(tmp_path, result), "gen").read_text(encoding="ascii")
    assert '"max_gen_toks": 2' in lines
    assert result.settings.gen_kwargs == '{"max_gen_toks": 2}'
    with pytest.raises(ResultError, match="gen_kwargs"):
        evaluate(tiny, "gen", theirs, tmp_path)


def test_a_chat_template_goes_over_lm_evals_prompts_too(
    make_checkpoint: MakeCheckpoint, theirs: Path, tmp_path: Path
) -> None:
    chat = make_checkpoint("chat")
    template = "{% for m in messages %}[{{ m.role }}] {{ m.content }}{% endfor %} [model]"
    (chat / "chat_template.jinja").write_text(template, encoding="utf-8")
    result = evaluate(chat, "gen", theirs, tmp_path, apply_chat_template=True, limit=1)
    line = samples_path(folder_of(tmp_path, result), "gen").read_text(encoding="ascii")
    assert line.count("[user] ") == 3, "two shots and the question"
    assert line.count("[assistant] ") == 2
    assert result.settings.chat_template_sha256 is not None


def test_without_lm_eval_a_line_says_what_to_install(
    theirs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name: None if name == "lm_eval" else find(name)
    )
    with pytest.raises(TaskError, match="unknown task or group 'arc_easy'"):
        unlearnbench.evaluate(tmp_path, "arc_easy", output=tmp_path)
    assert "pip install 'unlearnbench[lm-eval]'" in caplog.text
    with pytest.raises(OptionError, match="lm-eval is not installed"):
        evaluate(tmp_path, "mc", theirs, tmp_path)


def test_their_tasks_keep_the_environment_that_they_were_measured_in(
    tiny: Path, theirs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = evaluate(tiny, "mc", theirs, tmp_path)
    monkeypatch.setattr("unlearnbench.runs.fingerprint.package_version", lambda name: "99")
    more = evaluate(tiny, "both", theirs, tmp_path)
    made = {name: result.environment for name, result in (more.harness or {}).items()}
    assert made == {"mc": first.environment, "mc2": more.environment, "both": None}
    assert set(more.environment.packages.values()) == {"99"}
    assert mixed_versions(more).startswith("accelerate ")
    assert "99 for mc2" in mixed_versions(more)
