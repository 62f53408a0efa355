"""Our models and tasks under lm-eval's own runner."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import unlearnbench
from tests.conftest import write_jsonl
from tests.lm_eval.conftest import Stock, numbers, ours_as_theirs, read_json
from unlearnbench.checkpoints.tokenizer import PROBE
from unlearnbench.errors import DataError
from unlearnbench.lm_eval import BRIDGE
from unlearnbench.metrics.fluency import ngram_entropy
from unlearnbench.tasks.kinds.generate import GenerationTask
from unlearnbench.tasks.registry import load_registry

ROOT = Path(__file__).resolve().parents[2]
DEMO = ["demo_verbmem", "demo_knowmem_f", "demo_knowmem_r"]
NEWS = ["news_verbmem", "news_knowmem_f", "news_knowmem_r"]


def test_every_task_of_ours_has_its_file() -> None:
    for name in load_registry().tasks:
        assert (BRIDGE / f"{name}.yaml").read_text(encoding="utf-8") == (
            f"task: {name}\nclass: !function unlearnbench.lm_eval.our_tasks.OurTask\n"
        )


def require_our_scores(
    found: dict[str, Any], samples: dict[str, list[Any]], names: list[str], tiny: Path, out: Path
) -> None:
    """The scores, prompts, outputs and targets of our own run of the same rows."""
    limit = len(samples[names[0]])
    (ours,) = unlearnbench.evaluate(
        tiny, names, limit=limit, dtype="fp32", output=out, data_dir=os.environ.get("MUSE")
    )
    (folder,) = (path.parent for path in out.glob("tiny-*/none/run.json"))
    for name in names:
        task = ours.tasks[name]
        expected = {"rougeL": task.value, **task.scores}
        for metric, value in expected.items():
            assert found[name][f"{metric},none"] == pytest.approx(value, abs=1e-6)
        lines = (folder / "samples" / f"{name}.jsonl").read_text(encoding="ascii").splitlines()
        for line, sample in zip(lines, samples[name], strict=True):
            record = json.loads(line)
            assert sample["target"] == record["target"]
            assert sample["filtered_resps"] == [record["output"]]
            assert record["prompt"] in json.dumps(sample["arguments"]) or (
                record["prompt"] == _prompt(sample)
            )


def _prompt(sample: dict[str, Any]) -> str:
    arguments = sample["arguments"]
    if isinstance(arguments, dict):
        return str(arguments["gen_args_0"]["arg_0"])
    return str(arguments[0][0])


def test_stock_hf_gives_our_scores(tiny: Path, tmp_path: Path, stock: Stock) -> None:
    found = stock(DEMO, include_path=BRIDGE, limit=2, pretrained=str(tiny), dtype="float32")
    assert {found["n-shot"][name] for name in DEMO[1:]} == {_shots(DEMO[1])}
    require_our_scores(found["results"], found["samples"], DEMO, tiny, tmp_path)


def _shots(name: str) -> int:
    spec = load_registry().tasks[name]
    assert isinstance(spec, GenerationTask)
    return spec.num_fewshot


def test_what_lm_eval_cannot_express_is_one_line() -> None:
    from unlearnbench.lm_eval.our_tasks import BridgeError, OurTask

    with pytest.raises(BridgeError, match="demo_privleak cannot run under lm-eval") as raised:
        OurTask({"task": "demo_privleak"})
    assert isinstance(raised.value, unlearnbench.UnlearnbenchError)
    assert str(raised.value.code).startswith("unlearnbench: error: demo_privleak")
    assert "\n" not in str(raised.value.code)


def test_missing_rows_and_an_unknown_model_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    from unlearnbench.lm_eval.our_tasks import BridgeError, OurTask

    with pytest.raises(BridgeError, match="nothing names the model"):
        OurTask({"task": "demo_verbmem"})
    monkeypatch.setenv("UNLEARNBENCH_DATA", "/nowhere")
    with pytest.raises(BridgeError, match="no data folder /nowhere"):
        OurTask({"task": "demo_knowmem_f"})


def test_shots_are_part_of_the_prompt() -> None:
    from unlearnbench.lm_eval.our_tasks import BridgeError, OurTask

    task = OurTask({"task": "demo_knowmem_f"})
    doc = task.eval_docs[0]
    shots = _shots("demo_knowmem_f")
    assert task.fewshot_context(doc, shots) == doc["prompt"]
    with pytest.raises(BridgeError, match="leave --num_fewshot out"):
        task.fewshot_context(doc, shots + 1)
    chat = task.fewshot_context(
        doc,
        shots,
        apply_chat_template=True,
        chat_template=lambda turns, add_generation_prompt: f"[{turns[0]['content']}]",
    )
    assert chat == f"[{doc['prompt']}]"


@pytest.mark.parametrize(
    ("facts", "version"),
    [({}, 2.0), ({"answer_blank": "prompt"}, 1.0), ({"pretrained": None}, 1.0)],
)
def test_the_version_is_our_runs(
    facts: dict[str, Any],
    version: float,
    tiny: Path,
    muse_data: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from unlearnbench.lm_eval.our_tasks import OurTask

    monkeypatch.setenv("UNLEARNBENCH_DATA", str(muse_data))
    metadata = {"pretrained": str(tiny), **facts}
    task = OurTask({"task": "news_knowmem_f", "metadata": metadata})
    spec = load_registry().of_version("news_knowmem_f", version)
    stated = {"version": version, "task_sha256": spec.definition_sha256}
    assert task.config.metadata == stated
    ends = {doc["prompt"].rpartition("Answer:")[2] for doc in task.eval_docs}
    assert ends == ({" "} if version == 1 else {""})


def test_the_tokenizer_is_read_as_for_our_own_runs(tiny: Path, tmp_path: Path) -> None:
    """By its file's rules, not its class's; ``tokenizer`` names another than the model's."""
    from tests.checkpoints.test_gguf import llama3_rules
    from tests.checkpoints.test_tokenizer import resplit
    from unlearnbench.lm_eval.our_tasks import _load_tokenizer

    model = Path(shutil.copytree(tiny, tmp_path / "model"))
    right = resplit(model, llama3_rules())
    facts = json.loads((model / "tokenizer_config.json").read_text())
    changed = json.dumps(facts | {"tokenizer_class": "GPT2Tokenizer"})
    (model / "tokenizer_config.json").write_text(changed)
    for given in ({"pretrained": str(model)}, {"pretrained": "x", "tokenizer": str(model)}):
        tokenizer = _load_tokenizer("demo_verbmem", given)
        assert [tokenizer(text)["input_ids"] for text in PROBE] == [
            right.encode(text).ids for text in PROBE
        ]
    (model / "tokenizer.json").unlink()
    (model / "tokenizer_config.json").unlink()
    with pytest.raises(unlearnbench.UnlearnbenchError, match="model has no tokenizer"):
        _load_tokenizer("demo_verbmem", {"pretrained": str(model)})


