from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import pytest

from tests.conftest import Toy
from tests.evaluation.test_evaluate import (
    AUC,
    MEMBERS,
    OTHERS,
    RETRAINED,
    RETRAINED_AUC,
    Spy,
    edit_task,
    logged,
    retrained_run,
    rows,
    run,
    run_dir,
    script,
    write_rows,
)
from unlearnbench import RunResult
from unlearnbench.errors import OptionError, ResultError
from unlearnbench.evaluation.reference import open_reference
from unlearnbench.results import AucReference
from unlearnbench.tasks.registry import load_registry

STATED = """references:
  - auc: 0.4
    base_model: Toy-1B
    config: {model_type: llama, hidden_size: 64}
    source: "a paper"
  - auc: 0.25
    base_model: Toy-2B
    config: {model_type: llama, hidden_size: 128}
    source: "another paper"
metric: privleak
"""


def leak_against(toy: Toy, reference: Path | str, model: Spy | None = None) -> RunResult:
    return run(model or script(toy), "toy_privleak", toy, reference=reference)


def refused(toy: Toy, reference: Path, said: str, model: Spy | None = None) -> None:
    """The reference is refused, before the model is asked and before anything is written."""
    model = model or script(toy)
    with pytest.raises(OptionError, match=said) as raised:
        leak_against(toy, reference, model)
    assert "--reference" in str(raised.value)
    assert model.asked == []
    assert not (run_dir(toy, model) / "run.json").exists()


def test_an_equal_measurement_is_accepted(toy: Toy) -> None:
    leak = leak_against(toy, retrained_run(toy)).tasks["toy_privleak"]
    assert leak.value == pytest.approx((AUC - RETRAINED_AUC) / RETRAINED_AUC * 100)


def test_the_retrained_model_against_its_own_run_is_exactly_0(toy: Toy) -> None:
    retrained = script(toy, *RETRAINED, name="retrained")
    leak = leak_against(toy, retrained_run(toy), retrained).tasks["toy_privleak"]
    assert leak.value == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize(
    ("members", "others", "want"),
    [
        ((1.0, 1.1, 1.2), (3.0, 3.0, 3.0), -100.0),  # told apart: leaks
        ((3.0, 3.0, 3.0), (1.0, 1.1, 1.2), (1 - RETRAINED_AUC) / RETRAINED_AUC * 100),
    ],
)
def test_the_sign_of_privleak(
    toy: Toy, members: tuple[float, ...], others: tuple[float, ...], want: float
) -> None:
    leak = leak_against(toy, retrained_run(toy), script(toy, members, others))
    assert leak.tasks["toy_privleak"].value == pytest.approx(want)


def test_the_reference_is_read_from_texts_by_their_id(toy: Toy) -> None:
    # Which of the forget texts a model knows does not move the AUC; its interval is over texts.
    reference = retrained_run(toy)
    plain = leak_against(toy, reference).tasks["toy_privleak"]
    shuffled = leak_against(toy, reference, script(toy, MEMBERS[::-1], OTHERS))
    leak = shuffled.tasks["toy_privleak"]
    assert leak.value == plain.value
    assert leak.auc == plain.auc


def test_no_run_there(toy: Toy, tmp_path: Path) -> None:
    refused(toy, tmp_path / "nothing", "no run.json there")


def test_the_folder_above_is_refused_and_its_runs_are_named(toy: Toy) -> None:
    reference = retrained_run(toy)
    refused(toy, reference.parent, "it holds none, take one of those")


def test_a_damaged_run_is_refused(toy: Toy) -> None:
    reference = retrained_run(toy)
    (reference / "run.json").write_text('{"format_version": 1', encoding="utf-8")
    with pytest.raises(ResultError, match=re.escape(str(reference / "run.json"))):
        open_reference(reference)


def test_a_run_without_the_task_is_refused(toy: Toy) -> None:
    retrained = script(toy, *RETRAINED, name="retrained")
    run(retrained, "toy_verbmem", toy)
    refused(toy, run_dir(toy, retrained), "has no toy_privleak; evaluate the retrained model")


def test_another_version_is_refused(toy: Toy) -> None:
    reference = retrained_run(toy)
    edit_task(toy, "toy_privleak", "version: 1.0", "version: 1.5")
    refused(toy, reference, r"task version is 1\.0 there and 1\.5 here")


