"""Packed rows: no example sees another, and the loss is the padded batch's."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from PIL import Image
from torch.testing import assert_close

from merit.config import Architecture, Encoding
from merit.data.examples import make_example
from merit.errors import MeritError
from merit.mini.nets import build_text_model, build_tokenizer
from merit.train import loss as loss_module
from merit.train.dataset import IGNORED, TokenizedDataset, packed_rows
from merit.train.images import ImageReader
from merit.train.loss import forward_loss
from merit.train.tokenize import Template, encode_examples, template_of
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


def test_grids_are_those_of_the_pixels(ragged: TokenizedDataset) -> None:
    assert ragged.grids.tolist() == [[1, 8, 8], [1, 6, 12], [1, 20, 6]]
    batch = ragged.batch([0, 2])
    assert batch["grids"].tolist() == [[1, 6, 12], [1, 20, 6], [1, 8, 8]]
    assert len(batch["pixel_values"]) == 72 + 120 + 64


def test_positions_of_several_images_are_those_of_get_rope_index(
    tiny: Tiny, ragged: TokenizedDataset
) -> None:
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


@pytest.mark.parametrize("order", [[0, 1, 2, 3, 4], [4, 2, 3, 1, 0], [3, 3, 1]])
def test_a_packed_vision_row_has_every_examples_own_logits(
    tiny: Tiny, ragged: TokenizedDataset, order: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    together = logits(tiny.model, ragged.pack(order), monkeypatch)[0]
    bounds = ragged.pack(order)["bounds"].tolist()
    for i, (start, end) in zip(order, pairwise(bounds), strict=True):
        alone = logits(tiny.model, ragged.batch([i]), monkeypatch)[0]
        assert_close(together[start:end], alone, rtol=1e-5, atol=1e-5)


def test_a_packed_text_row_has_every_examples_own_logits(
    text: tuple[Any, TokenizedDataset], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, data = text
    batch = data.pack([2, 0, 4, 4])
    together, bounds = logits(model, batch, monkeypatch)[0], batch["bounds"].tolist()
    for i, (start, end) in zip([2, 0, 4, 4], pairwise(bounds), strict=True):
        alone = logits(model, data.batch([i]), monkeypatch)[0]
        assert_close(together[start:end], alone, rtol=1e-5, atol=1e-5)


def test_without_their_own_text_positions_examples_would_leak(
    tiny: Tiny, ragged: TokenizedDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the fourth row of positions is for: with three, the second example sees the first."""
    batch = ragged.pack([0, 3])
    start = int(batch["bounds"][1])
    right = logits(tiny.model, batch, monkeypatch)[0, start:]
    leaky = {**batch, "position_ids": batch["position_ids"][1:]}
    wrong = logits(tiny.model, leaky, monkeypatch)[0, start:]
    assert float((right - wrong).abs().max()) > 1e-3


def test_packed_and_padded_losses_and_gradients_are_equal(
    tiny: Tiny, ragged: TokenizedDataset
) -> None:
    parameters = [p for n, p in tiny.model.named_parameters() if "visual" not in n]
    found = []
    for batch in (ragged.batch(range(5)), ragged.pack(range(5))):
        loss = forward_loss(tiny.model, batch, None)
        found.append((loss, torch.autograd.grad(loss, parameters)))
    assert_close(found[0][0], found[1][0])
    for padded, packed in zip(found[0][1], found[1][1], strict=True):
        assert_close(padded, packed, rtol=1e-4, atol=1e-6)


