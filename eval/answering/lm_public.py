"""lm-eval's own tasks: MMLU, GPQA, HellaSwag, WinoGrande, BoolQ, XNLI, ARC-C, and HumanEval.

Data come from the hub through `datasets`, or from `evaluation.text_data`: a folder that holds the
hub's repositories as they are there (`<folder>/aps/super_glue/README.md`, ...).
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
from merit.eval.answering.lm_engine import Answers, quiet
from merit.eval.answering.sandbox import check_isolation, passes
from merit.eval.benchmarks import Benchmark, benchmark

OWN_TASKS = Path(__file__).parents[1] / "tasks" / "public"
SEED = 0  # of few-shot examples, and of the order in which GPQA's options are shown


def answer_public(
    model: Any, tokenizer: Any, names: list[str], settings: Evaluation
) -> dict[str, Answers]:
    """What lm-eval makes of `model` on its own tasks, by benchmark.

    Questions are "<subtask>/<number>", in lm-eval's order. Raises MeritError where data cannot be
    had, or code would be run that is not allowed to or cannot be isolated.
    """
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    records = [benchmark(name) for name in names]
    check_code(records, settings)
    manager = all_tasks()
    language_model = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=settings.batch_size)
    found = {}
    for record in records:
        place = settings.text_data
        with quiet(), _folder_of_data(place), _named(record, place), _without_cache():
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
        found[record.name] = collect(results, record)
    return found


@functools.lru_cache(maxsize=1)
def all_tasks() -> Any:
    """lm-eval's index of its own tasks, which takes seconds."""
    from lm_eval.tasks import TaskManager

    return TaskManager()


def check_code(records: list[Benchmark], settings: Evaluation) -> None:
    """Raises MeritError where a benchmark runs what models write, and may not or cannot safely."""
    for record in records:
        if record.runs_code:
            if not settings.run_model_code:
                raise MeritError(
                    f"{record.name} runs what the model writes; set `evaluation.run_model_code: "
                    "true`, or leave it out of `evaluation.benchmarks`"
                )
            check_isolation(Path())


def limit_of_each(max_questions: int | None, num_subtasks: int) -> int | None:
    """What lm-eval, which limits every subtask by itself, is told: 20 of XNLI are one a language.

    At least one: MMLU's 57 subjects are 57 questions, whatever the limit.
    """
    return None if max_questions is None else max(1, max_questions // num_subtasks)


def load_task(manager: Any, record: Benchmark, settings: Evaluation) -> tuple[Any, int]:
    """lm-eval's task or group, with what it makes of its data the same every time; and of how many
    tasks it is.

    GPQA shuffles its options anew whenever its questions are looked at, by Python's generator or
    (with examples) one of its own, and `datasets` keeps the first outcome on disk, whatever the
    seed was: without that cache, and seeded right before, there is one order.
    """
    found = manager.load([task(record, settings)])
    for each in found["tasks"].values():
        process = each.config.process_docs
        if process is not None:
            each.config.process_docs = functools.partial(_seeded, process)
    tasks = found["tasks"]
    return found["groups"].get(record.dataset) or tasks[record.dataset], len(tasks)


def _seeded(process: Callable[[Any], Any], dataset: Any) -> Any:
    generator = getattr(process, "__globals__", {}).get("rng", random)
    generator.seed(SEED)
    return process(dataset)


@contextlib.contextmanager
def _without_cache() -> Iterator[None]:
    """What is made of a dataset is not kept on disk; the dataset itself is."""
    import datasets

    before = datasets.is_caching_enabled()
    datasets.disable_caching()
    try:
        yield
    finally:
        if before:
            datasets.enable_caching()


def task(record: Benchmark, settings: Evaluation) -> Any:
    """lm-eval's task by name; one that runs code with our way to run it."""
    if not record.runs_code:
        return record.dataset
    config = yaml.safe_load((OWN_TASKS / f"{record.dataset}.yaml").read_text(encoding="utf-8"))
    length = record.max_new_tokens or settings.max_new_tokens
    config["generation_kwargs"]["max_gen_toks"] = length
    return config | {"process_results": run_tests}


def run_tests(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """HumanEval: does the completed function pass its tests?"""
    program = f"{doc['prompt']}{results[0]}\n{doc['test']}\ncheck({doc['entry_point']})"
    return {"pass@1": float(passes(program))}


def collect(results: Any, record: Benchmark) -> Answers:
    """The reported number, of a group its own, and every question of all subtasks."""
    reported = {**results["results"], **results.get("groups", {})}[record.dataset]
    score = next(float(v) for key, v in reported.items() if key.split(",")[0] == record.key)
    predictions, questions = {}, {}
    for name, samples in results["samples"].items():
        for sample in sorted(samples, key=lambda sample: sample["doc_id"]):
            index = f"{name}/{sample['doc_id']}"
            questions[index] = float(sample[record.key])
            predictions[index] = _prediction(sample)
    return Answers(100 * score, predictions, questions)


def _prediction(sample: Any) -> str:
    """The written text, or the number of the option that is ranked first."""
    responses = sample["filtered_resps"]
    if isinstance(responses[0], str):
        return responses[0]
    likelihoods = [float(response[0]) for response in responses]
    return str(likelihoods.index(max(likelihoods)))


@contextlib.contextmanager
def _folder_of_data(folder: str | None) -> Iterator[None]:
    """`datasets` takes a folder here that is called like a repository of the hub in its place."""
    if folder is None:
        yield
        return
    if not Path(folder).is_dir():
        raise MeritError(f"key `evaluation.text_data`: no such folder: {folder}")
    with contextlib.chdir(folder):
        yield


@contextlib.contextmanager
def _named(record: Benchmark, folder: str | None) -> Iterator[None]:
    """What `datasets` says where it finds no data, in a sentence that names the benchmark."""
    from datasets.exceptions import DatasetsError

    try:
        yield
    except (DatasetsError, OSError, ValueError) as error:
        place = f"the folder {folder}" if folder else "the hub or its cache"
        raise MeritError(
            f"{record.name}: lm-eval's task `{record.dataset}` finds no data in {place}: "
            f"{str(error).splitlines()[0]}"
        ) from None
