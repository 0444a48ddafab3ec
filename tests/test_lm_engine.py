"""lm-eval on a tiny Qwen2: its scores against log-likelihoods and words worked out by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from merit.config import Architecture
from merit.errors import MeritError
from merit.eval.answering.lm_engine import (
    Answers,
    answer_all,
    check_questions,
    task_config,
    task_file,
)
from merit.eval.benchmarks import BENCHMARKS, engine_of
from merit.mini.nets import TEXT_VOCABULARY, build_text_model, build_tokenizer
from merit.mini.text.text_benchmarks import RECIPES, benchmark_rows
from merit.train.model import load_model, load_processor

ARCHITECTURE = Architecture(
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=1,
    num_attention_heads=2,
    num_key_value_heads=1,
    initializer_range=0.3,
)
MAX_NEW_TOKENS = 3


@pytest.fixture(scope="module")
def model() -> Any:
    return build_text_model(tokenizer(), ARCHITECTURE, seed=1)


def tokenizer() -> Any:
    return build_tokenizer(TEXT_VOCABULARY.read_text(encoding="utf-8").split())


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Five questions of every benchmark."""
    folder = tmp_path_factory.mktemp("questions")
    paths = {name: folder / f"{name}.jsonl" for name in RECIPES}
    for name, path in paths.items():
        rows = benchmark_rows(name, 5, np.random.default_rng(7), "validation")
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return paths


@pytest.fixture(scope="module")
def answers(model: Any, files: dict[str, Path]) -> dict[str, Answers]:
    return answer_all(model, tokenizer(), files, 4, MAX_NEW_TOKENS)


def prompt(question: str) -> str:
    return f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@torch.no_grad()
def log_likelihood(model: Any, question: str, option: str) -> float:
    """Sum of the option's token log-probabilities after the prompt, one question at a time."""
    asked = tokenizer()(prompt(question))["input_ids"]
    wanted = tokenizer()(option)["input_ids"]
    logits = model(input_ids=torch.tensor([asked + wanted])).logits[0].log_softmax(-1)
    return sum(float(logits[len(asked) - 1 + i, token]) for i, token in enumerate(wanted))


@torch.no_grad()
def greedy(model: Any, question: str) -> str:
    tokens = tokenizer()(prompt(question))["input_ids"]
    written: list[int] = []
    while len(written) < MAX_NEW_TOKENS:
        token = int(model(input_ids=torch.tensor([tokens + written])).logits[0, -1].argmax())
        if token == tokenizer().eos_token_id:
            break
        written.append(token)
    return tokenizer().decode(written, skip_special_tokens=True).strip()


@pytest.mark.parametrize("name", [n for n, r in RECIPES.items() if not r.generates])
def test_options_are_ranked_by_log_likelihood(
    name: str, model: Any, files: dict[str, Path], answers: dict[str, Answers]
) -> None:
    result = answers[name]
    hits = []
    for row in rows_of(files[name]):
        values = [log_likelihood(model, row["question"], option) for option in row["options"]]
        best = int(np.argmax(values))
        hits.append(float(best == row["answer"]))
        assert result.predictions[row["index"]] == row["options"][best]
        assert result.questions[row["index"]] == hits[-1]
    assert list(result.questions) == [row["index"] for row in rows_of(files[name])]
    assert result.score == pytest.approx(100 * np.mean(hits))


@pytest.mark.parametrize("name", [n for n, r in RECIPES.items() if r.generates])
def test_written_answers_are_greedy(
    name: str, model: Any, files: dict[str, Path], answers: dict[str, Answers]
) -> None:
    for row in rows_of(files[name]):
        assert answers[name].predictions[row["index"]] == greedy(model, row["question"])
    assert answers[name].score == pytest.approx(
        100 * np.mean(list(answers[name].questions.values()))
    )


def test_a_written_answer_must_match_exactly(
    model: Any, files: dict[str, Path], tmp_path: Path
) -> None:
    name = "mini_programs"
    rows = rows_of(files[name])
    rows[0]["answer"] = greedy(model, rows[0]["question"])
    rows[1]["answer"] = greedy(model, rows[1]["question"]) + " x"
    path = tmp_path / f"{name}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows[:2]))
    result = answer_all(model, tokenizer(), {name: path}, 4, MAX_NEW_TOKENS)[name]
    assert result.questions == {"0": 1.0, "1": 0.0}
    assert result.score == 50.0


def test_every_text_benchmark_has_its_task() -> None:
    assert engine_of(list(RECIPES)) == "lm_eval"
    for name, recipe in RECIPES.items():
        assert BENCHMARKS[name].kind == ("generation" if recipe.generates else "likelihood")
        assert task_file(name).stem == name
    columns = [BENCHMARKS[name].paper_column for name in RECIPES]
    assert columns == ["mmlu", "gpqa", "hellaswag", "winogrande", "boolq", "xnli",
                       "arc_challenge", "humaneval"]  # fmt: skip


def test_two_engines_in_one_experiment_are_refused() -> None:
    with pytest.raises(MeritError, match=r"mini_scene and mini_facts .* share one engine"):
        engine_of(["mini_scene", "mini_facts"])


def test_an_unknown_task_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MeritError, match=r"mini_fact\.yaml: no such lm-eval task; known: mini"):
        task_config("mini_fact", tmp_path / "x.jsonl", tmp_path, 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"question": " "}, r"line 2: key `question`: expected text, found ' '"),
        ({"options": ["a"]}, r"line 2: key `options`: expected two or more, found \['a'\]"),
        ({"answer": 2}, r"line 2: key `answer`: found 2, not the position of one of 2 options"),
        ({"index": "0"}, r"line 2: index '0' occurs twice"),
    ],
)
def test_malformed_questions_are_refused(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    rows = [
        {"index": str(i), "question": "is it ?", "options": ["yes", "no"], "answer": 1}
        for i in range(2)
    ]
    rows[1] |= change
    path = tmp_path / "q.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(MeritError, match=message):
        check_questions(path, "multiple_choice")


def test_a_text_model_comes_back_as_it_was_saved(model: Any, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    again = load_model(tmp_path)
    assert type(again).__name__ == "Qwen2ForCausalLM"
    for name, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    assert load_processor(tmp_path)("anna")["input_ids"] == tokenizer()("anna")["input_ids"]


def test_another_architecture_is_refused(model: Any, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "architectures": ["Gpt"]}))
    with pytest.raises(MeritError, match=r"key `architectures`: found \['Gpt'\], expected Qwen2_5"):
        load_model(tmp_path)


def test_a_vision_part_is_whole_or_absent() -> None:
    with pytest.raises(ValueError, match=r"`vision_depth`, .*`patch_size` missing"):
        Architecture(**{**ARCHITECTURE.model_dump(), "vision_hidden_size": 8})
    assert not ARCHITECTURE.has_vision
