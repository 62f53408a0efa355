"""JSON Schemas of a run folder's files, made from ``unlearnbench/results.py``, which describes
every field: ``python -m tests.schemas docs/schema`` (``make schema``).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from unlearnbench.results import RECORD_ADAPTER, RunResult


def json_schemas() -> dict[str, dict[str, object]]:
    """JSON Schemas of the two files of a run folder, by file name under ``docs/schema``."""
    return {
        "run.schema.json": _without_null(RunResult.model_json_schema(mode="serialization")),
        "record.schema.json": _without_null(RECORD_ADAPTER.json_schema(mode="serialization")),
    }


def _without_null(schema: Any) -> Any:
    """A field without a value is absent in the files, never null."""
    if isinstance(schema, list):
        return [_without_null(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    kept = {key: _without_null(part) for key, part in schema.items()}
    if kept.get("default", 0) is None:
        del kept["default"]
    choices = [choice for choice in kept.get("anyOf", []) if choice != {"type": "null"}]
    if len(choices) == 1:
        del kept["anyOf"]
        kept = {**choices[0], **kept}
    return kept


def write_schemas(folder: Path) -> None:
    """Write ``json_schemas`` as files; a test holds docs/schema against it."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, schema in json_schemas().items():
        text = json.dumps(schema, indent=2, sort_keys=True) + "\n"
        (folder / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    write_schemas(Path(sys.argv[1]))
