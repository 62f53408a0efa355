"""What the page draws and lists: a ranking in columns, in JSON's own types, and in one sentence.

A figure is ``[value]`` or ``[value, low, high]`` with six significant digits, None where there is
none; points are 0 to 100, shares are of 1. Tasks, conditions and places are told by their number.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

from unlearnbench.boards.ranking import Line, Place, Ranking
from unlearnbench.errors import one_line, printable
from unlearnbench.metrics.intervals import Estimate
from unlearnbench.recovery.reports import points, share
from unlearnbench.recovery.verdicts import RecoveryRow
from unlearnbench.results import (
    FULL,
    AnswerRecord,
    Environment,
    GenerationRecord,
    RunResult,
    SampleRecord,
)
from unlearnbench.runs.fingerprint import environments

LONGEST = 20_000
"""Characters of one text that the page shows."""
MOST_TEXT = 2_000_000
"""Bytes of all texts together; the samples beyond are left out, and the page says so."""
_FIGURES = ("value", "excess", "utility", "change", "recovered", "retained")
Figure = list[float] | None


def view(ranking: Ranking) -> dict[str, object]:
    """All that the page's script needs."""
    rules, lines = ranking.board.rules, list(ranking.lines())
    # In the board's order; what entries have beyond it comes last.
    conditions = [*rules.precisions, *ranking.further]
    wants = {line.task: line.standing.want for line in lines}
    tasks = [task for task in rules.tasks if task in wants]
    front = pareto_front(ranking.places)
    return {
        "tasks": [[one_line(t), wants[t], t in rules.ranking] for t in tasks],
        "conditions": [[c, c in rules.precisions, c.split("-")[0]] for c in conditions],
        "focus": finding(ranking)[:2],
        "floor": rules.utility_floor,
        "places": [_place(place, place.name in front) for place in ranking.shown],
        "rows": _rows(ranking, lines, tasks, conditions),
        "runs": _runs(ranking, conditions),
        **_samples(ranking, conditions),
    }


def finding(ranking: Ranking) -> tuple[str, str, str]:
    """The task and the condition that show most, and what the board found, in one sentence; in
    another, what the conditions show that do not count for ranks.
    """
    rules = ranking.board.rules
    methods = [place for place in ranking.places if not place.is_control]
    every = [(place, row) for place in methods for row in place.rows.values() if row.want != "high"]
    rows = [pair for pair in every if pair[1].precision in rules.precisions]
    more = _beyond(ranking, [pair for pair in every if pair[1].precision in ranking.further])
    if not rows:
        further = [c for c in rules.precisions if c != FULL]
        said = "No entry has been changed yet."
        return rules.ranking[0], (further or [FULL])[0], said + more
    count = f"{len(methods)} {'entry' if len(methods) == 1 else 'entries'}"
    found = _back(rows)
    if not found:
        place, row = max(_of_points(rows), key=lambda pair: pair[1].leakage("change").value)
        which = "No condition that counts" if more else "No condition"
        said = (
            f"{which} is shown to bring anything back in any of {count}; the largest rise is that "
            f"of {place.name} at {row.precision}, {points(row.estimate('change'))} points on "
            f"{row.task}."
        )
        return row.task, row.precision, said + more
    condition = max(rules.precisions, key=lambda at: found[at])
    back = [pair for pair in rows if pair[1].verdict == "recovers"]
    here = _of_points([pair for pair in back if pair[1].precision == condition])
    place, row = max(here, key=lambda pair: pair[1].recovered or 0.0)
    said = (
        f"At {condition}, what was forgotten comes back in {found[condition]} of {count}: in "
        f"{place.name}, {row.task} goes from {row.full:.1f} to {row.quantized:.1f}, which is "
        f"{share(row.estimate('recovered'))} of what could come back."
    )
    return row.task, condition, said + more


def _back(rows: Sequence[tuple[Place, RecoveryRow]]) -> Counter[str]:
    """In how many places each condition brings something back."""
    names = {(row.precision, place.name) for place, row in rows if row.verdict == "recovers"}
    return Counter(at for at, _ in sorted(names))


def _beyond(ranking: Ranking, rows: Sequence[tuple[Place, RecoveryRow]]) -> str:
    """What is to be said of conditions that do not count for ranks, where there are some."""
    asked = sorted({row.precision for _, row in rows})
    if not asked:
        return ""
    found, those = _back(rows), f"{len(asked)} that {'do' if len(asked) > 1 else 'does'} not count"
    if not found:
        return f" Nothing is shown to come back at the {those}."
    most = max(asked, key=lambda at: found[at])
    met = len({place.name for place, row in rows if row.precision == most})
    return (
        f" Of the {those}, {len(found)} {'bring' if len(found) > 1 else 'brings'} something back: "
        f"{most} in {found[most]} of {met}."
    )


def _of_points(rows: list[tuple[Place, RecoveryRow]]) -> list[tuple[Place, RecoveryRow]]:
    """Those on tasks of 0 to 100 points; PrivLeak's, which has its own, only where it is alone."""
    return [(place, row) for place, row in rows if row.want == "low"] or rows


def pareto_front(places: Sequence[Place]) -> list[str]:
    """Ranked places that no other one has less excess and at least the utility of, by excess."""
    known = [(p.worst, p.utility, p.name) for p in places if p.rank is not None]
    ranked = [(w.value, -u.value, name) for w, u, name in known if w and u]
    front, best = list[str](), float("inf")
    for _, less, name in sorted(ranked):
        if less < best:
            front, best = [*front, name], less
    return front


def _figure(figure: Estimate | None) -> Figure:
    if figure is None:
        return None
    return [float(f"{end:.6g}") for end in (figure.value, *(figure.ci or ()))]


