"""A YAML file as a pydantic model, with the line of the first fault."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from unlearnbench.errors import OptionError, TaskError, one_line
from unlearnbench.util.yaml import read_yaml

M = TypeVar("M", bound=BaseModel)


def read_model(path: Path, kind: type[M]) -> M:
    """Read ``path`` as ``kind``.

    Raises:
        OptionError: it is no YAML, has an unknown key or a bad value; says the line.
    """
    try:
        source = read_yaml(path)
    except TaskError as error:
        raise OptionError(str(error)) from None
    try:
        return kind.model_validate(source.value)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        loc = first["loc"]
        field = ".".join(str(part) for part in loc)
        if first["type"] == "extra_forbidden":
            what = f"unknown key {field!r}"
        elif first["type"] == "missing":
            what, loc = f"key {field!r} is missing", loc[:-1]
        else:
            what = f"{field or 'file'}: {first['msg']}"
        raise OptionError(f"{source.where(*loc)}: {one_line(what)}") from None
