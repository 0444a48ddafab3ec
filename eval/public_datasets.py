"""VLMEvalKit's own datasets and scorers: checked files, and what is read of the kit's tables.

Like merit.eval.datasets, for the scoring process only. Prompts and scores are the kit's; what it
returns, and the tables it leaves beside the predictions, are read as eval/benchmarks.yaml and
`READERS` say.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import string
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from vlmeval.dataset.image_base import ImageBaseDataset
from vlmeval.dataset.image_mcq import ImageMCQDataset
from vlmeval.dataset.image_vqa import ImageVQADataset, LLaVABench, MathVista, MMVet
from vlmeval.dataset.image_yorn import ImageYORNDataset
from vlmeval.dataset.miabench import MIABench, process_rawscore
from vlmeval.dataset.utils.mathvista import post_check
from vlmeval.dataset.utils.vqa_eval import hit_calculate
from vlmeval.smp import load, log

from merit.errors import MeritError
from merit.eval.benchmarks import Benchmark, Cell

# ms-vlmeval 0.0.20: the scorer of LLaVABench looks for `vlmeval.smp.log` one package too deep
sys.modules.setdefault("vlmeval.dataset.smp", sys.modules["vlmeval.smp"])
sys.modules.setdefault("vlmeval.dataset.smp.log", log)

Row = Mapping[Any, Any]
JUDGE = "judge"  # what the kit calls it; only the judge knows the model's real name
OF_ONE_DATASET = {"MME": ("image_path",), "MMMU_DEV_VAL": ("split",), "MMBench_DEV_EN": ("split",)}
MAY_BE_EMPTY = ("A", "B", "caption", "choices")
# what the kit writes if it understood no judgement, and went on with a guess or a zero
UNUSABLE = ("thus randomly generate one", "All 5 retries failed")


# --- what is read of each of the kit's classes ----------------------------------------------------


def _unusable(row: Row) -> bool:
    return any(mark in str(row["log"]) for mark in UNUSABLE)


def _vqa_hit(row: Row, dataset: str) -> float:
    return float(hit_calculate([{"match": ast.literal_eval(row["eval_match"])}], dataset)[0])


def _mia_score(row: Row, dataset: str = "") -> float:
    parts = str(row["component_type"])[2:-2].split("', '")
    try:
        return float(process_rawscore(parts, row["score_raw"])["total_score"])
    except (ValueError, LookupError, NameError, TypeError, ZeroDivisionError):
        return float("nan")


def _given_score(row: Row, dataset: str) -> float:
    return float(row["score"])


@dataclass(frozen=True)
class Reader:
    """`columns` of the file besides `index` and `question`; the kit's `table` of results.

    `part`: a question's part of the score, from its row of the table and the dataset's name.
    `unusable`: whether the kit could not use the judge's answer.
    """

    columns: tuple[str, ...]
    table: str  # its file is <predictions><table>
    part: Callable[[Row, str], float]
    unusable: Callable[[Row], bool] = lambda row: False


READERS: dict[type[ImageBaseDataset], Reader] = {
    ImageMCQDataset: Reader(
        ("A", "B", "answer"), "_{}_result.pkl", lambda row, _: float(row["hit"]), _unusable
    ),
    ImageVQADataset: Reader(("answer",), "_results.tsv", _vqa_hit),
    ImageYORNDataset: Reader(("answer", "category"), "_auxmatch.tsv", _given_score),
    MMVet: Reader(("answer", "category"), "_judge.tsv", _given_score, _unusable),
    LLaVABench: Reader(
        ("gpt4_ans", "caption", "category"),
        "_openai_result.tsv",
        _given_score,
        lambda row: float(row["score"]) < 0,
    ),
    MathVista: Reader(
        ("question_type", "answer_type", "answer", "choices", "task", "skills"),
        "_judge.tsv",
        lambda row, _: float(post_check(row, prefetch=False)),
        _unusable,
    ),
    MIABench: Reader(
        ("components", "component_weight", "num_of_component", "component_type"),
        "_judge.tsv",
        _mia_score,
        lambda row: np.isnan(_mia_score(row)),
    ),
}


def _reader(kit_class: type[ImageBaseDataset]) -> Reader:
    return next(reader for base, reader in READERS.items() if issubclass(kit_class, base))


# --- files ----------------------------------------------------------------------------------------


def dataset_class(dataset: str) -> type[ImageBaseDataset]:
    """The kit's class of a dataset. Raises MeritError if it has none."""
    for kit_class in _kit_classes():
        if dataset in kit_class.supported_datasets():
            return kit_class
    raise MeritError(f"VLMEvalKit has no dataset {dataset!r}; see eval/benchmarks.yaml")


