"""A checkpoint's tokenizer: what runs is what its files say, shown on the texts of ``PROBE``."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from unlearnbench.checkpoints.find import (
    CheckpointFiles,
    find_checkpoint,
    find_tokenizer,
    read_json,
    tokenizer_files,
)
from unlearnbench.checkpoints.gguf import follow_gguf
from unlearnbench.checkpoints.limits import check_config
from unlearnbench.checkpoints.load import OWN_CODE, local_only, refusing
from unlearnbench.checkpoints.options import LoadOptions
from unlearnbench.errors import CheckpointError, OptionError, one_line
from unlearnbench.util.files import content_sha256
from unlearnbench.util.process import plain_errors

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

PROBE = (
    "Question: when did the harbour open?\nAnswer: in 1926, with 31,415 boats; at 7:05 and 10:59",
    "It's Ada's, they've said I'LL and we'd; don't DON'T he\u2019s co-owner, 3.5e-7",
    "  two blanks   three\tand a tab\n\nnew line \r\nold line   \n  ",
    "Caf\u00e9 na\u00efve co\u0308operate \u00c5ngstr\u00f6m \ufb01 \u212b \u00bd",
    "\u6c49\u5b57\u4e2d\u6587123\u3002\u65e5\u672c\u8a9e \ud55c\uad6d\uc5b4 "
    "\u0440\u0443\u0441 \u0639\u0631\u0628 \U0001f600",
    'a_b() {"x": [1, 2]} // https://x.y/z?q=1#a&b C++ @me 50% $5 ~/ HTMLParser',
)
"""Where tokenizers' rules part: digits, line ends, contractions, runs of blanks, accents, Han."""

REWARD = "<|quark_{}|>"
"""Special tokens behind which Quark's models answer: they steer, and are neither written nor
scored."""

REWARD_PLACES = 4
"""They stand among so many first tokens of a text: behind begin tokens, and nowhere else."""

# Tokens without a row that a tokenizer may have: a library or a training adds some, no thousand.
_MOST_ADDED = 100

log = logging.getLogger("unlearnbench")


def open_tokenizer(
    name: str, options: LoadOptions, revision: str | None = None
) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder, ``.gguf`` file or hub id, whether weights are beside it or not.
    Raises CheckpointError as ``find_tokenizer`` and ``load_tokenizer``.
    """
    find = find_checkpoint if name.endswith(".gguf") else find_tokenizer
    return load_tokenizer(find(name, options, revision))


def load_tokenizer(home: CheckpointFiles, begin: bool | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer that a checkpoint's files describe; CheckpointError where they are damaged,
    missing, or say what transformers cannot do. begin: see ``begin_texts``, None: as they say.
    """
    from transformers import AutoTokenizer

    remedy = "save the model's tokenizer into the same folder, or name it with --tokenizer PATH|ID"
    path = home.folder / "tokenizer_config.json"
    facts: dict[str, object] = {}
    if home.kind != "gguf":
        if not tokenizer_files(home.folder):
            raise CheckpointError(f"{home.path} has no tokenizer; {remedy}")
        facts = read_json(path) if path.is_file() else {}
        config = home.folder / "config.json"  # by which transformers may choose the class
        if config.is_file():
            check_config(read_json(config), 2**16, home.path)  # weights beside it do not matter
    own_code = home.trusted and bool(facts.get("auto_map"))
    if own_code:
        log.warning(OWN_CODE, home.path, path.name)
    tokenizer: PreTrainedTokenizerBase
    with refusing(f"{home.path}: its tokenizer cannot be loaded", f"; {remedy}"), plain_errors():
        tokenizer = AutoTokenizer.from_pretrained(home.folder, **local_only(home))
    if not getattr(tokenizer, "is_fast", True):
        log.info("%s: its tokenizer has no fast implementation; tokenizing will be slow", home.path)
    elif home.kind == "gguf":
        follow_gguf(tokenizer, home.weights[0])
    elif not own_code and (home.folder / "tokenizer.json").is_file():
        tokenizer = _as_stored(tokenizer, home)
    if begin is not None:
        begin_texts(tokenizer, begin)
    return tokenizer


def begin_texts(tokenizer: Any, asked: bool) -> None:
    """Have every text begin with the begin token, or none; OptionError where that cannot be done
    without another change.
    """
    begin = [tokenizer.bos_token_id]

    def own(ids: list[int]) -> list[int]:
        return ids[1:] if ids[:1] == begin else ids

    before = probe_ids(tokenizer)
    if all((ids[:1] == begin) == asked for ids in before):
        return
    with plain_errors():
        tokenizer.add_bos_token = asked
    after = probe_ids(tokenizer)
    right = all((ids[:1] == begin) == asked for ids in after)
    if not right or [*map(own, before)] != [*map(own, after)]:
        raise OptionError(
            f"add_bos_token={asked}: this tokenizer cannot be made to begin texts "
            f"{'with' if asked else 'without'} its begin token"
        )


