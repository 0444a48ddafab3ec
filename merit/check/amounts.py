"""How much there is to read, train on and answer: counted where it lies here, assumed elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce
from pathlib import Path

import numpy as np

from merit.check.facts import BenchmarkFacts, facts
from merit.config import Evaluation, Experiment, MiniTextData, MiniWorldData
from merit.config.data import JsonlData, PublicData, PublicSource, TaskRule
from merit.data.hub import files
from merit.data.sources.public import PUBLIC
from merit.io.artifacts import Artifacts, read_array, read_json

PIXELS_PER_TOKEN = 28**2  # Qwen2.5-VL: 2 x 2 patches of 14 x 14


@dataclass(frozen=True)
class Amount:
    """Examples of some tasks, and their tokens; `gigabytes` to fetch, without what is `unsized`."""

    num_tasks: int
    num_examples: float
    num_tokens: float  # image tokens included
    num_image_tokens: float
    num_loss_tokens: float
    gigabytes: float = 0.0
    unsized: tuple[str, ...] = ()
    basis: str = ""

    def plus(self, other: Amount) -> Amount:
        return Amount(
            self.num_tasks + other.num_tasks,
            self.num_examples + other.num_examples,
            self.num_tokens + other.num_tokens,
            self.num_image_tokens + other.num_image_tokens,
            self.num_loss_tokens + other.num_loss_tokens,
            self.gigabytes + other.gigabytes,
            self.unsized + other.unsized,
            "; ".join(dict.fromkeys([self.basis, other.basis])),
        )

    def times(self, factor: float) -> Amount:
        """As many examples, times `factor`."""
        return replace(
            self,
            num_examples=factor * self.num_examples,
            num_tokens=factor * self.num_tokens,
            num_image_tokens=factor * self.num_image_tokens,
            num_loss_tokens=factor * self.num_loss_tokens,
        )


def assumed(name: str, num_tasks: int, num_examples: float, experiment: Experiment) -> Amount:
    """So many examples of a source, by what facts.yaml says of one."""
    known, settings = facts().sources[name], experiment.encoding
    image = known.image_tokens
    if image is None:
        pixels = min(facts().assumptions.pixels, settings.max_pixels or np.inf)
        image = pixels / PIXELS_PER_TOKEN
    image *= known.images
    tokens = min(known.text_tokens + image, settings.max_tokens or np.inf)
    basis = f"{name}: {num_examples:,.0f} examples of {tokens:.0f} tokens ({known.source})"
    return Amount(
        num_tasks,
        num_examples,
        num_examples * tokens,
        num_examples * image,
        num_examples * known.text_tokens * known.loss_share,
        known.gigabytes or 0.0,
        (name,) if known.gigabytes is None else (),
        basis,
    )


def public(entry: PublicSource, experiment: Experiment) -> Amount:
    """Of one public source: its tasks, at most `max_examples` of each; fetched where it lacks."""
    known = facts().sources[entry.name]
    if isinstance(entry.tasks, TaskRule):
        tasks = min(entry.tasks.draw or known.tasks, known.tasks)
    else:
        tasks = len(entry.tasks)
    each = min(entry.max_examples or np.inf, known.examples / known.tasks)
    found = assumed(entry.name, tasks, tasks * each, experiment)
    assert isinstance(experiment.data, PublicData)
    there = lies_here(entry, experiment.data)
    return replace(found, gigabytes=0.0, unsized=()) if there else found


def lies_here(entry: PublicSource, data: PublicData) -> bool:
    """Whether all that the source is read from is in its folder."""
    source = PUBLIC[entry.name]
    wanted = None if isinstance(entry.tasks, TaskRule) else entry.tasks
    return bool(files(folder_of(entry, data), [*source.patterns(wanted), *source.archives]))


def folder_of(entry: PublicSource, data: PublicData) -> Path:
    return Path(entry.folder or f"{data.folder}/{entry.name}")


def own(data: JsonlData, experiment: Experiment) -> Amount:
    """Of a folder of JSONL files: lines counted, tokens by their bytes."""
    files = sorted(Path(data.folder).glob("*.jsonl"))
    lines = size = 0
    for path in files:
        with path.open("rb") as file:
            count = sum(1 for _ in file)
        kept = min(count, data.max_examples or count)
        lines, size = lines + kept, size + path.stat().st_size * kept // max(count, 1)
    found = assumed("jsonl", len(files), lines, experiment)
    tokens = size / facts().assumptions.bytes_a_token
    share = facts().sources["jsonl"].loss_share
    basis = f"{data.folder}: {lines:,} examples counted, {tokens:,.0f} tokens by their bytes"
    return Amount(found.num_tasks, lines, tokens, 0.0, tokens * share, basis=basis)


def mixture(experiment: Experiment, paths: Artifacts) -> Amount:
    """The fine-tuning mixture: exact as soon as it is encoded."""
    data = experiment.data
    if isinstance(data, PublicData):
        found = total([public(entry, experiment) for entry in data.sources])
    elif isinstance(data, JsonlData):
        found = own(data, experiment)
    else:
        found = generated(experiment, paths)
    if not (paths.encoded / "tasks.json").is_file():
        return found
    tasks_found = read_json(paths.encoded / "tasks.json")
    grids = read_array(paths.encoded / "grids.npy").prod(axis=1)
    merged = read_json(paths.encoded / "meta.json").get("merge_size", 2) ** 2
    examples, tokens, loss = (
        sum(task[key] for task in tasks_found)
        for key in ("num_samples", "num_tokens", "num_loss_tokens")
    )
    image = float(grids[read_array(paths.encoded / "image_ids.npy")].sum() / merged)
    basis = f"counted in {paths.encoded}: {examples:,} examples, {tokens:,} tokens"
    return Amount(len(tasks_found), examples, tokens, image, loss, basis=basis)


def generated(experiment: Experiment, paths: Artifacts) -> Amount:
    """Of a generated mixture: counted where the data stage has written it, else as its settings
    say; nothing is fetched.
    """
    data = experiment.data
    known = facts().sources[data.source]
    written = paths.mixture / "tasks.json"
    if written.is_file():
        sizes = [task["num_examples"] for task in read_json(written)]
        return assumed(data.source, len(sizes), sum(sizes), experiment)
    listed = getattr(data, "tasks", None)
    is_sources = isinstance(data, MiniWorldData) and data.units == "sources"
    tasks = len(listed) if isinstance(listed, list) else 176 if is_sources else known.tasks
    each = 1 if isinstance(data, MiniWorldData | MiniTextData) else tasks  # theirs is of all tasks
    return assumed(data.source, tasks, each * getattr(data, "num_examples", 0), experiment)


def phases(experiment: Experiment) -> list[Amount]:
    """What every phase of the base is trained on."""
    found = []
    for phase in experiment.base.phases:
        wanted = phase.num_steps * phase.optimizer.batch_size
        data = experiment.data
        if isinstance(data, PublicData) and phase.data in data.pretraining:
            whole = total([public(entry, experiment) for entry in data.pretraining[phase.data]])
            found.append(whole.times(wanted / whole.num_examples))
        else:
            found.append(assumed(data.source, 0, wanted, experiment))
    return found


def total(amounts: Sequence[Amount]) -> Amount:
    return reduce(Amount.plus, amounts)


def questions(experiment: Experiment) -> tuple[dict[str, BenchmarkFacts], list[str]]:
    """(what each benchmark asks, the benchmarks whose size nobody has counted)."""
    known, data, names = facts().benchmarks, experiment.data, experiment.evaluation.benchmarks
    found = {name: known[name] for name in names if name in known}
    if isinstance(data, MiniWorldData | MiniTextData):
        images = int(isinstance(data, MiniWorldData))
        mini = BenchmarkFacts(
            requests=data.num_questions, images=images, prompt_tokens=30, answer_tokens=8
        )
        found |= {name: mini for name in names if name.startswith("mini_")}
    if limit := experiment.evaluation.max_questions:
        found = {name: fewer(entry, limit) for name, entry in found.items()}
    return found, [name for name in names if name not in found]


def fewer(known: BenchmarkFacts, limit: int) -> BenchmarkFacts:
    """With at most so many requests and calls of a judge."""
    calls = min(known.judge_calls, limit)
    return known.model_copy(update={"requests": min(known.requests, limit), "judge_calls": calls})


def image_tokens(experiment: Experiment, evaluation: Evaluation) -> float:
    """Of a benchmark's picture."""
    if isinstance(experiment.data, MiniWorldData):
        return facts().sources["mini_world"].image_tokens or 0.0
    low, high = evaluation.min_pixels or 0, evaluation.max_pixels or np.inf
    return float(min(max(facts().assumptions.pixels, low), high) / PIXELS_PER_TOKEN)