@functools.cache
def _kit_classes() -> Sequence[type[ImageBaseDataset]]:
    """All dataset classes of the kit. Takes seconds: this imports all of them."""
    package = sys.modules["vlmeval.dataset"]  # empty until here: merit.eval.engine
    assert package.__spec__ is not None
    assert package.__spec__.loader is not None
    package.__spec__.loader.exec_module(package)
    return package.DATASET_CLASSES


def check_file(kit_class: Any, dataset: str, file: Path, checked: bool) -> None:
    """Raises MeritError if the file is missing or, if `checked`, lacks the MD5 the kit knows."""
    url, expected = kit_class.DATASET_URL.get(dataset), kit_class.DATASET_MD5.get(dataset)
    where = f"VLMEvalKit's is {url}, MD5 {expected}"
    if not file.is_file():
        raise MeritError(f"{file}: file not found; {where}: fetch it there ($LMUData)")
    with file.open("rb") as opened:
        found = hashlib.file_digest(opened, "md5").hexdigest()
    if checked and expected and found != expected:
        raise MeritError(
            f"{file}: MD5 {found}; {where}: fetch it again, or accept another version with "
            "`evaluation.check_files: false`"
        )
    # MIA-Bench's scorer builds the dataset once more, and would fetch what it does not know
    kit_class.DATASET_MD5 = {**kit_class.DATASET_MD5, dataset: found}


def check_table(file: Path, data: pd.DataFrame, needed: Sequence[str]) -> None:
    """Raises MeritError if a column is missing, there is no question, or an index occurs twice."""
    missing = [column for column in needed if column not in data]
    if missing:
        raise MeritError(f"{file}: column `{missing[0]}` is missing; found {list(data.columns)}")
    if data.empty:
        raise MeritError(f"{file}: holds no question")
    if data["index"].duplicated().any():
        twice = data["index"][data["index"].duplicated()].iloc[0]
        raise MeritError(f"{file}: index {str(twice)!r} occurs twice")


def read_questions(
    file: Path, kit_class: type[ImageBaseDataset], record: Benchmark, limit: int | None
) -> pd.DataFrame:
    """The file as the kit reads it, or its first `limit` questions; but only "" is a missing cell.

    The kit would lose an option "None" or "NA". Raises MeritError if it could not be scored.
    """
    try:
        data = pd.read_csv(file, sep="\t", keep_default_na=False, na_values=[""])
    except (ValueError, pd.errors.ParserError) as error:
        raise MeritError(f"{file}: not a tab-separated table: {error}") from None
    columns = _reader(kit_class).columns
    image = () if "image_path" in data else ("image",)
    more = OF_ONE_DATASET.get(record.dataset, ())
    check_table(file, data, ["index", "question", *columns, *more, *image])
    asked = data[~data["image"].isna()] if "image" in data else data
    for column in ("question", *(c for c in columns if c not in MAY_BE_EMPTY)):
        empty = asked["index"][asked[column].isna()]
        if len(empty):
            raise MeritError(f"{file}: index {str(empty.iloc[0])!r}: `{column}` is empty")
    if issubclass(kit_class, ImageMCQDataset):
        _check_letters(file, asked)
    return data if limit is None else first_questions(data, record, limit)


def _check_letters(file: Path, data: pd.DataFrame) -> None:
    """Raises MeritError if the answer of a question with options is the letter of none of them."""
    letters = [letter for letter in string.ascii_uppercase if letter in data]
    for row in data.to_dict("records"):
        options = {letter for letter in letters if not pd.isna(row[letter])}
        answer = str(row["answer"])
        if options and answer in string.ascii_uppercase and answer not in options:
            raise MeritError(
                f"{file}: index {str(row['index'])!r}: `answer` is {answer!r}, which is not the "
                "letter of an option"
            )


def first_questions(data: pd.DataFrame, record: Benchmark, limit: int) -> pd.DataFrame:
    """The first questions of the split that counts, with all rotations of their options."""
    if "image" in data:  # a row may show another's image, which would be cut off
        shown = dict(zip(data["index"].astype(str), data["image"], strict=True))
        data = data.assign(image=[shown.get(str(cell), cell) for cell in data["image"]])
    if record.split:
        data = data[data["split"] == record.split]
    circular = record.dataset.startswith("MMBench")
    groups = data["index"].astype(int) % 1_000_000 if circular else data["index"]
    return data[groups.isin(groups.drop_duplicates().head(limit))]


