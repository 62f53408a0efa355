"""Hostile and broken checkpoint folders, each made from a copy of one tiny valid checkpoint.

A case changes the copy and may return another path to open. ``CANARY`` is a file beside the copy
that every payload would make.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

CANARY = "canary"
Build = Callable[[Path], Path | None]
Options = dict[str, Any] | None


@dataclass(frozen=True)
class Case:
    """said: regular expressions for the one line. options: of ``LoadOptions``, or ``base``, a
    folder beside the copy with the tiny checkpoint itself. hungry: without a check it would take
    memory for as long as there is any.
    """

    kind: str
    build: Build
    said: str
    options: dict[str, Any] = field(default_factory=dict)
    hungry: bool = False


CASES: dict[str, Case] = {}


def case(
    kind: str, said: str, hungry: bool = False, options: dict[str, Any] | None = None
) -> Callable[[Build], Build]:
    """Put a function into the corpus under its own name."""

    def add(build: Build) -> Build:
        name = build.__name__.removeprefix("_").replace("_", " ")
        assert name not in CASES
        CASES[name] = Case(kind, build, said, options or {}, hungry)
        return build

    return add


def several(
    kind: str,
    said: str,
    builds: dict[str, Build],
    hungry: bool = False,
    options: dict[str, Any] | None = None,
) -> None:
    """Cases that are alike."""
    for name, build in builds.items():
        assert name not in CASES
        CASES[name] = Case(kind, build, said, options or {}, hungry)


# Tools


def edit(folder: Path, name: str = "config.json", **changes: Any) -> None:
    path = folder / name
    content = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(content | changes))


def raw(name: str, content: bytes) -> Build:
    """Write a file as it stands."""

    def build(folder: Path) -> None:
        (folder / name).write_bytes(content)

    return build


def config(**changes: Any) -> Build:
    return lambda folder: edit(folder, **changes)


class Payload:
    """Unpickled, it makes the canary."""

    def __init__(self, folder: Path) -> None:
        self.command = f"touch '{folder.parent / CANARY}'"

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.system, (self.command,))


def code_file(folder: Path, name: str) -> None:
    """Python that makes the canary when it is imported."""
    text = f"open({str(folder.parent / CANARY)!r}, 'w').close()\n"
    classes = "".join(f"class {c}: pass\n" for c in ("Config", "Model", "Tokenizer"))
    (folder / name).write_text(text + classes)


def head(folder: Path) -> tuple[dict[str, Any], bytes]:
    """The header of the weights, and the bytes behind it."""
    content = (folder / "model.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def write_head(folder: Path, header: object, data: bytes, length: int | None = None) -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    size = len(text) if length is None else length
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", size) + text + data)


def first_tensor(header: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = header[next(name for name in header if name != "__metadata__")]
    return found


def changed_head(change: Callable[[dict[str, Any]], object]) -> Build:
    def build(folder: Path) -> None:
        header, data = head(folder)
        change(header)
        write_head(folder, header, data)

    return build


def weights(change: Callable[[dict[str, Any]], object], name: str = "model.safetensors") -> Build:
    def build(folder: Path) -> None:
        from safetensors.torch import load_file, save_file

        tensors = load_file(folder / name)
        change(tensors)
        save_file(tensors, folder / name, metadata={"format": "pt"})

    return build


def index(weight_map: object, keep: bool = False) -> Build:
    def build(folder: Path) -> None:
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
        if not keep:
            (folder / "model.safetensors").unlink()

    return build


def link_out(name: str) -> Build:
    """Put a file outside, and a link to it in its place."""

    def build(folder: Path) -> None:
        outside = folder.parent / f"outside-{name}"
        (folder / name).rename(outside)
        (folder / name).symlink_to(outside)

    return build


Q_PROJ = "model.layers.0.self_attn.q_proj.weight"

# Code that would run


def pickled(folder: Path, name: str = "pytorch_model.bin") -> None:
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(pickle.dumps({Q_PROJ: Payload(folder)}))


@case("code", "has only pickled weights .*--allow-pickle")
def a_pickle_with_a_payload(folder: Path) -> None:
    pickled(folder)


@case("code", "its weights cannot be loaded", options={"allow_pickle": True})
def a_pickle_with_a_payload_that_is_allowed(folder: Path) -> None:
    pickled(folder)


@case("code", "has only pickled weights")
def shards_of_pickles(folder: Path) -> None:
    pickled(folder, "a.bin")
    (folder / "pytorch_model.bin.index.json").write_text(
        json.dumps({"weight_map": {Q_PROJ: "a.bin"}})
    )


@case("code", "truncated or damaged")
def a_pickle_called_safetensors(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(pickle.dumps(Payload(folder)))


@case("code", "brings its own Python code .*--trust-remote-code")
def remote_code(folder: Path) -> None:
    code_file(folder, "evil.py")
    edit(folder, auto_map={"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"})


@case("code", "brings its own Python code")
def remote_code_from_another_repository(folder: Path) -> None:
    edit(folder, auto_map={"AutoModelForCausalLM": "evil/repo--evil.Model"})


@case("code", "brings its own Python code")
def remote_code_of_an_unknown_kind(folder: Path) -> None:
    code_file(folder, "evil.py")
    edit(folder, model_type="evil", auto_map={"AutoConfig": "evil.Config"})


@case("code", "its config cannot be read")
def an_unknown_kind_with_code_beside_it(folder: Path) -> None:
    code_file(folder, "modeling_evil.py")
    code_file(folder, "configuration_evil.py")
    edit(folder, model_type="evil", architectures=["EvilForCausalLM"])


@case("code", "its tokenizer cannot be loaded")
def remote_code_of_a_tokenizer(folder: Path) -> None:
    code_file(folder, "evil.py")
    edit(
        folder,
        "tokenizer_config.json",
        auto_map={"AutoTokenizer": ["evil.Tokenizer", None]},
        tokenizer_class="EvilTokenizer",
    )


several(
    "code",
    "config.json has .*_implementation .*, code from a hub",
    {
        "attention from a hub": config(attn_implementation="evil/kernel"),
        "attention from a hub by a private name": config(_attn_implementation="evil/kernel:run"),
        "attention of one part from a hub": config(
            attn_implementation={"": "paged|evil/kernel@v1"}
        ),
        "attention of a nested config from a hub": config(
            text_config={"attn_implementation": "evil/kernel"}
        ),
        "experts from a hub": config(experts_implementation="evil/kernel"),
    },
)

# Weights that are damaged

DAMAGED = r"model\.safetensors is truncated or damaged"
several(
    "weights",
    DAMAGED,
    {
        "a header longer than the file": lambda f: write_head(f, b"{}", b"", 10**6),
        "a header of 2^63 bytes": lambda f: write_head(f, b"{}", b"", 2**63),
        "a header of 2^64-1 bytes": lambda f: write_head(f, b"{}", b"", 2**64 - 1),
        "a header that is no JSON": lambda f: write_head(f, b"{nonsense", b""),
        "a header that is a list": lambda f: write_head(f, b"[]", b""),
        "a header with a name twice": lambda f: write_head(
            f,
            b'{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},'
            b'"a":{"dtype":"U8","shape":[4],"data_offsets":[4,8]}}',
            b"\0" * 8,
        ),
        "a header with NaN": lambda f: write_head(f, b'{"a": NaN}', b""),
        "a header nested deeply": lambda f: write_head(
            f, b'{"a":' * 9999 + b"1" + b"}" * 9999, b""
        ),
        "an empty file": raw("model.safetensors", b""),
        "half a length": raw("model.safetensors", b"\1\2\3"),
        "tensors that overlap": changed_head(
            lambda h: first_tensor(h).update(data_offsets=[0, 2 * 8])
        ),
        "bytes that no tensor names": changed_head(lambda h: h.pop(Q_PROJ)),
        "an unknown dtype": changed_head(lambda h: first_tensor(h).update(dtype="F3")),
        "a shape for other bytes": changed_head(lambda h: first_tensor(h).update(shape=[3, 3])),
        "a negative shape": changed_head(lambda h: first_tensor(h).update(shape=[-1, 64])),
        "a shape that overflows": changed_head(
            lambda h: first_tensor(h).update(shape=[2**32, 2**32, 4])
        ),
        "offsets backwards": changed_head(lambda h: first_tensor(h).update(data_offsets=[64, 0])),
        "offsets beyond 64 bits": changed_head(
            lambda h: first_tensor(h).update(data_offsets=[0, 2**70])
        ),
    },
)


@case("weights", DAMAGED)
def truncated(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-7])


@case("weights", DAMAGED)
def bytes_behind_the_end(folder: Path) -> None:
    with (folder / "model.safetensors").open("ab") as file:
        file.write(b"more")


@case("weights", "has a head of .* bytes; refused", hungry=True)
def a_header_of_40_megabytes(folder: Path) -> None:
    """Of 720,000 empty tensors, say; what stands in it is never read, so it is a hole."""
    write_head(folder, b"{", b"", 40_000_000)
    with (folder / "model.safetensors").open("r+b") as file:
        file.truncate(41_000_000)


@case("weights", "holds no tensors")
def no_tensors(folder: Path) -> None:
    write_head(folder, {"__metadata__": {"format": "pt"}}, b"")


@case("weights", "need .* GiB, and this machine has|memory this process may use", hungry=True)
def four_terabytes_of_nothing(folder: Path) -> None:
    """A file with a hole: it takes no room on the disk."""
    size = 2**42
    header = {"a": {"dtype": "F32", "shape": [size // 4], "data_offsets": [0, size]}}
    write_head(folder, header, b"")
    with (folder / "model.safetensors").open("r+b") as file:
        file.truncate(file.seek(0, os.SEEK_END) + size)


several(
    "weights",
    "NaN or infinite",
    {
        "NaN": weights(lambda t: t[Q_PROJ].fill_(float("nan"))),
        "one infinity": weights(lambda t: t[Q_PROJ].__setitem__((3, 5), float("inf"))),
        "one minus infinity": weights(lambda t: t[Q_PROJ].__setitem__((0, 0), float("-inf"))),
    },
)
several(
    "weights",
    "lacks weights that its config asks for|not have the shapes|have no place in the model",
    {
        "a missing tensor": weights(lambda t: t.pop(Q_PROJ)),
        "a tensor of another shape": weights(lambda t: t.update({Q_PROJ: t[Q_PROJ][:32].clone()})),
        "a tensor turned": weights(
            lambda t: t.update(
                {"model.embed_tokens.weight": t["model.embed_tokens.weight"].T.contiguous()}
            )
        ),
        "a tensor of one number": weights(lambda t: t.update({Q_PROJ: t[Q_PROJ][0, 0].clone()})),
        "a layer too many": weights(
            lambda t: t.update({Q_PROJ.replace(".0.", ".7."): t[Q_PROJ].clone()})
        ),
        "a config with fewer layers": config(num_hidden_layers=1),
        "a config with more layers": config(num_hidden_layers=3),
        "a config of another width": config(hidden_size=32),
    },
)
several(
    "weights",
    "is stored as I8, as quantized weights are",
    {"codes without scales": weights(lambda t: t.update({Q_PROJ: t[Q_PROJ].char()}))},
)

# Indexes

several(
    "index",
    "outside the folder; refused",
    {
        "an index that climbs": index({Q_PROJ: "../outside.safetensors"}),
        "an index to an absolute path": index({Q_PROJ: "/etc/passwd"}),
        "an index to the folder": index({Q_PROJ: "."}),
        "an index to a folder below": index({Q_PROJ: "sub/model.safetensors"}),
        "an index to nothing": index({Q_PROJ: ""}),
    },
)
several(
    "index",
    "lacks the shard",
    {
        "a missing shard": index({Q_PROJ: "model-00001-of-00002.safetensors"}),
        "a missing shard with line breaks and escapes": index(
            {Q_PROJ: "a\nb\x1b[31m\u2028.safetensors"}
        ),
        "a shard that is a number": index({Q_PROJ: 7}),
    },
)
several(
    "index",
    "has no weight_map",
    {"an empty index": index({}), "an index of a list": index([Q_PROJ])},
)
several(
    "index",
    "index.json is truncated or damaged",
    {"a cyclic index": index({Q_PROJ: "model.safetensors.index.json"})},
)


@case("index", "no valid JSON|holds no JSON object")
def an_index_nested_deeply(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text("[" * 100_000)


@case("index", "weights cannot be loaded|lacks weights")
def an_index_that_promises_too_much(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "a.safetensors")
    header = json.loads((folder / "a.safetensors").read_bytes()[8:].split(b"]}}")[0] + b"]}}")
    names = [name for name in header if name not in ("__metadata__", Q_PROJ)]
    index({**dict.fromkeys(names, "a.safetensors"), "lm_head.more": "a.safetensors"}, True)(folder)
    weights(lambda t: t.pop(Q_PROJ), "a.safetensors")(folder)


# Links, pipes and devices

several(
    "links",
    "is a link that leaves the checkpoint's folder",
    {
        f"{name} outside": link_out(name)
        for name in ("model.safetensors", "config.json", "tokenizer.json", "generation_config.json")
    },
)


@case("links", "is a link that leaves the checkpoint's folder")
def templates_outside(folder: Path) -> None:
    outside = folder.parent / "templates"
    outside.mkdir()
    (folder / "additional_chat_templates").symlink_to(outside)


@case("links", "is a link that leaves the checkpoint's folder, to /dev/zero", hungry=True)
def weights_without_end(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to("/dev/zero")


@case("links", "has no weights")
def a_circle_of_links(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to("other")
    (folder / "other").symlink_to("model.safetensors")


@case("links", "is a link that leaves the checkpoint's folder")
def a_snapshot_whose_blob_is_a_link(folder: Path) -> Path:
    """Laid out as the hub's cache; a blob may not lead on."""
    home = folder.parent / "models--a--b"
    snapshot = home / "snapshots" / ("1" * 40)
    (home / "blobs").mkdir(parents=True)
    shutil.copytree(folder, snapshot)
    (home / "blobs" / "x").symlink_to(folder / "config.json")
    (snapshot / "config.json").unlink()
    (snapshot / "config.json").symlink_to("../../blobs/x")
    return snapshot


