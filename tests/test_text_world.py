"""The text world: 66 tasks, a corpus that states every fact, questions never asked in training."""

from __future__ import annotations

import json
import re
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from merit.config import MiniTextData
from merit.data.examples import read_examples
from merit.errors import MeritError
from merit.mini.nets import TEXT_VOCABULARY, build_tokenizer
from merit.mini.text import corpus, inference, knowledge, reading
from merit.mini.text.items import draw, part_of
from merit.mini.text.lexicon import ANIMALS, OTHER, PROPERTY, fact, values
from merit.mini.text.sentences import Sight, say, say_other
from merit.mini.text.text_benchmarks import RECIPES, benchmark_rows
from merit.mini.text.text_tasks import MIN_EXAMPLES, TASKS, ask, task_sizes
from merit.mini.text.write_text import write_mini_text
from merit.train.tokenize import encode_examples

WORLD = MiniTextData(
    source="mini_text",
    seed=3,
    num_examples=1200,
    num_recall=50,
    num_documents=60,
    num_conversations=40,
    num_questions=40,
    num_validation_questions=10,
)


@pytest.fixture(scope="module")
def text_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    write_mini_text(WORLD, folder)
    return folder


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def questions(folder: Path) -> list[dict]:
    files = [p for p in sorted((folder / "benchmarks").rglob("*.jsonl"))]
    return [json.loads(line) for p in files for line in p.read_text().splitlines()]


def test_the_66_tasks_differ_much_in_size() -> None:
    names = [task.name for task in TASKS]
    assert len(names) == len(set(names)) == 66
    assert len({task.family for task in TASKS}) >= 10
    sizes = dict(zip(names, task_sizes(TASKS, 6000), strict=True))
    assert sizes["cb"] == MIN_EXAMPLES  # 250 examples in FLAN
    assert sizes["snli"] == max(sizes.values()) == sizes["wmt14_enfr"]  # FLAN's cap
    assert sizes["snli"] >= 9 * sizes["cb"]
    assert abs(sum(sizes.values()) - 6000) < 60


def test_no_benchmark_question_occurs_in_training(text_world: Path) -> None:
    """Neither its wording nor what it asks, in the mixture or in the base's data."""
    parts = [read_examples(p) for p in sorted((text_world / "mixture").glob("*.jsonl"))]
    own = ("conversations", "corpus", "recall")
    parts += [read_examples(text_world / "pretraining" / f"{name}.jsonl") for name in own]
    seen = {m["content"] for part in parts for example in part for m in example.messages}
    asked = {row["question"] for row in questions(text_world)}
    assert len(asked) == len(RECIPES) * (40 + 10)  # nor twice in the two splits
    assert not seen & asked
    everything = "\n".join(seen)
    # without the benchmark's own words, in the words of the tasks
    marks = r"exam : |question : |text : |how does it end \? "
    bodies = {re.sub(marks, "", question) for question in asked} - asked
    assert bodies
    assert [body for body in bodies if body in everything] == []


@pytest.mark.parametrize("name", RECIPES)
def test_items_of_a_benchmark_belong_to_its_part(name: str) -> None:
    for make in RECIPES[name].make:
        for part in ("train", "validation", "test"):
            assert part_of(draw(make, rng(), part).key) == part


def test_a_fact_of_the_test_part_is_stated_but_never_asked() -> None:
    held_out = {
        (entity, relation)
        for entity, relation in product(ANIMALS, ("kind", "home", "food", "color", "size"))
        if part_of(f"{entity} {relation}") == "test"
    }
    assert 20 <= len(held_out) <= 60
    generator = rng(1)
    stated = " ".join(corpus._facts(generator) for _ in range(1500))
    asked = {
        ask(task, generator)[0] for task in TASKS for _ in range(120) if "question" in task.name
    }
    asked |= {corpus._asked(generator) for _ in range(600)}
    for entity, relation in held_out:
        sentence = knowledge.STATE[relation][0].format(entity, fact(entity, relation))
        assert sentence in stated
        assert not any(knowledge.ASK[relation].format(entity) in text for text in asked)


def test_answers_follow_from_the_facts() -> None:
    assert len(set(OTHER.values())) == len(OTHER)  # the other language is one to one
    generator = rng(2)
    for _ in range(50):
        assert (span := reading.span(generator)).answer in span.slots["passage"].split()
        item = knowledge.which_can(generator)
        able = [x for x in item.options if PROPERTY[fact(x, "material")] in item.slots["question"]]
        assert able == [item.answer]
        entity, relation = (fact_item := knowledge.closed_book(generator)).key.split()
        assert fact_item.answer == fact(entity, relation) in values(relation)
        twofold = knowledge.which_animal(generator)
        assert len(set(twofold.options)) == len(twofold.options)
        assert twofold.answer in twofold.options