def test_flu_runs_from_local_rows(
    tiny: Path, tmp_path: Path, stock: Stock, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"instruction": f"Name harbour {i}.", "output": "x"} for i in range(1)]
    write_jsonl(tmp_path / "data/tatsu-lab/alpaca_eval/alpaca_eval/eval.jsonl", rows)
    monkeypatch.setenv("UNLEARNBENCH_DATA", str(tmp_path / "data"))
    (result,) = unlearnbench.evaluate(
        tiny, "general_fluency", dtype="fp32", output=tmp_path / "out"
    )
    found = stock(["general_fluency"], include_path=BRIDGE, pretrained=str(tiny), dtype="float32")
    assert result.harness is not None
    ours = ours_as_theirs(result.harness["general_fluency"])
    assert ours == pytest.approx(numbers(found["results"]["general_fluency"]), abs=1e-6)
    answers = [sample["filtered_resps"][0] for sample in found["samples"]["general_fluency"]]
    (mean,) = map(ngram_entropy, answers)
    assert ours["ngram_entropy,none"] == pytest.approx(mean)
    assert mean > 1
    metric = result.harness["general_fluency"].metrics[0]
    assert (metric.name, metric.higher_is_better) == ("ngram_entropy", True)


def test_flu_without_rows_says_where_they_go(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="alpaca_eval/alpaca_eval/eval.jsonl"):
        unlearnbench.evaluate(tmp_path, "general_fluency", output=tmp_path)


def test_the_path_for_lm_eval(capsys: pytest.CaptureFixture[str]) -> None:
    from unlearnbench.cli import main

    with pytest.raises(SystemExit):
        main(["tasks", "--lm-eval-path"])
    assert capsys.readouterr().out == f"{BRIDGE}\n"