# --- scores ---------------------------------------------------------------------------------------


def score_table(
    record: Benchmark, dataset: ImageBaseDataset, file: Path, judge: Mapping[str, Any] | None
) -> tuple[float, dict[str, float], dict[str, float]]:
    """(score, {index: part of it}, what is reported beside it) of the predictions in `file`.

    100 times the mean of the parts is the score. If the score is a plain mean, a part is the
    question's own score in 0..1. LLaVA-Bench's is relative, 100 mean(score) / mean(score of
    GPT-4's answer), a part score_i / mean(GPT-4's). MME's is a sum over categories c of accuracy
    and accuracy of pairs (images right throughout), times 1/23; a part of N questions is

        N / 23 (hit_i / n_c + pair_i / (m_c k_i)),  n_c questions, m_c images, k_i of i's image.

    Args: file: the kit's table of predictions, a pickle; its own tables are left beside it. judge:
    arguments of the kit's client; None for exact matching.
    Raises MeritError if the judge's answer to a question could not be used.
    """
    assert record.score is not None
    options = {"model": JUDGE, **judge} if judge else {"model": "exact_matching"}
    table = dataset.evaluate(str(file), **options)
    if isinstance(table, dict):  # MIA-Bench
        table = pd.DataFrame(list(table.items())).rename(columns=str)
    reader = _reader(type(dataset))
    results = _results(file, reader.table)
    rows = {str(row["index"]): row for row in results.to_dict("records")}
    bad = [index for index, row in rows.items() if reader.unusable(row)]
    if bad:
        raise MeritError(
            f"the judge's answer about index {bad[0]!r} says nothing that VLMEvalKit understands "
            f"({len(bad)} such answers); ask a better judge"
        )
    if record.dataset == "MME":
        parts = mme_parts(results, record.score.times)
    else:
        parts = {index: reader.part(row, record.dataset) for index, row in rows.items()}
    if isinstance(dataset, LLaVABench):
        scale = float(np.mean([float(row["gpt4_score"]) for row in rows.values()]))
        parts = {index: part / scale for index, part in parts.items()}
    if record.split:
        splits = dict(zip(dataset.data["index"].astype(str), dataset.data["split"], strict=True))
        parts = {index: part for index, part in parts.items() if splits[index] == record.split}
    also = {name: read_cell(table, cell) for name, cell in record.also.items()}
    return read_cell(table, record.score), parts, also


def _results(file: Path, suffix: str) -> pd.DataFrame:
    """The kit's table beside a file of predictions; of multiple choice it is a dictionary."""
    names = [f"{file.with_suffix('')}{suffix.format(who)}" for who in ("exact_matching", JUDGE)]
    found = load(next(name for name in names if Path(name).is_file()))
    if isinstance(found, dict):
        return pd.DataFrame([{**row, "index": index} for index, row in found.items()])
    return found


def read_cell(table: pd.DataFrame, cell: Cell) -> float:
    """A number of the kit's table. Raises MeritError if the table has no such cell."""
    rows = table
    for column, value in cell.row.items():
        if column not in rows:
            raise MeritError(f"VLMEvalKit's scores have no column {column!r}: {list(rows)}")
        rows = rows[rows[column].astype(str) == value]
    missing = [column for column in cell.columns if column not in rows]
    if len(rows) != 1 or missing:
        raise MeritError(
            f"VLMEvalKit's scores have {len(rows)} rows with {cell.row}, and of {cell.columns} not "
            f"{missing}:\n{table}"
        )
    return cell.times * float(sum(rows[column].iloc[0] for column in cell.columns))


def mme_parts(table: pd.DataFrame, times: float) -> dict[str, float]:
    """{index: its part of MME's score}; see `score_table`. Args: times: of the kit's raw sum.

    The kit multiplies the first two scores of an image: a pair is right if both are.
    """
    hit = table["score"].astype(float)
    image = [table["category"], table["image_path"]]
    pair = hit.groupby(image, sort=False).transform(lambda scores: float(np.prod(scores[:2])))
    num_of_image = hit.groupby(image).transform("size")
    num_questions = hit.groupby(table["category"]).transform("size")
    num_images = (1 / num_of_image).groupby(table["category"]).transform("sum")
    parts = len(table) * times * (hit / num_questions + pair / (num_images * num_of_image))
    return dict(zip(table["index"].astype(str), parts.tolist(), strict=True))
