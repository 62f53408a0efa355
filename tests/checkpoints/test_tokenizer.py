from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing

from tests.checkpoints.helpers import edit_json, load
from tests.checkpoints.test_gguf import digit_rules, llama3_rules
from tests.checkpoints.test_load import (
    add_normalizer,
    drop_begin_token,
    swap_merges,
    swap_words,
)
from tests.conftest import CORPUS, make_tokenizer
from unlearnbench.checkpoints.checkpoint import open_checkpoint
from unlearnbench.checkpoints.options import LoadOptions
from unlearnbench.checkpoints.tokenizer import (
    PROBE,
    begin_texts,
    probe_ids,
    probe_sha256,
    save_tokenizer,
    thought_end,
)
from unlearnbench.errors import CheckpointError, OptionError
from unlearnbench.requests import Score

CLASSES = ["GPT2Tokenizer", "CodeGenTokenizer", "Qwen2Tokenizer", "GPTNeoXTokenizer"]
CLASSES += ["BartTokenizer", "CohereTokenizer", "GPT2TokenizerFast", "PreTrainedTokenizerFast"]


def resplit(folder: Path, rules: list[Any]) -> Tokenizer:
    """Give tokenizer.json another splitter; returns the file as tokenizers itself reads it."""
    from tokenizers import pre_tokenizers

    path = folder / "tokenizer.json"
    backend = Tokenizer.from_file(str(path))
    backend.pre_tokenizer = pre_tokenizers.Sequence(rules)
    backend.save(str(path))
    return Tokenizer.from_file(str(path))


@pytest.mark.field(
    "Prompts and tokenizers",
    "class GPT2, CodeGen, Qwen2, GPTNeoX, Bart or Cohere over another splitter in tokenizer.json",
    "with a note: the file's rules run",
)
@pytest.mark.parametrize("rules", [llama3_rules(), digit_rules()], ids=["llama3", "digits"])
@pytest.mark.parametrize("name", CLASSES)
def test_ids_are_those_of_tokenizer_json_whatever_the_class(
    copy: Path, name: str, rules: list[Any], notes: list[str]
) -> None:
    """Transformers gives these classes rules of their own, and a model trained on the file's ids
    then answers as one that forgot.
    """
    from transformers import AutoTokenizer

    right = resplit(copy, rules)
    edit_json(copy / "tokenizer_config.json", tokenizer_class=name)
    source = open_checkpoint(str(copy), LoadOptions())
    for text in [*PROBE, *CORPUS[:9], "12 gates", "\n\n", ""]:
        assert source.tokenizer(text)["input_ids"] == right.encode(text).ids, text
    replaced: Any = AutoTokenizer.from_pretrained(copy)
    wrong = any(replaced(t)["input_ids"] != right.encode(t).ids for t in PROBE)
    told = [line for line in notes if "has other rules than tokenizer.json" in line]
    assert len(told) == wrong
    assert not wrong or f"the class {type(replaced).__name__} has" in told[0]


@pytest.mark.parametrize("name", ["BertTokenizer", "GemmaTokenizer", "LayoutLMv3Tokenizer"])
def test_a_class_that_fails_on_the_files_rules_gives_way_to_them(
    copy: Path, name: str, notes: list[str]
) -> None:
    """As where tokenizer.json lacks the class's token for unknown words; an internal error once."""
    right = resplit(copy, digit_rules())
    edit_json(copy / "tokenizer_config.json", tokenizer_class=name)
    tokenizer = open_checkpoint(str(copy), LoadOptions()).tokenizer
    for text in PROBE:
        assert tokenizer(text)["input_ids"] == right.encode(text).ids, text
    assert any("has other rules than tokenizer.json" in line for line in notes)


def test_scores_do_not_depend_on_the_class(copy: Path) -> None:
    resplit(copy, llama3_rules())
    found = []
    for name in ("PreTrainedTokenizerFast", "GPT2Tokenizer"):
        edit_json(copy / "tokenizer_config.json", tokenizer_class=name)
        found += [load(copy).score([Score("a", PROBE[0])])]
    (one,), (other,) = found
    assert one.logprobs.tolist() == other.logprobs.tolist()


