from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.test_results import SHA, make_result, make_task
from unlearnbench.errors import ResultError
from unlearnbench.results import (
    CalibrationData,
    Checkpoint,
    Condition,
    ConditionOptions,
    GenerationRecord,
    LikelihoodRecord,
    Proof,
    RunResult,
    Settings,
    TokenizerSource,
)
from unlearnbench.runs.folder import RunFolder, model_folder_name, read_run, require_writable

RECORD = GenerationRecord(
    task="t", id="a/0", prompt="p", output="o", target="t", n_tokens=1, score=1.0, scores={}
)
CHECKPOINT = make_result().checkpoint
SETTINGS = make_result().settings
CONDITION = make_result().condition


def named(path: str, weights: str = SHA) -> str:
    checkpoint = Checkpoint(
        path=path, format="scripted", weights_sha256=weights, tokenizer_sha256=SHA
    )
    return model_folder_name(checkpoint)


@given(path=st.text(st.characters(), max_size=300))
@example(path="..")
@example(path="../..")
@example(path="a/../..")
@example(path="/")
@example(path="")
@example(path="models/x\n")
@example(path="models/\u202e名前")
@example(path="C:\\models\\x")
@example(path="x" * 5000)
@example(path="models/.hidden")
@example(path="models/-rf")
@example(path="x/\x00y")
@example(path="x/\ud800")
@settings(deadline=None)
def test_a_model_folder_is_one_plain_name_below_the_output(path: str) -> None:
    name = named(path)
    assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*-01234567", name)
    assert len(name) <= 100
    assert os.path.normpath(f"/out/{name}") == f"/out/{name}"


@pytest.mark.parametrize(
    ("path", "want"),
    [
        ("models/unlearned", "unlearned"),
        ("models/unlearned/", "unlearned"),
        ("models/unlearned///", "unlearned"),
        ("muse-bench/MUSE-news_target", "MUSE-news_target"),
        ("/a/model.Q4_1.gguf", "model.Q4_1.gguf"),
        ("my model (v2)", "my_model_v2"),
        ("..", "model"),
        ("/", "model"),
        ("名前", "model"),
    ],
)
def test_a_model_folder_is_named_after_the_checkpoint(path: str, want: str) -> None:
    assert named(path) == f"{want}-01234567"


def test_other_weights_have_another_folder() -> None:
    assert named("m", "0" * 64) != named("m", "1" * 64)


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "model" / "none")


def files(folder: RunFolder) -> set[str]:
    return {str(p.relative_to(folder.path)) for p in folder.path.rglob("*") if p.is_file()}


def test_a_new_folder_has_no_result(folder: RunFolder) -> None:
    assert folder.read() is None
    with pytest.raises(ResultError, match=re.escape(str(folder.run_file))):
        read_run(folder.path)


def test_what_was_written_is_read(folder: RunFolder) -> None:
    folder.write_run(make_result())
    assert folder.read() == make_result()
    assert folder.run_file.read_bytes().endswith(b"}\n")
    sha256 = folder.write_records("t", [RECORD])
    assert sha256 == hashlib.sha256(folder.samples_file("t").read_bytes()).hexdigest()
    assert files(folder) == {"run.json", "samples/t.jsonl"}


def test_a_damaged_result_is_not_taken_for_a_new_folder(folder: RunFolder) -> None:
    folder.path.mkdir(parents=True)
    folder.run_file.write_text("", encoding="utf-8")
    with pytest.raises(ResultError, match="no valid JSON"):
        folder.read()


def fail(*arguments: object, **options: object) -> None:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize(
    "what", ["os.fsync", "pathlib.Path.chmod", "pathlib.Path.replace", "os.umask"]
)
def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    folder.write_run(make_result())
    sha256 = folder.write_records("t", [RECORD])
    other = make_result({"toy_verbmem": make_task(value=1.0)})
    with monkeypatch.context() as patch:
        patch.setattr(what, fail)
        with pytest.raises(ResultError, match=r"run\.json cannot be written \(No space left"):
            folder.write_run(other)
        with pytest.raises(ResultError, match=r"t\.jsonl cannot be written \(No space left"):
            folder.write_records("t", [])
    assert folder.read() == make_result()
    assert folder.read_records("t", sha256) == [RECORD]
    assert files(folder) == {"run.json", "samples/t.jsonl"}
    folder.write_run(other)
    assert folder.read() == other


