"""Our adapter's options and prompts in lm-eval, held against stock ``hf``."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.chat_templates import TEMPLATES, set_today
from tests.conftest import make_tokenizer
from tests.lm_eval.conftest import Stock
from tests.lm_eval.test_suite import evaluate, folder_of, require_same
from unlearnbench.cli.main import run as command
from unlearnbench.errors import CheckpointError, OptionError
from unlearnbench.lm_eval.suite import samples_path
from unlearnbench.lm_eval.tables import utility_cells
from unlearnbench.runs.entries import load_entries


@pytest.fixture
def beginless(tiny: Path, tmp_path: Path) -> Path:
    """The tiny checkpoint with a tokenizer that adds no begin token."""
    folder = tmp_path / "models" / "beginless"
    shutil.copytree(tiny, folder)
    content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    content["post_processor"] = None
    (folder / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


@pytest.mark.field(
    "Data, files, commands",
    "`add_bos_token`, `max_length` of lm-eval's `--model_args`",
    "run as in `hf`",
)
@pytest.mark.slow
@pytest.mark.ci
@pytest.mark.parametrize("begins", [True, False])
def test_options_that_decide_scores_are_those_of_stock_hf(
    begins: bool, tiny: Path, beginless: Path, theirs: Path, tmp_path: Path, stock: Stock
) -> None:
    model = beginless if begins else tiny
    options: dict[str, Any] = {"add_bos_token": begins, "max_length": 40}
    plain = evaluate(model, "mc,gen,ppl", theirs, tmp_path / "plain")
    result = evaluate(model, "mc,gen,ppl", theirs, tmp_path / "asked", **options)
    expected = stock(["mc", "gen", "ppl"], pretrained=str(model), dtype="float32", **options)
    require_same(result, expected)
    with pytest.raises(AssertionError):
        require_same(plain, expected)
    settings = result.settings
    assert (settings.add_bos_token, settings.max_length) == (begins, 40)
    entries = [load_entries([tmp_path / part])[0] for part in ("plain", "asked")]
    with pytest.raises(OptionError, match=r"cannot be compared .* is (absent|40|True|False) there"):
        utility_cells(entries)


def test_model_args_reach_lm_evals_tasks_and_the_run(
    tiny: Path, theirs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = f"pretrained={tiny},dtype=float32,add_bos_token=True,max_length=64"
    line = ["--tasks", "mc", "--include_path", str(theirs), "--output", str(tmp_path / "out")]
    assert command(["--model", "hf", "--model_args", given, "--limit", "1", *line]) == 0
    (path,) = (tmp_path / "out").glob("*/none/run.json")
    settings = json.loads(path.read_text(encoding="utf-8"))["settings"]
    assert settings["add_bos_token"] is True
    assert settings["max_length"] == 64
    assert command(["--model", "hf", "--model_args", given[:-2] + "32", *line, "--limit", "1"]) == 2
    assert "max_length is 64 there and 32 here" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("max_length=long", "max_length is a number"),
        ("max_length=True", "max_length is a number"),
        ("add_bos_token=1", "add_bos_token is True or False"),
        ("enable_thinking=maybe", "enable_thinking is True or False"),
        ("max_length=99999", "the model's context is"),
        ("think_end_token=</think>", "no single token"),
    ],
)
def test_model_args_that_make_no_sense(
    given: str, said: str, tiny: Path, theirs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["--include-path", str(theirs), "--output", str(tiny.parent / "out")]
    asked = ["--model-args", f"pretrained={tiny},{given}"]
    assert command([*asked, "--tasks", "demo_knowmem_f", *line]) == 2
    assert said in capsys.readouterr().err


def test_prompts_of_lm_evals_tasks_have_one_day_and_no_open_thought(
    tiny: Path, theirs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chat = tmp_path / "models" / "chat"
    shutil.copytree(tiny, chat)
    (chat / "chat_template.jinja").write_text(TEMPLATES["smollm3"], encoding="utf-8")
    seen = []
    for day in (3, 4):
        set_today(monkeypatch, 2031, 3, day)
        out = tmp_path / f"day{day}"
        result = evaluate(chat, "gen", theirs, out, apply_chat_template=True, limit=1)
        line = samples_path(folder_of(out, result), "gen").read_text(encoding="ascii")
        seen.append(json.loads(line)["arguments"]["gen_args_0"]["arg_0"])
    assert seen[0] == seen[1]
    assert seen[0].startswith("<|system|>Today Date: 26 July 2024 /no_think<|user|>")
    assert seen[0].endswith("<think>\n\n</think>\n\n")
    (chat / "chat_template.jinja").write_text(TEMPLATES["deepseek-r1"], encoding="utf-8")
    with pytest.raises(CheckpointError, match="open think block, <think>"):
        evaluate(chat, "gen", theirs, tmp_path / "open", apply_chat_template=True, limit=1)


class Lm:
    """As much of lm-eval's ``hf`` model as a task sees."""

    def __init__(self, template: str, **told: object) -> None:
        self.tokenizer: Any = make_tokenizer()
        self.tokenizer.chat_template = template
        self.chat_template_args = told

    def apply_chat_template(self, turns: Any, add_generation_prompt: bool) -> str:
        raise AssertionError("rendered by its clock")


def test_our_tasks_in_lm_eval_have_the_prompts_of_our_runs() -> None:
    from tests.lm_eval.test_our_tasks import _shots
    from unlearnbench.lm_eval.our_tasks import BridgeError, OurTask

    task = OurTask({"task": "demo_knowmem_f"})
    doc, shots = task.eval_docs[0], _shots("demo_knowmem_f")

    def prompt(name: str, **told: object) -> str:
        lm = Lm(TEMPLATES[name], **told)
        return task.fewshot_context(
            doc, shots, apply_chat_template=True, chat_template=lm.apply_chat_template
        )

    start = "<|system|>Today Date: 26 July 2024 /no_think<|user|>"
    assert prompt("smollm3") == f"{start}{doc['prompt']}<|assistant|><think>\n\n</think>\n\n"
    assert prompt("llama-3.2", date_string="10 Apr 2025").startswith(
        "<s><|system|>Today Date: 10 Apr 2025"
    )
    with pytest.raises(BridgeError, match="open think block"):
        prompt("deepseek-r1")
    assert prompt("deepseek-r1", enable_thinking=True).endswith("<think>\n")
