from __future__ import annotations

import pytest
from torch import nn

from tests.conftest import make_model
from unlearnbench.checkpoints.linear import linear_layers, require_most
from unlearnbench.errors import NotInForceError


def test_the_linear_layers_but_the_head() -> None:
    found = linear_layers(make_model(300))
    parts = {name.rsplit(".", 1)[1] for name in found}
    assert parts == {f"{part}_proj" for part in ("q", "k", "v", "o", "gate", "up", "down")}
    assert len(found) == 2 * 7
    assert all(isinstance(module, nn.Linear) for module in found.values())


def test_a_model_that_names_no_head() -> None:
    assert list(linear_layers(nn.Sequential(nn.Linear(2, 2), nn.ReLU()))) == ["0"]


def test_a_tenth_of_the_weights_may_lie_outside() -> None:
    require_most("it", {"a": 90, "b": 10}, ["a"])
    with pytest.raises(NotInForceError, match="it leaves 11 of 101 .* the most in b"):
        require_most("it", {"a": 90, "b": 11}, ["a"])
