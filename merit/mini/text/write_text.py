"""The text world's files, in the canonical formats (docs/formats.md)."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from merit.config import MiniTextData
from merit.data.examples import make_document, make_example
from merit.io.artifacts import write_json, write_jsonl
from merit.io.progress import Progress
from merit.mini.text.corpus import conversation, document, recall
from merit.mini.text.items import Part
from merit.mini.text.text_benchmarks import RECIPES, benchmark_rows
from merit.mini.text.text_tasks import TASKS, ask, task_sizes

# an independent stream of random numbers per part: resizing one leaves the others unchanged
STREAMS = {"mixture": 1, "conversations": 2, "test": 3, "validation": 4, "corpus": 5, "recall": 6}


def write_mini_text(settings: MiniTextData, folder: Path) -> None:
    """The mixture, the base's corpus and conversations, and the benchmarks' two splits."""
    sizes = task_sizes(TASKS, settings.num_examples)
    with Progress("data", len(TASKS) + 2) as progress:
        for i, (task, size) in enumerate(zip(TASKS, sizes, strict=True)):
            rng = np.random.default_rng([settings.seed, STREAMS["mixture"], i])
            examples = [
                make_example(f"{task.name}-{n}", task.name, [ask(task, rng)], ())
                for n in range(size)
            ]
            rows = [example.to_json() for example in examples]
            write_jsonl(folder / "mixture" / f"{task.name}.jsonl", rows)
            progress.advance()
        entries = [
            {"task": t.name, "family": t.family, "style": t.style, "num_examples": size}
            for t, size in zip(TASKS, sizes, strict=True)
        ]
        write_json(
            folder / "mixture" / "tasks.json", sorted(entries, key=lambda entry: str(entry["task"]))
        )
        _write_base_data(settings, folder / "pretraining")
        progress.advance()
        _write_benchmarks(settings, folder)
        progress.advance()


def _write_base_data(settings: MiniTextData, folder: Path) -> None:
    rng = np.random.default_rng([settings.seed, STREAMS["corpus"]])
    documents = [
        make_document(f"document-{i}", document(rng)) for i in range(settings.num_documents)
    ]
    write_jsonl(folder / "corpus.jsonl", [d.to_json() for d in documents])
    rng = np.random.default_rng([settings.seed, STREAMS["recall"]])
    recalled = [make_document(f"recall-{i}", recall(rng)) for i in range(settings.num_recall)]
    write_jsonl(folder / "recall.jsonl", [d.to_json() for d in recalled])
    rng = np.random.default_rng([settings.seed, STREAMS["conversations"]])
    conversations = [
        make_example(f"conversation-{i}", "conversation", conversation(rng), ())
        for i in range(settings.num_conversations)
    ]
    write_jsonl(folder / "conversations.jsonl", [c.to_json() for c in conversations])


def _write_benchmarks(settings: MiniTextData, folder: Path) -> None:
    parts: tuple[tuple[Part, Path, int], ...] = (
        ("test", folder / "benchmarks", settings.num_questions),
        ("validation", folder / "benchmarks" / "validation", settings.num_validation_questions),
    )
    for part, target, count in parts:
        for i, name in enumerate(RECIPES):
            rng = np.random.default_rng([settings.seed, STREAMS[part], i])
            write_jsonl(target / f"{name}.jsonl", benchmark_rows(name, count, rng, part))
