"""Our benchmarks as VLMEvalKit datasets, and the two things asked of them: prompts and scores.

Importing this module imports vlmeval: 9 to 13 s, and TLS verification is off from then on. So only
the scoring process (merit.eval.engine) imports it. VLMEvalKit finds the files under `$LMUData`.

- choice: `CustomMCQDataset`, its prompt and its exact matching, untouched but for reading the file.
- open: ours, by eval.rubric; the prompt is the question.
- exact: ours, by eval.rubric. VLMEvalKit's own VQA scoring is not as strict: it picks its metric by
  the dataset's name, and by default drops articles and punctuation, reads "two" as "2", and gives
  nothing at all to a question with a single reference; besides, it forks 16 processes a call.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import vlmeval.dataset as registry
from vlmeval.dataset.image_base import ImageBaseDataset
from vlmeval.dataset.image_mcq import CustomMCQDataset
from vlmeval.dataset.utils import multiple_choice
from vlmeval.smp import LMUDataRoot, dump, get_intermediate_file_path, load

from merit.errors import MeritError
from merit.eval.answering.question_images import MAX_REFERENCE
from merit.eval.benchmarks import BENCHMARKS, Kind, benchmark
from merit.eval.public_datasets import IN_CELL, build_public, score_public
from merit.eval.rubric import exact_score, parse_reference, rubric_score

_with_threads = multiple_choice.track_progress_rich
LETTERS = ("A", "B", "C", "D")


def _names(kind: Kind) -> dict[str, str]:
    return {name: "" for name, record in BENCHMARKS.items() if record.kind == kind}


class _Local(ImageBaseDataset):
    """What our datasets share: a local file read as text, and prompts that write no images."""

    def load_data(self, dataset: str) -> pd.DataFrame:
        return read_tsv(Path(LMUDataRoot()) / f"{dataset}.tsv", benchmark(dataset).kind)

    def dump_image(self, line: Any) -> list[str]:
        # who asks opens them when it needs them; VLMEvalKit would decode and write every one
        return [IN_CELL + json.dumps([str(line["index"]), 0])]


class ChoiceDataset(_Local, CustomMCQDataset):
    """Multiple choice: VLMEvalKit's prompt, matching and accuracy."""

    DATASET_URL = _names("choice")


class _RubricDataset(_Local):
    """A mean of per-question scores of ours."""

    TYPE = "VQA"

    def evaluate(self, eval_file: str, **judge_kwargs: Any) -> pd.DataFrame:
        """Overall score in 0..100; per-question scores go to `<eval_file>_results.pkl`."""
        data = load(eval_file)
        scores = [
            self.score(str(prediction), str(answer))
            for prediction, answer in zip(data["prediction"], data["answer"], strict=True)
        ]
        dump(
            dict(zip(data["index"], scores, strict=True)),
            get_intermediate_file_path(eval_file, "_results", "pkl"),
        )
        return pd.DataFrame({"Overall": [100 * float(np.mean(scores))]})

    def score(self, prediction: str, answer: str) -> float:
        raise NotImplementedError


class ExactDataset(_RubricDataset):
    """Short answers, all or nothing."""

    DATASET_URL = _names("exact")

    def score(self, prediction: str, answer: str) -> float:
        return exact_score(prediction, answer)


class OpenDataset(_RubricDataset):
    """Free text against a reference of facts."""

    DATASET_URL = _names("open")

    def score(self, prediction: str, answer: str) -> float:
        return rubric_score(prediction, parse_reference(answer))


def register() -> None:
    """Make the names of our table known to VLMEvalKit's `build_dataset`; once is enough."""
    for dataset in (ChoiceDataset, ExactDataset, OpenDataset):
        if dataset not in registry.DATASET_CLASSES:
            registry.DATASET_CLASSES.append(dataset)
            registry.SUPPORTED_DATASETS.extend(dataset.supported_datasets())
    multiple_choice.track_progress_rich = _in_turn


def _in_turn(
    func: Callable[..., Any], tasks: list[Any], save: str, keys: list[Any], **options: Any
) -> list[Any]:
    """VLMEvalKit's task runner without threads, and with one write of the results at the end.

    Its own rewrites the whole result file after every answer, so that a paid judge's work survives
    a crash; with exact matching that is three quarters of the time, and quadratic.
    """
    if tasks and tasks[0].get("model") is not None:  # a judge
        return _with_threads(func, tasks, save=save, keys=keys, **options)
    results = [func(**task) for task in tasks]
    dump(dict(zip(keys, results, strict=True)), save)
    return results


