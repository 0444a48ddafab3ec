"""Our benchmarks as VLMEvalKit datasets, and the two things asked of them: prompts and scores.

Only the scoring process (merit.eval.engine, which says why) imports this module.

- choice: the kit's `CustomMCQDataset`, its prompt and its exact matching.
- open, exact: the prompt is the question; scored by merit.eval.rubric. VLMEvalKit's VQA scoring is
  less strict: it picks its metric by the dataset's name, and by default drops articles and
  punctuation, reads "two" as "2", and gives nothing to a question with a single reference.
- vlmeval: the kit's own (merit.eval.public_datasets).
"""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from vlmeval.dataset.image_base import ImageBaseDataset
from vlmeval.dataset.image_mcq import CustomMCQDataset
from vlmeval.dataset.utils import multiple_choice
from vlmeval.smp import LMUDataRoot, dump, load

from merit.errors import MeritError
from merit.eval import public_datasets
from merit.eval.answering.question_images import MAX_REFERENCE
from merit.eval.benchmarks import Cell, Kind, benchmark
from merit.eval.rubric import exact_score, parse_reference, rubric_score

IN_CELL = "cell:"  # an image in the TSV: its question's index, and its position in the cell
LETTERS = ("A", "B", "C", "D")
CHOICE_SCORE = Cell(columns=["Overall"], times=100)
RUBRICS: dict[str, Callable[[str, str], float]] = {
    "exact": exact_score,
    "open": lambda prediction, answer: rubric_score(prediction, parse_reference(answer)),
}


class WrittenDataset(ImageBaseDataset):
    """Short answers and free text; the prompt is the question."""

    TYPE = "VQA"

    def evaluate(self, eval_file: str, **judge_kwargs: Any) -> dict[str, float]:
        """{index: score in 0..1}."""
        data, score = load(eval_file), RUBRICS[benchmark(self.dataset_name).kind]
        rows = zip(data["index"], data["prediction"], data["answer"], strict=True)
        return {str(index): score(str(text), str(answer)) for index, text, answer in rows}


def build(
    name: str, file: Path, checked: bool = True, limit: int | None = None
) -> ImageBaseDataset:
    """The dataset of one benchmark over one file: the kit's class, which reads our table.

    Prompts name images instead of writing all of them to disk. Args: of VLMEvalKit's own. checked:
    refuse a file whose MD5 is not the one that it knows. limit: how many questions are asked.
    """
    record = benchmark(name)  # refuses a name that VLMEvalKit knows and our table does not
    link = Path(LMUDataRoot()) / f"{record.dataset or name}.tsv"
    link.unlink(missing_ok=True)
    link.symlink_to(file.resolve())
    if record.public:
        kit_class = public_datasets.dataset_class(record.dataset)
        public_datasets.check_file(kit_class, record.dataset, file, checked)
        read = functools.partial(public_datasets.read_questions, file, kit_class, record, limit)
    else:
        kit_class = CustomMCQDataset if record.kind == "choice" else WrittenDataset
        read = functools.partial(read_tsv, file, record.kind)

    def dump_image(self: Any, line: Any) -> list[str]:
        if "image" not in line:
            return ImageBaseDataset.dump_image(self, line)
        count = len(line["image"]) if isinstance(line["image"], list) else 1
        return [IN_CELL + json.dumps([str(line["index"]), k]) for k in range(count)]

    changed = {"load_data": lambda self, dataset: read(), "dump_image": dump_image}
    built: ImageBaseDataset = type(kit_class.__name__, (kit_class,), changed)(
        record.dataset or name
    )
    return built


def read_tsv(path: Path, kind: Kind) -> pd.DataFrame:
    """A benchmark's questions, every column as text; an option that a question lacks is NaN.

    pandas' guesses would turn an option "None" into a missing one and "3" beside a missing option
    into "3.0". Raises MeritError if a column, an image, an answer or an option is missing.
    """
    try:
        data = pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False)
    except FileNotFoundError:
        raise MeritError(f"{path}: file not found; `dvc repro` writes it") from None
    except (ValueError, pd.errors.ParserError) as error:  # empty, ragged or not UTF-8
        raise MeritError(f"{path}: not a tab-separated table: {error}") from None
    options = LETTERS[:2] if kind == "choice" else ()
    public_datasets.check_table(path, data, ["index", "image", "question", "answer", *options])
    known = set(data["index"])
    for row in data.to_dict("records"):
        problem = _problem(row, kind, known)
        if problem:
            raise MeritError(f"{path}: index {row['index']!r}: {problem}")
    letters = [letter for letter in LETTERS if letter in data]
    data[letters] = data[letters].mask(data[letters] == "")
    # with a `split` VLMEvalKit reports one accuracy for each, and no overall one
    return data.drop(columns="split", errors="ignore")


