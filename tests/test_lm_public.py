"""lm-eval's own tasks over tiny data in the original columns, laid out as on the hub."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import lm_eval.tasks
import pytest
import torch
import yaml

from merit.config import Evaluation
from merit.errors import MeritError
from merit.eval.answering import lm_public
from merit.eval.answering.answers import Questions, generate_answers
from merit.eval.answering.lm_public import answer_public, limit_of_each
from merit.eval.benchmarks import BENCHMARKS, Benchmark
from merit.mini.nets import VOCABULARY, build_text_model, build_tokenizer
from tests.test_lm_engine import ARCHITECTURE

LANGUAGES = "ar bg de el en es fr hi ru sw th tr ur vi zh".split()  # noqa: SIM905
WORDS = VOCABULARY.read_text(encoding="utf-8").split()


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return build_tokenizer(WORDS)


@pytest.fixture(scope="module")
def model(tokenizer: Any) -> Any:
    return build_text_model(tokenizer, ARCHITECTURE, seed=1)


def repository(folder: Path, name: str, configs: dict[str, dict[str, list[Any]]]) -> None:
    """A dataset repository of the hub: README's list of configurations, JSON Lines a split."""
    listed = []
    for config, splits in configs.items():
        files = []
        for split, rows in splits.items():
            path = folder / name / config / f"{split}.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
            files.append({"split": split, "path": f"{config}/{split}.jsonl"})
        listed.append({"config_name": config, "data_files": files})
    header = yaml.safe_dump({"configs": listed})
    (folder / name / "README.md").write_text(f"---\n{header}---\n", encoding="utf-8")


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    words = [word for word in WORDS if word.isalpha()][40:90]
    folder = tmp_path_factory.mktemp("hub")
    boolq = [
        {"passage": words[i], "question": words[i + 1], "idx": i, "label": i % 2} for i in range(6)
    ]
    repository(folder, "aps/super_glue", {"boolq": {"train": boolq, "validation": boolq}})
    arc = [
        {"id": str(i), "question": words[i], "answerKey": "AB"[i % 2]}
        | {"choices": {"text": [words[i + 5], words[i + 9]], "label": ["A", "B"]}}
        for i in range(4)
    ]
    splits = {"train": arc[:2], "validation": arc[:2], "test": arc[2:]}
    repository(folder, "allenai/ai2_arc", {"ARC-Challenge": splits})
    xnli = {
        language: [
            {"premise": words[i], "hypothesis": words[i + k], "label": (i + k) % 3}
            for i in range(5 if language == "en" else 1)
        ]
        for k, language in enumerate(LANGUAGES, start=1)
    }
    repository(folder, "facebook/xnli", {k: {"train": v, "validation": v} for k, v in xnli.items()})
    program = {"task_id": "0", "prompt": "def one():\n", "entry_point": "one"}
    tests = {"canonical_solution": "", "test": "def check(f):\n    assert f() == 1\n"}
    repository(folder, "openai/openai_humaneval", {"openai_humaneval": {"test": [program | tests]}})
    return folder


@pytest.fixture(scope="module")
def manager() -> Any:
    """An index of the tasks that are asked for; one of all takes eleven seconds."""
    own = Path(lm_eval.tasks.__file__).parent
    wanted = ("super_glue/boolq", "arc", "xnli", "hellaswag")
    return lm_eval.tasks.TaskManager(
        include_defaults=False, include_path=[own / name for name in wanted]
    )


@pytest.fixture(autouse=True)
def _own_cache_and_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, manager: Any) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(lm_public, "all_tasks", lambda: manager)


def settings(hub: Path | None, *names: str, **values: Any) -> Evaluation:
    given = {"text_data": str(hub) if hub else None, "chat_template": False, "max_new_tokens": 3}
    return Evaluation(benchmarks=list(names), batch_size=4, **{**given, **values})


def with_shots(name: str, shots: int) -> Benchmark:
    return BENCHMARKS[name].model_copy(update={"shots": shots})


