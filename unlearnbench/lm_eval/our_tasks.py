"""Our tasks as lm-eval's tasks: what ``tasks/*.yaml`` beside this file name as their class.

lm_eval --model hf --include_path "$(unlearnbench tasks --lm-eval-path)" --tasks news_verbmem ...
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lm_eval.api.metrics import mean
from lm_eval.api.task import ConfigurableTask

from unlearnbench.checkpoints.options import LoadOptions
from unlearnbench.checkpoints.tokenizer import open_tokenizer
from unlearnbench.errors import DataError, TaskError, UnlearnbenchError, one_line
from unlearnbench.metrics.fluency import ngram_entropy
from unlearnbench.tasks.chat import render
from unlearnbench.tasks.registry import load_registry
from unlearnbench.tasks.rows import DataOptions, load_samples, read_rows
from unlearnbench.tasks.spec import generation_metric
from unlearnbench.util.process import quiet_hub
from unlearnbench.util.text import blank_in_answer


class BridgeError(UnlearnbenchError, SystemExit):
    """An error of ours under lm-eval, whose command line would print a traceback: as a SystemExit
    it ends there with its one line, and for a caller from Python it is an ordinary exception.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.code = f"unlearnbench: error: {one_line(message, 2000)}"


class OurTask(ConfigurableTask):  # type: ignore[misc]  # lm-eval has no types
    """One of our generation tasks: the rows, prompts, decoding and scores are ours.

    config: what lm-eval made of the YAML file; ``task`` names the task, and ``metadata`` holds the
    model's arguments, which tell the tokenizer that cuts VerbMem's targets.

    Raises:
        BridgeError: a task that lm-eval cannot express, missing rows, or no tokenizer.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        try:
            self._plan, self._rows = _prepare(str(config["task"]), config.get("metadata") or {})
        except UnlearnbenchError as error:
            raise BridgeError(str(error)) from None
        spec = self._plan.spec
        theirs = {
            **(spec.harness_config() or {}),
            "doc_to_text": "prompt",
            "doc_to_target": "target",
            "process_results": score_document,
            "metric_list": [
                {"metric": name, "aggregation": points, "higher_is_better": spec.want == "high"}
                for name in generation_metric(spec.metric).score_output("", "a")
            ],
            "metadata": {"version": spec.version, "task_sha256": spec.definition_sha256},
        }
        super().__init__(config=theirs)

    def download(self, dataset_kwargs: object = None, **_: object) -> None:
        """The rows are read already, from UNLEARNBENCH_DATA first."""
        from datasets import Dataset

        self.dataset = {self.config.test_split: Dataset.from_list(self._rows)}

    def fewshot_docs(self) -> None:
        """None for lm-eval to draw from: the shots are part of each prompt."""

    def fewshot_context(
        self,
        doc: Mapping[str, str],
        num_fewshot: int,
        system_instruction: str | None = None,
        apply_chat_template: bool = False,
        fewshot_as_multiturn: bool = False,
        chat_template: Callable[..., str] | None = None,
        gen_prefix: str | None = None,
    ) -> str:
        """The whole prompt; under a chat template one turn of the user's, as in our own runs."""
        del fewshot_as_multiturn, gen_prefix
        if num_fewshot != self.config.num_fewshot:
            raise BridgeError(
                f"{self._plan.spec.task} has {self.config.num_fewshot} shots in its prompt; "
                "leave --num_fewshot out"
            )
        if not apply_chat_template or chat_template is None:
            return (
                f"{system_instruction}\n\n{doc['prompt']}" if system_instruction else doc["prompt"]
            )
        if self._plan.spec.chat is not None:
            raise BridgeError(
                f"{self._plan.spec.task} has turns of its own under a chat template; run "
                f"`unlearnbench --tasks {self._plan.spec.task} --apply-chat-template`"
            )
        turns = [{"role": "user", "content": doc["prompt"]}]
        if system_instruction:
            turns.insert(0, {"role": "system", "content": system_instruction})
        model = getattr(chat_template, "__self__", None)
        tokenizer, told = (
            getattr(model, "tokenizer", None),
            getattr(model, "chat_template_args", {}),
        )
        if not getattr(tokenizer, "chat_template", None):  # rendered elsewhere, as by a server
            return chat_template(turns, add_generation_prompt=True)
        try:
            return render(turns, tokenizer, told)
        except UnlearnbenchError as error:
            raise BridgeError(str(error)) from None


