"""What is the same on every machine within the promise (merit.pins): {name: hash}, by running it.

A vision and a text miniature take about four steps of each phase of their base and of each branch,
in one process. tests/golden/same_bytes.json holds the hashes. After a change that is meant to alter
results, write it again:

    python -m tests.same_bytes > tests/golden/same_bytes.json
"""

from __future__ import annotations

import base64
import contextlib
import csv
import hashlib
import importlib
import io
import json
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

from merit.config import load_experiment
from merit.config.branches import plan
from merit.io.artifacts import KEY, Artifacts, read_json, read_jsonl
from merit.run.stages import STAGES

SHAPE = {
    **{"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1},
    **{"num_attention_heads": 2, "num_key_value_heads": 1, "initializer_range": 0.2},
}
VISION = {
    **{"vision_hidden_size": 32, "vision_intermediate_size": 64, "vision_depth": 2},
    **{"vision_num_heads": 2, "patch_size": 7},
}
ADAMW = {"learning_rate": 2.0e-3, "batch_size": 4, "warmup_ratio": 0.3}
MUON = ADAMW | {"algorithm": "muon", "betas": [0.9, 0.99]}
TRAINED = ("merit-1d", "joint")  # of all methods; the others only find groups
MERGED = "merit-1d-s1"


def experiments() -> dict[str, dict[str, Any]]:
    """The settings of both miniatures."""
    counts = {"seed": 0, "num_conversations": 8, "num_questions": 4, "num_validation_questions": 1}
    world = {"source": "mini_world", "num_examples": 150, "num_images": 12}
    both = ["projector", "decoder"]
    return {
        "vision": _settings(500)
        | {
            "data": world | counts,
            "base": {
                "architecture": SHAPE | VISION,
                "phases": [
                    _phase("vision encoder", "labels", ["vision"], ADAMW),
                    _phase("alignment", "captions", both, MUON),
                    _phase("conversations", "conversations", both, ADAMW),
                ],
            },
            "encoding": {"cache_images": True},
            "gradients": {"num_examples": 1, "stride": 5},
            "evaluation": {"benchmarks": ["mini_signs", "mini_describe"], "max_new_tokens": 6},
        },
        "text": _settings(500)
        | {
            "data": world | counts | {"source": "mini_text"},
            "base": {
                "architecture": SHAPE,
                "phases": [_phase("conversations", "conversations", ["decoder"], MUON)],
            },
            "gradients": {"num_examples": 1, "representation": "sketch", "sketch_size": 1009},
            "evaluation": {"benchmarks": ["mini_attributes"], "max_new_tokens": 6},
        },
    }


def _settings(num_examples: int) -> dict[str, Any]:
    epochs = 16 / num_examples
    muon = {"algorithm": "muon"}
    return {
        "training": {"trainable": ["decoder"], "optimizer": ADAMW},
        "methods": {
            "merit-1d": {"partition": "merit", "axes": 1, "epochs": 2 * epochs},
            "joint-1ep": {"partition": "joint", "epochs": epochs, "optimizer": muon},
            "joint-shrunk": {"partition": "shrunk", "source": "joint-1ep", "match": "merit-1d"},
            "kmeans-2": {"partition": "kmeans", "groups": 2},
            "conflict-2": {"partition": "conflict"},
        },
        "report": {"title": "same bytes", "curves": ["joint-1ep"], "partition": "merit-1d"},
    }


def _phase(name: str, data: str, trainable: list[str], optimizer: dict[str, Any]) -> dict[str, Any]:
    read = {"name": name, "data": data, "trainable": trainable}
    return read | {"num_steps": 4, "optimizer": optimizer}


def run_stages(name: str) -> Artifacts:
    """All that decides numbers up to the merged models, in this process."""
    planned = plan(load_experiment(name))
    items: dict[str, list[str]] = {
        "train": [branch for branch in planned.branches if branch.startswith(TRAINED)],
        "merge": [model for model in planned.models if model.startswith(TRAINED)],
    }
    for stage in ("data", "base", "encode", "gradients", "partition", "train", "merge"):
        for item in items.get(stage, [None]):  # type: ignore[list-item]
            importlib.import_module(STAGES[stage].module).run(name, item)
    return Artifacts(name)


def answers(paths: Artifacts) -> Any:
    """The merged model's greedy answers, without VLMEvalKit, which takes long to import."""
    from merit.eval.answering.answers import Questions, generate_answers, question_files
    from merit.train.model import load_model, load_processor

    evaluation = load_experiment(paths.experiment).evaluation
    files = question_files(paths, evaluation)
    csv.field_size_limit(1 << 30)  # a cell holds an image
    prompts: dict[str, Any] = {}
    for name, path in files.items():
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file, delimiter="\t"))
        prompts[name] = {
            row["index"]: [{"image": [row["index"], 0]}, {"text": row["question"]}] for row in rows
        }
    model = load_model(paths.model(MERGED), load_experiment(paths.experiment).model)
    questions = Questions(evaluation, files, prompts)
    return generate_answers(model, load_processor(paths.base), questions)[0]


