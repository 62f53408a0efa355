from __future__ import annotations

import string
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.conftest import Toy
from unlearnbench.errors import TaskError
from unlearnbench.tasks.kinds.generate import GenerationTask
from unlearnbench.tasks.kinds.likelihood import LikelihoodTask
from unlearnbench.tasks.registry import builtin_task_dir, load_registry, read_task, split_names

GENERATION = """\
# Both kinds begin with a comment, so that no line number is right by chance.
task: toy
tag: [toys]
description: A toy.
dataset_path: my-org/toys
dataset_name: qa
dataset_kwargs: {revision: main}
output_type: generate_until
test_split: test
fewshot_split: shots
num_fewshot: 2
doc_to_text: "{{q}}"
doc_to_target: "{{a}}"
generation_kwargs:
  max_gen_toks: 8
  temperature: 0.5
  until:
    - "one"
    - "two"
protocol_overrides:
  zhang2025:
    max_gen_toks: 9
    do_sample: true
metric: rougeL
want: low
splits:
  test: {rows: 3}
  shots:
    rows: 2
metadata: {version: 1.5}
"""
LIKELIHOOD = """\
# Both kinds begin with a comment, so that no line number is right by chance.
task: toy
description: A toy.
dataset_path: toys
dataset_name: texts
output_type: token_loglikelihood
member_split: forget
nonmember_split: holdout
doc_to_text: "{{text}}"
attack: Min-40%
references:
  - auc: 0.5
    base_model: Tiny
    config:
      model_type: llama
    source: nowhere
metric: privleak
want: zero
splits:
  forget: {rows: 3}
  holdout: {rows: 3, sha256: "0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a"}
metadata: {version: 1}
"""


def write(folder: Path, text: str, name: str = "toy.yaml") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def fault(folder: Path, text: str) -> tuple[int, str]:
    """The line that the error names, and what it says."""
    path = write(folder, text)
    with pytest.raises(TaskError) as caught:
        read_task(path)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    assert message.startswith(f"{path}:")
    line, _, says = message.removeprefix(f"{path}:").partition(": ")
    return int(line), says


def edit(text: str, old: str, new: str) -> str:
    assert text.count(old) == 1, f"{old!r} is not unique"
    return text.replace(old, new)


def line_of(text: str, needle: str) -> int:
    """The number of the only line that holds ``needle``."""
    (number,) = [i for i, line in enumerate(text.split("\n"), 1) if needle in line]
    return number


def test_a_generation_task(tmp_path: Path) -> None:
    spec = read_task(write(tmp_path, GENERATION))
    assert isinstance(spec, GenerationTask)
    assert (spec.task, spec.tag, spec.version) == ("toy", ("toys",), 1.5)
    assert spec.used_splits == ("test", "shots")
    assert spec.generation_kwargs.until == ("one", "two")
    assert spec.target_delimiter == " "
    assert spec.fewshot_delimiter == "\n\n"
    assert spec.splits["test"].rows == 3
    assert spec.splits["test"].sha256 is None


def test_a_likelihood_task(tmp_path: Path) -> None:
    spec = read_task(write(tmp_path, LIKELIHOOD))
    assert isinstance(spec, LikelihoodTask)
    assert spec.used_splits == ("forget", "holdout")
    assert spec.dataset_kwargs.revision == "main"
    assert spec.tag == ()
    assert spec.references[0].config == {"model_type": "llama"}
    assert spec.splits["holdout"].sha256 == "0a" * 32


def test_decoding_by_protocol(tmp_path: Path) -> None:
    spec = read_task(write(tmp_path, GENERATION))
    assert isinstance(spec, GenerationTask)
    assert spec.decoding("muse") == spec.generation_kwargs
    sampled = spec.decoding("zhang2025")
    assert (sampled.max_gen_toks, sampled.do_sample) == (9, True)
    # An override replaces the options; it does not inherit from them.
    assert (sampled.temperature, sampled.until) == (1.0, ())


