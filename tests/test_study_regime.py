"""The study `regime`: cells by hand, the map's tables and sentences, and the whole of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from merit.config import Experiment, load_experiment
from merit.errors import MeritError
from merit.eval.report.study_sections import sentences
from merit.eval.studies import Regime, draw_of
from merit.eval.studies.readiness import Thresholds
from merit.eval.studies.regime import measure as regime
from merit.io.artifacts import Artifacts, read_json
from tests import synthetic
from tests.scored import write_predictions

SETTINGS = Regime(other="synthetic_weak")
METHODS = ["joint-1ep", "random-8", "merit-3d", "joint-shrunk"]
LIMITS = Thresholds()


def test_merge_ready_is_near_the_base_and_random_not_far_behind() -> None:
    assert regime.merge_ready(0.10, -1.0, LIMITS)
    assert not regime.merge_ready(0.101, 5.0, LIMITS)
    assert not regime.merge_ready(0.01, -1.1, LIMITS)


# --- the whole map ------------------------------------------------------------------------------


def experiment(**changes: Any) -> Experiment:
    """Two bases, two rates of which one (1e-3) is the experiment's own, two seeds."""
    sweep = {"methods": METHODS, "seeds": [1, 2], "learning_rate": [5e-4, 1e-3]}
    return synthetic.experiment(
        seeds=(1, 2),
        methods=["base", *METHODS, "joint-2ep", "merit-1d"],
        benchmarks=["a"],
        sweeps={"regime": sweep | changes},
        studies={"regime": {"other": "synthetic_weak"}},
    )


RIGHT_OF = {"joint-1ep": 30, "random-8": 40, "merit-3d": 90, "joint-shrunk": 60, "base": 50}


def pipeline(root: Path, diverged: str | None = None) -> Experiment:
    """Experiments and artifacts of both bases under `root`; of 100 questions RIGHT_OF are right."""
    folder = root / "experiments"
    folder.mkdir()
    text = yaml.safe_dump(experiment().model_dump(mode="json"), sort_keys=False)
    (folder / "synthetic.yaml").write_text(text, encoding="utf-8")
    weak = {"extends": "synthetic", "data": {"num_new_skills": 12}, "studies": None}
    (folder / "synthetic_weak.yaml").write_text(yaml.safe_dump(weak), encoding="utf-8")
    for name, failed in (("synthetic", []), ("synthetic_weak", [diverged] if diverged else [])):
        settings = load_experiment(name, folder)
        synthetic.write(root / "artifacts", settings, num_tasks=16, diverged=failed)
        paths = Artifacts(name, root / "artifacts")
        for file in list((paths.evaluation / "predictions").iterdir()):
            (kind,) = [kind for kind in RIGHT_OF if file.stem.startswith(kind)] or ["base"]
            write_predictions(paths, file.stem, {"a": (RIGHT_OF[kind], 100)})
    # the other base is twice as long; `frozen` is trained by nobody, so no part of the norm
    file = Artifacts("synthetic_weak", root / "artifacts").base / "model.safetensors"
    save_file({"w": 2 * load_file(file)["w"], "frozen": torch.full((5,), 100.0)}, file)
    return load_experiment("synthetic", folder)


