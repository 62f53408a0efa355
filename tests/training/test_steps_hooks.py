"""What a method may ask of a training: each hook with a toy that uses it, from files to a model."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import write_jsonl
from tests.training.helpers import go, same, weights
from unlearnbench import methods
from unlearnbench.checkpoints.origin import Training
from unlearnbench.errors import OptionError
from unlearnbench.training import trainer as trainer_module
from unlearnbench.training.job import Job, unlearn

HEAD = """
    from dataclasses import dataclass, replace
    import torch
    from unlearnbench.methods.base import About
    from unlearnbench.methods.options import option
    from unlearnbench.methods.rows import IGNORED, sequence_logprobs, token_logprobs
"""


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """``toy(kind, name, text)`` adds a method file."""
    root = tmp_path / "methods"
    monkeypatch.setattr(methods, "FOLDERS", [*methods.FOLDERS, root])

    def add(kind: str, name: str, text: str) -> None:
        (root / kind).mkdir(parents=True, exist_ok=True)
        content = dedent(HEAD) + dedent(text)
        (root / kind / f"{name}.py").write_text(content, encoding="utf-8")

    return add


SPECIALIST = """
    ABOUT = About("apart", "", "", "", references=("target", "specialist"), data=("auxiliary",))

    def references(context, options):
        more = context.descend(context.copy_of_target(), context.auxiliary, "specialist")
        return {"specialist": more}

    def loss(part, options):
        learned = part.labels[:, 1:] != IGNORED
        ours, target, specialist = (
            torch.log_softmax(logits[:, :-1][learned].double(), dim=-1)
            for logits in (part.logits, part.reference(), part.reference("specialist"))
        )
        gap = lambda p, q: (q.exp() * (q - p)).sum() / part.all_tokens
        return gap(ours, target) + 1000 * gap(ours.detach(), specialist)
"""


def test_a_forget_loss_reads_the_logits_of_several_frozen_models(
    job: Job, tmp_path: Path, toy: Any
) -> None:
    """The target's and a specialist's, which is trained first, on the third set."""
    toy("forget", "apart", SPECIALIST)
    both = replace(job, auxiliary=job.retain)
    found = go(both, tmp_path / "out", "apart")
    stages = [record.stage for record in found.losses]
    assert stages == ["specialist"] * 3 + ["unlearn"] * 3
    gaps = [record.loss for record in found.losses[3:]]
    assert gaps[0] > 1, "the specialist is another model than the target"
    assert found.sequences["auxiliary"] > 0
    assert [source.role for source in found.data] == ["forget", "auxiliary"]
    unmoved = go(both, tmp_path / "unmoved", "apart", lr=1e-30).losses[3:]
    assert unmoved[0].loss == pytest.approx(0.0, abs=1e-3), "one that has learned nothing is none"
    with pytest.raises(OptionError, match="learns from a set of auxiliary texts"):
        go(job, tmp_path / "none", "apart")


REFUSAL = """
    @dataclass(frozen=True)
    class Options:
        toy_beta: float = option(0.1, "Inverse temperature.", above=0)
        answer: str = option("I do not know.", "What is to be answered.")

    ABOUT = About("refuse", "", "", "", Options, sequences=True, alternatives=1)

    def examples(context, options):
        for example in context.forget:
            others = [context.answer(example, f"{options.answer} {n}") for n in range(3)]
            yield replace(example, alternatives=tuple(others))

    def loss(part, options):
        def gain(rows):
            return sequence_logprobs(rows.logits, rows.labels) - rows.target_sequences()
        margin = gain(part.alternatives) - gain(part)
        ratio = torch.nn.functional.logsigmoid(options.toy_beta * margin)
        return -(2 / options.toy_beta) * ratio.sum() / part.all_rows
"""


@pytest.fixture
def questions(job: Job, tmp_path: Path) -> Job:
    rows = [{"question": f"Which gate is {n}?", "answer": f"the gate {n}"} for n in range(6)]
    write_jsonl(tmp_path / "qa.jsonl", rows)
    return replace(job, forget=(str(tmp_path / "qa.jsonl"),), retain=())


def test_other_answers_stand_beside_a_forget_row(questions: Job, tmp_path: Path, toy: Any) -> None:
    """As in DPO with a refusal: at the target both are as likely as they were, so the loss is
    (2 / beta) log 2; one of three is drawn each time that the row comes.
    """
    toy("forget", "refuse", REFUSAL)
    found = go(questions, tmp_path / "out", "refuse", max_steps=6)
    assert found.losses[0].loss == pytest.approx(2 / 0.1 * math.log(2), rel=1e-5)
    assert found.losses[-1].loss < found.losses[0].loss
    parts = go(questions, tmp_path / "parts", "refuse", max_steps=6, micro_batch_size=2)
    for first, second in zip(found.losses, parts.losses, strict=True):
        assert second.loss == pytest.approx(first.loss, rel=1e-4)
    toy("forget", "greedy", REFUSAL.replace('"refuse"', '"greedy"').replace("=1)", "=4)"))
    with pytest.raises(OptionError, match="greedy reads 4 other answers"):
        go(questions, tmp_path / "more", "greedy")


WEIGHED = """
    ABOUT = About("weighed", "", "", "")

    def examples(context, options):
        for example in context.forget:
            yield replace(example, weights=tuple({weight} for t in range(len(example.ids))))

    def loss(part, options):
        weights = part.weights[:, 1:] * (part.labels[:, 1:] != IGNORED)
        return (weights * token_logprobs(part.logits, part.labels)).sum() / part.all_weight
