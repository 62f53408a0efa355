from __future__ import annotations

from pathlib import Path

import pytest

from tests.sweep.files import sweep_file
from unlearnbench.errors import OptionError
from unlearnbench.sweep.sweep import prepare


def test_a_board_that_no_sweep_made_is_left_alone(tmp_path: Path) -> None:
    path = sweep_file(tmp_path)
    (tmp_path / "out/board").mkdir(parents=True)
    with pytest.raises(OptionError, match=r":1: .*out holds a board that no sweep made"):
        prepare(path)
    (tmp_path / "out/sweep").mkdir()
    assert len(prepare(path).plan.jobs) == 6
