from __future__ import annotations

import logging
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.conftest import load_at
from tests.models.architectures import PROMPTS, make_kind
from unlearnbench.checkpoints.options import LoadOptions
from unlearnbench.checkpoints.source import open_source
from unlearnbench.conditions.load import load_model, make_how
from unlearnbench.conditions.quantize import find_precision
from unlearnbench.models import budget
from unlearnbench.models import mapped as mapped_module
from unlearnbench.models.mapped import give_back
from unlearnbench.requests import Generate

linux = pytest.mark.skipif(sys.platform != "linux", reason="pages are given back on Linux only")
SIZE = 4 * 2**20


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Two tensors in a file whose folder has an odd name, behind a link as the hub's cache has."""
    torch.manual_seed(0)
    folder = tmp_path / "a b\x0bc\u2028d 7f00-7f01 r--p"
    folder.mkdir()
    path = folder / "t.safetensors"
    save_file({name: torch.randn(SIZE // 4) for name in "ab"}, path)
    link = tmp_path / "link.safetensors"
    link.symlink_to(path)
    return link


@pytest.fixture
def mapped(file: Path) -> dict[str, torch.Tensor]:
    return load_file(file)


def resident() -> int:
    """Bytes of mapped files in this process's memory."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("RssFile:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no RssFile")


@linux
def test_memory_of_files_is_given_back_and_read_again(
    mapped: dict[str, torch.Tensor], file: Path
) -> None:
    kept = {name: tensor.clone() for name, tensor in mapped.items()}
    before = resident()
    assert give_back(mapped.values(), [file]) == 2 * SIZE
    assert resident() <= before - 1.8 * SIZE
    assert all(torch.equal(mapped[name], kept[name]) for name in kept)
    assert resident() >= before - 0.2 * SIZE


@linux
def test_a_tensor_that_was_written_to_keeps_what_was_written(
    mapped: dict[str, torch.Tensor], file: Path
) -> None:
    mapped["a"][7] = 12.0
    assert give_back(mapped.values(), [file]) == 0
    assert mapped["a"][7] == 12.0


@linux
def test_other_memory_is_left_alone(mapped: dict[str, torch.Tensor], file: Path) -> None:
    own = torch.randn(SIZE // 4)
    kept = own.clone()
    before = resident()
    assert give_back([*mapped.values(), own], [file]) == 0
    assert give_back([own], [file]) == 0
    assert torch.equal(own, kept)
    assert resident() >= before - 0.2 * SIZE


@linux
def test_only_the_files_that_are_named_are_given_back(
    mapped: dict[str, torch.Tensor], file: Path, tmp_path: Path
) -> None:
    before = resident()
    assert give_back(mapped.values(), [tmp_path / "another.safetensors"]) == 0
    assert resident() >= before - 0.2 * SIZE


@linux
def test_memory_that_only_looks_like_a_file_is_left_alone(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Huge pages have a path and no anonymous pages, and what is given back of them is zero."""
    own = torch.randn(SIZE // 4)
    kept = own.clone()
    start = own.data_ptr() & ~4095
    text = (
        f"{start:x}-{start + 2 * SIZE:x} rw-p 0 00:0f 9 /anon_hugepage (deleted)\nAnonymous: 0 kB\n"
    )
    (tmp_path / "smaps").write_text(text, encoding="utf-8")
    monkeypatch.setattr(mapped_module, "_SMAPS", tmp_path / "smaps")
    assert give_back([own], [file]) == 0
    assert torch.equal(own, kept)


@pytest.mark.parametrize("text", ["no addresses here\n", "Anonymous: many kB\n"])
def test_a_list_that_is_not_understood_gives_nothing_back(
    mapped: dict[str, torch.Tensor],
    file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    text: str,
) -> None:
    (tmp_path / "smaps").write_text(text, encoding="utf-8")
    monkeypatch.setattr(mapped_module, "_SMAPS", tmp_path / "smaps")
    assert give_back(mapped.values(), [file]) == 0


def test_where_there_is_no_proc_nothing_is_done(
    mapped: dict[str, torch.Tensor], file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mapped_module, "_SMAPS", tmp_path / "none")
    assert give_back(mapped.values(), [file]) == 0


def test_spare_memory_makes_room_for_rows_up_to_a_bound() -> None:
    model = make_kind("llama")
    bytes_a_token = budget.cached_bytes(model.config, 4)
    small, large, largest = (
        budget.generation_budget(model, "cpu", spare).most for spare in (0, 2**20, 2**40)
    )
    assert large - small == pytest.approx(2**20 / bytes_a_token, abs=1)
    assert largest - small == pytest.approx(640 * 2**20 / bytes_a_token, abs=1)


@linux
@pytest.mark.parametrize("precision", ["none", "rtn-int4", "bnb-int8"])
def test_precisions_after_each_other_are_those_of_a_fresh_source(
    tiny: Path, precision: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR, "bitsandbytes")
    asked = [Generate(p, p, 12) for p in PROMPTS]
    source = open_source(str(tiny), LoadOptions())
    for name in ("none", "rtn-int4"):  # each gives the source's pages back
        assert load_at(source, name)._spare > 0
    after = [answer.text for answer in load_at(source, precision).generate(asked)]
    fresh = load_at(open_source(str(tiny), LoadOptions()), precision)
    assert after == [answer.text for answer in fresh.generate(asked)]


@linux
def test_processes_that_share_a_files_pages_get_no_room_for_them(tiny: Path) -> None:
    source = open_source(str(tiny), LoadOptions())
    spec = find_precision("none")
    how = replace(make_how(spec, "fp32", "cpu", "auto", None), processes=2)
    assert load_model(source, spec, how)._spare == 0
