"""The demo's starting point: a tiny Llama with random weights, and a tokenizer of the corpus."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unlearnbench.tasks.rows import PACKAGE_DATA

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

DATA = PACKAGE_DATA / "unlearnbench" / "demo"
FORGET = (str(DATA / "raw/forget.jsonl"), "task:demo_knowmem_f")
RETAIN = (str(DATA / "raw/retain.jsonl"), "task:demo_knowmem_r")
_FILES = ("raw/forget", "raw/retain", "raw/holdout", "knowmem/forget_qa", "knowmem/retain_qa")
_VOCABULARY = 1024


def make_start(folder: Path, seed: int) -> Path:
    """Save the model and the tokenizer into ``folder``."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = _tokenizer()
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=1,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _tokenizer() -> PreTrainedTokenizerFast:
    """Trained on every text of the corpus, in the order of the files."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=_VOCABULARY,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    corpus = "".join((DATA / f"{name}.jsonl").read_text(encoding="utf-8") for name in _FILES)
    rows: list[dict[str, Any]] = [json.loads(line) for line in corpus.splitlines()]
    texts = [r.get("text") or f"Question: {r['question']}\nAnswer: {r['answer']}" for r in rows]
    backend.train_from_iterator(texts, trainer)
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 0)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",  # noqa: S106
        eos_token="</s>",  # noqa: S106
        clean_up_tokenization_spaces=False,
    )
