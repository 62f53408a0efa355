from __future__ import annotations

import hashlib
import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from unlearnbench.checkpoints.find import CheckpointFiles, files_sha256, find_checkpoint, read_json
from unlearnbench.checkpoints.options import LoadOptions
from unlearnbench.errors import CheckpointError

SHARDS = ("model-00001-of-00003.safetensors", "model-00002-of-00003.safetensors")


def write_tensors(path: Path, *names: str) -> None:
    save_file({name: np.arange(12, dtype=np.float32) for name in names}, path)


def write_index(folder: Path, weight_map: object, name: str = "model.safetensors") -> None:
    (folder / f"{name}.index.json").write_text(json.dumps({"weight_map": weight_map}))


def find(path: Path, allow_pickle: bool = False) -> CheckpointFiles:
    return find_checkpoint(str(path), LoadOptions(allow_pickle=allow_pickle))


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a config and nothing else."""
    path = tmp_path / "model"
    path.mkdir()
    (path / "config.json").write_text("{}")
    return path


@pytest.fixture(scope="module")
def sharded(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny checkpoint in several shards, as transformers writes them. Not to be changed."""
    from transformers import AutoModelForCausalLM

    path = tmp_path_factory.mktemp("sharded") / "tiny"
    model: Any = AutoModelForCausalLM.from_pretrained(tiny)
    model.save_pretrained(path, max_shard_size="150KB")
    return path


def test_a_single_file(tiny: Path) -> None:
    found = find(tiny)
    assert found.path == str(tiny)
    assert found.folder == tiny
    assert found.kind == "safetensors"
    assert found.weights == (tiny / "model.safetensors",)
    assert found.revision is None
    assert found.size == (tiny / "model.safetensors").stat().st_size
    assert files_sha256(found.weights) == sha256(tiny / "model.safetensors")


def test_shards(sharded: Path) -> None:
    found = find(sharded)
    names = sorted(p.name for p in sharded.glob("model-*.safetensors"))
    assert len(names) > 2
    assert found.kind == "safetensors"
    assert [p.name for p in found.weights] == names
    assert found.size == sum((sharded / name).stat().st_size for name in names)
    lines = "".join(f"{sha256(sharded / name)}  {name}\n" for name in names)
    assert files_sha256(found.weights) == hashlib.sha256(lines.encode()).hexdigest()