@torch.no_grad()
def log_likelihood(model: Any, tokenizer: Any, context: str, option: str) -> float:
    start, whole = tokenizer(context)["input_ids"], tokenizer(context + option)["input_ids"]
    logits = model(input_ids=torch.tensor([whole])).logits[0].log_softmax(-1)
    return sum(float(logits[i - 1, whole[i]]) for i in range(len(start), len(whole)))


def test_boolq_is_lm_evals_by_hand(model: Any, tokenizer: Any, hub: Path) -> None:
    asked = Questions(settings(hub, "boolq"), {}, {})
    found, scores = generate_answers(model, tokenizer, asked)
    assert scores is not None
    hits = []
    rows = (hub / "aps/super_glue/boolq/validation.jsonl").read_text().splitlines()
    for i, line in enumerate(rows):
        row = json.loads(line)
        context = f"{row['passage']}\nQuestion: {row['question']}?\nAnswer:"
        values = [log_likelihood(model, tokenizer, context, option) for option in (" no", " yes")]
        best = values.index(max(values))
        assert found["boolq"][f"boolq/{i}"] == str(best)
        hits.append(float(best == row["label"]))
    assert list(scores["boolq"].questions.values()) == hits
    assert scores["boolq"].score == pytest.approx(100 * sum(hits) / 6)


def test_xnli_is_the_mean_over_fifteen_languages(model: Any, tokenizer: Any, hub: Path) -> None:
    given = settings(hub, "xnli")
    found = answer_public(model, tokenizer, ["xnli"], given)["xnli"]
    assert len(found.questions) == 14 + 5
    assert {index.split("/")[0] for index in found.questions} == {f"xnli_{k}" for k in LANGUAGES}
    assert found.score == pytest.approx(100 * sum(found.questions.values()) / 19)
    # a rehearsal's 20 questions are divided over the languages: 15, and not 300
    few = given.model_copy(update={"max_questions": 20})
    found = answer_public(model, tokenizer, ["xnli"], few)["xnli"]
    assert sorted(found.questions) == sorted(f"xnli_{k}/0" for k in LANGUAGES)
    assert [limit_of_each(n, 57) for n in (None, 20, 114)] == [None, 1, 2]


def test_shots_and_metric_are_the_records(
    model: Any, tokenizer: Any, hub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(BENCHMARKS, "arc_challenge", with_shots("arc_challenge", 2))
    seen: list[Any] = []
    real = lm_public.collect
    monkeypatch.setattr(lm_public, "collect", lambda *a, **k: seen.append(a[0]) or real(*a, **k))
    answer_public(model, tokenizer, ["arc_challenge"], settings(hub, "arc_challenge"))
    assert seen[0]["n-shot"]["arc_challenge"] == 2
    sample = seen[0]["samples"]["arc_challenge"][0]
    assert sample["arguments"][0][0].count("Question:") == 3
    assert "acc_norm" in sample


def test_humaneval_runs_in_the_sandbox_if_it_may(
    model: Any, tokenizer: Any, hub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(MeritError, match=r"`evaluation\.run_model_code: true`"):
        answer_public(model, tokenizer, ["humaneval"], settings(hub, "humaneval"))
    monkeypatch.setattr(lm_public, "check_isolation", lambda folder: None)
    run: list[str] = []
    monkeypatch.setattr(lm_public, "passes", lambda program: run.append(program) or True)
    given = settings(hub, "humaneval", run_model_code=True)
    found = answer_public(model, tokenizer, ["humaneval"], given)["humaneval"]
    assert (found.score, found.questions) == (100, {"humaneval/0": 1.0})
    assert run[0].startswith("def one():\n")
    assert run[0].endswith("def check(f):\n    assert f() == 1\n\ncheck(one)")
    assert found.predictions["humaneval/0"] in run[0]


def test_data_that_cannot_be_had_are_named(
    model: Any, tokenizer: Any, tmp_path: Path, hub: Path
) -> None:
    with pytest.raises(MeritError, match=r"hellaswag: "):
        answer_public(model, tokenizer, ["hellaswag"], settings(hub, "hellaswag"))
    with pytest.raises(MeritError, match=r"`evaluation\.text_data`: "):
        answer_public(model, tokenizer, ["boolq"], settings(tmp_path / "gone", "boolq"))
