"""The mini world: its tasks, its words, and that no benchmark leaks into training."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
import re
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from merit.config import MiniWorldData
from merit.data.examples import IMAGE_TOKEN, read_examples
from merit.data.images import load_image
from merit.errors import MeritError
from merit.io.artifacts import read_json, read_jsonl
from merit.mini.world import base_conversations, world_tasks
from merit.mini.world.draw import Pen
from merit.mini.world.scene import (
    COLOURS,
    GROUNDS,
    LEXICON,
    SHAPES,
    SIZES,
    WORDS,
    Bar,
    Scene,
    Thing,
    sample_scene,
)
from merit.mini.world.skills import SKILLS
from merit.mini.world.telling import tell
from merit.mini.world.world_benchmarks import (
    DESCRIBE_WORDING,
    EXPLAIN_WORDING,
    RECIPES,
    TOLD_RECIPES,
)
from merit.mini.world.world_tasks import (
    all_sources,
    all_tasks,
    ask_task,
    option_prompt,
    task_sizes,
)
from merit.mini.world.write_world import mixture_examples, write_mini_world
from tests.conftest import WORLD

# --- tasks --------------------------------------------------------------------------------------


def test_the_136_tasks_and_the_176_sources() -> None:
    """32 skills in four styles and 4 kinds of scene in two: 128 + 8; 40 pooled units besides."""
    found, sources = all_tasks(), all_sources()
    assert len(SKILLS) == MiniWorldData.num_skills == 32  # the general code knows only the number
    assert len({task.name for task in found}) == len(found) == 136
    assert Counter(task.style for task in found) == {
        **{"short": 32, "option": 32, "sentence": 32, "rationale": 32},
        **{"brief": 4, "list": 4},
    }
    assert len({task.name for task in sources}) == len(sources) == 176
    assert set(found) < set(sources)
    rng = np.random.default_rng(0)
    for task in set(sources) - set(found):
        answers = set()
        for _ in range(40):
            scene = sample_scene(rng, task.kinds[int(rng.integers(len(task.kinds)))])
            answers.add(ask_task(task, scene, rng))
        assert len(answers - {None}) > 5, task.name


def test_the_data_stage_writes_what_its_settings_ask_for(world: Path) -> None:
    sizes = task_sizes(all_tasks(), 13_600, 0.6, np.random.default_rng(0))
    assert abs(sum(sizes) - 13_600) <= 136
    assert 8 <= min(sizes) <= max(sizes) / 4
    listed = read_json(world / "mixture" / "tasks.json")
    assert [entry["task"] for entry in listed] == [task.name for task in all_tasks()]
    for entry in listed:
        examples = read_examples(world / "mixture" / f"{entry['task']}.jsonl")
        assert len(examples) == entry["num_examples"]
        assert {example.task for example in examples} == {entry["task"]}
    conversations = read_examples(world / "pretraining" / "conversations.jsonl")
    assert len(conversations) == WORLD.num_conversations
    assert conversations[3].images == ("conversations.zip/c00003.png",)
    assert load_image(world / "pretraining" / conversations[3].images[0]).size == (56, 56)
    for split, count in (("", WORLD.num_questions), ("validation", WORLD.num_validation_questions)):
        for name in RECIPES:
            assert len(read_tsv(world / "benchmarks" / split / f"{name}.tsv")) == count


def test_conversations_ask_for_known_skills_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: set[str] = set()
    draw = base_conversations.draw_questions

    def spy(scene: Scene, *arguments: Any) -> Any:
        found = draw(scene, *arguments)
        asked.update(skill.name for skill, _ in found)
        return found

    monkeypatch.setattr(base_conversations, "draw_questions", spy)
    every, new = {skill.name for skill in SKILLS}, base_conversations.NEW_SKILLS
    assert (len(new), len(set(new) & every)) == (16, 16)
    assert [every - base_conversations.known_skills(n) for n in (0, 1)] == [set(), {"row_mate"}]
    rng, known = np.random.default_rng(2), base_conversations.known_skills(6)
    assert known == every - set(new[:6])
    for _ in range(300):
        base_conversations.converse(sample_scene(rng), rng, known)
    assert asked == known


def test_a_pool_that_no_task_can_ask_about_is_refused() -> None:
    """Signs with only words: nobody can read a number; without a limit this would never end."""
    pool = [Scene("sign", "plain", text="wolf")] * 3
    task = next(t for t in all_tasks() if t.name == "read_number-short")
    with pytest.raises(MeritError, match="read_number-short"):
        mixture_examples(task, 1, pool, np.random.default_rng(0))


# --- no leakage ---------------------------------------------------------------------------------


def read_tsv(path: Path) -> list[dict[str, str]]:
    csv.field_size_limit(1 << 30)
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))


def members(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def pixel_hash(data: bytes) -> str:
    with Image.open(io.BytesIO(data)) as image:
        return hashlib.sha256(image.tobytes()).hexdigest()


def questions(world: Path, split: str) -> Iterator[dict[str, str]]:
    for name in RECIPES:
        yield from read_tsv(world / "benchmarks" / split / f"{name}.tsv")


def test_no_benchmark_image_occurs_in_training_or_in_the_other_split(world: Path) -> None:
    training = {pixel_hash(png) for path in world.rglob("*.zip") for png in members(path).values()}
    assert len(training) == WORLD.num_images + WORLD.num_conversations
    test, validation = (
        {pixel_hash(base64.b64decode(row["image"])) for row in questions(world, split)}
        for split in ("", "validation")
    )
    assert len(test) == 8 * WORLD.num_questions
    assert not (test | validation) & training
    assert not test & validation


def test_no_benchmark_question_occurs_in_training(world: Path) -> None:
    """Neither a whole question nor, without its instruction, as part of a training prompt."""
    files = [*world.glob("mixture/*.jsonl"), *world.glob("pretraining/*.jsonl")]
    messages = [m for f in files for example in read_examples(f) for m in example.messages]
    prompts = {
        m["content"].replace(IMAGE_TOKEN, "").strip() for m in messages if m["role"] == "user"
    }
    assert len(prompts) > 300
    everything = "\n\n".join(sorted(prompts))
    instruction = world_tasks.SHORT[0]
    for split in ("", "validation"):
        for row in questions(world, split):
            asked = {row["question"], row["question"].removesuffix(instruction).strip()}
            options = [row[letter] for letter in "ABCD" if row.get(letter)]
            if options:
                assert row["answer"] in "ABCD"[: len(options)]
                assert len(set(options)) == len(options) >= 2
                asked |= {option_prompt(row["question"], options, v) for v in range(3)}
            assert not asked & prompts
            assert not any(text in everything for text in asked)


def test_no_benchmark_wording_is_a_training_wording() -> None:
    """Compared whatever fills the slots, over all skills and every training instruction."""

    def bare(wording: str) -> str:
        return re.sub(r"\{\w+\}", "_", wording)

    training = {bare(wording) for s in SKILLS for wording in s.wordings[1:]}
    assert not training & {bare(s.wordings[0]) for s in SKILLS}
    # a training wording with anything in its slots never makes a benchmark wording
    for s in SKILLS:
        for wording in s.wordings[1:]:
            pattern = re.sub(r"\\\{\w+\\\}", ".+", re.escape(wording))
            for other in SKILLS:
                asked = other.wordings[0].format(what="red circle", other="blue star")
                assert not re.fullmatch(pattern, asked), (wording, asked)
    assert DESCRIBE_WORDING not in base_conversations.DESCRIBE
    assert EXPLAIN_WORDING not in base_conversations.EXPLAIN


def test_no_handwritten_digit_is_in_both_splits() -> None:
    train, test = (
        {mask.tobytes() for masks in Pen(split)._masks.values() for mask in masks}
        for split in ("train", "test")
    )
    assert (len(train), len(test)) == (1347, 450)  # 1,797 scans, every fourth for the benchmarks
    assert not train & test


# --- in words instead of pictures ---------------------------------------------------------------


def test_a_scene_is_told_in_words() -> None:
    things = (Thing("star", "red", "small", 0, 2), Thing("cross", "blue", "large", 3, 0))
    told = "small red star in row 1 column 3 , large blue cross in row 4 column 1 ."
    assert tell(Scene("shapes", "plain", things)) == f"image : plain ground , {told}"
    assert tell(Scene("sign", "dotted", text="wolf")) == "image : dotted ground , sign wolf ."
    assert tell(Scene("sum", "plain", digits=(4, 0))) == "image : plain ground , digits 4 and 0 ."
    bars = (Bar("red", 3, 0), Bar("green", 8, 1))
    told = "image : plain ground , red bar 3 high , green bar 8 high ."
    assert tell(Scene("chart", "plain", bars=bars)) == told


def test_the_world_in_words_asks_the_same_of_other_scenes(tmp_path: Path, processor: Any) -> None:
    """No picture, no question of a benchmark in training, no unknown word, every option right."""
    write_mini_world(WORLD.model_copy(update={"source": "mini_text"}), tmp_path)
    files = [*tmp_path.glob("mixture/*.jsonl"), *tmp_path.glob("pretraining/*.jsonl")]
    assert len(files) == 136 + 2
    assert not list(tmp_path.rglob("*.zip"))
    examples = [example for file in files for example in read_examples(file)]
    assert {example.images for example in examples} == {()}
    messages = [message["content"] for example in examples for message in example.messages]
    rows = [row for name in TOLD_RECIPES for row in benchmark(tmp_path, name)]
    assert len(rows) == len(TOLD_RECIPES) * (WORLD.num_questions + WORLD.num_validation_questions)
    everything = "\n\n".join(messages)
    for row in rows:
        telling, asked, *options = row["question"].split("\n")
        assert telling.startswith("image : ")
        wording = asked.removeprefix("Question: ").removesuffix(world_tasks.SHORT[0])
        assert wording not in everything
        assert bool(options) == ("options" in row)
        assert not options or 0 <= row["answer"] < len(set(row["options"]))
    words = [w for row in rows for w in (row["question"], *row.get("options", [row["answer"]]))]
    assert unknown_words(messages + words, processor) == set()


def benchmark(folder: Path, name: str) -> list[dict[str, Any]]:
    """Its questions of both splits."""
    places = (folder / "benchmarks", folder / "benchmarks" / "validation")
    return [row for place in places for row in read_jsonl(place / f"{name}.jsonl")]


# --- vocabulary ---------------------------------------------------------------------------------


def unknown_words(texts: list[str], processor: Any) -> set[str]:
    tokenizer = processor.tokenizer
    words = sorted({word for text in texts for word in text.split()})
    return {
        w
        for w, ids in zip(words, tokenizer(words)["input_ids"], strict=True)
        if tokenizer.unk_token_id in ids
    }


def test_no_text_has_an_unknown_word(world: Path, processor: Any) -> None:
    """In the tiny world, or in a template that it does not happen to use."""
    words = [*SHAPES, *(f"{s}s" if s != "cross" else "crosses" for s in SHAPES), *COLOURS]
    words += [*SIZES, *GROUNDS, *LEXICON, *WORDS, *(str(n) for n in range(100))]
    texts = [w.format(what="red", other="blue") for s in SKILLS for w in s.wordings]
    for file in [*(world / "mixture").glob("*.jsonl"), *(world / "pretraining").glob("*.jsonl")]:
        for example in read_examples(file):
            texts += [m["content"].replace(IMAGE_TOKEN, "") for m in example.messages]
    for split in ("", "validation"):
        for row in questions(world, split):
            texts += [row[k] for k in ("question", *"ABCD") if row.get(k)]
            is_open = row["answer"].startswith("{")
            texts.append(json.loads(row["answer"])["text"] if is_open else row["answer"])
    assert len(texts) > 2000
    for name in ("SHORT", "SENTENCE", "RATIONALE", "BRIEF", "LIST"):
        texts += getattr(world_tasks, name)
    texts += [*base_conversations.DESCRIBE, *base_conversations.READ, *base_conversations.EXPLAIN]
    texts += [DESCRIBE_WORDING, EXPLAIN_WORDING]
    rng = np.random.default_rng(0)
    for _ in range(400):
        scene = sample_scene(rng)
        for s in SKILLS:
            question = s.ask(scene, rng) if scene.kind in s.kinds else None
            if question is not None:
                texts += [question.statement, question.evidence, question.answer]
                texts += [*question.choices, *question.slots.values()]
    assert unknown_words(words + texts, processor) == set()
    assert unknown_words(["a zebra ."], processor) == {"zebra"}