def test_an_interrupted_write_leaves_the_old_file(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.write_run(make_result())

    def interrupt(descriptor: int) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", interrupt)
        with pytest.raises(KeyboardInterrupt):
            folder.write_run(make_result({}))
    assert folder.read() == make_result()


def test_the_old_file_is_whole_until_the_new_one_is(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.write_run(make_result())
    old, seen = folder.run_file.read_bytes(), []
    replace = Path.replace

    def look(self: Path, target: Path) -> Path:
        seen.append((folder.run_file.read_bytes(), self.read_bytes()))
        return replace(self, target)

    monkeypatch.setattr("pathlib.Path.replace", look)
    folder.write_run(make_result({"toy_verbmem": make_task(value=1.0)}))
    ((before, new),) = seen
    assert before == old
    assert new == folder.run_file.read_bytes() != old


@pytest.fixture
def umask() -> Iterator[None]:
    mask = os.umask(0o022)
    yield
    os.umask(mask)


@pytest.mark.usefixtures("umask")
@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600)])
def test_files_are_as_readable_as_the_umask_allows(folder: RunFolder, mask: int, mode: int) -> None:
    os.umask(mask)
    folder.write_run(make_result())
    folder.write_records("t", [RECORD])
    for path in (folder.run_file, folder.samples_file("t")):
        assert path.stat().st_mode & 0o777 == mode
    assert os.umask(mask) == mask  # and it was put back


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content.replace(b"1.0", b"0.0"),
        lambda content: content[:-1],
        lambda content: content + b"\n",
        lambda content: content * 2,
        lambda content: b"",
    ],
)
def test_records_that_changed_are_refused(folder: RunFolder, change: Any) -> None:
    sha256 = folder.write_records("t", [RECORD])
    path = folder.samples_file("t")
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(ResultError, match="is not the file that run.json names") as raised:
        folder.read_records("t", sha256)
    assert str(path) in str(raised.value)


def test_missing_records_are_refused(folder: RunFolder) -> None:
    with pytest.raises(ResultError, match=r"samples/t\.jsonl cannot be read"):
        folder.read_records("t", SHA)


@pytest.mark.parametrize(
    "line", [b"{}", b"{", b"null", b'{"score": NaN}', b"\xff", b'{"task": "t", "id": "x"}']
)
def test_a_malformed_record_is_refused_with_its_line(folder: RunFolder, line: bytes) -> None:
    folder.write_records("t", [RECORD])
    path = folder.samples_file("t")
    content = path.read_bytes() + line + b"\n"
    path.write_bytes(content)
    with pytest.raises(ResultError, match=re.escape(str(path))) as raised:
        folder.read_records("t", hashlib.sha256(content).hexdigest())
    if line != b"\xff":
        assert f"{path}:2: no valid record" in str(raised.value)


def test_records_are_told_apart_by_their_fields(folder: RunFolder) -> None:
    other = LikelihoodRecord(task="t", id="a/0", split="a", n_tokens=4, scores={"PPL": 1.0})
    sha256 = folder.write_records("t", [RECORD, other])
    assert [type(r) for r in folder.read_records("t", sha256)] == [
        GenerationRecord,
        LikelihoodRecord,
    ]


def check_settings(
    folder: RunFolder, found: RunResult, asked: Settings, checkpoint: Checkpoint, how: Condition
) -> None:
    folder.require_same(found, checkpoint, asked, how)


def test_the_same_configuration_is_accepted(folder: RunFolder) -> None:
    check_settings(folder, make_result(), SETTINGS, CHECKPOINT, CONDITION)
    renamed = CHECKPOINT.model_copy(update={"path": "elsewhere", "revision": "abc"})
    check_settings(
        folder, make_result(), SETTINGS, renamed, CONDITION
    )  # hashes identify, names do not


