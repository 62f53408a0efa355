"""What a run produces: one record a sample, one result a task, one result file a condition.

These types are the file format (docs/result-format.md); ``format_version`` counts its changes.
Files of format 1 are read too, see ``upgrade``.
A field that was not measured is absent: never null, never NaN, never 0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, TypeAlias, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, model_validator

FORMAT_VERSION: Literal[2] = 2

FULL = "none"
"""The condition of a checkpoint as it is stored."""
DEPLOYED = "deployed:"
"""What conditions begin with whose weights another tool quantized."""
STORED = (FULL, "fp32", "bf16", "fp16")
"""Conditions that quantize nothing: the checkpoint as it is, or in another storage dtype."""
DTYPE_BITS = {"fp32": 32.0, "bf16": 16.0, "fp16": 16.0}
"""Bits of a compute dtype's numbers."""
ON_GRID = 1e-5
"""Below this an error is one of rounding, see ``Proof.on_grid``."""

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


def _not_null(value: object) -> object:
    if value is None:
        raise ValueError("null; what was not measured is absent")
    return value


_GIVEN = BeforeValidator(_not_null)
Count: TypeAlias = Annotated[int | None, _GIVEN]
Interval = Annotated[tuple[float, float], Field(strict=False)]
Limit: TypeAlias = Annotated[int | float | None, Field(gt=0)]


Role = Literal["unlearned", "control", "target", "retrained"]
ANCHORS: tuple[Role, ...] = ("target", "retrained")


class Document(BaseModel):
    """What is made of runs, as a board's entry or a certificate: no unknown field, only numbers."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True
    )


class _File(Document):
    model_config = ConfigDict(strict=True, protected_namespaces=())


P = TypeVar("P")
Listed: TypeAlias = Annotated[tuple[P, ...], Field(strict=False)]
Share: TypeAlias = Annotated[float, Field(ge=0, le=1)]


class AskedAs(_File):
    """How a condition put a sample to the model, where that was not as the task does."""

    prompt: Annotated[str | None, _GIVEN] = None
    """What the model continued in place of the record's prompt."""
    rows: Annotated[Listed[str] | None, _GIVEN] = None
    """The ids of the rows that were shown as hints."""
    scores: Annotated[Listed[Share] | None, _GIVEN] = None
    """Of every answer that was drawn; the record's is the best of them, the first of several."""
    search: Count = Field(default=None, ge=0)
    """The number of the search whose suffix was behind the question, among the task's
    ``searches``: one that had not seen it."""


class GenerationRecord(_File):
    """One prompt, what the model wrote, and how it compares with the target."""

    task: str
    id: str
    """``<split>/<row>``, rows counted from 0 in file order."""
    prompt: str
    output: str
    target: str
    n_tokens: Count = Field(default=None, ge=0)
    """Tokens generated, an end-of-text token not counted; absent in imported records."""
    score: float = Field(ge=0, le=1)
    """The task's metric for this sample, from 0 to 1."""
    scores: dict[str, Annotated[float, Field(ge=0, le=1)]]
    """The metric's further figures, from 0 to 1."""
    asked: Annotated[AskedAs | None, _GIVEN] = None
    """Absent where it was asked as the task does."""

    def with_texts(self, change: Callable[[str], str]) -> GenerationRecord:
        """The same with every text changed."""
        texts = {key: change(getattr(self, key)) for key in ("prompt", "output", "target")}
        asked = self.asked
        if asked is not None and asked.prompt is not None:
            asked = asked.model_copy(update={"prompt": change(asked.prompt)})
        return self.model_copy(update={**texts, "asked": asked})


class LikelihoodRecord(_File):
    """One text's attack scores; lower looks more like training data."""

    task: str
    id: str
    split: str
    n_tokens: Count = Field(default=None, gt=0)
    """Tokens scored: all but the first; absent in imported records."""
    scores: dict[str, float] = Field(min_length=1)

    def with_texts(self, change: Callable[[str], str]) -> LikelihoodRecord:
        return self


Fact: TypeAlias = str | int | float | bool | list[str] | list[float]


