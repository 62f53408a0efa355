"""lm-eval's tasks on the model of a run: task by task, kept in the run folder as ours are."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import random
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unlearnbench.errors import (
    MetricError,
    OptionError,
    ResultError,
    UnlearnbenchError,
    one_line,
)
from unlearnbench.lm_eval.their_tasks import Loaded, quiet_harness
from unlearnbench.results import HarnessMetric, HarnessResult
from unlearnbench.runs.fingerprint import Fingerprint, differences

if TYPE_CHECKING:
    from unlearnbench.models.base import Model

log = logging.getLogger("unlearnbench")

Metrics = Mapping[str, Any]


@dataclass(frozen=True)
class Suite:
    """The lm-eval tasks of one command, loaded, and how they are to be asked."""

    loaded: Loaded
    limit: int | float | None = None
    chat: Mapping[str, object] | None = None
    """What the chat template is told; None where prompts go through none."""
    gen_kwargs: Mapping[str, object] = field(default_factory=dict)
    trust: bool = False
    batch_size: int | None = None
    progress: bool = False

    def __post_init__(self) -> None:
        for task in self.loaded.tasks.values():
            if self.gen_kwargs and task.get_config("output_type") == "generate_until":
                values = dict(self.gen_kwargs)
                task.set_config(key="generation_kwargs", value=values, update=True)

    def missing(self, found: Mapping[str, HarnessResult], folder: Path) -> list[str]:
        """The tasks that are still to be run, beside those ``found`` in a run folder.

        Raises:
            ResultError: the folder holds a task of that name that was asked otherwise, or its
                samples are missing or changed.
        """
        for name in [name for name in self.loaded.tasks if name in found]:
            self._require_same(name, found[name], folder)
            log.info("%s: already in %s, not computed again", name, folder)
        return [name for name in self.loaded.tasks if name not in found]

    def _require_same(self, name: str, earlier: HarnessResult, folder: Path) -> None:
        config = self.loaded.tasks[name].dump_config()
        facts = {
            "lm_eval": version("lm_eval"),
            "config_sha256": _config_sha256(config),
            "num_fewshot": config.get("num_fewshot"),
        }
        here = Fingerprint.of(facts)
        there = Fingerprint.of({key: getattr(earlier, key) for key in facts})
        if there != here:
            raise ResultError(
                f"{folder} holds another {name}: {'; '.join(differences(there, here))}; "
                "use another --output"
            )
        path = samples_path(folder, name)
        if not path.is_file() or _sha256(path.read_bytes()) != earlier.samples_sha256:
            raise ResultError(
                f"{path} is not the file that run.json names; remove {folder} to evaluate again"
            )

    def adapt(self, model: Model) -> Any:
        """A model as lm-eval takes one.

        Raises:
            OptionError: it is none that lm-eval can be given.
        """
        from unlearnbench.models.base import Delegate
        from unlearnbench.models.hf import HFModel
        from unlearnbench.models.packable import mixes_rows

        if isinstance(model, Delegate):  # several processes, or vLLM beside it
            model = model.own
        if not isinstance(model, HFModel):
            raise OptionError("lm-eval's tasks need a checkpoint, not a Model object of your own")
        with quiet_harness():
            from unlearnbench.lm_eval.model import LoadedLM

            if mixes_rows(model.network):  # a prompt's scores must not depend on its neighbours
                return LoadedLM(model, 1, self.progress, self.chat)
            # lm-eval's own search for the largest batch is of no use on a CPU.
            auto: int | str = 1 if model.device == "cpu" else "auto"
            return LoadedLM(model, self.batch_size or auto, self.progress, self.chat)

    def measure(self, name: str, lm: Any) -> tuple[HarnessResult, bytes]:
        """A task's result, and the content of its samples' file.

        Raises:
            MetricError: the task failed.
        """
        task = self.loaded.tasks[name]
        with quiet_harness():
            from lm_eval.evaluator import evaluate

            _seed()
            try:
                found = evaluate(
                    lm,
                    {"tasks": {name: task}, "groups": {}},
                    limit=self.limit,
                    log_samples=True,
                    apply_chat_template=self.chat is not None,
                    fewshot_as_multiturn=self.chat is not None,
                    confirm_run_unsafe_code=self.trust,
                )
            except (UnlearnbenchError, KeyboardInterrupt):
                raise
            except Exception as error:  # task files are programs and can fail in any way
                reason = one_line(f"{type(error).__name__}: {error}", 300)
                raise MetricError(f"lm-eval task {name} failed: {reason}") from error
        samples = sorted(found["samples"][name], key=lambda s: (s["doc_id"], s["filter"]))
        content = _sample_lines(name, samples)
        result = HarnessResult(
            kind="task",
            version=str(found["versions"][name]),
            lm_eval=version("lm_eval"),
            chance=_chance(task, samples),
            metrics=_metrics(name, found["results"][name], found["higher_is_better"][name]),
            n=found["n-samples"][name]["effective"],
            num_fewshot=found["n-shot"][name],
            config_sha256=_config_sha256(found["configs"][name]),
            documents_sha256=_documents_sha256(samples),
            samples_sha256=_sha256(content),
        )
        return result, content

    def aggregate(self, found: Mapping[str, HarnessResult]) -> dict[str, HarnessResult]:
        """The results of groups whose tasks are all ``found``, by lm-eval's own rule."""
        have = {name: _as_theirs(name, r) for name, r in found.items() if r.kind == "task"}
        groups: dict[str, HarnessResult] = {}
        for name, group in self.loaded.groups.items():
            leaves = [task.task_name for task in group.get_all_tasks()]
            if not group.has_aggregation or not all(leaf in have for leaf in leaves):
                continue
            better = {m.name: m.higher_is_better for x in leaves for m in found[x].metrics}
            groups[name] = HarnessResult(
                kind="group",
                version=str(group.version),
                lm_eval=version("lm_eval"),
                chance=_of_all([found[leaf] for leaf in leaves]),
                metrics=_metrics(name, group.aggregate(have), better),
                n=sum(found[leaf].n for leaf in leaves),
                subtasks=tuple(leaves),
            )
        return groups