def test_another_definition_under_the_same_version_is_refused(toy: Toy) -> None:
    # The ids of the texts are the same and the texts are not: the two AUCs measure other things.
    reference = retrained_run(toy)
    edit_task(toy, "toy_privleak", "{{text}}", "News: {{text}}")
    model = script(toy)
    model._logprobs |= {f"News: {text}": values for text, values in model._logprobs.items()}
    refused(toy, reference, "definition", model)


@pytest.mark.parametrize("split", ["forget", "holdout"])
def test_other_data_are_refused(toy: Toy, split: str) -> None:
    reference = retrained_run(toy)
    changed = rows(toy, f"privleak/{split}.jsonl")
    changed[1]["text"] += " and more"
    write_rows(toy, f"privleak/{split}.jsonl", changed)
    refused(toy, reference, f"data of split '{split}' is [0-9a-f]{{12}} there")


def test_the_same_rows_in_another_order_are_refused(toy: Toy) -> None:
    reference = retrained_run(toy)
    write_rows(toy, "privleak/forget.jsonl", rows(toy, "privleak/forget.jsonl")[::-1])
    refused(toy, reference, "data of split 'forget' is ")


def test_another_limit_is_refused(toy: Toy) -> None:
    reference = retrained_run(toy, limit=2)
    refused(toy, reference, "number of 'forget' texts is 2 there and 3 here")


def test_a_longer_reference_is_refused_too(toy: Toy) -> None:
    reference, model = retrained_run(toy), script(toy)
    with pytest.raises(OptionError, match="number of 'forget' texts is 3 there and 2 here"):
        run(model, "toy_privleak", toy, reference=reference, limit=2)
    assert model.asked == []


def test_the_same_limit_is_accepted(toy: Toy) -> None:
    reference = retrained_run(toy, limit=2)
    leak = run(script(toy), "toy_privleak", toy, reference=reference, limit=2).tasks["toy_privleak"]
    # Two texts each: members 1, 2 against 1.5, 2.5 wins once; the retrained's 1, 2 against 2, 1
    # has two ties and one win.
    assert leak.auc == pytest.approx(1 / 4)
    assert leak.value == pytest.approx((1 / 4 - 2 / 4) / (2 / 4) * 100)


def test_another_tokenizer_is_refused(toy: Toy) -> None:
    reference, model = retrained_run(toy), script(toy)
    other = hashlib.sha256(b"letters").hexdigest()
    model.checkpoint = model.checkpoint.model_copy(update={"tokenizer_sha256": other})
    refused(toy, reference, f"tokenizer is .* there and {other[:12]} here", model)


def test_changed_records_of_the_reference_are_refused(toy: Toy) -> None:
    reference = retrained_run(toy)
    path = reference / "samples" / "toy_privleak.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"Min-40%": 1.0', b'"Min-40%": 9.0'))
    with pytest.raises(ResultError, match=re.escape(str(path))):
        leak_against(toy, reference)


def test_missing_records_of_the_reference_are_refused(toy: Toy) -> None:
    reference = retrained_run(toy)
    path = reference / "samples" / "toy_privleak.jsonl"
    path.unlink()
    with pytest.raises(ResultError, match=re.escape(str(path))):
        leak_against(toy, reference)


def test_a_reference_without_the_attack_is_refused(toy: Toy) -> None:
    reference = retrained_run(toy)
    path = reference / "samples" / "toy_privleak.jsonl"
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    del lines[4]["scores"]["Min-40%"]
    content = "".join(json.dumps(line) + "\n" for line in lines).encode()
    result = json.loads((reference / "run.json").read_text(encoding="utf-8"))
    result["tasks"]["toy_privleak"]["records_sha256"] = hashlib.sha256(content).hexdigest()
    path.write_bytes(content)
    (reference / "run.json").write_text(json.dumps(result), encoding="utf-8")
    with pytest.raises(ResultError, match=r"record holdout/1 has no Min-40%"):
        leak_against(toy, reference)


def base_model(toy: Toy, **config: object) -> Spy:
    model = script(toy)
    model.config = config
    return model


@pytest.mark.parametrize(
    ("size", "auc", "source"),
    [(64, 0.4, "Toy-1B: a paper"), (128, 0.25, "Toy-2B: another paper")],
)
def test_a_stated_reference_of_the_right_base_model(
    toy: Toy, size: int, auc: float, source: str
) -> None:
    edit_task(toy, "toy_privleak", "metric: privleak\n", STATED)
    model = base_model(toy, model_type="llama", hidden_size=size, other="ignored")
    leak = leak_against(toy, "stated", model).tasks["toy_privleak"]
    assert leak.value == pytest.approx((AUC - auc) / auc * 100)
    assert leak.auc_reference == AucReference(auc=auc, kind="stated", source=source)
    assert leak.auc_ci is not None
    assert leak.ci == pytest.approx([(end - auc) / auc * 100 for end in leak.auc_ci])


