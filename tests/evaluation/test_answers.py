from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from itertools import chain

import pytest

from tests.conftest import Toy
from tests.evaluation.test_evaluate import (
    AUC,
    MEMBERS,
    OTHERS,
    RETRAINED_AUC,
    Backwards,
    Spy,
    gate_prompt,
    levels,
    rows,
    run,
    script,
)
from unlearnbench import ScriptedModel
from unlearnbench.errors import MetricError, ModelOutputError, UnlearnbenchError
from unlearnbench.evaluation.answers import Answers, make_records
from unlearnbench.metrics import rouge
from unlearnbench.metrics.membership import ReferenceScores
from unlearnbench.requests import Generate, Generated, Score, Scored
from unlearnbench.results import (
    AucReference,
    GenerationRecord,
    LikelihoodRecord,
    SampleRecord,
    Settings,
)
from unlearnbench.tasks.registry import load_registry
from unlearnbench.tasks.rows import DataOptions, TaskSamples, load_samples
from unlearnbench.tasks.spec import TaskReference

TASKS = ["toy_verbmem", "toy_knowmem_f", "toy_privleak"]


def plan(toy: Toy, task: str, limit: int | None = None) -> TaskSamples:
    (spec,) = load_registry([toy.tasks]).resolve([task])
    return load_samples(spec, DataOptions(toy.data), limit)


def settings(ppl_lower: bool = False) -> Settings:
    return Settings(protocol="muse", dtype="fp32", device="cpu", seed=0, ppl_lower=ppl_lower)


def ask(toy: Toy, task: str, model: ScriptedModel, ppl_lower: bool = False) -> list[SampleRecord]:
    return make_records(plan(toy, task), model, settings(ppl_lower), Answers())


Change = Callable[[list[Generated | Scored]], Iterable[Generated | Scored]]


def altered(toy: Toy, change: Change, only_second_pass: bool = False) -> Spy:
    """A model whose answers are changed on their way."""

    class Altered(Spy):
        def generate(
            self, requests: Sequence[Generate], skip: Collection[str] = ()
        ) -> Iterator[Generated]:
            found = change([*super().generate(requests, skip)])
            return (answer for answer in found if isinstance(answer, Generated))

        def score(self, requests: Sequence[Score], skip: Collection[str] = ()) -> Iterator[Scored]:
            answers = super().score(requests, skip)
            if only_second_pass and not requests[0].id.endswith(":lower"):
                return answers
            return (answer for answer in change([*answers]) if isinstance(answer, Scored))

    return script(toy, kind=Altered)


def renamed(answer: Generated | Scored) -> Generated | Scored:
    if isinstance(answer, Generated):
        return Generated("another:forget/0", answer.text, answer.n_tokens)
    return Scored("another:forget/0", answer.logprobs, answer.mean, answer.std)


FAULTS: list[tuple[Change, str]] = [
    (lambda found: [], "gave no answer for {task}:{split}/0"),
    (lambda found: found[1:], "gave no answer for {task}:{split}/0"),
    (lambda found: found[:-1], "gave no answer for {task}:{last}"),
    (lambda found: chain(found, found[:1]), "answered {task}:{split}/0 unasked or twice"),
    (lambda found: [found[0], *found], "answered {task}:{split}/0 unasked or twice"),
    (lambda found: [renamed(found[0]), *found[1:]], "answered another:forget/0 unasked or twice"),
    (lambda found: chain(found, [renamed(found[0])]), "another:forget/0 unasked or twice"),
]


@pytest.mark.parametrize(("change", "said"), FAULTS)
@pytest.mark.parametrize("task", TASKS)
def test_answers_that_are_missing_twice_or_unasked_raise(
    toy: Toy, task: str, change: Change, said: str
) -> None:
    split = "forget_qa" if task == "toy_knowmem_f" else "forget"
    last = "holdout/2" if task == "toy_privleak" else f"{split}/2"
    with pytest.raises(ModelOutputError, match=said.format(task=task, split=split, last=last)):
        ask(toy, task, altered(toy, change))


@pytest.mark.parametrize(
    "change", [lambda found: found[1:], lambda found: [*found, found[0]], lambda found: []]
)
def test_the_second_pass_is_held_to_the_same(toy: Toy, change: Change) -> None:
    with pytest.raises(ModelOutputError, match="toy_privleak:forget/0:lower"):
        ask(toy, "toy_privleak", altered(toy, change, only_second_pass=True), ppl_lower=True)


def test_answers_of_the_first_pass_do_not_do_for_the_second(toy: Toy) -> None:
    class Same(Spy):
        def score(self, requests: Sequence[Score], skip: Collection[str] = ()) -> Iterator[Scored]:
            plain = [Score(r.id.removesuffix(":lower"), r.text) for r in requests]
            return super().score(plain)

    with pytest.raises(ModelOutputError, match="unasked or twice"):
        ask(toy, "toy_privleak", script(toy, kind=Same), ppl_lower=True)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("kind", [Spy, Backwards])