def pipe(name: str) -> Build:
    def build(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)

    return build


several(
    "links",
    "is no regular file but a pipe or a device",
    {
        "a pipe as the config": pipe("config.json"),
        "a pipe as the tokenizer": pipe("tokenizer.json"),
        "a pipe as the weights": pipe("model.safetensors"),
        "a pipe with line breaks in its name": pipe("a\nb\x1b[2J.json"),
    },
)

# Configs


@case("config", "config.json is larger than 8 MiB")
def a_config_of_10_megabytes(folder: Path) -> None:
    edit(folder, padding="x" * 10_000_000)


@case("config", "config.json is larger than 8 MiB", hungry=True)
def a_config_of_a_terabyte(folder: Path) -> None:
    with (folder / "config.json").open("r+b") as file:
        file.truncate(2**40)


@case("config", "generation_config.json is larger than 8 MiB", hungry=True)
def a_generation_config_of_a_terabyte(folder: Path) -> None:
    with (folder / "generation_config.json").open("r+b") as file:
        file.truncate(2**40)


def raw_config(content: bytes) -> Build:
    return raw("config.json", content)


several(
    "config",
    "config.json is no valid JSON|config.json holds no JSON object",
    {
        "a config of nothing": raw_config(b""),
        "a config of zeros": raw_config(b"\0" * 100),
        "a config that is no text": raw_config(b'{"a": "\x80\xff"}'),
        "a config that is a list": raw_config(b"[]"),
        "a config nested deeply": raw_config(b'{"a":' * 200_000),
        "a config with a number of 10000 digits": raw_config(
            b'{"hidden_size": ' + b"9" * 10_000 + b"}"
        ),
    },
)
several(
    "config",
    "and more than .* is refused before anything of that size is made",
    {
        "10^9 layers": config(num_hidden_layers=10**9),
        "10^9 rows": config(vocab_size=10**9),
        "a width of 10^9": config(hidden_size=10**9),
        "an inner width of 10^12": config(intermediate_size=10**12),
        "10^9 heads": config(num_attention_heads=10**9),
        "10^9 labels": config(num_labels=10**9),
        "10^9 experts": config(model_type="mixtral", num_local_experts=10**9),
        "10^9 layers of a nested config": config(text_config={"num_hidden_layers": 10**9}),
        "10^9 layers in a list": config(block_counts=[1, 10**9]),
        "minus 10^9 layers": config(num_hidden_layers=-(10**9)),
        "a number of 3000 digits": config(hidden_size=int("9" * 3000)),
    },
    hungry=True,
)
several(
    "config",
    "its config describes a model of .* weights, and .* are stored",
    {
        "a million rows": config(vocab_size=10**6),
        "a width of a million": config(hidden_size=2**20, num_attention_heads=4),
        "heads a million wide": config(head_dim=2**20),
        "an inner width of ten million": config(intermediate_size=10**7),
        "a thousand experts": config(
            model_type="mixtral", num_local_experts=1000, architectures=["MixtralForCausalLM"]
        ),
    },
    hungry=True,
)
several(
    "config",
    "and .* tensors are stored",
    {"sixty thousand layers": config(num_hidden_layers=60_000)},
    hungry=True,
)


