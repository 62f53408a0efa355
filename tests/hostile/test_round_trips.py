"""Whatever a model writes comes back as it was written, and is shown as what it is."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.hostile.strategies import finite, names, shares, texts
from unlearnbench.boards.tables import cell
from unlearnbench.errors import ResultError, UnlearnbenchError, one_line, printable
from unlearnbench.results import GenerationRecord, LikelihoodRecord, RunResult, SampleRecord
from unlearnbench.runs.folder import RunFolder, read_run
from unlearnbench.util.text import text_table

GOOD = Path(__file__).parents[1] / "golden" / "results" / "good"
examples = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)

generated: st.SearchStrategy[SampleRecord] = st.builds(
    GenerationRecord,
    task=texts,
    id=texts,
    prompt=texts,
    output=texts,
    target=texts,
    n_tokens=st.integers(0, 2**40),
    score=shares,
    scores=st.dictionaries(texts, shares, max_size=3),
)
scored: st.SearchStrategy[SampleRecord] = st.builds(
    LikelihoodRecord,
    task=texts,
    id=texts,
    split=texts,
    n_tokens=st.integers(1, 2**40),
    scores=st.dictionaries(texts, finite, min_size=1, max_size=3),
)


@examples
@given(records=st.lists(generated, max_size=6) | st.lists(scored, max_size=6))
def test_records_come_back_as_they_were(tmp_path: Path, records: list[SampleRecord]) -> None:
    folder = RunFolder(tmp_path / "run")
    digest = folder.write_records("toy", records)
    assert folder.read_records("toy", digest) == records
    content = folder.samples_file("toy").read_bytes()
    # One line a record, whatever ends a line for whoever reads it: the file is plain ASCII.
    assert content.isascii()
    assert len(content.decode("ascii").splitlines()) == len(records)
    assert folder.write_records("toy", records) == digest


@examples
@given(data=st.data())
def test_results_come_back_as_they_were(tmp_path: Path, data: st.DataObject) -> None:
    content: dict[str, Any] = json.loads((GOOD / "run.json").read_text())
    content["checkpoint"]["path"] = data.draw(texts)
    content["checkpoint"]["origin"] = data.draw(st.dictionaries(texts, texts, max_size=3))
    content["condition"]["options"]["scheme"] = data.draw(texts)
    content["tasks"] = {data.draw(names): part for part in content["tasks"].values()}
    for part in content["tasks"].values():
        part["value"] = data.draw(finite)
    result = RunResult.model_validate(content)
    folder = RunFolder(tmp_path / "run")
    folder.write_run(result)
    assert read_run(folder.path) == result
    written = folder.run_file.read_bytes()
    folder.write_run(read_run(folder.path))
    assert folder.run_file.read_bytes() == written
    assert written.isascii()


@pytest.mark.parametrize(
    "name", ["../up", "/etc/passwd", "a/b", "a\\b", ".hidden", "..", "", "a\x00b", "a\nb"]
)
def test_a_task_whose_name_leads_elsewhere_has_no_records(tmp_path: Path, name: str) -> None:
    folder = RunFolder(tmp_path)
    with pytest.raises(ResultError, match="is no task's name"):
        folder.read_records(name, "0" * 64)
    with pytest.raises(ResultError, match="is no task's name"):
        folder.write_records(name, [])


@examples
@given(text=texts)
def test_what_is_shown_moves_no_cursor(text: str) -> None:
    assert one_line(text).isprintable()
    assert all(c == "\n" or c.isprintable() for c in printable(text))
    assert str(UnlearnbenchError(f"{text}: wrong")).isprintable()


@examples
@given(rows=st.lists(st.lists(texts, min_size=3, max_size=3), min_size=1, max_size=4))
def test_a_table_has_a_line_a_row_and_a_border_a_column(rows: list[list[str]]) -> None:
    table = text_table(rows, ["a", "b", "c"])
    lines = table.split("\n")
    assert len(lines) == len(rows) + 2
    assert all(line.isprintable() for line in lines)
    for line in lines:
        assert len(line.replace("\\|", "").split("|")) == 5


@examples
@given(text=texts)
def test_a_csv_cell_is_no_formula_and_one_line(text: str) -> None:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerow(["1", cell(text), "-2.5"])
    ((_, shown, number),) = csv.reader(io.StringIO(buffer.getvalue()))
    assert shown[:1] not in tuple("=+-@\t\r\n\uff1d\uff0b\uff0d\uff20") or shown == ""
    assert shown.isprintable()
    assert number == "-2.5"
