"""Several processes: the same losses and weights as one, whole or sharded, and who does what."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.cli.test_main import call
from tests.conftest import CORPUS, Toy, write_jsonl
from unlearnbench.errors import OptionError
from unlearnbench.training import sharding
from unlearnbench.training.rounded import PLAIN, Survive

# As `accelerate launch --use_fsdp --fsdp_version 2 ...` sets them.
FSDP = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_TRANSFORMER_CLS_TO_WRAP": "LlamaDecoderLayer",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "false",
}
SURE = ["--method", "ga_gdr_sure", "--lr", "1e-3", "--max-steps", "4", "--save-steps", "2"]
SURVIVE = ["--method", "ga_gdr", "--survive", "rtn-int4", "--micro-batch-size", "1"]
SURVIVE += ["--max-steps", "3", "--save-steps", "0"]
LORA = ["--method", "npo_klr", "--lora-rank", "4", "--max-steps", "3", "--save-steps", "0"]


class Two:
    """Runs of one launch of two processes. ``command`` is the rest of a command line, for one
    process too.
    """

    def __init__(self, root: Path, tiny: Path, toy: Toy) -> None:
        self.root = root
        # Texts of very different lengths, so that token weights matter.
        texts = [CORPUS[n] * (1 + 3 * (n % 3)) for n in range(8)]
        write_jsonl(root / "forget.jsonl", [{"text": t} for t in texts])
        write_jsonl(root / "retain.jsonl", [{"text": t} for t in CORPUS[20:27]])
        self._shared = [
            *("unlearn", "--model", str(tiny), "--forget", str(root / "forget.jsonl")),
            *("--retain", str(root / "retain.jsonl"), "--lr", "1e-4"),
            *("--batch-size", "4", "--max-length", "96"),
        ]
        selecting = ["--eval-tasks", "toy_knowmem_f", "--retrained", "-1", "--eval-steps", "5"]
        selecting += ["--data-dir", str(toy.data), "--include-path", str(toy.tasks)]
        npo = ["--method", "npo_klr", "--max-steps", "10", "--save-steps", "0", *selecting]
        sharded = {"environment": FSDP, "accelerators": True}
        runs = [
            self._run("ddp", npo),
            self._run("ddp_survive", SURVIVE),
            self._run("fsdp", npo, **sharded),
            self._run("fsdp_lora", LORA, **sharded),
            self._run("fsdp_sure", SURE, **sharded, stop_at=3),
            self._run("fsdp_sure", [*SURE, "--resume"], **sharded),
            self._run("unsharded", LORA, environment=FSDP),
            self._run("uneven", [*LORA, "--batch-size", "3"]),
        ]
        self.done = self._launch(runs)
        for name, rest in (
            ("one", npo),
            ("one_lora", LORA),
            ("one_sure", SURE),
            ("one_survive", SURVIVE),
        ):
            assert call(*self.command(name, rest)) == 0

    def command(self, name: str, rest: list[str]) -> list[str]:
        return [*self._shared, *rest, "--out", str(self.root / name)]

    def _run(self, name: str, rest: list[str], **more: Any) -> dict[str, Any]:
        return {"arguments": self.command(name, rest), **more}

    def _launch(self, runs: list[dict[str, Any]]) -> subprocess.CompletedProcess[str]:
        (self.root / "runs.json").write_text(json.dumps(runs), encoding="utf-8")
        launch = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
        launch += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
        launch += ["--main_process_port", "0", "-m", "tests.training.launched"]
        return subprocess.run(
            [sys.executable, *launch, str(self.root / "runs.json")],
            capture_output=True,
            text=True,
            timeout=300,
            env={**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"},
            check=False,
        )

    def record(self, name: str) -> dict[str, Any]:
        content: dict[str, Any] = json.loads((self.root / name / "unlearning.json").read_bytes())
        return content

    def weights(self, name: str, file: str = "model") -> dict[str, torch.Tensor]:
        return load_file(self.root / name / f"{file}.safetensors")


@pytest.fixture(scope="module")
def two(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Two:
    root = tmp_path_factory.mktemp("two")
    return Two(root, tiny, Toy(root / "toy"))


@pytest.mark.slow
@pytest.mark.ci
def test_each_run_ends_as_it_should(two: Two) -> None:
    assert two.done.returncode == 0, two.done.stderr[-3000:]
    assert "statuses [0, 0, 0, 0, -1, 0, 2, 2]" in two.done.stdout, two.done.stderr[-3000:]
    assert two.done.stdout.count("npo_klr, 10 steps") == 2, "one process of each speaks"


@pytest.mark.slow
@pytest.mark.ci
@pytest.mark.parametrize(
    ("one", "name", "steps"),
    [("one", "ddp", 10), ("one", "fsdp", 10), ("one_survive", "ddp_survive", 3)],
)
def test_two_processes_give_the_losses_of_one(two: Two, one: str, name: str, steps: int) -> None:
    first, second = two.record(one), two.record(name)
    assert (first["processes"], second["processes"]) == (1, 2)
    assert len(second["losses"]) == steps
    for ours, theirs in zip(first["losses"], second["losses"], strict=True):
        for key in ("loss", "forget", "grad_norm"):
            assert theirs[key] == pytest.approx(ours[key], rel=1e-4)
        assert theirs["retain"] == pytest.approx(ours["retain"], rel=1e-3, abs=1e-6)


@pytest.mark.slow
@pytest.mark.ci
@pytest.mark.parametrize("name", ["ddp", "fsdp"])
def test_the_main_process_evaluates_and_the_others_follow(two: Two, name: str) -> None:
    ours, theirs = (two.record(n)["selection"] for n in ("one", name))
    assert [entry["step"] for entry in theirs["evaluated"]] == [5, 10]
    assert theirs == ours, "the same weights answer alike"
    assert two.done.stderr.count("step 5: toy_knowmem_f") == 2, "once in each run"


@pytest.mark.slow
@pytest.mark.ci
@pytest.mark.parametrize(
    ("one", "other"), [("one", "fsdp"), ("one_lora", "fsdp_lora"), ("one_sure", "fsdp_sure")]
)
def test_sharded_weights_are_saved_whole(two: Two, one: str, other: str) -> None:
    """fsdp_sure was interrupted and resumed too."""
    ours, theirs = two.weights(one), two.weights(other)
    assert set(theirs) == set(ours)
    for name, tensor in ours.items():
        assert theirs[name].shape == tensor.shape
        assert torch.allclose(theirs[name], tensor, atol=1e-5), name


@pytest.mark.slow
@pytest.mark.ci
def test_a_sharded_mask_holds_every_weight_outside_it(two: Two, tiny: Path) -> None:
    before, after = load_file(tiny / "model.safetensors"), two.weights("fsdp_sure")
    masks = two.weights("fsdp_sure", "masks/sure_mask")
    for name, tensor in before.items():
        held = ~masks[name] if name in masks else torch.ones(len(tensor), dtype=torch.bool)
        assert torch.equal(after[name][held].view(torch.int32), tensor[held].view(torch.int32))
    assert any(not torch.equal(after[name][m], before[name][m]) for name, m in masks.items())


@pytest.mark.slow
@pytest.mark.ci
def test_what_cannot_be_shared_is_one_line(two: Two) -> None:
    lines = two.done.stderr.splitlines()
    for says in ("does not shard in such a launch", "cannot be shared by 2 processes"):
        assert any(line.startswith("unlearnbench: error: ") and says in line for line in lines)


def trainer(**more: Any) -> Any:
    """What ``require_supported`` asks of a Trainer."""
    config = more.pop("config", {})
    state = SimpleNamespace(
        mixed_precision=more.pop("mixed_precision", "no"),
        is_fsdp2=more.pop("is_fsdp2", False),
        deepspeed_plugin=SimpleNamespace(deepspeed_config=config),
    )
    facts = {"is_deepspeed_enabled": False, "is_fsdp_enabled": False} | more
    model = SimpleNamespace(dtype=torch.float32)
    return SimpleNamespace(accelerator=SimpleNamespace(state=state), model=model, **facts)


def stage(**more: Any) -> Any:
    """What ``require_supported`` asks of a training."""
    facts: dict[str, Any] = {
        "masks": None,
        "l1": 0.0,
        "noise": 0.0,
        "rounding": None,
        "gradient": None,
    }
    facts["survive"] = PLAIN
    return SimpleNamespace(**(facts | more))


@pytest.mark.parametrize(
    ("facts", "asked", "says"),
    [
        ({"mixed_precision": "bf16"}, {}, "use --mixed_precision no"),
        ({"is_fsdp_enabled": True}, {}, "use --fsdp_version 2"),
        ({"is_deepspeed_enabled": True}, {"masks": {}}, "a mask works on gradients that Deep"),
        ({"is_deepspeed_enabled": True}, {"l1": 1.0}, "--l1 works on weights that DeepSpeed"),
        (
            {"is_deepspeed_enabled": True, "config": {"bf16": {"enabled": True}}},
            {},
            "trains in bf16 and the weights are torch.float32",
        ),
    ],
)
def test_what_would_be_silent_is_refused(
    facts: dict[str, Any], asked: dict[str, Any], says: str
) -> None:
    with pytest.raises(OptionError, match=says):
        sharding.require_supported(trainer(**facts), stage(**asked))


def test_sharding_is_known_before_training() -> None:
    everything = stage(masks={}, l1=1.0, noise=1.0, gradient=print)
    assert not sharding.require_supported(trainer(), everything)
    fsdp = trainer(is_fsdp_enabled=True, is_fsdp2=True)
    assert sharding.require_supported(fsdp, stage(masks={}, l1=1.0))
    deepspeed = trainer(is_deepspeed_enabled=True, config={"bf16": {"enabled": False}})
    assert sharding.require_supported(deepspeed, stage())
    for sharded in (fsdp, deepspeed):
        with pytest.raises(OptionError, match="--weight-noise needs whole weights"):
            sharding.require_supported(sharded, stage(noise=1.0))
        with pytest.raises(OptionError, match="--survive needs whole weights"):
            sharding.require_supported(sharded, stage(survive=Survive([torch.clone])))
        with pytest.raises(OptionError, match="own gradient needs whole weights"):
            sharding.require_supported(sharded, stage(gradient=print))


def test_a_twin_has_no_values_and_keeps_ties_and_buffers(
    make_checkpoint: Callable[..., Path],
) -> None:
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(
        make_checkpoint("tied", tie_word_embeddings=True)
    )
    twin = sharding.empty_twin(model)
    assert all(p.is_meta for p in twin.parameters())
    whole = sharding.gather(model, twin)
    ids = torch.tensor([[0, 5, 9]])
    with torch.no_grad():
        assert torch.equal(whole(ids).logits, model(ids).logits)
        model.get_input_embeddings().weight += 1.0
    assert whole.get_input_embeddings().weight is whole.get_output_embeddings().weight
    assert not torch.equal(whole.get_input_embeddings().weight, model.get_input_embeddings().weight)
