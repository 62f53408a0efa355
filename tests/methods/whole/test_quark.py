"""Quark: its loss by loops, its new rows, and whole trainings read by plain transformers."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.cli.test_main import call
from tests.conftest import CORPUS, load_at, make_model, write_jsonl
from tests.training.helpers import go, same, weights
from unlearnbench.errors import MetricError, OptionError
from unlearnbench.methods import rewards
from unlearnbench.methods.rows import IGNORED, Example
from unlearnbench.methods.whole import quark
from unlearnbench.methods.whole.quark import (
    Answer,
    Imitation,
    Prompt,
    behind,
    extend,
    lessons,
)
from unlearnbench.training.batches import as_batch, collate, sums_of
from unlearnbench.training.job import Job, unlearn
from unlearnbench.training.trainer import UnlearnTrainer

WORDS, NEW = 7, 2
KNOBS: dict[str, Any] = {"quark_quantiles": 2, "quark_rounds": 2, "quark_tokens": 6}


def rows() -> Any:
    """Two answers behind their tokens, 7 and 8, and beside each the same without."""
    made = []
    for token, asked, told in ((7, (1, 2), (3, 4, 0)), (8, (5,), (6, 2))):
        whole, plain = (
            Example((*x, *told), ((IGNORED,) * len(x)) + told)
            for x in ((asked[0], token, *asked[1:]), asked)
        )
        made.append({"forget": (whole,), "alternatives": (plain,)})
    sums = sums_of(made)  # type: ignore[arg-type]
    return as_batch(collate([(row, sums) for row in made], 0))  # type: ignore[misc]


def table(table: torch.Tensor) -> Any:
    """A model that looks at the last token alone."""
    return lambda **given: SimpleNamespace(logits=table[given["input_ids"]])


def frozen(known: torch.Tensor) -> Any:
    return lambda model, inputs: SimpleNamespace(logits=known[inputs["input_ids"]])


def test_its_loss_is_the_papers_with_the_target_first() -> None:
    torch.manual_seed(0)
    ours = torch.randn(WORDS + NEW, WORDS + NEW, dtype=torch.float64)
    known = torch.randn(WORDS, WORDS, dtype=torch.float64)
    terms = Imitation(frozen(known), 0.3)(table(ours), rows())
    # What predicts each learned token: behind a prompt of one token the reward token does.
    pairs = [(2, 2, 3), (3, 3, 4), (4, 4, 0), (8, 5, 6), (6, 6, 2)]
    cross, divergence, reverse = 0.0, 0.0, 0.0
    for behind_token, without, word in pairs:
        z, y = ours[behind_token].tolist(), known[without].tolist()
        norms = [math.log(sum(math.exp(x) for x in row)) for row in (z, y)]
        cross -= z[word] - norms[0]
        for a, b in zip(y, z, strict=False):
            divergence += math.exp(a - norms[1]) * ((a - norms[1]) - (b - norms[0]))
            reverse += math.exp(b - norms[0]) * ((b - norms[0]) - (a - norms[1]))
    assert terms["forget"].item() == pytest.approx(cross / 5, abs=1e-12)
    assert terms["retain"].item() == pytest.approx(0.3 * divergence / 5, abs=1e-12)
    assert abs(divergence - reverse) > 0.1, "else the order would not show"
    assert terms["loss"].item() == pytest.approx((cross + 0.3 * divergence) / 5, abs=1e-12)


def test_a_token_without_influence_costs_no_divergence_and_without_beta_it_is_cross_entropy() -> (
    None
):
    torch.manual_seed(1)
    known = torch.randn(WORDS, WORDS, dtype=torch.float64)
    ours = torch.full((WORDS + NEW, WORDS + NEW), -1e4, dtype=torch.float64)
    ours[:WORDS, :WORDS] = known
    ours[8, :WORDS] = known[5]  # that of the prompt's last token
    ours.requires_grad_()
    terms = Imitation(frozen(known), 1.0)(table(ours), rows())
    (gradient,) = torch.autograd.grad(terms["retain"], [ours], retain_graph=True)
    assert abs(terms["retain"].item()) < 1e-14
    assert float(gradient.abs().max()) < 1e-15
    bare = Imitation(frozen(known), 0.0)(table(ours), rows())
    assert bare["loss"].item() == terms["forget"].item()


def test_draws_are_even_over_quantiles_and_each_answer_stands_behind_its_token() -> None:
    prompts = [Prompt((0, 10 + n), "", "", True) for n in range(300)]
    pool = [Answer(n, (50 + n % 3, 1), float(n >= 250)) for n in range(300)]
    made = lessons(pool, prompts, (90, 91), (0,), "0/1")
    assert made == lessons(pool, prompts, (90, 91), (0,), "0/1")
    best = [row for row in made if row.ids[1] == 90]
    assert 110 < len(best) < 190, "half of them, though a sixth is the best"
    assert len(made) == len(pool)
    for row in made:
        (plain,) = row.alternatives
        assert row.ids[0] == plain.ids[0] == 0
        assert (row.ids[2:], row.labels[3:]) == (plain.ids[1:], plain.labels[2:])
        assert row.labels[:3] == (IGNORED,) * 3, "only the answer is learned"
        assert (row.ids[1] == 90) == (row.ids[2] >= 260)
    assert behind((5, 6), 90, (0,)) == (90, 5, 6), "a piece without a begin token"


@pytest.mark.parametrize("tied", [True, False])
def test_new_rows_are_drawn_from_the_tables_columns(tied: bool) -> None:
    model: Any = make_model(300, tie_word_embeddings=tied, hidden_size=64)
    with torch.no_grad():
        for table in (model.get_input_embeddings(), model.get_output_embeddings()):
            table.weight[:, 0] = 3.0
    old = model.get_input_embeddings().weight.detach().clone()
    extend(model, range(300, 380), seed=1)
    tables = [model.get_input_embeddings().weight, model.get_output_embeddings().weight]
    assert (tables[0] is tables[1]) == tied
    for table in tables:
        assert table.shape == (380, 64)
        new = table.detach()[300:]
        assert bool((new[:, 0] == 3.0).all()), "no deviation, no noise"
        assert abs(float(new[:, 1:].mean() - old[:, 1:].mean())) < 0.02
        assert 0.9 < float(new[:, 1:].std() / old[:, 1:].std()) < 1.1
    assert torch.equal(tables[0][:300], old)
    assert model.config.vocab_size == 380
    assert model.generation_config.suppress_tokens == list(range(300, 380))


@pytest.fixture(scope="module")
def trained(job: Job, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Questions and texts, two rounds."""
    root = tmp_path_factory.mktemp("quark")
    pairs = [{"question": f"Who keeps gate {n}?", "answer": f"Ada {n}"} for n in range(3)]
    write_jsonl(root / "forget.jsonl", [*pairs, *({"text": t} for t in CORPUS[:2])])
    asked = replace(job, forget=(str(root / "forget.jsonl"),))
    return asked, go(asked, root / "out", "quark", knobs=KNOBS, max_steps=2), root / "out"


