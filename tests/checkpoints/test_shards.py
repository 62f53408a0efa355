"""Files that are written tensor by tensor, against the library's own reader."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from unlearnbench.checkpoints.find import TensorHead
from unlearnbench.checkpoints.shards import size_of, write_shard
from unlearnbench.errors import CheckpointError


def test_the_librarys_reader_finds_what_was_written(tmp_path: Path) -> None:
    tensors = {
        "b": torch.randn(3, 5).to(torch.bfloat16),
        "a": torch.randn(7, 2).T,  # not contiguous
        "n": torch.arange(4),
        "flag": torch.tensor([True, False]),
    }
    names = {"b": "BF16", "a": "F32", "n": "I64", "flag": "BOOL"}
    heads = {n: TensorHead(names[n], tuple(t.shape)) for n, t in tensors.items()}
    write_shard(tmp_path / "x.safetensors", heads, tensors.__getitem__)
    found = load_file(tmp_path / "x.safetensors")
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)


def test_a_dtype_that_no_checkpoint_of_weights_has_is_named() -> None:
    with pytest.raises(CheckpointError, match="tensor x is of C64; save it as float32"):
        size_of({"x": TensorHead("C64", (2,))})
