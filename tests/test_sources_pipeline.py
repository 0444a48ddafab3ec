"""Every public source's fixture through the pipeline's own stages, with a tiny Qwen2.5-VL."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import public_fixtures
import pytest
import yaml

from merit.data import stage as data
from merit.data.sources.public import PUBLIC
from merit.io.artifacts import Artifacts, read_json
from merit.partition import stage as partition
from merit.train import base, encode
from merit.train import task_gradients as gradients
from tests.conftest import Tiny

TASKS = {"the_cauldron": ["ai2d", "clevr_math", "nlvr2"], "flan": ["bool_q", "hellaswag"]}
OPTIMIZER = {"learning_rate": 1e-3, "batch_size": 4}
EXPERIMENT = {
    "name": "public",
    "data": {
        "source": "public",
        "on_bad_record": "skip",
        "sources": [
            {"name": name, "prefix": f"{name}/"} | ({"tasks": TASKS[name]} if name in TASKS else {})
            for name in PUBLIC
        ],
    },
    "base": {"checkpoint": "theta0"},
    "gradients": {"num_examples": 2, "stride": 1, "batch_size": 2},
    "training": {"trainable": ["decoder"], "optimizer": OPTIMIZER},
    "methods": {"merit-1d": {"partition": "merit", "axes": 1}},
    "evaluation": {"benchmarks": ["mini_scene"]},
    "report": {"title": "t", "paper_table": "table02_vision_flan_3b"},
}


def test_every_source_goes_through_the_pipeline(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("experiments").mkdir()
    Path("experiments/public.yaml").write_text(yaml.safe_dump(EXPERIMENT), encoding="utf-8")
    tiny.model.save_pretrained("theta0")
    tiny.processor.save_pretrained("theta0")
    Path("params.yaml").write_text("experiments: [public]\n", encoding="utf-8")
    for name in PUBLIC:
        public_fixtures.lay(Path("sources"), name)

    for stage in (data, base, encode, gradients, partition):
        stage.run("public")
    paths = Artifacts("public")
    tasks = read_json(paths.mixture / "tasks.json")
    encoded = read_json(paths.encoded / "tasks.json")
    counts = {entry["task"]: entry["num_examples"] for entry in tasks}
    assert {entry["task"]: entry["num_samples"] for entry in encoded} == counts
    # one file a task of each source; images and conversations as in test_public_sources
    assert counts["vision_flan_1k/ok_vqa"] == 2
    assert counts["laion_gpt4v/laion_gpt4v"] == 1  # of three links one was fetched whole
    assert len(tasks) == 2 + 2 + 3 + 1 + 1 + 1 + 1 + 1 + 1 + 3 + 2 + 1 + 2
    rows = np.load(paths.gradients / "gradients.npy")
    assert rows.shape[0] == len(tasks)
    assert np.isfinite(rows).all()
    [assignment] = read_json(paths.partition / "partitions.json").values()
    assert set(assignment) == set(counts)
    assert set(assignment.values()) == {0, 1}
