"""lm-eval: the text benchmarks' prompts, log-likelihoods, generations and scores.

A mini benchmark is an lm-eval task (eval/tasks/mini_text/<name>.yaml) over a local JSON file; the
public ones are lm-eval's own (merit.eval.answering.lm_public). lm-eval puts the question into the
model's chat template, ranks options by log-likelihood (`multiple_choice`) or lets the model write
(`generate_until`), and scores. Importing it takes seconds.
"""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from merit.errors import MeritError
from merit.eval.benchmarks import benchmark as find_benchmark
from merit.io.artifacts import read_jsonl

TASKS_DIR = Path(__file__).parents[1] / "tasks"
METRICS = ("acc", "exact_match", "score")  # a mini's metric: the first that its samples have


@dataclass(frozen=True)
class Answers:
    """One model on one benchmark: `score` in 0..100 as lm-eval reports it, and {index: ...}."""

    score: float
    predictions: dict[str, str]
    questions: dict[str, float]  # 0..1


def answer_all(
    model: Any, tokenizer: Any, files: Mapping[str, Path], batch_size: int, max_new_tokens: int
) -> dict[str, Answers]:
    """What `model` answers to every benchmark of `files` (benchmark -> JSONL), and its scores.

    Questions keep the order of the file. A prediction is the option with the highest
    log-likelihood, or the written text. Raises MeritError for malformed questions.
    """
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    with tempfile.TemporaryDirectory(prefix="merit-lm-eval-") as folder, quiet():
        configs = [task_config(b, f, Path(folder), max_new_tokens) for b, f in files.items()]
        results = simple_evaluate(
            model=HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size),
            tasks=configs,
            task_manager=TaskManager(include_defaults=False),
            apply_chat_template=True,
            bootstrap_iters=0,  # the report computes intervals
            log_samples=True,
        )
    assert results is not None
    found = {}
    for name in files:
        samples = results["samples"][name]
        metric = next(m for m in METRICS if m in samples[0])
        found[name] = collect(
            *(results, name, {name: samples}, metric),
            index_of=lambda _, sample: str(sample["doc"]["index"]),
            option_of=lambda sample, best: str(sample["doc"]["options"][best]),
        )
    return found


def task_file(benchmark: str) -> Path:
    """The YAML that says how lm-eval asks and scores: the record's `task`, or its kind's."""
    record = find_benchmark(benchmark)
    return TASKS_DIR / f"{record.task or f'mini_text/{record.kind}'}.yaml"


def task_config(benchmark: str, questions: Path, cache: Path, max_new_tokens: int) -> Any:
    """The YAML as lm-eval takes it, with the file of questions filled in.

    Raises MeritError if the questions are missing or malformed.
    """
    config = yaml.safe_load(task_file(benchmark).read_text(encoding="utf-8"))
    check_questions(questions, config["output_type"])
    files = {"data_files": {config["test_split"]: str(questions.resolve())}}
    config["dataset_kwargs"] = {**files, "cache_dir": str(cache)}
    config["task"] = benchmark  # several may share a file
    if config.pop("scorer", None) == "reasoning_gym":
        from merit.eval.answering.reasoning import score

        config["process_results"] = score
    if config["output_type"] == "generate_until":
        config["generation_kwargs"]["max_gen_toks"] = max_new_tokens
    return config


def check_questions(path: Path, output_type: str) -> None:
    """Raises MeritError, naming the line, if a question lacks a key or its answer is no option.

    lm-eval would report a KeyError, or count the question as wrong.
    """
    rows = read_jsonl(path)
    if not rows:
        raise MeritError(f"{path}: holds no question; run the data stage again")
    seen: set[str] = set()
    for number, row in enumerate(rows, start=1):
        where = f"{path}, line {number}"
        answer, options = row.get("answer"), row.get("options")
        is_choice = output_type == "multiple_choice"
        for key in ("index", "question", *(() if is_choice else ("answer",))):
            if not isinstance(row.get(key), str) or not row[key].strip():
                raise MeritError(f"{where}: key `{key}`: expected text, found {row.get(key)!r}")
        if row["index"] in seen:
            raise MeritError(f"{where}: index {row['index']!r} occurs twice")
        seen.add(row["index"])
        if not is_choice:
            continue
        if not isinstance(options, list) or len(options) < 2:
            raise MeritError(f"{where}: key `options`: expected two or more, found {options!r}")
        if not isinstance(answer, int) or not 0 <= answer < len(options):
            raise MeritError(
                f"{where}: key `answer`: found {answer!r}, not the position of one of "
                f"{len(options)} options"
            )


def collect(
    results: Any,
    task: str,
    samples: Mapping[str, Any],
    metric: str,
    index_of: Callable[[str, Any], str],
    option_of: Callable[[Any, int], str],
) -> Answers:
    """The score that lm-eval reports of a task or group, and every question of its subtasks.

    Args: samples: lm-eval's, by subtask. index_of: a question's index, from subtask and sample.
    option_of: what is stored for the option of the highest likelihood, from sample and position.
    """
    reported = {**results["results"], **results.get("groups", {})}[task]
    score = next(float(v) for key, v in reported.items() if key.split(",")[0] == metric)
    predictions, questions = {}, {}
    for subtask, rows in samples.items():
        for sample in sorted(rows, key=lambda sample: sample["doc_id"]):
            index, responses = index_of(subtask, sample), sample["filtered_resps"]
            questions[index] = float(sample[metric])
            if isinstance(responses[0], str):
                predictions[index] = responses[0]
            else:
                likelihoods = [float(response[0]) for response in responses]
                best = likelihoods.index(max(likelihoods))
                predictions[index] = option_of(sample, best)
    return Answers(100 * score, predictions, questions)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep lm-eval's progress bars, tables and warnings from the terminal."""
    for name in ("lm_eval", "lm-eval", "datasets"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        yield
