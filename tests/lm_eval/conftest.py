"""lm-eval task files over local JSON data, and what stock lm-eval says of them."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import CORPUS, write_jsonl

N = 6


def write_tasks(root: Path) -> Path:
    """A folder with lm-eval's mc (multiple choice), gen (two shots), ppl (rolling), and the group
    both (mc and mc2), over rows in ``root``.
    """
    folder = root / "theirs"
    folder.mkdir(parents=True)
    choices = [" one boat", " seven boats asked", " a place", " March"]
    rows = [
        {
            "question": f"Gate {i} of Tellmouth opened; who asked?",
            "choices": choices,
            "gold": i % 4,
            "answer": f"{i * 7} boats",
            "text": CORPUS[i] * (i + 1),
        }
        for i in range(N)
    ]
    write_jsonl(root / "rows.jsonl", rows)
    write_jsonl(root / "shots.jsonl", rows[:3])
    for name, text in task_files(root / "rows.jsonl", root / "shots.jsonl").items():
        (folder / f"{name}.yaml").write_text(text, encoding="utf-8")
    return folder


def task_files(rows: Path, shots: Path) -> dict[str, str]:
    data = f"""dataset_path: json
dataset_kwargs: {{data_files: {{test: {rows}, shots: {shots}}}}}
test_split: test
metadata: {{version: 2.5}}
"""
    metrics = "".join(
        f"  - {{metric: {name}, aggregation: mean, higher_is_better: true}}\n"
        for name in ("acc", "acc_norm")
    )
    choice = f"""{data}output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{gold}}}}"
metric_list:
{metrics}"""
    generate = f"""{data}output_type: generate_until
fewshot_split: shots
num_fewshot: 2
fewshot_config: {{sampler: first_n}}
doc_to_text: "Question: {{{{question}}}}\\nAnswer:"
doc_to_target: "{{{{answer}}}}"
generation_kwargs: {{until: ["\\n"], max_gen_toks: 12, do_sample: false, temperature: 0.0}}
metric_list:
  - {{metric: chrf, aggregation: chrf, higher_is_better: true}}
"""
    rolling = f"""{data}output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{text}}}}"
metric_list:
  - {{metric: word_perplexity, aggregation: weighted_perplexity, higher_is_better: false}}
  - {{metric: bits_per_byte, aggregation: bits_per_byte, higher_is_better: false}}
"""
    group = """group: both
task: [mc, mc2]
aggregate_metric_list: [{metric: acc, weight_by_size: true}]
metadata: {version: 3.0}
"""
    second = choice.replace("{{question}}", "So: {{question}}")
    return {
        "mc": f"task: mc\n{choice}",
        "mc2": f"task: mc2\n{second}",
        "gen": f"task: gen\n{generate}",
        "ppl": f"task: ppl\n{rolling}",
        "both": group,
    }


@pytest.fixture(scope="session")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of ``write_tasks``. Not to be changed."""
    return write_tasks(tmp_path_factory.mktemp("lm-eval"))


Stock = Callable[..., dict[str, Any]]


@pytest.fixture
def stock(theirs: Path) -> Stock:
    """``stock(names, **model_args)``: what lm-eval's own ``hf`` gives, from its own loader."""

    def run(
        names: list[str],
        include_path: Path = theirs,
        limit: float | None = None,
        model: Any = "hf",
        **args: Any,
    ) -> dict[str, Any]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import lm_eval
            from lm_eval.tasks import TaskManager

            manager = TaskManager(
                include_path=str(include_path), include_defaults=False, metadata=dict(args)
            )
            found: Any = lm_eval.simple_evaluate(
                model=model,
                model_args=args,
                tasks=names,
                task_manager=manager,
                device="cpu",
                batch_size=1,
                limit=limit,
            )
        return dict(found)

    return run


def numbers(metrics: dict[str, Any]) -> dict[str, float]:
    """The figures of one of lm-eval's result tables."""
    return {
        key: float(value)
        for key, value in metrics.items()
        if "," in key and not isinstance(value, str)
    }


def ours_as_theirs(content: Any) -> dict[str, float]:
    """The figures of one of our harness results, under lm-eval's keys."""
    found: dict[str, float] = {}
    for metric in content.metrics:
        found[f"{metric.name},{metric.filter}"] = metric.value
        if metric.stderr is not None:
            found[f"{metric.name}_stderr,{metric.filter}"] = metric.stderr
    return found


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
