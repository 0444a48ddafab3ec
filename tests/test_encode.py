"""Encoded examples against transformers' own processor, positions, forward pass and loss."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal
from PIL import Image
from torch.testing import assert_close

from merit.config import Encoding, Runtime
from merit.data.examples import IMAGE_TOKEN, Example, make_example
from merit.data.images import load_image
from merit.errors import MeritError
from merit.io.artifacts import Artifacts, read_json, write_json, write_jsonl
from merit.train import encode
from merit.train.dataset import ARRAYS, IGNORED, TokenizedDataset
from merit.train.images import image_reader
from merit.train.loss import forward_loss
from merit.train.model import SPECIAL_TOKENS
from tests.conftest import Tiny, picture
from tests.training import save_encoded


def reference(tiny: Tiny, example: Example) -> Any:
    """What the processor itself makes of the example: chat template, image tokens, pixels."""
    messages = []
    for message in example.messages:
        parts: list[dict[str, str]] = []
        for i, text in enumerate(message["content"].split(IMAGE_TOKEN)):
            parts += [{"type": "image"}] * (i > 0)
            parts += [{"type": "text", "text": text}] * bool(text)
        messages.append({"role": message["role"], "content": parts})
    images = [load_image(picture(tiny.data, image)) for image in example.images]
    return tiny.processor(
        text=[tiny.processor.apply_chat_template(messages, tokenize=False)],
        images=images or None,
        return_tensors="pt",
        return_mm_token_type_ids=True,
    )


def test_only_answers_and_their_end_marks_are_supervised(tiny: Tiny) -> None:
    tokenizer = tiny.processor.tokenizer
    assistant = tokenizer.convert_tokens_to_ids("assistant")
    for i, example in enumerate(tiny.examples):
        tokens, labels, _ = tiny.encoded.example(i)
        mask = labels != IGNORED
        assert_array_equal(labels[mask], tokens[mask])
        answers = [m["content"] for m in example.messages if m["role"] == "assistant"]
        expected = tokenizer(
            [answer + SPECIAL_TOKENS["end"] for answer in answers], add_special_tokens=False
        )["input_ids"]
        assert labels[mask].tolist() == [token for ids in expected for token in ids]
        # each run of supervised tokens is one answer, after "assistant"
        starts = np.flatnonzero(mask & ~np.roll(mask, 1))
        assert len(starts) == len(answers)
        assert set(tokens[starts - 1]) == {assistant}


@pytest.mark.parametrize("cache_images", [True, False])
def test_the_encode_stage_writes_both_counts_of_every_task(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache_images: bool
) -> None:
    """tasks.json: sums over the task's examples, in the order of the mixture's own tasks.json."""
    monkeypatch.chdir(tmp_path)
    paths = Artifacts("x")
    rows = {
        "a": [make_example("a-0", "a", [("say yes .", "yes .")], ("x.png",))],
        "b": [make_example(f"b-{i}", "b", [("say yes .", "yes")], ("x.png",)) for i in range(2)],
    }
    for task, examples in rows.items():
        write_jsonl(paths.mixture / f"{task}.jsonl", [e.to_json() for e in examples])
    write_json(paths.mixture / "tasks.json", [{"task": "b"}, {"task": "a"}])
    Image.new("RGB", (56, 56)).save(paths.mixture / "x.png")
    tiny.model.save_pretrained(paths.base)
    tiny.processor.save_pretrained(paths.base)
    write_json(paths.base / "base.json", {"base_hash": "of the base"})
    encoding = Encoding(cache_images=cache_images)
    experiment = SimpleNamespace(encoding=encoding, model=Runtime())
    monkeypatch.setattr(encode, "load_experiment", lambda name: experiment)
    encode.run("x")
    assert read_json(paths.encoded / "tasks.json") == [
        {"task": "b", "num_samples": 2, "num_tokens": 2 * (10 + 18), "num_loss_tokens": 2 * 2},
        {"task": "a", "num_samples": 1, "num_tokens": 11 + 18, "num_loss_tokens": 3},
    ]
    data = TokenizedDataset.load(
        paths.encoded, image_reader(paths.mixture, tiny.processor, encoding)
    )
    assert len(data) == 3
    assert data.features.shape == ((16, 32) if cache_images else (0, 0))
    with torch.no_grad():
        found = forward_loss(tiny.model, data.batch([0, 2]), None)
        direct = forward_loss(
            tiny.model, replace(data, features=np.zeros((0, 0))).pack([0, 2]), None
        )
    assert_close(found, direct)


def test_a_padded_batch_has_the_token_mean_of_its_examples_losses(tiny: Tiny) -> None:
    indices = np.arange(len(tiny.encoded))
    lengths = np.diff(tiny.encoded.offsets)
    assert lengths.min() < lengths.max() / 3  # there is something to pad
    with torch.no_grad():
        together = forward_loss(tiny.model, tiny.encoded.batch(indices), None)
        alone = torch.stack(
            [forward_loss(tiny.model, tiny.encoded.batch([i]), None) for i in indices]
        )
    counts = torch.from_numpy(tiny.encoded.num_loss_tokens()).float()
    assert_close(together, (alone * counts).sum() / counts.sum(), rtol=1e-6, atol=1e-6)


def test_tokens_are_the_processors_and_cached_features_give_the_logits_of_the_pixels(
    tiny: Tiny,
) -> None:
    from transformers.modeling_outputs import BaseModelOutputWithPooling

    for i, example in enumerate(tiny.examples):
        inputs = reference(tiny, example)
        assert_array_equal(tiny.encoded.example(i)[0], inputs["input_ids"][0].numpy())
        if i not in (4, 11):
            continue
        batch = tiny.encoded.batch([i])
        with torch.no_grad():
            expected = tiny.model(**inputs, use_cache=False).logits
            embeddings: Any = (batch["features"],)
            found = tiny.model(
                input_ids=batch["input_ids"],
                position_ids=batch["position_ids"],
                mm_encoder_outputs={"image": BaseModelOutputWithPooling(pooler_output=embeddings)},
                use_cache=False,
            ).logits
        assert_close(found, expected, rtol=1e-5, atol=1e-6)
        # and the image matters: another one gives other logits
        swapped = {**batch, "features": batch["features"].flip(0)}
        assert forward_loss(tiny.model, swapped, None) != forward_loss(tiny.model, batch, None)


def test_arrays_come_back_from_disk(tiny: Tiny, tmp_path: Path) -> None:
    save_encoded(tiny.encoded, tmp_path)
    assert (tmp_path / "bearing.npy").is_file()  # the loss mask's name on disk
    loaded = TokenizedDataset.load(tmp_path)
    for name in ARRAYS:
        array = getattr(tiny.encoded, name)
        assert_array_equal(getattr(loaded, name), array)
        assert getattr(loaded, name).dtype == array.dtype
    assert (loaded.image_token, loaded.merge_size) == (tiny.encoded.image_token, 2)
    content = (tmp_path / "features.npy").read_bytes()
    for kept in (0, 5, len(content) // 2):
        (tmp_path / "features.npy").write_bytes(content[:kept])
        with pytest.raises(MeritError, match=r"features.npy: "):
            TokenizedDataset.load(tmp_path)
