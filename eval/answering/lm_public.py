"""lm-eval's own tasks: MMLU, GPQA, HellaSwag, WinoGrande, BoolQ, XNLI, ARC-C, and HumanEval.

Data come from the hub through `datasets`, or from `evaluation.text_data`: a folder that holds the
hub's repositories as they are there (`<folder>/aps/super_glue/README.md`, ...).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from eval.answering.lm_engine import Answers, quiet
from eval.benchmarks import Benchmark, benchmark
from eval.sandbox import check_isolation, passes
from merit.config import Evaluation
from merit.errors import MeritError

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
    from lm_eval.tasks import TaskManager

    records = [benchmark(name) for name in names]
    check_code(records, settings)
    manager = TaskManager()
    language_model = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=settings.batch_size)
    found = {}
    for record in records:
        with quiet(), _folder_of_data(settings.text_data), _named(record, settings.text_data):
            results = simple_evaluate(
                model=language_model,
                tasks=[task(record, settings)],
                num_fewshot=record.shots,
                task_manager=manager,
                apply_chat_template=settings.chat_template,
                gen_kwargs=None,
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
