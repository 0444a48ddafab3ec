"""The studies that train or score: shared runs, mergers, SGD sweep, regime map."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from eval.engine import BenchmarkScore
from eval.studies import compare, mergers, regime, runs, sgd
from merit.config import (
    Architecture,
    Base,
    Experiment,
    MiniTextData,
    MiniWorldData,
    Optimizer,
    Params,
    Phase,
    Training,
)
from merit.config_studies import Mergers, OtherBase, Readiness, Regime, Sgd, Thresholds
from merit.core.merge.iso import iso_c, iso_cts
from merit.core.merge.star import star
from merit.core.merge.ties import ties
from merit.core.merge.tsv import tsv
from merit.data.world.conversations import NEW_SKILLS
from merit.data.world.skills import SKILLS
from merit.errors import MeritError
from merit.io.artifacts import (
    Artifacts,
    atomic_folder,
    file_hash,
    read_json,
    read_jsonl,
    write_json,
)
from merit.stages import other_base
from merit.stages.partition import Evidence, assign
from merit.training import build_optimizers, step_all
from tests import synthetic
from tests.conftest import WORLD, Tiny


@contextlib.contextmanager
def one_thread(workers: int) -> Iterator[Executor]:
    """In the place of worker processes, which would each import torch."""
    with ThreadPoolExecutor(1) as pool:
        yield pool


@pytest.fixture
def inline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "_pool", one_thread)


# --- the optimiser ------------------------------------------------------------------------------


def test_sgd_is_the_plain_gradient_step() -> None:
    parameter = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
    settings = Optimizer(algorithm="sgd", learning_rate=0.5, batch_size=1, weight_decay=0.1)
    stepper = build_optimizers({"w": parameter}, settings)
    for gradient in ([2.0, 4.0], [2.0, 4.0]):  # twice: momentum would make the second step longer
        parameter.grad = torch.tensor(gradient)
        step_all(stepper, 0.5)
    # theta - 0.5 (g + 0.1 theta): 1 -> -0.05 -> -1.0475, -2 -> -3.9 -> -5.705
    assert_close(parameter.detach(), torch.tensor([-1.0475, -5.705]))


def test_adamw_stays_the_default() -> None:
    settings = Optimizer(learning_rate=1e-3, batch_size=1)
    assert settings.algorithm == "adamw"
    parameter = torch.nn.Parameter(torch.zeros(2))
    (found,) = build_optimizers({"w": parameter}, settings)
    assert isinstance(found, torch.optim.AdamW)


# --- training runs ------------------------------------------------------------------------------

TRAINING = Training(
    trainable=["decoder"],
    optimizer=Optimizer(algorithm="sgd", learning_rate=0.1, batch_size=4, warmup_ratio=0.0),
)


@pytest.fixture(scope="module")
def tiny_paths(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Artifacts:
    """The tiny model as a base, and its examples as a mixture of two tasks."""
    paths = Artifacts("tiny", tmp_path_factory.mktemp("runs"))
    tiny.model.save_pretrained(paths.base)
    tiny.processor.save_pretrained(paths.base)
    paths.encoded.mkdir(parents=True)
    tiny.encoded.save(paths.encoded)
    owner = np.array([i % 2 for i in range(len(tiny.encoded))], dtype=np.int32)
    np.save(paths.encoded / "task_of_example.npy", owner)
    write_json(paths.encoded / "tasks.json", [{"task": "even"}, {"task": "odd"}])
    return paths


def a_run(paths: Artifacts, name: str = "run", task: str = "even", rate: float = 0.1) -> runs.Run:
    manifest = {
        "branch": name, "tasks": [task], "epochs": 1.0, "seed": 1, "batch_size": 4,
        "num_samples": 8 if task == "even" else 7, "num_tokens": 100, "num_loss_tokens": 20,
    }  # fmt: skip
    optimizer = TRAINING.optimizer.model_copy(update={"learning_rate": rate})
    return runs.Run(name, paths, manifest, TRAINING.model_copy(update={"optimizer": optimizer}))


def test_a_run_trains_its_tasks_alone_and_is_kept(
    tiny_paths: Artifacts, tmp_path: Path, inline: None
) -> None:
    wanted = [a_run(tiny_paths, "a"), a_run(tiny_paths, "b", "odd")]
    first = runs.train_runs(wanted, tmp_path, 1, "test")
    base = load_file(tiny_paths.base / "model.safetensors")
    a, b = load_file(first["a"].path), load_file(first["b"].path)
    assert {name for name in a if name.startswith("visual")} == set()  # the decoder alone
    moved = sum(float((a[n] - base[n]).double().square().sum()) for n in a) ** 0.5
    assert first["a"].displacement == pytest.approx(moved, rel=1e-6)
    assert (first["a"].num_samples, first["a"].num_tokens, first["a"].num_loss_tokens) == (
        *(8, 100, 20),
    )
    assert moved > 0
    assert any(not torch.equal(a[name], b[name]) for name in a)
    stamps = {name: part.path.stat().st_mtime_ns for name, part in first.items()}
    longer = replace(wanted[1], manifest=wanted[1].manifest | {"epochs": 2.0})
    again = runs.train_runs([wanted[0], longer], tmp_path, 1, "test")
    assert again["a"] == first["a"]
    assert first["a"].path.stat().st_mtime_ns == stamps["a"]  # kept
    assert again["b"].path.stat().st_mtime_ns != stamps["b"]  # its manifest has changed
    assert again["b"].displacement != first["b"].displacement


def test_a_run_that_does_not_stay_finite_is_a_result(
    tiny_paths: Artifacts, tmp_path: Path, inline: None
) -> None:
    found = runs.train_runs([a_run(tiny_paths, rate=1e30)], tmp_path, 1, "test")["run"]
    assert found.failure is not None
    assert "finite" in found.failure or "loss" in found.failure
    assert (found.final_loss, found.displacement, found.path.exists()) == (None, None, False)


def test_a_run_on_unknown_tasks_stops_the_study(
    tiny_paths: Artifacts, tmp_path: Path, inline: None
) -> None:
    with pytest.raises(MeritError, match="unknown tasks"):
        runs.train_runs([a_run(tiny_paths, task="none")], tmp_path, 1, "test")


def test_two_runs_of_one_name_are_refused(tiny_paths: Artifacts, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="one name"):
        runs.train_runs([a_run(tiny_paths), a_run(tiny_paths, task="odd")], tmp_path, 1, "test")


# --- answering ----------------------------------------------------------------------------------


class FakeEngine:
    """In the place of VLMEvalKit: a question scores 1 where the answer is the base's."""

    def __enter__(self) -> FakeEngine:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def prompts(self, files: Mapping[str, Path]) -> dict[str, dict[str, str]]:
        return {name: {"0": "say yes .", "1": "say no ."} for name in files}

    def score(
        self, files: Mapping[str, Path], predictions: Any
    ) -> dict[str, dict[str, BenchmarkScore]]:
        def right(name: str, answers: Mapping[str, str]) -> dict[str, float]:
            return {i: float(text == predictions["base"][name][i]) for i, text in answers.items()}

        return {
            model: {name: BenchmarkScore(0.0, right(name, a)) for name, a in benchmarks.items()}
            for model, benchmarks in predictions.items()
        }