def test_a_task_without_shots_reads_one_split(tmp_path: Path) -> None:
    text = edit(GENERATION, "fewshot_split: shots\nnum_fewshot: 2\n", "")
    assert read_task(write(tmp_path, text)).used_splits == ("test",)


@pytest.mark.parametrize(
    ("old", "new", "at", "says"),
    [
        # Unknown keys, at every depth.
        ("want: low\n", "want: low\ncolour: red\n", "colour", "unknown key 'colour'"),
        ("{rows: 3}", "{rows: 3, row: 3}", "row: 3", "unknown key 'splits.test.row'"),
        ("temperature: 0.5", "temprature: 0.5", "temprature", "'generation_kwargs.temprature'"),
        ("version: 1.5", "version: 1.5, by: me", "by: me", "unknown key 'metadata.by'"),
        ("revision: main", "token: x", "token", "unknown key 'dataset_kwargs.token'"),
        ("want: low", "want: low\nattack: Min-40%", "attack", "unknown key 'attack'"),
        # Wrong types: nothing is converted.
        ("num_fewshot: 2", 'num_fewshot: "2"', "num_fewshot", "num_fewshot: "),
        ("num_fewshot: 2", "num_fewshot: true", "num_fewshot", "num_fewshot: "),
        ("num_fewshot: 2", "num_fewshot: 2.0", "num_fewshot", "num_fewshot: "),
        ("do_sample: true", "do_sample: 1", "do_sample", "do_sample: "),
        ('- "two"', "- 2", "- 2", "generation_kwargs.until.1: "),
        ("tag: [toys]", "tag: toys", "tag:", "tag: "),
        ("description: A toy.", "description: 5", "description", "description: "),
        ("description: A toy.", "description:", "description", "description: "),
        ("description: A toy.", 'description: ""', "description", "description: "),
        ("{version: 1.5}", '{version: "1.5"}', "version", "metadata.version: "),
        ("{version: 1.5}", "1.5", "metadata", "metadata: "),
        # Values out of range.
        ("version: 1.5", "version: .nan", "version", "metadata.version: "),
        ("version: 1.5", "version: .inf", "version", "metadata.version: "),
        ("version: 1.5", "version: 0", "version", "metadata.version: "),
        ("max_gen_toks: 8", "max_gen_toks: 0", "toks: 0", "generation_kwargs.max_gen_toks: "),
        ("temperature: 0.5", "temperature: 0", "temperature", "generation_kwargs.temperature: "),
        ("max_gen_toks: 9", "max_gen_toks: -1", "-1", "zhang2025.max_gen_toks: "),
        ("{rows: 3}", "{rows: 0}", "rows: 0", "splits.test.rows: "),
        ("{rows: 3}", "{rows: 3, sha256: 0a}", "sha256", "splits.test.sha256: "),
        ("want: low", "want: lower", "want", "want: "),
        ("want: low", "want: zero", "want", "want: "),
        # Duplicates, aliases, tags.
        ("want: low\n", "want: low\nmetric: bleu\n", "bleu", "duplicate key 'metric'"),
        ("    rows: 2", "    rows: 2\n    rows: 4", "rows: 4", "duplicate key 'rows'"),
        ("tag: [toys]", "tag: &t [*t]", "tag", "aliases"),
        ("A toy.", "!!python/name:os.getcwd x", "python", "python/name:os.getcwd"),
        # Names that become paths.
        ("my-org/toys", "../x", "../x", "dataset_path: "),
        ("my-org/toys", "/abs", "/abs", "dataset_path: "),
        ("my-org/toys", "a/../b", "a/../b", "dataset_path: "),
        ("my-org/toys", "a//b", "a//b", "dataset_path: "),
        ("my-org/toys", "a/", "a/", "dataset_path: "),
        ("my-org/toys", "'a\\b'", "dataset_path", "dataset_path: "),
        ("my-org/toys", '"a\\n"', "dataset_path", "dataset_path: "),
        ("dataset_name: qa", "dataset_name: ..", "dataset_name", "dataset_name: "),
        ("dataset_name: qa", "dataset_name: a/b", "dataset_name", "dataset_name: "),
        ("test_split: test", "test_split: ../test", "../test", "test_split: "),
        ("  test: {", "  ../test: {", "../test", "splits."),
        ("task: toy", "task: toys", "task: toys", "task is 'toys' but the file's name is 'toy'"),
        ("task: toy", "task: a toy", "task: a toy", "task: "),
        ("generate_until", "perplexity", "perplexity", "output_type must be one of answer_memb"),
        ("generate_until", "[x]", "[x]", "output_type must be one of answer_membership, "),
        # An empty stop string would end every output before its first word.
        ('- "two"', '- ""', '- ""', "until"),
        ("do_sample: true", 'until: [x, ""]', "[x,", "until"),
        # Keys that contradict each other: the line of the one that is wrong.
        ("num_fewshot: 2", "num_fewshot: 3", "num_fewshot", "more than the rows of split 'shots'"),
        ("num_fewshot: 2", "num_fewshot: 0", "num_fewshot", "go together"),
        ("fewshot_split: shots\n", "", "num_fewshot", "go together"),
        ("test_split: test", "test_split: other", "test_split", "splits has no entry for other"),
        ("fewshot_split: shots", "fewshot_split: other", "fewshot_split", "no entry for other"),
        ("zhang2025:", "zhang2024:", "zhang2024", "zhang2024"),
    ],
)
def test_faults_of_a_generation_task(
    tmp_path: Path, old: str, new: str, at: str, says: str
) -> None:
    text = edit(GENERATION, old, new)
    line, message = fault(tmp_path, text)
    assert says in message
    assert line == line_of(text, at)


