"""The levels next to a weight's own: a weight that is moved there takes that code and no other."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from unlearnbench import conditions
from unlearnbench.conditions.base import ConditionSpec

SPECS = {
    name: spec
    for name, spec in conditions.precisions().items()
    if conditions.has_levels(spec) and not spec.missing()
}
# Their grid follows the weights; that of two bits even one weight.
SOLVED = tuple(name for name, spec in SPECS.items() if conditions.is_solved(spec))
FOLLOWS_ONE = {"gguf-q2_k"}


@pytest.fixture(scope="module")
def weight() -> torch.Tensor:
    draw = torch.Generator().manual_seed(0)
    found = torch.randn(64, 256, generator=draw) * 0.1
    found[3], found[5, :64] = 0.0, 0.0
    found[4] = found[4].abs()
    found[6, :128] = -0.25  # ties of the largest magnitude
    found[6, 64] = 0.25
    return found


def test_which_precisions_have_levels() -> None:
    names = {n for n, s in conditions.precisions().items() if conditions.has_levels(s)}
    assert {"rtn-int4", "bnb-nf4", "bnb-fp4-dq", "gguf-q4_0", "bnb-int8", *SOLVED} <= names
    assert {"hqq-int4-g64", "gguf-q4_k_m", "gguf-iq4_xs"} <= set(SOLVED)
    assert not {"none", "awq-int4-g64", "torchao-int8", "gguf-q4_k_m-imat"} & names


@pytest.mark.parametrize("name", sorted(SPECS))
def test_a_move_is_that_of_a_code(name: str, weight: torch.Tensor) -> None:
    spec = SPECS[name]
    found, coded = conditions.levels(spec, weight), conditions.encode(spec, weight)
    # The constants of some are in few bits.
    rough = name.endswith("-dq") or name == "bnb-int8"
    rtol, atol = (4e-3, 2e-3) if rough else (1e-5, 1e-8)

    def same(one: torch.Tensor, other: torch.Tensor) -> bool:
        """But for ends of a grid that reach beyond what it hangs on, and are drawn in."""
        ends = 0.15 if "asym" in name or "gguf" in name else 0.0
        return float((~one.isclose(other, rtol=rtol, atol=atol)).float().mean()) <= ends

    assert same(found.values, coded.values)
    draw = torch.rand(weight.shape, generator=torch.Generator().manual_seed(1)) < 0.2
    for level, sign in ((found.above, 1), (found.below, -1)):
        can = level.isfinite()
        assert can.float().mean() > (0.8 if spec.bits != 2 else 0.3)
        assert ((level - found.values)[can] * sign > 0).all()
        moved = conditions.encode(spec, level.where(draw & can, weight))
        if name in SOLVED:
            continue
        assert torch.equal(moved.codes != coded.codes, draw & can)
        assert same(moved.values[draw & can], level[draw & can])


@pytest.mark.parametrize("name", sorted(set(SPECS) - FOLLOWS_ONE))
def test_no_level_lies_between(name: str, weight: torch.Tensor) -> None:
    """By search: of all values on the way to the neighbour, the first half is rounded to its own
    level and the second to the neighbour.
    """
    spec = SPECS[name]
    found, coded = conditions.levels(spec, weight), conditions.encode(spec, weight)
    row = [(0, c) for c in np.flatnonzero(found.above[0].isfinite().numpy()).tolist()[:6]]
    for place in row:
        ends = float(found.values[place]), float(found.above[place])
        seen = []
        for share in np.linspace(0.05, 0.95, 10):
            tried = weight.clone()
            tried[place] = ends[0] + float(share) * (ends[1] - ends[0])
            seen.append(int(conditions.encode(spec, tried).codes[place]))
        tiny = "fp4" in name  # its levels of 0.0052 on either side of 0 are no step
        assert len(set(seen)) == 2 or (tiny and len(set(seen)) == 3)
        assert seen[0] == int(coded.codes[place]) or tiny


def spec_of(name: str) -> ConditionSpec:
    return conditions.find_condition(name)


def test_what_the_grid_hangs_on_stays() -> None:
    weight = torch.tensor([[0.7, -0.7, 0.3, -0.1], [0.0, 0.0, 0.0, 0.0]])
    nan = torch.tensor(float("nan"))
    found = conditions.levels(spec_of("rtn-int4"), weight)
    expected = torch.stack([nan, nan, torch.tensor(0.4), torch.tensor(0.0)])
    assert torch.allclose(found.above[0], expected, equal_nan=True, atol=1e-7)
    assert found.above[1].isnan().all()
    assert found.below[1].isnan().all()
    # At an end there is no further level, and none beyond what the grid hangs on.
    near = conditions.levels(spec_of("rtn-int4"), torch.tensor([[0.7, 0.69, -0.69]]))
    assert near.above[0, 1:].isnan().tolist() == [True, False]
    assert near.below[0, 1:].isnan().tolist() == [False, True]
