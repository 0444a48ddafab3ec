"""Packed rows: no example sees another, and the loss is the padded batch's."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from PIL import Image
from torch.testing import assert_close

from merit.config import Architecture
from merit.data.examples import make_example
from merit.errors import MeritError
from merit.mini.nets import build_text_model, build_tokenizer
from merit.train import loss as loss_module
from merit.train.batches import BatchPlan, packed_rows
from merit.train.dataset import IGNORED, TokenizedDataset
from merit.train.images import ImageReader
from merit.train.loss import forward_loss
from merit.train.tokenize import encode_examples
from tests.conftest import Tiny

TEXT = Architecture(
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    initializer_range=0.3,
)
WORDS = ["say", "yes", "no", "red", "blue", "what", "color", "is", "it"]


@pytest.fixture(scope="module")
def ragged(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> TokenizedDataset:
    """Images of several sizes, none, one and two an example; a text example last and between."""
    folder = tmp_path_factory.mktemp("ragged")
    rng = np.random.default_rng(0)
    for name, size in {"a.png": (56, 56), "b.png": (84, 42), "c.png": (42, 140)}.items():
        pixels = rng.integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name)
    rows = [
        make_example("0", "t", [("what color ?", "red .")], ("b.png",)),
        make_example("1", "t", [("say yes .", "yes .")], ()),
        make_example(
            "2", "t", [("what color ?", "red"), ("say yes .", "yes .")], ("c.png", "a.png")
        ),
        make_example("3", "t", [("what color ?", "red . yes")], ("a.png",)),
        make_example("4", "t", [("say yes .", "yes . yes . yes .")], ()),
    ]
    read = ImageReader(folder, tiny.processor.image_processor, 28 * 28, 84 * 84)
    paths = sorted({image for row in rows for image in row.images})
    grids = np.array([read.grid(path) for path in paths])
    ids = {path: i for i, path in enumerate(paths)}
    return replace(encode_examples(rows, tiny.processor, ids, grids), read_images=read)


@pytest.fixture(scope="module")
def text() -> tuple[Any, TokenizedDataset]:
    tokenizer = build_tokenizer(WORDS)
    model = build_text_model(tokenizer, TEXT, seed=2)
    rows = [
        make_example(str(i), "t", [(" ".join(WORDS[i:]), " ".join(WORDS[: i + 1]))], ())
        for i in range(5)
    ]
    return model, encode_examples(rows, tokenizer, {}, np.zeros((0, 3)))


def logits(model: Any, batch: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch) -> Any:
    """All logits that the loss would be computed of."""
    found = {}

    def keep(model: Any, hidden: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        found["logits"] = model.lm_head(hidden)
        return hidden.sum()

    monkeypatch.setattr(loss_module, "token_loss", keep)
    with torch.no_grad():
        forward_loss(model, batch, None)
    return found["logits"]


def test_positions_of_several_images_are_those_of_get_rope_index(
    tiny: Tiny, ragged: TokenizedDataset
) -> None:
    assert ragged.batch([0, 2])["grids"].tolist() == [[1, 6, 12], [1, 20, 6], [1, 8, 8]]
    for i in range(len(ragged)):
        tokens, _, positions = ragged.example(i)
        grids = torch.from_numpy(ragged.grids[ragged.images_of(i)]).long()
        ids = torch.from_numpy(tokens)[None]
        expected, _ = tiny.model.model.get_rope_index(
            ids,
            mm_token_type_ids=(ids == ragged.image_token).int(),
            image_grid_thw=grids if len(grids) else None,
            attention_mask=torch.ones_like(ids),
        )
        assert_array_equal(positions, expected[:, 0].numpy())


@pytest.mark.parametrize(
    ("kind", "order"), [("vision", [4, 2, 3, 1, 0]), ("vision", [3, 3, 1]), ("text", [2, 0, 4, 4])]
)
def test_a_packed_row_has_the_logits_of_every_example_alone(
    tiny: Tiny,
    ragged: TokenizedDataset,
    text: tuple[Any, TokenizedDataset],
    kind: str,
    order: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, data = (tiny.model, ragged) if kind == "vision" else text
    batch = data.pack(order)
    together = logits(model, batch, monkeypatch)[0]
    for i, (start, end) in zip(order, pairwise(batch["bounds"].tolist()), strict=True):
        alone = logits(model, data.batch([i]), monkeypatch)[0]
        assert_close(together[start:end], alone, rtol=1e-5, atol=1e-5)

    if kind == "text":
        return
    # what the fourth row of positions is for: with three, the second example sees the first
    batch = ragged.pack([0, 3])
    start = int(batch["bounds"][1])
    right = logits(tiny.model, batch, monkeypatch)[0, start:]
    leaky = {**batch, "position_ids": batch["position_ids"][1:]}
    wrong = logits(tiny.model, leaky, monkeypatch)[0, start:]
    assert float((right - wrong).abs().max()) > 1e-3


def check_gradients(model: Any, losses: list[torch.Tensor]) -> None:
    """Two losses and their gradients are equal but for rounding."""
    parameters = [p for n, p in model.named_parameters() if "visual" not in n]
    first, second = (torch.autograd.grad(loss, parameters) for loss in losses)
    assert_close(*losses)
    for gradient, other in zip(first, second, strict=True):
        assert_close(gradient, other, rtol=1e-4, atol=1e-6)


def test_packed_and_padded_losses_and_gradients_are_equal(
    tiny: Tiny, ragged: TokenizedDataset
) -> None:
    batches = ragged.batch(range(5)), ragged.pack(range(5))
    check_gradients(tiny.model, [forward_loss(tiny.model, batch, None) for batch in batches])


def test_a_large_vocabularys_loss_is_the_small_ones(
    text: tuple[Any, TokenizedDataset], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In chunks of three tokens, computed twice: the value and the gradients of all at once."""
    model, data = text
    losses = []
    for limit in (loss_module.SMALL_VOCABULARY, 1):
        monkeypatch.setattr(loss_module, "SMALL_VOCABULARY", limit)
        monkeypatch.setattr(loss_module, "CHUNK", 3)
        losses.append(forward_loss(model, data.batch([0, 1, 4]), None))
    check_gradients(model, losses)