@pytest.mark.parametrize(
    ("old", "new", "at", "says"),
    [
        ("auc: 0.5", "auc: 0", "auc", "references.0.auc: "),
        ("auc: 0.5", "auc: 1.01", "auc", "references.0.auc: "),
        (
            "model_type: llama",
            "model_type: [llama]",
            "model_type",
            "references.0.config.model_type",
        ),
        (
            "    config:\n      model_type: llama",
            "    config: {}",
            "config",
            "references.0.config: ",
        ),
        ("    source: nowhere\n", "", "auc", "key 'references.0.source' is missing"),
        ("want: zero", "want: zero\nnum_fewshot: 1", "num_fewshot", "unknown key 'num_fewshot'"),
        ("want: zero", "want: low", "want", "want: "),
        ('"0a0a', '"0A0a', "sha256", "splits.holdout.sha256: "),
        ("_split: holdout", "_split: forget", "nonmember_split", "must differ"),
        ("_split: holdout", "_split: other", "nonmember_split", "splits has no entry for other"),
    ],
)
def test_faults_of_a_likelihood_task(
    tmp_path: Path, old: str, new: str, at: str, says: str
) -> None:
    text = edit(LIKELIHOOD, old, new)
    line, message = fault(tmp_path, text)
    assert says in message
    assert line == line_of(text, at)


@pytest.mark.parametrize(
    ("text", "key"),
    [
        *((GENERATION, key) for key in ("task", "description", "dataset_path", "dataset_name")),
        *((GENERATION, key) for key in ("test_split", "doc_to_text", "doc_to_target")),
        *((GENERATION, key) for key in ("metric", "want", "metadata")),
        *((LIKELIHOOD, key) for key in ("member_split", "nonmember_split", "attack")),
    ],
)
def test_a_missing_key_is_named(tmp_path: Path, text: str, key: str) -> None:
    lines = [line for line in text.split("\n") if not line.startswith(f"{key}:")]
    assert fault(tmp_path, "\n".join(lines)) == (1, f"key {key!r} is missing")


def test_a_missing_nested_key_is_shown_at_its_parent(tmp_path: Path) -> None:
    text = edit(GENERATION, "  max_gen_toks: 8\n", "")
    expected = (
        line_of(text, "generation_kwargs"),
        "key 'generation_kwargs.max_gen_toks' is missing",
    )
    assert fault(tmp_path, text) == expected


def test_no_output_type(tmp_path: Path) -> None:
    line, message = fault(tmp_path, edit(GENERATION, "output_type: generate_until\n", ""))
    assert line == 1
    assert message.startswith("output_type must be one of answer_membership, ")


