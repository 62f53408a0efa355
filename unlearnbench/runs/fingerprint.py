"""What makes two measurements comparable. A fingerprint holds the facts that must agree before two
runs are compared, an interrupted one goes on, or a finished one is taken over; an environment says
where and with what a run was made.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Protocol

from unlearnbench.errors import one_line
from unlearnbench.results import (
    Checkpoint,
    Condition,
    Environment,
    RunResult,
    Settings,
    SplitData,
)
from unlearnbench.util.files import content_sha256
from unlearnbench.util.version import __version__

# Whatever can move a number.
_PACKAGES = ["accelerate", "bitsandbytes", "datasets", "flash-attn", "gguf", "numpy", "peft"]
_PACKAGES += ["rouge-score", "safetensors", "scikit-learn", "scipy", "tokenizers", "torch"]
_PACKAGES += ["transformers", "vllm"]
_PACKAGE_DIR = Path(__file__).resolve().parent.parent
# Whatever decides a result in a checkout; an entry added to a board or a page of docs does not.
_DECISIVE = ("unlearnbench", "tasks", "pyproject.toml")
COMPUTED = re.compile(r" \(fp32\), computed in (bf16|fp16)$")
"""What a scheme ends with where the compute dtype is narrower than the weights."""
ASKED = (
    *("add_bos_token", "max_length", "think_end_token", "enable_thinking", "date_string"),
    "mask_pad_id",
)
"""Settings that move what a model reads, or where its answer begins."""


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
        cls,
        checkpoint: Checkpoint,
        settings: Settings,
        condition: Condition,
        other: Checkpoint | None = None,
    ) -> Fingerprint:
        """What a run folder holds one of. Hashes tell checkpoints apart, names do not. other: whose
        tokenizer that of ``checkpoint`` is compared with, see ``tokenizer_sha256``.
        """
        facts = {
            "condition": condition.name,
            "quant-kernel": condition.options.kernel,
            "weights": checkpoint.weights_sha256,
            "tokenizer": tokenizer_sha256(checkpoint, other or checkpoint),
            "config": checkpoint.config_sha256 or "none",
            "adapter": checkpoint.adapter or "none",
            "deployed weights": condition.deployed and condition.deployed.weights_sha256,
        }
        return cls.of(settings.model_dump() | facts) | cls.of_condition(condition)

    @classmethod
    def of_condition(cls, condition: Condition) -> Fingerprint:
        """What was done to the weights. The kernel that multiplies by them is no part of it."""
        options = condition.options
        calibration = options.calibration and options.calibration.model_dump()
        # What it was computed in is a setting, and older files do not say it here too.
        scheme = COMPUTED.sub("", options.scheme)
        first = condition.first and cls.of_condition(condition.first).facts
        facts = {"scheme": scheme, "option": options.further, "calibration": calibration}
        return cls.of(facts | {"first": first})

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


class KnowsTokenizer(Protocol):
    """What says which tokenizer it is about: a checkpoint, a certificate."""

    @property
    def tokenizer_sha256(self) -> str: ...
    @property
    def tokenizer_probe_sha256(self) -> str | None: ...


def tokenizer_sha256(checkpoint: KnowsTokenizer, other: KnowsTokenizer) -> str:
    """By which ``checkpoint``'s tokenizer is compared with that of ``other``: what it does, where
    both say so; else its content, as older files have it.
    """
    does = checkpoint.tokenizer_probe_sha256
    both = does is not None and other.tokenizer_probe_sha256 is not None
    return does if does is not None and both else checkpoint.tokenizer_sha256


def across_sha256(checkpoint: Checkpoint, other: Checkpoint) -> str:
    """The same between two checkpoints: tokens that steer one of them make no difference."""
    bare = checkpoint.tokenizer_unsteered_sha256
    known = other.tokenizer_unsteered_sha256 or other.tokenizer_probe_sha256
    return bare if bare and known else tokenizer_sha256(checkpoint, other)


def _flat(facts: Mapping[str, object], outer: str = "") -> Iterator[tuple[str, object]]:
    for name, fact in facts.items():
        if isinstance(fact, Mapping):
            yield from _flat(fact, f"{outer}{name} ")
        elif fact is not None:
            yield f"{outer}{name}", fact


def differences(there: Fingerprint, here: Fingerprint) -> list[str]:
    """Every fact that differs: ``seed is 0 there and 7 here``; hashes by their first 12 digits."""

    def shown(side: Fingerprint, name: str) -> str:
        text = one_line(side.facts.get(name, "absent"), 80)
        return text[:12] if re.fullmatch("[0-9a-f]{64}", text) else text

    return [
        f"{one_line(name, 120)} is {shown(there, name)} there and {shown(here, name)} here"
        for name in {**here.facts, **there.facts}
        if there.facts.get(name) != here.facts.get(name)
    ]


def describe_environment(device: str, dtype: str, batch_size: int | None) -> Environment:
    """Collect the versions and the machine. ``batch_size`` None is automatic."""
    torch = sys.modules.get("torch")  # a scripted model needs none, and loading it takes seconds
    name = platform.machine()
    if torch and device.startswith("cuda"):
        name = torch.cuda.get_device_name(device)
    return Environment(
        unlearnbench=__version__,
        git_hash=git_hash(),
        source_sha256=source_sha256(),
        python=platform.python_version(),
        platform=platform.platform(),
        packages={p: found for p in _PACKAGES if (found := package_version(p))},
        device=f"{device} ({name})",
        dtype=dtype,
        threads=torch.get_num_threads() if torch else 1,
        batch_size=str(batch_size or "auto"),
    )


def environments(run: RunResult) -> dict[str, Environment]:
    """The environment of each task, lm-eval's too; a group of theirs is made of its tasks."""
    found = {n: r.environment for n, r in (run.harness or {}).items() if r.kind == "task"}
    found |= {name: result.environment for name, result in run.tasks.items()}
    return {name: environment or run.environment for name, environment in found.items()}


