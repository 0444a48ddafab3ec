"""lm-eval: the text benchmarks' prompts, log-likelihoods, generations and scores.

A mini benchmark is an lm-eval task (eval/tasks/mini_text/<name>.yaml) over a local JSON file; the
public ones are lm-eval's own (merit.eval.answering.lm_public). lm-eval
puts the question into the model's chat template, ranks the options by the log-likelihood that the
model gives them (`multiple_choice`) or lets it write (`generate_until`), and scores. Importing it
takes seconds, so one process scores many models.
"""

from __future__ import annotations

import contextlib
import io
import logging
import pkgutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from merit.errors import MeritError
from merit.eval.benchmarks import BENCHMARKS
from merit.io.artifacts import read_jsonl

TASKS_DIR = Path(__file__).parents[1] / "tasks"
# a task file's `scorer`, imported only where it is asked for
SCORERS = {"reasoning_gym": "merit.eval.answering.reasoning:score"}
METRICS = ("acc", "exact_match", "score")


@dataclass(frozen=True)
class Answers:
    """One model on one benchmark: `score` in 0..100 as lm-eval reports it, and {index: ...}."""

    score: float
    predictions: dict[str, str]
    questions: dict[str, float]  # 0..1


def task_file(benchmark: str) -> Path:
    """The YAML that says how lm-eval asks and scores: the record's `task`, or one of its own.

    Raises MeritError where there is none.
    """
    record = BENCHMARKS.get(benchmark)
    path = TASKS_DIR / f"{record.task if record and record.task else f'mini_text/{benchmark}'}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in (TASKS_DIR / "mini_text").glob("*.yaml")))
        raise MeritError(f"{path}: no such lm-eval task; known: {known}")
    return path


def task_config(benchmark: str, questions: Path, cache: Path, max_new_tokens: int) -> Any:
    """The YAML as lm-eval takes it, with the file of questions filled in.

    Raises MeritError where the questions are missing or malformed.
    """
    config = yaml.safe_load(task_file(benchmark).read_text(encoding="utf-8"))
    check_questions(questions, config["output_type"])
    files = {"data_files": {config["test_split"]: str(questions.resolve())}}
    config["dataset_kwargs"] = {**files, "cache_dir": str(cache)}
    config["task"] = benchmark  # several may share a file
    scorer = config.pop("scorer", None)
    if scorer is not None:
        config["process_results"] = pkgutil.resolve_name(SCORERS[scorer])
    if config["output_type"] == "generate_until":
        config["generation_kwargs"]["max_gen_toks"] = max_new_tokens
    return config


def check_questions(path: Path, output_type: str) -> None:
    """Raises MeritError, naming the line, where a question lacks a key or its answer is no option.

    lm-eval itself would report a KeyError, or count the question as wrong.
    """
    rows = read_jsonl(path)
    if not rows:
        raise MeritError(f"{path}: holds no question; run the data stage again")
    seen: set[str] = set()
    for number, row in enumerate(rows, start=1):
        where = f"{path}, line {number}"
        for key in ("index", "question"):
            if not isinstance(row.get(key), str) or not row[key].strip():
                raise MeritError(f"{where}: key `{key}`: expected text, found {row.get(key)!r}")
        if row["index"] in seen:
            raise MeritError(f"{where}: index {row['index']!r} occurs twice")
        seen.add(row["index"])
        answer, options = row.get("answer"), row.get("options")
        if output_type == "multiple_choice":
            if not isinstance(options, list) or len(options) < 2:
                raise MeritError(f"{where}: key `options`: expected two or more, found {options!r}")
            if not isinstance(answer, int) or not 0 <= answer < len(options):
                raise MeritError(
                    f"{where}: key `answer`: found {answer!r}, not the position of one of "
                    f"{len(options)} options"
                )
        elif not isinstance(answer, str) or not answer.strip():
            raise MeritError(f"{where}: key `answer`: expected text, found {answer!r}")


def answer_all(
    model: Any, tokenizer: Any, files: Mapping[str, Path], batch_size: int, max_new_tokens: int
) -> dict[str, Answers]:
    """What lm-eval makes of `model` on every benchmark of `files` (benchmark -> JSONL).

    Questions keep the order of the file. A prediction is the option with the highest
    log-likelihood, or the text that was written. Raises MeritError for malformed questions.
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
            bootstrap_iters=0,  # intervals are the report's business
            log_samples=True,
        )
    assert results is not None
    return {name: _collect(results, name) for name in files}


def _collect(results: Any, benchmark: str) -> Answers:
    samples = sorted(results["samples"][benchmark], key=lambda sample: sample["doc_id"])
    metric = next(m for m in METRICS if m in samples[0])
    scores = {str(s["doc"]["index"]): float(s[metric]) for s in samples}
    reported = next(
        float(value)
        for key, value in results["results"][benchmark].items()
        if key.split(",")[0] == metric
    )
    predictions = {str(s["doc"]["index"]): _prediction(s) for s in samples}
    return Answers(100 * reported, predictions, scores)


def _prediction(sample: Any) -> str:
    """The written text, or the option that lm-eval ranks first."""
    responses = sample["filtered_resps"]
    options = sample["doc"].get("options")
    if not options:
        return str(responses[0])
    likelihoods = [float(response[0]) for response in responses]
    return str(options[likelihoods.index(max(likelihoods))])


@contextlib.contextmanager
def quiet() -> Any:
    """lm-eval's progress bars, tables and warnings, kept from the terminal."""
    for name in ("lm_eval", "lm-eval", "datasets"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        yield