def probe_ids(tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Token ids of ``PROBE``; CheckpointError where there is none for a part of it."""
    with plain_errors():
        found = [list(tokenizer(text)["input_ids"]) for text in PROBE]
    if any(token is None for ids in found for token in ids):
        raise CheckpointError(
            "the tokenizer has no id for some texts, nor for its token for unknown words; use the "
            "tokenizer that the model was trained with"
        )
    return found


def _as_stored(tokenizer: Any, home: CheckpointFiles) -> Any:
    """``tokenizer`` where it does what tokenizer.json says, or else that file's own pipeline.
    Transformers 5 takes the vocabulary alone from the file for classes that have rules of their
    own, and trained models do not know the ids that come of it.
    """
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    if type(tokenizer) is PreTrainedTokenizerFast:  # which reads the whole file
        return tokenizer
    with refusing(f"{home.path}: its tokenizer.json cannot be read"), plain_errors():
        stored = Tokenizer.from_file(str(home.folder / "tokenizer.json"))
        stored.no_truncation()
        stored.no_padding()
        right = [stored.encode(text).ids for text in PROBE]
    try:
        found = probe_ids(tokenizer)
    except Exception as error:  # as where the file lacks a token that the class counts on
        found, differs = [], f"it fails: {one_line(error, 80)}"
    if found == right:
        return tokenizer
    told = f"{home.path}: the class {type(tokenizer).__name__}"
    with refusing(f"{told} does not fit tokenizer.json"), plain_errors():
        plain = PreTrainedTokenizerFast.from_pretrained(home.folder, **local_only(home))
    if probe_ids(plain) != right:
        raise CheckpointError(
            f"{told} splits texts otherwise than tokenizer.json; set tokenizer_class in "
            "tokenizer_config.json to PreTrainedTokenizerFast, or save the tokenizer anew"
        )
    for text, ids, own in zip(PROBE, right, found, strict=False):
        if own != ids:
            differs = f"{len(own)} ids instead of {len(ids)} for {one_line(text[:24], 40)}"
            break
    message = (
        "%s has other rules than tokenizer.json (%s); the file's are used, by which the model "
    )
    log.warning(message + "was trained", told, differs)
    return plain


def check_tokenizer(
    tokenizer: PreTrainedTokenizerBase, config: Any, files: CheckpointFiles
) -> None:
    """Raise CheckpointError for another model's, whose babble reads as forgetting."""
    rows = getattr(config.get_text_config(), "vocab_size", 0)
    vocabulary, added = tokenizer.get_vocab(), getattr(tokenizer, "added_tokens_decoder", {})
    top = max(vocabulary.values(), default=-1)
    beyond = {token: n for token, n in vocabulary.items() if n >= rows}
    # Embeddings are often padded to a round number; the most seen in use is some 3%.
    strange = len(beyond) > _MOST_ADDED or any(n not in added for n in beyond.values())
    if not vocabulary or strange or top + 1 < 0.9 * rows:
        raise CheckpointError(
            f"{files.path}: the tokenizer does not match the model: its {len(vocabulary)} tokens "
            f"reach id {top}, and the model's vocabulary has {rows} rows; use the tokenizer that "
            "the model was trained with"
        )
    if beyond and files.kind != "gguf":  # to whose tokenizers transformers adds one of its own
        message = "%s: the model has no row for %d added tokens, as %s; a text that holds one is "
        log.warning(message + "refused", files.path, len(beyond), one_line(min(beyond), 40))
    for token in dict.fromkeys(map(str, tokenizer.all_special_tokens)):
        if re.fullmatch(r"[Ġ▁ ]?\w+", token):
            raise CheckpointError(
                f"the tokenizer lists {one_line(token, 40)!r}, an ordinary word, as a special "
                "token; outputs would lose it. Correct tokenizer_config.json"
            )
    # Dropout (BPE) and sampling (SentencePiece) split a text at random, a device of training.
    text = "".join(f"The harbour opened its gate number {n}, said the mayor. " for n in range(40))
    with plain_errors():
        first = tokenizer(text)["input_ids"]
        steady = all(tokenizer(text)["input_ids"] == first for _ in range(3))
    if not steady:
        raise CheckpointError(
            f"{files.path}: the tokenizer splits the same text now one way, now another; remove "
            "dropout from tokenizer.json, or enable_sampling from tokenizer_config.json"
        )


def tokenizer_sha256(tokenizer: PreTrainedTokenizerBase) -> str:
    """Hash what a tokenizer does, whatever files it came from."""
    # Padding is masked, and trainers often save pad = eos: no other tokenizer for that.
    special = {k: str(v) for k, v in tokenizer.special_tokens_map.items() if k != "pad_token"}
    content: dict[str, Any] = {"special": special}
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        content |= {"class": type(tokenizer).__name__, "vocab": tokenizer.get_vocab()}
    else:
        # Truncation and padding are state of the last call, not of the tokenizer.
        content["backend"] = json.loads(backend.to_str()) | {"truncation": None, "padding": None}
    return content_sha256(content)


def probe_sha256(
    tokenizer: PreTrainedTokenizerBase, rows: int, without: Collection[int] = ()
) -> str:
    """Hash what a tokenizer makes of texts and of ids. However its files put it: not its class, nor
    its options, nor a padding token of its own, which is masked, nor ids beyond the model's rows,
    nor those ``without`` which it is asked for.
    """
    ids = [[n for n in found if n not in without] for found in probe_ids(tokenizer)]
    backend = getattr(tokenizer, "backend_tokenizer", None)
    own = {} if backend is None else json.loads(backend.to_str())["model"]
    added = set(getattr(tokenizer, "added_tokens_decoder", {}))
    padding: set[Any] = {tokenizer.pad_token_id} - {tokenizer.eos_token_id, tokenizer.bos_token_id}
    named = {n for n in added - padding if n < rows} - set(without)
    words = {word: n for word, n in tokenizer.get_vocab().items() if n not in added}
    facts = {
        "ids": ids,
        "texts": [tokenizer.decode(found, skip_special_tokens=True) for found in ids],
        "words": own.get("vocab", words),
        "merges": own.get("merges"),
        "added": {n: tokenizer.decode([n], skip_special_tokens=True) for n in sorted(named)},
        "end": tokenizer.eos_token_id,
    }
    return content_sha256(facts)


def end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Where texts end; CheckpointError for ordinary words, which would pass for forgetting."""
    config: Any = getattr(model, "generation_config", None)
    listed = named_ends(getattr(config, "eos_token_id", None))
    special = {tokenizer.eos_token_id, *tokenizer.all_special_ids}
    special |= set(getattr(tokenizer, "added_tokens_decoder", {}))
    odd = [token for token in listed if type(token) is not int or token not in special]
    if odd:
        stated = map(repr, named_ends(getattr(model.config, "eos_token_id", None)))
        where = "" if repr(odd[0]) in stated else "generation_"
        raise CheckpointError(
            f"{where}config.json ends texts at token {one_line(odd[0], 40)}, an ordinary word "
            "of the tokenizer; correct its eos_token_id"
        )
    ids: list[Any] = [*listed, *named_ends(tokenizer.eos_token_id)]
    return tuple(dict.fromkeys(map(int, ids)))


def reward_ids(tokenizer: Any, rows: int) -> tuple[int, ...]:
    """The ids of ``REWARD`` tokens, below ``rows``."""
    name = re.compile(re.escape(REWARD).replace(r"\{\}", r"\d+"))
    added = getattr(tokenizer, "added_tokens_decoder", {}).items()
    found = (n for n, token in added if token.special and name.fullmatch(token.content))
    return tuple(sorted(n for n in found if n < rows))


def unsteered_sha256(tokenizer: PreTrainedTokenizerBase, rows: int) -> str | None:
    """``probe_sha256`` without ``REWARD`` tokens. None where there are none, or they stand where a
    text would be scored with them.
    """
    steers = set(reward_ids(tokenizer, rows))
    if not steers or any(steers & set(ids[REWARD_PLACES:]) for ids in probe_ids(tokenizer)):
        return None
    return probe_sha256(tokenizer, rows, steers)


def require_open_end(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> None:
    """Raise CheckpointError where the tokenizer ends texts by itself."""
    ends = end_tokens(model, tokenizer)
    if any(ids and ids[-1] in ends for ids in probe_ids(tokenizer)):
        raise CheckpointError(
            "the tokenizer ends texts with an end-of-text token, which would stand before answers "
            "and be scored with texts; set add_eos_token to false, or take it out of tokenizer.json"
        )


def padding_id(tokenizer: Any, rows: int, default: int = 0) -> int:
    """An id below ``rows`` to fill up with; masked, so any serves."""
    own = tokenizer.pad_token_id
    return int(own) if own is not None and int(own) < rows else default


def masked_id(tokenizer: Any) -> int:
    """The id that open-unlearning's mask hides wherever it stands: the padding token's, or, where
    there is none, the end token's, which it pads with. OptionError where there is neither.
    """
    ids = (tokenizer.pad_token_id, tokenizer.eos_token_id)
    found = next((int(each) for each in ids if each is not None), None)
    if found is None:
        raise OptionError("--mask-pad-id: the tokenizer has no padding token and no end token")
    return found


def thought_end(tokenizer: Any, asked: str | None) -> int | None:
    """The id of ``--think-end-token``, which may be one itself; OptionError where it is no single
    token of the tokenizer's.
    """
    if asked is None:
        return None
    if asked.isdecimal() and int(asked) < len(tokenizer):
        return int(asked)
    ids = list(tokenizer(asked, add_special_tokens=False)["input_ids"])
    if len(ids) != 1 or ids[0] == tokenizer.unk_token_id:
        raise OptionError(
            f"--think-end-token {one_line(asked, 40)}: no single token of the checkpoint's "
            "tokenizer, so its model was not trained to end thoughts with it"
        )
    return int(ids[0])


def named_ends(named: object) -> list[object]:
    """``eos_token_id`` of a config as a list: it may be one id, several or none."""
    found = named if isinstance(named, list) else [named]
    return [token for token in found if token is not None]