@case("config", "asks for tables of .* GiB beside the weights", hungry=True)
def masks_of_a_million_positions(folder: Path) -> None:
    many: dict[str, Any] = {"n_positions": 2**22, "max_position_embeddings": 2**22}
    sizes: dict[str, Any] = {"n_embd": 64, "n_layer": 2, "n_head": 4, "rotary_dim": 16}
    edit(folder, model_type="gptj", architectures=["GPTJForCausalLM"], **many, **sizes)


several(
    "config",
    "tokenizer does not match|config cannot be read|cannot be loaded|shapes|lacks|a model of",
    {
        "no rows": config(vocab_size=0),
        "no heads": config(num_attention_heads=0),
        "no key heads": config(num_key_value_heads=0),
        "no width": config(hidden_size=0),
        "minus one layer": config(num_hidden_layers=-1),
        "no layers": config(num_hidden_layers=0),
        "a width that is a word": config(hidden_size="wide"),
        "a width that is a fraction": config(hidden_size=64.5),
        "a model kind that is a list": config(model_type=["llama"]),
        "a model kind that is a path": config(model_type="../../evil"),
        "another architecture": config(model_type="gpt2"),
        "no language model": config(model_type="vit", architectures=["ViTModel"]),
        "an activation that is code": config(hidden_act="__import__('os').system('true')"),
        "a rope of no kind": config(rope_scaling={"rope_type": "evil", "factor": 2.0}),
    },
)
several(
    "config",
    "has transformers_weights, which would load",
    {
        "other weights in the folder": config(transformers_weights="other.safetensors"),
        "other weights outside": config(transformers_weights="../other.safetensors"),
    },
)

