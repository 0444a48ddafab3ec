"""The study `weights`: one set of branches merged under every reading of merge weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from merit.config import Experiment
from merit.errors import MeritError
from merit.eval.measuring.candidates import Candidate
from merit.eval.studies import Weights
from merit.eval.studies.weights import measure as weights
from merit.io.artifacts import Artifacts, read_json, write_json
from tests import synthetic
from tests.scored import Asked, save_model, scripted_scores

METHODS = ["joint-1ep", "random-2", "merit-1d", "soup-2"]
SETTINGS = Weights(methods=["merit-1d", "random-2"], seeds=[1, 2])

# branch -> samples, tokens, loss-bearing tokens, and the first entry of its only tensor
BRANCHES = {
    "joint-1ep-s1": (20, 40, 20, 0.4),
    "joint-1ep-s2": (20, 40, 20, 0.4),
    "merit-1d-s1-g0": (10, 30, 4, 1.0),
    "merit-1d-s1-g1": (10, 10, 16, 0.0),
    "merit-1d-s2-g0": (10, 30, 4, 1.0),
    "merit-1d-s2-g1": (10, 10, 16, 0.0),
    "random-2-s1-g0": (10, 20, 10, 0.6),
    "random-2-s1-g1": (10, 20, 10, 0.6),
    "random-2-s2-g0": (10, 30, 10, 0.8),
    "random-2-s2-g1": (10, 10, 10, 0.4),
}


@pytest.fixture
def tree(tmp_path: Path) -> tuple[Experiment, Artifacts]:
    experiment = synthetic.experiment(seeds=[1, 2], methods=METHODS, benchmarks=["mini_mcq"])
    paths = Artifacts("synthetic", tmp_path)
    save_model(paths.base, torch.zeros(2))
    for name, (samples, tokens, loss_tokens, value) in BRANCHES.items():
        save_model(paths.branch(name), torch.tensor([value, 1.0]))
        group = int(name[-1]) if "-g" in name else 0
        counts = {"num_samples": samples, "num_tokens": tokens, "num_loss_tokens": loss_tokens}
        write_json(paths.manifest(name), {"branch": name, "group": group, **counts})
    return experiment, paths


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Asked]:
    """Of 100 questions, as many are right in percent as the merged tensor's first entry says."""

    def right(model: Candidate) -> dict[str, tuple[int, int]]:
        return {"mini_mcq": (round(100 * float(model.tensors()["w"][0])), 100)}

    return scripted_scores(monkeypatch, weights, right)


@pytest.fixture
def result(tree: tuple[Experiment, Artifacts], asked: list[Asked]) -> dict[str, Any]:
    return json.loads(json.dumps(weights.measure(*tree, SETTINGS)))


def test_equal_merge_weights_are_scored_once(result: dict[str, Any], asked: list[Asked]) -> None:
    assert [one.split for one in asked] == ["test"]
    assert sorted(asked[0].names) == sorted(
        [
            "joint-1ep-s1",
            "joint-1ep-s2",
            *(f"merit-1d-s{s}-{r}" for s in (1, 2) for r in ("tokens", "loss_tokens", "samples")),
            "random-2-s1-tokens",  # all four readings agree
            "random-2-s2-tokens",
            "random-2-s2-loss_tokens",
        ]
    )


def test_weights_and_scores_under_every_reading(result: dict[str, Any]) -> None:
    rows = {(r["method"], r["reading"]): r for r in result["tables"]["merge_weights_scores"]}
    assert list(rows)[:4] == [("merit-1d", reading) for reading in weights.READINGS]
    # w_0 is the first branch's weight times 1: 30 / 40, 4 / 20, 10 / 20, 1 / 2
    averages = [rows["merit-1d", reading]["avg"] for reading in weights.READINGS]
    assert averages == pytest.approx([75.0, 20.0, 50.0, 50.0])
    # random: 0.6 in seed 1; in seed 2 0.75 * 0.8 + 0.25 * 0.4 = 0.7, or 0.6 by the others
    averages = [rows["random-2", reading]["avg"] for reading in weights.READINGS]
    assert averages == pytest.approx([65.0, 60.0, 60.0, 60.0])

    own, other = rows["merit-1d", "tokens"], rows["merit-1d", "loss_tokens"]
    assert (own["minus_own"], own["minus_own_low"]) == (None, None)
    assert other["minus_own"] == pytest.approx(-55.0)
    assert other["minus_own_low"] < -55 < other["minus_own_high"] < 0
    assert own["minus_joint"] == pytest.approx(35.0)
    assert (own["random"], own["minus_random"]) == ("random-2", pytest.approx(10.0))
    assert other["minus_random"] == pytest.approx(-40.0)  # random under the same reading
    assert rows["random-2", "tokens"]["minus_random"] is None

    assert (own["smallest_weight"], own["largest_weight"]) == (0.25, 0.75)
    assert own["effective_branches"] == pytest.approx(1 / (0.75**2 + 0.25**2))
    random = rows["random-2", "tokens"]
    assert (random["smallest_weight"], random["largest_weight"]) == (0.25, 0.75)  # of seed 2
    assert random["effective_branches"] == pytest.approx((2 + 1.6) / 2)
    assert rows["random-2", "samples"]["effective_branches"] == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (Weights(methods=["soup-2"], seeds=[1]), r"studies\.weights\.methods`: 'soup-2' is a soup"),
        (Weights(methods=["merit-1d"], seeds=[1, 3]), r"found 'merit-1d' with seed 3"),
    ],
)
def test_other_methods_are_refused(
    settings: Weights, message: str, tree: tuple[Experiment, Artifacts]
) -> None:
    with pytest.raises(MeritError, match=message):
        weights.measure(*tree, settings)


def test_without_joint_training_or_token_counts(tree: tuple[Experiment, Artifacts]) -> None:
    experiment, paths = tree
    without = synthetic.experiment(seeds=[1], methods=["merit-1d"], benchmarks=["mini_mcq"])
    settings = Weights(methods=["merit-1d"], seeds=[1])
    with pytest.raises(MeritError, match="joint training for one epoch"):
        weights.measure(without, paths, settings)
    manifest = read_json(paths.manifest("merit-1d-s1-g1"))
    write_json(paths.manifest("merit-1d-s1-g1"), manifest | {"num_loss_tokens": None})
    with pytest.raises(MeritError, match=r"merit-1d-s1: every branch needs a positive"):
        weights.measure(experiment, paths, settings)
