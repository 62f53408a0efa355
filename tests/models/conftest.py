from __future__ import annotations

from typing import Any

import pytest

from tests.models.architectures import MIXED, PROMPTS, alone, make_kind


@pytest.fixture(scope="module")
def llama() -> Any:
    return make_kind("llama")


@pytest.fixture(scope="module")
def expected(llama: Any) -> dict[str, list[int]]:
    return {p: alone(llama, p, 20) for p in (*PROMPTS, *MIXED)}
