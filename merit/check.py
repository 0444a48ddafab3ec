"""`merit check NAME`: what an experiment lacks and takes, before anything is fetched or trained."""

from __future__ import annotations

import configparser
import importlib.util
import math
import os
import shutil
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

import yaml

from merit.config import Experiment, Launch, Params, load_experiment, load_params
from merit.config.branches import plan
from merit.config.data import (
    DataSettings,
    JsonlData,
    MiniWorldData,
    PublicData,
    PublicSource,
    TaskRule,
)
from merit.data.hub import files
from merit.data.sources.convert import FETCH_LINKS, FETCHED
from merit.data.sources.own import num_records, source_of
from merit.data.sources.public import PUBLIC
from merit.errors import MeritError
from merit.eval.benchmarks import benchmark
from merit.io.artifacts import Artifacts, read_array, read_json
from merit.run.access import needs_hub, set_access, uses_hub
from merit.train.sizes import STATES, Sizes, base_sizes, origin_sizes, origins, training_memory

FILE = Path(__file__).with_suffix(".yaml")
PIXELS, PIXELS_PER_TOKEN = 640 * 480, 28**2  # of a picture; Qwen2.5-VL: 2 x 2 patches of 14 x 14
BYTES_PER_TOKEN = 4.5  # of English text in JSONL
LARGE = 1e9  # trained parameters from which a CPU is no place to train
GATED = {"gpqa"}  # benchmarks whose data the hub gives only to those who accepted its conditions


@dataclass(frozen=True)
class Amount:
    """The mixture's tasks, examples and tokens, counted or assumed as `basis` says."""

    tasks: int
    examples: float
    text: float
    image: float
    basis: str


@dataclass(frozen=True)
class Part:
    """One part of the artifacts: `number` of them, `size` bytes together."""

    name: str
    number: int
    size: float
    folder: Path | None = None

    @property
    def there(self) -> int:
        """Bytes that lie there already."""
        files = self.folder.rglob("*") if self.folder else ()
        return sum(path.stat().st_size for path in files if path.is_file())


def check(name: str, gpu_tflops: float, mfu: float) -> None:
    """Print what the experiment takes and lacks; exit status 1 if something is missing.

    Raises MeritError for an unknown experiment or base.
    """
    experiment, params, paths = load_experiment(name), load_params(), Artifacts(name)
    set_access(uses_hub(experiment))
    off = hub_off()  # before anything imports the hub's client
    sizes, amount = base_sizes(experiment.base, paths.base), mixture(experiment, paths)
    parts = disk(experiment, paths, sizes, amount, params)
    fetched = downloads(experiment, paths)
    print(page(experiment, sizes, amount, parts, fetched))
    print(hours(experiment, sizes, amount, gpu_tflops, mfu))
    lacking = [
        *missing_data(experiment, paths, amount, off),
        *missing_benchmarks(experiment, paths, off),
        *missing_machine(experiment, sizes, params.launch),
        *missing_space(parts, fetched),
    ]
    if not lacking:
        print("\nNothing is missing.")
        return
    print(f"\nMissing ({len(lacking)}):\n" + "\n".join(f"- {line}" for line in lacking))
    sys.exit(1)


@cache
def known() -> dict[str, Any]:
    """check.yaml."""
    return dict(yaml.safe_load(FILE.read_text(encoding="utf-8")))


# --- the mixture --------------------------------------------------------------------------------


def mixture(experiment: Experiment, paths: Artifacts) -> Amount:
    """The fine-tuning mixture: counted once it is encoded, else from its files or as assumed."""
    data = experiment.data
    if (paths.encoded / "tasks.json").is_file():
        return encoded(paths.encoded)
    if isinstance(data, JsonlData):
        return own(data)
    text, image = known()["tokens"][data.source]
    if isinstance(data, PublicData):
        found = [public(entry) for entry in data.sources]
        tasks, examples = sum(n for n, _ in found), sum(n for _, n in found)
        if all(PUBLIC[entry.name].images == "none" for entry in data.sources):
            image = 0
    elif (paths.mixture / "tasks.json").is_file():
        written = read_json(paths.mixture / "tasks.json")
        tasks, examples = len(written), sum(task["num_examples"] for task in written)
    elif data.source == "reasoning_gym":
        tasks, examples = len(data.tasks), len(data.tasks) * data.num_examples
    else:
        by_source = isinstance(data, MiniWorldData) and data.units == "sources"
        tasks = 176 if by_source else known()["sources"][data.source]["tasks"]
        examples = data.num_examples
    if image is None:
        image = min(PIXELS, experiment.encoding.max_pixels or PIXELS) / PIXELS_PER_TOKEN
    basis = f"assumed: {text:g} tokens of text and {image:.0f} of an image per example"
    return Amount(tasks, examples, examples * text, examples * image, basis)


