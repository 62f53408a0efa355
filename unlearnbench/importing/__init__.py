"""Results of other tools as runs of ours, rescored from their outputs. One small file a format."""

from __future__ import annotations

from unlearnbench.importing.base import FORMATS, ImportOptions, import_runs

__all__ = ["FORMATS", "ImportOptions", "import_runs"]
