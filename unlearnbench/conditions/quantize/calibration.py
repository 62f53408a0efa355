"""Calibration texts for what looks at activations: a named set, sampled with a seed and hashed.

Whether the set's domain matters for what comes back is an open question of arXiv 2410.16454, so it
is part of a run's identity.
"""

from __future__ import annotations

import json
import logging
import random
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from unlearnbench.conditions.base import Calibration
from unlearnbench.errors import DataError, OptionError, PrecisionError, one_line
from unlearnbench.results import CalibrationData
from unlearnbench.tasks.rows import TaskSamples
from unlearnbench.util.files import content_sha256

if TYPE_CHECKING:
    import torch

    from unlearnbench.checkpoints.checkpoint import CheckpointSource

log = logging.getLogger("unlearnbench")

CALIBRATION_TOKENS = 512
GENERIC = Path(__file__).parent / "data" / "generic.jsonl"
_MAX_FILE = 256 * 2**20


def pick_calibration(
    name: str, plans: Sequence[TaskSamples], samples: int, seed: int
) -> Calibration:
    """Choose ``samples`` texts of a set: ``generic`` (96 passages of ours on many subjects),
    ``forget`` or ``retain`` (rows of the tasks that are run), or a ``.jsonl`` file with a ``text``
    field or a ``.txt`` file of passages parted by blank lines. A smaller set is used whole.

    Raises:
        OptionError: no such set or file, or no task to take it from.
        DataError: the file holds no texts.
    """
    if samples < 1:
        raise OptionError(f"--calibration-samples {samples}: use 1 or more")
    texts = list(dict.fromkeys(read_texts(name, plans)))
    if len(texts) < samples:
        log.info("--calibration %s has %d texts; all are used", name, len(texts))
    chosen = random.Random(seed).sample(texts, min(samples, len(texts)))  # noqa: S311
    data = CalibrationData(
        name=Path(name).name,
        samples=len(chosen),
        max_tokens=CALIBRATION_TOKENS,
        seed=seed,
        sha256=content_sha256(chosen),
    )
    return Calibration(tuple(chosen), data)


def read_texts(name: str, plans: Sequence[TaskSamples], option: str = "--calibration") -> list[str]:
    """The texts that ``option`` names: ``forget`` or ``retain``, the rows of tasks, each with its
    answer and without shots; or those of a file, and for calibration ``generic``. Raises as
    ``pick_calibration``.
    """
    if name == "generic" and option == "--calibration":
        return _read(GENERIC, option)
    if name not in ("forget", "retain"):
        return _read(Path(name), option)
    found = [
        spec.plain_text(row, f"{spec.task}: {spec.own_split}/{i}")
        for plan in plans
        if (spec := plan.spec).about == name
        for i, row in enumerate(plan.splits[spec.own_split].rows)
    ]
    if not found:
        raise OptionError(
            f"{option} {name}: none of the tasks has {name} rows; add one (news_verbmem has "
            "forget rows, news_knowmem_r retain rows), or give a file"
        )
    return found


def _read(path: Path, option: str) -> list[str]:
    try:
        if path.stat().st_size > _MAX_FILE:
            raise OptionError(f"{option} {path} is larger than {_MAX_FILE >> 20} MiB")
        content = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise OptionError(
            f"{option} {one_line(path, 120)} is no generic, forget or retain, and no readable "
            f"file ({one_line(error, 80)})"
        ) from None
    if path.suffix == ".txt":
        texts = [part.strip() for part in content.split("\n\n")]
    elif path.suffix == ".jsonl":
        texts = []
        for number, line in enumerate(content.split("\n"), 1):
            try:
                row = json.loads(line) if line.strip() else {"text": ""}
            except (ValueError, RecursionError):
                row = None
            if not isinstance(row, dict) or not isinstance(row.get("text"), str):
                raise DataError(f"{path}, line {number}: no JSON object with a field 'text'")
            texts.append(row["text"])
    else:
        raise OptionError(f"{option} {path}: use a .jsonl or a .txt file")
    texts = [text for text in texts if text.strip()]
    if not texts:
        raise DataError(f"{option} {path} holds no texts")
    return texts


def token_batches(
    source: CheckpointSource, calibration: Calibration
) -> list[dict[str, torch.Tensor]]:
    """The calibration texts as token ids, each a batch of one, cut to the recorded length.

    Raises:
        PrecisionError: a text has fewer than 2 tokens.
    """
    import torch

    batches = []
    for text in calibration.texts:
        ids = list(source.tokenizer(text)["input_ids"])[: calibration.data.max_tokens]
        if len(ids) < 2:
            raise PrecisionError(
                f"a calibration text has {len(ids)} tokens: {one_line(text, 60)!r}; remove it"
            )
        row = torch.tensor([ids])
        batches.append({"input_ids": row, "attention_mask": torch.ones_like(row)})
    return batches