def test_a_shard_that_the_index_does_not_name_is_no_part(sharded: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(sharded, copy)
    (copy / "model-00009-of-00009.safetensors").write_bytes(b"rubbish")
    assert files_sha256(find(copy).weights) == files_sha256(find(sharded).weights)


def test_the_hash_of_shards_takes_names_in_order_and_sees_every_byte(tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    first.write_bytes(b"one")
    second.write_bytes(b"two")
    together = files_sha256([first, second])
    assert files_sha256([second, first]) == together
    second.write_bytes(b"twO")
    assert files_sha256([first, second]) != together
    assert files_sha256([first]) == hashlib.sha256(b"one").hexdigest()


def test_a_file_over_the_block_size_hashes_whole(tmp_path: Path) -> None:
    path = tmp_path / "large"
    path.write_bytes(bytes(range(256)) * 2**15 + b"tail")
    assert files_sha256([path]) == sha256(path)


def test_unreadable_weights_are_a_checkpoint_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"gone\.safetensors cannot be read"):
        files_sha256([tmp_path / "gone.safetensors"])


def test_a_single_file_wins_over_an_index_as_in_transformers(folder: Path) -> None:
    write_tensors(folder / "model.safetensors", "w")
    write_tensors(folder / SHARDS[0], "w")
    write_index(folder, {"w": SHARDS[0]})
    assert [p.name for p in find(folder).weights] == ["model.safetensors"]


def missing_shard(folder: Path) -> None:
    write_tensors(folder / SHARDS[0], "w")
    write_index(folder, {"w": SHARDS[0], "v": SHARDS[1]})


def index_names(shard: object) -> Callable[[Path], None]:
    def build(folder: Path) -> None:
        write_tensors(folder.parent / "x", "w")
        write_index(folder, {"w": shard})

    return build


def index_without_map(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text("{}")


def index_with_empty_map(folder: Path) -> None:
    write_index(folder, {})


def corrupt_index(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text("{")


def index_of_a_list(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text("[]")


def truncated(folder: Path) -> None:
    path = folder / "model.safetensors"
    write_tensors(path, "w", "v")
    path.write_bytes(path.read_bytes()[:-1])


def truncated_shard(folder: Path) -> None:
    for name in SHARDS:
        write_tensors(folder / name, "w")
    path = folder / SHARDS[1]
    path.write_bytes(path.read_bytes()[:-8])
    write_index(folder, {"w": SHARDS[0], "v": SHARDS[1]})


def appended(folder: Path) -> None:
    path = folder / "model.safetensors"
    write_tensors(path, "w")
    path.write_bytes(path.read_bytes() + b"more")


def garbage(content: bytes) -> Callable[[Path], None]:
    def build(folder: Path) -> None:
        (folder / "model.safetensors").write_bytes(content)

    return build


def no_tensors(folder: Path) -> None:
    save_file({}, folder / "model.safetensors")


def empty_folder(folder: Path) -> None:
    (folder / "config.json").unlink()


def no_config(folder: Path) -> None:
    (folder / "config.json").unlink()
    write_tensors(folder / "model.safetensors", "w")


def config_alone(folder: Path) -> None:
    pass


def gguf_alone(folder: Path) -> None:
    (folder / "config.json").unlink()
    (folder / "tiny-Q4_0.gguf").write_bytes(b"GGUF")


def pickle_alone(folder: Path) -> None:
    (folder / "pytorch_model.bin").write_bytes(b"")


def pickled_adapter(folder: Path) -> None:
    (folder / "config.json").rename(folder / "adapter_config.json")
    (folder / "adapter_model.bin").write_bytes(b"")


def empty_adapter(folder: Path) -> None:
    (folder / "config.json").rename(folder / "adapter_config.json")


HEADER = b'{"w":{"dtype":"F32","shape":[3],"data_offsets":[0,12]}}'


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (missing_shard, f"lacks the shard {SHARDS[1]}"),
        (index_names("../x"), r"'\.\./x', outside the folder; refused"),
        (index_names("/etc/hostname"), "outside the folder; refused"),
        (index_names("sub/x"), "outside the folder; refused"),
        (index_names(".."), "outside the folder; refused"),
        (index_names(""), "names '', outside the folder; refused"),
        (index_names("\x1b[31mx"), r"lacks the shard \\x1b\[31mx"),
        (index_names(3), "lacks the shard 3"),
        (index_without_map, "has no weight_map"),
        (index_with_empty_map, "has no weight_map"),
        (corrupt_index, r"model\.safetensors\.index\.json is no valid JSON"),
        (index_of_a_list, r"index\.json holds no JSON object"),
        (truncated, r"model\.safetensors is truncated or damaged.*copy or download it again"),
        (truncated_shard, f"{SHARDS[1]} is truncated or damaged"),
        (appended, "is truncated or damaged"),
        (garbage(b""), "is truncated or damaged"),
        (garbage(b"\xff" * 64), "is truncated or damaged"),
        (garbage(struct.pack("<Q", 8) + b"not json"), "is truncated or damaged"),
        (garbage(struct.pack("<Q", 2**62) + HEADER + bytes(12)), "is truncated or damaged"),
        (garbage(struct.pack("<Q", len(HEADER)) + HEADER + bytes(11)), "is truncated or damaged"),
        (no_tensors, "holds no tensors"),
        (empty_folder, "is empty; --model takes a checkpoint folder"),
        (no_config, r"has no config\.json; --model takes a folder written by save_pretrained"),
        (config_alone, r"has no weights: neither model\.safetensors nor"),
        (gguf_alone, r"for the GGUF file give its path: --model .*tiny-Q4_0\.gguf"),
        (pickle_alone, r"only pickled weights \(pytorch_model\.bin\).*pass --allow-pickle"),
        (pickled_adapter, r"only pickled weights \(adapter_model\.bin\).*pass --allow-pickle"),
        (empty_adapter, r"has no weights: neither adapter_model\.safetensors nor"),
    ],
)
def test_damaged_folders_are_refused(
    folder: Path, build: Callable[[Path], None], said: str
) -> None:
    build(folder)
    with pytest.raises(CheckpointError, match=said) as caught:
        find(folder)
    assert str(folder) in str(caught.value)


def test_the_header_bytes_above_are_a_valid_file_when_whole(folder: Path) -> None:
    garbage(struct.pack("<Q", len(HEADER)) + HEADER + bytes(12))(folder)
    assert find(folder).kind == "safetensors"


@pytest.mark.parametrize("build", [missing_shard, truncated, config_alone, no_config])
def test_allow_pickle_forgives_nothing_else(folder: Path, build: Callable[[Path], None]) -> None:
    build(folder)
    with pytest.raises(CheckpointError):
        find(folder, allow_pickle=True)


@pytest.mark.parametrize(
    ("build", "kind", "name"),
    [
        (pickle_alone, "pickle", "pytorch_model.bin"),
        (pickled_adapter, "adapter", "adapter_model.bin"),
    ],
)
def test_pickles_are_taken_when_allowed(
    folder: Path, build: Callable[[Path], None], kind: str, name: str
) -> None:
    build(folder)
    found = find(folder, allow_pickle=True)
    assert (found.kind, found.weights) == (kind, (folder / name,))


def test_sharded_pickles_need_every_shard(folder: Path) -> None:
    write_index(folder, {"w": "a.bin", "v": "b.bin"}, "pytorch_model.bin")
    (folder / "a.bin").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"lacks the shard b\.bin"):
        find(folder, allow_pickle=True)
    (folder / "b.bin").write_bytes(b"")
    assert [p.name for p in find(folder, allow_pickle=True).weights] == ["a.bin", "b.bin"]


@pytest.mark.parametrize("allow", [False, True])
def test_safetensors_are_preferred_to_pickles(folder: Path, allow: bool) -> None:
    pickle_alone(folder)
    write_tensors(folder / "model.safetensors", "w")
    found = find(folder, allow_pickle=allow)
    assert (found.kind, found.weights) == ("safetensors", (folder / "model.safetensors",))


def test_an_adapter_folder(folder: Path) -> None:
    (folder / "config.json").rename(folder / "adapter_config.json")
    write_tensors(folder / "adapter_model.safetensors", "w")
    found = find(folder)
    assert (found.kind, found.weights) == ("adapter", (folder / "adapter_model.safetensors",))


def test_an_adapter_folder_with_its_bases_config(folder: Path) -> None:
    """Some trainers save the base's config.json beside the adapter."""
    (folder / "adapter_config.json").write_text("{}")
    write_tensors(folder / "adapter_model.safetensors", "w")
    found = find(folder)
    assert (found.kind, found.weights) == ("adapter", (folder / "adapter_model.safetensors",))


def test_a_full_checkpoint_with_an_adapter_beside_it_is_refused(folder: Path) -> None:
    """Transformers would load the base that the adapter's config names, not these weights."""
    (folder / "adapter_config.json").write_text("{}")
    write_tensors(folder / "adapter_model.safetensors", "w")
    write_tensors(folder / "model.safetensors", "w")
    with pytest.raises(CheckpointError, match=r"adapter_config\.json"):
        find(folder)


def test_a_gguf_file(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    head = b"GGUF" + struct.pack("<IQQ", 3, 1, 0)
    tensor = struct.pack("<Q1sIQIQ", 1, b"a", 1, 4, 0, 0)  # four numbers in F32
    path.write_bytes(head + tensor + b"\0" * 64)
    found = find(path)
    assert (found.kind, found.folder, found.weights) == ("gguf", tmp_path, (path,))
    assert found.tensors == {"a": ("F32", (4,))}
    assert files_sha256(found.weights) == sha256(path)


@pytest.mark.parametrize("content", [b"", b"GG", b"PK\x03\x04"])
def test_a_gguf_file_that_is_none(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "tiny.gguf"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"tiny\.gguf is no GGUF file"):
        find(path)


def test_a_plain_file(tiny: Path) -> None:
    with pytest.raises(CheckpointError, match="is a file; --model takes a checkpoint folder"):
        find(tiny / "model.safetensors")


@pytest.mark.parametrize(
    "name",
    [
        "no/such/path",
        "./nope",
        "../nope",
        "/nope",
        "nope.gguf",
        "a b",
        "org/name/",
        "\x1b[31m",
        "nul\0byte",
        "~nosuchuser/model",
        pytest.param("x" * 5000, id="long name"),
        pytest.param("very/" + "long/" * 1000, id="long path"),
    ],
)
def test_no_such_path(name: str) -> None:
    with pytest.raises(CheckpointError, match="no such path") as caught:
        find_checkpoint(name, LoadOptions())
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("name", ["nope", "org/nope"])
@pytest.mark.parametrize("revision", [None, "v9"])
def test_an_id_that_the_hub_does_not_have(name: str, revision: str | None) -> None:
    with pytest.raises(CheckpointError, match=f"no folder {name} here") as caught:
        find_checkpoint(name, LoadOptions(), revision)
    assert (f"{name}@{revision}" if revision else name) in str(caught.value)


def test_a_folder_is_taken_before_a_hub_id(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tensors(folder / "model.safetensors", "w")
    monkeypatch.chdir(folder.parent)
    found = find_checkpoint("model", LoadOptions())
    assert (found.path, found.folder.resolve()) == ("model", folder.resolve())


def test_the_home_folder_is_followed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tensors(folder / "model.safetensors", "w")
    monkeypatch.setenv("HOME", str(folder.parent))
    assert find_checkpoint("~/model", LoadOptions()).folder == folder


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"{", "is no valid JSON"),
        (b"\xff\xfe", "is no valid JSON"),
        (b"[" * 100_000, "is no valid JSON"),
        (b"[1]", "holds no JSON object"),
        (b'"x"', "holds no JSON object"),
        (b"", "is no valid JSON"),
    ],
)
def test_read_json_refuses(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=said):
        read_json(path)


def test_read_json_refuses_what_is_absent_or_absurdly_large(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_json(path)
    with path.open("wb") as file:
        file.truncate(64 * 2**20 + 1)
    with pytest.raises(CheckpointError, match="larger than 64 MiB"):
        read_json(path)
