"""Names of conditions, as they are typed."""

from __future__ import annotations

import re

from unlearnbench import conditions
from unlearnbench.errors import OptionError, PrecisionError


def full_name(text: str) -> str:
    """A condition's full name; ``unknown`` and names that this version lacks stay as they are.
    Raises OptionError for what is no name.
    """
    if not re.fullmatch(r"(deployed:)?[A-Za-z0-9][A-Za-z0-9._+-]{0,79}", text):
        raise OptionError("--quant takes a condition's name, as none or bnb-nf4")
    try:
        return conditions.find_condition(text).name
    except PrecisionError:
        return text