def fake_answer(
    experiment: Experiment, questions: Path, model: Path, target: Path, key: str
) -> None:
    """What a model answers: to question 0 the first entry of its embedding, to 1 always yes."""
    assert (model / "config.json").is_file()
    assert (model / "tokenizer.json").is_file()
    assert read_json(target.parent / "prompts.json") == {
        "mini_mcq": {"0": "say yes .", "1": "say no ."}
    }
    first = load_file(model / "model.safetensors")["model.embed_tokens.weight"][0, 0]
    write_json(target, {"key": key, "answers": {"mini_mcq": {"0": f"{first:.6f}", "1": "yes"}}})


def test_models_answer_from_their_own_tensors_and_answers_are_kept(
    tiny_paths: Artifacts, tmp_path: Path, inline: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "ScoringEngine", FakeEngine)
    monkeypatch.setattr(runs, "answer", fake_answer)
    questions = tmp_path / "mini_mcq.tsv"
    questions.write_text("questions")
    name = "model.embed_tokens.weight"
    embedding = load_file(tiny_paths.base / "model.safetensors")[name]
    models = [
        runs.Candidate("base", tiny_paths.base),
        runs.Candidate("same", tiny_paths.base, lambda: {name: embedding.clone()}),
        runs.Candidate("other", tiny_paths.base, lambda: {name: embedding + 1}),
    ]
    settings = synthetic.experiment(benchmarks=["mini_mcq"])
    out = tmp_path / "out"

    def score() -> dict[str, compare.Scores]:
        return runs.score_models(settings, tmp_path, models, out, 1, "test")

    first = score()
    assert first["same"] == {"mini_mcq": [1.0, 1.0]}
    assert first["other"] == {"mini_mcq": [0.0, 1.0]}
    assert not (out / "weights").exists()

    def again(*arguments: object) -> None:
        answered.append(str(arguments[2]))
        fake_answer(*arguments)  # type: ignore[arg-type]

    answered: list[str] = []
    monkeypatch.setattr(runs, "answer", again)
    assert score() == first
    assert answered == []  # all were kept
    models[2] = runs.Candidate("other", tiny_paths.base, lambda: {name: embedding + 2})
    score()
    assert [Path(path).name for path in answered] == ["other"]
    questions.write_text("other questions")
    score()
    assert len(answered) == 4