# Stored schemes

BITS4 = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
several(
    "scheme",
    "quantization_config|quantized already|config cannot be read|group_size 1000000000",
    {
        "an unknown scheme": config(quantization_config={"quant_method": "evil"}),
        "a scheme that is a list": config(quantization_config=["gptq"]),
        "a scheme without bits": config(quantization_config={"quant_method": "gptq"}),
        "a scheme of 10^4 bits": config(
            quantization_config={"quant_method": "gptq", "bits": 10**4}
        ),
        "a scheme with a group of 10^9": config(
            quantization_config={"quant_method": "gptq", "bits": 4, "group_size": 10**9}
        ),
        "a scheme whose pattern never ends": config(
            quantization_config={**BITS4, "llm_int8_skip_modules": ["([a-z._0-9]+)+!"]}
        ),
        "a scheme whose pattern is none": config(
            quantization_config={**BITS4, "llm_int8_skip_modules": ["(*"]}
        ),
    },
)

# Tokenizers


@case("tokenizer", "tokenizer does not match the model")
def a_tokenizer_of_another_model(folder: Path) -> None:
    from tests.conftest import make_tokenizer

    make_tokenizer(260).save_pretrained(folder)


def tokenizer(change: Callable[[dict[str, Any]], object]) -> Build:
    def build(folder: Path) -> None:
        content = json.loads((folder / "tokenizer.json").read_text())
        change(content)
        (folder / "tokenizer.json").write_text(json.dumps(content))

    return build


