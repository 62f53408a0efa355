from __future__ import annotations

import json
import shutil
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
from tests.conftest import CORPUS, load_at, make_tokenizer
from unlearnbench.checkpoints.checkpoint import open_checkpoint
from unlearnbench.checkpoints.options import LoadOptions
from unlearnbench.checkpoints.tokenizer import (
    PROBE,
    begin_texts,
    probe_ids,
    probe_sha256,
    thought_end,
)
from unlearnbench.errors import CheckpointError, OptionError
from unlearnbench.requests import Score
from unlearnbench.results import TokenizerSource
from unlearnbench.training.output import save_tokenizer

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


@pytest.fixture
def bare(copy: Path) -> Path:
    """The tiny checkpoint without its tokenizer, as some are published."""
    for path in copy.glob("tokenizer*"):
        path.unlink()
    return copy


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """A folder with the tokenizer alone."""
    make_tokenizer().save_pretrained(tmp_path / "elsewhere")
    return tmp_path / "elsewhere"


@pytest.mark.field(
    "Prompts and tokenizers",
    "a checkpoint without a tokenizer",
    "with `--tokenizer`, a folder or hub id; refused without",
)
def test_a_checkpoint_without_a_tokenizer_takes_one_from_elsewhere(
    tiny: Path, bare: Path, elsewhere: Path, notes: list[str]
) -> None:
    with pytest.raises(CheckpointError, match=r"copy has no tokenizer; .*--tokenizer PATH\|ID"):
        open_checkpoint(str(bare), LoadOptions())
    source = open_checkpoint(str(bare), LoadOptions(tokenizer=str(elsewhere)))
    right = Tokenizer.from_file(str(tiny / "tokenizer.json"))
    for text in PROBE:
        assert source.tokenizer(text)["input_ids"] == right.encode(text).ids
    models = load_at(source, "none"), load(tiny)
    (one,), (other,) = (model.score([Score("a", PROBE[0])]) for model in models)
    assert one.logprobs.tolist() == other.logprobs.tolist()
    own = open_checkpoint(str(tiny), LoadOptions()).checkpoint
    found = source.checkpoint
    assert (found.tokenizer, own.tokenizer) == (TokenizerSource(path=str(elsewhere)), None)
    assert found.tokenizer_probe_sha256 == own.tokenizer_probe_sha256
    assert (found.weights_sha256, found.config_sha256) == (own.weights_sha256, own.config_sha256)
    assert notes == []


@pytest.mark.field(
    "Prompts and tokenizers",
    "`--tokenizer` for a checkpoint that has one",
    "with a note: its own is left out",
)
def test_a_tokenizer_from_elsewhere_in_place_of_its_own_is_said(
    copy: Path, elsewhere: Path, notes: list[str]
) -> None:
    swapped = json.loads((copy / "tokenizer.json").read_text())
    swap_words(swapped)
    (copy / "tokenizer.json").write_text(json.dumps(swapped))
    found = open_checkpoint(str(copy), LoadOptions(tokenizer=str(elsewhere))).checkpoint
    assert found.tokenizer_probe_sha256 != probed(copy)
    assert [line for line in notes if "is left out for that of" in line]


def small(folder: Path) -> Path:
    make_tokenizer(260).save_pretrained(folder)
    return folder


def large(folder: Path) -> Path:
    make_tokenizer(301).save_pretrained(folder)
    return folder


def huge_config(folder: Path) -> Path:
    (folder / "config.json").write_text(json.dumps({"num_hidden_layers": 10**9}))
    return folder


@pytest.mark.field(
    "Prompts and tokenizers",
    "`--tokenizer` of another vocabulary, with more ids than rows, or a folder without one",
    "refused",
)
@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda f: f / "tokenizer.json", "is a file; --tokenizer takes a folder or a hub id"),
        (lambda f: f / "nope", "no such path: .*nope; give a folder with the tokenizer"),
        (lambda f: "a\0b", "no such path: .*give a folder with the tokenizer"),
        (lambda f: "org/nope", "no folder org/nope here.*path of a folder with the tokenizer"),
        (lambda f: (f.parent / "empty").mkdir() or f.parent / "empty", "empty has no tokenizer"),
        (small, "elsewhere: the tokenizer does not match the model"),
        (large, "elsewhere: the tokenizer does not match the model"),
        (huge_config, "elsewhere: config.json has num_hidden_layers 1000000000"),
    ],
    ids=["file", "nowhere", "nul", "hub", "empty", "small", "large", "config"],
)
def test_a_tokenizer_from_elsewhere_that_does_not_serve_is_one_line(
    bare: Path, elsewhere: Path, make: Any, said: str
) -> None:
    with pytest.raises(CheckpointError, match=said) as caught:
        open_checkpoint(str(bare), LoadOptions(tokenizer=str(make(elsewhere))))
    assert str(caught.value).isprintable()


def test_of_another_repository_the_tokenizer_alone_is_fetched(
    bare: Path, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub.utils import filter_repo_objects  # type: ignore[attr-defined]

    asked: dict[str, Any] = {}
    commit = Path(shutil.copytree(elsewhere, elsewhere.parent / ("4" * 40)))

    def snapshot_download(repo: str, **options: Any) -> str:
        asked.update(repo=repo, **options)
        return str(commit)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    found = open_checkpoint(str(bare), LoadOptions(tokenizer="org/tok")).checkpoint
    assert found.tokenizer == TokenizerSource(path="org/tok", revision=commit.name)
    assert (asked["repo"], asked["revision"]) == ("org/tok", None)
    names = ["tokenizer.json", "tokenizer.model", "special_tokens_map.json", "config.json"]
    others = ["model-00001-of-00002.safetensors", "pytorch_model.bin", "x.py", "original/x.model"]
    patterns = {key: asked[key] for key in ("allow_patterns", "ignore_patterns")}
    assert list(filter_repo_objects([*names, *others], **patterns)) == names


def test_a_copied_tokenizer_does_the_same_beside_another_config(
    tiny: Path, bare: Path, tmp_path: Path
) -> None:
    """Its class may be known from its own config.json alone, which is not the model's."""
    from transformers import AutoTokenizer, GPT2Config

    named = tmp_path / "named"
    named.mkdir()
    model = json.loads((tiny / "tokenizer.json").read_text())["model"]
    (named / "vocab.json").write_text(json.dumps(model["vocab"]))
    (named / "merges.txt").write_text("".join(f"{a} {b}\n" for a, b in model["merges"]))
    GPT2Config(vocab_size=300).save_pretrained(named)
    facts = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "</s>"}
    (named / "tokenizer_config.json").write_text(json.dumps(facts))
    source = open_checkpoint(str(bare), LoadOptions(tokenizer=str(named)))
    save_tokenizer(source.tokenizer, source.home, bare)
    again = open_checkpoint(str(bare), LoadOptions())
    plain: Any = AutoTokenizer.from_pretrained(named)
    for text in PROBE:
        assert again.tokenizer(text)["input_ids"] == plain(text)["input_ids"], text


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
