"""`merit new NAME`: look at a mixture and a base, and write experiments/NAME.yaml for them."""

from __future__ import annotations

import json
import math
import os
import re
import tempfile
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jinja2 import StrictUndefined, Template

from merit.config import EXPERIMENTS_DIR, Encoding, Origin, load_experiment
from merit.config.data import JsonlData
from merit.data.examples import iter_examples
from merit.data.hub import fetch, noted_revision
from merit.data.mixture import write_own
from merit.data.tasks import task_file
from merit.errors import MeritError
from merit.io.artifacts import atomic_write, read_json
from merit.train.base import model_folder
from merit.train.images import ImageReader
from merit.train.model import check_architecture, load_processor
from merit.train.sizes import Sizes, config_sizes
from merit.train.tokenize import encode_examples, template_of

NAME = re.compile(r"[a-z][a-z0-9_]*")
HUB = re.compile(r"([\w.-]+/[\w.-]+?)(?:@([0-9a-f]{7,40}))?")
CONFIGS = ("*.json", "*.txt", "*.jinja")  # of a model, without its weights
SAMPLE = 20  # examples of a task whose tokens are counted
PIXELS = 784 * 784  # of an image at most, which Qwen2.5-VL sees as 784 tokens
SMALL, LARGE = 5e8, 1e9  # trained parameters below which float32 is cheap, from which memory is not
LEAST = 4  # tasks of a group
STEPS = 100  # of a branch that its batch leaves it, and half of it its epochs at the least


@dataclass(frozen=True)
class Mixture:
    """What was found in the data: examples of every task, tokens of a sample, bad records."""

    tasks: dict[str, int]
    lengths: np.ndarray
    has_images: bool
    max_pixels: int | None  # a limit where the processor's own is too high
    bad: list[str]


def new(name: str, data: str, base: str) -> None:
    """Write experiments/NAME.yaml and say what was found and chosen.

    Raises MeritError, before anything is written, for a name that is taken or no name, data that
    cannot be split, and a base that cannot be trained or asked.
    """
    path = EXPERIMENTS_DIR / f"{name}.yaml"
    if not NAME.fullmatch(name):
        raise MeritError(f"{name!r}: a name has small letters, digits and _, a letter first")
    if path.exists():
        raise MeritError(f"{path}: is there already; remove it, or choose another name")
    if not os.access(Path.cwd(), os.W_OK):
        raise MeritError(f"{Path.cwd()}: cannot be written; choose another directory")
    with tempfile.TemporaryDirectory() as scratch:
        folder, origin = look_at_base(base, Path(scratch, "base"), name)
        sizes = config_sizes(read_json(folder / "config.json"), base)
        processor = load_processor(folder)
        tokenizer = getattr(processor, "tokenizer", processor)
        template: Literal["chat", "plain"]
        written = tokenizer.chat_template or getattr(processor, "chat_template", None)
        template = "chat" if written else "plain"
        template_of(processor, template)  # refuses one that training cannot use
        if template == "plain" and tokenizer.eos_token is None:
            raise MeritError(f"{base}: its tokenizer has no end mark, so it cannot end an answer")
        found = look_at_data(data, Path(scratch, "data"), processor, template)
    text = settings(name, data, origin, sizes, found, template)
    atomic_write(path, text)
    load_experiment(name)
    print(
        f"{data}: {len(found.tasks)} tasks, {sum(found.tasks.values()):,} examples "
        f"({min(found.tasks.values())} to {max(found.tasks.values())} per task), "
        f"{'images and text' if found.has_images else 'text'}, {np.median(found.lengths):.0f} "
        f"tokens each (longest of a sample: {found.lengths.max()})\n"
        f"{base}: {sizes.decoder:,} parameters to train, "
        f"{'its own chat template' if template == 'chat' else 'no chat template'}"
    )
    for line in found.bad[:3]:
        print(f"not an example: {line}")
    if found.bad:
        print(f"{len(found.bad)} records are no examples: mend them, or set `on_bad_record: skip`")
    print(f"written: {path}; look at it, then `merit run {name}`")