def other_mergers(paths: Artifacts) -> dict[str, bytes]:
    """A matrix of the branches, merged by signs and by singular vectors."""
    from merit.io.checkpoints import Checkpoint
    from merit.method.mergers import load_merger, merger_keys

    name = "model.layers.0.mlp.gate_proj.weight"
    branches = read_json(paths.model(MERGED) / "merge.json")["branches"]
    read = [Checkpoint(paths.branch(branch)).read(name) for branch in branches]
    base = Checkpoint(paths.base).read(name)
    return {key: load_merger(key).merge(base, read).numpy().tobytes() for key in merger_keys()}


def data_hashes(data: Path) -> dict[str, str]:
    """SHA-256 of the parts of the data stage's output, pictures by their pixels.

    A PNG's bytes depend on the compression library, its pixels do not.
    """
    return {
        "texts": _tree_hash(data, (".json", ".jsonl"), lambda path: path.read_bytes()),
        "images": _tree_hash(data, (".zip",), _pictures),
        "benchmarks": _tree_hash(data / "benchmarks", (".tsv",), _questions),
    }


def _tree_hash(folder: Path, suffixes: tuple[str, ...], content: Callable[[Path], bytes]) -> str:
    total = hashlib.sha256()
    files = (p for p in folder.rglob("*") if p.suffix in suffixes and p.name != KEY)
    for path in sorted(files):
        inner = hashlib.sha256(content(path)).hexdigest()
        total.update(f"{path.relative_to(folder).as_posix()} {inner}\n".encode())
    return total.hexdigest()


def _pictures(path: Path) -> bytes:
    """The members of an archive in their order, each by its name and the hash of its pixels."""
    with zipfile.ZipFile(path) as archive:
        members = [(name, archive.read(name)) for name in archive.namelist()]
    hashes = [(name, hashlib.sha256(_pixels(png)).hexdigest()) for name, png in members]
    return "\n".join(f"{name} {pixels}" for name, pixels in hashes).encode()


def _questions(path: Path) -> bytes:
    """A benchmark's rows with every image replaced by the hash of its pixels."""
    csv.field_size_limit(1 << 30)  # a cell holds an image
    lines = []
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file, delimiter="\t"):
            row["image"] = hashlib.sha256(_pixels(base64.b64decode(row["image"]))).hexdigest()
            lines.append(repr(sorted(row.items())))
    return "\n".join(lines).encode()


def _pixels(png: bytes) -> bytes:
    image = Image.open(io.BytesIO(png))
    return repr((image.mode, image.size)).encode() + image.tobytes()


def hashes() -> dict[str, str]:
    """{what: hash}, in the order of the pipeline."""
    found: dict[str, str] = {}

    def note(name: str, value: Any) -> None:
        content = value if isinstance(value, bytes) else json.dumps(value, sort_keys=True).encode()
        found[name] = hashlib.sha256(content).hexdigest()[:16]

    for name, settings in experiments().items():
        Path("experiments").mkdir(exist_ok=True)
        Path(f"experiments/{name}.yaml").write_text(
            yaml.safe_dump(settings, sort_keys=False), encoding="utf-8"
        )
        paths = run_stages(name)
        note(f"{name} data", data_hashes(paths.data))
        records = read_jsonl(paths.base / "records.jsonl")
        for phase in (phase["name"] for phase in settings["base"]["phases"]):
            note(f"{name} {phase}", [record for record in records if record["phase"] == phase])
        for folder in (paths.encoded, paths.gradients, paths.partition):
            arrays = [path.read_bytes() for path in sorted(folder.glob("*.npy"))]
            note(f"{name} {folder.name}", b"".join(arrays))
        note(f"{name} groups", read_json(paths.partition / "partitions.json"))
        for path in sorted(paths.folder.rglob("model.safetensors")):
            note(f"{name} {path.parent.name} tensors", path.read_bytes())
    paths = Artifacts("vision")
    note("vision answers", answers(paths))
    for merger, merged in other_mergers(paths).items():
        note(f"vision {merger}", merged)
    return found


if __name__ == "__main__":
    with (
        tempfile.TemporaryDirectory(prefix="merit-bytes-") as made,
        contextlib.chdir(made),
        contextlib.redirect_stdout(sys.stderr),
    ):
        result = hashes()
    print(json.dumps(result, indent=1))