TOKEN = {
    "single_word": False,
    "lstrip": False,
    "rstrip": False,
    "normalized": False,
    "special": True,
}
several(
    "tokenizer",
    "its tokenizer cannot be loaded|tokenizer does not match",
    {
        "a tokenizer of nothing": raw("tokenizer.json", b""),
        "a tokenizer that is a list": raw("tokenizer.json", b"[]"),
        "a tokenizer nested deeply": raw("tokenizer.json", b'{"a":' * 99_999),
        "a tokenizer without a model": tokenizer(lambda t: t.pop("model")),
        "a tokenizer of no kind": tokenizer(lambda t: t["model"].update(type="Evil")),
        "a tokenizer without tokens": tokenizer(lambda t: t["model"].update(vocab={}, merges=[])),
        "a token with an id of 2^31": tokenizer(
            lambda t: t["model"]["vocab"].update({"evil": 2**31})
        ),
        "a token with an id of minus one": tokenizer(
            lambda t: t["model"]["vocab"].update({"evil": -1})
        ),
        "a thousand tokens too many": tokenizer(
            lambda t: t["added_tokens"].extend(
                {**TOKEN, "id": 300 + n, "content": f"<evil{n}>"} for n in range(1000)
            )
        ),
        "a merge of tokens that are none": tokenizer(
            lambda t: t["model"]["merges"].append(["nonesuch", "evil"])
        ),
        "a charsmap that is damaged": tokenizer(
            lambda t: t.update(normalizer={"type": "Precompiled", "precompiled_charsmap": "AAAA"})
        ),
        "a charsmap with a length beyond it": tokenizer(
            lambda t: t.update(
                normalizer={"type": "Precompiled", "precompiled_charsmap": "/////wAAAAA="}
            )
        ),
        "a pattern that is none": tokenizer(
            lambda t: t.update(
                pre_tokenizer={
                    "type": "Split",
                    "pattern": {"Regex": "(*"},
                    "behavior": "Isolated",
                    "invert": False,
                }
            )
        ),
    },
)


