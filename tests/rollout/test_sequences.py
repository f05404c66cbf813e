from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from ippo.rollout.sequences import Sequences, pad_left, within_budget


@pytest.fixture
def ragged() -> Sequences:
    """Prompts of 1, 3 and 2 tokens, responses of 2, 1 and 3, with one column too many on both sides."""
    return Sequences(
        prompt_ids=torch.tensor([[0, 0, 0, 11], [0, 21, 22, 23], [0, 0, 31, 32]]),
        prompt_mask=torch.tensor([[0, 0, 0, 1], [0, 1, 1, 1], [0, 0, 1, 1]]).bool(),
        response_ids=torch.tensor([[15, 16, 0, 0], [25, 0, 0, 0], [35, 36, 37, 0]]),
        response_mask=torch.tensor([[1, 1, 0, 0], [1, 0, 0, 0], [1, 1, 1, 0]]).bool(),
        finished=torch.tensor([True, True, False]),
    )


def tensors(sequences: Sequences) -> dict[str, list]:
    return {name: value.tolist() for name, value in vars(sequences).items() if value is not None}


def test_prompt_and_response_side_by_side(ragged: Sequences) -> None:
    assert len(ragged) == 3
    assert ragged.input_ids[0].tolist() == [0, 0, 0, 11, 15, 16, 0, 0]
    assert ragged.attention_mask[1].tolist() == [0, 1, 1, 1, 1, 0, 0, 0]
    assert ragged.attention_mask.dtype == torch.long
    assert ragged.lengths.tolist() == [2, 1, 3]


def test_positions_count_from_the_first_real_token(ragged: Sequences) -> None:
    real = [positions[mask == 1] for positions, mask in zip(ragged.position_ids, ragged.attention_mask, strict=True)]
    assert [positions.tolist() for positions in real] == [[0, 1, 2], [0, 1, 2, 3], [0, 1, 2, 3, 4]]
    assert ragged.position_ids.shape == ragged.input_ids.shape
    assert ragged.position_ids.min() == 0


@pytest.mark.parametrize(
    ("index", "expected"),
    [
        (torch.tensor([2, 0]), [35, 15]),
        (torch.tensor([1, 1, 1]), [25, 25, 25]),
        (torch.tensor([True, False, True]), [15, 35]),
        (torch.tensor([], dtype=torch.long), []),
    ],
    ids=["order", "repeats", "bools", "none"],
)
def test_rows(ragged: Sequences, index: Tensor, expected: list[int]) -> None:
    picked = ragged.rows(index)
    assert picked.response_ids[:, 0].tolist() == expected
    assert len(picked) == len(expected)
    assert picked.prompt_mask.shape == (len(expected), 4)
    assert picked.finished is not None
    assert picked.finished.tolist() == [first != 35 for first in expected]


def test_an_engine_may_leave_open_which_have_finished(ragged: Sequences) -> None:
    silent = Sequences(ragged.prompt_ids, ragged.prompt_mask, ragged.response_ids, ragged.response_mask)
    assert silent.finished is None
    assert silent.rows(torch.tensor([2])).trim().to("cpu").finished is None


def test_trim_cuts_columns_that_are_padding_everywhere(ragged: Sequences) -> None:
    assert tensors(ragged.trim()) == {
        "prompt_ids": [[0, 0, 11], [21, 22, 23], [0, 31, 32]],
        "prompt_mask": [[False, False, True], [True, True, True], [False, True, True]],
        "response_ids": [[15, 16, 0], [25, 0, 0], [35, 36, 37]],
        "response_mask": [[True, True, False], [True, False, False], [True, True, True]],
        "finished": [True, True, False],
    }
    assert tensors(ragged.trim().trim()) == tensors(ragged.trim())


def test_chunks_are_consecutive_and_trimmed_one_by_one(ragged: Sequences) -> None:
    first, last = ragged.chunks(2)
    assert first.prompt_ids.tolist() == [[0, 0, 11], [21, 22, 23]]
    assert first.response_ids.tolist() == [[15, 16], [25, 0]]
    assert last.prompt_ids.tolist() == [[31, 32]]
    assert last.response_ids.tolist() == [[35, 36, 37]]
    assert [len(chunk) for chunk in ragged.chunks(5)] == [3]


def test_no_rows_make_no_chunks(ragged: Sequences) -> None:
    nothing = ragged.rows(torch.zeros(3, dtype=torch.bool))
    assert nothing.chunks(2) == []
    assert len(nothing.trim()) == 0


def test_nothing_is_changed_in_place(ragged: Sequences) -> None:
    before = tensors(ragged)
    for other in (ragged.rows(torch.tensor([0])), ragged.trim(), *ragged.chunks(1), ragged.to("cpu")):
        assert other is not ragged
    assert tensors(ragged) == before


def test_to_moves_every_tensor(ragged: Sequences) -> None:
    full = replace(ragged, engine_logprobs=torch.zeros(3, 4))
    assert {value.device.type for value in vars(full.to("meta")).values()} == {"meta"}


def test_pad_left() -> None:
    ids, mask = pad_left([[1, 2, 3], [4], [5, 9]], pad=9)
    assert ids.tolist() == [[1, 2, 3], [9, 9, 4], [9, 5, 9]]
    assert mask.tolist() == [[True] * 3, [False, False, True], [False, True, True]]  # a real token may equal pad
    assert mask.dtype == torch.bool


class TestWithinBudget:
    @pytest.fixture
    def lengths(self) -> tuple[Tensor, Tensor]:
        return tuple(torch.randint(1, 40, (50,), generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))  # type: ignore[return-value]

    @pytest.mark.parametrize(("size", "tokens"), [(50, 300), (4, 300), (50, 10_000), (50, 1)])
    def test_every_row_once_and_no_batch_beyond_it(
        self, lengths: tuple[Tensor, Tensor], size: int, tokens: int
    ) -> None:
        batches = within_budget(*lengths, size, tokens)
        assert sorted(torch.cat(batches).tolist()) == list(range(50))
        for rows in batches:
            padded = sum(int(side[rows].max()) for side in lengths) * len(rows)
            assert len(rows) == 1 or (padded <= tokens and len(rows) <= size)

    def test_little_of_it_is_padding(self, lengths: tuple[Tensor, Tensor]) -> None:
        def padded(batches: list[Tensor]) -> int:
            return sum(sum(int(side[rows].max()) for side in lengths) * len(rows) for rows in batches)

        batches = within_budget(*lengths, 50, 300)
        as_they_come = list(torch.arange(50).split(-(-50 // len(batches))))
        assert padded(batches) < 0.9 * padded(as_they_come)

    def test_chunks_hold_the_rows_of_places(self, ragged: Sequences) -> None:
        places, chunks = ragged.places(9, tokens=7), ragged.chunks(9, tokens=7)
        assert [len(rows) for rows in places] == [1, 1, 1]
        assert [chunk.response_ids[0, 0].item() for chunk in chunks] == [
            int(ragged.response_ids[rows, 0]) for rows in places
        ]

    def test_results_of_parts_find_their_rows(self, ragged: Sequences) -> None:
        parts, order = ragged.parts(2, tokens=9)
        assert torch.cat([part.lengths for part in parts])[order].tolist() == [2, 1, 3]
        assert torch.cat([part.lengths for part in parts]).tolist() != [2, 1, 3]
