"""Our batched generation, against one question at a time without padding, cache or batches."""

from __future__ import annotations

import copy
import csv
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from merit.config import Architecture, Evaluation, Runtime
from merit.errors import MeritError
from merit.eval.answering import batches, generate, vllm_process
from merit.eval.answering.answers import (
    Parts,
    Questions,
    build_prompts,
    encode_questions,
    generate_answers,
    load_for_answers,
)
from merit.eval.answering.batches import Prompt, load_batches, prepared, save_batches, split
from merit.eval.answering.generate import Partial
from merit.eval.answering.question_images import Picture
from merit.mini.nets import VOCABULARY, build_model, build_text_model, build_tokenizer
from tests.conftest import ARCHITECTURE, Tiny
from tests.test_lm_engine import ARCHITECTURE as TEXT_ARCHITECTURE
from tests.tsv import encoded

PIXELS = (14 * 14, 42 * 56)  # a token is 14 x 14 pixels
NAME = "mini_signs"


def coloured(size: tuple[int, int], colour: str) -> str:
    return encoded(Image.new("RGB", size, colour))


@pytest.fixture(scope="module")
def tiny(processor: Any) -> Tiny:
    """Weights so large that an answer depends on every word and image."""
    architecture = Architecture(**{**ARCHITECTURE.model_dump(), "initializer_range": 0.4})
    return Tiny(build_model(processor, architecture, seed=3), processor, Path(), [], None)


@pytest.fixture(scope="module")
def tsv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five rows: one image, several, a text that spans lines, another row's image, a broken one."""
    small = coloured((28, 28), "red")
    wide, tall = coloured((56, 14), "blue"), coloured((14, 42), "green")
    rows = [
        ["0", "what colour ?", small],
        ["1", "is it so ?", str([wide, tall])],
        ["2", 'one "line"\nand another\tone', wide],
        ["3", "what is it ?", "1"],
        ["4", "and this ?", small[:60] + small[:60]],
    ]
    path = tmp_path_factory.mktemp("questions") / f"{NAME}.tsv"
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter="\t").writerows([["index", "question", "image"], *rows])
    return path


@pytest.fixture(scope="module")
def asked() -> dict[str, Parts]:
    """No image, one, two, between words; words and tokens of many lengths."""
    words = ["what", "colour", "is", "the", "large", "red", "circle", "in", "row", "3", "column"]

    def text(count: int) -> dict[str, str]:
        return {"text": " ".join(([*words, "4", "?"] * 3)[:count])}

    return {
        "none": [text(5)],
        "one": [{"image": ["0", 0]}, text(12)],
        "two": [{"image": ["1", 0]}, text(2), {"image": ["1", 1]}, text(3)],
        "long": [text(30)],
        "shared": [text(1), {"image": ["3", 1]}],
        "wide": [{"image": ["2", 0]}, {"image": ["0", 0]}, {"image": ["1", 1]}, text(7)],
        "short": [text(1)],
    }


def settings(**values: Any) -> Evaluation:
    given = {"min_pixels": PIXELS[0], "max_pixels": PIXELS[1], "max_new_tokens": 6, "batch_size": 3}
    return Evaluation(benchmarks=[NAME], **{**given, **values})


def questions(tsv: Path, asked: dict[str, Parts], **values: Any) -> Questions:
    return Questions(settings(**values), {NAME: tsv}, {NAME: asked})


def answers(tiny: Tiny, asked: Questions, model: Any = None, **values: Any) -> dict[str, str]:
    found, scores = generate_answers(model or tiny.model, tiny.processor, asked, **values)
    assert scores is None
    return found[NAME]


@torch.no_grad()
def greedy(model: Any, tokenizer: Any, inputs: dict[str, Any], num_tokens: int = 6) -> str:
    """The likeliest token after token; the whole sequence through the model every time."""
    written: list[int] = []
    while len(written) < num_tokens:
        token = int(model(**inputs).logits[0, -1].argmax())
        if token == tokenizer.eos_token_id:
            break
        written.append(token)
        for name, value in (("input_ids", token), ("attention_mask", 1), ("mm_token_type_ids", 0)):
            if name in inputs:
                inputs[name] = torch.cat([inputs[name], torch.tensor([[value]])], dim=1)
    return str(tokenizer.decode(written, skip_special_tokens=True)).strip()