def encoded(folder: Path) -> Amount:
    """What the encode stage has written."""
    tasks = read_json(folder / "tasks.json")
    examples, tokens = (sum(t[key] for t in tasks) for key in ("num_samples", "num_tokens"))
    patches = read_array(folder / "grids.npy").prod(axis=1)[read_array(folder / "image_ids.npy")]
    image = float(patches.sum()) / read_json(folder / "meta.json").get("merge_size", 2) ** 2
    return Amount(len(tasks), examples, tokens - image, image, f"counted in {folder}")


def own(data: JsonlData) -> Amount:
    """Records and bytes of one's own files; of one file for many tasks, as of one task."""
    folder, source = source_of(Path(data.folder), data.columns)
    files, examples, size = [folder / name for name, _ in source.parts], 0, 0.0
    for path in files:
        lines = num_records(path)
        kept = min(lines, data.max_examples or lines)
        examples, size = examples + kept, size + path.stat().st_size * kept / max(lines, 1)
    basis = f"{data.folder}, assumed: {BYTES_PER_TOKEN} bytes per token"
    tasks = len(source.tasks) or len(files)
    return Amount(tasks, examples, size / BYTES_PER_TOKEN, 0.0, basis)


def public(entry: PublicSource) -> tuple[int, float]:
    """(tasks, examples) of a public source, at most `max_examples` per task."""
    told = known()["sources"][entry.name]
    if isinstance(entry.tasks, TaskRule):
        chosen = min(entry.tasks.draw or told["tasks"], told["tasks"])
    else:
        chosen = len(entry.tasks)
    return chosen, chosen * min(entry.max_examples or math.inf, told["examples"] / told["tasks"])


def sources(data: DataSettings) -> Iterator[tuple[PublicSource, Path, bool]]:
    """(entry, folder, whether a file is missing there) of the mixture and of the base's phases."""
    if not isinstance(data, PublicData):
        return
    for entry in chain(data.sources, *data.pretraining.values()):
        source, folder = PUBLIC[entry.name], Path(entry.folder or f"{data.folder}/{entry.name}")
        wanted = None if isinstance(entry.tasks, TaskRule) else entry.tasks
        yield entry, folder, not files(folder, [*source.patterns(wanted), *source.archives])


# --- what it takes ------------------------------------------------------------------------------