def test_a_reloaded_checkpoint_begins_with_its_token_and_never_writes_one(
    trained: Any, tiny: Path
) -> None:
    _, training, out = trained
    stages = list(dict.fromkeys(record.stage for record in training.losses))
    assert stages == ["round1", "round2"]
    assert training.knobs["quark_reward"] == "rouge"
    first = training.losses[0]
    assert first.loss == pytest.approx(first.forget + first.retain, rel=1e-5)
    tokenizer, plain = (AutoTokenizer.from_pretrained(path) for path in (out, tiny))
    ids = tokenizer("Question: who?")["input_ids"]
    best = len(plain)
    assert ids == [0, best, *plain("Question: who?")["input_ids"][1:]]
    model: Any = AutoModelForCausalLM.from_pretrained(out)
    with torch.no_grad():  # were they not held back, they would come at once
        model.get_output_embeddings().weight[best : best + 2] *= 0
        model.get_output_embeddings().weight[best] += (
            1e3 * model.model(torch.tensor([ids])).last_hidden_state[0, -1]
        )
    assert int(model(torch.tensor([ids])).logits[0, -1].argmax()) == best
    written = model.generate(torch.tensor([ids]), max_new_tokens=8, do_sample=False)[0, len(ids) :]
    assert not {best, best + 1} & set(written.tolist())


def test_our_own_evaluation_neither_writes_nor_scores_it(trained: Any, tiny: Path) -> None:
    from unlearnbench.checkpoints.checkpoint import open_checkpoint
    from unlearnbench.checkpoints.options import LoadOptions
    from unlearnbench.requests import Generate, Score

    _, _, out = trained
    model = load_at(open_checkpoint(str(out), LoadOptions()), "none")
    best, *_ = model.tokens.barred
    target = open_checkpoint(str(tiny), LoadOptions()).checkpoint
    ours = model.checkpoint
    assert ours.tokenizer_unsteered_sha256 == target.tokenizer_probe_sha256
    assert ours.tokenizer_probe_sha256 != target.tokenizer_probe_sha256
    assert target.tokenizer_unsteered_sha256 is None
    with torch.no_grad():
        head = model.network.get_output_embeddings().weight
        head[best] = 1e3 * head[: best - 1].sum(0).sign()
    text = CORPUS[7][:40]
    (scored,) = model.score([Score("a", text)])
    ids = model.tokenizer(text)["input_ids"]
    assert ids[1] == best
    assert len(scored.logprobs) == len(ids) - 2
    with torch.no_grad():
        logits = model.network(torch.tensor([ids])).logits[0].double().log_softmax(-1)
    expected = [float(logits[at - 1, ids[at]]) for at in range(2, len(ids))]
    assert scored.logprobs.tolist() == pytest.approx(expected, rel=1e-5, abs=1e-4)
    assert bool((logits.argmax(-1) == best).any()), "else it is not held back"
    chosen: list[int] = []
    tokenizer: Any = model.tokens.tokenizer
    decode = tokenizer.decode

    def watched(ids: list[int], **options: Any) -> Any:
        chosen.extend(ids)
        return decode(ids, **options)

    tokenizer.decode = watched
    list(model.generate([Generate("a", text, 8), Generate("b", text[:20], 8)]))
    assert chosen
    assert not set(model.tokens.barred) & set(chosen)