OTHER = "f" * 64


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"protocol": "zhang2025"}, "protocol is muse there and zhang2025 here"),
        ({"dtype": "fp16"}, "dtype is bf16 there and fp16 here"),
        ({"device": "cuda"}, "device is cpu there and cuda here"),
        ({"seed": 3}, "seed is 0 there and 3 here"),
        ({"limit": 5}, "limit is absent there and 5 here"),
        ({"ppl_lower": True}, "ppl_lower is False there and True here"),
        ({"gen_kwargs": "{}"}, "gen_kwargs is absent there and {} here"),
        ({"chat_template_sha256": OTHER}, "chat_template_sha256 is absent there and ffff"),
        ({"backend": "vllm"}, "backend is absent there and vllm here"),
        ({"truncate_left": True}, "truncate_left is absent there and True here"),
        ({"date_string": "26 Jul 2024"}, "date_string is absent there and 26 Jul 2024 here"),
        ({"enable_thinking": False}, "enable_thinking is absent there and False here"),
        ({"think_end_token": "</think>"}, "think_end_token is absent there and </think> here"),
        ({"add_bos_token": True}, "add_bos_token is absent there and True here"),
        ({"gradnorm": True}, "gradnorm is absent there and True here"),
        ({"mask_pad_id": True}, "mask_pad_id is absent there and True here"),
        ({"max_length": 9}, "max_length is absent there and 9 here"),
        ({"held_back": "1-of-3"}, "held_back is absent there and 1-of-3 here"),
    ],
)
def test_each_setting_that_differs_is_named_with_both_values(
    folder: RunFolder, changes: dict[str, object], said: str
) -> None:
    asked = SETTINGS.model_copy(update=changes)
    with pytest.raises(ResultError, match=said) as raised:
        check_settings(folder, make_result(), asked, CHECKPOINT, CONDITION)
    assert str(folder.path) in str(raised.value)
    assert str(raised.value).count(" there and ") == 1
    assert {*changes} <= set(Settings.model_fields)


def test_every_setting_takes_part() -> None:
    # A field that is added to Settings is compared, and needs a case above.
    assert set(Settings.model_fields) == {
        "protocol",
        "dtype",
        "device",
        "seed",
        "limit",
        "ppl_lower",
        "gen_kwargs",
        "chat_template_sha256",
        "backend",
        "truncate_left",
        "mask_pad_id",
        "gradnorm",
        "date_string",
        "enable_thinking",
        "think_end_token",
        "add_bos_token",
        "max_length",
        "held_back",
    }


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"weights_sha256": OTHER}, "weights is 0123456789ab there and ffffffffffff here"),
        ({"tokenizer_sha256": OTHER}, "tokenizer is 0123456789ab there and ffffffffffff here"),
        ({"config_sha256": OTHER}, "config is 0123456789ab there and ffffffffffff here"),
        ({"config_sha256": None}, "config is 0123456789ab there and none here"),
        ({"adapter": "merged"}, "adapter is none there and merged here"),
    ],
)
def test_each_part_of_the_checkpoint_that_differs_is_named(
    folder: RunFolder, changes: dict[str, object], said: str
) -> None:
    other = CHECKPOINT.model_copy(update=changes)
    with pytest.raises(ResultError, match=said):
        check_settings(folder, make_result(), SETTINGS, other, CONDITION)


CALIBRATION = CalibrationData(name="generic", samples=96, max_tokens=512, seed=0, sha256=SHA)
GPTQ = Condition(
    name="gptq-int4-g128",
    kind="quantized",
    options=ConditionOptions(
        bits=4,
        scheme="GPTQ",
        backend="gptqmodel",
        kernel="native",
        calibration=CALIBRATION,
        group_size=128,  # type: ignore[call-arg]  # an option of its kind
    ),
)


