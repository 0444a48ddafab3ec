"""VLMEvalKit's own datasets and scorers: files that are checked, images left where they are.

Like merit.eval.datasets, for the scoring process alone. A dataset is a subclass of the kit's own class
that reads the local file instead of fetching one, and names images instead of writing them all to
disk; prompts and scores are the kit's. What it returns, and the tables it leaves beside the
predictions, are read by what eval/benchmarks.yaml says of them.
"""

from __future__ import annotations

import ast
import hashlib
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import vlmeval.dataset as registry
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

IN_CELL = "cell:"  # an image where its question stands: index and position in the column `image`
JUDGE = "judge"  # what the kit calls it; the model's real name is the judge's own business
# what the kit asks of a file's columns, besides `index` and `question`; "image" may be "image_path"
COLUMNS: dict[type[ImageBaseDataset], tuple[str, ...]] = {
    ImageMCQDataset: ("A", "B", "answer"),
    ImageVQADataset: ("answer",),
    ImageYORNDataset: ("answer", "category"),
    MMVet: ("answer", "category"),
    LLaVABench: ("gpt4_ans", "caption", "category"),
    MathVista: ("question_type", "answer_type", "answer", "choices", "task", "skills"),
    MIABench: ("components", "component_weight", "num_of_component", "component_type"),
}
OF_ONE_DATASET = {"MME": ("image_path",), "MMMU_DEV_VAL": ("split",), "MMBench_DEV_EN": ("split",)}
# what the kit writes where it understood no judgement, and went on with a guess or a zero
UNUSABLE = ("thus randomly generate one", "All 5 retries failed")


def dataset_class(dataset: str) -> type[ImageBaseDataset]:
    """The kit's class of a dataset. Raises MeritError where it has none."""
    for kit_class in registry.DATASET_CLASSES:
        if dataset in kit_class.supported_datasets():
            return kit_class
    raise MeritError(f"VLMEvalKit has no dataset {dataset!r}; see eval/benchmarks.yaml")


def build_public(
    record: Benchmark, file: Path, checked: bool, limit: int | None
) -> ImageBaseDataset:
    """The kit's dataset over a local file, of its first `limit` questions alone where one is given.

    Raises MeritError where the file is missing, is another one than the kit's (`checked`), or lacks
    a column, naming where the kit would fetch it from.
    """
    kit_class = dataset_class(record.dataset)
    check_file(kit_class, record.dataset, file, checked)

    def load_data(self: Any, dataset: str) -> pd.DataFrame:
        data = read_public(file, kit_class, dataset)
        return data if limit is None else first_questions(data, record, limit)

    def dump_image(self: Any, line: Any) -> list[str]:
        # who asks opens them when it needs them; VLMEvalKit would decode and write every one
        if "image" not in line:
            return ImageBaseDataset.dump_image(self, line)
        many = len(line["image"]) if isinstance(line["image"], list) else 1
        return [IN_CELL + json.dumps([str(line["index"]), k]) for k in range(many)]

    own = {"load_data": load_data, "dump_image": dump_image}
    built: ImageBaseDataset = type(kit_class.__name__, (kit_class,), own)(record.dataset)
    return built


def check_file(kit_class: Any, dataset: str, file: Path, checked: bool) -> None:
    """Raises MeritError where the file is missing or not the one that the kit's MD5 names."""
    url = kit_class.DATASET_URL.get(dataset)
    expected = kit_class.DATASET_MD5.get(dataset)
    where = f"VLMEvalKit's is {url}, MD5 {expected}"
    if not file.is_file():
        raise MeritError(f"{file}: file not found; {where}: fetch it there ($LMUData)")
    with file.open("rb") as opened:
        found = hashlib.file_digest(opened, "md5").hexdigest()
    if checked and expected and found != expected:
        raise MeritError(
            f"{file}: MD5 {found}; {where}: fetch it anew, or accept another version with "
            "`evaluation.check_files: false`"
        )
    # MIA-Bench's scorer builds the dataset once more, and would fetch what it does not know
    kit_class.DATASET_MD5 = {**kit_class.DATASET_MD5, dataset: found}


def read_public(file: Path, kit_class: type[ImageBaseDataset], dataset: str) -> pd.DataFrame:
    """The file as the kit reads it. Raises MeritError where it could not be scored."""
    try:
        data = load(str(file))
    except (ValueError, pd.errors.ParserError) as error:
        raise MeritError(f"{file}: not a tab-separated table: {error}") from None
    known = next((names for base, names in COLUMNS.items() if issubclass(kit_class, base)), ())
    needed = ["index", "question", *known, *OF_ONE_DATASET.get(dataset, ())]
    missing = [column for column in needed if column not in data]
    if not {"image", "image_path"} & set(data.columns):
        missing.append("image")
    if missing:
        raise MeritError(f"{file}: column `{missing[0]}` is missing; found {list(data.columns)}")
    if data.empty:
        raise MeritError(f"{file}: holds no question")
    if data["index"].duplicated().any():
        twice = data["index"][data["index"].duplicated()].iloc[0]
        raise MeritError(f"{file}: index {str(twice)!r} occurs twice")
    asked = data[~data["image"].isna()] if "image" in data else data
    for column in ("question", *(c for c in known if c not in ("A", "B", "caption", "choices"))):
        empty = asked["index"][asked[column].isna()]
        if len(empty):
            raise MeritError(f"{file}: index {str(empty.iloc[0])!r}: `{column}` is empty")
    return data


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


# --- scores -------------------------------------------------------------------------------------