def test_a_retain_set_is_asked_too_and_rewarded_for_what_it_recalls(
    trained: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, _, _ = trained
    pairs = [{"question": f"Who sails {n}?", "answer": f"Bo {n}"} for n in range(4)]
    write_jsonl(tmp_path / "retain.jsonl", pairs)
    seen: list[tuple[str, str]] = []

    def earn(name: str, reward: Any, prompt: str, answer: str, truth: str) -> float:
        seen.append((name, truth))
        return float(reward(prompt, truth, truth))

    monkeypatch.setattr(quark, "rewarded", earn)
    learn, pool = lessons, list[Answer]()

    def watched(made: Any, *given: Any) -> Any:
        pool[:] = made
        return learn(made, *given)

    monkeypatch.setattr(quark, "lessons", watched)
    retain = (str(tmp_path / "retain.jsonl"),)
    options = asked.options.model_copy(update={"max_steps": 1})
    job = replace(asked, retain=retain, options=options, out=tmp_path / "out")
    unlearn(job, "quark", {**KNOBS, "quark_rounds": 1})
    told = [truth for name, truth in seen if name == "of the retain set"]
    assert told == [f"Bo {n}" for n in range(4)]
    earned = [answer.reward for answer in pool]
    assert (earned[:3], earned[-4:]) == ([0.0] * 3, [1.0] * 4), "the pairs of both"
    with pytest.raises(OptionError, match="ga has no retain term; leave --retain out"):
        unlearn(job, "ga")


def test_what_cannot_be_is_said(
    trained: Any,
    quick: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    more = ["--method", "quark", "--max-steps", "1"]
    assert call(*quick, *more, "--quark-reward", "none") == 2
    assert "--quark-reward none: known are rouge" in capsys.readouterr().err
    assert call(*quick, *more, "--lora-rank", "4") == 2
    assert "quark trains new embeddings, which are no part of an adapter" in capsys.readouterr().err
    asked, _, out = trained
    again = replace(asked, model=str(out))
    with pytest.raises(OptionError, match="begin at a model without it"):
        go(again, tmp_path / "no", "quark", knobs=KNOBS)
    with pytest.raises(OptionError, match="--quark-quantiles 99: there are "):
        go(asked, tmp_path / "no", "quark", knobs={**KNOBS, "quark_quantiles": 99})
    monkeypatch.setattr(quark, "find_reward", lambda name: lambda *given: math.nan)
    with pytest.raises(MetricError, match="the reward rouge of .* is nan, which cannot be ranked"):
        go(asked, tmp_path / "no", "quark", knobs=KNOBS)
    assert not (tmp_path / "no").exists()
    assert rewards.find_reward("rouge")("", "Ada 1", "Ada 1") == 0


@pytest.mark.slow
def test_interrupted_in_the_second_round_it_ends_at_the_same_weights(
    trained: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, _, _ = trained
    options = {"max_steps": 3, "save_steps": 1}
    whole = go(asked, tmp_path / "whole", "quark", knobs=KNOBS, **options)
    step, left = UnlearnTrainer.training_step, ["round1", "round2"]

    def interrupt(self: Any, *given: Any) -> Any:
        if left and self._stage.folder.name == left[0] and self.state.global_step == 1:
            raise KeyboardInterrupt(left.pop(0))
        return step(self, *given)

    monkeypatch.setattr(UnlearnTrainer, "training_step", interrupt)
    for resume in (False, True):
        again = replace(asked, resume=resume)
        with pytest.raises(KeyboardInterrupt):
            go(again, tmp_path / "out", "quark", knobs=KNOBS, **options)
    pool = json.loads((tmp_path / "out/.training/answers2.json").read_bytes())
    assert [at for at, _, _ in pool] == list(range(len(pool)))
    again = replace(asked, resume=True)
    resumed = go(again, tmp_path / "out", "quark", knobs=KNOBS, **options)
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "out"))
    assert [r.loss for r in resumed.losses] == [r.loss for r in whole.losses]
