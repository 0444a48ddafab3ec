"""The study `mergers`: every merger's line from the base, its best scale, and table 12."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from merit.eval.measuring.candidates import Candidate, moved
from merit.eval.studies import Mergers
from merit.eval.studies.mergers import measure as mergers
from merit.io.artifacts import Artifacts, read_json
from merit.method.mergers import load_merger, merger_keys
from merit.method.mergers.ties import ties, trim_threshold
from tests import synthetic
from tests.scored import Right, scripted_scores


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Path]]:
    """A base folder and three branches of it: a matrix, a matrix that hardly moves, a vector."""
    folder = tmp_path_factory.mktemp("checkpoints")
    generator = torch.Generator().manual_seed(0)
    shapes = {"large": (6, 4), "small": (4, 6), "vector": (5,)}
    sizes = {"large": 1.0, "small": 1e-3, "vector": 1.0}

    def tensors(scale: float) -> dict[str, torch.Tensor]:
        return {n: scale * torch.randn(s, generator=generator) for n, s in shapes.items()}

    base = tensors(1.0)
    (folder / "base").mkdir()
    save_file(base, folder / "base" / "model.safetensors")
    branches = []
    for i in range(3):
        deltas = tensors(0.1)
        branch = {name: base[name] + sizes[name] * deltas[name] for name in shapes}
        branches.append(folder / f"branch{i}.safetensors")
        save_file(branch, branches[-1])
    return folder / "base", branches


# TIES has one threshold for the whole model: below
@pytest.mark.parametrize("merger", [merger for merger in mergers.MERGERS if merger != "ties"])
def test_a_scale_is_a_point_on_the_line_from_the_base(
    merger: str, checkpoints: tuple[Path, list[Path]]
) -> None:
    base, branches = checkpoints
    start = load_file(base / "model.safetensors")
    parts = [load_file(path) for path in branches]
    merged = mergers.merged_tensors(merger, base, branches, [0.5, 0.3, 0.2])
    half = moved(base, merged, 0.5)
    for name, theta in start.items():
        wanted = scaled(merger, name, theta, [part[name] for part in parts])
        assert_close(half[name], wanted, atol=1e-6, rtol=1e-5)


def scaled(merger: str, name: str, theta: torch.Tensor, ours: list[torch.Tensor]) -> torch.Tensor:
    """The rule itself at scale 0.5."""
    if merger in merger_keys():
        return load_merger(merger).merge(theta, ours, scale=0.5)
    shares = [0.5, 0.3, 0.2] if merger == "token-weighted" else [1 / 3] * 3
    return theta + 0.5 * sum(w * (t - theta) for w, t in zip(shares, ours, strict=True))


def test_ties_trims_over_the_whole_model(checkpoints: tuple[Path, list[Path]]) -> None:
    base, branches = checkpoints
    merged = mergers.merged_tensors("ties", base, branches, [1 / 3] * 3)
    start = load_file(base / "model.safetensors")
    parts = [load_file(path) for path in branches]
    # a fifth of 53 entries a branch: none of them among the small matrix's
    assert torch.equal(merged["small"], start["small"])
    thresholds = [
        trim_threshold([part[n] - start[n] for n in start], density=0.2) for part in parts
    ]
    half = moved(base, merged, 0.5)
    for name in ("large", "vector"):
        ours = [part[name] for part in parts]
        wanted = ties(start[name], ours, scale=0.5, thresholds=thresholds)
        assert not torch.equal(merged[name], start[name])
        assert_close(half[name], wanted, atol=1e-6, rtol=1e-5)


def test_the_best_scale_and_its_ties() -> None:
    assert mergers.best_scale([0.25, 0.5, 1.0, 2.0], [1.0, 3.0, 2.0, 0.0]) == 0.5
    assert mergers.best_scale([0.25, 0.5, 1.0, 2.0], [3.0, 3.0, 3.0, 3.0]) == 1.0
    assert mergers.best_scale([0.5, 2.0], [3.0, 3.0]) == 0.5


# --- the study on a pipeline's output -----------------------------------------------------------

# merger -> scale -> validation questions that are right, of 20
SCALES: dict[str, dict[float, int]] = {
    merger: {0.5: 8, 1.0: 10, 2.0: 6} for merger in mergers.MERGERS
} | {"ties": {0.5: 9, 1.0: 2, 2.0: 1}, "tsv": {0.5: 4, 1.0: 5, 2.0: 12}}


def test_the_scale_is_chosen_on_validation_and_judged_on_test(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = synthetic.build(
        tmp_path, seeds=(1, 2), methods=["base", "joint-1ep", "merit-2d"], benchmarks=["mini_mcq"]
    )
    paths = Artifacts("synthetic", tmp_path)

    def right(model: Candidate) -> Right:
        merger, _, rest = model.name.partition("-x")
        known = SCALES.get(merger, {})
        return {"mini_mcq": (known[float(rest.partition("-s")[0])] if known else 7, 20)}

    asked = scripted_scores(monkeypatch, mergers, right)
    settings = Mergers(method="merit-2d", seeds=[1, 2], scales=[0.5, 2.0])
    result = json.loads(json.dumps(mergers.measure(experiment, paths, settings)))
    assert [one.split for one in asked] == ["validation", "test"]
    count = len(mergers.MERGERS)
    assert len(asked[0].names) == count * 3 * 2 + 1  # the default scale is always there
    # both seeds of all mergers at the default, of two at a chosen scale, and the base
    assert set(asked[1].names) <= set(asked[0].names)
    assert len(asked[1].names) == count * 2 + 2 * 2 + 1
    assert result["best"] == dict.fromkeys(mergers.MERGERS, 1.0) | {"ties": 0.5, "tsv": 2.0}
    rows = {
        (row["merge"], row["tuning"]): row for row in result["tables"]["table12_posthoc_merging_7b"]
    }
    assert rows["ties", "default"]["mean"] == pytest.approx(10.0)
    assert rows["ties", "best"]["mean"] == pytest.approx(45.0)
    assert rows["ties", "best"]["difference"] == pytest.approx(-5.0)
    assert rows["tsv", "best"]["difference"] == pytest.approx(10.0)
    assert result["base"]["test"][0] == pytest.approx(35.0)
    found = result["summary"]
    assert found["at_edge"] == ["ties", "tsv"]
    assert found["token_weighted_minus_ties"] == pytest.approx(40.0)
    assert 0 < found["token_weighted_minus_ties_low"] < 40 < found["token_weighted_minus_ties_high"]
    assert found["token_weighted_minus_iso_cts"] == 0.0
    assert set(found["behind_default"]) == {"ties", "tsv"}


def test_a_merged_model_is_merged_again_by_its_own_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = synthetic.build(tmp_path, methods=["base", "merit-2d"], benchmarks=["mini_mcq"])
    paths = Artifacts("synthetic", tmp_path)
    made: dict[str, torch.Tensor] = {}

    def right(model: Candidate) -> Right:
        made.update({f"{model.name} {name}": t for name, t in model.tensors().items()})
        return {"mini_mcq": (1, 2)}

    scripted_scores(monkeypatch, mergers, right)
    mergers.measure(experiment, paths, Mergers(method="merit-2d", scales=[1.0]))
    whole = load_file(paths.model("merit-2d-s1") / "model.safetensors")["w"]
    assert_close(made["token-weighted-x1-s1 w"], whole, atol=1e-6, rtol=1e-5)
    weights = read_json(paths.model("merit-2d-s1") / "merge.json")["merge_weights"]
    assert len(set(weights)) > 1
    assert not torch.allclose(made["uniform-x1-s1 w"], whole, atol=1e-4)