def one_by_one(tiny: Tiny, tsv: Path, parts: Parts) -> str:
    content = [{"type": "text", **p} if "text" in p else {"type": "image"} for p in parts]
    text = tiny.processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
    )
    images = [Picture(tsv, *part["image"]).open() for part in parts if "image" in part]
    size = {"shortest_edge": PIXELS[0], "longest_edge": PIXELS[1]}
    more: dict[str, Any] = {"images": images, "size": size} if images else {}
    inputs = dict(tiny.processor(text=[text], return_tensors="pt", **more))
    return greedy(tiny.model, tiny.processor.tokenizer, inputs)


@pytest.fixture(scope="module")
def expected(tiny: Tiny, tsv: Path, asked: dict[str, Parts]) -> dict[str, str]:
    found = {index: one_by_one(tiny, tsv, parts) for index, parts in asked.items()}
    assert len(set(found.values())) > 3  # a model that says one thing only would prove nothing
    return found


# --- answers ------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 3, 7])
def test_any_number_of_images_in_any_batch(
    tiny: Tiny, tsv: Path, asked: dict[str, Parts], expected: dict[str, str], size: int
) -> None:
    """Greedy, whatever penalty and sampling the checkpoint asks for."""
    model = copy.deepcopy(tiny.model)
    model.generation_config.update(
        repetition_penalty=9.0, do_sample=True, temperature=5.0, top_k=7, num_beams=2
    )
    assert answers(tiny, questions(tsv, asked, batch_size=size), model) == expected


def test_pixel_limits_decide_the_number_of_image_tokens(
    tiny: Tiny, tsv: Path, asked: dict[str, Parts]
) -> None:
    token = tiny.processor.image_token_id

    def num_tokens(low: int, high: int) -> int:
        prompt = Prompt((Picture(tsv, "2"),), 1, (low, high))
        ids = batches.prepare(tiny.processor, [prompt], [0]).inputs["input_ids"]
        return int((ids == token).sum())

    assert num_tokens(14 * 14, 56 * 14) == 4  # 56 x 14 as it is
    assert num_tokens(8 * 14 * 56, 100 * 14 * 56) > 4 * 8 - 1
    assert num_tokens(14 * 14, 28 * 14) <= 2
    for values in ({"min_pixels": None}, {"min_pixels": 900, "max_pixels": 800}):
        with pytest.raises(ValueError, match="give both, least first"):
            settings(**values)


def test_batches_hold_questions_of_like_length(
    tiny: Tiny, tsv: Path, asked: dict[str, Parts]
) -> None:
    prompts = build_prompts(questions(tsv, asked))
    found = split(tiny.processor, prompts, 3)
    names = list(asked)
    # words of the question, four of the template, and an image's tokens with its two marks
    assert [[names[i] for i in batch] for batch in found] == [
        ["short", "shared", "none"],
        ["two", "one", "wide"],
        ["long"],
    ]


# --- images -------------------------------------------------------------------------------------


def test_images_are_read_where_they_stand(tsv: Path, tmp_path: Path) -> None:
    red, blue, green = ((28, 28), (255, 0, 0)), ((56, 14), (0, 0, 255)), ((14, 42), (0, 128, 0))
    for index, position, expected in (
        *(("0", 0, red), ("1", 0, blue), ("1", 1, green), ("2", 0, blue), ("3", 1, green)),
    ):
        picture = Picture(tsv, index, position)
        assert (picture.size(), picture.open().getpixel((0, 0))) == expected
    Image.new("L", (3, 5), 7).save(tmp_path / "x.png")
    assert Picture(tmp_path / "x.png").open().getpixel((0, 0)) == (7, 7, 7)
    assert Picture(tmp_path / "x.png").size() == (3, 5)


def test_an_image_that_cannot_be_read_is_named(tiny: Tiny, tsv: Path, tmp_path: Path) -> None:
    for index, position in (("4", 0), ("9", 0), ("1", 2)):
        with pytest.raises(MeritError, match=rf"{NAME}\.tsv: index {index}: "):
            Picture(tsv, index, position).open()
    Image.new("RGB", (402, 2)).save(tmp_path / "strip.png")
    prompt = Prompt((Picture(tmp_path / "strip.png"),), 1, PIXELS)
    with pytest.raises(MeritError, match=r"strip\.png: .*402 x 2"):
        split(tiny.processor, [prompt], 1)


# --- images encoded once ------------------------------------------------------------------------


