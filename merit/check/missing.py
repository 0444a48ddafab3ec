"""What an experiment lacks: data, consent, questions, packages, GPUs, disk; a line each."""

from __future__ import annotations

import configparser
import importlib.util
import os
import shutil
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from merit.check.access import needs_hub, set_access
from merit.check.estimate import Amount, Part, downloads, gpus, known, lm_eval_benchmarks, sources
from merit.config import Experiment, Launch, load_experiment
from merit.config.data import JsonlData, PublicData
from merit.data.sources.convert import FETCH_LINKS, FETCHED
from merit.data.sources.public import PUBLIC
from merit.errors import MeritError
from merit.eval.benchmarks import benchmark
from merit.io.artifacts import Artifacts
from merit.train.sizes import Sizes, training_memory

LARGE = 1e9  # trained parameters from which a CPU is no place to train
GATED = {"gpqa"}  # benchmarks whose data the hub gives only to those who accepted its conditions


def hub_off() -> str:
    """Why the hub cannot be asked; "" if it can. One that is not reachable is switched off."""
    if os.environ.get("HF_HUB_OFFLINE", "0").upper() in ("1", "ON", "YES", "TRUE"):
        return "which is off (HF_HUB_OFFLINE=0 turns it on)"
    place = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    try:
        urllib.request.urlopen(urllib.request.Request(place, method="HEAD"), timeout=5).close()
    except urllib.error.HTTPError:
        return ""  # it answers
    except (OSError, ValueError) as error:
        os.environ["HF_HUB_OFFLINE"] = "1"
        return f"which is not reachable at {place} ({getattr(error, 'reason', error)})"
    return ""


def missing_data(
    experiment: Experiment, paths: Artifacts, amount: Amount, off: str
) -> Iterator[str]:
    """Access to the hub, consent, sources' files and image folders."""
    from huggingface_hub import get_token

    data, own_loader = experiment.data, lm_eval_benchmarks(experiment)
    fetched = list(downloads(experiment, paths))
    if off and (wanted := [name for name in fetched if name not in own_loader]):
        yield f"access to the hub, {off}: {', '.join(wanted)}"
    told = known()["sources"]
    gated = [name for name in fetched if name in GATED or told.get(name, {}).get("gated")]
    if gated and get_token() is None:
        yield (
            "a token of the hub (`hf auth login` or HF_TOKEN), and its conditions accepted: "
            f"{', '.join(gated)} (gated)"
        )
    if isinstance(data, JsonlData) and amount.examples == 0:
        yield f"examples: {data.folder} has none"
    most = max(method.num_groups for method in experiment.methods.values())
    if amount.tasks < most:
        yield f"tasks: {most} groups need as many, there are {amount.tasks}"
    for entry, folder, absent in sources(data):
        source = PUBLIC[entry.name]
        assert isinstance(data, PublicData)
        if absent and source.repository is None:
            yield f"source {entry.name} in {folder}: {source.hint}"
        elif absent and (entry.revision or source.revision) is None:
            yield f"source {entry.name}: no revision is pinned; set `revision`"
        elif absent and not data.download:
            yield f"source {entry.name}: not in {folder}, and `data.download` is off"
        if entry.name == "laion_gpt4v" and not (folder / FETCHED).is_file():
            yield f"{folder / FETCHED} of {entry.name}: {FETCH_LINKS}"
        images = Path(entry.images or f"{data.folder}/images")
        if (entry.images or source.images == "shared") and not images.is_dir():
            shared = told[entry.name].get("images", "its own")
            yield f"image folder {images} of {entry.name} ({shared})"


def missing_benchmarks(experiment: Experiment, paths: Artifacts, off: str) -> Iterator[str]:
    """Questions, the sandbox, a judge."""
    from merit.eval.answering.sandbox import check_isolation

    settings = experiment.evaluation
    records = [benchmark(name) for name in settings.benchmarks]
    yield from missing_questions(experiment, off)
    code = [record.name for record in records if record.runs_code]
    if code and not settings.run_model_code:
        yield f"`evaluation.run_model_code: true`, which {', '.join(code)} needs"
    if code and (refusal := _refusal(check_isolation, Path())):
        yield f"isolation for {', '.join(code)}: {refusal}"
    judge, required = settings.judge, [r.name for r in records if r.judge == "required"]
    if judge is None:
        if required:
            yield f"a judge (`evaluation.judge`), without which {', '.join(required)} have no score"
    elif judge.replay_only:
        if not paths.judgements.is_file():
            yield f"the judge's recorded answers, {paths.judgements} (`evaluation.judge`)"
    elif judge.key_variable and not os.environ.get(judge.key_variable):
        yield f"the judge's key: environment variable {judge.key_variable}"


def check_questions(name: str) -> None:
    """Raises MeritError if questions are missing that would be asked after all training."""
    experiment = load_experiment(name)
    set_access(needs_hub(experiment, "evaluate"))
    off = hub_off() if lm_eval_benchmarks(experiment) else ""
    if lacking := "; ".join(missing_questions(experiment, off)):
        raise MeritError(f"{name}: missing before training: {lacking}")