class AnswerRecord(_File):
    """One sample of a kind of task that has no record of its own."""

    task: str
    id: str
    facts: dict[str, Fact]
    """What was asked and answered, as the kind of task writes it."""
    score: float = Field(ge=0, le=1)
    """The task's metric for this sample, from 0 to 1."""
    scores: dict[str, Annotated[float, Field(ge=0, le=1)]] = {}
    """Further figures, from 0 to 1."""

    def with_texts(self, change: Callable[[str], str]) -> AnswerRecord:
        def changed(fact: Any) -> Any:
            if isinstance(fact, list):
                return [changed(part) for part in fact]
            return change(fact) if isinstance(fact, str) else fact

        return self.model_copy(update={"facts": {k: changed(f) for k, f in self.facts.items()}})


SampleRecord: TypeAlias = GenerationRecord | LikelihoodRecord | AnswerRecord
RECORD_ADAPTER: TypeAdapter[SampleRecord] = TypeAdapter(SampleRecord)


class TokenizerSource(_File):
    """Where a tokenizer is from that is not the checkpoint's own."""

    path: str
    """As given to ``--tokenizer``: a folder or a hub id."""
    revision: str | None = None
    """The hub commit that was loaded; absent for local files."""


class Checkpoint(_File):
    """Which model was measured. Hashes identify it; names do not."""

    path: str
    """As given: a folder, a file or a hub id."""
    revision: str | None = None
    """The hub commit that was loaded; absent for local files."""
    format: Literal["safetensors", "pickle", "gguf", "adapter", "scripted", "imported"]
    weights_sha256: Sha256
    """One file: its SHA-256. Several: the SHA-256 of ``sha256sum``'s lines, in name order. Of an
    imported run: of the files it was made from, since the weights are not known."""
    tokenizer_sha256: Sha256
    """Of the tokenizer's content (vocabulary, merges, normalization, special tokens)."""
    tokenizer_probe_sha256: Sha256 | None = None
    """Of what the tokenizer does: its ids and texts on a probe, its words, merges and ends. By it
    two runs' tokenizers are compared; absent in older files, where the content's hash holds."""
    tokenizer_unsteered_sha256: Sha256 | None = None
    """The same but for tokens that steer the model (Quark's), by which it is compared with another
    checkpoint's; absent where there are none."""
    tokenizer: TokenizerSource | None = None
    """Absent where the tokenizer is the checkpoint's own, or its base's."""
    config_sha256: Sha256 | None = None
    """Of ``config.json``'s content, sorted keys, with an adapter's and with the end-of-text ids of
    ``generation_config.json`` where these are others."""
    origin: dict[str, str] = {}
    """What is known of how the weights came about: a GGUF file's tensor types, or the scheme of a
    checkpoint that is quantized already."""
    adapter: Literal["merged", "kept"] | None = None
    base: Checkpoint | None = None
    """An adapter's base model."""


class CalibrationData(_File):
    """The texts that a calibrated condition saw."""

    name: str
    """generic, forget, retain, or the file's name."""
    samples: int = Field(gt=0)
    """Texts used."""
    max_tokens: int = Field(gt=0)
    """Each text was cut to this many tokens."""
    seed: int = Field(ge=0)
    """Chose the texts and their order."""
    sha256: Sha256
    """Of the texts used, in order, as a JSON array."""