def read_tsv(path: Path, kind: Kind) -> pd.DataFrame:
    """A benchmark's questions, every column as text; an option that a question lacks is NaN.

    pandas' own guesses would turn an option "None" into a missing one and "3" beside a missing
    option into "3.0". Raises MeritError where a column, an image, an answer or an option is
    missing.
    """
    try:
        data = pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False)
    except FileNotFoundError:
        raise MeritError(f"{path}: file not found; `dvc repro` writes it") from None
    except (ValueError, pd.errors.ParserError) as error:  # empty, ragged or not UTF-8
        raise MeritError(f"{path}: not a tab-separated table: {error}") from None
    needed = ["index", "image", "question", "answer", *(LETTERS[:2] if kind == "choice" else ())]
    missing = [column for column in needed if column not in data]
    if missing:
        raise MeritError(f"{path}: column `{missing[0]}` is missing; found {list(data.columns)}")
    if data.empty:
        raise MeritError(f"{path}: holds no question")
    known = set(data["index"])
    if len(known) < len(data):
        twice = data["index"][data["index"].duplicated()].iloc[0]
        raise MeritError(f"{path}: index {twice!r} occurs twice")
    for row in data.to_dict("records"):
        problem = _problem(row, kind, known)
        if problem:
            raise MeritError(f"{path}: index {row['index']!r}: {problem}")
    options = [letter for letter in LETTERS if letter in data]
    data[options] = data[options].mask(data[options] == "")
    # with a `split` VLMEvalKit reports one accuracy for each, and no overall one
    return data.drop(columns="split", errors="ignore")


def _problem(row: dict[Any, str], kind: Kind, known: set[str]) -> str | None:
    """What is wrong with a question, in words; None where nothing is."""
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


def build(
    name: str, file: Path, checked: bool = True, limit: int | None = None
) -> ImageBaseDataset:
    """The dataset of one benchmark over one file, built by VLMEvalKit from `$LMUData`.

    Args: of VLMEvalKit's own. checked: refuse a file whose MD5 is not the one that it knows. limit:
    how many questions are asked.
    """
    record = benchmark(name)  # a name that VLMEvalKit knows, but our table does not, is refused
    link = Path(LMUDataRoot()) / f"{record.dataset or name}.tsv"
    link.unlink(missing_ok=True)
    link.symlink_to(file.resolve())
    if record.public:
        return build_public(record, file, checked, limit)
    read_tsv(file, record.kind)  # so that a complaint names the user's own path
    return registry.build_dataset(name)


def prompts(dataset: ImageBaseDataset) -> dict[str, list[dict[str, Any]]]:
    """{index: VLMEvalKit's prompt}: text and images in turn (merit.eval.answering.answers.Parts)."""
    return {
        str(dataset.data.iloc[i]["index"]): [_part(part) for part in dataset.build_prompt(i)]
        for i in range(len(dataset))
    }


def _part(part: Mapping[str, str]) -> dict[str, Any]:
    if part["type"] == "text":
        return {"text": part["value"]}
    place = part["value"]
    return {"image": json.loads(place[len(IN_CELL) :]) if place.startswith(IN_CELL) else place}


def score(
    name: str,
    dataset: ImageBaseDataset,
    predictions: Mapping[str, str],
    judge: Mapping[str, Any] | None = None,
) -> tuple[float, dict[str, float], dict[str, float]]:
    """(score in 0..100, {index: score in 0..1}, {name: what is reported beside it}) of one model.

    Args: predictions: its answers to every question, by index. judge: see `score_public`.
    Raises MeritError where an answer is missing or belongs to no question.
    """
    data = dataset.data.drop(columns="image", errors="ignore")
    indices = [str(index) for index in data["index"]]
    missing = [index for index in indices if index not in predictions]
    unknown = sorted(set(predictions) - set(indices))
    if missing:
        raise MeritError(f"no prediction for index {missing[0]!r} ({len(missing)} missing)")
    if unknown:
        raise MeritError(f"prediction for index {unknown[0]!r}, which is not a question")
    work = (
        Path(LMUDataRoot()) / "work"
    )  # VLMEvalKit writes beside the predictions, and reuses what it finds
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    # a pickle keeps the text: in a table "7" beside an empty answer would come back as "7.0"
    file = work / "predictions.pkl"
    texts = [predictions[index].replace("\0", "") for index in indices]
    data.assign(prediction=pd.Series(texts, index=data.index, dtype=object)).to_pickle(file)
    if benchmark(name).public:
        return score_public(benchmark(name), dataset, file, judge)
    table = dataset.evaluate(str(file), model="exact_matching")
    overall = float(table["Overall"].iloc[0])
    if isinstance(dataset, ChoiceDataset):
        records = load(str(work / "predictions_exact_matching_result.pkl"))
        return 100 * overall, {str(index): float(r["hit"]) for index, r in records.items()}, {}
    scores = load(str(work / "predictions_results.pkl"))
    return overall, {str(index): float(value) for index, value in scores.items()}, {}
