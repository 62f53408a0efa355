"""What a spec says of itself."""

from __future__ import annotations

import pytest

from unlearnbench.conditions import find_condition
from unlearnbench.errors import PrecisionError


def test_a_spec_without_bits_has_no_width_and_quantizes_nothing() -> None:
    assert find_condition("rtn-int4").width == 4
    with pytest.raises(PrecisionError, match="noise-5 states no bits"):
        _ = find_condition("noise-5").width