class Proof(_File):
    """What was seen in the loaded model that shows the condition to be in force."""

    module_types: dict[str, int]
    """Linear modules by class."""
    covered_modules: dict[str, int]
    """The modules that were quantized, pruned or the like, layers' numbers written as ``*``, and
    how many there are of each."""
    uncovered: dict[str, int]
    """Weights of every tensor that stays as it is (embeddings, norms, output head), by name with
    layers' numbers written as ``*``."""
    weights_by_dtype: dict[str, int]
    """Stored parameters by dtype; a packed 4-bit dtype counts its bytes."""
    covered_weights: int = Field(ge=0)
    """Weights that lie in covered modules, counted before packing."""
    total_weights: int = Field(gt=0)
    weight_bytes: int = Field(gt=0)
    """Bytes of all parameters and quantization constants, quantized ones as packed."""
    compared_modules: int = Field(ge=0)
    """Covered modules whose values were compared with the checkpoint's: all of them, or in a large
    model some of every kind from all depths."""
    changed_share: float | None = Field(default=None, ge=0, le=1)
    """Share of the compared weights whose value is not the checkpoint's."""
    relative_error: float | None = Field(default=None, ge=0)
    """RMS of (weight in force - weight of the checkpoint) / RMS of the latter, over the modules
    that were compared; absent where none was."""
    mean_relative_error: float | None = Field(default=None, ge=0)
    """Mean over the compared modules of each one's relative error."""
    max_relative_error: float | None = Field(default=None, ge=0)
    """The largest relative error of one module."""
    max_error_module: str | None = None
    on_grid: bool
    """The checkpoint's weights already were as the condition makes them: it changed nothing but
    rounding errors below 1e-5."""
    codes: int | None = None
    """Most distinct values in one group (block, or output channel) of a compared module; absent
    where nothing is quantized."""
    figures: dict[str, float] | None = None
    """What shows a condition of its kind, over the weights that were compared: ``zero_share`` of a
    pruned model; ``noise_level`` and ``noise_mean`` of a noised one, in standard deviations of each
    matrix of the checkpoint; of a relearned one ``steps``, the first step's loss and the
    last's, and the cost: ``forward_passes`` and ``backward_passes`` (texts run through the model),
    ``seconds``; of a deployed one how far it is from the checkpoint, see docs/deployed.md. Absent
    where nothing more is to be shown."""
    stored: dict[str, dict[str, int]] | None = None
    """Of a deployed checkpoint: tensors, layers' numbers written as ``*``, and how many of each are
    stored as what. Absent for what unlearnbench quantized itself."""


class DeployedFile(_File):
    """The checkpoint whose weights were measured in place of the entry's own: another tool made
    them of it.
    """

    path: str
    """As given: a ``.gguf`` file, a folder or a hub id."""
    revision: str | None = None
    format: Literal["gguf", "safetensors"]
    weights_sha256: Sha256
    """As of a checkpoint; of a split file over all of its parts."""


class ConditionOptions(_File):
    """How a condition was made. Fields beyond these are the options of its kind, as ``block_size``
    or ``share``.
    """

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, str | int | float | bool] = Field(init=False)

    bits: float | None = Field(default=None, gt=0)
    """Bits of a weight as products take it, without its scale: where the compute dtype is narrower
    than what is stored, the compute dtype's. Absent where an imported run says nothing."""
    scheme: str
    """What was done to the weights, in words."""
    backend: str
    """The library that did it."""
    kernel: Literal["native", "dequantized"] | None = None
    """How products were computed: by the library's own kernel, or with the quantized weights
    written back in the compute dtype. Absent where nothing is quantized."""
    calibration: CalibrationData | None = None
    """Absent for a condition that needs no texts."""

    @property
    def further(self) -> dict[str, str | int | float | bool]:
        """The options of its kind."""
        return dict(self.model_extra or {})


class Condition(_File):
    """How the checkpoint was met: as stored, quantized, pruned and so on, seen to be in force."""

    name: str = Field(pattern=r"^(deployed:)?[A-Za-z0-9][A-Za-z0-9._+-]*$", max_length=80)
    """In full; the run folder's name too. ``A+B`` is A, and then B; ``deployed:X`` is X as another
    tool made it."""
    kind: str = Field(pattern=r"^[a-z][a-z_-]*$", max_length=40)
    """stored, quantized, deployed, pruned, noised, merged, relearned, asked, and of ``A+B`` both,
    as pruned-quantized; unknown where an imported run does not say."""
    options: ConditionOptions
    deployed: DeployedFile | None = None
    """Where the weights come from, if not from the checkpoint."""
    first: Condition | None = None
    """Of ``A+B``: A, with its own options and proof; the others are B's. Absent for one alone."""
    proof: Proof | None = None
    """Absent only for a scripted model, which has no weights, and for imported runs."""


class SplitData(_File):
    """The rows that a task read from one split."""

    split: str
    rows: int = Field(gt=0)
    """All rows of the split; a limit applies later."""
    sha256: Sha256
    source: Literal["local", "package", "hub"]
    drift: str | None = None
    """How the rows differ from the task's pin, where the user allowed that."""


