"""Why a store refused, and what to do, from the text of an error."""

from __future__ import annotations

import re

from unlearnbench.errors import one_line

_CREDENTIALS = (
    "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or give the machine a role (a profile: "
    'eval "$(aws configure export-credentials --format env)")'
)


def advice(bucket: str, text: str) -> str:
    """What to do about it."""
    why = reason(text)
    if "NoSuchBucket" in text:
        return f"there is no bucket {bucket}; make it first"
    if "169.254.169.254" in text or "/latest/api/token" in text:
        return f"no credentials; {_CREDENTIALS}"
    if re.search(r"status code: (401|403)|PermissionDenied|Unauthenticated", text):
        return f"access is refused ({why}); {_CREDENTIALS} that may list, read, write, delete"
    if re.search(r"status code: 30[0-9]|redirect without LOCATION", text):
        return f"the bucket is elsewhere ({why}); set AWS_REGION"
    if re.search(r"[Ee]rror parsing Path", text):
        return f"it holds or names an object whose name cannot be used ({why}); remove it"
    if re.search(r"status code: 4[0-9]{2}", text):
        return f"the store refuses ({why}); the same command goes on once it does not"
    return f"the store does not answer ({why}); the same command goes on once it does"


def reason(error: object) -> str:
    """What a store said, in some words: its status and code, or why the request did not go."""
    text = str(error).split("\n\nDebug source")[0]
    status = re.search(r"status code: ([0-9]{3} [A-Za-z ]+)", text)
    code = re.search(r"<Code>(\w+)</Code>", text)
    if status is not None:
        return ", ".join([status[1].strip(), *([code[1]] if code else [])])
    return one_line(text.rsplit(" - ", 1)[-1], 200)