def disk(
    experiment: Experiment, paths: Artifacts, sizes: Sizes, amount: Amount, params: Params
) -> list[Part]:
    """The parts of the artifacts. All but those of text follow exactly from the shapes."""
    todo, settings, gradients = plan(experiment), experiment.training, experiment.gradients
    trained, weights = sizes.trained(experiment.training.lora), sizes.decoder + sizes.vision
    branches, models = len(todo.branches), len(todo.models)
    strided = gradients.representation == "stride"
    kept = -(-sizes.decoder // gradients.stride) if strided else gradients.sketch_size
    width = {"base": sizes.width, "float32": 4}.get(experiment.merge_dtype, 2)
    features = 4 * amount.image * sizes.hidden * experiment.encoding.cache_images
    tokens = 5 * (amount.text + amount.image)  # an int32 and a mask
    found = [
        Part("data", 1, BYTES_PER_TOKEN * amount.text, paths.data),
        Part("base", 1, sizes.width * weights, paths.base),
        Part("encoded", 1, tokens + features, paths.encoded),
        Part("gradients", amount.tasks, 4 * kept * amount.tasks, paths.gradients),
        Part("branches", branches, 4 * trained * branches, paths.folder / "branches"),
        Part("models", models, width * weights * models, paths.folder / "models"),
    ]
    if settings.checkpoint_minutes:
        launch, here = params.launch, gpus(experiment)
        slots = here // max(1, launch.gpus_per_branch) if here else params.workers
        number = max(1, min(branches, launch.slots or slots))
        states = 4 * (1 + STATES[settings.optimizer.algorithm]) * trained
        found.append(Part("checkpoints", number, states * number))
    return found


def downloads(experiment: Experiment, paths: Artifacts) -> dict[str, float | None]:
    """GB to fetch from the hub by name; None if nobody states them."""
    found: dict[str, float | None] = {}
    for entry, _, absent in sources(experiment.data):
        if absent and PUBLIC[entry.name].repository:
            found[entry.name] = known()["sources"][entry.name]["gigabytes"]
    if not (paths.base / "config.json").is_file():
        for origin in origins(experiment.base):
            if origin.hub:
                sizes = origin_sizes(origin)
                found[origin.hub] = sizes.width * (sizes.decoder + sizes.vision) / 1e9
    if experiment.evaluation.text_data is None:
        found |= dict.fromkeys(lm_eval_benchmarks(experiment))
    return found


def lm_eval_benchmarks(experiment: Experiment) -> list[str]:
    """Those whose data lm-eval loads itself."""
    return [n for n in experiment.evaluation.benchmarks if benchmark(n).kind == "lm_eval"]


def page(
    experiment: Experiment,
    sizes: Sizes,
    amount: Amount,
    parts: list[Part],
    fetched: Mapping[str, float | None],
) -> str:
    """Sizes, disk by parts and downloads."""
    rows = [(part.name, str(part.number), part.size, part.there) for part in parts]
    rows.append(("total", "", sum(row[2] for row in rows), sum(row[3] for row in rows)))
    named = [f"{n} {'unknown' if gb is None else f'{gb:.3g} GB'}" for n, gb in fetched.items()]
    return "\n".join(
        [
            f"{experiment.name}: {sizes.decoder:,} parameters in the decoder, {sizes.vision:,} in "
            f"the vision part; {amount.tasks} tasks, {amount.examples:,.0f} examples, "
            f"{amount.text + amount.image:,.0f} tokens ({amount.basis})",
            f"\n{'disk':<12}{'number':>8}{'GB':>12}{'there':>12}",
            *(f"{n:<12}{k:>8}{gb / 1e9:>12.3f}{there / 1e9:>12.3f}" for n, k, gb, there in rows),
            f"\nDownloads: {', '.join(named) or 'none'}; "
            f"{sum(gb or 0 for gb in fetched.values()):.3g} GB without the unknown.",
        ]
    )


def hours(
    experiment: Experiment, sizes: Sizes, amount: Amount, gpu_tflops: float, mfu: float
) -> str:
    """GPU-hours by one formula, with its assumptions."""
    some = experiment.gradients.num_examples * amount.tasks
    examples = {
        "base": sum(p.num_steps * p.optimizer.batch_size for p in experiment.base.phases),
        "gradients": min(amount.examples, some),
        "branches": amount.examples
        * sum(branch.epochs / branch.num_groups for branch in plan(experiment).branches.values()),
    }
    seen = 0 if experiment.encoding.cache_images else 2 * sizes.vision * sizes.patches
    flop = 6 * sizes.decoder * (amount.text + amount.image) + seen * amount.image
    each = flop / max(amount.examples, 1) / (gpu_tflops * 1e12 * mfu) / 3600
    named = ", ".join(f"{name} {count * each:.3g}" for name, count in examples.items())
    return (
        f"GPU-hours: {named}; {sum(examples.values()) * each:.3g} together.\n"
        "  6 N tokens / (peak x MFU): N parameters of the decoder; 2 per parameter and patch of "
        f"the frozen vision part.\n  Assumed: peak {gpu_tflops:g} TFLOP/s (--gpu-tflops), MFU "
        f"{mfu:g} (--mfu), phases of the base read examples as long as the mixture's.\n"
        "  Not in it: answers, merges, studies."
    )


# --- what is missing ----------------------------------------------------------------------------


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


def gpus(experiment: Experiment) -> int:
    """How many GPUs of this host the experiment may use."""
    import torch

    return 0 if experiment.model.device == "cpu" else torch.cuda.device_count()


def missing_machine(experiment: Experiment, sizes: Sizes, launch: Launch) -> Iterator[str]:
    """Packages, and GPUs of this host unless Slurm looks for others."""
    import torch

    settings, found, wanted = experiment.training, gpus(experiment), launch.gpus_per_branch
    packages = {
        "vllm": experiment.evaluation.generator == "vllm",
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
