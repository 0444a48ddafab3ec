"""lm-eval's own tasks: MMLU, GPQA, HellaSwag, WinoGrande, BoolQ, XNLI, ARC-C, and HumanEval.

Data come from the hub through `datasets`, or from `evaluation.text_data`: a folder that holds the
hub's repositories (`<folder>/aps/super_glue/README.md`, ...).
"""

from __future__ import annotations

import contextlib
import functools
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

from merit.config import Evaluation
from merit.errors import MeritError
from merit.eval.answering.lm_engine import TASKS_DIR, Answers, collect, quiet
from merit.eval.answering.sandbox import check_isolation, passes
from merit.eval.benchmarks import Benchmark, benchmark

OWN_TASKS = TASKS_DIR / "public"
SEED = 0  # of few-shot examples, and of the order in which GPQA's options are shown


def answer_public(
    model: Any, tokenizer: Any, names: list[str], settings: Evaluation
) -> dict[str, Answers]:
    """What `model` answers to lm-eval's own tasks and its scores, by benchmark.

    Questions are "<subtask>/<number>", in lm-eval's order. Raises MeritError if data are missing,
    or code would be run that is not allowed to or cannot be isolated.
    """
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    records = [benchmark(name) for name in names]
    check_code(records, settings)
    manager = all_tasks()
    language_model = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=settings.batch_size)
    found = {}
    for record in records:
        with quiet(), data_of(record, settings.text_data), _without_cache():
            asked, num_subtasks = load_task(manager, record, settings)
            results = simple_evaluate(
                model=language_model,
                tasks=[asked],
                num_fewshot=record.shots,
                limit=limit_of_each(settings.max_questions, num_subtasks),
                task_manager=manager,
                apply_chat_template=settings.chat_template,
                random_seed=SEED,
                numpy_random_seed=SEED,
                torch_random_seed=SEED,
                fewshot_random_seed=SEED,
                bootstrap_iters=0,
                log_samples=True,
            )
        assert results is not None
        found[record.name] = collect(
            *(results, record.dataset, results["samples"], record.key),
            index_of=lambda subtask, sample: f"{subtask}/{sample['doc_id']}",
            option_of=lambda _, best: str(best),
        )
    return found


def check_data(record: Benchmark, settings: Evaluation) -> None:
    """Raises MeritError if the benchmark's data cannot be had from where answering loads it."""
    with quiet(), data_of(record, settings.text_data), _without_cache():
        load_task(all_tasks(), record, settings)


@functools.lru_cache(maxsize=1)
def all_tasks() -> Any:
    """lm-eval's index of its own tasks, which takes seconds."""
    from lm_eval.tasks import TaskManager

    return TaskManager()


def check_code(records: list[Benchmark], settings: Evaluation) -> None:
    """Raises MeritError if a benchmark runs model code, and may not or cannot do so safely."""
    for record in records:
        if record.runs_code:
            if not settings.run_model_code:
                raise MeritError(
                    f"{record.name} runs what the model writes; set `evaluation.run_model_code: "
                    "true`, or leave it out of `evaluation.benchmarks`"
                )
            check_isolation(Path())


def limit_of_each(max_questions: int | None, num_subtasks: int) -> int | None:
    """lm-eval's limit per subtask: 20 questions of XNLI are one per language.

    At least one: MMLU's 57 subjects are 57 questions, whatever the limit.
    """
    return None if max_questions is None else max(1, max_questions // num_subtasks)


def load_task(manager: Any, record: Benchmark, settings: Evaluation) -> tuple[Any, int]:
    """lm-eval's task or group, which reads its data the same way every time; its number of tasks.

    GPQA shuffles its options whenever its questions are read, by Python's generator or (with
    examples) one of its own, and `datasets` keeps the first outcome on disk, whatever the seed was.
    Without that cache, and seeded right before, the order is fixed.
    """
    found = manager.load([task(record, settings)])
    tasks = found["tasks"]
    for each in tasks.values():
        if each.config.process_docs is not None:
            each.config.process_docs = functools.partial(_seeded, each.config.process_docs)
    return found["groups"].get(record.dataset) or tasks[record.dataset], len(tasks)


def _seeded(process: Callable[[Any], Any], dataset: Any) -> Any:
    getattr(process, "__globals__", {}).get("rng", random).seed(SEED)
    return process(dataset)


def task(record: Benchmark, settings: Evaluation) -> Any:
    """lm-eval's name of the task; if it runs code, our task with the sandbox."""
    if not record.runs_code:
        return record.dataset
    config = yaml.safe_load((OWN_TASKS / f"{record.dataset}.yaml").read_text(encoding="utf-8"))
    length = record.max_new_tokens or settings.max_new_tokens
    config["generation_kwargs"]["max_gen_toks"] = length
    return config | {"process_results": run_tests}


def run_tests(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """HumanEval: whether the completed function passes its tests."""
    program = f"{doc['prompt']}{results[0]}\n{doc['test']}\ncheck({doc['entry_point']})"
    return {"pass@1": float(passes(program))}


@contextlib.contextmanager
def _without_cache() -> Iterator[None]:
    """Keep processed data sets off the disk; the data sets themselves stay cached."""
    import datasets

    before = datasets.is_caching_enabled()
    datasets.disable_caching()
    try:
        yield
    finally:
        if before:
            datasets.enable_caching()


@contextlib.contextmanager
def data_of(record: Benchmark, folder: str | None) -> Iterator[None]:
    """Load data from `folder`, else the hub; a failure of `datasets` names the benchmark.

    `datasets` prefers a local folder that has the name of a hub repository.
    """
    from datasets.exceptions import DatasetsError

    if folder is not None and not Path(folder).is_dir():
        raise MeritError(f"key `evaluation.text_data`: no such folder: {folder}")
    try:
        with contextlib.chdir(folder) if folder else contextlib.nullcontext():
            yield
    except (DatasetsError, OSError, ValueError) as error:
        place = f"the folder {folder}" if folder else "the hub or its cache"
        raise MeritError(
            f"{record.name}: lm-eval's task `{record.dataset}` finds no data in {place}: "
            f"{str(error).splitlines()[0]}"
        ) from None