def score_public(
    record: Benchmark, dataset: ImageBaseDataset, file: Path, judge: Mapping[str, Any] | None
) -> tuple[float, dict[str, float], dict[str, float]]:
    """(score, {index: part of it}, what is reported beside it) of the predictions in `file`.

    100 times the mean of the parts is the score: a part is the question's own score in 0..1 where
    the score is their plain mean. LLaVA-Bench's is relative, 100 mean(score) / mean(score of
    GPT-4's answer), a part score_i / mean(GPT-4's). MME's is a sum over categories c of accuracy
    and accuracy of pairs (images right throughout), times 1/23; a part of N questions is

        N / 23 (hit_i / n_c + pair_i / (m_c k_i)),  n_c questions, m_c images, k_i of i's image.

    Args: file: the kit's table of predictions, a pickle; its own tables are left beside it. judge:
    what the kit's client is called with; None for exact matching.
    Raises MeritError where the judge's answer to a question could not be used.
    """
    assert record.score is not None
    options = {"model": JUDGE, **judge} if judge else {"model": "exact_matching"}
    table = dataset.evaluate(str(file), **options)
    if isinstance(table, dict):  # MIA-Bench
        table = pd.DataFrame(list(table.items())).rename(columns=str)
    questions, bad = _questions(record, dataset, file)
    if bad:
        raise MeritError(
            f"the judge's answer about index {bad[0]!r} says nothing that VLMEvalKit understands "
            f"({len(bad)} such answers); ask a better judge"
        )
    if record.split:
        splits = dict(zip(dataset.data["index"].astype(str), dataset.data["split"], strict=True))
        questions = {i: value for i, value in questions.items() if splits[i] == record.split}
    also = {name: read_cell(table, cell) for name, cell in record.also.items()}
    return read_cell(table, record.score), questions, also


def read_cell(table: pd.DataFrame, cell: Cell) -> float:
    """A number of the kit's table. Raises MeritError where the table has no such cell."""
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


def _questions(
    record: Benchmark, dataset: ImageBaseDataset, file: Path
) -> tuple[dict[str, float], list[str]]:
    """({index: part of the score}, indices of judgements that the kit did not understand)."""
    judged = _Tables(file)
    if isinstance(dataset, ImageMCQDataset):
        records = judged.records()
        hits = {str(index): float(r["hit"]) for index, r in records.items()}
        return hits, [str(i) for i, r in records.items() if _unusable(r["log"])]
    if isinstance(dataset, ImageYORNDataset):
        if dataset.dataset_name == "MME":
            assert record.score is not None
            return mme_parts(judged.table("_auxmatch"), record.score.times), []
        return judged.column("_auxmatch", lambda row: float(row["score"])), []
    if isinstance(dataset, ImageVQADataset):
        name = dataset.dataset_name
        return judged.column(
            "_results",
            lambda row: float(
                hit_calculate([{"match": ast.literal_eval(row["eval_match"])}], name)[0]
            ),
        ), []
    if isinstance(dataset, LLaVABench):
        ours, gpt4 = (
            judged.column("_openai_result", lambda row, key=key: float(row[key]))
            for key in ("score", "gpt4_score")
        )
        bad = [i for i, value in ours.items() if value < 0]
        scale = float(np.mean(list(gpt4.values())))
        return ({} if bad else {i: value / scale for i, value in ours.items()}), bad
    if isinstance(dataset, MIABench):
        rows = judged.column(f"_{JUDGE}", _mia_score)
        bad = [i for i, value in rows.items() if np.isnan(value)]
        return rows, bad
    assert isinstance(dataset, MathVista | MMVet), dataset.dataset_name
    logs = judged.column(f"_{JUDGE}", lambda row: float(_unusable(row["log"])))
    bad = [i for i, value in logs.items() if value]
    if isinstance(dataset, MMVet):
        return judged.column(f"_{JUDGE}", lambda row: float(row["score"])), bad
    return judged.column(f"_{JUDGE}", lambda row: float(post_check(row, prefetch=False))), bad


def mme_parts(table: pd.DataFrame, times: float) -> dict[str, float]:
    """{index: its part of MME's score}; see `score_public`. Args: times: of the kit's raw sum.

    Of an image the kit multiplies the first two scores: a pair is right where both are.
    """
    hit = table["score"].astype(float)
    image = [table["category"], table["image_path"]]
    pair = hit.groupby(image, sort=False).transform(lambda scores: float(np.prod(scores[:2])))
    num_of_image = hit.groupby(image).transform("size")
    num_questions = hit.groupby(table["category"]).transform("size")
    num_images = (1 / num_of_image).groupby(table["category"]).transform("sum")
    parts = len(table) * times * (hit / num_questions + pair / (num_images * num_of_image))
    return dict(zip(table["index"].astype(str), parts.tolist(), strict=True))


def _unusable(log: Any) -> bool:
    return any(mark in str(log) for mark in UNUSABLE)


def _mia_score(row: Mapping[str, Any]) -> float:
    parts = str(row["component_type"])[2:-2].split("', '")
    try:
        return float(process_rawscore(parts, row["score_raw"])["total_score"])
    except (ValueError, LookupError, NameError, TypeError, ZeroDivisionError):
        return float("nan")


class _Tables:
    """The tables that the kit leaves beside a file of predictions."""

    def __init__(self, file: Path) -> None:
        self.stem = str(file.with_suffix(""))

    def table(self, suffix: str) -> pd.DataFrame:
        found: pd.DataFrame = load(f"{self.stem}{suffix}.tsv")
        return found

    def column(self, suffix: str, value: Any) -> dict[str, float]:
        return {str(row["index"]): value(row) for row in self.table(suffix).to_dict("records")}

    def records(self) -> dict[Any, Any]:
        for name in ("exact_matching", JUDGE):
            path = Path(f"{self.stem}_{name}_result.pkl")
            if path.is_file():
                found: dict[Any, Any] = load(str(path))
                return found
        raise AssertionError("VLMEvalKit has left no results")
