"""Run folders made on the spot: a scripted model that gets as many words right as a test says."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import write_jsonl
from unlearnbench import ScriptedModel, evaluate
from unlearnbench.metrics import intervals
from unlearnbench.runs.folder import run_path

WORDS = 4
N = 40

_COMMON = "tag: [made]\ndescription: Made.\ndataset_path: made/set\nmetadata: {version: 1.0}\n"


def _questions(name: str, split: str, want: str, rows: int) -> str:
    return f"""task: made_{name}
{_COMMON}dataset_name: knowmem
output_type: generate_until
test_split: {split}
doc_to_text: "Question: {{{{question}}}}\\nAnswer: "
target_delimiter: ""
doc_to_target: "{{{{answer}}}}"
generation_kwargs: {{max_gen_toks: 8}}
metric: rougeL
want: {want}
splits: {{{split}: {{rows: {rows}}}}}
"""


def _leak(rows: int) -> str:
    return f"""task: made_privleak
{_COMMON}dataset_name: privleak
output_type: token_loglikelihood
member_split: forget
nonmember_split: holdout
doc_to_text: "{{{{text}}}}"
attack: Min-40%
metric: privleak
want: zero
splits: {{forget: {{rows: {rows}}}, holdout: {{rows: {rows}}}}}
"""


@dataclass(frozen=True)
class Skill:
    """Words right of four, for each forget and each retain question, and how far apart the
    membership attack holds forget and holdout texts: above 0 the forget texts are recognised.
    """

    forget: Sequence[int]
    retain: Sequence[int]
    gap: float = 0.0

    @staticmethod
    def of(forget: float, retain: float, gap: float = 0.0, n: int = N, seed: int = 0) -> Skill:
        """Of mean shares of words; one seed makes skills that move together."""
        rng = np.random.default_rng(seed)
        u, v = rng.random(n), rng.random(n)

        def words(share: float, x: np.ndarray) -> list[int]:
            return [int(w) for w in (x < share) * WORDS]

        return Skill(words(forget, u), words(retain, v), gap)


class Bench:
    """Data and tasks made_knowmem_f, made_knowmem_r and made_privleak under ``root``."""

    def __init__(self, root: Path, n: int = N) -> None:
        self.n, self.data, self.tasks, self.out = n, root / "data", root / "tasks", root / "out"
        base = self.data / "made" / "set"
        for split in ("forget", "retain"):
            rows = [{"question": f"{split} {i}?", "answer": self.answer(i)} for i in range(n)]
            write_jsonl(base / "knowmem" / f"{split}_qa.jsonl", rows)
        for split in ("forget", "holdout"):
            texts = [{"text": f"{split} text {i}"} for i in range(n)]
            write_jsonl(base / "privleak" / f"{split}.jsonl", texts)
        self.tasks.mkdir(parents=True)
        files = {
            "made_knowmem_f": _questions("knowmem_f", "forget_qa", "low", n),
            "made_knowmem_r": _questions("knowmem_r", "retain_qa", "high", n),
            "made_privleak": _leak(n),
        }
        for name, text in files.items():
            (self.tasks / f"{name}.yaml").write_text(text, encoding="utf-8")

    def answer(self, i: int) -> str:
        """The right answer to question ``i``: four words."""
        return " ".join(f"w{i}x{k}" for k in range(WORDS))

    def train(self, name: str, recipe: str, seed: int) -> Path:
        """Have a model's runs say that it was trained so; returns their folder."""
        (folder,) = self.out.glob(f"{name}-*")
        for path in folder.glob("*/run.json"):
            content = json.loads(path.read_text(encoding="utf-8"))
            content["checkpoint"]["origin"] = {"recipe": recipe, "seed": str(seed)}
            path.write_text(json.dumps(content), encoding="utf-8")
        return folder

    def run(
        self,
        name: str,
        precision: str,
        skill: Skill,
        tasks: str = "made",
        protocol: str = "muse",
        out: Path | None = None,
        reference: Path | None = None,
    ) -> Path:
        """Evaluate a model of that skill and return its run folder."""
        model, where = self.scripted(name, precision, skill), out or self.out
        evaluate(
            model,
            tasks,
            output=where,
            data_dir=self.data,
            include_path=[self.tasks],
            protocol=protocol,
            reference=None if reference is None else str(reference),
        )
        return run_path(where, model.checkpoint, precision)

    def scripted(self, name: str, precision: str, skill: Skill) -> ScriptedModel:
        """A model of that skill; what it is called are its weights."""
        outputs = {}
        for split, right in (("forget", skill.forget), ("retain", skill.retain)):
            for i, k in enumerate(right):
                words = self.answer(i).split()[:k] + ["zzz"] * (WORDS - k)
                outputs[f"Question: {split} {i}?\nAnswer: "] = " ".join(words)
        rng = np.random.default_rng(7)
        level = {"forget": 9.0, "holdout": 9.0 + skill.gap}
        logprobs = {
            f"{split} text {i}": [-(level[split] + rng.normal())] * 25
            for split in level
            for i in range(self.n)
        }
        model = ScriptedModel(outputs, logprobs, name=name, precision=precision)
        sha256 = hashlib.sha256(name.encode()).hexdigest()
        model.checkpoint = model.checkpoint.model_copy(update={"weights_sha256": sha256})
        return model

    def model(self, name: str, **skills: Skill) -> Path:
        """Runs at several precisions (``none``, ``int4`` for rtn-int4); returns their folder."""
        for precision, skill in skills.items():
            folder = self.run(name, PRECISIONS[precision], skill)
        return folder.parent


def weak_at_4_bits(root: Path) -> Bench:
    """A target that itself keeps a third of its score at int4, and two models unlearned from it;
    the target and one of them at GPTQ too.
    """
    made = Bench(root)
    knows, hides = Skill.of(0.9, 0.8, 4.0), Skill.of(0.05, 0.8, -1.0)
    some = Skill.of(0.7, 0.8, 3.0)
    made.model("target", none=knows, int8=knows, int4=Skill.of(0.3, 0.8, 3.5), gptq=some)
    made.model("retrained", none=Skill.of(0.05, 0.8, 0.1))
    made.model("ga_gdr", none=hides, int8=hides, int4=Skill.of(0.25, 0.8, -0.9), gptq=some)
    made.model("npo", none=hides, int8=hides, int4=hides)
    return made


PRECISIONS = {"none": "none", "int8": "rtn-int8", "int4": "rtn-int4", "gptq": "gptq-int4-g128"}
PRECISIONS |= {"relearn": "relearn-20"}


@contextmanager
def few_draws() -> Iterator[None]:
    """A tenth of the draws, where a test is not about intervals."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(intervals, "DRAWS", 499)
        yield


def read_json(path: Path) -> object:
    """A JSON file's content."""
    return json.loads(path.read_text(encoding="utf-8"))
