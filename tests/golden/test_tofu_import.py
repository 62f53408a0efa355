"""TOFU's published logs through the command line: imported, rescored, nothing differs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.cli.test_main import call
from tests.golden.published import B1, FULL, RETAINED, Published
from unlearnbench.runs.folder import read_run


@pytest.mark.slow  # ROUGE of 1,314 and 2,034 texts; tests/importing/test_tofu_eval.py stands for it
@pytest.mark.parametrize(
    ("split", "p", "utility"), [("01", 0.00676, 0.5992), ("10", 3.91e-22, 0.5992)]
)
def test_forget_quality_and_utility_from_the_imported_logs(
    published: Published, tmp_path: Path, split: str, p: float, utility: float
) -> None:
    places = {"full": FULL.format(B1, split), "retrained": RETAINED.format(B1, 100 - int(split))}
    for name, place in places.items():
        (tmp_path / "logs" / name).mkdir(parents=True)
        file = published.file(f"open-unlearning/{place}/TOFU_EVAL.json")
        shutil.copy(file, tmp_path / "logs" / name)
    prefix, out = f"tofu_forget{split}", tmp_path / "out"
    line = ["import", "--format", "open-unlearning", str(tmp_path / "logs")]
    assert call(*line, "--task-prefix", prefix, "--out", str(out)) == 0
    for name in places:
        run = read_run(out / name / "unknown")
        assert run.imported is not None
        assert run.imported.differences == {}
        assert len(run.tasks) == 9
        attacks = run.tasks[f"{prefix}_privleak"].attacks
        assert attacks is not None
        assert {*attacks} == {"PPL", "PPL/zlib", "Min-40%", "Min-40%++", "gradnorm"}
        assert len(run.imported.stated) >= 14
    runs = {name: str(out / name / "unknown") for name in places}
    file = tmp_path / "figures.json"
    line = ["rescore", runs["full"], "--reference", runs["retrained"], "--json", str(file)]
    assert call(*line) == 0
    found = json.loads(file.read_text())
    assert found["differences"] == {}, "privleak too"
    leak = found["tasks"][f"{prefix}_privleak"]
    log = published.log(places["full"])
    assert leak["privleak_Min-40%"] == pytest.approx(log["privleak"]["agg_value"], abs=1e-6)
    assert leak["auc_gradnorm"] == pytest.approx(1 - log["mia_gradnorm"]["auc"], abs=1e-12)
    assert -100.01 < leak["privleak_gradnorm"] < -98
    quality = found["forget_quality"][f"{prefix}_probability"]
    assert quality["geometric"]["p"] == pytest.approx(p, rel=0.005)
    assert quality["geometric"]["n"] == {"01": 40, "10": 400}[split]
    other = {"01": 0.00676, "10": 1.40e-20}[split]  # of 40 rows D is the same
    assert quality["arithmetic"]["p"] == pytest.approx(other, rel=0.005)
    assert found["model_utility"]["value"] == pytest.approx(utility, abs=5e-5)