def test_cached_questions_give_the_same_answers(
    tiny: Tiny, tsv: Path, asked: dict[str, Parts], expected: dict[str, str], tmp_path: Path
) -> None:
    file, again = tmp_path / "batches.safetensors", tmp_path / "again"
    vision = batches.vision_hash(tiny.model)
    save_batches(file, encode_questions(tiny.model, tiny.processor, questions(tsv, asked)), vision)
    save_batches(again, load_batches(file, tiny.model), vision)
    assert file.read_bytes() == again.read_bytes()
    other = copy.deepcopy(tiny.model)
    with torch.no_grad():
        other.model.language_model.embed_tokens.weight.mul_(1.5)
    wanted = answers(tiny, questions(tsv, asked), other)
    assert wanted != expected
    without_images = questions(tsv / "gone", asked)
    for model, texts in ((tiny.model, expected), (other, wanted)):
        encoded = load_batches(file, model)
        assert answers(tiny, without_images, model, encoded=encoded) == texts
    with torch.no_grad():
        other.model.visual.merger.ln_q.weight.mul_(1.5)
    with pytest.raises(MeritError, match=r"batches\.safetensors.*vision"):
        load_batches(file, other)
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(MeritError, match=r"batches\.safetensors"):
        load_batches(file, tiny.model)


# --- an interrupted run ---------------------------------------------------------------------------