def _prepare(name: str, metadata: Mapping[str, object]) -> tuple[Any, list[dict[str, str]]]:
    spec = load_registry().tasks[name]
    if spec.harness_config() is None:
        raise TaskError(
            f"{name} cannot run under lm-eval, whose tasks get no log-probability of single "
            f"tokens; run `unlearnbench --tasks {name}`"
        )
    tokenizer: Any = None
    other, asked = spec.without_blank(), str(metadata.get("answer_blank", "auto"))
    if other is not None:
        if asked == "auto" and (metadata.get("tokenizer") or metadata.get("pretrained")):
            tokenizer = _load_tokenizer(name, metadata)
        spec = other if blank_in_answer(asked, tokenizer) else spec
    root = os.environ.get("UNLEARNBENCH_DATA")
    plan = load_samples(spec, DataOptions(Path(root) if root else None), None)

    def cut(text: str, most: int) -> str:
        nonlocal tokenizer
        tokenizer = tokenizer or _load_tokenizer(name, metadata)
        ids = list(tokenizer(text, add_special_tokens=True)["input_ids"])
        return text if len(ids) <= most else tokenizer.decode(ids[:most], skip_special_tokens=True)

    rows = [
        {"id": s.id, "prompt": s.text, "target": s.target, "metric": spec.metric}
        for s in spec.fit(plan.samples, cut)
    ]
    return plan, rows


def _load_tokenizer(task: str, metadata: Mapping[str, object]) -> Any:
    """The model's own, found as lm-eval's ``hf`` model finds it, and read as for our own runs."""
    name = metadata.get("tokenizer") or metadata.get("pretrained")
    if not isinstance(name, str):
        raise TaskError(
            f"{task} cuts its targets by the model's tokenizer, and nothing names the model; pass "
            "--model_args pretrained=..., or metadata={'pretrained': ...} to the TaskManager"
        )
    path, own = Path(name), not metadata.get("tokenizer")
    revision = str(metadata["revision"]) if own and metadata.get("revision") else None
    if own and metadata.get("gguf_file"):
        name = str(_find_gguf(task, path, str(metadata["gguf_file"]), revision))
    elif (path / "adapter_config.json").is_file() and not any(path.glob("tokenizer*")):
        name = str(metadata.get("base") or name)
    options = LoadOptions(trust_remote_code=metadata.get("trust_remote_code") is True)
    return open_tokenizer(name, options, revision)


def _find_gguf(task: str, model: Path, name: str, revision: str | None) -> Path:
    if model.is_dir():
        return model / name
    from huggingface_hub import hf_hub_download

    quiet_hub()
    try:
        return Path(hf_hub_download(model.as_posix(), name, revision=revision))
    except Exception as error:  # the hub client's errors have no common base
        said = f"{task}: no {name} in {model} ({one_line(error, 200)})"
        raise TaskError(f"{said}; check gguf_file in --model_args") from None


def score_document(doc: Mapping[str, str], results: Sequence[str]) -> dict[str, float]:
    """Our metric's figures of one output, each from 0 to 1."""
    return generation_metric(doc["metric"]).score_output(results[0], doc["target"])


def points(scores: Sequence[float]) -> float:
    """The mean x 100, as our results state it."""
    return 100 * float(mean(scores))


class FluencyTask(ConfigurableTask):  # type: ignore[misc]  # lm-eval has no types
    """Flu of the group ``general``; its YAML file says everything but where the rows are: below
    UNLEARNBENCH_DATA first, as ``tatsu-lab/alpaca_eval/alpaca_eval/eval.jsonl``, then on the hub.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__(config={k: v for k, v in config.items() if k != "class"})

    def download(self, dataset_kwargs: object = None, **_: object) -> None:
        """Raises: BridgeError where there are no rows."""
        from datasets import Dataset

        try:
            rows = _fluency_rows(self.config.dataset_path, self.config.dataset_name)
        except UnlearnbenchError as error:
            raise BridgeError(f"{self.config.task}: {error}") from None
        self.dataset = {self.config.test_split: Dataset.from_list(rows)}


def _fluency_rows(dataset: str, subset: str) -> list[dict[str, str]]:
    root = os.environ.get("UNLEARNBENCH_DATA")
    found = [
        path
        for suffix in (".jsonl", ".json", ".parquet")
        if root and (path := Path(root) / dataset / subset / f"eval{suffix}").is_file()
    ]
    path = found[0] if found else _fetch(dataset, f"{subset}.json")
    rows = [{"instruction": row.get("instruction")} for row in read_rows(path)]
    if not rows or not all(isinstance(r["instruction"], str) and r["instruction"] for r in rows):
        raise DataError(f"{path}: every row needs a text 'instruction'")
    return rows  # type: ignore[return-value]  # just checked


def _fetch(dataset: str, name: str) -> Path:
    try:
        from huggingface_hub import hf_hub_download

        quiet_hub()
        return Path(hf_hub_download(dataset, name, repo_type="dataset"))
    except Exception as error:  # the hub client's errors have no common base
        raise DataError(
            f"{name} could not be loaded from the hub ({dataset}: {one_line(error, 200)}); put "
            f"{dataset}/{Path(name).stem}/eval.jsonl into the folder that UNLEARNBENCH_DATA names"
        ) from error


def score_fluency(doc: Mapping[str, str], results: Sequence[str]) -> dict[str, float]:
    """Flu of one output, in bits."""
    return {"ngram_entropy": ngram_entropy(results[0])}