def test_the_first_token_of_a_packed_example_is_not_supervised(
    text: tuple[Any, TokenizedDataset],
) -> None:
    _, data = text
    everywhere = replace(data, loss_mask=np.ones_like(data.loss_mask))
    labels = everywhere.pack([0, 1])["labels"][0]
    first = int(data.num_tokens()[0])
    assert labels[0] == labels[first] == IGNORED
    assert int((labels != IGNORED).sum()) == len(labels) - 2
    assert everywhere.num_targets(np.array([0, 1])).sum() == len(labels) - 2


def test_rows_by_hand() -> None:
    """Limit 10: 7 opens a row; 6 another; 4 goes to 6; 3 to 7; 12 has a row of its own."""
    rows = packed_rows(np.array([4, 12, 7, 3, 6]), 10)
    assert [row.tolist() for row in rows] == [[1], [2, 3], [0, 4]]


def test_rows_of_several_processes_by_hand() -> None:
    """Lengths 4, 12, 7, 3, 6 in rows of 20: first-fit needs two, of 19 and 13. Two processes get
    12 + 4 = 16 and 7 + 6 + 3 = 16; four get rows of 12, 7, 7 and 6; of three examples four get one
    each, and the last computes the shortest again, which does not count.
    """
    data: Any = SimpleNamespace(num_tokens=lambda: np.array([4, 12, 7, 3, 6]))

    def shares(order: list[int], processes: int, limit: int | None = 20) -> list[Any]:
        plan = BatchPlan.of(np.array(order), data, len(order), limit, processes)
        return [
            [(row.tolist(), counts) for row, counts in plan.share(0, rank)]
            for rank in range(processes)
        ]

    everything = [0, 1, 2, 3, 4]
    assert shares(everything, 1) == [[([1, 2], True), ([0, 3, 4], True)]]
    assert shares(everything, 2) == [[([0, 1], True)], [([2, 3, 4], True)]]
    assert shares(everything, 4) == [
        *([([1], True)], [([2], True)], [([0, 3], True)], [([4], True)]),
    ]
    assert shares([0, 1, 2], 4)[2:] == [[([0], True)], [([0], False)]]
    # one padded batch is divided, too
    assert shares(everything, 2, None) == shares(everything, 2)
    assert shares(everything, 1, None) == [[(everything, True)]]
    # an even division that breaks the limit is not taken: 3 + 2 + 2 in rows of 6
    data.num_tokens = lambda: np.array([3, 3, 2, 2, 2])
    assert shares(everything, 2, 6) == [[([0, 1], True)], [([2, 3, 4], True)]]


@given(st.lists(st.integers(1, 50), min_size=1, max_size=40), st.integers(10, 60))
def test_rows_hold_every_example_once_and_keep_the_limit(lengths: list[int], limit: int) -> None:
    rows = packed_rows(np.array(lengths), limit)
    assert sorted(np.concatenate(rows).tolist()) == list(range(len(lengths)))
    for row in rows:
        assert len(row) == 1 or sum(lengths[i] for i in row) <= limit
    # first-fit leaves no two rows that would fit into one
    sums = [sum(lengths[i] for i in row) for row in rows]
    assert len(rows) < 2 or min(a + b for a, b in pairwise(sums)) > limit


def test_an_image_that_has_changed_since_is_refused(tiny: Tiny, ragged: TokenizedDataset) -> None:
    changed = replace(ragged, grids=ragged.grids[:, [0, 2, 1]])
    with pytest.raises(MeritError, match=r"b.png: .*\[1, 6, 12\]"):
        changed.batch([0])