def test_records_stand_in_row_order_each_with_its_own_answer(
    toy: Toy, task: str, kind: type[Spy]
) -> None:
    found = ask(toy, task, script(toy, kind=kind))
    assert [record.id for record in found] == [s.id for s in plan(toy, task).samples]
    assert all(record.task == task for record in found)
    if task == "toy_privleak":
        level = [r.scores["PPL"] for r in found if isinstance(r, LikelihoodRecord)]
        assert level == pytest.approx([*MEMBERS, *OTHERS])
    if task == "toy_knowmem_f":
        scores = [r.score for r in found if isinstance(r, GenerationRecord)]
        assert scores == [1.0, 0.5, 0.0]


def test_each_answer_is_counted_once(toy: Toy) -> None:
    for task, lower, want in (
        ("toy_verbmem", False, 3),
        ("toy_verbmem", True, 3),
        ("toy_privleak", False, 6),
        ("toy_privleak", True, 12),
    ):
        ticks: list[int] = []
        answers = Answers()
        answers.tick = ticks.append
        make_records(plan(toy, task), script(toy), settings(lower), answers)
        assert ticks == [1] * want


def test_the_target_is_cut_by_the_models_own_tokenizer(toy: Toy) -> None:
    class Letters(Spy):
        def truncate(self, text: str, max_tokens: int) -> str:
            return text[:max_tokens]

    found = ask(toy, "toy_verbmem", script(toy, kind=Letters))
    targets = [r.target for r in found if isinstance(r, GenerationRecord)]
    assert targets == [row["gt"][:16] for row in rows(toy, "verbmem/forget.jsonl")]
    uncut = ask(toy, "toy_knowmem_f", script(toy, kind=Letters))
    assert isinstance(uncut[0], GenerationRecord)
    assert uncut[0].target == "gate 0"


def test_a_target_that_is_cut_to_nothing_raises(toy: Toy) -> None:
    # Every output would score 0 against it.
    class Blank(Spy):
        def truncate(self, text: str, max_tokens: int) -> str:
            return " "

        def generate(
            self, requests: Sequence[Generate], skip: Collection[str] = ()
        ) -> Iterator[Generated]:
            return (Generated(r.id, "anything", 1) for r in requests)

    with pytest.raises(MetricError, match="^toy_verbmem: forget/0: .*no letter or digit"):
        ask(toy, "toy_verbmem", script(toy, kind=Blank))


def test_a_target_that_nothing_can_match_is_known_before_the_model_runs(toy: Toy) -> None:
    class Wordless(Spy):
        def truncate(self, text: str, max_tokens: int) -> str:
            return "..."

        def generate(
            self, requests: Sequence[Generate], skip: Collection[str] = ()
        ) -> Iterator[Generated]:
            raise AssertionError("it ran")

    with pytest.raises(MetricError, match="^toy_verbmem: forget/0: .*no letter or digit"):
        ask(toy, "toy_verbmem", script(toy, kind=Wordless))


def test_further_figures_stand_beside_the_score_and_not_in_it(toy: Toy) -> None:
    found = ask(toy, "toy_knowmem_f", script(toy))
    assert isinstance(found[1], GenerationRecord)
    assert found[1].prompt == gate_prompt(1)
    assert found[1].score == 0.5
    assert found[1].scores == {"rougeL_recall": 0.5, "rouge1": 0.5, "rougeL_stem": 0.5}


def test_the_lower_cased_text_is_what_the_second_pass_scores(toy: Toy) -> None:
    texts: list[str] = []

    class Watch(Spy):
        def score(self, requests: Sequence[Score], skip: Collection[str] = ()) -> Iterator[Scored]:
            texts.extend(r.text for r in requests)
            return super().score(requests, skip)

    ask(toy, "toy_privleak", script(toy, kind=Watch), ppl_lower=True)
    assert len(texts) == 12
    assert texts[6:] == [text.lower() for text in texts[:6]]
    assert texts[6:] != texts[:6]


SHA = "0" * 64


def test_a_likelihood_task_without_reference(toy: Toy) -> None:
    the_plan = plan(toy, "toy_privleak")
    found = ask(toy, "toy_privleak", script(toy))
    result = the_plan.result(found, SHA, None, 0)
    assert result.auc == pytest.approx(AUC)
    assert result.value is None
    assert result.auc_reference is None
    assert (result.n, result.records_sha256, result.task_sha256) == (
        3,
        SHA,
        the_plan.spec.definition_sha256,
    )
    assert [(part.split, part.rows) for part in result.data] == [("forget", 3), ("holdout", 3)]
    assert result.empty_outputs is None


