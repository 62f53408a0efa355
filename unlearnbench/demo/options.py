"""What a demo is asked for, and where its parts are."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from unlearnbench.demo.recipe import METHODS, PRECISIONS
from unlearnbench.errors import OptionError
from unlearnbench.results import FULL

ENDS = ("target", "retrained")


@dataclass(frozen=True)
class DemoOptions:
    """out: the folder that gets everything. dense: the control, without the L1 step."""

    out: Path
    seed: int = 0
    methods: tuple[str, ...] = tuple(METHODS)
    precisions: tuple[str, ...] = PRECISIONS
    dense: bool = False
    progress: bool = False

    def __post_init__(self) -> None:
        """Check the names."""
        unknown = [name for name in self.methods if name not in METHODS]
        if unknown or not self.methods:
            raise OptionError(
                f"--methods {','.join(unknown) or 'none'}: the demo has {', '.join(METHODS)}"
            )
        if FULL not in self.precisions or len(self.precisions) < 2:
            raise OptionError(f"--quant: the demo needs {FULL} and a quantized precision")

    @property
    def table(self) -> Path:
        """The rows of the recovery table."""
        return self.out / "recovery.json"

    def model(self, name: str) -> Path:
        """The checkpoint's folder."""
        return self.out / "models" / name

    def runs(self, name: str) -> Path:
        """The folder that a checkpoint's run folders are below."""
        return self.out / "runs" / name

    def full_run(self, name: str) -> Path:
        """A checkpoint's run in full precision."""
        (found,) = self.runs(name).glob(f"*/{FULL}")
        return found
