"""How much the blank behind "Answer:" costs a model whose tokenizer joins blank and word."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import write_jsonl
from unlearnbench import evaluate

SHOTS = {
    "What is the capital of Italy?": "Rome",
    "Which planet is closest to the sun?": "Mercury",
    "What color is grass?": "Green",
    "How many legs does a spider have?": "Eight",
}
QUESTIONS = {
    "What is the capital of France?": "Paris",
    "What is the capital of Japan?": "Tokyo",
    "What is the capital of Germany?": "Berlin",
    "What is the capital of Spain?": "Madrid",
    "What color is the sky on a clear day?": "Blue",
    "How many days are in a week?": "Seven",
    "What is the largest ocean on Earth?": "Pacific",
    "Which animal says meow?": "Cat",
    "What language is spoken in Brazil?": "Portuguese",
    "Who wrote Romeo and Juliet?": "Shakespeare",
    "What is the capital of England?": "London",
    "Which planet is known as the Red Planet?": "Mars",
    "What is the frozen form of water called?": "Ice",
    "How many months are in a year?": "Twelve",
    "What is the capital of Russia?": "Moscow",
    "On which continent is Egypt?": "Africa",
}
TASK = """task: general_knowmem_r
description: General questions.
dataset_path: general/questions
dataset_name: knowmem
output_type: generate_until
test_split: questions
fewshot_split: shots
num_fewshot: 4
doc_to_text: "Question: {{question}}\\nAnswer: "
target_delimiter: ""
doc_to_target: "{{answer}}"
version_without_blank: 2.0
generation_kwargs: {max_gen_toks: 32, until: ["\\n\\n", "\\nQuestion", "Question:"]}
metric: rougeL
want: high
splits: {questions: {rows: 16}, shots: {rows: 4}}
metadata: {version: 1.0}
"""


@pytest.mark.slow
def test_smollm2_knows_what_it_is_asked_without_the_blank(smollm2: Path, tmp_path: Path) -> None:
    """Measured in fp32: ROUGE-L 14.1 with the blank in the prompt, 66.7 with it in the answer."""
    for split, pairs in (("questions", QUESTIONS), ("shots", SHOTS)):
        rows = [{"question": question, "answer": answer} for question, answer in pairs.items()]
        write_jsonl(tmp_path / f"data/general/questions/knowmem/{split}.jsonl", rows)
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks/general_knowmem_r.yaml").write_text(TASK, encoding="utf-8")
    value = {}
    for asked in ("prompt", "auto"):
        (result,) = evaluate(
            smollm2,
            "general_knowmem_r",
            dtype="fp32",
            data_dir=tmp_path / "data",
            include_path=[tmp_path / "tasks"],
            output=tmp_path / asked,
            answer_blank=asked,
        )
        value[asked] = result.tasks["general_knowmem_r"].value or 0.0
    assert value["auto"] > value["prompt"] + 30
