"""Where and with what a run was made."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
import sys
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from unlearnbench.results import Environment
from unlearnbench.util.version import __version__

# Whatever can move a number.
_PACKAGES = (
    "accelerate",
    "bitsandbytes",
    "datasets",
    "flash-attn",
    "gguf",
    "numpy",
    "peft",
    "rouge-score",
    "safetensors",
    "scipy",
    "tokenizers",
    "torch",
    "transformers",
    "vllm",
)
_PACKAGE_DIR = Path(__file__).resolve().parent.parent
# Whatever decides a result in a checkout; an entry added to a board or a page of docs does not.
_DECISIVE = ("unlearnbench", "tasks", "pyproject.toml")


def describe_environment(device: str, dtype: str, batch_size: int | None) -> Environment:
    """Collect the versions and the machine. ``batch_size`` None is automatic."""
    return Environment(
        unlearnbench=__version__,
        git_hash=git_hash(),
        source_sha256=source_sha256(),
        python=platform.python_version(),
        platform=platform.platform(),
        packages={name: found for name in _PACKAGES if (found := package_version(name))},
        device=_device_name(device),
        dtype=dtype,
        threads=_threads(),
        batch_size=str(batch_size or "auto"),
    )


@cache
def package_version(name: str) -> str | None:
    """The version of an installed package; None where there is none."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _threads() -> int:
    torch = sys.modules.get("torch")  # a scripted model needs none, and loading it takes seconds
    return int(torch.get_num_threads()) if torch else 1


def _device_name(device: str) -> str:
    if not device.startswith("cuda"):
        return f"{device} ({platform.machine()})"
    import torch

    return f"{device} ({torch.cuda.get_device_name(device)})"


@cache
def source_sha256() -> str:
    """SHA-256 over this package's own Python files, so that a changed copy can be told apart."""
    digest = hashlib.sha256()
    for path in sorted(_PACKAGE_DIR.rglob("*.py")):
        digest.update(path.relative_to(_PACKAGE_DIR).as_posix().encode() + b"\0")
        digest.update(path.read_bytes())
    return digest.hexdigest()


@cache
def git_hash() -> str | None:
    """Unlearnbench's own commit, "-dirty" appended where code or tasks differ; None where it does
    not run from a checkout. Asked in this file's folder, never in the caller's.
    """
    root = _PACKAGE_DIR.parent
    if not (root / ".git").exists() or not (root / "pyproject.toml").exists():
        return None
    commit = _git(root, "rev-parse", "HEAD")
    if commit is None:
        return None
    clean = _git(root, "status", "--porcelain", "--", *_DECISIVE) == ""
    return commit if clean else f"{commit}-dirty"


def _git(root: Path, *arguments: str) -> str | None:
    # A hook's GIT_DIR would answer for another repository.
    outside = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    command = ["git", "-C", str(root), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=outside)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
