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
from merit.eval.answering.lm_engine import Answers, answer_all, check_questions, task_config
from merit.mini.nets import VOCABULARY, build_text_model, build_tokenizer
from merit.mini.world.world_benchmarks import TOLD_RECIPES, told_rows
from merit.train.model import load_model

ARCHITECTURE = Architecture(
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=1,
    num_attention_heads=2,
    num_key_value_heads=1,
    initializer_range=0.3,
)
MAX_NEW_TOKENS = 3
TOKENIZER = build_tokenizer(VOCABULARY.read_text(encoding="utf-8").split())


@pytest.fixture(scope="module")
def model() -> Any:
    return build_text_model(TOKENIZER, ARCHITECTURE, seed=1)


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def questions(model: Any) -> dict[str, list[dict[str, Any]]]:
    """Five questions of every benchmark; one answer of mini_hops is right, one nearly."""
    rows = {n: told_rows(n, 5, np.random.default_rng(7)) for n in TOLD_RECIPES}
    written = rows["mini_hops"]
    written[0]["answer"] = greedy(model, written[0]["question"])
    written[1]["answer"] = greedy(model, written[1]["question"]) + " x"
    return rows


@pytest.fixture(scope="module")
def answers(
    model: Any, questions: dict[str, list[dict[str, Any]]], tmp_path_factory: Any
) -> dict[str, Answers]:
    folder = tmp_path_factory.mktemp("questions")
    files = {name: write(folder / f"{name}.jsonl", rows) for name, rows in questions.items()}
    return answer_all(model, TOKENIZER, files, 4, MAX_NEW_TOKENS)


def asked(question: str) -> list[int]:
    prompt = f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
    return list(TOKENIZER(prompt)["input_ids"])


@torch.no_grad()
def log_likelihood(model: Any, question: str, option: str) -> float:
    """Sum of the option's token log-probabilities after the prompt, one question at a time."""
    tokens, wanted = asked(question), TOKENIZER(option)["input_ids"]
    logits = model(input_ids=torch.tensor([tokens + wanted])).logits[0].log_softmax(-1)
    return sum(float(logits[len(tokens) - 1 + i, token]) for i, token in enumerate(wanted))


@torch.no_grad()
def greedy(model: Any, question: str) -> str:
    written: list[int] = []
    while len(written) < MAX_NEW_TOKENS:
        tokens = torch.tensor([asked(question) + written])
        token = int(model(input_ids=tokens).logits[0, -1].argmax())
        if token == TOKENIZER.eos_token_id:
            break
        written.append(token)
    return str(TOKENIZER.decode(written, skip_special_tokens=True)).strip()


@pytest.mark.parametrize("name", TOLD_RECIPES)
def test_options_are_ranked_by_log_likelihood_and_words_are_greedy(
    name: str, model: Any, questions: dict[str, Any], answers: dict[str, Answers]
) -> None:
    expected = {}
    for row in questions[name]:
        wanted = row["answer"]
        if TOLD_RECIPES[name].kind == "exact":
            found = greedy(model, row["question"])
        else:
            values = [log_likelihood(model, row["question"], option) for option in row["options"]]
            found, wanted = row["options"][int(np.argmax(values))], row["options"][wanted]
        assert answers[name].predictions[row["index"]] == found
        expected[row["index"]] = float(found == wanted)
    assert list(answers[name].questions.items()) == list(expected.items())
    assert answers[name].score == pytest.approx(100 * np.mean(list(expected.values())))
    if name == "mini_hops":
        assert list(expected.values())[:2] == [1.0, 0.0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"question": " "}, "`question`: .*' '"),
        ({"options": ["a"]}, r"`options`: .*\['a'\]"),
        ({"answer": 2}, "`answer`: .*2"),
        ({"index": "0"}, "index '0' occurs twice"),
    ],
)
def test_malformed_questions_are_refused(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    row = {"question": "is it ?", "options": ["yes", "no"], "answer": 1}
    path = write(tmp_path / "q.jsonl", [{"index": "0", **row}, {"index": "1", **row, **change}])
    with pytest.raises(MeritError, match=f"line 2: .*{message}"):
        check_questions(path, "multiple_choice")
    with pytest.raises(MeritError, match="`mini_places`"):
        task_config("mini_place", path, tmp_path, 3)


def test_a_model_of_another_architecture_is_refused(model: Any, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "architectures": ["Gpt"]}))
    with pytest.raises(MeritError, match=r"`architectures`: .*'Gpt'"):
        load_model(tmp_path)
