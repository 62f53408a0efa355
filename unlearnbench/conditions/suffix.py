"""A suffix of words behind the question, searched for with the model's own gradient: the dynamic
unlearning attack (Yuan et al., arXiv 2408.10682) by greedy coordinate gradient (GCG, Zou et al.,
arXiv 2307.15043), one suffix for many questions.

A step takes the gradient of the loss by the one-hot of every token of the suffix, puts random ones
of each place's best candidates in single places, and keeps the best of these texts if it is better
than before. What the tokenizer would not read again from its text is no candidate.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from unlearnbench.conditions.asking import is_question
from unlearnbench.conditions.base import ConditionSpec, Materials, Option
from unlearnbench.conditions.searching import Progress, Searching, parse_search
from unlearnbench.conditions.suffix_loss import SuffixLoss
from unlearnbench.errors import PrecisionError
from unlearnbench.results import AskedAs
from unlearnbench.tasks.asking import Asking
from unlearnbench.tasks.rows import TaskSamples
from unlearnbench.tasks.spec import Sample

if TYPE_CHECKING:
    import torch

    from unlearnbench.checkpoints.source import Source
    from unlearnbench.models.hf import HFModel

CONDITIONS = ()
FAMILY = ConditionSpec(
    "suffix-N",
    "asked",
    "a suffix behind the question, searched for in N steps on other questions",
    asks=True,
    searches=True,
    needs_control=True,
)
STEPS, WIDTH, TOP = 50, 32, 64
_AT_ONCE = 2**14  # rows of the table
fits = is_question


def parse(name: str) -> ConditionSpec | None:
    """``suffix-50``, which is ``suffix``; see ``parse_search``."""
    return parse_search(FAMILY, name, STEPS, {"width": WIDTH, "top": TOP}, transfers=True)


def settle(spec: ConditionSpec, source: Source, materials: Materials) -> Mapping[str, Option]:
    """The target's hash, where that is searched on. Raises PrecisionError where there is none, or
    it is quantized already.
    """
    if not spec.needs_target:
        return {}
    if materials.target is None:
        raise PrecisionError(f"{spec.name} is searched on the target; give --target-model PATH")
    if materials.target.stored is not None:
        raise PrecisionError(f"--target-model {materials.target.files.path} is quantized already")
    return {"target_sha256": materials.target.checkpoint.weights_sha256}


def ask(spec: ConditionSpec, task: TaskSamples) -> Asking:
    """Raises PrecisionError as ``Searching``."""
    return _Suffix(spec, task, 1 + int(spec.options["width"]))


class _Suffix(Searching):
    _texts: Sequence[str] = ()
    _allowed: torch.Tensor | None = None

    def asked(self, sample: Sample) -> AskedAs:
        if not self._texts:
            return AskedAs()
        other = 1 - self.half[sample.id]
        return AskedAs(prompt=self._part(sample).prompt(self._texts[other]), search=other)

    def begin(self, loss: SuffixLoss) -> Progress:
        first = loss.of_ids([loss.first])[0]
        return Progress(loss.text(loss.first), first, first, now=_joined(loss.first))

    def step(self, loss: SuffixLoss, number: int, now: Progress) -> None:
        """The better of the suffix and the best of its neighbours."""
        import torch

        if self._allowed is None:
            self._allowed = allowed_tokens(loss)
        suffix = [int(part) for part in now.now.split()]
        with torch.no_grad():
            ids = torch.tensor([suffix], device=loss.device)
            _, gradient = loss.with_gradient(loss.table(ids)[0])
        best = candidates(loss, gradient, self._allowed, int(self.options["top"]))
        draws = _generator(self.seed, number, now.steps)
        found: dict[tuple[int, ...], None] = {}
        for _ in range(int(self.options["width"])):
            place = int(torch.randint(len(suffix), (1,), generator=draws))
            token = int(torch.randint(best.shape[1], (1,), generator=draws))
            changed = [*suffix]
            changed[place] = int(best[place, token])
            if changed != suffix and loss.survives(changed):
                found[tuple(changed)] = None
        if not found:
            return
        losses = loss.of_ids([*found])
        for value, ids_ in sorted(zip(losses, found, strict=True), key=lambda pair: pair[0]):
            if value >= now.loss:
                return
            if loss.survives(ids_, every=True):
                now.loss, now.value, now.now = value, loss.text(ids_), _joined(ids_)
                return

    def settle(self, model: HFModel, values: Sequence[str]) -> None:
        self._texts = tuple(values)


def _joined(ids: Sequence[int]) -> str:
    return " ".join(map(str, ids))


def _generator(seed: int, number: int, step: int) -> torch.Generator:
    """Draws of one step alone, so that a search goes on as if it had not been interrupted."""
    import torch

    digest = hashlib.sha256(f"{seed}:{number}:{step}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


def allowed_tokens(loss: SuffixLoss) -> torch.Tensor:
    """Which tokens may stand in a suffix, (vocabulary,): those whose text can be printed."""
    import torch

    tokenizer: Any = loss.tokens.tokenizer
    size = min(int(loss.tokens.config.vocab_size), len(tokenizer))
    special = set(tokenizer.all_special_ids) | set(loss.tokens.ends)
    texts = tokenizer.batch_decode([[token] for token in range(size)])
    fit = [
        token not in special and bool(text) and text.isprintable() and "\ufffd" not in text
        for token, text in enumerate(texts)
    ]
    if not any(fit):
        raise PrecisionError(f"{loss.where}: no token of the vocabulary can be printed")
    return torch.tensor(fit)


def candidates(
    loss: SuffixLoss, gradient: torch.Tensor, allowed: torch.Tensor, top: int
) -> torch.Tensor:
    """For each place of the suffix the allowed tokens that should lower the loss most, (length,
    top): the smallest products of the gradient (length, width) with the tokens' embeddings.
    """
    import torch

    parts = []
    with torch.no_grad():
        for start in range(0, len(allowed), _AT_ONCE):
            ids = torch.arange(start, min(start + _AT_ONCE, len(allowed)), device=loss.device)
            parts.append(gradient @ loss.table(ids).float().cpu().T)
    slopes = torch.cat(parts, dim=1).masked_fill(~allowed, float("inf"))
    return slopes.topk(min(top, int(allowed.sum())), dim=1, largest=False).indices