def missing_questions(experiment: Experiment, off: str) -> Iterator[str]:
    """Files of questions, and data that lm-eval would find only on the hub."""
    from merit.eval.answering.lm_public import check_data

    settings = experiment.evaluation
    records = [benchmark(name) for name in settings.benchmarks]
    kit = Path(os.environ.get("LMUData", Path.home() / "LMUData"))  # noqa: SIM112
    files = [str(record.file) for record in records if record.kind == "vlmeval"]
    if absent := [name for name in files if not (kit / name).is_file()]:
        yield f"VLMEvalKit's {', '.join(absent)} in {kit} ($LMUData)"
    folder = settings.text_data
    if folder and not Path(folder).is_dir():
        yield f"`evaluation.text_data`: no folder {folder}"
    elif off or folder:  # as answering will load them
        errors = [
            _refusal(check_data, benchmark(n), settings) for n in lm_eval_benchmarks(experiment)
        ]
        yield from filter(None, errors)


def _refusal(function: Callable[..., object], *arguments: Any) -> str:
    """What the function refuses with; "" if it does not."""
    try:
        function(*arguments)
    except MeritError as error:
        return str(error)
    return ""


def missing_machine(experiment: Experiment, sizes: Sizes, launch: Launch) -> Iterator[str]:
    """Packages, and GPUs of this host unless Slurm looks for others."""
    import torch

    settings, found, wanted = experiment.training, gpus(experiment), launch.gpus_per_branch
    kernels = {settings.kernels, *(phase.kernels for phase in experiment.base.phases)}
    optimizers = [settings.optimizer, *(phase.optimizer for phase in experiment.base.phases)]
    python = experiment.evaluation.vllm_python
    if python and shutil.which(python) is None:
        yield f"the Python {python} (`evaluation.vllm_python`)"
    packages = {
        "torchao": any(o.algorithm == "adamw_8bit" for o in optimizers),
        "liger_kernel": "liger" in kernels,
        "vllm": experiment.evaluation.generator == "vllm" and not python,
        "flash_attn": experiment.model.attention == "flash_attention_2",
        "submitit": launch.backend == "slurm",
        "reasoning_gym": experiment.data.source == "reasoning_gym",
    }
    for package, is_needed in packages.items():
        if is_needed and importlib.util.find_spec(package) is None:
            yield f"package {package}"
    if launch.backend == "slurm":
        return
    trained = sizes.trained(experiment.training.lora)
    if not found:
        if experiment.model.device == "cuda" or sizes.decoder > LARGE:
            yield f"a GPU: {trained:,} parameters are trained"
        return
    if wanted > found:
        yield f"{wanted} GPUs per branch (`launch.gpus_per_branch`): there are {found}"
    if settings.precision == "bfloat16" and not torch.cuda.is_bf16_supported(False):
        yield f"bfloat16, which {torch.cuda.get_device_name()} lacks (`training.precision`)"
    room = torch.cuda.get_device_properties(0).total_memory
    trainings: list[tuple[str, Any, int]] = [("a branch", settings, max(1, wanted))]
    # a base has all GPUs to itself
    trainings += [(f"phase {p.name!r} of the base", p, found) for p in experiment.base.phases]
    for what, training, number in trainings:
        parts = training_memory(sizes, training, number)
        if sum(parts.values()) > room:
            named = ", ".join(f"{k} {v / 1e9:.1f}" for k, v in parts.items() if v)
            yield (
                f"GPU memory: {what} takes {sum(parts.values()) / 1e9:.0f} GB per GPU ({named}), "
                f"there are {room / 1e9:.0f}: raise `launch.gpus_per_branch`, lower "
                "`pack_tokens` or use `training.lora`"
            )


def missing_space(parts: list[Part], fetched: Mapping[str, float | None]) -> Iterator[str]:
    """Disk for what is not there yet; DVC's cache keeps a copy unless it links files."""
    for place in (Path("artifacts"), Path("reports"), Path()):
        if place.exists() and not os.access(place, os.W_OK):
            yield f"the right to write into {place.resolve()}"
            return
    settings = configparser.ConfigParser()
    settings.read([".dvc/config", ".dvc/config.local"], encoding="utf-8")
    kind = settings.get("cache", "type", fallback="").strip('"').replace("reflink,", "")
    copies = 1 if kind.startswith(("hardlink", "symlink")) else 2
    needed = copies * sum(max(0.0, part.size - part.there) for part in parts) / 1e9
    needed += sum(gb or 0 for gb in fetched.values())
    free = shutil.disk_usage(Path.cwd()).free / 1e9
    if needed > free:
        twice = " (DVC's cache keeps a copy)" * (copies > 1)
        yield f"disk: {needed:,.1f} GB{twice}, {free:,.1f} are free"
