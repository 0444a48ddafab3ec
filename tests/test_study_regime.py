"""The study `regime`: cells by hand, the map's tables and sentences, and the whole of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from merit.config import Experiment, Sweep, load_experiment
from merit.errors import MeritError
from merit.eval.report.study_sections import sentences
from merit.eval.studies import Regime, draw_of
from merit.eval.studies.readiness.settings import Thresholds
from merit.eval.studies.regime import measure as regime
from merit.io.artifacts import Artifacts, read_json, write_json
from tests import synthetic
from tests.scored import save_model, write_predictions

SETTINGS = Regime(other="synthetic_weak")
METHODS = ["joint-1ep", "random-8", "merit-3d", "joint-shrunk"]
SWEEP = Sweep(methods=METHODS, seeds=[1, 2], learning_rate=[5e-4])
LIMITS = Thresholds()


# --- one cell -----------------------------------------------------------------------------------

MODELS = {"joint": ["j"], "random": ["r", "q"], "merit": ["m"], "shrunk": ["s"]}
DISPLACEMENTS = {"j": 10.0, "r": 3.0, "q": 5.0, "m": 5.0, "s": 5.0}
RIGHT = {"j": 1, "r": 2, "q": 4, "m": 10, "s": 10, "base": 5}  # of ten questions


@pytest.fixture
def paths(tmp_path: Path) -> Artifacts:
    """A cell's models as the pipeline leaves them, from a base of norm 40."""
    found = Artifacts("synthetic", tmp_path)
    start = torch.zeros(3, 3)
    start[2, 2] = 40.0
    # `frozen` is trained by nobody, so no part of the norm
    save_model(found.base, start, frozen=torch.full((5,), 100.0))
    save_model(found.branch("joint-1ep-s1"), start + 1)
    for name, displacement in DISPLACEMENTS.items():
        record = {"branches": ["joint-1ep-s1"], "displacement": displacement, "failure": None}
        write_json(found.model(name) / "merge.json", record | {"alpha": 0.5})
    for name, right in RIGHT.items():
        write_predictions(found, name, {"a": (right, 10)})
    return found


def test_a_cell_says_who_is_ahead(paths: Artifacts) -> None:
    entry = regime.cell(regime.OWN, 5e-4, MODELS, paths, LIMITS)
    assert (entry["base"], entry["learning_rate"]) == ("has the skills", 5e-4)
    averages = {kind: value for kind, (value, _, _) in entry["averages"].items()}
    assert averages == pytest.approx(
        {"joint": 10.0, "random": 30.0, "merit": 100.0, "shrunk": 100.0, "base": 50.0}
    )
    values = {pair: value for pair, (value, _, _) in entry["differences"].items()}
    assert values == pytest.approx(
        {
            "merit-random": 70.0, "merit-joint": 90.0, "random-joint": 20.0,
            "merit-shrunk": 0.0, "random-shrunk": -70.0,
        }
    )  # fmt: skip
    _, low, high = entry["differences"]["merit-joint"]
    assert 0 < low < 90 < high <= 100
    # random: the mean over its draws
    assert entry["distances"] == pytest.approx(
        {"joint": 10.0, "random": 4.0, "merit": 5.0, "shrunk": 5.0, "base": 0.0}
    )
    assert entry["relative_displacements"] == pytest.approx(
        {"joint": 0.25, "random": 0.1, "merit": 0.125, "shrunk": 0.125, "base": 0.0}
    )
    assert entry["alpha"] == 0.5
    assert entry["merge_ready"] is False  # joint training moves by 25 %
    near = Thresholds(joint_displacement=0.25)
    assert regime.cell(regime.OWN, 5e-4, MODELS, paths, near)["merge_ready"] is True
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
    # the other base is twice as long
    file = Artifacts("synthetic_weak", root / "artifacts").base / "model.safetensors"
    save_file({"w": 2 * load_file(file)["w"]}, file)
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
    assert (row["ours"], row["theirs"], row["verdict"]) == ("merit", "random", "positive")
    assert row["difference"] == pytest.approx(50.0)
    assert result["summary"]["num_merge_ready"] == sum(c["merge_ready"] for c in result["cells"])
    assert result["summary"]["random_minus_shrunk_negative"] == 4
    assert result["summary"]["merit_minus_random_positive"] == 4
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
    assert result["summary"]["merit_minus_random_positive"] == 3
    settings_of = {"settings": SETTINGS.model_dump(mode="json")}
    assert sentences("regime", result | {"provenance": settings_of})
    draw_of("regime")(result, tmp_path / "drawn")


@pytest.mark.parametrize(
    ("options", "sweep", "message"),
    [
        ({"sweep": "map"}, {}, r"studies\.regime\.sweep`: .*'map'"),
        ({"random": "merit-3d"}, {}, r"studies\.regime\.random`: 'merit-3d'"),
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
