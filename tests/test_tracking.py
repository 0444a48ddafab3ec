"""MLflow shows what the records say: values, nesting, idempotence, rebuild, live, faults."""

from __future__ import annotations

import json
import shutil
import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from synthetic import build, experiment

from merit.config import Experiment, Params, Tracking
from merit.errors import MeritError
from merit.io import runs, tracking
from merit.io.artifacts import Artifacts, read_json, read_jsonl, write_json, write_jsonl

mlflow = pytest.importorskip("mlflow")
# MLflow's own use of SQLAlchemy and others; every warning of ours stays an error
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:sqlalchemy"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:mlflow"),
]
# parents: base, joint-1ep-s1, soup-2-s1, merit-1d-s1; children: 1 + 2 + 2
SMALL = ("base", "joint-1ep", "soup-2", "merit-1d")
NUM_RUNS = 4 + 5


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared database without experiments; migrations cost seconds, so it is copied."""
    path = tmp_path_factory.mktemp("mlflow") / "empty.db"
    tracking.prepare(f"sqlite:///{path}", [])
    return path


class World:
    """One artifacts tree, one database, and a client to look with."""

    def __init__(self, folder: Path, database: Path, settings: Experiment) -> None:
        self.folder = folder
        self.settings = settings
        self.artifacts = Artifacts(settings.name, folder / "artifacts")
        self.use(database)

    def use(self, database: Path) -> None:
        uri = f"sqlite:///{database}"
        self.params = Params(experiments=[self.settings.name], tracking=Tracking(uri=uri))
        self.client = mlflow.MlflowClient(tracking_uri=uri)

    def sync(self) -> tracking.Counts:
        return tracking.sync(self.params, [self.settings], root=self.artifacts.root)

    def runs(self) -> dict[str, mlflow.entities.Run]:
        found = self.client.get_experiment_by_name(self.settings.name)
        return {r.data.tags["merit.key"]: r for r in self.client.search_runs([found.experiment_id])}

    def history(self, key: str, metric: str) -> list[tuple[int, float]]:
        points = self.client.get_metric_history(self.runs()[key].info.run_id, metric)
        return sorted((p.step, p.value) for p in points)


@pytest.fixture
def world(tmp_path: Path, empty_database: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    monkeypatch.chdir(tmp_path)
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    settings = build(tmp_path / "artifacts", methods=SMALL, benchmarks=("a", "b"), num_records=4)
    return World(tmp_path, tmp_path / "mlflow.db", settings)


# --- what is shown ------------------------------------------------------------------------------


def test_runs_carry_the_records(world: World) -> None:
    figure = Path("reports/synthetic/figures/curves.png")
    figure.parent.mkdir(parents=True)
    figure.write_bytes(b"png")
    assert world.sync() == tracking.Counts(created=NUM_RUNS)

    shown = world.runs()
    # soup-2-s1 shares joint-1ep-s1: a child of both, under one branch tag
    assert sorted(shown) == [
        "base",
        "joint-1ep-s1",
        "joint-1ep-s1/joint-1ep-s1",
        "merit-1d-s1",
        "merit-1d-s1/merit-1d-s1-g0",
        "merit-1d-s1/merit-1d-s1-g1",
        "soup-2-s1",
        "soup-2-s1/joint-1ep-s1",
        "soup-2-s1/joint-1ep-s2",
    ]
    for key, run in shown.items():
        parent = key.split("/")[0]
        expected = shown[parent].info.run_id if "/" in key else None
        assert run.data.tags.get("mlflow.parentRunId") == expected
        assert run.info.run_name == key.split("/")[-1]
        assert run.info.status == "FINISHED"
        assert run.data.params["training.optimizer.learning_rate"] == "0.001"

    branch = "merit-1d-s1-g1"
    child = shown[f"merit-1d-s1/{branch}"]
    manifest = read_json(world.artifacts.manifest(branch))
    summary = read_json(world.artifacts.branch(branch) / "summary.json")
    records = read_jsonl(world.artifacts.branch(branch) / "records.jsonl")
    assert child.data.params["method.axes"] == "1"
    assert child.data.params["manifest.num_tokens"] == str(manifest["num_tokens"])
    assert child.data.tags["merit.tasks"] == ", ".join(manifest["tasks"])
    for name in ("base_hash", "checkpoint_hash"):
        assert child.data.tags[f"merit.{name}"] == summary[name]
    assert child.data.tags["merit.partition_hash"] == manifest["partition_hash"]
    assert child.data.tags["merit.checkpoint"].endswith(f"branches/{branch}/model.safetensors")
    for metric in ("loss", "learning_rate", "gradient_norm", "num_tokens"):
        expected_points = [(row["step"], row[metric]) for row in records]
        assert world.history(child.data.tags["merit.key"], metric) == expected_points
    assert child.data.metrics["tokens_per_second"] == 800.0
    assert child.data.metrics["displacement"] == summary["displacement"]
    # timing.jsonl: 0.5 s a step
    points = world.client.get_metric_history(child.info.run_id, "loss")
    assert max(p.timestamp for p in points) - min(p.timestamp for p in points) == 1500
    stored = Path(child.info.artifact_uri.removeprefix("file://"))
    assert json.loads((stored / "manifest.json").read_text()) == manifest

    model = shown["merit-1d-s1"]
    scores = read_json(world.artifacts.evaluation / "scores.json")["scores"]["merit-1d-s1"]
    assert model.data.metrics["score/a"] == scores["a"]
    assert model.data.metrics["score/avg"] == (scores["a"] + scores["b"]) / 2
    merge = read_json(world.artifacts.model("merit-1d-s1") / "merge.json")
    assert model.data.metrics["displacement"] == merge["displacement"]
    stored = Path(model.info.artifact_uri.removeprefix("file://"))
    assert (stored / "figures" / "curves.png").read_bytes() == b"png"
    table = (stored / "partition.csv").read_text().splitlines()
    assert table[0] == "branch,group,task"
    assert len(table) == 1 + 8
    assert f"{branch},1,{manifest['tasks'][0]}" in table


def test_loss_by_epoch_by_hand() -> None:
    def rows(*pairs: tuple[float, float]) -> list[dict[str, float]]:
        return [{"epoch": epoch, "loss": loss} for epoch, loss in pairs]

    # N = 1 and 3; at 0.75 epochs the branches are at 3.0 and (4 + 2) / 2
    curve = runs.loss_by_epoch(
        [rows((0.5, 4.0), (0.75, 3.0), (1.0, 2.0)), rows((0.5, 4.0), (1.0, 2.0))], [1, 3], 4
    )
    assert curve == [(2, 4.0), (3, 3.0), (4, 2.0)]
    # the longer branch goes on, the shorter keeps its last loss: (1 * 1 + 3 * 2) / 4
    curve = runs.loss_by_epoch(
        [rows((0.5, 4.0), (1.5, 1.0)), rows((0.5, 4.0), (1.0, 2.0))], [1, 3], 2
    )
    assert curve == [(1, 4.0), (2, (2.5 + 3 * 2.0) / 4), (3, (1.0 + 3 * 2.0) / 4)]
    assert runs.loss_by_epoch([rows((1.0, 1.0)), []], [1, 1]) == []
    assert runs.loss_by_epoch([], []) == []


def test_parent_curve_is_the_branches_mean(world: World) -> None:
    world.sync()
    records = [
        read_jsonl(world.artifacts.branch(f"merit-1d-s1-g{k}") / "records.jsonl") for k in (0, 1)
    ]
    tokens = [rows[-1]["num_tokens"] for rows in records]
    curve = dict(world.history("merit-1d-s1", "loss_by_epoch"))
    assert sorted(curve) == list(range(25, 101))  # first record at a quarter of the epoch
    for i, step in enumerate((25, 50, 75, 100)):
        mean = sum(n * rows[i]["loss"] for n, rows in zip(tokens, records, strict=True)) / sum(
            tokens
        )
        assert curve[step] == pytest.approx(mean, rel=1e-12)
    joint = read_jsonl(world.artifacts.branch("joint-1ep-s1") / "records.jsonl")
    assert dict(world.history("joint-1ep-s1", "loss_by_epoch"))[100] == joint[-1]["loss"]


def test_flatten() -> None:
    settings = {
        "a": {"b": 1, "c": None},
        "l": ["x", "y"],
        "p": [{"n": 1}, {"n": 2}],
        "t": (0.9, 1.0),
    }
    assert runs.flatten(settings) == {
        "a.b": "1",
        "l": "x, y",
        "p.0.n": "1",
        "p.1.n": "2",
        "t": "0.9, 1.0",
    }


def test_adding_a_method_leaves_the_other_runs_as_they_are(tmp_path: Path) -> None:
    build(tmp_path, methods=SMALL, num_records=2)
    artifacts = Artifacts("synthetic", tmp_path)
    before = {r.key: r.content_hash for r in runs.runs(experiment(methods=SMALL), artifacts)}
    after = {r.key: r.content_hash for r in runs.runs(experiment(), artifacts)}
    assert before.items() <= after.items()


def test_what_has_not_run_is_skipped(tmp_path: Path) -> None:
    settings = experiment(methods=(*SMALL, "joint-shrunk", "merit-3d"))
    artifacts = Artifacts("synthetic", tmp_path)
    assert runs.runs(settings, artifacts) == []
    build(tmp_path, methods=SMALL, num_records=2)
    shutil.rmtree(artifacts.branch("merit-1d-s1-g0"))
    shutil.rmtree(artifacts.evaluation)
    shutil.rmtree(artifacts.model("soup-2-s1"))
    found = {run.key: run for run in runs.runs(settings, artifacts)}
    assert "merit-1d-s1/merit-1d-s1-g0" not in found
    assert "merit-1d-s1/merit-1d-s1-g1" in found
    assert "soup-2-s1" in found  # its branches exist
    assert not any(key.startswith(("merit-3d", "joint-shrunk")) for key in found)
    assert [p.key for p in found["merit-1d-s1"].points()] == [
        "displacement"
    ]  # half a curve is none


# --- again --------------------------------------------------------------------------------------


def test_second_sync_writes_nothing(world: World) -> None:
    world.sync()
    database = world.folder / "mlflow.db"
    before = database.read_bytes()
    assert world.sync() == tracking.Counts(unchanged=NUM_RUNS)
    assert database.read_bytes() == before


def test_changes_reach_their_runs_only(world: World) -> None:
    scores = world.artifacts.evaluation / "scores.json"
    table = read_json(scores)
    scores.unlink()
    world.sync()
    before = {key: run.info.run_id for key, run in world.runs().items()}
    assert "score/a" not in world.runs()["base"].data.metrics

    # scores arrive: four parents updated in place
    write_json(scores, table)
    assert world.sync() == tracking.Counts(updated=4, unchanged=5)
    assert {key: run.info.run_id for key, run in world.runs().items()} == before
    assert world.runs()["base"].data.metrics["score/a"] == table["scores"]["base"]["a"]

    # a branch is trained again: its run and its parent's curve are replaced, its sister re-attached
    path = world.artifacts.branch("merit-1d-s1-g1") / "records.jsonl"
    rows = [row | {"loss": row["loss"] + 1} for row in read_jsonl(path)]
    write_jsonl(path, rows)
    assert world.sync() == tracking.Counts(created=2, updated=1, unchanged=6)
    shown = world.runs()
    assert len(shown) == NUM_RUNS
    assert world.history("merit-1d-s1/merit-1d-s1-g1", "loss") == [
        (r["step"], r["loss"]) for r in rows
    ]
    for k in (0, 1):
        tags = shown[f"merit-1d-s1/merit-1d-s1-g{k}"].data.tags
        assert tags["mlflow.parentRunId"] == shown["merit-1d-s1"].info.run_id
    assert world.sync() == tracking.Counts(unchanged=NUM_RUNS)

    # a method that is no longer asked for disappears, although its outputs still lie there
    world.settings = experiment(methods=("base", "joint-1ep"), benchmarks=("a", "b"))
    assert world.sync() == tracking.Counts(deleted=6, unchanged=3)
    assert sorted(world.runs()) == ["base", "joint-1ep-s1", "joint-1ep-s1/joint-1ep-s1"]


def test_sync_takes_up_a_killed_sync(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    put = tracking._View._log
    calls = []

    def dies(self: tracking._View, run_id: str, points: list, params: dict, tags: dict) -> None:
        calls.append(run_id)
        if len(calls) == 3:
            put(self, run_id, points[:1], params, {})
            raise KeyboardInterrupt
        put(self, run_id, points, params, tags)

    monkeypatch.setattr(tracking._View, "_log", dies)
    with pytest.raises(KeyboardInterrupt):
        world.sync()
    monkeypatch.undo()
    monkeypatch.chdir(world.folder)
    assert world.sync() == tracking.Counts(created=NUM_RUNS - 3, updated=1, unchanged=2)
    assert len(world.runs()) == NUM_RUNS


def test_deleted_database_is_rebuilt(world: World, empty_database: Path) -> None:
    def content() -> dict[str, tuple[dict, dict, list]]:
        return {
            key: (
                run.data.params,
                run.data.metrics,
                sorted(run.data.tags.items() - {("mlflow.parentRunId", parent_of(run))}),
            )
            for key, run in world.runs().items()
        }

    def parent_of(run: mlflow.entities.Run) -> str | None:
        return run.data.tags.get("mlflow.parentRunId")

    world.sync()
    first = content()
    (world.folder / "mlflow.db").unlink()
    # another file name only because a process keeps a connection to the file it has opened
    shutil.copy(empty_database, world.folder / "again.db")
    world.use(world.folder / "again.db")
    assert world.sync() == tracking.Counts(created=NUM_RUNS)
    assert content() == first


# --- live ---------------------------------------------------------------------------------------


def test_follow_shows_running_branches_and_ends_with_the_records(world: World) -> None:
    branch = "merit-1d-s1-g1"
    folder = world.artifacts.branch(branch)
    key = f"merit-1d-s1/{branch}"
    shutil.move(folder, world.folder / "kept")
    records = read_jsonl(world.folder / "kept" / "records.jsonl")
    timing = read_jsonl(world.folder / "kept" / "timing.jsonl")
    lines = [json.dumps(row | more) + "\n" for row, more in zip(records, timing, strict=True)]
    live = runs.live_file(world.artifacts, branch)
    live.parent.mkdir()
    live.write_text(lines[0] + lines[1][:20])  # the second line is not complete yet
    abandoned = runs.live_file(world.artifacts, "joint-1ep-s2")
    shutil.rmtree(world.artifacts.branch("joint-1ep-s2"))
    abandoned.write_text(lines[0])

    stop = threading.Event()
    follower = threading.Thread(
        target=tracking.follow,
        args=(world.params, [world.settings]),
        kwargs={"stop": stop, "root": world.artifacts.root, "poll": 0.1},
    )
    follower.start()
    try:
        run = _wait(world, key, 1)
        assert run.info.status == "RUNNING"
        live.write_text("".join(lines[:3]))
        assert _wait(world, key, 3).info.run_id == run.info.run_id
        shutil.move(world.folder / "kept", folder)
        live.unlink()
    finally:
        stop.set()
        follower.join()
    shown = world.runs()
    assert shown[key].info.run_id == run.info.run_id  # completed, not replaced
    assert shown[key].info.status == "FINISHED"
    assert world.history(key, "loss") == [(row["step"], row["loss"]) for row in records]
    assert shown["soup-2-s1/joint-1ep-s2"].info.status == "KILLED"
    counts = world.sync()
    assert counts == tracking.Counts(unchanged=NUM_RUNS - 1)  # the abandoned branch has no records


def _wait(world: World, key: str, num_points: int) -> mlflow.entities.Run:
    deadline = time.monotonic() + 15
    while time.monotonic() < deadline:
        exists = world.client.get_experiment_by_name(world.settings.name)
        run = world.runs().get(key) if exists else None
        if run and len(world.history(key, "loss")) == num_points:
            return run
        time.sleep(0.05)
    raise AssertionError(f"{key} never had {num_points} points")


# --- faults -------------------------------------------------------------------------------------


def test_locked_database(world: World, capfd: pytest.CaptureFixture[str]) -> None:
    holder = sqlite3.connect(world.folder / "mlflow.db", isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    start = time.monotonic()
    try:
        with pytest.raises(MeritError) as caught:
            tracking.sync(world.params, [world.settings], root=world.artifacts.root, timeout=0.2)
    finally:
        holder.close()
    assert time.monotonic() - start < 3
    message = str(caught.value)
    assert message.startswith(f"{world.params.tracking.uri}: ")
    assert "database is locked" in message
    assert "another process holds the database" in message
    assert "No result is lost" in message
    assert "Traceback" not in capfd.readouterr().err
    assert world.sync().created == NUM_RUNS  # and once it is free, everything is there


def test_follow_outlives_a_lock(world: World, capfd: pytest.CaptureFixture[str]) -> None:
    stop = threading.Event()
    result: list[tracking.Counts] = []
    holder = sqlite3.connect(
        world.folder / "mlflow.db", isolation_level=None, check_same_thread=False
    )
    holder.execute("BEGIN EXCLUSIVE")
    options = {"stop": stop, "root": world.artifacts.root, "poll": 0.05, "timeout": 0.05}
    follower = threading.Thread(
        target=lambda: result.append(tracking.follow(world.params, [world.settings], **options))
    )
    follower.start()
    time.sleep(0.6)
    holder.close()
    stop.set()
    follower.join()
    assert result[0].created == NUM_RUNS
    assert capfd.readouterr().err.count("will try again") == 1


@pytest.mark.parametrize(
    ("uri", "found", "to_do"),
    [
        ("sqlite:///file:{folder}/mlflow.db?mode=ro&uri=true", "readonly", "make the file and its"),
        ("sqlite:///{folder}/artifacts", "unable to open database file", "check `tracking.uri`"),
        ("sqlite:///{folder}/corrupt.db", "not a database", "the file is damaged: delete it"),
        ("sqlite:///{folder}/corrupt.db/below.db", "corrupt.db", "check `tracking.uri`"),
        ("http://127.0.0.1:9", "127.0.0.1", "start the server"),
        ("nonsense://x", "nonsense", "check `tracking.uri`"),
    ],
)
def test_unusable_stores(
    world: World, monkeypatch: pytest.MonkeyPatch, uri: str, found: str, to_do: str
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    (world.folder / "corrupt.db").write_bytes(b"not a database at all, but long enough" * 100)
    uri = uri.format(folder=world.folder)
    before = (world.folder / "mlflow.db").read_bytes()
    for act in (
        lambda: tracking.prepare(uri, ["synthetic"], timeout=1),
        lambda: tracking.sync(
            Params(experiments=["synthetic"], tracking=Tracking(uri=uri)),
            [world.settings],
            root=world.artifacts.root,
            timeout=1,
        ),
    ):
        with pytest.raises(MeritError) as caught:
            act()
        message = str(caught.value)
        assert message.startswith(f"{uri}: ")
        assert found in message
        assert to_do in message
    assert (world.folder / "mlflow.db").read_bytes() == before


def test_broken_record_is_named(world: World) -> None:
    path = world.artifacts.branch("merit-1d-s1-g0") / "records.jsonl"
    path.write_text(path.read_text() + "{broken\n")
    with pytest.raises(MeritError, match=r"merit-1d-s1-g0/records\.jsonl, line 5: not valid JSON"):
        world.sync()


def test_prepare_creates_each_experiment_once(tmp_path: Path, empty_database: Path) -> None:
    path = tmp_path / "mlflow.db"
    shutil.copy(empty_database, path)
    uri = f"sqlite:///{path}"
    tracking.prepare(uri, ["one", "two"])
    tracking.prepare(uri, ["two", "one"])
    client = mlflow.MlflowClient(tracking_uri=uri)
    names = sorted(e.name for e in client.search_experiments())
    assert names == ["Default", "one", "two"]
    client.delete_experiment(client.get_experiment_by_name("one").experiment_id)
    tracking.prepare(uri, ["one"])
    assert client.get_experiment_by_name("one").lifecycle_stage == "active"
    assert (
        client.get_experiment_by_name("one").artifact_location == (tmp_path / "mlruns/one").as_uri()
    )