@case("tokenizer", "gave up: .*retry-limit")
def a_pattern_that_never_ends(folder: Path) -> None:
    def change(content: dict[str, Any]) -> None:
        evil = {"type": "Split", "pattern": {"Regex": "([a-zA-Z ]+)+$"}, "behavior": "Isolated",
                "invert": False}  # fmt: skip
        both = [evil, content["pre_tokenizer"]]
        content["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": both}

    tokenizer(change)(folder)


@case("tokenizer", "tokenizer.json is larger than 64 MiB", hungry=True)
def a_tokenizer_of_a_terabyte(folder: Path) -> None:
    with (folder / "tokenizer.json").open("r+b") as file:
        file.truncate(2**40)


@case("tokenizer", "tokenizer_config.json is larger than 8 MiB")
def a_tokenizer_config_of_10_megabytes(folder: Path) -> None:
    edit(folder, "tokenizer_config.json", chat_template="x" * 10_000_000)


@case("tokenizer", "its tokenizer cannot be loaded|tokenizer does not match")
def a_tokenizer_outside(folder: Path) -> None:
    """By a name in the config, which older libraries opened as it stands."""
    outside = folder.parent / "tokenizer.json"
    (folder / "tokenizer.json").rename(outside)
    edit(folder, "tokenizer_config.json", tokenizer_file=str(outside))


# Adapters; the case's folder becomes one, of the tiny checkpoint