def test_a_tensor_that_the_base_lacks_is_refused(tiny_paths: Artifacts, tmp_path: Path) -> None:
    model = runs.Candidate("odd", tiny_paths.base, lambda: {"no.such": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"no\.such"):
        runs.write_model(model, tmp_path / "odd")


# --- comparing ----------------------------------------------------------------------------------


def test_average_and_difference_are_means_over_benchmarks_in_percent() -> None:
    ours = {"a": [1.0, 1.0, 0.0, 0.0], "b": [1.0] * 10}
    theirs = {"a": [0.0, 0.0, 0.0, 0.0], "b": [1.0] * 10}
    assert compare.average([ours])[0] == pytest.approx(75.0)
    value, low, high = compare.difference([ours], [theirs])
    assert value == pytest.approx(25.0)  # (50 + 0) / 2
    assert 0 <= low < 25 < high <= 50
    # two models of one method are averaged question by question
    assert compare.difference([ours, theirs], [theirs])[0] == pytest.approx(12.5)
    assert compare.num_questions(ours) == 14


def test_verdict_is_where_the_interval_leaves_zero() -> None:
    assert compare.verdict((1.0, 0.1, 2.0)) == "positive"
    assert compare.verdict((-1.0, -2.0, -0.1)) == "negative"
    assert compare.verdict((1.0, 0.0, 2.0)) == "undecided"


# --- mergers ------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("merger", mergers.MERGERS)
def test_a_scale_is_a_point_on_the_line_from_the_base(
    merger: str, checkpoints: tuple[Path, list[Path]]
) -> None:
    base, branches = checkpoints
    start = load_file(base / "model.safetensors")
    parts = [load_file(path) for path in branches]
    merged = mergers.merged_tensors(merger, base, branches, [0.5, 0.3, 0.2])
    half = runs.moved(base, merged, 0.5)
    rules: dict[str, Any] = {"star": star, "tsv": tsv, "iso-c": iso_c, "iso-cts": iso_cts}
    for name, theta in start.items():
        ours = [part[name] for part in parts]
        if merger in rules:
            wanted = rules[merger](theta, ours, scale=0.5)
        elif merger == "ties":
            if name != "vector":
                continue  # its threshold is the whole model's: below
            wanted = ties(theta, ours, scale=0.5)
        else:
            shares = [0.5, 0.3, 0.2] if merger == "token-weighted" else [1 / 3] * 3
            change = sum(w * (t - theta) for w, t in zip(shares, ours, strict=True))
            wanted = theta + 0.5 * change
        assert_close(half[name], wanted, atol=1e-6, rtol=1e-5)


def test_ties_trims_over_the_whole_model(checkpoints: tuple[Path, list[Path]]) -> None:
    base, branches = checkpoints
    merged = mergers.merged_tensors("ties", base, branches, [1 / 3] * 3)
    start = load_file(base / "model.safetensors")
    # a fifth of 53 entries a branch: none of them among the small matrix's
    assert torch.equal(merged["small"], start["small"])
    assert not torch.equal(merged["large"], start["large"])


def test_the_best_scale_and_its_ties() -> None:
    assert mergers.best_scale([0.25, 0.5, 1.0, 2.0], [1.0, 3.0, 2.0, 0.0]) == 0.5
    assert mergers.best_scale([0.25, 0.5, 1.0, 2.0], [3.0, 3.0, 3.0, 3.0]) == 1.0
    assert mergers.best_scale([0.5, 2.0], [3.0, 3.0]) == 0.5


def merger_rows() -> list[dict[str, Any]]:
    """Ten questions; token-weighted has 6 right at scale 1, ties none, the others the same 6."""
    six, none = {"a": [1.0] * 6 + [0.0] * 4}, {"a": [0.0] * 10}
    test = {f"{m}-x1-s1": none if m == "ties" else six for m in mergers.MERGERS}
    chosen = dict.fromkeys(mergers.MERGERS, 1.0)
    return [
        mergers.table_row(m, tuning, chosen, test, 50.0, [1])
        for tuning in ("default", "best")
        for m in mergers.MERGERS
    ]


def test_table_12_and_what_the_ledger_reads() -> None:
    rows = merger_rows()
    assert list(rows[0])[:5] == ["merge", "tuning", "scale", "seed1", "mean"]
    worst = next(row for row in rows if row["merge"] == "ties")
    assert (worst["seed1"], worst["difference"]) == (0.0, -60.0)
    found = mergers.summary(rows, (10.0, 5.0, 15.0), Mergers())
    assert found["token_weighted_minus_ties"] == pytest.approx(60.0)
    assert 0 < found["token_weighted_minus_ties_low"] < 60 < found["token_weighted_minus_ties_high"]
    assert found["token_weighted_minus_ties_n"] == 10
    assert found["token_weighted_minus_iso_cts"] == 0.0
    assert found["behind_default"] == ["ties"]
    assert found["ahead_best"] == []
    assert found["at_edge"] == []
    assert mergers.at_edge(rows, Mergers(scales=[0.5])) == list(mergers.MERGERS)
    said = mergers.text(rows, (10.0, 5.0, 15.0), Mergers())
    assert "is ahead of ties (-60.0 [" in said
    assert "cannot be told from uniform (+0.0 [+0.0, +0.0])" in said


# --- SGD ----------------------------------------------------------------------------------------


def test_rates_are_written_as_in_the_paper() -> None:
    assert [sgd.rate_label(rate) for rate in (3e-5, 8e-5, 2e-4, 0.03, 1.0, 1.5e-4)] == [
        "3e-5", "8e-5", "2e-4", "3e-2", "1e0", "1.5e-4",
    ]  # fmt: skip


def sgd_scores() -> dict[str, compare.Scores]:
    """At 1e-4 merit-3d falls below merit-1d; at 1e-3 merit-1d is ahead; joint at 1e-2 failed."""
    right = {
        "base": 4, "joint-1ep-lr0.0001": 4, "merit-1d-lr0.0001": 4, "merit-3d-lr0.0001": 0,
        "joint-1ep-lr0.001": 4, "merit-1d-lr0.001": 10, "merit-3d-lr0.001": 5,
        "merit-1d-lr0.01": 3, "merit-3d-lr0.01": 3,
    }  # fmt: skip
    return {name: {"a": [1.0] * n + [0.0] * (10 - n)} for name, n in right.items()}


def test_the_sweep_and_what_the_ledger_reads() -> None:
    scores, names = sgd_scores(), ["joint-1ep", "merit-1d", "merit-3d"]
    rows = [
        sgd.sweep_row(method, rate, scores, {}, "joint-1ep")
        for method in names
        for rate in (1e-4, 1e-3)
    ]
    table = sgd.paper_table(rows, 40.0, [1e-4, 1e-3])
    assert table[0] == {"method": "base", "1e-4": 40.0, "1e-3": 40.0}
    assert table[3] == {"method": "merit-3d", "1e-4": 0.0, "1e-3": pytest.approx(50.0)}
    settings = Sgd(learning_rates=[1e-4, 1e-3], methods=names)
    found = sgd.summary(synthetic.experiment(methods=names), rows, scores, settings, "joint-1ep")
    assert (found["smallest_rate"], found["largest_rate"]) == (1e-4, 1e-3)
    assert found["best_at_largest_rate"] == "merit-1d"
    assert found["gain_at_largest_rate"] == pytest.approx(60.0)
    assert found["collapse_at_smallest_rate"] == pytest.approx(-40.0)
    assert found["collapse_at_smallest_rate_high"] < 0
    assert found["ahead_merit-1d"] == [1e-3]
    assert found["behind_merit-3d"] == [1e-4]
    said = sgd.text(rows, (40.0, 30.0, 50.0), "joint-1ep", 10)
    assert "ahead of joint-1ep in 1 (merit-1d at 1e-3), behind in 1 (merit-3d at 1e-4)" in said


def test_a_training_that_failed_leaves_its_cells_empty() -> None:
    scores = sgd_scores()
    rows = [sgd.sweep_row(m, 1e-2, scores, {}, "joint-1ep") for m in ("joint-1ep", "merit-1d")]
    assert rows[0]["avg"] is None
    assert rows[1]["avg"] == pytest.approx(30.0)
    assert rows[1]["minus_joint"] is None
    assert "1 trainings did not stay finite" in sgd.text(rows, (40.0, 0.0, 80.0), "joint-1ep", 10)


def test_sgd_refuses_methods_that_are_not_trained() -> None:
    settings = Sgd(learning_rates=[0.1], methods=["joint-1ep", "no-such"])
    with pytest.raises(MeritError, match="no-such"):
        sgd._methods(synthetic.experiment(), settings)
    with pytest.raises(MeritError, match="joint method"):
        sgd._methods(synthetic.experiment(), Sgd(learning_rates=[0.1], methods=["merit-1d"]))


# --- regime -------------------------------------------------------------------------------------

SETTINGS = Regime(learning_rates=[5e-4])
LIMITS = Thresholds()
SIZES = {"j": 10.0, "r": 3.0, "q": 5.0, "m": 6.0, "n": 8.0}


def point_of(folder: Path) -> tuple[regime.Point, dict[str, runs.Trained]]:
    """A cell whose runs move the base's `w` (norm 40) along one axis each, by `SIZES`."""
    paths = Artifacts("base", folder)
    paths.base.mkdir(parents=True)
    start = torch.zeros(3, 3)
    start[2, 2] = 40.0
    frozen = torch.full((5,), 100.0)  # trained by nobody, so no part of the norm
    save_file({"w": start, "frozen": frozen}, paths.base / "model.safetensors")
    trained = {}
    for i, (name, size) in enumerate(SIZES.items()):
        moved = start.clone()
        moved[i % 3, i // 3] = size
        save_file({"w": moved}, folder / f"{name}.safetensors")
        # n has three times m's tokens, but as many samples and loss-bearing tokens
        tokens = 30 if name == "n" else 10
        trained[name] = runs.Trained(
            folder / f"{name}.safetensors", tokens, 5, 7, 1.0, size, failure=None
        )
    parts = {"joint": [["j"]], "random": [["r"], ["q"]], "merit": [["m", "n"]]}
    return regime.Point(regime.OWN, paths, 5e-4, parts), trained


def scores_of(point: regime.Point) -> dict[str, compare.Scores]:
    """So many of ten questions right."""
    right = {
        "own-lr0.0005-joint-0": 1, "own-lr0.0005-random-0": 2, "own-lr0.0005-random-1": 4,
        "own-lr0.0005-merit-0": 10, "own-lr0.0005-shrunk": 10, "own-base": 5,
    }  # fmt: skip
    return {name: {"a": [1.0] * n + [0.0] * (10 - n)} for name, n in right.items()}


def test_the_shrunk_joint_model_lies_at_merits_distance(tmp_path: Path) -> None:
    point, trained = point_of(tmp_path)
    models, found = regime.candidates(point, trained, "uniform")
    assert found is not None
    # merit: (3, 4) from its halves, so 5 from the base; random: the mean over its draws
    assert found["distances"] == pytest.approx({"joint": 10.0, "random": 4.0, "merit": 5.0})
    assert found["norm"] == pytest.approx(40.0)
    assert found["alpha"] == pytest.approx(0.5)
    made = {model.name: model.tensors() for model in models}
    assert set(made) == set(scores_of(point)) - {"own-base"}
    assert_close(made["own-lr0.0005-shrunk"]["w"][0, 0], torch.tensor(5.0))
    assert_close(made["own-lr0.0005-joint-0"]["w"][0, 0], torch.tensor(10.0))


def test_a_cells_branches_are_merged_by_the_experiments_reading(tmp_path: Path) -> None:
    point, trained = point_of(tmp_path)
    by_tokens, by_loss_tokens = (
        regime.candidates(point, trained, reading)[1] for reading in ("tokens", "loss_tokens")
    )
    assert by_tokens is not None
    assert by_loss_tokens is not None
    # 1/4 of m (6) and 3/4 of n (8)
    assert by_tokens["distances"]["merit"] == pytest.approx((1.5**2 + 6**2) ** 0.5)
    assert by_loss_tokens["distances"]["merit"] == pytest.approx(5.0)


def test_a_cell_with_a_failed_run_has_no_models(tmp_path: Path) -> None:
    point, trained = point_of(tmp_path)
    trained["q"] = replace(trained["q"], failure="the loss is nan")
    assert regime.candidates(point, trained, "uniform") == ([], None)
    entry = regime.cell(point, {}, None, LIMITS)
    assert (entry["averages"], entry["differences"], entry["merge_ready"]) == (None, None, None)
    assert regime.counts([entry])["merit-random"]["not finite"] == 1
    made = regime.tables([entry])
    assert list(made) == ["regime_differences", "regime_cells"]
    assert made["regime_differences"][0]["verdict"] == "not finite"
    assert made["regime_cells"][0]["merge_ready"] is None
    found = regime.summary([entry], SETTINGS, 10)
    assert (found["merit_minus_random_not_finite"], found["num_merge_ready"]) == (1, 0)
    said = regime.text([entry], SETTINGS, 10, 1.0, LIMITS)
    assert "A training did not stay finite everywhere" in said
    assert "Against joint training (joint-1ep): no cell stayed finite." in said


def test_a_cell_says_who_is_ahead(tmp_path: Path) -> None:
    point, trained = point_of(tmp_path)
    _, found = regime.candidates(point, trained, "uniform")
    entry = regime.cell(point, scores_of(point), found, LIMITS)
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
    # distances 10, 4 and 5 of a norm of 40
    assert entry["relative_displacements"] == pytest.approx(
        {"joint": 0.25, "random": 0.1, "merit": 0.125, "shrunk": 0.125, "base": 0.0}
    )
    assert entry["merge_ready"] is False  # joint training moves by 25 %
    near = Thresholds(joint_displacement=0.25)
    assert regime.cell(point, scores_of(point), found, near)["merge_ready"] is True
    counted = regime.counts([entry])
    assert counted["merit-joint"] == {
        "positive": 1, "negative": 0, "undecided": 0, "not finite": 0,
    }  # fmt: skip
    assert counted["merit-shrunk"]["undecided"] == 1
    assert counted["random-shrunk"]["negative"] == 1


def test_merge_ready_is_near_the_base_and_random_not_far_behind() -> None:
    assert regime.merge_ready(0.10, -1.0, LIMITS)
    assert not regime.merge_ready(0.101, 5.0, LIMITS)
    assert not regime.merge_ready(0.01, -1.1, LIMITS)
    settings = synthetic.experiment()
    assert regime.thresholds(settings) == LIMITS
    stricter = Readiness(thresholds=Thresholds(joint_displacement=0.05))
    studies = settings.studies.model_copy(update={"readiness": stricter})
    asked = regime.thresholds(settings.model_copy(update={"studies": studies}))
    assert asked.joint_displacement == 0.05


def made_up(base: str, rate: float, merit_random: float, merit_shrunk: float) -> dict[str, Any]:
    """A cell with these two differences (in the other pairs nothing is decided)."""

    def interval(value: float) -> compare.Interval:
        return value, value - 1, value + 1

    pairs = {f"{a}-{b}": interval(0.0) for a, b in regime.PAIRS}
    pairs |= {"merit-random": interval(merit_random), "merit-shrunk": interval(merit_shrunk)}
    kinds = ("base", "joint", "random", "merit", "shrunk")
    relative = {kind: 0.0 if kind == "base" else 0.05 for kind in kinds}
    return {
        "base": base, "learning_rate": rate,
        "averages": {kind: interval(40.0) for kind in kinds},
        "differences": pairs,
        "distances": {kind: 20 * value for kind, value in relative.items()},
        "relative_displacements": relative, "alpha": 1.0, "merge_ready": base == regime.OWN,
    }  # fmt: skip


MAP = [
    made_up(regime.OWN, 2.5e-4, 2.0, -3.0),
    made_up(regime.OWN, 5e-4, 3.0, 0.5),
    made_up(regime.OTHER, 2.5e-4, 0.0, 2.0),
    made_up(regime.OTHER, 5e-4, -2.0, -2.0),
]


def test_the_sentences_name_the_cells() -> None:
    said = regime.text(MAP, SETTINGS, 1200, 1.0, LIMITS)
    assert (
        "Splitting by conflict (merit-3d) against splitting at random (random-8, mean of 2 draws): "
        "ahead where the base has the skills (at every rate); behind where the base must learn "
        "them (at 5e-4); not decided where the base must learn them (at 2.5e-4)." in said
    )
    assert "Against joint training (joint-1ep): not decided everywhere." in said
    # the control is the other side of merit - shrunk
    assert (
        "or better, as far as the questions can tell, in 3 of 4 cells: behind where the base must "
        "learn them (at 2.5e-4); ahead where the base has the skills (at 2.5e-4) and where the "
        "base must learn them (at 5e-4); not decided where the base has the skills (at 5e-4)."
        in said
    )
    assert "Merge-ready as far as this study can tell: where the base has the skills (" in said
    assert "at most 1 point worse than joint-1ep, here on the test split" in said
    assert said.endswith("interval over 1200 questions and the draws of random-8 excludes 0.")
    assert regime._listed(["a"]) == "a"
    assert regime._listed(["a", "b", "c"]) == "a, b and c"


def test_the_tables_and_the_summary_of_the_map() -> None:
    made = regime.tables(MAP)
    assert {stem: len(rows) for stem, rows in made.items()} == {
        "regime_differences": 20, "regime_models": 20, "regime_cells": 4,
    }  # fmt: skip
    assert made["regime_differences"][0] == {
        "base": "has the skills", "learning_rate": 2.5e-4, "ours": "merit", "theirs": "random",
        "difference": 2.0, "low": 1.0, "high": 3.0, "verdict": "positive",
    }  # fmt: skip
    assert made["regime_models"][1] == {
        "base": "has the skills", "learning_rate": 2.5e-4, "model": "joint",
        "avg": 40.0, "low": 39.0, "high": 41.0, "distance": 1.0, "relative_displacement": 0.05,
    }  # fmt: skip
    assert made["regime_cells"][2] == {
        "base": "must learn them", "learning_rate": 2.5e-4, "relative_displacement_joint": 0.05,
        "relative_displacement_random": 0.05, "relative_displacement_merit": 0.05,
        "random_minus_joint": 0.0, "merge_ready": False,
    }  # fmt: skip
    found = regime.summary(MAP, SETTINGS, 1200)
    words = ("positive", "negative", "undecided", "not_finite")
    assert [found[f"merit_minus_random_{word}"] for word in words] == [2, 1, 1, 0]
    assert [found[f"merit_minus_shrunk_{word}"] for word in words] == [1, 2, 1, 0]
    assert [found[f"random_minus_joint_{word}"] for word in words] == [0, 0, 4, 0]
    assert (found["num_cells"], found["num_questions"], found["num_merge_ready"]) == (4, 1200, 2)
    assert (found["num_random"], found["seed"]) == (2, 1)
    last = found["cells"][-1]
    assert (last["base"], last["learning_rate"], last["avg_merit"]) == (regime.OTHER, 5e-4, 40.0)
    assert (last["merit_minus_random"], last["merit_minus_random_high"]) == (-2.0, -1.0)
    assert (last["merit_minus_random_verdict"], last["merge_ready"]) == ("negative", False)


def map_tree(tmp_path: Path, name: str = "synthetic") -> tuple[Experiment, Artifacts]:
    """A finished pipeline of 16 tasks with what the study reads of `encoded`."""
    settings = synthetic.build(tmp_path, num_tasks=16, name=name)
    paths = Artifacts(name, tmp_path)
    encoded = [
        {"task": row["task"], "num_samples": row["num_examples"]}
        | {"num_tokens": 3 * row["num_examples"], "num_loss_tokens": row["num_examples"]}
        for row in read_json(paths.data / "tasks.json")
    ]
    write_json(paths.encoded / "tasks.json", encoded)
    return settings, paths


def test_cells_use_the_pipelines_partitions(tmp_path: Path) -> None:
    settings, paths = map_tree(tmp_path)
    training = settings.training.model_copy(update={"joint_batch_size": 8})
    settings = settings.model_copy(update={"training": training})
    point, needed, reused = regime.plan_point(settings, SETTINGS, regime.OWN, paths, 5e-4)
    assert reused == {}  # not the experiment's own rate
    assert [len(names) for names in point.parts.values()] == [1, 2, 1]
    assert [len(point.parts[kind][0]) for kind in ("joint", "random", "merit")] == [1, 8, 8]
    by_name = {run.name: run for run in needed}
    assert len(by_name) == 1 + 2 * 8 + 8
    joint = by_name[point.parts["joint"][0][0]]
    assert joint.name == "own-lr0.0005-joint-1ep-s1"
    encoded = read_json(paths.encoded / "tasks.json")
    assert joint.manifest["num_samples"] == sum(entry["num_samples"] for entry in encoded)
    assert joint.manifest["num_tokens"] == 3 * joint.manifest["num_samples"]
    assert (joint.manifest["epochs"], joint.manifest["batch_size"]) == (1.0, 8)
    assert joint.training.optimizer.learning_rate == 5e-4
    from merit.core.similarity import pca
    from merit.methods import plan

    similarity = np.load(paths.partition / "similarity.npy")
    known = Evidence(encoded, np.empty((16, 0)), similarity, pca(similarity, 3).embedding)
    wanted = assign(plan(settings), known)[0]["merit-3d"]
    for group, name in enumerate(point.parts["merit"][0]):
        assert by_name[name].manifest["tasks"] == [t for t in wanted if wanted[t] == group]
        assert by_name[name].manifest["batch_size"] == 4


def test_the_pipelines_own_branches_are_not_trained_again(tmp_path: Path) -> None:
    settings, paths = map_tree(tmp_path)
    point, needed, reused = regime.plan_point(settings, SETTINGS, regime.OWN, paths, 1e-3)
    # seed 1 of all methods is the pipeline's, the second draw of random groups (seed 2) is not
    assert sorted(run.name for run in needed) == [
        f"own-lr0.001-random-8-s2-g{group}" for group in range(8)
    ]
    assert point.parts["joint"] == [["joint-1ep-s1"]]
    assert point.parts["merit"] == [[f"merit-3d-s1-g{group}" for group in range(8)]]
    assert point.parts["random"][0] == [f"random-8-s1-g{group}" for group in range(8)]
    assert set(reused) == {name for kind in point.parts.values() for name in kind[0]}
    manifest = read_json(paths.manifest("merit-3d-s1-g0"))
    assert reused["merit-3d-s1-g0"] == runs.Trained(
        path=paths.branch("merit-3d-s1-g0") / "model.safetensors",
        num_tokens=manifest["num_tokens"],
        num_loss_tokens=manifest["num_loss_tokens"],
        num_samples=manifest["num_samples"],
        final_loss=read_json(paths.branch("merit-3d-s1-g0") / "summary.json")["final_loss"],
        displacement=read_json(paths.branch("merit-3d-s1-g0") / "summary.json")["displacement"],
        failure=None,
    )
    # from another base nothing is the pipeline's, whatever the rate
    _, needed, reused = regime.plan_point(settings, SETTINGS, regime.OTHER, paths, 1e-3)
    assert (len(needed), reused) == (25, {})


def test_a_branch_of_another_manifest_is_refused(tmp_path: Path) -> None:
    settings, paths = map_tree(tmp_path)
    manifest = read_json(paths.manifest("joint-1ep-s1"))
    write_json(paths.manifest("joint-1ep-s1"), manifest | {"num_samples": 1})
    with pytest.raises(MeritError, match=r"branches/joint-1ep-s1: trained for another manifest"):
        regime.plan_point(settings, SETTINGS, regime.OWN, paths, 1e-3)


def test_the_whole_map(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two bases, two rates; every trained model scores by where it stands, nothing is trained."""
    settings, paths = map_tree(tmp_path)
    settings = with_phases(settings)
    _, other = map_tree(paths.folder, "other_base")
    assert (other.folder, other.experiment) == (paths.other.folder, paths.other.experiment)
    trained: list[runs.Run] = []

    def train(wanted: list[runs.Run], *arguments: object) -> dict[str, runs.Trained]:
        trained.extend(wanted)
        found = {}
        for run in wanted:
            moved = load_file(run.paths.base / "model.safetensors")["w"] + 0.1
            save_file({"w": moved}, tmp_path / f"{run.name}.safetensors")
            counts = [run.manifest[f"num_{what}"] for what in ("tokens", "loss_tokens", "samples")]
            path = tmp_path / f"{run.name}.safetensors"
            found[run.name] = runs.Trained(path, *counts, 1.0, 0.1, failure=None)
        return found

    def score(
        experiment: Experiment, benchmarks: Path, models: list[runs.Candidate], *others: object
    ) -> dict[str, compare.Scores]:
        assert benchmarks == paths.data / "benchmarks"
        right = {"base": 5, "joint-0": 3, "random-0": 4, "random-1": 4, "merit-0": 9, "shrunk": 6}
        found = {}
        for model in models:
            if not model.name.endswith("-base"):
                assert set(model.tensors()) == {"w"}
            share = next(n for kind, n in right.items() if model.name.endswith(kind))
            found[model.name] = {"a": [1.0] * 10 * share + [0.0] * 10 * (10 - share)}
        return found

    monkeypatch.setattr(regime, "train_runs", train)
    monkeypatch.setattr(regime, "score_models", score)
    monkeypatch.setattr(regime, "load_params", lambda: Params(experiments=["synthetic"]))
    asked = SETTINGS.model_copy(update={"other_base": OTHER_BASE})
    result = regime.measure(settings, paths, asked)
    assert result["learning_rates"] == [5e-4, 1e-3]  # the experiment's own rate is always there
    assert [(c["base"], c["learning_rate"]) for c in result["cells"]] == [
        (base, rate) for base in ("has the skills", "must learn them") for rate in (5e-4, 1e-3)
    ]
    # 25 runs a cell; at the own base and rate the pipeline has all but the second random draw's 8
    assert len(trained) == 3 * 25 + 8
    assert {run.paths.experiment for run in trained} == {"synthetic", "other_base"}
    assert not any(run.name.startswith("own-lr0.001-merit") for run in trained)
    assert result["bases"] == [
        {"base": "has the skills", "known_skills": 26, "num_skills": 32},
        {"base": "must learn them", "known_skills": 20, "num_skills": 32},
    ]
    for entry in result["cells"]:
        assert entry["differences"]["merit-random"][0] == pytest.approx(50.0)
        assert entry["differences"]["merit-shrunk"][0] == pytest.approx(30.0)
    # a run moves each of 30 entries by 0.1, and so does every average of such runs
    base = np.linalg.norm(load_file(other.base / "model.safetensors")["w"])
    moved = result["cells"][-1]["relative_displacements"]["merit"]
    assert moved == pytest.approx(0.1 * 30**0.5 / base, rel=1e-5)
    assert result["summary"]["merit_minus_random_positive"] == 4
    assert result["summary"]["num_questions"] == 100
    regime.draw(result, tmp_path / "drawn")
    assert sorted(path.name for path in (tmp_path / "drawn" / "figures").glob("*.png")) == [
        "regime.png", "regime_differences.png",
    ]  # fmt: skip


def test_regime_wants_one_method_of_each_kind_and_equal_epochs() -> None:
    assert regime.check_methods(synthetic.experiment(), SETTINGS) == 1.0
    with pytest.raises(MeritError, match=r"studies\.regime\.random: 'merit-3d' is no Random"):
        regime.check_methods(
            synthetic.experiment(), SETTINGS.model_copy(update={"random": "merit-3d"})
        )
    with pytest.raises(MeritError, match=r"different epochs \(joint-2ep 2, random-8 1"):
        regime.check_methods(
            synthetic.experiment(), SETTINGS.model_copy(update={"joint": "joint-2ep"})
        )
    with pytest.raises(MeritError, match=r"loaded, not built"):  # before anything is trained
        regime.check_methods(
            synthetic.experiment(), SETTINGS.model_copy(update={"other_base": OTHER_BASE})
        )


# --- the other base -----------------------------------------------------------------------------

OTHER_BASE = OtherBase(num_new_skills=12, num_conversations=60, num_steps=30)


def with_phases(settings: Experiment, last: str = "conversations") -> Experiment:
    """The experiment with a base that is built: two phases of 100 steps."""
    optimizer = Optimizer(learning_rate=1e-3, batch_size=4)
    phases = [
        Phase(name=data, data=data, trainable=["decoder"], num_steps=100, optimizer=optimizer)
        for data in ("captions", last)
    ]
    base = Base.model_construct(
        seed=0, architecture=Architecture.model_construct(), checkpoint=None, phases=phases
    )
    return settings.model_copy(update={"base": base})


def test_the_other_base_has_its_own_conversations_and_last_phase() -> None:
    settings = with_phases(synthetic.experiment())
    found = other_base.with_other_base(settings, OTHER_BASE)
    assert [phase.num_steps for phase in found.base.phases] == [100, 30]
    assert [phase.num_steps for phase in settings.base.phases] == [100, 100]
    assert isinstance(settings.data, MiniWorldData)
    changes = {"num_new_skills": 12, "num_conversations": 60}
    assert found.data == settings.data.model_copy(update=changes)
    assert found.training == settings.training


def test_an_other_base_that_cannot_be_built_is_refused() -> None:
    settings = synthetic.experiment()
    with pytest.raises(MeritError, match=r"regime\.other_base: the base of synthetic is loaded"):
        other_base.with_other_base(settings, OTHER_BASE)
    with pytest.raises(MeritError, match=r"last phase of `base\.phases` \(recaptions\) reads"):
        other_base.with_other_base(with_phases(settings, "recaptions"), OTHER_BASE)
    text = MiniTextData(
        source="mini_text", seed=0, num_examples=10, num_documents=10, num_conversations=10,
        num_questions=10, num_validation_questions=10, num_recall=10,
    )  # fmt: skip
    with pytest.raises(MeritError, match=r"synthetic has `data\.source: mini_text`"):
        other_base.with_other_base(
            with_phases(settings.model_copy(update={"data": text})), OTHER_BASE
        )
    for count in (6, 17):  # no more than the base's own; more than there are
        few = OTHER_BASE.model_copy(update={"num_new_skills": count})
        with pytest.raises(MeritError, match=rf"num_new_skills: found {count}; give more than"):
            other_base.with_other_base(with_phases(settings), few)


def asked_skills(folder: Path) -> set[str]:
    """The skills that the folder's conversations ask for, by the training wordings."""
    turns = [
        message["content"]
        for row in read_jsonl(folder / "conversations.jsonl")
        for message in row["messages"]
        if message["role"] == "user"
    ]
    found = set()
    for skill in SKILLS:
        for wording in skill.wordings[1:]:
            parts = re.split(r"\{\w+\}", wording)
            pattern = re.compile(r"[a-z0-9 ]+".join(re.escape(part) for part in parts))
            if any(pattern.search(turn) for turn in turns):
                found.add(skill.name)
    return found


def test_the_other_bases_data_leaves_skills_out_and_links_the_rest(
    world: Path, tmp_path: Path
) -> None:
    data = WORLD.model_copy(update={"num_new_skills": 12, "num_conversations": 60})
    settings = synthetic.experiment().model_copy(update={"data": data})
    (tmp_path / "deeper").mkdir()
    target = tmp_path / "deeper" / "data"
    with atomic_folder(target) as folder:
        other_base.write_data(settings, world, folder)
    assert len(read_jsonl(target / "conversations.jsonl")) == 60
    assert len(read_jsonl(target / "captions.jsonl")) == 60
    asked = asked_skills(target)
    assert not asked & set(NEW_SKILLS[:12])
    assert asked & set(NEW_SKILLS[12:])
    assert asked_skills(world) & set(NEW_SKILLS[6:12])  # the experiment's own base has seen these
    # every image is there: the conversations' own and the mixture's
    own = sorted((target / "images").glob("c*.png"))
    assert len(own) == 60
    assert not any(path.is_symlink() for path in own)
    shared = sorted(path.name for path in (world / "images").glob("m*.png"))
    assert sorted(path.name for path in (target / "images").glob("m*.png")) == shared
    first = target / "images" / shared[0]
    assert first.read_bytes() == (world / "images" / shared[0]).read_bytes()
    assert not (world / "images" / "c00059.png").exists()  # nothing was written through a link
    assert read_json(target / "tasks.json") == read_json(world / "tasks.json")
    assert (target / "mixture").is_symlink()
    assert (target / "mixture" / "row_mate-short.jsonl").is_file()
    assert (target / "benchmarks").is_dir()


def test_the_other_base_stage_writes_base_mixture_and_cosines(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    paths = Artifacts("synthetic")
    paths.folder.mkdir(parents=True)
    paths.data.symlink_to(world, target_is_directory=True)
    settings = with_phases(synthetic.experiment().model_copy(update={"data": WORLD}))
    done: list[str] = []

    def build(experiment: Experiment, data: Path, folder: Path) -> list[dict[str, float]]:
        assert len(read_jsonl(data / "conversations.jsonl")) == 60
        assert not asked_skills(data) & set(NEW_SKILLS[:12])
        done.append(f"base of {experiment.base.phases[-1].num_steps} steps")
        save_file({"w": torch.ones(2)}, folder / "model.safetensors")
        return [{"step": 1.0, "loss": 2.0}]

    def encode(where: Artifacts, data: Path) -> None:
        assert data == paths.data  # the experiment's own mixture, seen by the other base
        done.append("encoded")
        write_json(where.encoded / "tasks.json", read_json(data / "tasks.json"))

    def similarity(experiment: Experiment, where: Artifacts) -> np.ndarray:
        assert (where.encoded / "tasks.json").is_file()
        done.append("similarity")
        return np.eye(3)

    monkeypatch.setattr(other_base, "load_experiment", lambda name: settings)
    monkeypatch.setattr(other_base, "build", build)
    monkeypatch.setattr(other_base, "write_encoded", encode)
    monkeypatch.setattr(other_base, "_similarity", similarity)
    with pytest.raises(MeritError, match=r"key `studies\.regime\.other_base` is missing; add it$"):
        other_base.run("synthetic")
    asked = SETTINGS.model_copy(update={"other_base": OTHER_BASE})
    studies = settings.studies.model_copy(update={"regime": asked})
    settings = settings.model_copy(update={"studies": studies})
    other_base.run("synthetic")
    assert done == ["base of 30 steps", "encoded", "similarity"]
    found = paths.other
    assert found.folder == paths.folder / "other_base"
    assert_allclose(np.load(found.partition / "similarity.npy"), np.eye(3))
    assert read_jsonl(found.base / "records.jsonl") == [{"step": 1.0, "loss": 2.0}]
    file = found.base / "model.safetensors"
    assert read_json(found.base / "base.json") == {"base_hash": file_hash(file), "seed": 0}
    assert sorted(path.name for path in found.folder.iterdir()) == ["base", "encoded", "partition"]
