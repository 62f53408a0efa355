"""Is it the same measurement? A fingerprint holds the facts that must agree before two runs are
compared, before an interrupted one goes on, and before a finished one is taken over.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from unlearnbench.errors import one_line
from unlearnbench.results import Checkpoint, Condition, Settings, SplitData
from unlearnbench.runs.provenance import describe_environment, package_version
from unlearnbench.util.files import content_sha256


@dataclass(frozen=True)
class Fingerprint:
    """Facts by name, in words that a message can show. Values are JSON's; a fact that is None is
    left out, and differs from every value.
    """

    facts: Mapping[str, Any]

    @classmethod
    def of(cls, facts: Mapping[str, object]) -> Fingerprint:
        """Of any facts, as they would be read from a JSON file. Those of an inner mapping are each
        a fact: ``options seed``.
        """
        return cls(json.loads(json.dumps(dict(_flat(facts)))))

    @classmethod
    def of_run(
        cls, checkpoint: Checkpoint, settings: Settings, condition: Condition
    ) -> Fingerprint:
        """What a run folder holds one of. Hashes tell checkpoints apart, names do not."""
        facts = {
            "condition": condition.name,
            "quant-kernel": condition.options.kernel,
            "weights": checkpoint.weights_sha256,
            "tokenizer": checkpoint.tokenizer_sha256,
            "config": checkpoint.config_sha256 or "none",
            "adapter": checkpoint.adapter or "none",
        }
        return cls.of(settings.model_dump() | facts) | cls.of_condition(condition)

    @classmethod
    def of_condition(cls, condition: Condition) -> Fingerprint:
        """What was done to the weights. The kernel that multiplies by them is no part of it."""
        options = condition.options
        calibration = options.calibration.model_dump() if options.calibration else {}
        return cls.of(
            {
                "scheme": options.scheme,
                "option": options.further,
                "calibration": calibration,
            }
        )

    @classmethod
    def of_task(cls, version: float, definition: str, data: Iterable[SplitData]) -> Fingerprint:
        """Of a task's version, the hash of its definition, and the rows that it read."""
        rows = {f"data of split {one_line(part.split, 80)!r}": part.sha256 for part in data}
        return cls.of({"task version": version, **rows, "task definition": definition})

    @classmethod
    def of_samples(cls, what: str, ids: Sequence[str]) -> Fingerprint:
        """Of which samples were taken, and in which order."""
        places = {f"number {n} of the {what}": name for n, name in enumerate(ids, start=1)}
        return cls.of({f"number of {what}": len(ids), **places})

    @classmethod
    def of_machine(
        cls, settings: Settings, condition: Condition, batch_size: int | None
    ) -> Fingerprint:
        """What moves the last bits of a sum, and so may move one answer among many: one task's
        answers are to be of one piece.
        """
        found = describe_environment(settings.device, settings.dtype, batch_size)
        backend = condition.options.backend  # our own have no package
        torch = sys.modules.get("torch")
        return cls.of(
            {
                "batch size": found.batch_size,
                "unlearnbench's source": found.source_sha256,
                "device name": found.device,
                "threads": found.threads,
                "processor": torch and torch.backends.cpu.get_cpu_capability(),
                "package": {backend: package_version(backend)} | found.packages,
            }
        )

    def __or__(self, other: Fingerprint) -> Fingerprint:
        return Fingerprint({**self.facts, **other.facts})

    @property
    def sha256(self) -> str:
        """One hash of all facts."""
        return content_sha256(self.facts)


def differences(there: Fingerprint, here: Fingerprint) -> list[str]:
    """Every fact that differs: ``seed is 0 there and 7 here``; hashes by their first 12 digits."""
    return [
        f"{one_line(name, 120)} is {_shown(there, name)} there and {_shown(here, name)} here"
        for name in {**here.facts, **there.facts}
        if there.facts.get(name) != here.facts.get(name)
    ]


def _flat(facts: Mapping[str, object], outer: str = "") -> Iterator[tuple[str, object]]:
    for name, fact in facts.items():
        if isinstance(fact, Mapping):
            yield from _flat(fact, f"{outer}{name} ")
        elif fact is not None:
            yield f"{outer}{name}", fact


def _shown(side: Fingerprint, name: str) -> str:
    text = one_line(side.facts.get(name, "absent"), 80)
    return text[:12] if re.fullmatch("[0-9a-f]{64}", text) else text
