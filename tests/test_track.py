"""MLflow shows what the records say: values, nesting, links, idempotence, faults."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from merit import track
from merit.config import Experiment, Params, Tracking
from merit.errors import MeritError
from merit.io.artifacts import Artifacts, read_json, read_jsonl, write_json, write_jsonl
from merit.io.locks import exclusive
from merit.run import ui
from merit.runs import loss_by_epoch, runs
from tests.synthetic import build, experiment, write

mlflow = pytest.importorskip("mlflow")
# MLflow's own use of SQLAlchemy and others; every warning of ours stays an error
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:sqlalchemy"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:mlflow"),
]
SMALL = ("base", "joint-1ep", "soup-2", "merit-1d")
# soup-2-s1 shares joint-1ep-s1, which is trained once and shown once
MODELS = ["joint-1ep-s1", "merit-1d-s1", "soup-2-s1"]
METHODS = ["joint-1ep", "merit-1d", "soup-2"]
PARENT_OF = {
    "base": None,
    **{f"method/{name}": None for name in METHODS},
    **{model: f"method/{name}" for model, name in zip(MODELS, METHODS, strict=True)},
    "branch/joint-1ep-s1": "joint-1ep-s1",
    "branch/joint-1ep-s2": "soup-2-s1",
    "branch/merit-1d-s1-g0": "merit-1d-s1",
    "branch/merit-1d-s1-g1": "merit-1d-s1",
}
NUM_RUNS = len(PARENT_OF)
NOTE = "mlflow.note.content"
G1 = "branch/merit-1d-s1-g1"


class World:
    """One artifacts tree, one database, and a client to look with."""

    def __init__(self, folder: Path, settings: Experiment) -> None:
        self.folder = folder
        self.settings = settings
        self.artifacts = Artifacts(settings.name, folder / "artifacts")
        self.use(folder / "mlflow.db")

    def use(self, database: Path) -> None:
        uri = f"sqlite:///{database}"
        self.params = Params(experiments=[self.settings.name], tracking=Tracking(uri=uri))
        self.client = mlflow.MlflowClient(tracking_uri=uri)

    def sync(self, **options: Any) -> dict[str, int]:
        return track.sync(self.params, [self.settings], **options)  # in its folder

    def runs(self) -> dict[str, mlflow.entities.Run]:
        found = self.client.get_experiment_by_name(self.settings.name)
        return {r.data.tags["merit.key"]: r for r in self.client.search_runs([found.experiment_id])}

    def ids(self) -> dict[str, str]:
        return {key: run.info.run_id for key, run in self.runs().items()}

    def history(self, key: str, metric: str) -> list[tuple[int, float]]:
        points = self.client.get_metric_history(self.runs()[key].info.run_id, metric)
        return sorted((p.step, p.value) for p in points)

    def content(self) -> dict[str, tuple[dict, dict]]:
        return {key: (run.data.params, run.data.metrics) for key, run in self.runs().items()}


@pytest.fixture(scope="module")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database without experiments; migrations cost seconds, so it is copied."""
    path = tmp_path_factory.mktemp("mlflow") / "empty.db"
    with track.open_store(f"sqlite:///{path}") as client:
        client.search_experiments()
    return path


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> World:
    """Synced once; not to be changed."""
    folder = tmp_path_factory.mktemp("synced")
    shutil.copy(empty_database, folder / "mlflow.db")
    settings = build(folder / "artifacts", methods=SMALL, benchmarks=("a", "b"), num_records=4)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        figure = Path("reports/synthetic/figures/pca.png")
        figure.parent.mkdir(parents=True)
        figure.write_bytes(b"png")
        world = World(folder, settings)
        assert world.sync() == {"created": NUM_RUNS}
    return world