def look_at_base(base: str, scratch: Path, name: str) -> tuple[Path, dict[str, str]]:
    """(a folder with its config and tokenizer, its keys in the YAML)."""
    hub = HUB.fullmatch(base)
    if not hub or Path(base).exists():
        if not Path(base).exists() and not base.startswith("package:"):
            raise MeritError(f"--base {base}: no such folder, and no name on the hub (owner/model)")
        folder = model_folder(Origin(checkpoint=base), scratch, "base", name)
        check_architecture(folder)
        return folder, {"checkpoint": base}
    fetch(scratch, CONFIGS, hub[1], hub[2], f"{base}: no such folder here", kind="model")
    check_architecture(scratch)
    revision = hub[2] or noted_revision(scratch, scratch / "config.json")
    return scratch, {"hub": hub[1], "revision": str(revision)}


def look_at_data(data: str, scratch: Path, processor: Any, template: Any) -> Mixture:
    """Read the data as the data stage will, and count a sample's tokens."""
    scratch.mkdir()
    options: dict[str, Any] = {"on_bad_record": "skip", "check_images": "exists"}
    write_own(JsonlData(source="jsonl", folder=data, **options), scratch)
    (entry,) = read_json(scratch / "manifest.json")["mixture"]
    tasks = {task["task"]: task["num_examples"] for task in entry["tasks"]}
    if len(tasks) < 2:
        raise MeritError(f"{data}: one task, {next(iter(tasks))!r}: there is nothing to split")
    if few := sorted(task for task, count in tasks.items() if count < 2):
        raise MeritError(
            f"{data}: one example only: {', '.join(few[:5])}; a task needs a second one, held out"
        )
    sample = [
        example
        for task in tasks
        for example in islice(iter_examples(task_file(scratch / "mixture", task)), SAMPLE)
    ]
    images = {image: i for i, image in enumerate({i for e in sample for i in e.images})}
    grids, limit = np.zeros((0, 3), dtype=np.int32), None
    if images:
        if not hasattr(processor, "image_processor"):
            raise MeritError(f"{data}: has images, and the base is a text model")
        limit = PIXELS if processor.image_processor.size["longest_edge"] > PIXELS else None
        read = ImageReader(scratch / "mixture", processor.image_processor, None, limit)
        grids = np.array([read.grid(image) for image in images], dtype=np.int32)
    encoded = encode_examples(sample, processor, images, grids, Encoding(template=template))
    bad = [f"{record['where']}: {record['reason']}" for record in entry["bad_records"]]
    return Mixture(tasks, encoded.num_tokens(), bool(images), limit, bad)


# --- the YAML -----------------------------------------------------------------------------------


def settings(
    name: str, data: str, origin: dict[str, str], sizes: Sizes, found: Mixture, template: str
) -> str:
    """The text of experiments/<name>.yaml."""
    count, longest = sum(found.tasks.values()), found.lengths.max()
    held_out = 0.1 if count >= 2000 else 0.2
    axes = min(3, max(1, int(math.log2(len(found.tasks) / LEAST))))
    each = count * (1 - held_out) / 2**axes  # examples of a branch
    batch = next((size for size in (32, 16, 8) if each / size >= STEPS), 4)
    epochs = min(3, max(1, math.ceil(STEPS / 2 * batch / each)))
    rate = float(f"{2e-5 * (3e9 / max(sizes.decoder, 1)) ** 0.3:.1g}")
    text = Path(__file__).with_name("new.yaml.j2").read_text(encoding="utf-8")
    options: dict[str, Any] = {"trim_blocks": True, "undefined": StrictUndefined}
    return Template(text, keep_trailing_newline=True, **options).render(
        name=name,
        num_tasks=len(found.tasks),
        count=count,
        data=data,
        quoted=partial(json.dumps, ensure_ascii=False),  # as YAML, whatever characters it has
        held_out=held_out,
        origin=origin,
        template=template,
        has_images=found.has_images,
        max_pixels=found.max_pixels,
        longest=longest,
        length=min(8192, max(128, 2 ** math.ceil(math.log2(longest * 1.1)))),
        small=sizes.decoder < SMALL,
        large=sizes.decoder >= LARGE,
        precision="float32" if sizes.decoder < 5e7 else "bfloat16",
        rate=f"{rate:.1e}",  # YAML takes 2e-05 for a word
        axes=axes,
        groups=2**axes,
        batch=batch,
        epochs=epochs,
        steps=math.ceil(each * epochs / batch),
    )
