"""What hypothesis makes records, results, texts and files from."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import strategies as st

# Separators, controls, escapes, lone surrogates, text that runs the other way: what breaks lines,
# cells and terminals.
ODD = "\u2028\u2029\x85\x00\x0b\x0c\x1b\r\n\t\ud800\udfff\u202e\ufeff\uffff|<>&\"'=+-@#`,;\\"
texts = st.text(st.one_of(st.sampled_from(ODD), st.characters(codec=None)), max_size=40)
names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.\-]{0,20}", fullmatch=True)
shares = st.floats(0, 1)
finite = st.floats(allow_nan=False, allow_infinity=False)
json_values: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-(10**400), 10**400)
    | st.floats()
    | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=12,
)


@st.composite
def mutated(draw: st.DrawFn, content: Any) -> Any:
    """A JSON value with a few of its parts replaced, dropped or doubled."""
    value = json.loads(json.dumps(content))
    for _ in range(draw(st.integers(1, 3))):
        holder, key = _pick(draw, value)
        if holder is None:
            return draw(json_values)
        kind = draw(st.sampled_from(["replace", "drop", "add"]))
        if kind == "drop":
            del holder[key]
        elif kind == "add" and isinstance(holder, dict):
            holder[draw(texts)] = draw(json_values)
        else:
            holder[key] = draw(json_values)
    return value


def _pick(draw: st.DrawFn, value: Any) -> tuple[Any, Any]:
    """A place somewhere below ``value``."""
    holder, key = None, None
    while isinstance(value, (dict, list)) and value:
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        holder, key = value, draw(st.sampled_from(keys))
        value = holder[key]
        if draw(st.booleans()):
            break
    return holder, key


@st.composite
def mutated_bytes(draw: st.DrawFn, content: bytes) -> bytes:
    """Bytes with a few of them changed, cut out or put in."""
    data = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data)))
        end = min(len(data), at + draw(st.integers(0, 8)))
        data[at:end] = draw(st.binary(max_size=8) | texts.map(_encoded))
    return bytes(data)


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", errors="surrogatepass")
