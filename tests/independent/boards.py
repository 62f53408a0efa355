"""A board's figures, and what differs in its CSV and its README."""

from __future__ import annotations

import csv
import html
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from tests.independent.engine import TAIL, Figure, mean_of, of, shared
from tests.independent.files import Array, Model, read_entry
from tests.independent.rows import GAP, Row, grouped, judged, label, row, utility_of

REDRAWN = 4000


def _redrawn(rng: np.random.Generator, n: int) -> Array:
    """How often each of ``n`` is drawn, as shares."""
    return rng.multinomial(n, [1 / n] * n, size=REDRAWN) / n


@dataclass
class Board:
    """A board's settings and models, and its samples drawn again, every task's once for all."""

    settings: dict[str, Any]
    target: Model
    retrained: Model
    entries: list[list[Model]]
    controls: list[list[Model]]
    """Judged by themselves, and in no rank or mean."""

    @classmethod
    def read(cls, folder: Path) -> Board:
        settings = yaml.safe_load((folder / "board.yaml").read_text(encoding="utf-8"))
        models: dict[str, list[Model]] = {}
        for file in sorted((folder / "entries").glob("*.json")):
            model, role = read_entry(file)
            models.setdefault(role, []).append(model)
        (target,), (retrained,) = models["target"], models["retrained"]
        controls = grouped(models.get("control", []))
        return cls(settings, target, retrained, grouped(models["unlearned"]), controls)

    @property
    def required(self) -> list[tuple[str, str]]:
        return [(p, t) for p in self.settings["precisions"] for t in self.settings["ranking"]]

    def rows(self) -> dict[tuple[str, str, str], Row]:
        """All of them, the references' too; the verdicts are the entries' alone."""
        found = []
        for group in (*self.entries, *self.controls, [self.target], [self.retrained]):
            found += [row(group, self.target, self.retrained, p, t) for p, t in group[0].cells]
        for groups in (self.entries, self.controls):
            names = {label(group) for group in groups}
            family = [r for r in found if r.entry in names and r.precision != "none"]
            judged(family, self.settings["utility_floor"])
        return {(r.entry, r.task, r.precision): r for r in found}

    @cached_property
    def _drawn(self) -> dict[str, tuple[Array, Array]]:
        rng = np.random.default_rng(77)
        drawn = {}
        for (_, task), cell in self.target.cells.items():
            if task not in drawn:
                sizes = cell.points.shape if cell.points.ndim == 2 else (cell.n, 1)
                drawn[task] = (_redrawn(rng, sizes[0]), _redrawn(rng, sizes[1]))
        return drawn

    def means(self, models: Sequence[Model], precision: str, task: str, seed: int = 0) -> Array:
        """Over samples and trainings: the mean itself first, then of each draw."""
        forget, holdout = self._drawn[task]
        trainings = _redrawn(np.random.default_rng(seed), len(models))
        total = np.zeros(REDRAWN + 1)
        for model, times in zip(models, trainings.T, strict=True):
            points = model.cells[precision, task].points
            pairs = points if points.ndim == 2 else points[:, None]
            total[0] += pairs.mean() / len(models)
            total[1:] += times * ((forget @ pairs) * holdout).sum(1)
        return total

    def worst(self, models: Sequence[Model]) -> Array:
        """The worst excess over the retrained model."""
        found = []
        for precision, task in self.required:
            ours, never = (
                self.means(models, precision, task),
                self.means([self.retrained], "none", task),
            )
            if self.target.cells["none", task].want == "zero":
                found.append(np.abs(100 * (ours / never - 1)))
            else:
                found.append(ours - never)
        return np.asarray(np.max(found, axis=0))

    def utility(self, models: Sequence[Model]) -> Figure:
        """The least."""
        task = self.settings["ranking"][0]
        kept = [utility_of(models, self.target, p, task) for p in self.settings["precisions"]]
        return min((one for one in kept if one is not None), key=lambda one: one.value)

    def state(self, models: Sequence[Model]) -> str:
        present = {p for p, _ in models[0].cells}
        if not present >= set(self.settings["precisions"]):
            return "incomplete"
        if self.utility(models).value < self.settings["utility_floor"]:
            return "collapsed"
        return "control" if models in self.controls else "ranked"

    def places(self) -> dict[str, dict[str, float]]:
        """Of every ranked entry: its rank, the ranks' range and how often no other is before it."""
        ranked = [group for group in self.entries if self.state(group) == "ranked"]
        worst = np.array([self.worst(group) for group in ranked])
        ranks = 1 + (worst[None, :, :] < worst[:, None, :]).sum(1)
        places = {}
        for group, own in zip(ranked, ranks, strict=True):
            low, high = np.quantile(own[1:], [TAIL, 1 - TAIL])
            places[label(group)] = {
                "rank": own[0],
                "rank_low": min(low, own[0]),
                "rank_high": max(high, own[0]),
                "first": (own[1:] == 1).mean(),
            }
        return places

    def shares(self) -> dict[str, list[tuple[float, float, float] | None]]:
        """By precision: above the retrained, retained, retained by the retrained model. Each is a
        mean over entries and tasks with its ends: a task's are a ratio's, with the entries' mean on
        top, and tasks, which share no samples, add as squares.
        """
        ranked = [group for group in self.entries if self.state(group) == "ranked"]
        tasks = [
            t
            for t in self.settings["ranking"]
            if self.target.cells["none", t].want == "low"
            if all(self._keeps(p, t) for p in self.settings["precisions"])
        ]
        found = {}
        for p in self.settings["precisions"]:
            parts: list[list[Figure]] = [[], [], []]
            for t in tasks:
                there, zero = of(self.target.cells[p, t]), of(self.retrained.cells["none", t])
                ours = mean_of([mean_of([of(m.cells[p, t]) for m in group]) for group in ranked])
                parts[0].append(shared([ours - zero], [there - zero]))
                parts[1].append(shared([ours], [there]))
                if (p, t) in self.retrained.cells:
                    parts[2].append(shared([of(self.retrained.cells[p, t])], [there]))
            found[p] = [_over_tasks(figures) for figures in parts]
        return found

    def _keeps(self, precision: str, task: str) -> bool:
        there, full = (self.target.cells[p, task].mean for p in (precision, "none"))
        return there >= full / 2 and there - self.retrained.cells["none", task].mean >= GAP