class Environment(_File):
    """Where and with what a task was measured."""

    unlearnbench: str
    git_hash: str | None = None
    """unlearnbench's own commit, "-dirty" appended for a changed tree; absent in a wheel."""
    source_sha256: Sha256
    """Of unlearnbench's own source files."""
    python: str
    platform: str
    packages: dict[str, str]
    device: str
    dtype: str
    threads: int = Field(gt=0)
    batch_size: str
    attention: str | None = None
    """What ``--attention`` asked for, or flash_attention_2 where auto took it; absent where auto
    left transformers' own choice."""
    compiled: bool | None = None
    """True where torch.compile made the layers' code; absent otherwise."""
    products: str | None = None
    """Layers' products that are not torch's own: ``1536x576 WAY/WAY``, for few rows and for many;
    ``onednn``, ``packed`` (its weight in oneDNN's order) or ``turned`` (weight times rows)."""


class AttackResult(_File):
    """One membership attack's AUC."""

    auc: float = Field(ge=0, le=1)
    stderr: float | None = Field(default=None, ge=0)
    ci: Interval | None = None


class AucReference(_File):
    """Where PrivLeak's zero comes from."""

    auc: float = Field(gt=0, le=1)
    kind: Literal["run", "stated"]
    source: str
    weights_sha256: Sha256 | None = None
    """The retrained model's, for a run."""


class SearchFound(_File):
    """A suffix that a condition searched for, and what that cost."""

    searched_on: Listed[str] = Field(min_length=1)
    """The ids of the samples that the search saw; it was tested on others."""
    suffix: str | None = None
    """Its text; absent for a continuous one."""
    sha256: Sha256 | None = None
    """Of a continuous one's numbers, little-endian fp32."""
    loss_before: float
    """Mean negative log-probability of an answer's token (nats), over the samples searched on, with
    the suffix that the search began with."""
    loss: float
    """The same with the one that it found."""
    steps: int = Field(ge=0)
    forward_passes: int = Field(gt=0)
    """Rows run through the model: one text each."""
    backward_passes: int = Field(ge=0)
    seconds: float = Field(ge=0)


class LeakFigures(_File):
    """What several answers drawn to each question say, in percent, as means over the questions."""

    draws: int = Field(gt=0)
    """Answers drawn to each."""
    threshold: float
    """The least score of an answer that counts as a leak, from 0 to 1."""
    leak: dict[str, float]
    """By k: the chance that one of k answers leaks (leak@k)."""
    best: dict[str, float]
    """By k: the mean best score of k answers."""
    leak_bound: float
    """Of each question's 95% upper bound on the chance that an answer leaks (Clopper-Pearson)."""
    mean_bound: float
    """Of each question's 95% upper bound on the mean score of an answer (DKW)."""


class DraftFigures(_File):
    """How far answers were verified against drafts: what was known of them from other conditions
    or a reference run. Sums over the answers of a task.
    """

    answers: int = Field(gt=0)
    """Answers of the batches in which there were drafts."""
    tokens: int = Field(ge=0)
    """Their tokens, an end-of-text token not counted."""
    drafted: int = Field(ge=0)
    """Tokens of drafts, and of what was looked up behind them, that were run."""
    accepted: int = Field(ge=0)
    """Those of them that the model chose itself."""
    passes: int = Field(gt=0)
    """Forward passes, each counted for every answer that had a token in it; without drafts one
    for every token."""


class Drawn(_File):
    """How the samples of a result that rests on a part of them were taken: the first in the order
    that ``seed`` gives (``check --until-decided``).
    """

    seed: int = Field(ge=0)
    of: int = Field(gt=0)
    """Draws that there are; of a likelihood task each asks a text of each split."""