def run(command: list[str], data: Path | None = None) -> subprocess.CompletedProcess[str]:
    places = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, places))}
    if data is not None:
        environment["UNLEARNBENCH_DATA"] = str(data)
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, timeout=600
    )


STOCK = [sys.executable, "-m", "lm_eval", "--model", "hf", "--device", "cpu"]


@pytest.mark.slow
def test_the_command_for_our_tasks_in_stock_lm_eval(
    tiny: Path, tmp_path: Path, muse_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = run([sys.executable, "-m", "unlearnbench", "tasks", "--lm-eval-path"]).stdout.strip()
    model = ["--model_args", f"pretrained={tiny},dtype=float32"]
    out = ["--output_path", str(tmp_path / "o"), "--log_samples", "--limit", "3"]
    tasks = ["--include_path", path, "--tasks", ",".join(NEWS)]
    done = run([*STOCK, *model, *tasks, *out], muse_data)
    assert done.returncode == 0, done.stderr[-2000:]
    (results,) = (tmp_path / "o").rglob("results_*.json")
    samples = {
        name: [
            json.loads(line)
            for file in results.parent.glob(f"samples_{name}_2*.jsonl")
            for line in file.read_text(encoding="utf-8").splitlines()
        ]
        for name in NEWS
    }
    monkeypatch.setenv("MUSE", str(muse_data))
    require_our_scores(read_json(results)["results"], samples, NEWS, tiny, tmp_path / "ours")


@pytest.mark.slow
def test_the_command_says_what_it_cannot_run(tiny: Path, muse_data: Path) -> None:
    model = ["--model_args", f"pretrained={tiny}"]
    done = run(
        [*STOCK, *model, "--include_path", str(BRIDGE), "--tasks", "news_privleak"], muse_data
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert (
        done.stderr.strip()
        .splitlines()[-1]
        .startswith("unlearnbench: error: news_privleak cannot run under lm-eval")
    )


@pytest.mark.slow
def test_the_command_for_our_models_under_lm_eval(tiny: Path, theirs: Path, tmp_path: Path) -> None:
    names = ["mc", "gen", "ppl"]
    ours = [sys.executable, "-m", "unlearnbench.lm_eval", "--model", "unlearnbench"]
    model = ["--model_args", f"pretrained={tiny},quant=bnb-nf4,dtype=float32", "--device", "cpu"]
    tasks = ["--include_path", str(theirs), "--tasks", ",".join(names)]
    done = run([*ours, *model, *tasks, "--output_path", str(tmp_path / "o")])
    assert done.returncode == 0, done.stderr[-2000:]
    (file,) = (tmp_path / "o").rglob("results_*.json")
    content = read_json(file)
    (result,) = unlearnbench.evaluate(
        tiny, names, "nf4", dtype="fp32", output=tmp_path / "ours", include_path=[theirs]
    )
    for name in names:
        expected = ours_as_theirs((result.harness or {})[name])
        assert numbers(content["results"][name]) == pytest.approx(expected, abs=1e-6, rel=1e-6)
    assert content["config"]["condition"]["name"] == "bnb-nf4"
    assert content["config"]["condition"]["proof"]["covered_modules"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "needs pretrained"),
        ({"pretrained": "x", "quant": "nf4,int4"}, "one precision"),
        ({"pretrained": "x", "nonsense": 1}, "nonsense has no meaning here"),
        ({"pretrained": "/nowhere"}, "/nowhere"),
    ],
)
def test_bad_arguments_of_our_model_are_one_line(arguments: dict[str, Any], message: str) -> None:
    from unlearnbench.lm_eval.model import UnlearnbenchLM

    with pytest.raises(unlearnbench.UnlearnbenchError, match=message):
        UnlearnbenchLM(device="cpu", **arguments)


@pytest.mark.field(
    "Data, files, commands",
    "`python -m unlearnbench.lm_eval` without `--device`, no GPU",
    "on the CPU, with a note",
)
def test_lm_evals_own_default_of_a_gpu_falls_back_with_a_line(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """lm-eval's command passes cuda:0 where no --device was given; its own models fall back."""
    from unlearnbench.lm_eval.model import _usable

    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert _usable("cuda:0") == "cpu"
    assert "no GPU here: --device cpu instead of cuda:0" in caplog.text
    assert _usable("cpu") == "cpu"
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert _usable("cuda:1") == "cuda:1"