def _over_tasks(figures: Sequence[Figure]) -> tuple[float, float, float] | None:
    if not figures:
        return None
    ends = [figure.ends or (-math.inf, math.inf) for figure in figures]
    value = float(np.mean([figure.value for figure in figures]))
    below = math.hypot(*(f.value - low for f, (low, _) in zip(figures, ends, strict=True)))
    above = math.hypot(*(high - f.value for f, (_, high) in zip(figures, ends, strict=True)))
    return value, value - below / len(figures), value + above / len(figures)


def board_differences(folder: Path) -> list[str]:
    """A line for everything in which board.csv or the README's mean shares differ."""
    board = Board.read(folder)
    rows, places = board.rows(), board.places()
    with (folder / "board.csv").open(encoding="utf-8", newline="") as file:
        stated = list(csv.DictReader(file))
    lines = [] if len(stated) == len(rows) else [f"{len(stated)} rows, ours {len(rows)}"]
    groups = {label(group): group for group in (*board.entries, *board.controls)}
    for found in stated:
        where = f"{found['entry']}, {found['task']} at {found['precision']}"
        mine = rows.get((found["entry"], found["task"], found["precision"]))
        if mine is None:
            lines.append(f"{where}: no such row of ours")
            continue
        lines += [f"{where}: {line}" for line in _cells_differ(found, mine)]
        plain = {"required": str(found["precision"] in board.settings["precisions"]).lower()}
        group = groups.get(found["entry"])
        if group is None:
            plain |= {"state": "target" if mine.entry == board.target.name else "retrained"}
            plain |= {"state_certain": "", "verdict": "target forgets" if mine.lost else ""}
        else:
            floor, least = board.settings["utility_floor"], board.utility(group)
            sure = least.ends is not None and not least.ends[0] <= floor <= least.ends[1]
            state = board.state(group)
            certain = "" if state == "control" else str(sure).lower()
            plain |= {"state": state, "state_certain": certain}
            plain |= {"verdict": mine.verdict}
        lines += [
            f"{where}: {name} {found[name]}, ours {value}"
            for name, value in plain.items()
            if found[name] != value
        ]
        lines += [f"{where}: {line}" for line in _place_differs(found, places.get(found["entry"]))]
    readme = html.unescape((folder / "README.md").read_text(encoding="utf-8"))
    return [*lines, *_shares_differ(board, readme)]