def _problem(row: dict[Any, str], kind: Kind, known: set[str]) -> str | None:
    """What is wrong with a question, in words, or None."""
    for column in ("question", "answer", "image"):
        if not row[column].strip():
            return f"`{column}` is empty"
    image = row["image"]
    if len(image) <= MAX_REFERENCE and image not in known:
        return f"`image` is neither base64 nor another question's index: {image!r}"
    if kind == "choice" and (row["answer"] not in LETTERS or not row.get(row["answer"])):
        return f"`answer` is {row['answer']!r}, which is not the letter of an option"
    if kind == "open":
        try:
            parse_reference(row["answer"])
        except MeritError as error:
            return f"`answer`: {error}"
    return None


def prompts(dataset: ImageBaseDataset) -> dict[str, list[dict[str, Any]]]:
    """{index: VLMEvalKit's prompt}: text and images in turn (answering.answers.Parts)."""
    return {
        str(dataset.data.iloc[i]["index"]): [_part(part) for part in dataset.build_prompt(i)]
        for i in range(len(dataset))
    }


def _part(part: Mapping[str, str]) -> dict[str, Any]:
    value = part["value"]
    if part["type"] == "text":
        return {"text": value}
    is_cell = value.startswith(IN_CELL)
    return {"image": json.loads(value.removeprefix(IN_CELL)) if is_cell else value}


def score(
    name: str,
    dataset: ImageBaseDataset,
    predictions: Mapping[str, str],
    judge: Mapping[str, Any] | None = None,
) -> tuple[float, dict[str, float], dict[str, float]]:
    """(score in 0..100, {index: score in 0..1}, {name: what is reported beside it}) of one model.

    Args: predictions: its answers to every question, by index. judge: see `score_table`.
    Raises MeritError if an answer is missing or belongs to no question.
    """
    record, data = benchmark(name), dataset.data.drop(columns="image", errors="ignore")
    indices = [str(index) for index in data["index"]]
    missing = [index for index in indices if index not in predictions]
    unknown = sorted(set(predictions) - set(indices))
    if missing:
        raise MeritError(f"no prediction for index {missing[0]!r} ({len(missing)} missing)")
    if unknown:
        raise MeritError(f"prediction for index {unknown[0]!r}, which is not a question")
    # VLMEvalKit writes beside the predictions, and reuses what it finds
    work = Path(LMUDataRoot()) / "work"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    # a pickle keeps the text: in a table "7" beside an empty answer would come back as "7.0"
    file = work / "predictions.pkl"
    texts = [predictions[index].replace("\0", "") for index in indices]
    data.assign(prediction=pd.Series(texts, index=data.index, dtype=object)).to_pickle(file)
    if record.kind in RUBRICS:
        parts: dict[str, float] = dataset.evaluate(str(file))
        return 100 * float(np.mean(list(parts.values()))), parts, {}
    if record.kind == "choice":
        record, judge = record.model_copy(update={"score": CHOICE_SCORE}), None
    return public_datasets.score_table(record, dataset, file, judge)


def _in_turn(
    func: Callable[..., Any], tasks: list[Any], save: str, keys: list[Any], **options: Any
) -> list[Any]:
    """VLMEvalKit's task runner without threads, and with one write of the results at the end.

    The kit's rewrites the whole result file after every answer, so that a paid judge's work
    survives a crash; with exact matching that is three quarters of the time, and quadratic.
    """
    if tasks and tasks[0].get("model") is not None:  # a judge
        return _with_threads(func, tasks, save=save, keys=keys, **options)
    results = [func(**task) for task in tasks]
    dump(dict(zip(keys, results, strict=True)), save)
    return results


_with_threads = multiple_choice.track_progress_rich
multiple_choice.track_progress_rich = _in_turn