@pytest.fixture
def world(tmp_path: Path, template: World, monkeypatch: pytest.MonkeyPatch) -> World:
    """A copy of the synced world."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(template.folder, tmp_path, dirs_exist_ok=True)
    return World(tmp_path, template.settings)


def artifact(run: mlflow.entities.Run, path: str) -> Path:
    return Path(run.info.artifact_uri.removeprefix("file://")) / path


# --- what is shown ------------------------------------------------------------------------------


def test_methods_have_models_and_these_have_branches(template: World) -> None:
    shown = template.runs()
    ids = template.ids()
    assert set(shown) == set(PARENT_OF)
    for key, run in shown.items():
        parent = PARENT_OF[key]
        assert run.data.tags.get("mlflow.parentRunId") == (ids[parent] if parent else None)
        assert run.info.status == "FINISHED"
        assert run.data.params["training.optimizer.learning_rate"] == "0.001"
    names = {key: run.info.run_name for key, run in shown.items()}
    assert len(set(names.values())) == NUM_RUNS
    assert [names[key] for key in ("method/joint-1ep", "joint-1ep-s1", "branch/joint-1ep-s1")] == [
        "joint-1ep",
        "joint-1ep, seed 1",
        "branch joint-1ep-s1",
    ]


def test_a_method_shows_the_means_of_its_seeds(tmp_path: Path) -> None:
    settings = build(tmp_path, methods=("base", "joint-1ep"), benchmarks=("a",), seeds=(1, 2))
    paths = Artifacts("synthetic", tmp_path)
    scores = read_json(paths.evaluation / "scores.json")
    scores["scores"] |= {"joint-1ep-s1": {"a": 40.0}, "joint-1ep-s2": {"a": 50.0}}
    write_json(paths.evaluation / "scores.json", scores)
    found = {run.key: run for run in runs(settings, paths)}
    points = {point.key: point.value for point in found["method/joint-1ep"].points}
    assert (points["a"], points["average"]) == (45.0, 45.0)
    losses = [read_jsonl(paths.branch(f"joint-1ep-s{s}") / "records.jsonl") for s in (1, 2)]
    assert points["training_loss"] == pytest.approx(sum(r[-1]["loss"] for r in losses) / 2)
    means = [
        merge["displacement"]
        for merge in (read_json(paths.model(f"joint-1ep-s{s}") / "merge.json") for s in (1, 2))
    ]
    assert points["displacement"] == pytest.approx(sum(means) / 2)
    newest = max(run.start for run in found.values())  # where MLflow's tables begin
    assert found["method/joint-1ep"].start >= newest - 1
    assert {p.key for p in found["joint-1ep-s2"].points} == {"a", "average", "displacement"}


def test_runs_carry_the_records(template: World) -> None:
    shown, paths, name = template.runs(), template.artifacts, "merit-1d-s1-g1"
    branch, model = shown[G1], shown["merit-1d-s1"]
    manifest = read_json(paths.branch(name) / "manifest.json")
    summary = read_json(paths.branch(name) / "summary.json")
    assert (branch.data.params["method.axes"], branch.data.params["seed"]) == ("1", "1")
    assert branch.data.params["manifest.num_tokens"] == str(manifest["num_tokens"])
    assert branch.data.params["manifest.training.optimizer.batch_size"] == "4"
    for key in ("base_hash", "checkpoint_hash", "manifest_hash"):
        assert branch.data.tags[f"merit.{key}"] == summary[key]
    records = read_jsonl(paths.branch(name) / "records.jsonl")
    for metric in ("loss", "learning_rate", "gradient_norm"):
        assert template.history(G1, metric) == [(row["step"], row[metric]) for row in records]
    assert branch.data.metrics["displacement"] == summary["displacement"]
    # the timings: 0.5 s a step, 4 steps
    points = template.client.get_metric_history(branch.info.run_id, "loss")
    assert max(p.timestamp for p in points) - min(p.timestamp for p in points) == 1500
    assert branch.info.end_time - branch.info.start_time == 1500
    assert read_json(artifact(branch, f"manifests/{name}/manifest.json")) == manifest

    scores = read_json(paths.evaluation / "scores.json")["scores"]["merit-1d-s1"]
    merge = read_json(paths.model("merit-1d-s1") / "merge.json")
    assert model.data.metrics["average"] == (scores["a"] + scores["b"]) / 2
    assert model.data.metrics["displacement"] == merge["displacement"]
    assert model.data.params["num_tokens"] == str(merge["num_tokens"])
    assert model.data.tags["merit.checkpoint"].endswith("models/merit-1d-s1/model.safetensors")
    for parent in ("base", "method/merit-1d"):
        assert artifact(shown[parent], "figures/pca.png").read_bytes() == b"png"
    assert len(template.history("base", "loss")) == 4

    assert shown["soup-2-s1"].data.tags["merit.branches"] == "joint-1ep-s1, joint-1ep-s2"
    assert shown["base"].inputs.dataset_inputs == []
    (mixture,) = (one.dataset for one in branch.inputs.dataset_inputs)
    tasks = read_json(paths.mixture / "tasks.json")
    num_examples = sum(task["num_examples"] for task in tasks)
    assert json.loads(mixture.profile) == {"num_tasks": 8, "num_examples": num_examples}


def test_loss_by_epoch_by_hand() -> None:
    def rows(*pairs: tuple[float, float]) -> list[dict[str, float]]:
        return [{"epoch": epoch, "loss": loss} for epoch, loss in pairs]

    # N = 1 and 3; at 0.75 epochs the branches are at 3.0 and (4 + 2) / 2
    curve = loss_by_epoch(
        [rows((0.5, 4.0), (0.75, 3.0), (1.0, 2.0)), rows((0.5, 4.0), (1.0, 2.0))], [1, 3], 4
    )
    assert curve == [(2, 4.0), (3, 3.0), (4, 2.0)]
    # the longer branch continues, the shorter keeps its last loss: (1 * 1 + 3 * 2) / 4
    curve = loss_by_epoch([rows((0.5, 4.0), (1.5, 1.0)), rows((0.5, 4.0), (1.0, 2.0))], [1, 3], 2)
    assert curve == [(1, 4.0), (2, (2.5 + 3 * 2.0) / 4), (3, (1.0 + 3 * 2.0) / 4)]
    assert loss_by_epoch([rows((1.0, 1.0)), []], [1, 1]) == []
    assert loss_by_epoch([], []) == []


def test_what_has_not_run_is_skipped(tmp_path: Path) -> None:
    settings = experiment(methods=(*SMALL, "joint-shrunk", "merit-3d"))
    artifacts = Artifacts("synthetic", tmp_path)
    assert runs(settings, artifacts) == []
    build(tmp_path, methods=SMALL, num_records=2)
    shutil.rmtree(artifacts.branch("merit-1d-s1-g0"))
    shutil.rmtree(artifacts.evaluation)
    shutil.rmtree(artifacts.model("soup-2-s1"))
    shutil.rmtree(artifacts.partition)  # as while it runs again
    found = {run.key: run for run in runs(settings, artifacts)}
    assert set(found) == set(PARENT_OF) - {G1[:-1] + "0"}
    assert found["merit-1d-s1"].tags["merit.branches"] == G1.removeprefix("branch/")
    points = found["method/merit-1d"].points
    assert [p.key for p in points] == ["displacement"]  # half a curve is none


@pytest.mark.parametrize("when", [-(2**31), 30, 7 * 10**9])  # 1901, 30 s of 1970, 2191
def test_files_may_be_of_any_time(tmp_path: Path, when: int) -> None:
    """MLflow takes no time before 1970; a clock may begin there, and files be dated before it."""
    settings = build(tmp_path, methods=SMALL, num_records=2)
    for path in tmp_path.rglob("*"):
        os.utime(path, (when, when))
    found = runs(settings, Artifacts("synthetic", tmp_path))
    assert {run.key for run in found} == set(PARENT_OF)
    times = [point.time for run in found for point in run.points]
    assert min(times + [run.start for run in found]) >= 0  # all are shown


def test_sweeps_and_what_diverged_are_shown(tmp_path: Path) -> None:
    """joint-1ep-s1, and a sweep of it over one other learning rate, at which it diverges."""
    sweep = {"methods": ["joint-1ep"], "learning_rate": [0.001, 0.1]}
    settings = experiment(methods=("base", "joint-1ep"), benchmarks=("a",), sweeps={"r": sweep})
    name = "joint-1ep-lr0.1-s1"
    write(tmp_path, settings, num_records=2, diverged=[name])
    found = {run.key: run for run in runs(settings, Artifacts("synthetic", tmp_path))}
    own = {"base", "method/joint-1ep", "joint-1ep-s1", "branch/joint-1ep-s1"}
    swept = {"method/joint-1ep-lr0.1", name, f"branch/{name}"}
    assert set(found) == own | swept
    model, branch = found[name], found[f"branch/{name}"]
    for run in (model, branch):
        assert run.params["training.optimizer.learning_rate"] == "0.1"
        assert "the loss is nan at step 3" in run.tags["merit.failure"]
    assert model.points == []
    assert "merit.checkpoint" not in model.tags
    assert {"loss"} < {p.key for p in branch.points}  # up to there
    assert "displacement" not in {p.key for p in branch.points}
    assert "merit.failure" not in found["joint-1ep-s1"].tags
    assert {"a", "average"} <= {p.key for p in found["joint-1ep-s1"].points}


# --- again --------------------------------------------------------------------------------------


def test_second_sync_writes_nothing(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    database = world.folder / "mlflow.db"
    before = database.read_bytes()
    assert world.sync() == {"unchanged": NUM_RUNS}
    assert database.read_bytes() == before
    assert "runs: 0 created, 0 updated, 0 deleted, 11 unchanged (" in capsys.readouterr().out


def retrain(world: World) -> list[dict[str, Any]]:
    """merit-1d-s1-g1 again, in two steps instead of four and with another learning rate."""
    folder = world.artifacts.branch("merit-1d-s1-g1")
    rows = [row | {"loss": row["loss"] + 1} for row in read_jsonl(folder / "records.jsonl")[:2]]
    rows[0]["gradient_norm"] = float("nan")  # no number: it stays a record
    write_jsonl(folder / "records.jsonl", rows)
    write_json(folder / "summary.json", read_json(folder / "summary.json") | {"num_steps": 2})
    manifest = read_json(folder / "manifest.json")
    manifest["training"]["optimizer"]["batch_size"] = 2
    write_json(folder / "manifest.json", manifest)
    return rows


def test_a_changed_record_is_logged_again_with_what_users_gave_its_run(world: World) -> None:
    before, content = world.ids(), world.content()
    folder = world.artifacts.branch("merit-1d-s1-g1")
    old = {path: path.read_bytes() for path in folder.iterdir()}
    world.client.set_tag(before[G1], NOTE, "look at step 2")
    world.client.set_tag(before[G1], "mine", "1")
    rows = retrain(world)
    # the branch and its method with the curve, below which the model comes to lie
    assert world.sync() == {"updated": 3, "unchanged": NUM_RUNS - 3}
    after, ids = world.runs()[G1], world.ids()
    assert {key for key in ids if ids[key] != before[key]} == {"method/merit-1d", G1}
    assert world.history(G1, "loss") == [(row["step"], row["loss"]) for row in rows]
    assert [step for step, _ in world.history(G1, "gradient_norm")] == [2]
    assert after.data.params["manifest.training.optimizer.batch_size"] == "2"
    assert (after.data.tags[NOTE], after.data.tags["mine"]) == ("look at step 2", "1")
    assert after.data.tags["mlflow.parentRunId"] == ids["merit-1d-s1"]
    assert after.info.end_time - after.info.start_time == 500  # two steps of 0.5 s
    assert world.sync() == {"unchanged": NUM_RUNS}
    for path, data in old.items():
        path.write_bytes(data)
    assert world.sync()["updated"] == 3
    assert world.content() == content


def test_a_removed_method_goes_and_comes_back(world: World) -> None:
    before, content, settings = world.ids(), world.content(), world.settings
    world.settings = experiment(methods=("base", "soup-2"), benchmarks=("a", "b"))
    # joint-1ep, merit-1d and its branches go; what the soup shared now lies below the soup
    assert world.sync()["deleted"] == 6
    assert sorted(world.ids()) == [
        "base",
        "branch/joint-1ep-s1",
        "branch/joint-1ep-s2",
        "method/soup-2",
        "soup-2-s1",
    ]
    tags = world.runs()["branch/joint-1ep-s1"].data.tags
    assert tags["mlflow.parentRunId"] == before["soup-2-s1"]
    assert world.sync() == {"unchanged": 5}
    world.settings = settings
    assert world.sync()["created"] == 6
    assert world.content() == content


def test_sync_takes_up_a_killed_sync(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    log_batch, calls = mlflow.MlflowClient.log_batch, []
    retrain(world)

    def dies(self: Any, run_id: str, *items: Any) -> None:
        calls.append(run_id)
        if len(calls) == 2:
            raise KeyboardInterrupt
        log_batch(self, run_id, *items)

    monkeypatch.setattr(mlflow.MlflowClient, "log_batch", dies)
    with pytest.raises(KeyboardInterrupt):
        world.sync()
    monkeypatch.setattr(mlflow.MlflowClient, "log_batch", log_batch)
    world.sync()
    found = world.client.get_experiment_by_name("synthetic")
    assert len(world.client.search_runs([found.experiment_id])) == NUM_RUNS
    assert world.sync() == {"unchanged": NUM_RUNS}


def test_a_moved_clone_and_deleted_artifacts_come_back(
    template: World, empty_database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(template.folder, tmp_path / "a", ignore=shutil.ignore_patterns("ml*"))
    shutil.copy(empty_database, tmp_path / "a" / "mlflow.db")
    monkeypatch.chdir(tmp_path / "a")
    assert World(tmp_path / "a", template.settings).sync() == {"created": NUM_RUNS}
    place = (tmp_path / "a").rename(tmp_path / "b")
    monkeypatch.chdir(place)
    world = World(place, template.settings)
    assert world.sync() == {"updated": NUM_RUNS}
    assert world.content() == template.content()
    shutil.rmtree(place / "mlruns")
    world.sync()
    assert world.content() == template.content()
    figure = artifact(world.runs()["base"], "figures/pca.png")
    assert figure.is_relative_to(place)
    assert figure.read_bytes() == b"png"
    assert world.sync() == {"unchanged": NUM_RUNS}
    assert not (tmp_path / "a").exists()


def test_one_sync_at_a_time(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    """Two would create every run twice."""
    retrain(world)
    with exclusive(world.folder / "artifacts" / "mlflow", "it is tested"):
        with pytest.raises(MeritError, match=r"artifacts/mlflow: MLflow is being written by proc"):
            world.sync()
        assert world.sync(strict=False) == {}
    assert "MLflow is being written" in capsys.readouterr().err
    assert world.sync()["updated"] == 3


# --- faults -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("uri", "found"),
    [
        ("sqlite:///file:{folder}/mlflow.db?mode=ro&uri=true", "cannot be used"),
        ("sqlite:///{folder}/corrupt.db", "not a database"),
        ("sqlite:///{folder}/locked.db", "database is locked"),
        ("http://127.0.0.1:9", "127.0.0.1"),
    ],
)
def test_unusable_stores(
    world: World,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    uri: str,
    found: str,
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    retrain(world)
    (world.folder / "corrupt.db").write_bytes(b"not a database at all, but long enough" * 100)
    holder = sqlite3.connect(world.folder / "locked.db", isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    uri = uri.format(folder=world.folder)
    world.params = Params(experiments=["synthetic"], tracking=Tracking(uri=uri))
    before = (world.folder / "mlflow.db").read_bytes()
    with pytest.raises(MeritError) as caught:
        world.sync(timeout=0.2)
    assert str(caught.value).startswith(f"{uri}: ")
    assert found in str(caught.value)
    assert world.sync(timeout=0.2, strict=False) == {}
    holder.close()
    (line,) = capfd.readouterr().err.splitlines()
    assert uri in line
    assert (world.folder / "mlflow.db").read_bytes() == before


def test_a_broken_record_is_named_although_not_strict(world: World) -> None:
    path = world.artifacts.branch("merit-1d-s1-g0") / "records.jsonl"
    path.write_text(path.read_text() + "{broken\n")
    with pytest.raises(MeritError, match=r"merit-1d-s1-g0/records\.jsonl, line 5"):
        world.sync(strict=False)


# --- the UI -------------------------------------------------------------------------------------


def test_the_ui_links_to_what_is_tracked_on_the_loopback(
    template: World,
    empty_database: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    started: list[list[str]] = []
    monkeypatch.setattr("os.execv", lambda _, command: started.append(command))
    ui.serve(template.params, 5017)
    number = template.client.get_experiment_by_name("synthetic").experiment_id
    assert f"http://127.0.0.1:5017/#/experiments/{number}/runs?" in capsys.readouterr().out
    (command,) = started
    for option, value in (
        ("--host", "127.0.0.1"),
        ("--port", "5017"),
        ("--backend-store-uri", template.params.tracking.uri),
    ):
        assert command[command.index(option) + 1] == value
    for uri in (f"sqlite:///{empty_database}", "sqlite:////no/such.db", "http://host:1"):
        params = Params(experiments=["x"], tracking=Tracking(uri=uri))
        with pytest.raises(MeritError, match=uri):
            ui.serve(params, 0)