def test_a_text_that_is_no_task_at_all(tmp_path: Path) -> None:
    assert fault(tmp_path, "- a\n- b\n")[0] == 1
    assert fault(tmp_path, "a: 1\nb: [\n")[0] == 3


def test_control_characters_in_a_key_are_not_echoed(tmp_path: Path) -> None:
    assert fault(tmp_path, edit(GENERATION, "want: low", '"\\e[2J": x'))[1].isprintable()


# The registry.


def named(name: str, *tags: str) -> str:
    return LIKELIHOOD.replace("task: toy", f"task: {name}\ntag: [{', '.join(tags)}]")


BUILTIN = tuple(sorted(path.stem for path in builtin_task_dir().glob("*.yaml")))
KINDS = ("knowmem_f", "knowmem_r", "privleak", "verbmem")


@pytest.mark.parametrize("group", ["news", "books", "demo"])
def test_a_group_is_one_data_set(group: str) -> None:
    if group == "demo" and not any(name.startswith("demo_") for name in BUILTIN):
        pytest.skip("no demo tasks yet")
    expected = tuple(f"{group}_{kind}" for kind in KINDS)
    assert load_registry().groups[group] == expected


def test_muse_is_news_and_books() -> None:
    groups = load_registry().groups
    assert groups["muse"] == (*groups["books"], *groups["news"])
    assert set(groups) <= {"books", "demo", "muse", "news", "rwku"} | {
        g for g in groups if g.startswith(("tofu", "news_scal_", "news_sust_", "rwku_membership"))
    }


def test_every_builtin_task_is_found_in_name_order() -> None:
    registry = load_registry()
    assert tuple(registry.tasks) == BUILTIN
    assert registry.files["news_verbmem"] == builtin_task_dir() / "news_verbmem.yaml"


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        (["news_verbmem"], ["news_verbmem"]),
        (["news"], [f"news_{kind}" for kind in KINDS]),
        (["*_privleak"], [name for name in BUILTIN if name.endswith("_privleak")]),
        (["news_know*_?"], ["news_knowmem_f", "news_knowmem_r"]),
        (["news_knowmem_[r]"], ["news_knowmem_r"]),
        # In the order given, each once.
        (["news_verbmem", "books_verbmem"], ["news_verbmem", "books_verbmem"]),
        (["news_privleak", "news_privleak"], ["news_privleak"]),
        (
            ["news_verbmem", "news", "*_verbmem"],
            [
                *("news_verbmem", "news_knowmem_f", "news_knowmem_r", "news_privleak"),
                *(n for n in BUILTIN if n.endswith("_verbmem") and n != "news_verbmem"),
            ],
        ),
    ],
)
def test_resolve(wanted: list[str], expected: list[str]) -> None:
    assert [spec.task for spec in load_registry().resolve(wanted)] == expected


@pytest.mark.parametrize(
    ("word", "near"),
    [
        ("new_verbmem", "did you mean .*news_verbmem"),
        ("newz", "did you mean .*news"),
        ("NEWS_VERBMEM", "unlearnbench tasks"),
        ("zzz", "`unlearnbench tasks` lists them"),
        ("zzz*", "`unlearnbench tasks` lists them"),
        ("", "unknown task or group ''"),
    ],
)
def test_an_unknown_name_suggests_near_ones(word: str, near: str) -> None:
    with pytest.raises(TaskError, match=near) as caught:
        load_registry().resolve(["news", word])
    assert f"unknown task or group {word!r}" in str(caught.value)


def test_an_unknown_name_is_not_echoed_raw() -> None:
    with pytest.raises(TaskError) as caught:
        load_registry().resolve(["a\x1b[2J\nb"])
    assert str(caught.value).isprintable()


def test_nothing_asked_for() -> None:
    with pytest.raises(TaskError, match="no task was asked for"):
        load_registry().resolve([])


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("a", ["a"]),
        ("a,b", ["a", "b"]),
        (" a , b ,", ["a", "b"]),
        (",", []),
        (["a", " b "], ["a", "b"]),
        (("a,b",), ["a,b"]),
    ],
)
def test_split_names(text: str | list[str], names: list[str]) -> None:
    assert split_names(text) == names


