"""What several tests share: one tiny world and one tiny model, made once a session."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import merit  # noqa: F401 # isort: skip - before numpy
import numpy as np
import pytest
from hypothesis import settings

from merit.config import Architecture, MiniWorldData
from merit.data.examples import Example, read_examples

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# the same examples in every run; `--hypothesis-profile default` looks for new ones
settings.register_profile("repeatable", derandomize=True, database=None)
settings.load_profile("repeatable")


# what the smoke run finds in its environment, and must write nowhere
SECRET = "a-key-that-nobody-may-read"
KEYS = ("HF_TOKEN", "OPENAI_API_KEY", "MLFLOW_TRACKING_PASSWORD", "AWS_SECRET_ACCESS_KEY")


@pytest.hookimpl(tryfirst=True)  # pytest-xdist's own reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A file's tests share a process, and its fixtures are made once; so do those of the smoke run,
    which begin first since they take longest. Those and a real Slurm's are slow. Tests of a GPU are
    skipped, with the reason, without one, and those that take long unless asked for.
    """
    items.sort(key=lambda item: "smoke_folder" not in getattr(item, "fixturenames", ()))
    for item in items:
        fixtures = getattr(item, "fixturenames", ())
        group = "smoke" if "smoke_folder" in fixtures else item.path.stem
        item.add_marker(pytest.mark.xdist_group(group))
        if {"smoke_folder", "cluster"} & set(fixtures):
            item.add_marker("slow")
        for name in ("emulated", "rebuild"):
            if item.get_closest_marker(name) and name not in item.config.option.markexpr:
                item.add_marker(pytest.mark.skip(reason=f"takes long: pytest -m {name}"))
        if item.get_closest_marker("gpu"):
            import torch

            missing = not torch.cuda.is_available()
            item.add_marker(pytest.mark.skipif(missing, reason="no CUDA device on this machine"))


@pytest.fixture(autouse=True)
def _subnormal_numbers() -> Iterator[None]:
    """Stages and studies switch subnormal numbers off for the whole process; tests do not."""
    yield
    if "torch" in sys.modules:
        sys.modules["torch"].set_flush_denormal(False)


WORLD = MiniWorldData(
    source="mini_world",
    seed=5,
    num_examples=1200,
    num_images=160,
    num_conversations=40,
    num_questions=40,
    num_validation_questions=8,
)
ARCHITECTURE = Architecture(
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=1,
    num_attention_heads=2,
    num_key_value_heads=1,
    vision_hidden_size=16,
    vision_intermediate_size=24,
    vision_depth=1,
    vision_num_heads=2,
    patch_size=7,
    initializer_range=0.06,
)


@dataclass(frozen=True)
class Tiny:
    """A model of one layer, its processor, and a few examples as arrays.

    Do not change the model: tests that train take a copy.
    """

    model: Any
    processor: Any
    data: Path  # the world's folder
    examples: list[Example]
    encoded: Any  # merit.train.dataset.TokenizedDataset


def picture(world: Path, image: str) -> Path:
    """Where an example's image lies in the tiny world."""
    part = "pretraining" if image.startswith("conversations.zip") else "mixture"
    return world / part / image


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data stage's output at a tiny size."""
    from merit.mini.world.write_world import write_mini_world

    folder = tmp_path_factory.mktemp("world")
    write_mini_world(WORLD, folder)
    return folder


@pytest.fixture(scope="session")
def processor() -> Any:
    from merit.mini.nets import VOCABULARY, build_processor
    from merit.mini.world.draw import IMAGE_SIZE

    words = VOCABULARY.read_text(encoding="utf-8").split()
    return build_processor(words, ARCHITECTURE, IMAGE_SIZE)


@pytest.fixture(scope="session")
def tiny(world: Path, processor: Any) -> Tiny:
    """Ten single-turn examples, four conversations and one question without an image."""
    from merit.data.examples import make_example
    from merit.mini.nets import build_model
    from merit.train.images import ImageReader, vision_features
    from merit.train.model import image_embeddings
    from merit.train.tokenize import encode_examples

    model = build_model(processor, ARCHITECTURE, seed=1)
    examples = read_examples(world / "mixture" / "count_shape-option.jsonl")[:3]
    examples += read_examples(world / "mixture" / "row_mate-rationale.jsonl")[:3]
    examples += read_examples(world / "mixture" / "tallest-short.jsonl")[:4]
    examples += read_examples(world / "pretraining" / "conversations.jsonl")[:4]
    examples += [make_example("no-image", "text", [("say yes .", "yes .")], ())]
    images = sorted({image for example in examples for image in example.images})
    places = {str(picture(world, image).relative_to(world)): image for image in images}
    read = ImageReader(world, processor.image_processor)
    grids = np.array([read.grid(place) for place in places], dtype=np.int32)
    see = partial(image_embeddings, model)
    features = np.concatenate(list(vision_features(read, list(places), see)))
    rows = {image: i for i, image in enumerate(places.values())}
    counts = np.cumsum([0, *(grids.prod(axis=1) // 4)])
    encoded = replace(
        encode_examples(examples, processor, rows, grids),
        features=features,
        feature_offsets=counts,
        paths=np.array([place.encode() for place in places]),
        read_images=read,
    )
    return Tiny(model, processor, world, examples, encoded)


@pytest.fixture(scope="session")
def smoke_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished smoke run (a minute or two), made once; tests leave it finished."""
    from merit.run import smoke

    path = tmp_path_factory.mktemp("smoke")
    with pytest.MonkeyPatch.context() as environment:
        for name in KEYS:
            environment.setenv(name, SECRET)
        smoke.run_all(path)
    return path