def samples_path(folder: Path, name: str) -> Path:
    """Where a task's samples are, in lm-eval's own layout."""
    return folder / "lm_eval" / f"samples_{re.sub(r'[^A-Za-z0-9._-]+', '_', name)}.jsonl"


def _seed() -> None:
    """lm-eval's own defaults, before every task: none depends on those that ran before it."""
    import numpy as np
    import torch

    random.seed(0)
    np.random.seed(1234)
    torch.manual_seed(1234)


def _metrics(
    name: str, found: Metrics, better: Mapping[str, bool | None]
) -> tuple[HarnessMetric, ...]:
    kept = []
    for key, value in found.items():
        metric, comma, filter_name = key.partition(",")
        if not comma or metric.endswith("_stderr"):
            continue
        if not isinstance(value, (int, float)) or not math.isfinite(value):
            raise MetricError(
                f"lm-eval task {name}: {key} is {one_line(value, 60)}, no finite number"
            )
        stderr = found.get(f"{metric}_stderr,{filter_name}")
        known = isinstance(stderr, (int, float)) and math.isfinite(stderr)
        kept.append(
            HarnessMetric(
                name=metric,
                filter=filter_name,
                value=float(value),
                stderr=float(stderr) if known else None,  # type: ignore[arg-type]
                higher_is_better=better.get(metric),
            )
        )
    if not kept:
        raise MetricError(f"lm-eval task {name} gave no metric")
    return tuple(kept)


def _chance(task: Any, samples: list[dict[str, Any]]) -> float | None:
    """The accuracy of guessing; None where there are no choices."""
    if task.get_config("output_type") != "multiple_choice":
        return None
    choices = {s["doc_id"]: len(task.doc_to_choice(s["doc"])) for s in samples}
    if min(choices.values()) < 2:
        raise MetricError(f"lm-eval task {task.task_name}: a document has one choice")
    return sum(1 / n for n in choices.values()) / len(choices)


def _of_all(found: list[HarnessResult]) -> float | None:
    """A group's chance, over all documents; None where a task has none."""
    known = [(r.chance, r.n) for r in found if r.chance is not None]
    return (
        sum(c * n for c, n in known) / sum(r.n for r in found) if len(known) == len(found) else None
    )


def _as_theirs(name: str, result: HarnessResult) -> dict[str, Any]:
    found: dict[str, Any] = {"name": name, "alias": name, "sample_len": result.n}
    for metric in result.metrics:
        found[f"{metric.name},{metric.filter}"] = metric.value
        stderr = "N/A" if metric.stderr is None else metric.stderr
        found[f"{metric.name}_stderr,{metric.filter}"] = stderr
    return found


def _sample_lines(name: str, samples: list[dict[str, Any]]) -> bytes:
    lines = []
    for sample in samples:
        arguments = {
            f"gen_args_{i}": {f"arg_{j}": part for j, part in enumerate(parts)}
            for i, parts in enumerate(sample["arguments"])
        }
        kept = {**sample, "arguments": arguments, "resps": _texts(sample["resps"])}
        kept["filtered_resps"] = _texts(sample["filtered_resps"])
        kept["target"] = str(sample["target"])
        try:
            lines.append(json.dumps(kept, default=str, allow_nan=False))
        except ValueError:
            raise MetricError(
                f"lm-eval task {name}: document {sample['doc_id']} has a score that is not finite"
            ) from None
    return "".join(f"{line}\n" for line in lines).encode("ascii")


def _texts(value: object) -> object:
    if isinstance(value, (list, tuple)):
        return [_texts(part) for part in value]
    return str(value)


def _config_sha256(config: Mapping[str, Any]) -> str:
    facts = dict(config)
    if isinstance(facts.get("metadata"), Mapping):
        facts["metadata"] = {k: v for k, v in facts["metadata"].items() if k != "config_source"}
    text = json.dumps(facts, sort_keys=True, default=str)
    return _sha256(re.sub(r"0x[0-9a-f]+", "", text).encode("utf-8"))


def _documents_sha256(samples: list[dict[str, Any]]) -> str:
    lines = [f"{s['doc_hash']} {s['prompt_hash']} {s['target_hash']}\n" for s in samples]
    return _sha256("".join(lines).encode("ascii"))


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