def test_tasks_of_ones_own_come_on_top(toy: Toy) -> None:
    registry = load_registry([toy.tasks])
    assert set(registry.tasks) == {*BUILTIN, "toy_verbmem", "toy_knowmem_f", "toy_privleak"}
    assert list(registry.tasks) == sorted(registry.tasks)
    assert registry.groups["toy"] == ("toy_knowmem_f", "toy_privleak", "toy_verbmem")
    assert load_registry([str(toy.tasks)]) == registry


def test_what_looks_like_lm_evals_is_read_with_the_same_care(tmp_path: Path) -> None:
    (tmp_path / "large.yaml").write_text("task: x\ngroup: y\n" + "# \n" * 10**5)
    with pytest.raises(TaskError, match="larger than 256 KiB; refused"):
        load_registry([tmp_path]).resolve(["large"])
    (tmp_path / "large.yaml").unlink()
    (tmp_path / "endless.yaml").symlink_to("/dev/zero")
    with pytest.raises(TaskError, match="no regular file"):
        load_registry([tmp_path]).resolve(["endless"])


def test_yml_counts_and_other_files_do_not(tmp_path: Path) -> None:
    write(tmp_path, named("a"), "a.yml")
    write(tmp_path, "not YAML: [", "notes.txt")
    write(tmp_path / "below", named("b"), "b.yaml")
    registry = load_registry([tmp_path])
    assert registry.files["a"] == tmp_path / "a.yml"
    assert list(registry.tasks) == ["a", *BUILTIN]
    assert "b" not in registry.tasks


@pytest.mark.parametrize("second", ["two/a.yaml", "one/a.yml"])
def test_one_name_in_two_files(tmp_path: Path, second: str) -> None:
    first = write(tmp_path / "one", named("a"), "a.yaml")
    other = tmp_path / second
    write(other.parent, named("a"), other.name)
    with pytest.raises(TaskError, match="task 'a' is already in") as caught:
        load_registry(sorted({first.parent, other.parent}))
    assert str(caught.value).startswith(f"{other}:2: ")
    assert str(first) in str(caught.value)


def test_a_builtin_name_cannot_be_taken(tmp_path: Path) -> None:
    path = write(tmp_path, named("news_verbmem"), "news_verbmem.yaml")
    with pytest.raises(TaskError, match="already in .*news_verbmem.yaml") as caught:
        load_registry([tmp_path])
    assert str(caught.value).startswith(f"{path}:2: ")


@pytest.mark.parametrize(
    ("name", "tags"),
    [("news", ()), ("a", ("a",)), ("a", ("b", "news_verbmem"))],
)
def test_a_name_for_both_a_task_and_a_group(
    tmp_path: Path, name: str, tags: tuple[str, ...]
) -> None:
    write(tmp_path, named(name, *tags), f"{name}.yaml")
    both = tags[-1] if tags else name
    with pytest.raises(TaskError, match=f"{both!r} is both a task and a group") as caught:
        load_registry([tmp_path])
    path = load_registry().files.get(both, tmp_path / f"{both}.yaml")
    line = line_of(path.read_text(encoding="utf-8"), f"task: {both}")
    assert str(caught.value).startswith(f"{path}:{line}: ")


def test_a_folder_that_is_not_there_or_has_no_task(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="no task folder .*nowhere"):
        load_registry([tmp_path / "nowhere"])
    file = write(tmp_path / "some", named("a"), "a.yaml")
    with pytest.raises(TaskError, match="no task folder .*a.yaml"):
        load_registry([file])
    (tmp_path / "empty").mkdir()
    with pytest.raises(TaskError, match=r"no \*.yaml in task folder .*empty"):
        load_registry([tmp_path / "empty"])