def versions(environment: Environment) -> dict[str, str]:
    """Of the packages that can move a number, unlearnbench first."""
    return {"unlearnbench": environment.unlearnbench, **environment.packages}


def mixed_versions(run: RunResult) -> str:
    """The first packages of which a run's tasks were measured with several versions:
    ``transformers 5.23.0 for news_verbmem, 5.24.0 for news_knowmem_f``; empty where there is none.
    """
    tasks: dict[str, dict[str, list[str]]] = {}
    for task, environment in environments(run).items():
        for package, found in versions(environment).items():
            tasks.setdefault(package, {}).setdefault(one_line(found, 40), []).append(task)
    lines = []
    for package, by_version in tasks.items():
        if len(by_version) > 1:
            parts = [f"{v} for {one_line(' and '.join(n), 120)}" for v, n in by_version.items()]
            lines.append(f"{one_line(package, 40)} {', '.join(parts)}")
    return first_few(lines)


def first_few(parts: Sequence[str], few: int = 3) -> str:
    """The first parts of a line, and how many more there are."""
    more = f"; and {len(parts) - few} more" if len(parts) > few else ""
    return "; ".join(parts[:few]) + more


@cache
def package_version(name: str) -> str | None:
    """The version of an installed package; None where there is none."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


@cache
def source_sha256() -> str:
    """SHA-256 over this package's own Python files, so that a changed copy can be told apart."""
    digest = hashlib.sha256()
    for path in sorted(_PACKAGE_DIR.rglob("*.py")):
        digest.update(path.relative_to(_PACKAGE_DIR).as_posix().encode() + b"\0")
        digest.update(path.read_bytes())
    return digest.hexdigest()


@cache
def git_hash() -> str | None:
    """Unlearnbench's own commit, "-dirty" appended where code or tasks differ; None where it does
    not run from a checkout. Asked in this file's folder, never in the caller's.
    """
    root = _PACKAGE_DIR.parent
    if not (root / ".git").exists() or not (root / "pyproject.toml").exists():
        return None
    # A hook's GIT_DIR would answer for another repository.
    outside = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(root), *arguments]
        return subprocess.check_output(
            command, text=True, env=outside, stderr=subprocess.DEVNULL
        ).strip()

    try:
        commit = git("rev-parse", "HEAD")
        changed = git("status", "--porcelain", "--", *_DECISIVE)
    except (OSError, subprocess.CalledProcessError):
        return None
    return f"{commit}-dirty" if changed else commit
