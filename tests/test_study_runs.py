"""The studies that train or score: shared runs, mergers, SGD sweep, regime map."""

from __future__ import annotations

import contextlib
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
from eval.studies import compare, mergers, regime, runs, sgd, weak_base
from merit.config import Base, Experiment, Optimizer, Phase, Training
from merit.config_studies import Mergers, Regime, Sgd
from merit.core.merge.iso import iso_c, iso_cts
from merit.core.merge.star import star
from merit.core.merge.ties import ties
from merit.core.merge.tsv import tsv
from merit.errors import MeritError
from merit.io.artifacts import Artifacts, read_json, write_json
from merit.stages.partition import Evidence, assign
from merit.training import build_optimizer
from tests import synthetic
from tests.conftest import Tiny


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
    stepper = build_optimizer([parameter], settings)
    for gradient in ([2.0, 4.0], [2.0, 4.0]):  # twice: momentum would make the second step longer
        parameter.grad = torch.tensor(gradient)
        stepper.step()
    # theta - 0.5 (g + 0.1 theta): 1 -> -0.05 -> -1.0475, -2 -> -3.9 -> -5.705
    assert_close(parameter.detach(), torch.tensor([-1.0475, -5.705]))


def test_adamw_stays_the_default() -> None:
    settings = Optimizer(learning_rate=1e-3, batch_size=1)
    assert settings.algorithm == "adamw"
    parameter = torch.nn.Parameter(torch.zeros(2))
    assert isinstance(build_optimizer([parameter], settings), torch.optim.AdamW)


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
        "num_samples": 8 if task == "even" else 7, "num_tokens": 100,
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

SETTINGS = Regime(learning_rates=[1e-3], epochs=[1.0, 2.0], num_alphas=4)