def adapter(**changes: object) -> Build:
    """A LoRA adapter that fits the tiny checkpoint, with changes to its config."""

    def build(folder: Path) -> None:
        import torch
        from safetensors.torch import save_file

        for path in folder.iterdir():
            path.unlink()
        content = {
            "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 8,
            "target_modules": ["q_proj"], "base_model_name_or_path": "../base",
        } | changes  # fmt: skip
        (folder / "adapter_config.json").write_text(json.dumps(content))
        prefix = "base_model.model.model.layers.{}.self_attn.q_proj.lora_{}.weight"
        tensors = {}
        for layer in range(2):
            tensors[prefix.format(layer, "A")] = torch.ones(4, 64)
            tensors[prefix.format(layer, "B")] = torch.ones(64, 4)
        save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})

    return build


BASE = {"base": "base"}
NEVER = "([a-z._0-9]+)+!"
CASES["an adapter of a foreign base"] = Case(
    "adapter", adapter(base_model_name_or_path="/etc"), r"give its base .*--allow-adapter-base"
)
CASES["an adapter of a base by URL"] = Case(
    "adapter", adapter(base_model_name_or_path="https://evil.example/model"),
    "no such path: https://evil.example", {"allow_adapter_base": True},
)  # fmt: skip
CASES["an adapter of a base with line breaks"] = Case(
    "adapter", adapter(base_model_name_or_path="a\nb\x1b[31m"), "no such path",
    {"allow_adapter_base": True},
)  # fmt: skip
several(
    "adapter",
    "refused|is no usable regular expression|not supported|does not know",
    {
        "an adapter of rank 10^9": adapter(r=10**9),
        "an adapter of rank 50000": adapter(r=50_000),
        "an adapter of rank 50000 in one place": adapter(rank_pattern={"q_proj": 50_000}),
        "an adapter that repeats layers ten thousand times": adapter(
            layer_replication=[[0, 2]] * 10**4
        ),
        "an adapter that imports a package": adapter(
            megatron_config={"x": 1}, megatron_core="evil"
        ),
        "an adapter of further adapters": adapter(
            peft_type="XLORA", adapters={"0": "evil/adapter"}, hidden_size=64
        ),
        "an adapter that is a prompt": adapter(peft_type="PROMPT_TUNING", num_virtual_tokens=9),
        "an adapter of no kind": adapter(peft_type="EVIL"),
        "an adapter with an unknown option": adapter(evil_option=True),
        "an adapter whose pattern is none": adapter(target_modules="(*"),
    },
    hungry=True,
    options=BASE,
)
several(
    "adapter",
    "takes longer than .* over the model's module names",
    {"an adapter whose pattern never ends": adapter(target_modules=NEVER)},
    options=BASE,
)
several(
    "adapter",
    "cannot be attached|do not fit the base|NaN or infinite",
    {
        "an adapter of other modules": adapter(target_modules=["nonesuch"]),
        "an adapter of half its weights": adapter(target_modules=["q_proj", "k_proj"]),
    },
    options=BASE,
)


@case("adapter", "NaN or infinite", options=BASE)
def an_adapter_of_infinities(folder: Path) -> None:
    adapter()(folder)
    weights(lambda t: next(iter(t.values())).fill_(float("inf")), "adapter_model.safetensors")(
        folder
    )


@case("adapter", "has only pickled weights", options=BASE)
def an_adapter_with_a_payload(folder: Path) -> None:
    adapter()(folder)
    (folder / "adapter_model.safetensors").unlink()
    (folder / "adapter_model.bin").write_bytes(pickle.dumps(Payload(folder)))