def test_the_whole_map(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    settings, paths = pipeline(tmp_path), Artifacts("synthetic")
    result = json.loads(json.dumps(regime.measure(settings, paths, SETTINGS)))
    assert (result["learning_rates"], result["own_learning_rate"]) == ([5e-4, 1e-3], 1e-3)
    assert [(c["base"], c["learning_rate"]) for c in result["cells"]] == [
        (base, rate) for base in ("has the skills", "must learn them") for rate in (5e-4, 1e-3)
    ]
    assert result["bases"] == [
        {"base": "has the skills", "known_skills": 26, "num_skills": 32},
        {"base": "must learn them", "known_skills": 20, "num_skills": 32},
    ]
    for entry in result["cells"]:
        assert entry["differences"]["merit-random"][0] == pytest.approx(50.0)
        assert entry["differences"]["merit-shrunk"][0] == pytest.approx(30.0)
    # each cell has its own models' distances, as shares of its own base's norm
    cells = {(c["base"], c["learning_rate"]): c for c in result["cells"]}
    norm = float(load_file(paths.base / "model.safetensors")["w"].double().norm())
    for (base, rate), (name, tag, length) in {
        (regime.OWN, 5e-4): ("synthetic", "-lr0.0005", norm),
        (regime.OWN, 1e-3): ("synthetic", "", norm),
        (regime.OTHER, 5e-4): ("synthetic_weak", "-lr0.0005", 2 * norm),
        (regime.OTHER, 1e-3): ("synthetic_weak", "", 2 * norm),
    }.items():
        records = [
            read_json(Artifacts(name).model(f"{model}{tag}-s{seed}") / "merge.json")
            for model in ("joint-1ep", "random-8", "merit-3d", "joint-shrunk")
            for seed in (1, 2)
        ]
        moved = [record["displacement"] for record in records]
        means = [(a + b) / 2 for a, b in zip(moved[:6:2], moved[1:6:2], strict=True)]
        found = cells[base, rate]
        assert [found["distances"][kind] for kind in regime.KINDS] == pytest.approx(means)
        assert found["distances"]["shrunk"] == pytest.approx(sum(moved[6:]) / 2)
        assert found["relative_displacements"]["joint"] == pytest.approx(means[0] / length)
        assert found["alpha"] == records[6]["alpha"]
    made = result["tables"]
    assert {stem: len(rows) for stem, rows in made.items()} == {
        "regime_differences": 20, "regime_models": 20, "regime_cells": 4,
    }  # fmt: skip
    row = made["regime_differences"][0]
    assert (row["ours"], row["theirs"], row["verdict"]) == ("merit", "random", "ahead")
    assert row["difference"] == pytest.approx(50.0)
    assert result["summary"]["num_merge_ready"] == sum(c["merge_ready"] for c in result["cells"])
    assert result["summary"]["random_minus_shrunk_behind"] == 4
    assert result["summary"]["merit_minus_random_ahead"] == 4
    assert result["summary"]["num_questions"] == 100
    assert (result["num_random"], result["num_benchmarks"]) == (2, 1)


def test_a_cell_in_which_a_training_diverged_is_left_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = pipeline(tmp_path, diverged="merit-3d-lr0.0005-s2-g5")
    result = json.loads(json.dumps(regime.measure(settings, Artifacts("synthetic"), SETTINGS)))
    empty = [(c["base"], c["learning_rate"]) for c in result["cells"] if c["averages"] is None]
    assert empty == [("must learn them", 5e-4)]
    assert result["summary"]["merit_minus_random_not_finite"] == 1
    assert result["summary"]["merit_minus_random_ahead"] == 3
    settings_of = {"settings": SETTINGS.model_dump(mode="json")}
    assert sentences("regime", result | {"provenance": settings_of})
    assert draw_of("regime")(result)


@pytest.mark.parametrize(
    ("options", "sweep", "message"),
    [
        ({"sweep": "map"}, {}, r"studies\.regime\.sweep`: .*'map'"),
        ({"random": "merit-3d"}, {}, r"studies\.regime\.random`: found 'merit-3d'"),
        ({"method": "merit-1d"}, {}, r"regime\.method`: 'merit-1d'.*`sweeps\.regime"),
        ({"joint": "joint-2ep"}, {"methods": ["joint-2ep", *METHODS]}, r"joint-2ep 2, random-8 1"),
    ],
)
def test_a_map_that_cannot_be_drawn_is_refused(
    options: dict[str, str], sweep: dict[str, Any], message: str
) -> None:
    settings = SETTINGS.model_copy(update=options)
    with pytest.raises(MeritError, match=message):
        regime.check_methods(experiment(**sweep), settings)
