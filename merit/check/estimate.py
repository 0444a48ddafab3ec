"""What an experiment takes: its mixture's amounts, disk, downloads, GPU-hours."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

import yaml

from merit.config import Experiment, Params
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
from merit.data.sources.own import num_records, source_of
from merit.data.sources.public import PUBLIC
from merit.eval.benchmarks import benchmark
from merit.io.artifacts import Artifacts, read_array, read_json
from merit.train.sizes import STATES, Sizes, origin_sizes, origins

FILE = Path(__file__).with_suffix(".yaml")
PIXELS, PIXELS_PER_TOKEN = 640 * 480, 28**2  # of a picture; Qwen2.5-VL: 2 x 2 patches of 14 x 14
BYTES_PER_TOKEN = 4.5  # of English text in JSONL


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


@cache
def known() -> dict[str, Any]:
    """estimate.yaml."""
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


def gpus(experiment: Experiment) -> int:
    """How many GPUs of this host the experiment may use."""
    import torch

    return 0 if experiment.model.device == "cpu" else torch.cuda.device_count()


def gpu_hours(
    experiment: Experiment, sizes: Sizes, amount: Amount, tflops: float
) -> dict[str, Any]:
    """{part: GPU-hours}: 6 N FLOP a token, 2 a parameter and patch of the frozen vision part."""
    some = experiment.gradients.num_examples * amount.tasks
    examples = {
        "base": sum(p.num_steps * p.optimizer.batch_size for p in experiment.base.phases),
        "gradients": min(amount.examples, some),
        "branches": amount.examples
        * sum(branch.epochs / branch.num_groups for branch in plan(experiment).branches.values()),
    }
    seen = 0 if experiment.encoding.cache_images else 2 * sizes.vision * sizes.patches
    flop = 6 * sizes.decoder * (amount.text + amount.image) + seen * amount.image
    each = flop / max(amount.examples, 1) / (tflops * 1e12) / 3600
    return {name: count * each for name, count in examples.items()}