def point_of(base: Path, tmp_path: Path, sizes: dict[str, float]) -> tuple[Any, dict[str, Any]]:
    """A point whose runs move the base's only tensor along one axis each."""
    start = torch.zeros(3, 3)
    base.mkdir()
    save_file({"w": start}, base / "model.safetensors")
    trained = {}
    for i, (name, size) in enumerate(sizes.items()):
        moved = start.clone()
        moved[i % 3, i // 3] = size
        save_file({"w": moved}, tmp_path / f"{name}.safetensors")
        trained[name] = runs.Trained(tmp_path / f"{name}.safetensors", 10, 1.0, size, None)
    parts = {"joint": [["j"]], "random": [["r"], ["q"]], "merit": [["m", "n"]]}
    paths = Artifacts(base.parent.name, base.parent.parent)
    return regime.Point("base", paths, 1e-3, 1.0, parts), trained


def test_the_shrunk_joint_model_lies_at_merits_distance(tmp_path: Path) -> None:
    sizes = {"j": 10.0, "r": 3.0, "q": 5.0, "m": 6.0, "n": 8.0}
    point, trained = point_of(tmp_path / "base", tmp_path, sizes)
    models, found = regime.candidates(point, trained, num_alphas=4)
    assert found is not None
    # merit: (3, 4) from its halves, so 5 from the base; random: the mean over its draws
    assert found["distances"] == pytest.approx({"joint": 10.0, "random": 4.0, "merit": 5.0})
    assert found["alpha"] == pytest.approx(0.5)
    assert_allclose(found["path"], [1 / 3, 2 / 3])
    made = {model.name.removeprefix(point.name): model.tensors() for model in models}
    assert len(made) == 7
    assert_close(made["-shrunk"]["w"][0, 0], torch.tensor(5.0))
    assert_close(made["-alpha0.333333"]["w"][0, 0], torch.tensor(10 / 3))
    assert_close(made["-joint-0"]["w"][0, 0], torch.tensor(10.0))


def test_a_point_with_a_failed_run_has_no_models(tmp_path: Path) -> None:
    sizes = {"j": 10.0, "r": 3.0, "q": 5.0, "m": 6.0, "n": 8.0}
    point, trained = point_of(tmp_path / "base", tmp_path, sizes)
    trained["q"] = replace(trained["q"], failure="the loss is nan")
    assert regime.candidates(point, trained, num_alphas=4) == ([], None)
    entry = regime.cell(point, {}, None)
    assert (entry["averages"], entry["differences"]) == (None, None)
    assert regime.counts([entry])["merit-random"]["not finite"] == 1
    assert regime.tables([entry])["regime_differences"][0]["verdict"] == "not finite"
    assert "In 1 a training did not stay finite" in regime.text([entry], SETTINGS, 10)


def test_the_map_says_who_is_ahead(tmp_path: Path) -> None:
    sizes = {"j": 10.0, "r": 3.0, "q": 5.0, "m": 6.0, "n": 8.0}
    point, trained = point_of(tmp_path / "base", tmp_path, sizes)
    _, found = regime.candidates(point, trained, num_alphas=4)
    right = {
        "joint-0": 0, "random-0": 2, "random-1": 4, "merit-0": 10, "shrunk": 10,
        "alpha0.333333": 10, "alpha0.666667": 5,
    }  # fmt: skip
    scores = {f"{point.name}-{n}": {"a": [1.0] * k + [0.0] * (10 - k)} for n, k in right.items()}
    scores["base"] = {"a": [1.0] * 5 + [0.0] * 5}
    entry = regime.cell(point, scores, found)
    assert entry["differences"]["merit-random"][0] == pytest.approx(70.0)  # random: 3 of 10
    assert entry["differences"]["merit-shrunk"][0] == pytest.approx(0.0)
    assert_allclose(entry["path"], [(0, 50), (1 / 3, 100), (2 / 3, 50), (1, 0)])
    found_counts = regime.counts([entry])
    assert found_counts["merit-joint"] == {
        "positive": 1, "negative": 0, "undecided": 0, "not finite": 0,
    }  # fmt: skip
    assert found_counts["merit-shrunk"]["undecided"] == 1
    assert found_counts["random-shrunk"]["negative"] == 1
    summary = regime.summary([entry], SETTINGS, 10)
    assert summary["merit_minus_random_positive"] == 1
    said = regime.text([entry], SETTINGS, 10)
    assert "MERIT − random is positive in 1, negative in 0 and undecided in 0" in said
    assert "In 1 of 1 some point of the shrinkage path" in said
    assert len(regime.tables([entry])["regime_path"]) == 4


def test_points_use_the_pipelines_partitions(tmp_path: Path) -> None:
    settings = synthetic.build(tmp_path, num_tasks=16)
    paths = Artifacts(settings.name, tmp_path)
    similarity = np.load(paths.partition / "similarity.npy")
    encoded = [
        {"task": row["task"], "num_samples": row["num_examples"], "num_tokens": 10}
        for row in read_json(paths.data / "tasks.json")
    ]
    write_json(paths.encoded / "tasks.json", encoded)
    point, needed = regime.plan_point(settings, SETTINGS, "base", paths, 1e-3, 2.0)
    assert [len(names) for names in point.parts.values()] == [1, 2, 1]
    assert [len(point.parts[kind][0]) for kind in ("joint", "random", "merit")] == [1, 8, 8]
    by_name = {run.name: run for run in needed}
    joint = by_name[point.parts["joint"][0][0]]
    assert joint.manifest["num_samples"] == sum(entry["num_samples"] for entry in encoded)
    assert joint.manifest["epochs"] == 2.0
    assert joint.training.optimizer.learning_rate == 1e-3
    from merit.core.similarity import pca
    from merit.methods import plan

    known = Evidence(encoded, np.empty((16, 0)), similarity, pca(similarity, 3).embedding)
    wanted = assign(plan(settings), known)[0]["merit-3d"]
    for group, name in enumerate(point.parts["merit"][0]):
        assert by_name[name].manifest["tasks"] == [t for t in wanted if wanted[t] == group]


def test_regime_wants_one_method_of_each_kind() -> None:
    regime.check_methods(synthetic.experiment(), SETTINGS)
    with pytest.raises(MeritError, match=r"studies\.regime\.random: 'merit-3d' is no Random"):
        regime.check_methods(
            synthetic.experiment(), SETTINGS.model_copy(update={"random": "merit-3d"})
        )


def test_the_weak_base_is_the_same_with_its_last_phase_cut() -> None:
    settings = synthetic.experiment()
    optimizer = Optimizer(learning_rate=1e-3, batch_size=4)
    phases = [
        Phase(name=name, data="labels", trainable=["vision"], num_steps=100, optimizer=optimizer)
        for name in ("first", "last")
    ]
    base = Base.model_construct(**(dict(settings.base) | {"phases": phases}))
    settings = settings.model_copy(update={"base": base})
    weak = weak_base.weakened(settings, 30)
    assert [phase.num_steps for phase in weak.base.phases] == [100, 30]
    assert [phase.num_steps for phase in settings.base.phases] == [100, 100]
    with pytest.raises(MeritError, match=r"weak_base_steps: found 100"):
        weak_base.weakened(settings, 100)
    without = settings.model_copy(update={"base": base.model_copy(update={"phases": []})})
    with pytest.raises(MeritError, match="loaded, not built"):
        weak_base.weakened(without, 10)