def test_one_wrong_file_fails_the_registry(tmp_path: Path) -> None:
    write(tmp_path, named("a"), "a.yaml")
    bad = write(tmp_path, edit(named("b"), "want: zero", "wants: zero"), "b.yaml")
    with pytest.raises(TaskError, match="b.yaml:"):
        _ = load_registry([tmp_path]).tasks
    bad.unlink()
    assert "a" in load_registry([tmp_path]).tasks


WRONG = [
    edit(LIKELIHOOD, "want: zero", "wants: zero"),
    "not YAML: [",
    LIKELIHOOD.replace("task: toy", "task: b\ntag: toys"),
]


@pytest.mark.parametrize("text", WRONG)
def test_a_wrong_file_stops_only_those_who_ask_for_it(tmp_path: Path, text: str) -> None:
    write(tmp_path, named("a"), "a.yaml")
    write(tmp_path, text, "b.yaml")
    registry = load_registry([tmp_path])
    assert len(registry.resolve(["a", "news_*"])) == 9
    for word in ("b", "b*", "toys"):  # toys: it may be the group of what cannot be read
        with pytest.raises(TaskError, match="b.yaml:"):
            registry.resolve(["a", word])


@pytest.mark.parametrize("text", [named("b", "toys").replace("zero", "zeros"), *WRONG[1:]])
def test_a_wrong_file_that_is_or_may_be_of_a_group_stops_the_group(
    tmp_path: Path, text: str
) -> None:
    write(tmp_path, named("a", "toys"), "a.yaml")
    write(tmp_path, text, "b.yaml")
    with pytest.raises(TaskError, match="b.yaml:"):
        load_registry([tmp_path]).resolve(["toys"])


# Whatever a file holds, it is a task or a TaskError with one printable line.

PIECES = [
    *("[", "]", "{", "}", ":", "- ", "? ", "&a ", "*a", "<<: ", "|\n", ">\n", "'", '"', "#", "%"),
    *("\t", "\n", "\n\n", "  ", "---\n", "...\n", "~", "\ufeff", "\u2028", "\x00", "\x85", "="),
    *(
        "!!int ",
        "!!bool ",
        "!!float ",
        "!!set ",
        "!!binary ",
        "!!timestamp ",
        "!!python/none ",
        "!",
    ),
    *(
        ".nan",
        "-.inf",
        "1e999",
        "0x",
        "1:60",
        "2020-99-99",
        "1" * 4400,
        "null",
        "yes",
        "task",
        "...",
    ),
    *('"\\ud800"', '"\\UFFFFFFFF"', '"\\e[2J"', "until", "splits", "generate_until", "-1", "0"),
]
edits = st.lists(
    st.tuples(
        st.integers(0, len(GENERATION)),
        st.integers(0, 12),
        st.sampled_from(PIECES) | st.text(string.printable, max_size=4) | st.text(max_size=3),
    ),
    min_size=1,
    max_size=4,
)
fuzz = settings(
    max_examples=200,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def check_task_or_error(path: Path) -> None:
    try:
        spec = read_task(path)
    except TaskError as error:
        message = str(error)
        assert message.startswith(str(path))
        assert message.isprintable()
    else:
        assert spec.task == "toy"
        assert all(split in spec.splits for split in spec.used_splits)


@fuzz
@given(data=st.binary(max_size=200))
def test_arbitrary_bytes(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "toy.yaml"
    path.write_bytes(data)
    check_task_or_error(path)


@fuzz
@given(text=st.sampled_from([GENERATION, LIKELIHOOD]), changes=edits)
def test_mutated_tasks(tmp_path: Path, text: str, changes: list[tuple[int, int, str]]) -> None:
    for start, length, new in changes:
        text = text[:start] + new + text[start + length :]
    path = tmp_path / "toy.yaml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    check_task_or_error(path)


@pytest.mark.parametrize("piece", PIECES)
def test_every_piece_as_a_value(tmp_path: Path, piece: str) -> None:
    for old in ("low", "A toy.", '"one"', "0.5", "1.5", "[toys]", "{rows: 3}"):
        text = edit(GENERATION, old, piece)
        path = tmp_path / "toy.yaml"
        path.write_bytes(text.encode("utf-8", "surrogatepass"))
        check_task_or_error(path)