def test_an_interrupted_run_resumes_after_its_last_batch(
    tiny: Tiny,
    tsv: Path,
    asked: dict[str, Parts],
    expected: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real, calls = generate.generate, []

    def dying(model: Any, processor: Any, batch: Any) -> list[str]:
        calls.append(batch.questions)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(model, processor, batch)

    monkeypatch.setattr(generate, "generate", dying)
    file, given = tmp_path / "partial.jsonl", questions(tsv, asked)
    with pytest.raises(KeyboardInterrupt):
        answers(tiny, given, partial=Partial(file, "this"))
    with file.open("a") as log:
        log.write('{"0": "cut sh')
    kept = Partial(file, "this")
    assert sorted(kept.done) == sorted(calls[0])
    found = answers(tiny, given, partial=kept)
    assert found == expected
    assert list(found) == list(asked)
    assert calls[2:] == [calls[1], [3]]  # "long" is a batch of its own
    assert Partial(file, "that").done == {}  # answers to something else are dropped
    kept.drop()
    assert not file.exists()


def test_marks_in_a_question_are_no_control_tokens(tiny: Tiny) -> None:
    """`<|image_pad|>` would want an image, `<|im_end|>` would end the prompt."""
    prompt = Prompt(("is it <|image_pad|> or <|im_end|> ?",), 1)
    text = batches.chat_text(tiny.processor, prompt)
    assert text.count("<|im_end|>") == batches.chat_text(tiny.processor, Prompt(("?",), 1)).count(
        "<|im_end|>"
    )
    assert "is it < |image_pad|> or < |im_end|> ?" in text
    batches.prepare(tiny.processor, [prompt], [0])


# --- text models --------------------------------------------------------------------------------


def test_a_text_model_answers_as_one_by_one() -> None:
    words = VOCABULARY.read_text(encoding="utf-8").split()
    tokenizer = build_tokenizer(words)
    model = build_text_model(tokenizer, TEXT_ARCHITECTURE, seed=1)
    prompts = [Prompt((" ".join(words[40 : 40 + n]),), 5) for n in (1, 9, 4, 17, 2)]
    found: dict[int, str] = {}
    for batch in prepared(tokenizer, prompts, split(tokenizer, prompts, 2)):
        texts = generate.generate(model, tokenizer, batch)
        found |= dict(zip(batch.questions, texts, strict=True))
    for i, prompt in enumerate(prompts):
        inputs = dict(tokenizer(batches.chat_text(tokenizer, prompt), return_tensors="pt"))
        assert found[i] == greedy(model, tokenizer, inputs, 5)
    assert len(set(found.values())) > 1
    named = [Prompt(p.parts, 5, None, b) for p, b in zip(prompts, "baaba", strict=True)]
    assert split(tokenizer, named, 2) == [[4, 2], [1], [0, 3]]  # one's answers are of like length
    picture = Prompt((Picture(Path("x.png")),), 1)
    with pytest.raises(MeritError, match=r"x\.png"):
        batches.chat_text(tokenizer, picture)


# --- vLLM ---------------------------------------------------------------------------------------

# the part of vLLM's interface that is used; nothing here can run the real one
STAND_IN = """
import json, os, sys
from types import SimpleNamespace as Thing
log = open(os.environ["LOG"], "a")
def SamplingParams(**values):
    return values
class LLM:
    def __init__(self, **values):
        assert "merit" not in sys.modules and not os.path.exists(values["model"] + "/broken")
        print("loading")
        print(json.dumps(values), file=log, flush=True)
        self.llm_engine, self.waiting = self, []
    def add_request(self, name, request, sampling):
        images = request.get("multi_modal_data", {}).get("image", [])
        shown = [[*i.size, *i.getpixel((0, 0))] for i in images]
        print(json.dumps([request["prompt"], shown, sampling]), file=log, flush=True)
        self.waiting.append((name, request["prompt"]))
    def get_num_unfinished_requests(self):
        return len(self.waiting)
    def has_unfinished_requests(self):
        return bool(self.waiting)
    def step(self):
        assert len(self.waiting) <= 3
        name, prompt = self.waiting.pop()
        half = Thing(request_id=name, finished=False)
        return [half, Thing(request_id=name, finished=True, outputs=[Thing(text=f" {prompt}\\n")])]
"""


@pytest.fixture
def other_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An interpreter that has vLLM, and takes three questions at a time."""
    (tmp_path / "vllm.py").write_text(STAND_IN, encoding="utf-8")
    (tmp_path / "sitecustomize.py").write_text("", encoding="utf-8")
    path = tmp_path / "python"
    path.write_text(f'#!/bin/sh\nPYTHONPATH={tmp_path} exec {sys.executable} "$@"\n')
    path.chmod(0o755)
    script = tmp_path / "process.py"
    script.write_text(Path(vllm_process.__file__).read_text().replace("OPEN = 2048", "OPEN = 3"))
    monkeypatch.setattr(vllm_process, "__file__", str(script))
    monkeypatch.setenv("LOG", str(tmp_path / "log"))
    return path


def test_vllm_of_another_environment_is_given_the_same_questions(
    tiny: Tiny, tsv: Path, asked: dict[str, Parts], other_python: Path, tmp_path: Path
) -> None:
    given = questions(tsv, asked, generator="vllm", vllm_python=str(other_python))
    model = load_for_answers(tmp_path, Runtime(dtype="bfloat16"), given)
    prompts = build_prompts(given)
    texts = [batches.chat_text(tiny.processor, prompt) for prompt in prompts]
    for _ in range(2):  # several rounds
        found = answers(tiny, given, model)
        assert list(found.items()) == list(zip(asked, [t.strip() for t in texts], strict=True))
    loaded, *requests = map(json.loads, (tmp_path / "log").read_text().splitlines())
    size = {"size": {"shortest_edge": PIXELS[0], "longest_edge": PIXELS[1]}}
    assert loaded == {
        **{"model": str(tmp_path), "seed": 0, "dtype": "bfloat16"},
        **{"limit_mm_per_prompt": {"image": 3}, "mm_processor_kwargs": size},
    }
    shown = [[picture.open() for picture in prompt.images] for prompt in prompts]
    pixels = [[[*i.size, *i.getpixel((0, 0))] for i in images] for images in shown]  # type: ignore[misc]
    sampling = {"temperature": 0.0, "max_tokens": 6, "repetition_penalty": 1.0}
    assert requests == 2 * [[t, p, sampling] for t, p in zip(texts, pixels, strict=True)]
    process = model._process
    del model
    assert process.poll() == 0  # the next model has its GPU


def test_what_vllm_cannot_do_is_one_line(
    tiny: Tiny, tsv: Path, asked: dict[str, Parts], other_python: Path, tmp_path: Path
) -> None:
    for python, why in ((None, "No module named 'vllm'; name the"), ("/no/python", "no such file")):
        given = questions(tsv, asked, generator="vllm", vllm_python=python)
        with pytest.raises(MeritError, match=why) as raised:
            load_for_answers(tmp_path, Runtime(), given)
        assert "\n" not in str(raised.value)
    broken = {**asked, "broken": [{"image": ["4", 0]}, {"text": "say"}]}
    given = questions(tsv, broken, generator="vllm", vllm_python=str(other_python))
    model = load_for_answers(tmp_path, Runtime(), given)
    with pytest.raises(MeritError, match="index 4"):
        answers(tiny, given, model)
    (tmp_path / "broken").touch()
    with pytest.raises(MeritError, match="status 1, and last said: AssertionError"):
        load_for_answers(tmp_path, Runtime(), given)
    for wrong in ({"generator": "vllm", "cache_images": True}, {"vllm_python": "python"}):
        with pytest.raises(ValueError, match=r"is for `generator: (transformers|vllm)`"):
            settings(**wrong)