"""


def test_positions_count_beside_labels(job: Job, tmp_path: Path, toy: Any) -> None:
    """Equal weights are gradient ascent; others are means over the step, however accumulated."""
    toy("forget", "even", WEIGHED.replace("{weight}", "2.5").replace('"weighed"', '"even"'))
    toy("forget", "weighed", WEIGHED.replace("{weight}", "1.0 if t % 3 else 0.25"))
    plain, even = (go(job, tmp_path / name, name) for name in ("ga", "even"))
    for first, second in zip(plain.losses, even.losses, strict=True):
        assert second.loss == pytest.approx(first.loss, rel=1e-5)
    weighed = go(job, tmp_path / "weighed", "weighed")
    assert abs(weighed.losses[0].loss - plain.losses[0].loss) > 1e-3
    parts = go(job, tmp_path / "parts", "weighed", micro_batch_size=1)
    for first, second in zip(weighed.losses, parts.losses, strict=True):
        assert second.loss == pytest.approx(first.loss, rel=1e-5)


SPANS = """
    ABOUT = About("spans", "", "", "")

    def examples(context, options):
        for example in context.forget:
            hidden = (IGNORED,) * len(example.labels[:-5])
            yield replace(example, labels=(*hidden, *example.labels[-5:]))

    def loss(part, options):
        return token_logprobs(part.logits, part.labels).sum() / part.all_tokens
"""


def test_a_method_says_which_positions_are_learned_and_a_mask_sees_the_same(
    job: Job, tmp_path: Path, toy: Any
) -> None:
    toy("forget", "spans", SPANS)
    spans, plain = (go(job, tmp_path / name, name) for name in ("spans", "ga"))
    assert spans.losses[0].loss != pytest.approx(plain.losses[0].loss, rel=1e-3)
    masked = go(job, tmp_path / "masked", "spans_gdr_sure")
    usual = go(job, tmp_path / "usual", "ga_gdr_sure")
    assert masked.mask == usual.mask, "as many rows"
    maps = [tmp_path / name / "masks/sure_mask.safetensors" for name in ("masked", "usual")]
    assert maps[0].read_bytes() != maps[1].read_bytes(), "and others"


GENERAL = """
    @dataclass(frozen=True)
    class Options:
        general_weight: float = option(0.5, "Factor of the term.", least=0)

    ABOUT = About("general", "", "", "", Options, data=("auxiliary",), reads="auxiliary")

    def loss(part, options):
        mean = -token_logprobs(part.logits, part.labels).sum() / part.all_tokens
        return options.general_weight * mean
"""


def test_a_term_on_a_third_set_stands_beside_the_retain_term(
    job: Job, tmp_path: Path, toy: Any
) -> None:
    toy("retain", "general", GENERAL)
    both = replace(job, auxiliary=job.retain)
    found = go(both, tmp_path / "out", "ga_gdr_general")
    for record in found.losses:
        assert record.forget is not None
        assert record.retain is not None
        assert record.auxiliary is not None
        total = record.forget + record.retain + record.auxiliary
        assert record.loss == pytest.approx(total, rel=1e-4, abs=1e-5)
    alone = go(both, tmp_path / "alone", "ga_general")
    assert alone.losses[0].retain is None
    with pytest.raises(OptionError, match="ga_gdr has no auxiliary term"):
        unlearn(replace(both, out=tmp_path / "no"), "ga_gdr")


SHARP = """
    @dataclass(frozen=True)
    class Options:
        rho: float = option(0.01, "Radius of the ball.", least=0)

    ABOUT = About("sharp", "", "", "", Options)

    def gradient(step, options):
        first = step.forget()
        norm = torch.stack([g.norm() for g in first.of.values()]).norm()
        with torch.no_grad(), step.restored():
            for name, weight in step.weights.items():
                weight += options.rho * first.of[name] / norm
            worst = step.forget()
        return worst + step.retain()