def _place(place: Place, in_front: bool) -> dict[str, object]:
    return {
        "name": one_line(place.name),
        "state": place.state,
        "rank": place.rank,
        "position": place.position,
        "seeds": len(place.entries),
        "worst": _figure(place.worst),
        "at": one_line(place.worst_at),
        "utility": _figure(place.utility),
        "front": in_front,
        "notes": [printable(entry.note) for entry in place.entries if entry.note],
    }


def _rows(
    ranking: Ranking, lines: Sequence[Line], tasks: Sequence[str], conditions: Sequence[str]
) -> dict[str, object]:
    numbers = {id(place): number for number, place in enumerate(ranking.shown)}
    verdicts = list(dict.fromkeys(line.verdict for line in lines))
    table = [
        (
            numbers[id(line.place)],
            tasks.index(line.task),
            conditions.index(line.precision),
            verdicts.index(line.verdict),
            line.standing.n,
            int(line.row is not None and line.row.significant),
            *map(_figure, (line.standing.value, line.standing.excess, line.standing.utility)),
            *(_figure(line.came_back(name)) for name in _FIGURES[3:]),
        )
        for line in lines
    ]
    names = ("place", "task", "condition", "verdict", "n", "significant", *_FIGURES)
    return {"verdicts": verdicts, **dict(zip(names, zip(*table, strict=True), strict=True))}


def _runs(ranking: Ranking, conditions: Sequence[str]) -> list[list[object]]:
    """Place, condition, the training's name and its facts."""
    return [
        [number, conditions.index(part.run.condition.name), entry.name, facts(part.run)]
        for number, place in enumerate(ranking.shown)
        for entry in place.entries
        for part in entry.runs
        if part.run.condition.name in conditions
    ]


def facts(run: RunResult) -> list[list[str]]:
    """Where a run's numbers come from."""
    found = {
        "scheme": f"{run.condition.options.scheme} ({run.condition.options.backend})",
        "checkpoint": run.checkpoint.path,
        "made by": ", ".join(f"{k} {v}" for k, v in run.checkpoint.origin.items()) or "not known",
        "weights SHA-256": run.checkpoint.weights_sha256,
        "tokenizer SHA-256": run.checkpoint.tokenizer_sha256,
        "protocol": run.protocol,
        "device": _every(run, lambda e: f"{e.device}, {e.dtype}"),
        "unlearnbench": _every(run, lambda e: f"{e.unlearnbench} ({e.git_hash or 'release'})"),
        "made": run.created,
    }
    found |= {f"{name} samples SHA-256": x.records_sha256 for name, x in run.tasks.items()}
    return [[one_line(name), one_line(value)] for name, value in found.items()]


def _every(run: RunResult, fact: Callable[[Environment], str]) -> str:
    """A fact of where the tasks were measured, each of its values once."""
    return "; ".join(dict.fromkeys(map(fact, environments(run).values())))


def _samples(ranking: Ranking, conditions: Sequence[str]) -> dict[str, object]:
    """``texts``, each once, and each place's ``samples``: task, id, numbers of the prompt and of
    the reference, and for each condition its number, the output's and the score. ``left_out`` is
    how many samples there is no room for.
    """
    known, room, left_out = dict[str, int](), MOST_TEXT, 0
    samples: list[list[object]] = [[] for _ in ranking.shown]
    for number, task, answers in _in_turn(ranking):
        record = next(iter(answers.values()))
        whole = [record.prompt, record.target, *(answer.output for answer in answers.values())]
        texts = [_text(text) for text in whole] if room >= 0 else []
        room -= sum(len(json.dumps(text)) for text in set(texts) - set(known)) + 30 * len(texts)
        if room < 0:
            left_out += 1
            continue
        prompt, target, *outputs = [known.setdefault(text, len(known)) for text in texts]
        scores = [round(100 * answer.score, 1) for answer in answers.values()]
        ats = [conditions.index(at) for at in answers]
        found = [list(each) for each in zip(ats, outputs, scores, strict=True)]
        samples[number].append([one_line(task), one_line(record.id), prompt, target, found])
    return {"texts": list(known), "samples": samples, "left_out": left_out}


def _in_turn(ranking: Ranking) -> Iterator[tuple[int, str, dict[str, GenerationRecord]]]:
    """Place, task and answers by condition of every sample whose texts may be shown: the first of
    every place and task, then the second ones, so that each has some where room ends.
    """
    if not ranking.board.rules.publish_texts:
        return
    held = list[tuple[int, str, dict[str, tuple[SampleRecord, ...]]]]()
    for number, place in enumerate(ranking.shown):
        if place.entry.texts:
            for task in ranking.board.rules.tasks:
                runs = {p.run.condition.name: p.samples.get(task, ()) for p in place.entry.runs}
                held.append((number, task, runs))
    most = max((len(each) for _, _, runs in held for each in runs.values()), default=0)
    for turn in range(most):
        for number, task, runs in held:
            answers = {at: each[turn] for at, each in runs.items() if turn < len(each)}
            found = {at: x for at, a in answers.items() if (x := _written(a)) is not None}
            if found:
                yield number, task, found


def _written(record: SampleRecord) -> GenerationRecord | None:
    """What was written, several answers to one prompt a part each; None where nothing was."""
    if isinstance(record, GenerationRecord):
        return record
    if not isinstance(record, AnswerRecord):
        return None
    match record.facts:
        case {"prompt": str(prompt), "target": str(target), "outputs": [*outputs]}:
            return GenerationRecord(
                task=record.task,
                id=record.id,
                prompt=prompt,
                target=target,
                output="\n---\n".join(map(str, outputs)),
                score=record.score,
                scores={},
            )
    return None


def _text(text: str) -> str:
    return printable(text if len(text) <= LONGEST else f"{text[:LONGEST]} [cut]")