LLAMA_2 = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "max_position_embeddings": 4096,
}


@pytest.mark.field(
    "Data, files, commands", "stated reference, Llama-2 with added or padded rows", "runs"
)
@pytest.mark.parametrize("name", ["news_privleak", "books_privleak"])
@pytest.mark.parametrize(
    ("rows", "is_llama_2"),
    [
        *((rows, True) for rows in (32000, 32001, 32002, 32064, 32128)),
        # Code Llama's, one that is cut, Llama-2 with a Chinese vocabulary, and no numbers of rows
        *((rows, False) for rows in (32016, 31999, 55296, "32000", True)),
    ],
)
def test_added_and_padded_rows_make_no_other_base_model(
    name: str, rows: object, is_llama_2: bool
) -> None:
    spec, config = load_registry().tasks[name], {**LLAMA_2, "vocab_size": rows}
    if is_llama_2:
        assert spec.stated_reference(config).scores.auc == spec.stated_aucs()[0]
    else:
        with pytest.raises(OptionError, match=f"vocab_size {rows} instead of 32000"):
            spec.stated_reference(config)


@pytest.mark.field(
    "Data, files, commands", "stated reference, Code Llama, another vocabulary", "refused"
)
@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"model_type": "llama", "hidden_size": 65}, "hidden_size 65 instead of 64"),
        ({"model_type": "gpt2", "hidden_size": 64}, "model_type gpt2 instead of llama"),
        ({"model_type": "llama"}, "hidden_size absent instead of 64"),
        ({"model_type": "llama", "hidden_size": "64"}, "hidden_size 64 instead of 64"),
        ({}, "model_type absent instead of llama, hidden_size absent instead of 64"),
    ],
)
def test_a_stated_reference_of_another_base_model_is_refused(
    toy: Toy, config: dict[str, object], said: str
) -> None:
    edit_task(toy, "toy_privleak", "metric: privleak\n", STATED)
    model = base_model(toy, **config)
    with pytest.raises(OptionError, match=f"is for Toy-1B, .*another model .{said}"):
        leak_against(toy, "stated", model)
    assert model.asked == []


def test_a_task_that_states_none_is_refused(toy: Toy) -> None:
    model = base_model(toy, model_type="llama", hidden_size=64)
    with pytest.raises(OptionError, match="toy_privleak states no reference; pass --reference"):
        leak_against(toy, "stated", model)
    assert model.asked == []


def test_a_stated_reference_is_never_taken_without_being_asked_for(toy: Toy) -> None:
    edit_task(toy, "toy_privleak", "metric: privleak\n", STATED)
    model = base_model(toy, model_type="llama", hidden_size=64)
    leak = run(model, "toy_privleak", toy).tasks["toy_privleak"]
    assert leak.value is None
    assert leak.auc_reference is None


def test_tasks_that_need_no_reference_do_not_look_at_it(toy: Toy) -> None:
    result = run(script(toy), "toy_verbmem", toy, reference="stated")
    assert result.tasks["toy_verbmem"].auc_reference is None


def test_a_run_of_the_very_checkpoint_is_said_to_be_no_reference(toy: Toy) -> None:
    run(script(toy), "toy_privleak", toy)
    with logged() as lines:
        result = leak_against(toy, run_dir(toy, script(toy))).tasks["toy_privleak"]
    assert result.value == 0
    assert any("a run of this very checkpoint" in line for line in lines)


def test_a_reference_that_moves_nothing_is_said(toy: Toy) -> None:
    reference = retrained_run(toy)
    with logged() as lines:
        run(script(toy), "toy_verbmem", toy, reference=reference)
    assert any("moves only PrivLeak" in line for line in lines)


def test_a_changed_privleak_is_not_taken_over(toy: Toy) -> None:
    leak_against(toy, retrained_run(toy))
    path = run_dir(toy, script(toy)) / "run.json"
    honest = run(script(toy), "toy_privleak", toy).tasks["toy_privleak"].value
    assert honest == pytest.approx((AUC - RETRAINED_AUC) / RETRAINED_AUC * 100)
    content = json.loads(path.read_text(encoding="utf-8"))
    content["tasks"]["toy_privleak"]["value"] = 0.0
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(ResultError, match="states PrivLeak 0, and its records give"):
        run(script(toy), "toy_privleak", toy)
