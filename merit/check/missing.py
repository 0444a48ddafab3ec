"""What an experiment lacks, by name: credentials, revisions, files, packages, memory, space."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from merit.check.amounts import folder_of, lies_here
from merit.check.estimate import Row, Work
from merit.check.facts import facts
from merit.check.stages import training_parts
from merit.config.data import JsonlData, PublicData, PublicSource
from merit.data.sources.convert import FETCH_LINKS, FETCHED
from merit.data.sources.public import PUBLIC

LARGE = 1e9  # trained parameters from which a processor is no place to train


@dataclass(frozen=True)
class Surroundings:
    """What the machine at hand offers; `copies` is how often DVC keeps a file (2: cached, too)."""

    free_gb: float
    host_gb: float
    has_token: bool  # of the hub
    offline: bool
    variables: Mapping[str, str]
    kit: Path  # where VLMEvalKit's files of questions are looked for
    isolation: str = ""  # why what a model writes cannot be run here, where a benchmark runs it
    judgements: Path = Path("judgements.jsonl")  # a judge's recorded answers
    copies: int = 2


def missing(work: Work, rows: Sequence[Row], here: Surroundings, named: bool) -> list[str]:
    """A line for each; `named`: the GPUs are asked about, and not those of this machine."""
    return [
        *_hub(work, here),
        *_sources(work, here),
        *_benchmarks(work, here),
        *_packages(work),
        *_room(work, rows, here, named),
    ]


def _entries(data: PublicData) -> list[PublicSource]:
    return [*data.sources, *(entry for phase in data.pretraining.values() for entry in phase)]


def _absent(work: Work) -> list[PublicSource]:
    data = work.experiment.data
    if not isinstance(data, PublicData):
        return []
    return [entry for entry in _entries(data) if not lies_here(entry, data)]


def _hub(work: Work, here: Surroundings) -> Iterator[str]:
    wanted: list[str] = [e.name for e in _absent(work) if PUBLIC[e.name].repository]
    wanted += work.origins
    if work.experiment.evaluation.text_data is None:
        wanted += [n for n, record in work.records.items() if record.kind == "lm_eval"]
    if wanted and here.offline:
        names = ", ".join(dict.fromkeys(wanted))
        yield f"access to the hub, which is off (HF_HUB_OFFLINE=0 turns it on): {names}"
    gated: list[str] = [e.name for e in _absent(work) if facts().sources[e.name].gated]
    gated += [known.gated for known in work.questions.values() if known.gated]
    if gated and not here.has_token:
        yield (
            f"a token of the hub (`hf auth login` or HF_TOKEN), and its conditions accepted: "
            f"{', '.join(dict.fromkeys(gated))} (gated)"
        )


def _sources(work: Work, here: Surroundings) -> Iterator[str]:
    data = work.experiment.data
    if not isinstance(data, PublicData):
        if isinstance(data, JsonlData) and work.mixture.num_examples == 0:
            yield "examples: the mixture has none"
        return
    for entry in _absent(work):
        source, folder = PUBLIC[entry.name], folder_of(entry, data)
        if source.repository is None:
            yield f"source {entry.name} in {folder}: {source.hint}"
        elif (entry.revision or source.revision) is None:
            yield f"source {entry.name}: no revision is pinned; set `revision`"
        elif not data.download:
            yield f"source {entry.name}: not in {folder}, and `data.download` is off"
    for entry in _entries(data):
        fetched = folder_of(entry, data) / FETCHED
        if entry.name == "laion_gpt4v" and not fetched.is_file():
            yield f"{fetched} of laion_gpt4v: {FETCH_LINKS}"
        if not entry.images and PUBLIC[entry.name].images != "shared":
            continue
        images = Path(entry.images or f"{data.folder}/images")
        if not images.is_dir():
            sizes = facts().image_folders
            also = [
                f"{name}, {f'{sizes[name]:g} GB' if sizes[name] else 'size unknown'}"
                for name in facts().sources[entry.name].also
            ]
            yield f"image folder {images} of {entry.name} ({'; '.join(also)})"


def _benchmarks(work: Work, here: Surroundings) -> Iterator[str]:
    settings, records = work.experiment.evaluation, work.records
    files = [record.file for record in records.values() if record.kind == "vlmeval"]
    if absent := [name for name in files if not (here.kit / name).is_file()]:
        yield f"VLMEvalKit's {', '.join(absent)} in {here.kit} ($LMUData)"
    if settings.text_data and not Path(settings.text_data).is_dir():
        yield f"`evaluation.text_data`: no folder {settings.text_data}"
    code = [name for name, record in records.items() if record.runs_code]
    if code and not settings.run_model_code:
        yield f"`evaluation.run_model_code: true`, which {', '.join(code)} needs"
    if code and here.isolation:
        yield f"isolation for {', '.join(code)}: {here.isolation}"
    required = [name for name, record in records.items() if record.judge == "required"]
    judge = settings.judge
    if judge is None and required:
        yield f"a judge (`evaluation.judge`), without which {', '.join(required)} have no score"
    key = judge.key_variable if judge and not judge.replay_only else None
    if key and not here.variables.get(key):
        yield f"the judge's key: environment variable {key}"
    if judge and judge.replay_only and not here.judgements.is_file():
        yield f"the judge's recorded answers, {here.judgements} (`evaluation.judge.replay_only`)"


def _packages(work: Work) -> Iterator[str]:
    experiment = work.experiment
    needed = {
        "vllm": experiment.evaluation.generator == "vllm",
        "flash_attn": experiment.model.attention == "flash_attention_2",
        "submitit": work.launch.backend == "slurm",
        "reasoning_gym": experiment.data.source == "reasoning_gym",
    }
    for package, is_needed in needed.items():
        if is_needed and importlib.util.find_spec(package) is None:
            yield f"package {package}"


def _room(work: Work, rows: Sequence[Row], here: Surroundings, named: bool) -> Iterator[str]:
    machine, shapes = work.machine, work.shapes
    precision = work.experiment.training.precision
    if not machine.is_gpu and shapes.decoder > LARGE:
        yield f"a GPU: {shapes.decoder:,} parameters are trained; `--gpu h100x8` asks about others"
    if machine.is_gpu and precision == "bfloat16" and machine.card.bfloat16 is None:
        yield f"bfloat16, which {machine.card.name} does not compute in (`training.precision`)"
    if machine.is_gpu and work.gpus > machine.count:
        yield f"{work.gpus} GPUs a branch (`launch.gpus_per_branch`): there are {machine.count}"
    for row in rows:
        if machine.is_gpu and row.gpu_gb and row.gpu_gb > machine.card.memory_gb:
            yield (
                f"GPU memory for {row.stage}: {row.gpu_gb:.0f} GB a GPU, {machine.card.name} has "
                f"{machine.card.memory_gb:g}; {_remedy(work, row)}"
            )
        if not named and row.host_gb and row.host_gb > here.host_gb:
            yield f"memory for {row.stage}: {row.host_gb:.0f} GB, there are {here.host_gb:.0f}"
    needed = sum(here.copies * (row.disk_gb or 0) + (row.download_gb or 0) for row in rows)
    if needed > here.free_gb:
        twice = " (DVC's cache keeps a copy where the file system cannot share)" * (here.copies > 1)
        yield f"disk: {needed:,.1f} GB{twice}, {here.free_gb:,.1f} are free"


def _remedy(work: Work, row: Row) -> str:
    """What would make it fit."""
    room = work.machine.card.memory_gb * 1e9
    enough = [n for n in (2, 4, 8) if sum(training_parts(work, n).values()) <= room]
    return {
        "base": "its phases run in one process: take a larger card",
        "train": f"`launch.gpus_per_branch: {enough[0]}` would do"
        if enough
        else "lower `training.pack_tokens` or use `training.lora`",
    }.get(row.stage, f"lower `{row.stage.replace('evaluate', 'evaluation')}.batch_size`")