def _number(text: str) -> float | None:
    return float(text) if text else None


def _cells_differ(found: dict[str, str], mine: Row) -> Iterable[str]:
    names = {"value": "quantized", "excess": "excess", "utility": "utility"}
    more = {"change": "change", "recovered": "recovered", "retained": "retained"}
    beside = mine.precision != "none" and found["state"] not in ("target", "retrained")
    for name, figure_name in (names | more).items():
        figure = mine.figures.get(figure_name) if name in names or beside else None
        value = _number(found[name])
        if (value is None) != (figure is None):
            yield f"{name} {value}, ours {figure and figure.value}"
        elif figure is not None and value is not None:
            if abs(value - figure.value) > 1e-9 + 6e-6 * abs(figure.value):
                yield f"{name} {value}, ours {figure.value}"
            if name != "retained":
                low, high = _number(found[f"{name}_low"]), _number(found[f"{name}_high"])
                ends = None if low is None or high is None else (low, high)
                line = figure.differs(ends, 6e-6)
                if line:
                    yield f"{name}: {line}"
    plain = {
        "want": mine.want,
        "n": str(mine.n),
        "seeds": str(mine.seeds),
        "significant": str(mine.significant).lower() if beside else "",
    }
    yield from (f"{k} {found[k]}, ours {v}" for k, v in plain.items() if found[k] != v)


def _place_differs(found: dict[str, str], place: dict[str, float] | None) -> Iterable[str]:
    for name in ("rank", "rank_low", "rank_high", "first"):
        value, ours = _number(found[name]), None if place is None else place[name]
        if (value is None) != (ours is None):
            yield f"{name} {value}, ours {ours}"
        elif value is not None and ours is not None:
            slack = 0.0 if name == "rank" else 1.0
            if name == "first":
                slack = 0.005 + 5 * math.sqrt(ours * (1 - ours) / 2000)
            if abs(value - ours) > slack:
                yield f"{name} {value}, ours {ours}"


def _shares_differ(board: Board, readme: str) -> Iterable[str]:
    one = r"(-?\d+)%(?: \[(-?\d+), (-?\d+)\])?|-"
    for precision, ours in board.shares().items():
        line = re.search(rf"^\| {re.escape(precision)} \|((?: (?:{one}) \|){{3}})$", readme, re.M)
        if line is None:
            yield f"no mean shares at {precision}"
            continue
        for text, mine in zip(line[1].split("|"), ours, strict=False):
            found = re.fullmatch(one, text.strip())
            if found is None or (found[1] is None) != (mine is None):
                yield f"mean share at {precision}: {text}, ours {mine}"
            elif mine is not None:
                point, low, high = (100 * x for x in mine)
                slack = 0.51 + 0.05 * (high - low)
                if abs(float(found[1]) - point) > 0.51 or (
                    found[2]
                    and (abs(float(found[2]) - low) > slack or abs(float(found[3]) - high) > slack)
                ):
                    yield f"mean share at {precision}: {text}, ours {point} [{low}, {high}]"
