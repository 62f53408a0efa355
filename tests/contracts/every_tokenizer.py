"""Each tokenizer class that transformers has, made tiny and opened by us: its ids are those of its
tokenizer.json, as the tokenizers library reads it; of a class without that file, transformers' own.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

from tests.conftest import CORPUS, make_model, make_tokenizer
from unlearnbench.checkpoints.checkpoint import open_checkpoint
from unlearnbench.checkpoints.options import LoadOptions
from unlearnbench.checkpoints.tokenizer import PROBE
from unlearnbench.errors import UnlearnbenchError, one_line

_TEXTS = [*PROBE, *CORPUS[:5]]


def tokenizer_classes() -> list[str]:
    """Names of the classes that transformers takes for one model or another."""
    from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING_NAMES

    return sorted({str(name) for name in TOKENIZER_MAPPING_NAMES.values() if name})


def save_tokenizer(name: str, folder: Path) -> None:
    """A tokenizer of class ``name`` with a small vocabulary; whatever transformers raises."""
    import transformers

    kind = getattr(transformers, name)
    if not issubclass(kind, transformers.PreTrainedTokenizerFast):
        _slow(kind, folder).save_pretrained(folder)
    elif kind is transformers.PreTrainedTokenizerFast:
        make_tokenizer().save_pretrained(folder)
    else:
        kind().train_new_from_iterator([*CORPUS, *PROBE], 400).save_pretrained(folder)


def _slow(kind: Any, folder: Path) -> Any:
    """In Python alone: of no file, of a list of words, or of merges."""
    words = ["<s>", "</s>", "<unk>", "<pad>", "[UNK]", "[PAD]", "[CLS]", "[SEP]", "[MASK]"]
    words += sorted({letter for text in _TEXTS for letter in text if not letter.isspace()})
    words += [word + "</w>" for word in words] + ["##" + word for word in words]
    merges = folder / "merges.txt"
    merges.write_text("#version: 0.2\nt h\na r\n", encoding="utf-8")
    facts = {word: n for n, word in enumerate([*words, "th", "ar"])}
    vocabularies = [json.dumps(facts), "\n".join(facts) + "\n"]
    tries: list[dict[str, str]] = [{}]
    for n, text in enumerate(vocabularies):
        path = folder / f"words{n}"
        path.write_text(text, encoding="utf-8")
        tries += [{"vocab_file": str(path)}, {"vocab_file": str(path), "merges_file": str(merges)}]
    errors = []
    for given in tries:
        try:
            made = kind(**given)
            if None not in (ids := made(CORPUS[0])["input_ids"]) and len(set(ids)) > 9:
                return made
        except Exception as error:  # noqa: PERF203 - any: it is not made so
            errors.append(error)
    raise errors[-1]


def other_rules(folder: Path) -> None:
    """Have tokenizer.json split otherwise than its class: digits one by one, bytes."""
    from tokenizers import Tokenizer, pre_tokenizers

    backend = make_tokenizer().backend_tokenizer
    digits = pre_tokenizers.Digits(individual_digits=True)
    level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([digits, level])
    backend.save(str(folder / "tokenizer.json"))
    assert Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab_size() == 300


def right_ids(folder: Path) -> tuple[list[list[int]], int]:
    """Ids by the tokenizers library, or by transformers where there is no tokenizer.json; and how
    many rows a model for it has.
    """
    from tokenizers import Tokenizer
    from transformers import AutoTokenizer

    path = folder / "tokenizer.json"
    if not path.is_file():
        plain = AutoTokenizer.from_pretrained(folder)
        return [list(plain(text)["input_ids"]) for text in _TEXTS], len(plain)
    backend = Tokenizer.from_file(str(path))
    backend.no_truncation()
    backend.no_padding()
    return [list(backend.encode(text).ids) for text in _TEXTS], backend.get_vocab_size()


def opened(folder: Path, notes: list[str]) -> str:
    """What becomes of the tokenizer in ``folder``, beside a model of its size; "DIFFERS" where we
    are wrong. notes: what was said.
    """
    right, rows = right_ids(folder)
    make_model(rows, hidden_size=8, intermediate_size=8).save_pretrained(folder)
    notes.clear()
    try:
        found = open_checkpoint(str(folder), LoadOptions()).tokenizer
    except UnlearnbenchError as error:
        return f"refused: {one_line(re.sub(r'^/[^:]*: ', '', str(error)), 120)}"
    if [list(found(text)["input_ids"]) for text in _TEXTS] != right:
        return "DIFFERS"
    return "runs, with a note" if any("other rules" in note for note in notes) else "runs"


def outcomes(name: str, folder: Path, notes: list[str]) -> list[str]:
    """Of class ``name`` over its own rules, and over others in tokenizer.json where it has one."""
    own, other = folder / "own", folder / "other"
    own.mkdir()
    try:
        save_tokenizer(name, own)
    except Exception as error:  # any
        return [f"not made: {type(error).__name__}: {one_line(error, 120)}"]
    found = [opened(own, notes)]
    if (own / "tokenizer.json").is_file():
        shutil.copytree(own, other)
        other_rules(other)
        found.append(opened(other, notes))
    return found