class TaskResult(_File):
    """One task's result."""

    version: float
    metric: str
    want: Literal["low", "high", "zero"]
    value: float | None = None
    """ROUGE: 0 to 100. PrivLeak: its own scale, absent where no reference was given."""
    stderr: float | None = Field(default=None, ge=0)
    """Standard error of ``value``; absent for a single sample."""
    ci: Interval | None = None
    """95% interval of ``value``."""
    intervals: Literal["bounded"] | None = None
    """How ``ci`` and the AUCs' intervals were computed; absent in older files: percentile
    bootstrap."""
    n: int = Field(gt=0)
    """Samples; for a likelihood task, texts in each split."""
    data: tuple[SplitData, ...] = Field(strict=False)
    task_sha256: Sha256
    """Of the task's definition, so that two tasks of one name and version can be told apart."""
    records_sha256: Sha256
    """Of ``samples/<task>.jsonl``."""
    scores: dict[str, float] = {}
    """Means of the records' further figures, 0 to 100."""
    empty_outputs: int | None = Field(default=None, ge=0)
    """Outputs without any text. Legitimate for a broken model, and worth a look."""
    auc: float | None = Field(default=None, ge=0, le=1)
    auc_stderr: float | None = Field(default=None, ge=0)
    auc_ci: Interval | None = None
    auc_reference: AucReference | None = None
    attack: str | None = None
    """The attack behind ``auc``."""
    attacks: dict[str, AttackResult] | None = None
    unchanged: Literal[True] | None = None
    """True where the condition changes what a model is asked and does not fit this task, which was
    asked as it is: no measurement of the condition. Absent otherwise."""
    sampled: Literal[True] | None = None
    """True where the task's own decoding draws, so that the seed moves its answers."""
    leak: LeakFigures | None = None
    """Absent where one answer was asked for."""
    searches: Listed[SearchFound] | None = None
    """Absent where the condition searches for nothing."""
    drafts: DraftFigures | None = None
    """Absent where nothing was known of the answers, or the model verifies no drafts."""
    drawn: Drawn | None = None
    """Of a gate that was decided early; absent where all samples were asked."""
    environment: Environment | None = None
    """Where and with what it was measured; absent in older files and imported runs, where the
    run's own holds."""

    @model_validator(mode="after")
    def _measured(self) -> TaskResult:
        if self.value is None and self.auc is None:
            raise ValueError("a task result without value and without auc measures nothing")
        return self


class Settings(_File):
    """What, besides checkpoint and condition, makes two runs comparable. A run folder holds one."""

    protocol: str
    dtype: str
    """Compute dtype."""
    device: str
    """Kind of device: cpu, cuda."""
    seed: int = Field(ge=0)
    limit: Limit = None
    """First rows of each split that were used, or below 1 their share, rounded up; absent for
    all."""
    held_back: str | None = Field(default=None, pattern=r"^[1-9][0-9]{0,3}-of-[1-9][0-9]{0,3}$")
    """``K-of-M``: of every M rows of a forget task K, drawn by the seed, were held back, to be
    relearned (``--relearn-on``), and not asked; absent where none was."""
    ppl_lower: bool
    """Whether the lower-cased texts were scored too."""
    gradnorm: Literal[True] | None = None
    """True where texts were scored by their loss's gradient too; absent otherwise."""
    chat_template_sha256: Sha256 | None = None
    """Of the chat template that the prompts of generation tasks went through; absent without."""
    date_string: str | None = None
    """The day that the chat template was told; absent where it reads none."""
    enable_thinking: bool | None = None
    """Whether the chat template was told to let the model think; absent where it reads nothing of
    the kind."""
    think_end_token: str | None = None
    """The token, or its id, behind which answers were taken to begin; absent without."""
    add_bos_token: bool | None = None
    """Whether texts were made to begin with the begin token; absent where the tokenizer decided."""
    max_length: int | None = Field(default=None, gt=0)
    """The context in tokens that ``--max-length`` asked for; absent where it was the model's."""
    gen_kwargs: str | None = None
    """What ``--gen-kwargs`` put in place of the tasks' own decoding, as JSON; absent without."""
    backend: Literal["vllm"] | None = None
    """What generated the answers, where it was not transformers."""
    mask_pad_id: Literal[True] | None = None
    """True where the padding token's id was masked wherever it stood in a text, as open-unlearning
    does; absent where the mask hid padding alone."""
    truncate_left: bool | None = None
    """True where prompts beyond the model's context lost their beginning; absent otherwise."""


class HarnessMetric(_File):
    """One metric of an lm-eval task, behind one of its filters."""

    name: str
    filter: str
    value: float
    """In lm-eval's own unit: an accuracy lies between 0 and 1."""
    stderr: float | None = Field(default=None, ge=0)
    """lm-eval's; absent where it gives none."""
    higher_is_better: bool | None = None


