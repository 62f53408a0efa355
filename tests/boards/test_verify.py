"""A forged entry is caught, one test a forgery. Those of the ``board`` fixture are of format 2,
whose records hold all figures; of format 3 are what ``add`` writes here, and test_columns.py.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from tests.boards.conftest import BOARD, ROWS, MakeBoard
from tests.cli.test_main import call
from tests.conftest import write_jsonl
from tests.tasks.kinds.test_answers import LOGPROBS
from tests.tasks.kinds.test_answers import ROWS as ANSWER_ROWS
from tests.tasks.kinds.test_answers import write as write_answers
from tests.tasks.kinds.test_choice import FILE as CHOICE_FILE
from tests.tasks.kinds.test_choice import ROW as CHOICE_ROW
from tests.toy_runs import Bench, Skill
from unlearnbench import ScriptedModel, evaluate
from unlearnbench.boards import read_board, verify
from unlearnbench.boards.columns import shorten, unpacked
from unlearnbench.boards.entry import Board, BoardEntry, entry_json, is_as_written, read_entry
from unlearnbench.boards.verify import verify_board
from unlearnbench.boards.verify_anchors import Verdict
from unlearnbench.boards.verify_samples import asked_rows
from unlearnbench.recovery.controls import leaves
from unlearnbench.results import Settings
from unlearnbench.tasks.held import hold_back
from unlearnbench.tasks.registry import Registry, load_registry, read_task
from unlearnbench.tasks.rows import DataOptions, load_samples

SMALL = ("target", "retrained", "ga_gdr", "sure")
Edit = Callable[[dict[str, Any]], object]


@pytest.fixture(scope="module")
def small(make_board: MakeBoard) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("unlearnbench.boards.entry.compact", lambda entry: entry)
        return make_board(names=SMALL)


@pytest.fixture
def board(small: Path, tmp_path: Path) -> Path:
    return shutil.copytree(small, tmp_path / "made")


def verdicts(board: Path) -> dict[str, list[str]]:
    """What is wrong with each entry."""
    found = verify_board(read_board(board))[1]
    return {verdict.name: [*verdict.missing, *verdict.problems] for verdict in found}


def problems(board: Path, name: str = "ga_gdr") -> list[str]:
    """What is wrong with one entry. The others, which are not looked at by themselves, do not add
    to it.
    """

    def by_itself(board: Board, registry: Registry, entry: BoardEntry, verdict: Verdict) -> None:
        if entry.name == name:
            verify_entry(board, registry, entry, verdict)

    with pytest.MonkeyPatch.context() as patch:
        verify_entry = verify._verify_entry
        patch.setattr(verify, "_verify_entry", by_itself)
        return verdicts(board)[name]


def read(path: Path) -> dict[str, Any]:
    """An entry's content, with records."""
    content: dict[str, Any] = json.loads(path.read_text(encoding="ascii"))
    if content["format_version"] == 3:
        content = json.loads(json.dumps(unpacked(content)))  # no part is shared by two runs
    return content


def write(board: Path, edit: Edit, name: str = "ga_gdr") -> None:
    """Change an entry's content, and write it as a careful forger would."""
    path = board / "entries" / f"{name}.json"
    content = read(path)
    edit(content)
    try:
        text = entry_json(BoardEntry.model_validate(content))
    except ValidationError:
        text = json.dumps(content, indent=1) + "\n"
    path.write_text(text, encoding="ascii")


def forge(board: Path, edit: Edit, name: str = "ga_gdr") -> list[str]:
    """Change an entry and verify it."""
    write(board, edit, name)
    return problems(board, name)


def run_at(content: dict[str, Any], precision: str) -> dict[str, Any]:
    found: dict[str, Any] = next(
        p for p in content["runs"] if p["run"]["condition"]["name"] == precision
    )
    return found


def rehash(part: dict[str, Any], task: str) -> None:
    lines = "".join(json.dumps(record) + "\n" for record in part["samples"][task])
    part["run"]["tasks"][task]["records_sha256"] = sha256(lines.encode()).hexdigest()


def test_another_quantization_under_the_same_name(board: Path) -> None:
    def edit(content: dict[str, Any]) -> None:
        run_at(content, "rtn-int4")["run"]["condition"]["options"]["group_size"] = 64

    assert any("rtn-int4: option group_size is" in line for line in forge(board, edit))