def with_options(**changes: object) -> Condition:
    options = ConditionOptions.model_validate(
        {k: v for k, v in {**dict(GPTQ.options), **changes}.items() if v is not None}
    )
    return GPTQ.model_copy(update={"options": options})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"name": "gptq-int4-g64"}, "condition is gptq-int4-g128 there and gptq-int4-g64 here"),
        ({"scheme": "GPTQ, other"}, "scheme is GPTQ there and GPTQ, other here"),
        ({"group_size": 64}, "option group_size is 128 there and 64 here"),
        ({"kernel": "dequantized"}, "quant-kernel is native there and dequantized here"),
        ({"kernel": None}, "quant-kernel is native there and absent here"),
    ],
)
def test_each_part_of_the_condition_that_differs_is_named(
    folder: RunFolder, changes: dict[str, object], said: str
) -> None:
    found = make_result().model_copy(update={"condition": GPTQ})
    check_settings(folder, found, SETTINGS, CHECKPOINT, GPTQ)
    named = "name" in changes
    other = GPTQ.model_copy(update=changes) if named else with_options(**changes)
    with pytest.raises(ResultError, match=said) as raised:
        check_settings(folder, found, SETTINGS, CHECKPOINT, other)
    assert str(raised.value).count(" there and ") == 1


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"name": "forget"}, "calibration name is generic there and forget here"),
        ({"samples": 8}, "calibration samples is 96 there and 8 here"),
        ({"max_tokens": 64}, "calibration max_tokens is 512 there and 64 here"),
        ({"seed": 1}, "calibration seed is 0 there and 1 here"),
        ({"sha256": OTHER}, "calibration sha256 is 0123456789ab there and ffffffffffff here"),
    ],
)
def test_each_part_of_the_calibration_that_differs_is_named(
    folder: RunFolder, changes: dict[str, object], said: str
) -> None:
    found = make_result().model_copy(update={"condition": GPTQ})
    other = with_options(calibration=CALIBRATION.model_copy(update=changes))
    with pytest.raises(ResultError, match=said) as raised:
        check_settings(folder, found, SETTINGS, CHECKPOINT, other)
    assert str(raised.value).count(" there and ") == 1
    assert {*changes} <= set(CalibrationData.model_fields)


def test_what_was_seen_in_the_model_is_no_setting(folder: RunFolder) -> None:
    # The proof stands in the result, and is not known before the model is loaded.
    proof = Proof.model_validate(
        {
            "module_types": {"Linear": 1},
            "covered_modules": {},
            "uncovered": {},
            "weights_by_dtype": {},
            "covered_weights": 0,
            "total_weights": 1,
            "weight_bytes": 4,
            "compared_modules": 0,
            "on_grid": False,
        }
    )
    proven = make_result().model_copy(
        update={"condition": CONDITION.model_copy(update={"proof": proof})}
    )
    check_settings(folder, proven, SETTINGS, CHECKPOINT, CONDITION)


def test_all_differences_are_named_at_once(folder: RunFolder) -> None:
    asked = SETTINGS.model_copy(update={"seed": 1, "limit": 2})
    with pytest.raises(ResultError, match="seed is 0 there and 1 here; limit is absent"):
        check_settings(folder, make_result(), asked, CHECKPOINT, CONDITION)


def test_require_writable_makes_the_folder_and_leaves_nothing_in_it(tmp_path: Path) -> None:
    require_writable(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()
    assert not list((tmp_path / "a" / "b").iterdir())


def test_a_file_in_the_way_is_not_writable(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ResultError, match="is not writable .*use another --output"):
            require_writable(path)


def test_a_folder_that_refuses_files_is_not_writable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.TemporaryFile", fail)
    with pytest.raises(ResultError, match="No space left on device"):
        require_writable(tmp_path)


def test_tokenizers_that_do_the_same_share_a_folder(folder: RunFolder) -> None:
    """From another place, saved by another release; one that does otherwise is another run."""
    known = CHECKPOINT.model_copy(update={"tokenizer_probe_sha256": SHA})
    found = make_result().model_copy(update={"checkpoint": known})
    source = TokenizerSource(path="elsewhere")
    saved = known.model_copy(update={"tokenizer_sha256": OTHER, "tokenizer": source})
    check_settings(folder, found, SETTINGS, saved, CONDITION)
    does = known.model_copy(update={"tokenizer_probe_sha256": OTHER})
    with pytest.raises(ResultError, match="tokenizer is 0123456789ab there and ffffffffffff here"):
        check_settings(folder, found, SETTINGS, does, CONDITION)
    check_settings(folder, make_result(), SETTINGS, known, CONDITION)  # one of an older release
    with pytest.raises(ResultError, match="tokenizer is 0123456789ab there and ffffffffffff here"):
        check_settings(folder, make_result(), SETTINGS, saved, CONDITION)
