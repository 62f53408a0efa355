"""A continuous suffix behind the question: embeddings that are no token's, moved by the sign of the
gradient (Schwinn et al., arXiv 2402.09063), one suffix for many questions.

A step is a twentieth of the embeddings' root mean square. Theirs is 0.001 whatever the model, which
a model with larger embeddings would not feel [chosen].
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from unlearnbench.conditions.asking import is_question
from unlearnbench.conditions.base import ConditionSpec
from unlearnbench.conditions.searching import Progress, Searching, parse_search
from unlearnbench.conditions.suffix_loss import SuffixLoss, read_rows
from unlearnbench.errors import OptionError, PrecisionError
from unlearnbench.requests import Generate, Request
from unlearnbench.results import AskedAs, Settings
from unlearnbench.tasks.asking import Asking, State
from unlearnbench.tasks.rows import TaskSamples
from unlearnbench.tasks.spec import Sample

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch
    from torch import nn

    from unlearnbench.models.hf import HFModel

CONDITIONS = ()
FAMILY = ConditionSpec(
    "embedding-N",
    "asked",
    "a continuous suffix behind the question, searched for in N steps on other questions",
    asks=True,
    searches=True,
    needs_control=True,
)
STEPS, STEP = 100, 0.05
fits = is_question


def parse(name: str) -> ConditionSpec | None:
    """``embedding-100``, which is ``embedding``; see ``parse_search``."""
    return parse_search(FAMILY, name, STEPS, {"step": STEP})


def ask(spec: ConditionSpec, task: TaskSamples) -> Asking:
    """Raises PrecisionError as ``Searching``."""
    return _Embedding(spec, task, 1)


class _Embedding(Searching):
    _ids: Mapping[str, tuple[int, ...]] | None = None
    """Of each sample's prompt, with the suffix's rows behind the vocabulary's."""

    def __init__(self, spec: ConditionSpec, task: TaskSamples, step_passes: int) -> None:
        super().__init__(spec, task, step_passes)
        self._parts = [self._part(sample) for sample in task.samples]

    def asked(self, sample: Sample) -> AskedAs:
        return AskedAs() if self._ids is None else AskedAs(search=1 - self.half[sample.id])

    def requests(self, sample: Sample, settings: Settings) -> Sequence[Sequence[Request]]:
        ids = () if self._ids is None else self._ids[sample.id]
        return [
            [replace(r, tokens=ids) if isinstance(r, Generate) else r for r in each]
            for each in super().requests(sample, settings)
        ]

    def search(self, model: Any, state: State | None, keep: Callable[[State], None]) -> None:
        from unlearnbench.models.hf import HFModel

        if not isinstance(model, HFModel):
            raise OptionError(
                "a continuous suffix is no text, and is asked by one process through transformers: "
                "use --backend hf and no launch of several, or the condition suffix"
            )
        super().search(model, state, keep)

    def begin(self, loss: SuffixLoss) -> Progress:
        import torch

        with torch.no_grad():
            start = loss.table(torch.tensor(loss.first, device=loss.device)).float().cpu()
        first = loss.of_ids([loss.first])[0]
        return Progress(_packed(start), first, first, now=_packed(start))

    def step(self, loss: SuffixLoss, number: int, now: Progress) -> None:
        """Down the sign of the gradient; what is found is the best place that was passed."""
        import torch

        here = _unpacked(now.now, loss.width)
        value, gradient = loss.with_gradient(here)
        if value < now.loss:
            now.loss, now.value = value, now.now
        with torch.no_grad():
            ids = torch.tensor(loss.first, device=loss.device)
            size = float(_weight(loss.table, ids).float().square().mean().sqrt())
        now.now = _packed(here - float(self.options["step"]) * size * gradient.sign())

    def settle(self, model: HFModel, values: Sequence[str]) -> None:
        """Give the model the suffixes' rows. Raises PrecisionError where it does not look them up
        as it looks up its own.
        """
        loss = SuffixLoss(model, self.searched[0], self.spec.task)
        rows = [_unpacked(value, loss.width) for value in values]
        expected = loss.with_gradient(rows[0])[0]
        first = int(loss.tokens.config.vocab_size)
        add_rows(model.network, first, rows)
        length = len(loss.first)
        suffixes = [range(first + at * length, first + (at + 1) * length) for at in (0, 1)]
        found = loss.of_ids([[*suffixes[0]]])[0]
        if abs(found - expected) > 0.02 * max(1.0, abs(expected)):
            raise PrecisionError(
                f"{self.spec.task}: the model does not look its embeddings up by a table alone"
            )
        ids = {}
        around, _ = read_rows(loss.tokens, self._parts, self.spec.task)
        for part, row in zip(self._parts, around, strict=True):
            suffix = suffixes[1 - self.half[part.id]]
            ids[part.id] = (*row.head, *suffix, *row.tail)
        self._ids = ids

    def facts(self, value: str) -> dict[str, object]:
        return {"sha256": hashlib.sha256(base64.b64decode(value)).hexdigest()}


def _weight(table: nn.Module, ids: torch.Tensor) -> torch.Tensor:
    weight: Any = getattr(table, "weight", None)
    found: torch.Tensor = table(ids) if weight is None else weight.detach()
    return found


def add_rows(network: Any, first: int, more: Sequence[torch.Tensor]) -> None:
    """Have the ids from ``first`` on stand for the rows of ``more``, in place."""
    import torch
    from torch import nn

    own: Any = network.get_input_embeddings()
    device = next(iter(own.parameters())).device
    rows = torch.cat(list(more)).to(device)

    class Extended(nn.Module):
        """The model's own table, and the rows behind it."""

        def __init__(self) -> None:
            super().__init__()
            self.own = own

        @property
        def weight(self) -> Any:
            return own.weight

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            """(rows, n) -> (rows, n, width)."""
            is_more = ids >= first
            found: torch.Tensor = own(ids.masked_fill(is_more, 0))
            if bool(is_more.any()):
                found = found.clone()
                found[is_more] = rows[ids[is_more] - first].to(found.dtype)
            return found

    network.set_input_embeddings(Extended())


def _packed(rows: torch.Tensor) -> str:
    return base64.b64encode(rows.float().numpy().astype("<f4").tobytes()).decode()


def _unpacked(text: str, width: int) -> torch.Tensor:
    import numpy as np
    import torch

    array = np.frombuffer(base64.b64decode(text, validate=True), dtype="<f4").astype(np.float32)
    return torch.from_numpy(array.reshape(-1, width))
