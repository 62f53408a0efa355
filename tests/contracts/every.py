"""What becomes of everything that transformers has: ``python -m tests.contracts.every [NAME...]``
writes ``every.json``, of which ``make field`` makes tables, for all or for the names given.
"""

from __future__ import annotations

import json
import logging
import sys
import tempfile
from pathlib import Path

from tests.contracts.every_architecture import architectures, outcome
from tests.contracts.every_tokenizer import outcomes, tokenizer_classes
from tests.field import EVERY

_OWN_TYPE = "transformers saves its text model under a type that it does not load"
_DRAFTS = "drafts for another model, whose states it takes"
_SIZES = "fails in transformers itself at the sizes that were tried"
_SOUND = "continues sound"
_FILES = "wants vocabulary files of a kind of its own"
# Why plain transformers has nothing to compare with.
CANNOT = {
    "blt": "its config does not say what transformers' generate asks for",
    "dots3_note": "its settings by layer are for its own size alone",
    **dict.fromkeys(("emu3", "mllama"), _OWN_TYPE),
    "gemma3n": "timm is not installed",
    **dict.fromkeys(("gemma4_assistant", "gemma4_unified_assistant"), _DRAFTS),
    **dict.fromkeys(("musicgen", "musicgen_melody"), _SOUND),
    "prophetnet": "transformers' generate refuses its positions",
    **dict.fromkeys(("hrm_text", "qwen4_exp", "qwen4_exp_text", "reformer", "xlstm"), _SIZES),
    **dict.fromkeys(
        ("BartphoTokenizer", "CpmTokenizer", "PLBartTokenizer"), "SentencePiece is not installed"
    ),
    **dict.fromkeys(
        ("BioGptTokenizer", "FSMTTokenizer", "FlaubertTokenizer", "XLMTokenizer"),
        "sacremoses is not installed",
    ),
    **dict.fromkeys(("CpmAntTokenizer", "RoFormerTokenizer"), "rjieba is not installed"),
    **dict.fromkeys(("BertweetTokenizer", "BlenderbotSmallTokenizer", "PhobertTokenizer"), _FILES),
    **dict.fromkeys(("GPTNeoXJapaneseTokenizer", "MgpstrTokenizer", "MyT5Tokenizer"), _FILES),
    **dict.fromkeys(("PegasusTokenizer", "RoCBertTokenizer", "VitsTokenizer"), _FILES),
    "Wav2Vec2PhonemeCTCTokenizer": _FILES,
    **dict.fromkeys(("ParakeetTokenizer", "MarkupLMTokenizer"), "is not made of text alone"),
    "RagTokenizer": "is two tokenizers",
}


def with_reason(name: str, found: str) -> str:
    """``found``, or why there is nothing to compare; an error that is not in ``CANNOT`` stays."""
    if found.startswith(("not made: ", "transformers cannot: ")) and name in CANNOT:
        return f"not compared: {CANNOT[name]}"
    return found


def find_outcome(name: str) -> str | list[str]:
    """Of a model type, or of a tokenizer class: over its own rules, and over others."""
    notes: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: notes.append(record.getMessage())  # type: ignore[method-assign]
    log = logging.getLogger("unlearnbench")
    log.addHandler(handler)
    try:
        with tempfile.TemporaryDirectory() as folder:
            if name in architectures():
                return with_reason(name, outcome(name, Path(folder)))
            return [with_reason(name, own) for own in outcomes(name, Path(folder), notes)]
    finally:
        log.removeHandler(handler)


def main(names: list[str]) -> None:
    known = json.loads(EVERY.read_text(encoding="utf-8")) if names else {}
    for name in names or [*architectures(), *tokenizer_classes()]:
        known[name] = find_outcome(name)
        print(f"{name}: {known[name]}", flush=True)
    EVERY.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
