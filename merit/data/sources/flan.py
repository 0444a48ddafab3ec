"""FLAN (text): hub `Muennighoff/flan`.

Revision 049702c, no licence tag. 66 tasks, `train/<task>_10templates_train.jsonl` with `inputs`,
`targets` and `task`; 500 to 30,000 lines a task by one count, 2.77M in all by another, so counts
are taken from the files. `inputs` are templated prompts (with OPTIONS where there is a choice),
`targets` bare answers: one turn.

Quirks: `task` is `<task>_10templates`; another one in a task's file is a bad record. bool_q,
hellaswag, arc_easy and arc_challenge are training sets of benchmarks of the paper's table 4 (`merit
overlap`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path

from merit.data.examples import BadRecord, Example, from_turns
from merit.data.images import ImageFinder
from merit.data.records import jsonl_records
from merit.data.source import Record, Source

TASKS = (
    *("aeslc", "ag_news_subset", "anli_r1", "anli_r2", "anli_r3", "arc_challenge", "arc_easy"),
    *("bool_q", "cb", "cnn_dailymail", "cola", "common_gen", "copa", "coqa", "cosmos_qa", "dart"),
    *("definite_pronoun_resolution", "drop", "e2e_nlg", "fix_punct", "gigaword", "glue_mrpc"),
    *("glue_qqp", "hellaswag", "imdb_reviews", "math_dataset", "mnli_matched", "mnli_mismatched"),
    *("multi_news", "multirc", "natural_questions", "openbookqa", "opinion_abstracts_idebate"),
    *("opinion_abstracts_rotten_tomatoes", "para_crawl_enes", "paws_wiki", "piqa", "qnli", "quac"),
    *("record", "rte", "samsum", "sentiment140", "snli", "squad_v1", "squad_v2", "sst2"),
    *("story_cloze", "stsb", "trec", "trivia_qa", "true_case", "web_nlg_en", "wic"),
    *("wiki_lingua_english_en", "wmt14_enfr", "wmt16_translate_csen", "wmt16_translate_deen"),
    *("wmt16_translate_fien", "wmt16_translate_roen", "wmt16_translate_ruen"),
    *("wmt16_translate_tren", "wnli", "word_segment", "wsc", "yelp_polarity_reviews"),
)


def file_of(task: str) -> str:
    """Where a task's training examples are."""
    return f"train/{task}_10templates_train.jsonl"


def patterns(tasks: Collection[str] | None) -> list[str]:
    """A file a task."""
    return [file_of(task) for task in TASKS if tasks is None or task in tasks]


def records(folder: Path, tasks: Collection[str] | None) -> Iterator[Record]:
    """Every line of the tasks that are wanted, task by task."""
    for task in TASKS:
        if tasks is None or task in tasks:
            for number, value in enumerate(jsonl_records(folder / file_of(task)), start=1):
                yield Record(f"{file_of(task)}, line {number}", task, value, f"{task}-{number}")


def convert(record: Record, pictures: ImageFinder) -> Example:
    """The template as prompt, the target as answer. Raises BadRecord."""
    found = record.get("task")
    if str(found).removesuffix("_10templates") != record.task:
        raise BadRecord(f"`task` is {found!r}, expected '{record.task}_10templates'")
    turn = (record.get("inputs"), record.get("targets"))
    return from_turns(record.id, record.task, [turn], ())


SOURCE = Source(
    repository="Muennighoff/flan",
    revision="049702ca5ffc5b3c62bf226aac67ba1493e8d548",
    licence="none stated; each underlying dataset's own",
    files=patterns,
    records=records,
    convert=convert,
    tasks=TASKS,
    images="none",
)