def test_a_likelihood_task_with_a_reference(toy: Toy) -> None:
    recorded = AucReference(auc=RETRAINED_AUC, kind="stated", source="by hand")
    reference = TaskReference(ReferenceScores(RETRAINED_AUC), recorded)
    found = ask(toy, "toy_privleak", script(toy))
    result = plan(toy, "toy_privleak").result(found, SHA, reference, 0)
    assert result.value == pytest.approx((AUC - RETRAINED_AUC) / RETRAINED_AUC * 100)
    assert result.auc_reference == recorded


@pytest.mark.parametrize("task", TASKS)
def test_no_records_are_no_result(toy: Toy, task: str) -> None:
    with pytest.raises(MetricError):
        plan(toy, task).result([], SHA, None, 0)


@pytest.mark.parametrize("task", TASKS)
def test_records_that_are_not_the_tasks_own_kind_raise(toy: Toy, task: str) -> None:
    # Dropped silently, they would leave an average over fewer samples.
    other = "toy_privleak" if task != "toy_privleak" else "toy_verbmem"
    own, foreign = ask(toy, task, script(toy)), ask(toy, other, script(toy))
    with pytest.raises(UnlearnbenchError):
        plan(toy, task).result([*own[:-1], foreign[-1]], SHA, None, 0)


@pytest.mark.parametrize("task", TASKS)
def test_fewer_records_than_samples_raise(toy: Toy, task: str) -> None:
    with pytest.raises(UnlearnbenchError):
        plan(toy, task).result(ask(toy, task, script(toy))[:-1], SHA, None, 0)


def test_only_members_or_only_others_are_no_result(toy: Toy) -> None:
    found = ask(toy, "toy_privleak", script(toy))
    for half in (found[:3], found[3:]):
        with pytest.raises(MetricError):
            plan(toy, "toy_privleak").result(half, SHA, None, 0)


def test_a_summary_from_records_on_disk_is_the_one_that_was_stored(toy: Toy) -> None:
    stored = run(script(toy), "toy_verbmem", toy).tasks["toy_verbmem"]
    again = plan(toy, "toy_verbmem").result(
        ask(toy, "toy_verbmem", script(toy)),
        stored.records_sha256,
        None,
        0,
    )
    assert again == stored.model_copy(update={"environment": None})


def test_texts_that_all_score_the_same_have_an_auc_of_a_half(toy: Toy) -> None:
    model = ScriptedModel(logprobs=levels(toy, (2.0,) * 3, (2.0,) * 3))
    result = plan(toy, "toy_privleak").result(ask(toy, "toy_privleak", model), SHA, None, 0)
    assert (result.auc, result.auc_stderr) == (0.5, None), "alike texts show no spread"
    assert result.auc_ci is not None
    assert 0 < result.auc_ci[0] < 0.5 < result.auc_ci[1] < 1, "and yet they are few"


def slow_rouge(monkeypatch: pytest.MonkeyPatch, change: Callable[[], object]) -> list[str]:
    """``change()`` comes before each answer's score; returns the names of their threads."""
    score, threads = rouge.score_output, list[str]()

    def changed(output: str, target: str) -> dict[str, float]:
        if output:  # else a target is tried
            threads.append(threading.current_thread().name)
            change()
        return score(output, target)

    monkeypatch.setattr(rouge, "score_output", changed)
    return threads


def test_rouge_runs_beside_the_model(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first score waits until the model has been asked for its second answer."""
    second = threading.Event()

    class Model(ScriptedModel):
        def generate(
            self, requests: Sequence[Generate], skip: Collection[str] = ()
        ) -> Iterator[Generated]:
            for at, answer in enumerate(super().generate(requests, skip)):
                if at:
                    second.set()
                yield answer

    def wait() -> None:
        assert second.wait(20), "the model waits for the score of its answer"

    made = plan(toy, "toy_verbmem")  # which tries the metric
    outputs = {sample.text: "A dog" for sample in made.samples}
    expected = make_records(made, ScriptedModel(outputs), settings(), Answers())
    threads = slow_rouge(monkeypatch, wait)
    assert make_records(made, Model(outputs), settings(), Answers()) == expected
    assert len(threads) == len(expected) > 1
    assert set(threads) == {"scoring_0"}


def test_an_answer_that_cannot_be_scored_ends_the_work(
    toy: Toy, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = threading.Event()

    def fail() -> None:
        failed.set()
        raise MetricError("no score")

    class Model(ScriptedModel):
        given = 0

        def generate(
            self, requests: Sequence[Generate], skip: Collection[str] = ()
        ) -> Iterator[Generated]:
            for answer in super().generate(requests, skip):
                Model.given += 1
                yield answer
                assert failed.wait(20)
                time.sleep(0.2)  # until the future knows it too

    made = plan(toy, "toy_verbmem")
    model = Model({sample.text: "A dog" for sample in made.samples})
    threads = slow_rouge(monkeypatch, fail)
    with pytest.raises(MetricError, match="no score"):
        make_records(made, model, settings(), Answers())
    assert len(threads) <= Model.given <= 3  # the error comes with the answer after it, or the next