class HarnessResult(_File):
    """What lm-evaluation-harness measured of one of its tasks or groups, on this run's model."""

    kind: Literal["task", "group"]
    version: str
    """The task's own."""
    lm_eval: str
    """The version of lm-eval."""
    chance: float | None = Field(default=None, gt=0, lt=1)
    """The accuracy of guessing, of tasks with choices; absent for others, and in older files."""
    metrics: tuple[HarnessMetric, ...] = Field(min_length=1, strict=False)
    """In the task's own order; the first is what tables show."""
    n: int = Field(gt=0)
    """Documents evaluated."""
    num_fewshot: int | None = Field(default=None, ge=0)
    config_sha256: Sha256 | None = None
    """Of the task's configuration as lm-eval writes it, without paths; absent for a group."""
    documents_sha256: Sha256 | None = None
    """Of lm-eval's hashes of every document, prompt and target, in order; absent for a group."""
    samples_sha256: Sha256 | None = None
    """Of ``lm_eval/samples_<task>.jsonl``; absent for a group."""
    subtasks: tuple[str, ...] | None = Field(default=None, strict=False)
    """The tasks that a group's metrics are made of; absent for a task."""
    environment: Environment | None = None
    """As a task's of ours; absent for a group, whose tasks have theirs."""


class ImportedFrom(_File):
    """Another tool's results that a run was made from: rescored, not measured here."""

    format: Literal["muse", "lm-eval", "open-unlearning", "tofu"]
    files: dict[str, Sha256]
    """Every file read, by its path below the imported folder."""
    stated: dict[str, float]
    """What the files state, by ``<task>/<figure>``, in their own units."""
    differences: dict[str, float]
    """Ours minus theirs, where they differ; ``<task>/<record id>/<figure>`` for single records."""


class RunResult(_File):
    """One checkpoint under one condition: the content of ``run.json``."""

    format_version: Literal[2] = FORMAT_VERSION
    checkpoint: Checkpoint
    condition: Condition
    protocol: str
    settings: Settings
    tasks: dict[str, TaskResult]
    harness: dict[str, HarnessResult] | None = None
    """Results of lm-eval's tasks, by their names there; absent where none was run."""
    environment: Environment
    """The last command's; each task has the one that it was measured in."""
    imported: ImportedFrom | None = None
    """Absent for a run that was measured; else ``environment`` is the importer's."""
    created: str = Field(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$")
    """When the last task was finished, UTC."""

    @model_validator(mode="before")
    @classmethod
    def _of_format_1(cls, content: Any) -> Any:
        return upgrade(content)


# What format 1 called otherwise, by the name there.
_RUN_OF_1 = {"precision": "condition", "precisions": "conditions"}
_PROOF_OF_1 = {
    "quantized_modules": "covered_modules",
    "unquantized": "uncovered",
    "quantized_weights": "covered_weights",
}


def upgrade(content: Any) -> Any:
    """The content of a run or a certificate of format 1 as format 2 has it; anything else as it is.
    Raises ValueError where its precision has what none of format 1 has.
    """
    if not isinstance(content, dict) or not content.keys() & {"precision", "evidence"}:
        return content
    version = content.get("format_version", 1 if "precision" in content else FORMAT_VERSION)
    if version != 1 or version is True:
        return content
    new = _renamed(content, _RUN_OF_1)
    if isinstance(new.get("condition"), dict):
        new["condition"] = _condition(new["condition"])
    if isinstance(new.get("evidence"), list):
        new["evidence"] = [_renamed(part, _RUN_OF_1) for part in new["evidence"]]
    return new | {"format_version": FORMAT_VERSION}


def _renamed(content: Any, names: Mapping[str, str]) -> Any:
    if not isinstance(content, dict):
        return content
    if content.keys() & names.values():
        raise ValueError("names of another format_version")
    return {names.get(key, key): value for key, value in content.items()}


def _condition(old: dict[str, Any]) -> dict[str, Any]:
    fields, options = ConditionOptions.model_fields.keys(), old.get("options", {})
    if old.keys() - fields - {"name", "options", "proof"}:
        raise ValueError("precision: unknown fields")
    if not isinstance(options, dict) or options.keys() & fields:
        raise ValueError("precision.options: not the options of a precision")
    new = {"name": old.get("name"), "kind": kind_of_precision(str(old.get("name")))}
    new["options"] = {key: value for key, value in old.items() if key in fields} | options
    return new | ({"proof": _renamed(old["proof"], _PROOF_OF_1)} if "proof" in old else {})


def kind_of_precision(name: str) -> str:
    """The kind of condition that a precision's name stands for, where nothing else is known."""
    if name == "unknown":
        return name
    return "stored" if name in STORED else "quantized"