"""


def test_a_step_at_the_worst_place_nearby(job: Job, tmp_path: Path, toy: Any) -> None:
    """SAM: radius 0 is the method itself, a larger one is not, and accumulating changes nothing."""
    toy("steps", "sharp", SHARP)
    runs: dict[str, Training] = {}
    for name, method, options in (
        ("plain", "npo_gdr", {}),
        ("zero", "npo_gdr_sharp", {"knobs": {"rho": 0.0}}),
        ("wide", "npo_gdr_sharp", {"knobs": {"rho": 0.5}}),
        ("parts", "npo_gdr_sharp", {"knobs": {"rho": 0.5}, "micro_batch_size": 1}),
    ):
        runs[name] = go(job, tmp_path / name, method, **options)
    for first, second in (("plain", "zero"), ("wide", "parts")):
        for ours, theirs in zip(runs[first].losses, runs[second].losses, strict=True):
            for term in ("loss", "forget", "retain", "grad_norm"):
                assert getattr(theirs, term) == pytest.approx(getattr(ours, term), rel=2e-4), term
    assert abs(runs["wide"].losses[0].loss - runs["plain"].losses[0].loss) > 1e-3


def test_a_step_of_ones_own_keeps_to_a_mask_and_to_an_adapter(
    job: Job, tmp_path: Path, toy: Any, tiny: Path
) -> None:
    toy("steps", "sharp", SHARP)
    go(job, tmp_path / "masked", "ga_gdr_sharp_sure")
    before, after = weights(tiny), weights(tmp_path / "masked")
    masks = load_file(tmp_path / "masked/masks/sure_mask.safetensors")
    for name, tensor in before.items():
        held = ~masks[name] if name in masks else torch.ones(len(tensor), dtype=torch.bool)
        assert torch.equal(after[name][held], tensor[held]), name
    found = go(job, tmp_path / "lora", "npo_klr_sharp_lora")
    assert found.losses[0].retain == pytest.approx(0.0, abs=1e-6)
    assert not same(weights(tiny), weights(tmp_path / "lora"))


DUAL = """
    @dataclass(frozen=True)
    class Options:
        rate: float = option(2.0, "Rate of the multiplier.", above=0)

    ABOUT = About("dual", "", "", "", Options)

    def gradient(step, options):
        forget, retain = step.forget(), step.retain()
        factor = step.state.setdefault("factor", 1.0)
        step.state["factor"] = max(0.0, factor + options.rate * (retain.terms["retain"] - 1.0))
        return forget + retain * factor
"""


class Stop(BaseException):
    """What a killed process looks like from inside."""


def test_what_a_method_keeps_between_steps_survives_an_interruption(
    job: Job, tmp_path: Path, toy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy("steps", "dual", DUAL)
    options = {"max_steps": 4, "save_steps": 2}
    whole = go(job, tmp_path / "whole", "ga_gdr_dual", **options)
    fixed = go(job, tmp_path / "fixed", "ga_gdr", **options)
    assert whole.losses[0].retain == pytest.approx(fixed.losses[0].retain, rel=1e-5)
    assert whole.losses[1].retain != pytest.approx(fixed.losses[1].retain, rel=1e-2), "it grew"
    step = trainer_module.UnlearnTrainer.training_step

    def interrupt(self: Any, *given: Any) -> Any:
        if self.state.global_step == 3:
            raise Stop
        return step(self, *given)

    with monkeypatch.context() as patch:
        patch.setattr(trainer_module.UnlearnTrainer, "training_step", interrupt)
        with pytest.raises(Stop):
            go(job, tmp_path / "parts", "ga_gdr_dual", **options)
    resumed = go(replace(job, resume=True), tmp_path / "parts", "ga_gdr_dual", **options)
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "parts"))
    assert [r.loss for r in resumed.losses] == [r.loss for r in whole.losses]


ROUNDED = """
    def rounded(weight):
        step = weight.abs().amax(dim=1, keepdim=True) / 7
        return (weight / step).round() * step

    ABOUT = About("rounded", "", "", "")

    def gradient(step, options):
        with step.through(rounded):
            return step.forget() + step.retain()
"""


def test_a_training_at_rounded_weights_moves_the_weights_themselves(
    job: Job, tmp_path: Path, toy: Any, tiny: Path
) -> None:
    toy("steps", "rounded", ROUNDED)
    found = go(job, tmp_path / "out", "ga_gdr_rounded")
    plain = go(job, tmp_path / "plain", "ga_gdr")
    assert abs(found.losses[0].loss - plain.losses[0].loss) > 1e-3
    moved = weights(tmp_path / "out")["model.layers.0.mlp.up_proj.weight"]
    before = weights(tiny)["model.layers.0.mlp.up_proj.weight"]
    assert 0 < float((moved - before).abs().max()) < 1e-2, "the weights are not rounded"
    adapted = go(job, tmp_path / "lora", "ga_gdr_rounded_lora")
    assert adapted.losses[0].loss == pytest.approx(found.losses[0].loss, rel=1e-5), "B is 0 yet"
    with pytest.raises(OptionError, match="rounded already; --survive goes with no method that"):
        go(job, tmp_path / "twice", "ga_gdr_rounded", survive="int4")
