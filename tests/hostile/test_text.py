"""Hostile text: in task files, templates, names and what the command line prints."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Toy
from tests.hostile.corpus import CASES, Case, adapter, config
from tests.hostile.test_checkpoints import lay_out, use
from unlearnbench.boards.entry import read_entry
from unlearnbench.boards.tables import cell
from unlearnbench.checkpoints.options import LoadOptions
from unlearnbench.cli import main
from unlearnbench.errors import OptionError, ResultError, TaskError
from unlearnbench.importing import ImportOptions, import_runs
from unlearnbench.runs.entries import load_entries
from unlearnbench.runs.folder import RunFolder
from unlearnbench.tasks.templates import LONGEST, render_field
from unlearnbench.util.text import text_table
from unlearnbench.util.validation import read_yaml

BOMBS = [
    "{{ 'a' * 10000000000 }}",
    "{{ 10 ** 10 ** 10 }}",
    "{{ [0] * 1000000000 }}",
    "{{ '%1000000000d' % 1 }}",
    "{{ '{:1000000000}'.format(1) }}",
    "{{ q|center(1000000000) }}",
    "{{ q.ljust(1000000000) }}",
    "{{ q.zfill(1000000000) }}",
    "{{ q|indent(1000000000) }}",
    "{{ q|wordwrap(1) }}",
    "{{ q|format(1) }}",
    "{{ q|tojson }}",
    "{{ q|map('upper')|list }}",
    "{% for a in q %}{% for b in q %}{% for c in q %}x{% endfor %}{% endfor %}{% endfor %}",
    "{% for a in range(100000) %}{% for b in range(100000) %}x{% endfor %}{% endfor %}",
    "{% set x = q ~ q %}{% set x = x ~ x %}{{ x }}",
    "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "{% import 'x' as x %}",
    "{% extends 'x' %}",
    "{% filter upper %}x{% endfilter %}",
    "{{ q" + "|replace('', q)" * 12 + " }}",
    "{{ 'a'" + "|replace('a', 'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa')" * 8 + " }}",
    "{{ 'a'" + ".replace('a', 'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa')" * 8 + " }}",
    "{{ q|join(q * 1) }}",
    "{{ q.split('') }}",
    "{{ q.encode('utf-8') }}",
    "{{ q.translate(q) }}",
    "{{ (" * 5000,
    "{{ " + "(" * 500 + "1" + ")" * 500 + " }}",
    "{{ " + "-" * 5000 + "1 }}",
    "{{ q }}" * 2000,
    "x" * 40_000,
]


@pytest.mark.parametrize("number", range(len(BOMBS)))
def test_a_template_cannot_take_time_or_memory(number: int) -> None:
    with pytest.raises(TaskError) as caught:
        render_field(BOMBS[number], {"q": "some text " * 100}, "toy: forget/0")
    message = str(caught.value)
    assert message.startswith("toy: forget/0: template ")
    assert message.isprintable()
    assert len(message) < 700


def refusal(template: str, row: dict[str, object]) -> str:
    try:
        render_field(template, row, "here")
    except TaskError as error:
        return str(error)
    return ""


def test_the_limit_is_of_characters_and_the_same_on_every_thread() -> None:
    row: dict[str, object] = {"q": "x" * (LONGEST // 4)}
    assert len(render_field("{{ q }}{{ q|trim }}", {"q": "x" * 1000}, "here")) == 2000
    failed = []

    def fill() -> None:
        for template, fits in (("{{q}}{{q}}{{q}}{{q}}", True), ("{{q}}" * 5, False)):
            said = refusal(template, row)
            failed.append(bool(said) if fits else "more than 16,777,216" not in said)

    threads = [threading.Thread(target=fill) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == [False] * 4


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{{text.strip()}}", "a, b"),
        ("{{text|trim|upper}}", "A, B"),
        ("{{ text.strip().split(', ')[1] }}", "b"),
        ("{{ text.strip()[0] }}{{ text.strip()[-1:] }}", "ab"),
        ("{{text|trim|replace(',', ';')}}", "a; b"),
        ("{{text.replace(' ', '').replace(',', '+')}}", "a+b"),
        ("{% if n > 2 %}many{% elif n %}some{% else %}none{% endif %}", "many"),
        ("{{ 'yes' if 'a' in text else 'no' }}", "yes"),
        ("{{ missing|default('-') }}", "-"),
        ("{{ text.strip().split(', ')|join('|') }}", "a|b"),
        ("{{ n * 2 + 1 }} {{ n % 2 }} {{ n // 2 }} {{ -n }}", "7 1 1 -3"),
        ("{{ 'Q: ' ~ text.strip() ~ '?' }}", "Q: a, b?"),
        ("{{ text|trim|title }} {{ text|length }} {{ n|string + '!' }}", "A, B 6 3!"),
        ("{{ 'x' if text.strip().startswith('a') and n is number else 'y' }}", "x"),
        ("{% raw %}{{ q }}{% endraw %}{# a comment #}", "{{ q }}"),
    ],
)
def test_what_tasks_use_works(template: str, text: str) -> None:
    assert render_field(template, {"text": " a, b ", "n": 3}, "here") == text


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("a: !!python/object/apply:os.system ['touch canary']\n", "tags are not allowed"),
        ("a: !!python/name:os.system\n", "tags are not allowed"),
        ("a: !custom 1\n", "tags are not allowed"),
        ("a: &a [x, x]\nb: [*a, *a]\n", "aliases"),
        ("a: {<<: {b: 1}}\n", "a key must be plain text"),
        ("a: " + "[" * 20_000, "nested too deeply"),
        ("".join(" " * n + "a:\n" for n in range(400)), "nested too deeply"),
        ("- " * 9999, "nested too deeply"),
        ("a: " + "x" * 300_000, "larger than 256 KiB"),
        ("a: " + "9" * 9999 + "\n", "no valid value"),
    ],
)
def test_yaml_is_data_and_no_more_than_a_file(tmp_path: Path, content: str, said: str) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(content)
    with pytest.raises(TaskError, match=said) as caught:
        read_yaml(path)
    assert str(caught.value).isprintable()


def test_a_pipe_among_the_task_files_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.yaml")
    with pytest.raises(TaskError, match="no regular file"):
        read_yaml(tmp_path / "a.yaml")


def test_a_pipe_among_the_files_to_import_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m" / "knowmem_f").mkdir(parents=True)
    os.mkfifo(tmp_path / "m" / "knowmem_f" / "log.json")
    with pytest.raises(Exception, match="is no regular file"):
        import_runs(ImportOptions("muse", tmp_path, "news", tmp_path / "out"))


def test_a_pipe_among_results_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "run" / "samples"
    folder.mkdir(parents=True)
    os.mkfifo(folder / "toy.jsonl")
    os.mkfifo(tmp_path / "entry.json")
    with pytest.raises(ResultError, match="is no regular file"):
        RunFolder(tmp_path / "run").read_records("toy", "0" * 64)
    with pytest.raises(ResultError, match="is no regular file"):
        read_entry(tmp_path / "entry.json")
    os.mkfifo(tmp_path / "run" / "run.json")
    with pytest.raises(OptionError, match=r"no run\.json there or below"):
        load_entries([tmp_path / "run"])


def test_a_description_forges_no_row(toy: Toy, capsys: pytest.CaptureFixture[str]) -> None:
    path = toy.tasks / "toy_verbmem.yaml"
    evil = 'description: "A\\n| forged | row |\\e[2J\\u202e"'
    path.write_text(path.read_text().replace("description: A toy.", evil))
    with pytest.raises(SystemExit) as caught:
        main(["tasks", "--include-path", str(toy.tasks)])
    assert caught.value.code == 0
    out = capsys.readouterr().out
    (line,) = (line for line in out.splitlines() if "forged" in line)
    assert line.startswith("| toy_verbmem")
    assert all(c == "\n" or c.isprintable() for c in out)
    assert "\\x1b[2J" in line


def test_a_bar_in_a_cell_is_no_border() -> None:
    lines = text_table([["a|b", "c\nd\x1b[31m"]], ["x", "y|z"]).splitlines()
    assert lines[2].replace("\\|", "").count("|") == 3
    assert len(lines) == 3


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t=", "\r=", "\n-", "\uff1d", "\uff20"])
def test_no_cell_starts_a_formula(start: str) -> None:
    assert cell(f"{start}cmd|'/C calc'!A0").startswith("'")
    assert cell("plain") == "plain"


# Each permissive option says what it permits when it takes effect, and not otherwise.


def notes(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "unlearnbench"]


def test_allow_pickle_says_what_it_permits(
    tiny: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def pickled(folder: Path) -> None:
        import torch
        from safetensors.torch import load_file

        torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
        (folder / "model.safetensors").unlink()

    path, options = lay_out(Case("", pickled, "", {"allow_pickle": True}), tiny, tmp_path)
    use(path, options)
    (said,) = (note for note in notes(caplog) if note.startswith("--allow-pickle: "))
    assert "a pickle; only torch's restricted reader keeps its author's code from running" in said


def test_allow_adapter_base_says_what_it_permits(
    tiny: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    build = adapter(base_model_name_or_path=str(tiny))
    path, _ = lay_out(Case("", build, ""), tiny, tmp_path)
    use(path, LoadOptions(allow_adapter_base=True))
    (said,) = (note for note in notes(caplog) if note.startswith("--allow-adapter-base: "))
    assert f"the base {tiny} is loaded because" in said


def test_trust_remote_code_says_what_it_permits(
    tiny: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def own(folder: Path) -> None:
        (folder / "own.py").write_text("from transformers import LlamaForCausalLM as Own\n")
        config(auto_map={"AutoModelForCausalLM": "own.Own"})(folder)

    path, _ = lay_out(Case("", own, ""), tiny, tmp_path)
    from unlearnbench.conditions.load import open_source

    open_source(path, LoadOptions(trust_remote_code=True))
    (said,) = (note for note in notes(caplog) if note.startswith("--trust-remote-code: "))
    assert "runs its own Python code (auto_map in config.json), with all your rights" in said


def test_options_that_take_no_effect_say_nothing(
    tiny: Path, caplog: pytest.LogCaptureFixture
) -> None:
    every: dict[str, Any] = dict.fromkeys(
        ("allow_pickle", "trust_remote_code", "allow_adapter_base"), True
    )
    use(str(tiny), LoadOptions(**every))
    assert not [note for note in notes(caplog) if note.startswith("--")]


def test_a_hub_cache_may_link_to_its_blobs(tiny: Path, tmp_path: Path) -> None:
    home = tmp_path / "models--a--b"
    snapshot = home / "snapshots" / ("1" * 40)
    snapshot.mkdir(parents=True)
    (home / "blobs").mkdir()
    for number, path in enumerate(sorted(tiny.iterdir())):
        (home / "blobs" / str(number)).write_bytes(path.read_bytes())
        (snapshot / path.name).symlink_to(Path("../../blobs") / str(number))
    use(str(snapshot), LoadOptions())


def test_the_corpus_is_large_enough() -> None:
    assert len(CASES) >= 60
