"""Regular expressions from a stranger: tried on the names they are for, in a process with a limit.

PEFT and the quantizers' libraries match the patterns of a checkpoint's config against the names of
modules. Some patterns take longer than the universe has existed, and Python cannot stop a match.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable

from unlearnbench.checkpoints.limits import walk_json
from unlearnbench.errors import CheckpointError, one_line

_SECONDS = 10.0
# What makes a match branch; a plain name, dots and all, is matched in one go.
_BRANCHING = frozenset("*+?{|")
# In the ways that PEFT 0.21 and transformers 5.23 put a pattern into one of their own.
_CODE = r"""
import json, re, sys
given = json.load(sys.stdin)
for pattern in given["patterns"]:
    forms = [pattern, rf"(.*\.)?({pattern})$", rf"(^|.*\.){pattern}($|\..*)", rf"(?:{pattern})\."]
    forms.append(rf"(?:^|.*?\.){pattern}\.(?P<idx_>\d+)\.")
    for form in forms:
        try:
            compiled = re.compile(form)
        except re.error:
            if form is pattern:
                sys.exit(3)
            continue
        for name in given["names"]:
            compiled.fullmatch(name), compiled.match(name), compiled.search(name)
"""


def check_patterns(facts: object, names: Iterable[str], where: str) -> None:
    """Raise CheckpointError for patterns in ``facts`` that are none, or take longer than seconds
    over ``names``. Every text is one, keys of mappings too, that could be a branching pattern.
    """
    texts = [text for pair in walk_json(facts) for text in pair if isinstance(text, str)]
    # "re:" is compressed-tensors' mark of a pattern, "+:" and "-:" are GPTQModel's.
    marked = (text.removeprefix("re:").removeprefix("+:").removeprefix("-:") for text in texts)
    patterns = sorted({text for text in marked if _BRANCHING & set(text)})
    if not patterns:
        return
    given = json.dumps({"patterns": patterns, "names": list(names)})
    said = f"{where}: the pattern {one_line(patterns[0], 80)!r} (of {len(patterns)})"
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-c", _CODE],
            input=given.encode("ascii"),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise CheckpointError(
            f"{said} takes longer than {_SECONDS:g} s over the model's module names; refused: name "
            "the modules"
        ) from None
    if done.returncode:
        raise CheckpointError(f"{said} is no usable regular expression; name the modules")
