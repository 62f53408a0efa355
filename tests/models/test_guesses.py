from __future__ import annotations

from unlearnbench.models.guesses import Guesses

PROMPT = [*range(100, 130)]
DRAFT = [*range(40)]
ROWS = (1, 2, 8, 30, 100)


def guesses(*drafts: list[int], widest: int = 1000) -> Guesses:
    return Guesses([PROMPT], [drafts], widest)


def test_few_tokens_at_first_and_more_as_they_are_right() -> None:
    found = guesses(DRAFT)
    new: list[int] = []
    sizes = []
    while len(new) < 30:
        guessed = found.guess(0, new, 40 - len(new) - 1, 1)
        assert guessed == DRAFT[len(new) : len(new) + len(guessed)]
        found.learn(0, guessed, len(guessed))
        new = DRAFT[: len(new) + len(guessed) + 1]
        sizes.append(len(guessed))
    assert sizes[0] == 15
    assert sizes == sorted(sizes)


def test_fewer_tokens_where_many_rows_share_a_pass() -> None:
    """A right guess saves a row's share of a pass, which is little in a large one."""
    sizes = [len(Guesses([PROMPT] * n, [[DRAFT]] * n, 10**6).guess(0, [], 39, n)) for n in ROWS]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] > 10
    assert 0 < sizes[-1] <= 2


def test_no_more_than_may_be_asked_or_stand() -> None:
    assert guesses(DRAFT).guess(0, [], 1, 1) == DRAFT[:1]
    assert guesses(DRAFT).guess(0, [], 0, 1) == []
    assert guesses(DRAFT, widest=8).guess(0, [], 39, 4) == DRAFT[:1]
    assert guesses(DRAFT, widest=8).guess(0, [], 39, 8) == []
    assert guesses([]).guess(0, [], 39, 1) == []
    assert guesses(DRAFT[:3]).guess(0, DRAFT[:2], 9, 1) == DRAFT[2:3]


def test_another_draft_takes_over_where_it_has_said_the_same() -> None:
    other = [*DRAFT[:4], 77, 78, 79]
    found = guesses(DRAFT, other)
    found.learn(0, found.guess(0, [], 39, 1), 2)
    assert found.guess(0, [*DRAFT[:4], 77], 39, 1)[:1] == [78]


def test_behind_a_mismatch_the_text_is_found_again() -> None:
    found = guesses(DRAFT)
    found.learn(0, found.guess(0, [], 39, 1), 1)
    assert found.guess(0, [0, 50], 39, 1) == [], "nothing like it stood anywhere"
    assert found.guess(0, [0, 50, 7], 39, 1) == []
    assert found.guess(0, [0, 50, 7, 8], 39, 1)[:1] == [9], "in the draft, moved"
    assert found.guess(0, [0, 50, 7, 8, 9, 10], 39, 1)[:1] == [11], "and goes on there"
    assert found.guess(0, [0, 50, 7, 8, 9, 10, 111, 112], 39, 1)[:1] == [113], "in the prompt"


def test_what_repeats_itself_goes_on_so() -> None:
    found = guesses([5])
    found.guess(0, [], 39, 1)
    new = [201, 202, 203, 201, 202, 203, 201]
    sizes = []
    for _ in range(6):
        guessed = found.guess(0, new, 39, 1)
        whole = [201 + n % 3 for n in range(len(new), len(new) + len(guessed))]
        assert guessed == whole
        found.learn(0, guessed, len(guessed))
        new = [201 + n % 3 for n in range(len(new) + len(guessed) + 1)]
        sizes.append(len(guessed))
    assert sizes[-1] > 3, "beyond what stands there"


def test_what_is_wrong_is_given_up_and_tried_again_seldom() -> None:
    prompts = [[*range(1000, 1200)]] * 8
    found = Guesses(prompts, [[DRAFT]] * 8, 1000)
    guessed = 0
    for step in range(100):
        for row in range(8):
            new = [900 - n for n in range(step)]
            tokens = found.guess(row, new, 200 - step, 8)
            guessed += len(tokens)
            found.learn(row, tokens, 0)
    assert guessed <= 2 * 8 + 0.03 * (8 * 200 + 8 * 100)


def test_the_same_rows_give_the_same_guesses() -> None:
    def run() -> list[list[int]]:
        found = guesses(DRAFT, [*DRAFT[:9], 60, *DRAFT[9:]])
        seen = []
        for length in range(0, 30, 3):
            seen.append(found.guess(0, DRAFT[:length], 39 - length, 1))
            found.learn(0, seen[-1], len(seen[-1]) // 2)
        return seen

    assert run() == run()