@case("adapter", "holds a full checkpoint and an adapter")
def an_adapter_beside_a_checkpoint(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{}")


# GGUF files


def text(content: bytes) -> bytes:
    return struct.pack("<Q", len(content)) + content


def gguf(body: bytes, tensors: int = 0, keys: int = 0, padding: int = 64) -> Build:
    def build(folder: Path) -> Path:
        path = folder / "evil.gguf"
        start = b"GGUF" + struct.pack("<IQQ", 3, tensors, keys)
        path.write_bytes(start + body)
        with path.open("r+b") as file:  # a hole, where it is large
            file.truncate(len(start + body) + padding)
        return path

    return build


def tensor(name: bytes, shape: Sequence[int], kind: int = 0, offset: int = 0) -> bytes:
    dims = struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
    return text(name) + dims + struct.pack("<IQ", kind, offset)


several(
    "gguf",
    r"evil\.gguf is truncated or damaged",
    {
        "2^63 tensors": gguf(b"", tensors=2**63),
        "2^63 keys": gguf(b"", keys=2**63),
        "a key of 2^60 bytes": gguf(struct.pack("<Q", 2**60), keys=1),
        "a text of 2^60 bytes": gguf(text(b"a") + struct.pack("<IQ", 8, 2**60), keys=1),
        "an array of 2^60 numbers": gguf(text(b"a") + struct.pack("<IIQ", 9, 4, 2**60), keys=1),
        "an array of ten million texts": gguf(
            text(b"a") + struct.pack("<IIQ", 9, 8, 10**7), keys=1, padding=8 * 10**7
        ),
        "an array of arrays": gguf(text(b"a") + struct.pack("<IIQ", 9, 9, 1), keys=1),
        "a key of no kind": gguf(text(b"a") + struct.pack("<I", 99), keys=1),
        "a key twice": gguf(2 * (text(b"a") + struct.pack("<IB", 0, 1)), keys=2),
        "an alignment of zero": gguf(text(b"general.alignment") + struct.pack("<II", 4, 0), keys=1),
        "a tensor of 2^40 rows": gguf(tensor(b"a", [2**40, 2]), tensors=1),
        "a tensor of 60 dimensions": gguf(tensor(b"a", [1] * 60), tensors=1),
        "two tensors in one place": gguf(tensor(b"a", [4]) + tensor(b"b", [4]), tensors=2),
        "a version of the future": lambda f: (
            (f / "evil.gguf").write_bytes(b"GGUF" + struct.pack("<IQQ", 9, 0, 0)),
            f / "evil.gguf",
        )[1],
    },
    hungry=True,
)
several(
    "gguf",
    r"evil\.gguf: tensor a is of type 77, which gguf-py does not know",
    {"a tensor of no kind": gguf(tensor(b"a", [4], kind=77), tensors=1)},
    hungry=True,
)
several(
    "gguf",
    "and more than .* is refused",
    {
        "a file of 10^9 blocks": gguf(
            text(b"llama.block_count") + struct.pack("<II", 4, 10**9), keys=1
        )
    },
    hungry=True,
)


@case("gguf", "is no GGUF file")
def a_file_that_is_called_gguf(folder: Path) -> Path:
    (folder / "evil.gguf").write_bytes(pickle.dumps(Payload(folder)))
    return folder / "evil.gguf"


# What the project itself writes beside a checkpoint


def beside(name: str, content: str) -> Build:
    return raw(name, content.encode())


several(
    "record",
    r"unlearning\.json",
    {
        "an unlearning.json of nothing": beside("unlearning.json", "{}"),
        "an unlearning.json nested deeply": beside("unlearning.json", "[" * 100_000),
        "an unlearning.json with a hostile name": beside(
            "unlearning.json", json.dumps({"format_version": 1, "method": "\x1b[2J\n<script>"})
        ),
    },
)
several(
    "record",
    "whp.json|no such path|is a link that leaves",
    {
        "a pair of nothing": beside("whp.json", "{}"),
        "a pair with an infinite weight": beside(
            "whp.json", '{"format_version": 1, "alpha": 1e999}'
        ),
        "a pair without its parts": beside("whp.json", '{"format_version": 1, "alpha": 1.0}'),
    },
)


@case("record", "is a link that leaves the checkpoint's folder")
def a_pair_of_links(folder: Path) -> None:
    beside("whp.json", '{"format_version": 1, "alpha": 1.0}')(folder)
    for part in ("baseline", "reinforced"):
        (folder / part).symlink_to("/etc")