def test_a_damaged_tokenizer_json_is_one_line(copy: Path) -> None:
    content = json.loads((copy / "tokenizer.json").read_text())
    content["pre_tokenizer"] = {"type": "Nonesuch"}
    (copy / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="tokenizer"):
        open_checkpoint(str(copy), LoadOptions())


def probed(folder: Path) -> str | None:
    return open_checkpoint(str(folder), LoadOptions()).checkpoint.tokenizer_probe_sha256


@pytest.mark.field(
    "Prompts and tokenizers",
    "`legacy: true`, another class over the same rules, a pad token of its own",
    "the same tokenizer",
)
def test_tokenizers_that_do_the_same_are_the_same(tiny: Path, copy: Path) -> None:
    """A padding token of its own, another class over the same rules, other files."""
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    tokenizer.save_pretrained(copy)
    edit_json(copy / "tokenizer_config.json", tokenizer_class="GPT2Tokenizer", legacy=True)
    assert probed(copy) == probed(tiny)


@pytest.mark.parametrize("change", [swap_merges, swap_words, drop_begin_token, add_normalizer])
def test_tokenizers_that_do_otherwise_are_others(tiny: Path, copy: Path, change: Any) -> None:
    path = copy / "tokenizer.json"
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))
    assert probed(copy) != probed(tiny)


def test_another_end_token_is_another_tokenizer() -> None:
    ours, theirs = make_tokenizer(), make_tokenizer()
    theirs.eos_token = "<s>"
    assert probe_sha256(ours, 300) != probe_sha256(theirs, 300)


def test_a_tokenizers_files_are_copied_byte_for_byte(copy: Path, tmp_path: Path) -> None:
    edit_json(copy / "tokenizer_config.json", tokenizer_class="GPT2Tokenizer", legacy=True)
    resplit(copy, llama3_rules())
    (copy / "additional_chat_templates").mkdir()
    (copy / "additional_chat_templates" / "tool.jinja").write_text("{{ messages }}")
    source = open_checkpoint(str(copy), LoadOptions())
    save_tokenizer(source.tokenizer, source.home, tmp_path / "out")
    names = ("tokenizer.json", "tokenizer_config.json", "additional_chat_templates/tool.jinja")
    for name in names:
        assert (tmp_path / "out" / name).read_bytes() == (copy / name).read_bytes()
    assert {p.name for p in (tmp_path / "out").iterdir()} == {n.split("/")[0] for n in names}


@pytest.mark.field(
    "Prompts and tokenizers",
    "`add_bos_token`",
    "runs; refused where the tokenizer cannot do it alone",
)
def test_texts_begin_as_asked_and_stay_otherwise(copy: Path) -> None:
    with_begin = [[0, *make_tokenizer()(t, add_special_tokens=False).input_ids] for t in PROBE]
    tokenizer = make_tokenizer()
    for asked in (True, False, True):
        begin_texts(tokenizer, asked)
        assert probe_ids(tokenizer) == [ids[not asked :] for ids in with_begin]
    source = open_checkpoint(str(copy), LoadOptions(add_bos_token=False))
    assert source.checkpoint.tokenizer_probe_sha256 != probed(copy)
    ends = make_tokenizer()
    backend: Any = ends.backend_tokenizer
    end = [("<s>", 0), ("</s>", 1)]
    backend.post_processor = TemplateProcessing(single="<s> $A </s>", special_tokens=end)
    with pytest.raises(OptionError, match="add_bos_token=False: this tokenizer cannot"):
        begin_texts(ends, False)
    none = make_tokenizer()
    begin_texts(none, False)
    none.bos_token = None
    with pytest.raises(OptionError, match="add_bos_token=True: this tokenizer cannot"):
        begin_texts(none, True)


@pytest.mark.field("Prompts and tokenizers", "`think_end_token` that is several tokens", "refused")
def test_a_thought_ends_with_a_token_or_its_id() -> None:
    tokenizer = make_tokenizer()
    assert thought_end(tokenizer, None) is None
    assert thought_end(tokenizer, "17") == 17
    assert thought_end(tokenizer, "</s>") == 1
    with pytest.raises(OptionError, match="--think-end-token </think>: no single token"):
        thought_end(tokenizer, "</think>")