def test_inference_labels_follow_from_the_premise() -> None:
    told = Sight("fox", "small", "red", "", "sleeps", "park")
    assert say(told) == "the small red fox sleeps in the park ."
    assert told.told() == ["color", "size", "place", "verb"]
    words = [OTHER[word] for word in ("fox", "red", "small", "park", "sleeps")]
    assert say_other(told) == f"{' '.join(words)} ."
    generator = rng(3)
    for _ in range(60):
        premise, kind, value, label = inference._claim(generator, inference.NLI)
        mine = getattr(premise, kind)
        expected = "maybe" if not mine else "yes" if mine == value else "no"
        assert label == expected


def test_a_wrong_yes_no_question_names_what_nobody_has() -> None:
    generator = rng(6)
    answers = []
    for _ in range(200):
        item = reading.yes_no(generator)
        told = item.slots["passage"].split(" .")
        person, what = item.slots["question"].split()[1], item.slots["question"].split()[-2]
        mine = next(sentence for sentence in told if person in sentence.split())
        assert (what in mine.split()) == (item.answer == "yes")
        assert (what in item.slots["passage"].split()) == (item.answer == "yes")
        answers.append(item.answer)
    assert 70 < answers.count("yes") < 130


def test_a_recall_paragraph_says_again_what_stands_further_up() -> None:
    generator = rng(7)
    for _ in range(60):
        *before, answer, stop = corpus._look(generator).split()
        assert (stop, answer in before) == (".", True)
        first, second = corpus._again(generator).removesuffix(" .").split(" again ")
        assert first == second
    told = [text for text in (corpus._people(generator) for _ in range(80)) if "because" in text]
    assert len(told) > 30
    for text in told:  # whom a pronoun means
        passage, again, _ = text.split(" .")
        name, *repeated = again.split()
        assert name in passage.split(" because ")[0].split()
        assert repeated == passage.split(" because ")[1].split()[1:]  # all but the pronoun


def test_what_follows_is_answered_by_the_premise() -> None:
    """In the first language, an answer of yes repeats the premise's words."""
    generator = rng(10)
    written = [corpus._follows(generator).split(".") for _ in range(200)]
    premises, claims, answers, _ = zip(*written, strict=True)
    assert {answer.strip() for answer in answers} == {"yes", "no", "maybe"}
    for premise, claim, answer in zip(premises, claims, answers, strict=True):
        if premise.startswith("the ") and answer.strip() == "yes":
            assert set(claim.split()) - {"is", "has"} <= set(premise.split())


def test_every_word_is_in_the_frozen_vocabulary(text_world: Path) -> None:
    tokenizer = build_tokenizer(TEXT_VOCABULARY.read_text(encoding="utf-8").split())
    files = [path for path in text_world.rglob("*.jsonl") if "benchmarks" not in path.parts]
    texts = [m["content"] for p in files for e in read_examples(p) for m in e.messages]
    for row in questions(text_world):
        texts += [row["question"], *row.get("options", [row["answer"]])]
    found = zip(texts, tokenizer(texts)["input_ids"], strict=True)
    assert [text for text, ids in found if tokenizer.unk_token_id in ids] == []


def test_a_document_is_supervised_throughout(text_world: Path) -> None:
    tokenizer = build_tokenizer(TEXT_VOCABULARY.read_text(encoding="utf-8").split())
    documents = read_examples(text_world / "pretraining" / "corpus.jsonl")[:2]
    encoded = encode_examples(documents, tokenizer, {}, np.zeros((0, 3)))
    first = encoded.tokens[: encoded.offsets[1]]
    assert tokenizer.decode(first[:-1]) == documents[0].messages[0]["content"]
    assert first[-1] == tokenizer.pad_token_id
    assert (encoded.example(0)[1] == first).all()
    # the first token of a document is predicted by nothing
    assert encoded.num_targets(np.array([0])) == encoded.num_loss_tokens()[0] - 1 == len(first) - 1


def test_the_same_seed_is_the_same_bytes(text_world: Path, tmp_path: Path) -> None:
    write_mini_text(WORLD, tmp_path)
    files = sorted(p.relative_to(tmp_path) for p in tmp_path.rglob("*") if p.is_file())
    assert len(files) == 66 + 1 + 3 + 16
    for file in files:
        assert (tmp_path / file).read_bytes() == (text_world / file).read_bytes()


def test_more_questions_than_the_world_holds_are_refused() -> None:
    with pytest.raises(MeritError, match=r"'mini_whois': .*5000"):
        benchmark_rows("mini_whois", 5000, rng(), "validation")