def test_a_large_vocabularys_loss_is_the_small_ones(
    text: tuple[Any, TokenizedDataset], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In chunks of three tokens, computed twice: the value and the gradients of all at once."""
    model, data = text
    found = []
    for limit in (loss_module.SMALL_VOCABULARY, 1):
        monkeypatch.setattr(loss_module, "SMALL_VOCABULARY", limit)
        monkeypatch.setattr(loss_module, "CHUNK", 3)
        loss = forward_loss(model, data.batch([0, 1, 4]), None)
        found.append((loss, torch.autograd.grad(loss, list(model.parameters()))))
    assert_close(found[0][0], found[1][0])
    for whole, chunked in zip(found[0][1], found[1][1], strict=True):
        assert_close(whole, chunked, rtol=1e-4, atol=1e-6)


def test_the_first_token_of_a_packed_example_bears_no_loss(
    text: tuple[Any, TokenizedDataset],
) -> None:
    _, data = text
    everywhere = replace(data, bearing=np.ones_like(data.bearing))
    labels = everywhere.pack([0, 1])["labels"][0]
    first = int(data.num_tokens()[0])
    assert labels[0] == labels[first] == IGNORED
    assert (
        (labels != IGNORED).sum()
        == len(labels) - 2
        == everywhere.num_targets(np.array([0, 1])).sum()
    )


def test_rows_by_hand() -> None:
    """Limit 10: 7 opens a row; 6 another; 4 goes to 6; 3 to 7; 12 has a row of its own."""
    rows = packed_rows(np.array([4, 12, 7, 3, 6]), 10)
    assert [row.tolist() for row in rows] == [[1], [2, 3], [0, 4]]


@given(st.lists(st.integers(1, 50), min_size=1, max_size=40), st.integers(10, 60))
def test_rows_hold_every_example_once_and_keep_the_limit(lengths: list[int], limit: int) -> None:
    rows = packed_rows(np.array(lengths), limit)
    assert sorted(np.concatenate(rows).tolist()) == list(range(len(lengths)))
    for row in rows:
        assert len(row) == 1 or sum(lengths[i] for i in row) <= limit
    # first-fit leaves no two rows that would fit into one
    sums = [sum(lengths[i] for i in row) for row in rows]
    assert len(rows) < 2 or min(a + b for a, b in pairwise(sums)) > limit


# --- templates and limits -------------------------------------------------------------------------

SYSTEM = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nBe good.<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
)


def test_a_chat_template_is_taken_apart(text: tuple[Any, TokenizedDataset]) -> None:
    tokenizer = build_tokenizer(WORDS)
    tokenizer.chat_template = SYSTEM
    template = template_of(tokenizer, "chat")
    assert template == Template(
        opening="<|im_start|>system\nBe good.<|im_end|>\n<|im_start|>user\n",
        to_answer="<|im_end|>\n<|im_start|>assistant\n",
        to_prompt="\n<|im_start|>user\n",
        closing="\n",
        end="<|im_end|>",
    )
    example = make_example("x", "t", [("say yes", "yes"), ("what", "no")], ())
    written = "".join(text for text, _ in template.segments(example))
    assert written == tokenizer.apply_chat_template(list(example.messages), tokenize=False)
    assert [text for text, bears in template.segments(example) if bears] == [
        "yes<|im_end|>",
        "no<|im_end|>",
    ]


@pytest.mark.parametrize(
    "broken",
    [
        None,
        "{{ messages[-1]['content'] }}",
        "{% for m in messages %}{{ m['content'] }}{% endfor %}",
    ],
)
def test_a_template_that_cannot_be_taken_apart_is_refused(broken: str | None) -> None:
    tokenizer = build_tokenizer(WORDS)
    tokenizer.chat_template = broken
    with pytest.raises(MeritError, match="chat template"):
        template_of(tokenizer, "chat")


def test_plain_text_is_prompt_answer_and_end_mark() -> None:
    tokenizer = build_tokenizer(WORDS)
    example = make_example("x", "t", [("say yes", "yes no")], ())
    found = encode_examples([example], tokenizer, {}, np.zeros((0, 3)), Encoding(template="plain"))
    assert tokenizer.convert_ids_to_tokens(found.tokens.tolist()) == [
        *("say", "yes", "yes", "no", "<|im_end|>")
    ]
    assert found.bearing.tolist() == [False, False, True, True, True]


def long_example(tiny: Tiny, settings: Encoding, images: tuple[str, ...] = ()) -> TokenizedDataset:
    example = make_example("q7", "t", [("what color ?", "red . yes . yes .")], images)
    grids = np.array([[1, 8, 8]])
    return encode_examples([example], tiny.processor, {"x.png": 0}, grids, settings)


def test_a_long_example_is_named_or_cut(tiny: Tiny) -> None:
    whole = long_example(tiny, Encoding())
    length = int(whole.num_tokens()[0])
    with pytest.raises(MeritError, match=rf"task 't', example 'q7': {length} tokens.*max_tokens"):
        long_example(tiny, Encoding(max_tokens=length - 1))
    cut = long_example(tiny, Encoding(max_tokens=length - 3, on_long_example="cut"))
    assert_array_equal(cut.tokens, whole.tokens[:-3])
    assert cut.num_loss_tokens()[0] == whole.num_loss_tokens()[0] - 3


def test_no_cut_falls_into_an_image(tiny: Tiny) -> None:
    with pytest.raises(MeritError, match="a part of an image or its whole answer"):
        long_example(tiny, Encoding(max_tokens=10, on_long_example="cut"), ("x.png",))


def test_images_for_a_text_model_are_refused() -> None:
    example = make_example("q7", "t", [("what color ?", "red")], ("x.png",))
    with pytest.raises(MeritError, match=r"'q7' has images.*text model"):
        encode_examples([example], build_tokenizer(WORDS), {"x.png": 0}, np.array([[1, 8, 8]]))


def test_an_image_two_hundred_times_as_long_as_wide_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    Image.new("RGB", (2010, 10)).save(tmp_path / "x.png")
    with pytest.raises(MeritError, match=r"x.png: 2010 x 10 pixels: .*aspect ratio"):
        ImageReader(tmp_path, tiny.processor.image_processor).grid("x.png")


def test_an_image_that_has_changed_since_is_refused(tiny: Tiny, ragged: TokenizedDataset) -> None:
    changed = replace(ragged, grids=ragged.grids[:, [0, 2, 1]])
    with pytest.raises(MeritError, match=r"b.png: the image has \[1, 6, 12\] patches now"):
        changed.batch([0])