def test_an_honest_board_verifies(board: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("leaderboard", "verify", str(board)) == 0
    assert capsys.readouterr().out.count("verified") == 4


def test_a_changed_score_of_a_task(board: Path) -> None:
    def edit(content: dict[str, Any]) -> None:
        run_at(content, "rtn-int4")["run"]["tasks"]["made_knowmem_f"]["value"] = 12.5

    (found,) = forge(board, edit)
    assert "value is 12.5, its samples give" in found


def test_a_changed_score_of_a_sample_with_everything_above_it_made_to_fit(board: Path) -> None:
    """The mean, its error and the hash are recomputed by the forger; the texts give it away."""

    def edit(content: dict[str, Any]) -> None:
        part = run_at(content, "rtn-int4")
        record = part["samples"]["made_knowmem_f"][0]
        record["score"] = 0.5 if record["score"] != 0.5 else 0.25

    found = forge(board, edit)
    assert any("rougeL is" in line and "its texts give" in line for line in found)


def test_a_run_that_was_decided_on_a_part_of_its_samples(board: Path) -> None:
    def edit(content: dict[str, Any]) -> None:
        for part in content["runs"]:
            part["run"]["tasks"]["made_knowmem_f"]["drawn"] = {"seed": 0, "of": 900}

    assert any("of 900 samples; evaluate it whole" in line for line in forge(board, edit))
    assert any("of 900 samples" in line for line in forge(board, edit, "retrained"))


def test_swapped_samples(board: Path) -> None:
    def edit(content: dict[str, Any]) -> None:
        part = run_at(content, "rtn-int4")
        records = part["samples"]["made_knowmem_f"]
        records[0], records[1] = records[1], records[0]
        rehash(part, "made_knowmem_f")

    assert any("in order" in line for line in forge(board, edit))


def test_samples_of_another_precision(board: Path) -> None:
    """The full-precision answers handed in as the quantized ones: the hash differs."""

    def edit(content: dict[str, Any]) -> None:
        samples = run_at(content, "none")["samples"]["made_knowmem_f"]
        run_at(content, "rtn-int4")["samples"]["made_knowmem_f"] = samples

    found = forge(board, edit)
    assert any("records_sha256" in line for line in found)
    assert any("value is" in line for line in found)


def test_easier_references(board: Path) -> None:
    """Answers and references replaced together: they are not the retrained model's."""

    def edit(content: dict[str, Any]) -> None:
        part = run_at(content, "none")
        for record in part["samples"]["made_knowmem_f"]:
            record["target"] = record["target"].replace("w", "v")
            record["output"] = record["output"].replace("w", "v")
        rehash(part, "made_knowmem_f")

    assert any("the target of forget_qa/0 is" in line for line in forge(board, edit))


def test_a_missing_precision(board: Path) -> None:
    def edit(content: dict[str, Any]) -> None:
        content["runs"].remove(run_at(content, "rtn-int4"))

    assert forge(board, edit) == ["no run at rtn-int4, which this board requires"]


def test_one_precision_twice(board: Path) -> None:
    def edit(content: dict[str, Any]) -> None:
        content["runs"].append(run_at(content, "none"))

    assert any("two runs of one precision" in line for line in forge(board, edit))


def test_another_data_hash(board: Path) -> None:
    def edit(content: dict[str, Any]) -> None:
        for part in content["runs"]:
            part["run"]["tasks"]["made_knowmem_f"]["data"][0]["sha256"] = "0" * 64

    assert any("data of split" in line for line in forge(board, edit))


def test_a_wrong_version(board: Path) -> None:
    def edit(content: dict[str, Any]) -> None:
        for part in content["runs"]:
            part["run"]["tasks"]["made_knowmem_f"]["version"] = 0.5

    assert any("version 0.5, the board has 1" in line for line in forge(board, edit))


def test_another_definition_of_the_task(board: Path) -> None:
    def edit(content: dict[str, Any]) -> None:
        for part in content["runs"]:
            part["run"]["tasks"]["made_knowmem_f"]["task_sha256"] = "0" * 64

    assert any("definition is not ours" in line for line in forge(board, edit))


def test_extra_digits(board: Path) -> None:
    """A number that reads the same and is not as we write it."""
    path = board / "entries" / "ga_gdr.json"
    text = path.read_text(encoding="ascii")
    assert '"score": 1.0' in text
    path.write_text(text.replace('"score": 1.0', '"score": 1.00000000000000000001', 1))
    assert any("digit by digit" in line for line in problems(board))


def test_a_key_twice(board: Path) -> None:
    path = board / "entries" / "ga_gdr.json"
    text = path.read_text(encoding="ascii")
    path.write_text(text.replace('"board":', '"board": "x",\n "board":', 1))
    assert any("digit by digit" in line for line in problems(board))


@pytest.mark.parametrize("value", ["NaN", "Infinity", "101.0", '"12"', "null", "1e999"])
def test_numbers_out_of_range(board: Path, value: str) -> None:
    path = board / "entries" / "ga_gdr.json"
    text = path.read_text(encoding="ascii")
    path.write_text(text.replace('"score": 1.0', f'"score": {value}', 1))
    (found,) = problems(board)
    assert "ga_gdr.json" in found


def test_fewer_samples(board: Path) -> None:
    def edit(content: dict[str, Any]) -> None:
        for part in content["runs"]:
            part["samples"]["made_knowmem_f"] = part["samples"]["made_knowmem_f"][:22]
            part["run"]["tasks"]["made_knowmem_f"]["n"] = 22
            rehash(part, "made_knowmem_f")

    assert any("22 samples of forget_qa" in line for line in forge(board, edit))


def test_a_changed_auc_and_attack(board: Path) -> None:
    def edit(content: dict[str, Any]) -> None:
        result = run_at(content, "rtn-int4")["run"]["tasks"]["made_privleak"]
        result["auc"] = 0.5
        result["attacks"]["Min-40%"]["auc"] = 0.5

    found = forge(board, edit)
    assert any("auc is 0.5" in line for line in found)


def test_another_checkpoint_at_one_precision(board: Path) -> None:
    def edit(content: dict[str, Any]) -> None:
        run_at(content, "rtn-int4")["run"]["checkpoint"]["weights_sha256"] = "0" * 64

    assert any("several checkpoints" in line for line in forge(board, edit))


def test_another_protocol_and_board(board: Path) -> None:
    def edit(content: dict[str, Any]) -> None:
        content["board"] = "elsewhere"
        run_at(content, "none")["run"]["protocol"] = "zhang2025"

    found = forge(board, edit)
    assert any("entry of elsewhere" in line for line in found)
    assert any("protocol is zhang2025" in line for line in found)


def test_another_name_than_the_files(board: Path) -> None:
    (board / "entries" / "ga_gdr.json").rename(board / "entries" / "better.json")
    assert any("the two names must be one" in line for line in problems(board, "better"))


def test_a_second_target(board: Path) -> None:
    found = forge(board, lambda content: content.update(role="target"))
    assert found == [] or "already" in found[0]
    both = [*found, *problems(board, "target")]
    assert any("the board has a target already" in line for line in both)


def test_too_few_samples_for_the_board(board: Path) -> None:
    text = BOARD.replace("min_samples: 20", "min_samples: 25")
    (board / "board.yaml").write_text(text, encoding="utf-8")
    assert any("at least 25 needed" in line for line in problems(board))


def test_the_command_says_what_is_wrong(board: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(board, lambda content: content["runs"].pop())
    assert call("leaderboard", "verify", str(board)) == 1
    out = capsys.readouterr().out
    assert "made/ga_gdr: does not verify" in out
    assert "wrong: no run at" in out
    write(board, lambda content: content.update(board="other"))
    assert call("leaderboard", "build", str(board)) == 2
    assert "it is an entry of other" in capsys.readouterr().err


def test_without_texts_no_text_is_published_and_the_rest_is_checked(
    make_board: MakeBoard, capsys: pytest.CaptureFixture[str]
) -> None:
    board = make_board(BOARD.replace("publish_texts: true\n", ""), "--no-texts", names=SMALL)
    assert call("leaderboard", "verify", str(board)) == 0
    assert "could not be recomputed" in capsys.readouterr().out
    text = (board / "entries" / "ga_gdr.json").read_text(encoding="ascii")
    assert "w0x0" not in text
    assert "Question" not in text
    assert text.count('"output": "sha256:') == 3, "of none two, of int4 what differs there"
    assert call("leaderboard", "build", str(board)) == 0
    shown = (board / "index.html").read_text(encoding="utf-8")
    assert '"texts":[],"samples":[[],[],[],[]]' in shown
    assert "w0x0" not in shown

    def edit(content: dict[str, Any]) -> None:
        run_at(content, "rtn-int4")["run"]["tasks"]["made_knowmem_f"]["value"] = 12.5

    assert any("value is 12.5" in line for line in forge(board, edit))

    def swap(content: dict[str, Any]) -> None:
        records = run_at(content, "none")["samples"]["made_knowmem_f"]
        records[0]["target"], records[1]["target"] = records[1]["target"], records[0]["target"]

    assert any("the target of forget_qa/0 is" in line for line in forge(board, swap, "sure"))


def test_texts_are_refused_where_the_board_may_not(
    make_board: MakeBoard, capsys: pytest.CaptureFixture[str], bench: Any
) -> None:
    board = make_board(BOARD.replace("publish_texts: true\n", ""), names=())
    (runs,) = bench.out.glob("sure-*")
    ends = ["--board", str(board), "--name", "sure"]
    assert call("leaderboard", "add", str(runs), *ends) == 2
    assert "publishes no texts" in capsys.readouterr().err


def test_weights_of_the_retrained_model_or_the_target(board: Path) -> None:
    """Their excess over themselves is 0, whatever the samples say."""
    for role in ("retrained", "target"):
        path = board / "entries" / f"{role}.json"
        sha256 = json.loads(path.read_text())["runs"][0]["run"]["checkpoint"]["weights_sha256"]

        def edit(content: dict[str, Any], sha256: str = sha256) -> None:
            for part in content["runs"]:
                part["run"]["checkpoint"]["weights_sha256"] = sha256

        found = forge(board, edit)
        assert any(f"its weights are the {role}'s" in line for line in found)


PROOF = {
    "module_types": {"Linear8": 4},
    "covered_modules": {"layers.*.q": 2},
    "uncovered": {},
    "weights_by_dtype": {"uint8": 100},
    "covered_weights": 100,
    "total_weights": 200,
    "weight_bytes": 100,
    "compared_modules": 2,
    "changed_share": 0.9,
    "on_grid": False,
}


def loaded(content: dict[str, Any], **proof: Any) -> None:
    """As if its runs were of a checkpoint."""
    for part in content["runs"]:
        part["run"]["checkpoint"]["format"] = "safetensors"
        if part["run"]["condition"]["name"] != "none":
            bits = 8 if part["run"]["condition"]["name"] == "rtn-int8" else 4
            part["run"]["condition"]["options"]["bits"] = bits
            part["run"]["condition"]["proof"] = PROOF | proof
            for record in part["samples"]["made_privleak"]:
                record["scores"] = {k: v + 1e-3 * bits for k, v in record["scores"].items()}
            rehash(part, "made_privleak")


@pytest.fixture(scope="module")
def made_real(small: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The board as if its runs were of checkpoints. Not to be changed: copy it first."""
    board: Path = shutil.copytree(small, tmp_path_factory.mktemp("real") / "made")
    for name in SMALL:
        write(board, loaded, name)
    assert verdicts(board) == {name: [] for name in SMALL}
    return board


@pytest.fixture
def real(made_real: Path, tmp_path: Path) -> Path:
    return shutil.copytree(made_real, tmp_path / "made")


def of(lines: list[str], words: str) -> list[str]:
    return [line for line in lines if words in line]


def test_a_quantization_that_was_not_in_force(real: Path) -> None:
    assert not of(problems(real), "no proof")
    for proof in (
        {"covered_weights": 0, "covered_modules": {}},
        {"compared_modules": 0},
        {"changed_share": 0.0},
    ):
        found = forge(real, lambda content, p=proof: loaded(content, **p))  # type: ignore[misc]
        assert len(of(found, "no proof that the quantization was in force")) == 2
    others: list[dict[str, Any]] = [
        {"covered_weights": 50},
        {"covered_modules": {"layers.*.k": 2}},
    ]
    for other in others:
        found = forge(real, lambda content, p=other: loaded(content, **p))  # type: ignore[misc]
        assert len(of(found, "other modules or another share of the weights")) == 2
    grid = {"changed_share": 0.0, "on_grid": True}
    assert forge(real, lambda content: loaded(content, **grid)) == []
    far = forge(real, lambda content: loaded(content, **grid, max_relative_error=0.1))
    assert len(of(far, "no proof that the quantization was in force")) == 2


def test_a_pair_of_models_has_twice_the_targets_modules(real: Path) -> None:
    twice = {"covered_modules": {"layers.*.q": 4}, "covered_weights": 200}
    assert forge(real, lambda content: loaded(content, **twice, total_weights=400)) == []


def test_runs_of_a_script_among_checkpoints(real: Path) -> None:
    def edit(content: dict[str, Any]) -> None:
        for part in content["runs"]:
            part["run"]["checkpoint"]["format"] = "scripted"

    found = forge(real, edit)
    assert of(found, "it comes from a script, and the target from a checkpoint")


def test_full_precision_handed_in_as_quantized(real: Path) -> None:
    """Samples, results and hashes all fit; but rounding leaves no text's likelihood as it was."""
    whole = (real / "entries/ga_gdr.json").read_text()
    for source, words in (
        ("none", "rtn-int4: made_privleak: 48 of 48 texts have the figures of none"),
        ("rtn-int8", "rtn-int4: made_privleak: 48 of 48 texts have the figures of rtn-int8"),
    ):
        (real / "entries/ga_gdr.json").write_text(whole)

        def edit(content: dict[str, Any], source: str = source) -> None:
            other, int4 = run_at(content, source), run_at(content, "rtn-int4")
            int4["samples"], int4["run"]["tasks"] = other["samples"], other["run"]["tasks"]

        assert of(forge(real, edit), words)

    def retouched(content: dict[str, Any]) -> None:
        for record in run_at(content, "rtn-int4")["samples"]["made_privleak"][:9]:
            record["scores"]["PPL"] += 1e-12

    assert of(forge(real, retouched), "39 of 48 texts have the figures of rtn-int8")
    assert problems(real, "sure") == []


def test_no_number_of_samples_takes_memory_or_time(board: Path) -> None:
    def edit(content: dict[str, Any]) -> None:
        run_at(content, "none")["run"]["tasks"]["made_knowmem_f"]["n"] = 10**12

    assert of(forge(board, edit), "1000000000000 samples of forget_qa")

    def many(content: dict[str, Any]) -> None:
        part = run_at(content, "none")
        part["samples"]["made_privleak"] *= 2
        rehash(part, "made_privleak")

    found = forge(board, many, "sure")
    assert of(found, "the samples are not the first 24")
    assert not of(found, "samples give")  # nothing was computed from them

    def attacks(content: dict[str, Any]) -> None:
        part = run_at(content, "rtn-int4")
        for record in part["samples"]["made_privleak"]:
            record["scores"]["mine"] = 0.0
        rehash(part, "made_privleak")

    assert of(forge(board, attacks, "target"), "the samples' figures are not Min-40%")


def test_a_file_that_is_too_large_is_not_read(board: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unlearnbench.boards.entry._LARGEST", 2**20 // 64)
    (found,) = problems(board)
    assert "is larger than" in found


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda run: run["run"]["settings"].update(seed=-1), "seed"),
        (lambda run: run["samples"]["made_knowmem_f"][3]["scores"].clear(), "figures are not"),
        (
            lambda run: run["samples"]["made_knowmem_f"][3]["scores"].update(rouge1=1e308),
            "rouge1: Input should be less than or equal to 1",
        ),
        (lambda run: run["samples"]["made_knowmem_f"][3].update(target="..."), "forget_qa/3: "),
        (lambda run: run["samples"]["made_privleak"].__setitem__(0, {}), "made_privleak.0"),
    ],
)
def test_one_bad_entry_keeps_no_other_from_its_verdict(
    board: Path, capsys: pytest.CaptureFixture[str], edit: Edit, words: str
) -> None:
    found = forge(board, lambda content: edit(run_at(content, "rtn-int4")))
    assert of(found, words)
    assert call("leaderboard", "verify", str(board)) == 1
    out = capsys.readouterr().out
    assert "made/ga_gdr: does not verify" in out
    assert "made/sure: verified" in out


def test_privleak_needs_the_boards_reference(board: Path) -> None:
    def edit(content: dict[str, Any], **reference: Any) -> None:
        result = run_at(content, "none")["run"]["tasks"]["made_privleak"]
        result |= {"value": 0.0, "stderr": 0.0, "ci": [0.0, 0.0]}
        if reference:
            result["auc_reference"] = reference
        run_at(content, "none")["run"]["tasks"]["made_privleak"] = result

    assert of(forge(board, edit), "PrivLeak is 0.0 without a reference")
    sha256 = json.loads((board / "entries/retrained.json").read_text())["runs"][0]["run"][
        "checkpoint"
    ]["weights_sha256"]
    auc = json.loads((board / "entries/sure.json").read_text())["runs"][0]["run"]["tasks"][
        "made_privleak"
    ]["auc"]
    own = {"auc": auc, "kind": "run", "source": "mine", "weights_sha256": sha256}
    found = forge(board, lambda content: edit(content, **own), "sure")
    assert of(found, f"PrivLeak's reference is AUC {auc}, the board's retrained model has")
    other = own | {"weights_sha256": "0" * 64}
    found = forge(board, lambda content: edit(content, **other), "sure")
    assert of(found, "of other weights than the board's retrained model")


def test_privleak_is_recomputed_with_its_interval(
    bench: Bench, board: Path, tmp_path: Path
) -> None:
    """A run made with --reference, added as it is; then each of its figures changed."""
    (retrained,) = bench.out.glob("retrained-*")
    skill = Skill.of(0.1, 0.8, 0.4, n=ROWS)
    for precision in ("none", "rtn-int8", "rtn-int4"):
        at: dict[str, Any] = {"out": tmp_path, "reference": retrained / "none"}
        out = bench.run("again", precision, skill, **at).parent
    ends = ["--board", str(board), "--name", "again"]
    assert call("leaderboard", "add", str(out), *ends) == 0
    assert problems(board, "again") == []

    def notes() -> list[str]:
        (verdict,) = (v for v in verify_board(read_board(board))[1] if v.name == "again")
        return of(verdict.notes, "PrivLeak's own interval is as stated")

    def edit(content: dict[str, Any], **stated: Any) -> None:
        run_at(content, "none")["run"]["tasks"]["made_privleak"] |= stated

    assert notes() == []
    assert of(forge(board, lambda c: edit(c, value=1.0), "again"), "PrivLeak is 1.0, its AUC")
    assert call("leaderboard", "add", str(out), *ends) == 0
    wrong: dict[str, Any] = {"ci": [0.0, 0.5], "intervals": "bounded"}
    assert forge(board, lambda c: edit(c, **wrong), "again") == []
    assert len(notes()) == 1


def test_two_runs_of_the_retrained_model_with_one_auc(
    bench: Bench, board: Path, tmp_path: Path
) -> None:
    """The reference may be either."""
    skill, at = Skill.of(0.15, 0.9, 0.05, n=ROWS), "rtn-int8"
    made = bench.run("retrained", at, skill, out=tmp_path)
    (full,) = bench.out.glob("retrained-*")
    ends = ["--board", str(board), "--name", "retrained", "--role", "retrained"]
    assert call("leaderboard", "add", str(full / "none"), str(made), *ends) == 0
    for reference in (full / "none", made):
        out = tmp_path / f"by-{reference.name}"
        hides = Skill.of(0.1, 0.8, 0.4, n=ROWS)
        for precision in ("none", at, "rtn-int4"):
            runs = bench.run("again", precision, hides, out=out, reference=reference).parent
        assert call("leaderboard", "add", str(runs), "--board", str(board), "--name", "again") == 0
        assert problems(board, "again") == []
        assert problems(board, "retrained") == []


def test_a_stated_reference_is_the_tasks_own(board: Path) -> None:
    stated = {"auc": 0.4772, "kind": "stated", "source": "a paper"}

    def edit(content: dict[str, Any]) -> None:
        result = run_at(content, "none")["run"]["tasks"]["made_privleak"]
        result |= {"auc_reference": stated, "value": 100 * (result["auc"] / 0.4772 - 1)}

    assert of(forge(board, edit), "reference is AUC 0.4772, which the task does not state")


def test_no_text_is_too_long_to_compare(board: Path) -> None:
    def edit(content: dict[str, Any]) -> None:
        part = run_at(content, "none")
        part["samples"]["made_knowmem_f"][0] |= {"output": "a-" * 60_000, "target": "b-" * 60_000}
        rehash(part, "made_knowmem_f")

    assert of(forge(board, edit), "60000 words, which no run of this task has")


def test_a_quantized_retrained_model_is_no_reference(board: Path) -> None:
    def edit(content: dict[str, Any]) -> None:
        run_at(content, "none")["run"]["condition"]["options"]["bits"] = 4

    assert of(forge(board, edit, "retrained"), "is no run in full precision")
    assert of(problems(board), "the board has no retrained to hold it against")


def test_a_board_whose_tasks_are_not_known_or_reward_loss(
    board: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (board / "board.yaml").write_text(
        BOARD.replace("ranking: [made_knowmem_f]", "ranking: [made_knowmem_r]"), encoding="utf-8"
    )
    for command in ("verify", "build"):
        assert call("leaderboard", command, str(board)) == 2
        assert "ranking: made_knowmem_r is a retain task" in capsys.readouterr().err
    (board / "board.yaml").write_text(BOARD, encoding="utf-8")
    (board / "tasks/made_privleak.yaml").unlink()
    assert call("leaderboard", "verify", str(board)) == 2
    assert "no task made_privleak" in capsys.readouterr().err


def test_every_folder_that_is_given_has_a_board(
    board: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("leaderboard", "verify", str(board), str(tmp_path / "typo")) == 2
    assert "typo: no board.yaml there or below" in capsys.readouterr().err


def test_hashes_in_place_of_texts_show_wrong_scores(make_board: MakeBoard) -> None:
    board = make_board(BOARD.replace("publish_texts: true\n", ""), "--no-texts", names=SMALL)
    path = board / "entries/ga_gdr.json"
    whole = path.read_text()

    def edited(edit: Callable[[list[dict[str, Any]]], object]) -> list[str]:
        path.write_text(whole)
        return forge(
            board, lambda content: edit(run_at(content, "none")["samples"]["made_knowmem_r"])
        )

    def right(records: list[dict[str, Any]]) -> None:
        next(r for r in records if r["score"] == 1)["score"] = 0.0

    found = edited(right)
    assert of(found, "scored 0, and its output is the reference")
    assert of(found, "the same answer is scored otherwise elsewhere")
    assert of(edited(lambda rs: rs[0].update(output="a text")), "a text stands where its hash")
    nothing = shorten(f"sha256:{sha256(b'unlearnbench:made:').hexdigest()}")

    def empty(records: list[dict[str, Any]]) -> None:
        next(r for r in records if r["score"] == 1)["output"] = nothing

    assert of(edited(empty), "scored 1, and its output is empty")
    path.write_text(whole)
    assert problems(board) == []


CHOICE = CHOICE_FILE | {"metric": "accuracy_normalised", "want": "low"}
ANSWERED = """\
title: Answers
base_model: none at all
tasks: {toy_answers: 1.0, toy_choice: 1.0}
precisions: [none]
utility_floor: 0.5
ranking: [toy_answers]
"""


def test_the_facts_of_answers_are_held_without_texts_too(tmp_path: Path) -> None:
    board, found = tmp_path / "made", write_answers(tmp_path, ANSWER_ROWS)
    write_jsonl(tmp_path / "data/toy/choices/all/test.jsonl", [CHOICE_ROW])
    (tmp_path / "tasks/toy_choice.yaml").write_text(json.dumps(CHOICE))
    chosen = {f"Which? {text}": [-3.0] for text in CHOICE_ROW["choices"]}
    model = ScriptedModel(logprobs=LOGPROBS | chosen, name="ga_gdr")
    evaluate(model, "toy_answers,toy_choice", **found)
    board.mkdir()
    (board / "board.yaml").write_text(ANSWERED)
    shutil.copytree(tmp_path / "tasks", board / "tasks")
    line = ["leaderboard", "add", str(found["output"]), "--board", str(board), "--name", "ga_gdr"]
    assert call(*line, "--no-texts") == 0
    assert {what.split(" to hold")[0] for what in problems(board)} == {
        f"the board has no {role}" for role in ("target", "retrained")
    }
    path = board / "entries/ga_gdr.json"
    whole = path.read_text()

    def edited(task: str, **changes: Any) -> list[str]:
        path.write_text(whole)

        def edit(content: dict[str, Any]) -> None:
            record = run_at(content, "none")["samples"][task][0]
            record["facts"] |= changes.pop("facts", {})
            record.update(changes)

        return forge(board, edit)

    assert of(edited("toy_answers", score=0.0), "probability is 0.0, its facts give 0.70")
    assert of(edited("toy_choice", score=0.5), "accuracy_normalised is 0.5, its facts give 0.0")
    raw = {"toy_answers": {"answer": "right"}, "toy_choice": {"choices": ["a", "b", "c"]}}
    for task, facts in raw.items():
        assert of(edited(task, facts=facts), "a text stands where its hash should")
    assert of(edited("toy_answers", facts={"a text": 1}), "a text")


def test_rows_without_an_answer_are_left_out_of_an_entry_too(tmp_path: Path) -> None:
    """Which of them are empty only the data says; entries of other rows do not compare."""
    rows = [ANSWER_ROWS[0], {**ANSWER_ROWS[0], "a": ""}, ANSWER_ROWS[1]]
    found = write_answers(tmp_path, rows, skip_empty=True)
    board = tmp_path / "made"
    board.mkdir()
    rules = ANSWERED.replace("toy_answers: 1.0, toy_choice: 1.0", "toy_answers: 1.0")
    (board / "board.yaml").write_text(rules)
    shutil.copytree(tmp_path / "tasks", board / "tasks")
    for name, likely in (("target", 1.0), ("retrained", 3.0), ("ga_gdr", 2.0)):
        logprobs = {text: [p * likely for p in each] for text, each in LOGPROBS.items()}
        out = tmp_path / name
        model = ScriptedModel(logprobs=logprobs, name=name)
        evaluate(model, "toy_answers", **{**found, "output": out})
        role = [] if name == "ga_gdr" else ["--role", name]
        line = ["leaderboard", "add", str(out), "--board", str(board), "--name", name, *role]
        assert call(*line, "--no-texts") == 0
    assert problems(board) == []

    entry = (board / "entries/ga_gdr.json").read_text()

    def drop(content: dict[str, Any]) -> None:
        run_at(content, "none")["samples"]["toy_answers"].pop(0)
        run_at(content, "none")["run"]["tasks"]["toy_answers"]["n"] = 1

    assert of(forge(board, drop), "number of samples is 2 there and 1 here")

    (board / "entries/ga_gdr.json").write_text(entry)

    def beyond(content: dict[str, Any]) -> None:
        run_at(content, "none")["samples"]["toy_answers"][1]["id"] = "train/7"

    assert of(forge(board, beyond), "another number")


def test_a_task_is_unchanged_by_prompt_conditions_alone(board: Path) -> None:
    def edit(content: dict[str, Any]) -> None:
        run_at(content, "rtn-int4")["run"]["tasks"]["made_knowmem_f"]["unchanged"] = True

    assert of(forge(board, edit), "rtn-int4: made_knowmem_f: marked unchanged, and its condition")
    tasks = {name: read_task(board / f"tasks/{name}.yaml") for name in ("made_privleak", F)}
    found = [leaves(at, task) for at in ("prefix-1", "?") for task in tasks.values()]
    assert found == [True, False, False, False]


F = "made_knowmem_f"


def of_format_1(content: dict[str, Any]) -> dict[str, Any]:
    """An entry in the words of format 1: a precision with its fields beside its options."""
    names = {"covered_modules": "quantized_modules", "uncovered": "unquantized"}
    names["covered_weights"] = "quantized_weights"
    for part in content["runs"]:
        old, run = part["run"].pop("condition"), part["run"]
        proof = {names.get(key, key): value for key, value in old.get("proof", {}).items()}
        known = ("bits", "scheme", "backend", "kernel", "calibration")
        fields = {key: old["options"].pop(key) for key in known if key in old["options"]}
        precision = {"name": old["name"], **fields, "options": old["options"]}
        precision |= {"proof": proof} if proof else {}
        part["run"] = {
            "format_version": 1,
            "checkpoint": run["checkpoint"],
            "precision": precision,
            **{key: run[key] for key in run if key not in ("format_version", "checkpoint")},
        }
    return {"format_version": 1, **{k: v for k, v in content.items() if k != "format_version"}}


def test_an_entry_of_format_1_is_as_it_was_written(made_real: Path, tmp_path: Path) -> None:
    content = read(made_real / "entries/ga_gdr.json")
    run = run_at(content, "rtn-int8")
    text = json.dumps(of_format_1(content | {"runs": [run]}), indent=1) + "\n"
    copy = tmp_path / "ga_gdr.json"
    changes = [
        ("", "", True),
        ('"seed": 0,', '"seed": 0, ', False),
        ('"board":', '"board": "x",\n "board":', False),
        ('"bits": 8.0', '"bits": 8', False),
        ('"format_version": 1,\n', '"format_version": 2,\n', False),
    ]
    for old, new, same in changes:
        assert old in text
        copy.write_text(text.replace(old, new, 1), encoding="ascii")
        entry = read_entry(copy)
        assert entry.runs[0].run.condition.kind == "quantized"
        assert is_as_written(copy, entry) is same, new


def test_runs_of_one_entry_that_compute_in_several_dtypes(board: Path) -> None:
    def edit(content: dict[str, Any]) -> None:
        run_at(content, "rtn-int4")["run"]["settings"]["dtype"] = "bf16"

    (found,) = forge(board, edit)
    assert "ga_gdr.json at none was made with dtype fp32 and ga_gdr.json at rtn-int4 with" in found


def test_an_entry_measured_otherwise_than_the_references_verifies_with_a_note(
    board: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def edit(content: dict[str, Any]) -> None:
        for part in content["runs"]:
            part["run"]["settings"]["dtype"] = "bf16"
            for task in part["run"]["tasks"].values():
                task["environment"]["packages"]["numpy"] = "99"

    assert forge(board, edit) == []
    assert call("leaderboard", "verify", str(board)) == 0
    notes = [line for line in capsys.readouterr().out.splitlines() if "ga_gdr.json at" in line]
    assert len(notes) == 2
    for role, note in zip(("target", "retrained"), sorted(notes, reverse=True), strict=True):
        assert f"ga_gdr.json at none was measured otherwise than the {role}'s" in note
        assert "compute dtype at none is fp32 there and bf16 here" in note
        assert "numpy is " in note


def test_a_board_takes_the_version_that_it_names(board: Path, tmp_path: Path) -> None:
    for path in (board / "tasks").glob("*knowmem*.yaml"):
        path.write_text(f"{path.read_text(encoding='utf-8')}version_without_blank: 2.0\n")
    assert problems(board) == [], "version 1 is what it was"
    rules = (board / "board.yaml").read_text(encoding="utf-8")
    (board / "board.yaml").write_text(rules.replace("knowmem_f: 1.0", "knowmem_f: 2.0"))
    where = "rtn-int8: made_knowmem_f: "
    found = problems(board)
    assert f"{where}version 1, the board has 2" in found
    assert f"{where}the task's definition is not ours" in found

    text = (board / "tasks/made_knowmem_f.yaml").read_text(encoding="utf-8")
    text = text.replace("version_without_blank: 2.0\n", "").replace("version: 1.0", "version: 2.0")
    text = text.replace('Answer: "', 'Answer:"').replace('delimiter: ""', 'delimiter: " "')
    (tmp_path / "made_knowmem_f.yaml").write_text(text, encoding="utf-8")
    definition = read_task(tmp_path / "made_knowmem_f.yaml").definition_sha256

    def second(content: dict[str, Any]) -> None:
        for part in content["runs"]:
            facts = {"version": 2.0, "task_sha256": definition}
            part["run"]["tasks"]["made_knowmem_f"].update(facts)

    for name in SMALL:
        write(board, second, name)
    assert verdicts(board) == {name: [] for name in SMALL}


def test_rows_that_were_held_back_are_not_missing() -> None:
    """A run asks the rows that its settings say, and those alone."""
    spec = load_registry().tasks["demo_knowmem_f"]
    facts: dict[str, Any] = {"protocol": "muse", "dtype": "fp32", "device": "cpu", "seed": 3}
    settings = Settings(**facts, ppl_lower=False, held_back="1-of-3")
    (kept,) = hold_back([load_samples(spec, DataOptions())], "1-of-3", 3)
    rows = asked_rows(spec, spec.own_split, settings)
    assert [s.id for s in kept.samples] == [f"{spec.own_split}/{row}" for row in rows]
    assert len(rows) == 32
    whole = settings.model_copy(update={"held_back": None, "limit": 5})
    assert asked_rows(spec, spec.own_split, whole) == [*range(5)]
    assert len(asked_rows(load_registry().tasks["demo_knowmem_r"], "retain_qa", settings)) == 120
