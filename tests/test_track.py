"""MLflow shows what the records say: values, nesting, links, idempotence, kept ids, faults."""

from __future__ import annotations

import json
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
from merit.runs import flatten, keys, loss_by_epoch, runs
from tests.synthetic import build, experiment, write

mlflow = pytest.importorskip("mlflow")
# MLflow's own use of SQLAlchemy and others; every warning of ours stays an error
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:sqlalchemy"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:mlflow"),
]
SMALL = ("base", "joint-1ep", "soup-2", "merit-1d")
# soup-2-s1 shares joint-1ep-s1, which is trained once and shown once
MODELS = ["base", "joint-1ep-s1", "merit-1d-s1", "soup-2-s1"]
PARENT_OF = {
    "branch/joint-1ep-s1": "joint-1ep-s1",
    "branch/joint-1ep-s2": "soup-2-s1",
    "branch/merit-1d-s1-g0": "merit-1d-s1",
    "branch/merit-1d-s1-g1": "merit-1d-s1",
}
NUM_RUNS = 8
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
        figure = Path("reports/synthetic/figures/curves.png")
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


def test_models_are_runs_and_branches_lie_below_their_first_model(template: World) -> None:
    shown = template.runs()
    ids = template.ids()
    assert sorted(shown) == [*MODELS[:1], *sorted(PARENT_OF), *MODELS[1:]]
    for key, run in shown.items():
        parent = PARENT_OF.get(key)
        assert run.data.tags.get("mlflow.parentRunId") == (ids[parent] if parent else None)
        assert run.info.run_name == key.removeprefix("branch/")
        assert run.info.status == "FINISHED"
        assert run.data.params["training.optimizer.learning_rate"] == "0.001"


def test_every_model_links_to_its_branches(template: World) -> None:
    shown, ids = template.runs(), template.ids()
    soup = shown["soup-2-s1"]
    first, second = ids["branch/joint-1ep-s1"], ids["branch/joint-1ep-s2"]
    assert json.loads(soup.data.tags["merit.branches"]) == {
        "joint-1ep-s1": first,
        "joint-1ep-s2": second,
    }
    place = f"#/experiments/{soup.info.experiment_id}/runs"
    assert soup.data.tags[NOTE] == (
        f"{track.MODEL_NOTE}\n\nBranches: [joint-1ep-s1]({place}/{first}), "
        f"[joint-1ep-s2]({place}/{second})"
    )
    assert shown["base"].data.tags[NOTE] == track.MODEL_NOTE
    assert shown["branch/joint-1ep-s1"].data.tags["merit.models"] == "joint-1ep-s1, soup-2-s1"


def test_a_branch_carries_its_records(template: World) -> None:
    name, child = "merit-1d-s1-g1", template.runs()[G1]
    manifest = read_json(template.artifacts.branch(name) / "manifest.json")
    summary = read_json(template.artifacts.branch(name) / "summary.json")
    records = read_jsonl(template.artifacts.branch(name) / "records.jsonl")
    assert child.data.params["method.axes"] == "1"
    assert child.data.params["seed"] == "1"
    assert child.data.params["manifest.num_tokens"] == str(manifest["num_tokens"])
    assert child.data.params["manifest.training.optimizer.batch_size"] == "4"
    assert child.data.tags["merit.tasks"] == ", ".join(manifest["tasks"])
    for key in ("base_hash", "checkpoint_hash", "manifest_hash"):
        assert child.data.tags[f"merit.{key}"] == summary[key]
    assert child.data.tags["merit.partition_hash"] == manifest["partition_hash"]
    assert child.data.tags["merit.checkpoint"].endswith(
        f"branches/merit-1d-s1/{name}/model.safetensors"
    )
    assert "merit.failure" not in child.data.tags
    for metric in ("loss", "learning_rate", "gradient_norm", "num_tokens"):
        assert template.history(G1, metric) == [(row["step"], row[metric]) for row in records]
    assert child.data.metrics["tokens_per_second"] == 800.0
    assert child.data.metrics["displacement"] == summary["displacement"]
    # the timings: 0.5 s a step, 4 steps
    points = template.client.get_metric_history(child.info.run_id, "loss")
    assert max(p.timestamp for p in points) - min(p.timestamp for p in points) == 1500
    assert child.info.end_time - child.info.start_time == 1500
    assert read_json(artifact(child, f"manifests/{name}/manifest.json")) == manifest


def test_a_model_carries_scores_lineage_and_figures(template: World) -> None:
    model = template.runs()["merit-1d-s1"]
    scores = read_json(template.artifacts.evaluation / "scores.json")["scores"]["merit-1d-s1"]
    merge = read_json(template.artifacts.model("merit-1d-s1") / "merge.json")
    base = read_json(template.artifacts.base / "base.json")
    assert model.data.metrics["score/a"] == scores["a"]
    assert model.data.metrics["score/avg"] == (scores["a"] + scores["b"]) / 2
    assert model.data.metrics["displacement"] == merge["displacement"]
    assert model.data.params["num_branches"] == "2"
    assert model.data.params["num_tokens"] == str(merge["num_tokens"])
    assert model.data.tags["merit.checkpoint_hash"] == merge["checkpoint_hash"]
    assert model.data.tags["merit.checkpoint"].endswith("models/merit-1d-s1/model.safetensors")
    assert model.data.tags["merit.base_hash"] == base["base_hash"]
    assert artifact(model, "figures/curves.png").read_bytes() == b"png"
    assert artifact(model, "manifests/merit-1d-s1-g0/manifest.json").is_file()
    assert "final_loss" not in template.runs()["base"].data.metrics
    assert len(template.history("base", "loss")) == 4


def test_runs_that_trained_name_the_mixture(template: World) -> None:
    tasks = read_json(template.artifacts.mixture / "tasks.json")
    shown = template.runs()
    assert shown["base"].inputs.dataset_inputs == []
    found = {key: [one.dataset for one in run.inputs.dataset_inputs] for key, run in shown.items()}
    (mixture,) = found[G1]
    assert found == {key: [] if key == "base" else [mixture] for key in shown}
    assert mixture.name == "synthetic-mixture"
    assert len(mixture.digest) == 16
    assert json.loads(mixture.profile) == {
        "num_tasks": 8,
        "num_examples": sum(task["num_examples"] for task in tasks),
    }
    assert json.loads(mixture.source)["uri"].endswith("artifacts/synthetic/data")


def test_loss_by_epoch_by_hand() -> None:
    def rows(*pairs: tuple[float, float]) -> list[dict[str, float]]:
        return [{"epoch": epoch, "loss": loss} for epoch, loss in pairs]

    # N = 1 and 3; at 0.75 epochs the branches are at 3.0 and (4 + 2) / 2
    curve = loss_by_epoch(
        [rows((0.5, 4.0), (0.75, 3.0), (1.0, 2.0)), rows((0.5, 4.0), (1.0, 2.0))], [1, 3], 4
    )
    assert curve == [(2, 4.0), (3, 3.0), (4, 2.0)]
    # the longer branch goes on, the shorter keeps its last loss: (1 * 1 + 3 * 2) / 4
    curve = loss_by_epoch([rows((0.5, 4.0), (1.5, 1.0)), rows((0.5, 4.0), (1.0, 2.0))], [1, 3], 2)
    assert curve == [(1, 4.0), (2, (2.5 + 3 * 2.0) / 4), (3, (1.0 + 3 * 2.0) / 4)]
    assert loss_by_epoch([rows((1.0, 1.0)), []], [1, 1]) == []
    assert loss_by_epoch([], []) == []


def test_parent_curve_is_the_branches_mean(template: World) -> None:
    records = [
        read_jsonl(template.artifacts.branch(f"merit-1d-s1-g{k}") / "records.jsonl") for k in (0, 1)
    ]
    tokens = [rows[-1]["num_tokens"] for rows in records]
    curve = dict(template.history("merit-1d-s1", "loss_by_epoch"))
    assert sorted(curve) == list(range(25, 101))  # first record at a quarter of the epoch
    for i, step in enumerate((25, 50, 75, 100)):
        mean = sum(n * rows[i]["loss"] for n, rows in zip(tokens, records, strict=True)) / sum(
            tokens
        )
        assert curve[step] == pytest.approx(mean, rel=1e-12)
    joint = read_jsonl(template.artifacts.branch("joint-1ep-s1") / "records.jsonl")
    assert dict(template.history("joint-1ep-s1", "loss_by_epoch"))[100] == joint[-1]["loss"]


def test_flatten() -> None:
    settings = {
        "a": {"b": 1, "c": None},
        "l": ["x", "y"],
        "p": [{"n": 1}, {"n": 2}],
        "t": (0.9, 1.0),
    }
    assert flatten(settings) == {
        "a.b": "1",
        "l": "x, y",
        "p.0.n": "1",
        "p.1.n": "2",
        "t": "0.9, 1.0",
    }


def test_adding_a_method_leaves_the_other_runs_as_they_are(tmp_path: Path) -> None:
    build(tmp_path, methods=SMALL, num_records=2)
    artifacts = Artifacts("synthetic", tmp_path)
    before = {run.key: run for run in runs(experiment(methods=SMALL), artifacts)}
    after = {run.key: run for run in runs(experiment(), artifacts)}
    assert {key: after[key] for key in before} == before


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
    assert sorted(found) == [*MODELS[:1], *sorted(set(PARENT_OF) - {G1[:-1] + "0"}), *MODELS[1:]]
    assert found["soup-2-s1"].branches == ("branch/joint-1ep-s1", "branch/joint-1ep-s2")
    assert found["merit-1d-s1"].branches == (G1,)
    assert [p.key for p in found["merit-1d-s1"].points] == ["displacement"]  # half a curve is none


def swept() -> Experiment:
    """joint-1ep-s1, and a sweep of it over one other learning rate: joint-1ep-lr0.1-s1."""
    sweep = {"methods": ["joint-1ep"], "learning_rate": [0.001, 0.1]}
    methods = ("base", "joint-1ep")
    return experiment(methods=methods, benchmarks=("a", "b"), sweeps={"rates": sweep})


def test_runs_of_sweeps_are_shown(tmp_path: Path) -> None:
    settings, artifacts = swept(), Artifacts("synthetic", tmp_path)
    write(tmp_path, settings, num_records=2)
    name = "joint-1ep-lr0.1-s1"
    assert keys(settings) == {
        *("base", "joint-1ep-s1", "branch/joint-1ep-s1"),
        *(name, f"branch/{name}"),
    }
    found = {run.key: run for run in runs(settings, artifacts)}
    assert set(found) == keys(settings)
    for key in (name, f"branch/{name}"):
        assert found[key].params["training.optimizer.learning_rate"] == "0.1"
        assert found[key].params["method.name"] == "joint-1ep-lr0.1"
        assert found[key].params["method.may_diverge"] == "True"
    assert found["joint-1ep-s1"].params["training.optimizer.learning_rate"] == "0.001"
    assert {"score/a", "score/b", "score/avg"} <= {p.key for p in found[name].points}


def test_a_model_that_diverged_says_so(tmp_path: Path) -> None:
    settings, artifacts = swept(), Artifacts("synthetic", tmp_path)
    name, why = "joint-1ep-lr0.1-s1", "branch joint-1ep-lr0.1-s1: the loss is nan at step 3"
    write(tmp_path, settings, num_records=2, diverged=[name])
    found = {run.key: run for run in runs(settings, artifacts)}
    model, branch = found[name], found[f"branch/{name}"]
    assert (model.tags["merit.failure"], branch.tags["merit.failure"]) == (why, why)
    assert "merit.checkpoint" not in model.tags
    assert branch.tags["merit.checkpoint"] == ""
    assert model.points == []
    assert {p.key for p in branch.points} >= {"loss", "learning_rate"}  # up to there
    assert "displacement" not in {p.key for p in branch.points}
    assert "merit.failure" not in found["joint-1ep-s1"].tags


def test_values_that_are_no_numbers_stay_records(world: World) -> None:
    path = world.artifacts.branch("merit-1d-s1-g1") / "records.jsonl"
    rows = read_jsonl(path)
    rows[1]["gradient_norm"] = float("nan")
    write_jsonl(path, rows)
    world.sync()
    assert [step for step, _ in world.history(G1, "gradient_norm")] == [1, 3, 4]


# --- again --------------------------------------------------------------------------------------


def test_second_sync_writes_nothing(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    database = world.folder / "mlflow.db"
    before = database.read_bytes()
    assert world.sync() == {"unchanged": NUM_RUNS}
    assert database.read_bytes() == before
    assert "runs: 0 created, 0 updated, 0 deleted, 8 unchanged (" in capsys.readouterr().out


def retrain(world: World) -> list[dict[str, Any]]:
    """merit-1d-s1-g1 anew, in two steps instead of four and with another learning rate."""
    folder = world.artifacts.branch("merit-1d-s1-g1")
    rows = [row | {"loss": row["loss"] + 1} for row in read_jsonl(folder / "records.jsonl")[:2]]
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
    # the branch, its model with the curve, and the link of the other branch
    assert world.sync() == {"updated": 3, "unchanged": NUM_RUNS - 3}
    after, ids = world.runs()[G1], world.ids()
    assert {key for key in ids if ids[key] != before[key]} == {"merit-1d-s1", G1}
    assert world.history(G1, "loss") == [(row["step"], row["loss"]) for row in rows]
    assert after.data.metrics["loss"] == rows[-1]["loss"]
    assert after.data.params["manifest.training.optimizer.batch_size"] == "2"
    assert (after.data.tags[NOTE], after.data.tags["mine"]) == ("look at step 2", "1")
    assert after.data.tags["mlflow.parentRunId"] == ids["merit-1d-s1"]
    assert after.info.end_time - after.info.start_time == 500  # two steps of 0.5 s
    assert world.sync() == {"unchanged": NUM_RUNS}
    for path, data in old.items():  # and back: so is the old run
        path.write_bytes(data)
    assert world.sync()["updated"] == 3
    assert (world.ids()[G1], world.content()) == (before[G1], content)


def test_our_notes_follow_the_branches(world: World) -> None:
    shutil.rmtree(world.artifacts.branch("joint-1ep-s1"))
    world.client.set_tag(world.ids()["soup-2-s1"], NOTE, "my own words")
    world.sync()
    shown = world.runs()
    assert "branch/joint-1ep-s1" not in shown
    assert shown["soup-2-s1"].data.tags[NOTE] == "my own words"
    assert shown["joint-1ep-s1"].data.tags[NOTE] == track.MODEL_NOTE


def test_a_removed_method_goes_and_comes_back_with_its_ids(world: World) -> None:
    before, settings = world.ids(), world.settings
    world.settings = experiment(methods=("base", "soup-2"), benchmarks=("a", "b"))
    # joint-1ep, merit-1d and its branches go; what the soup shared now lies below the soup
    assert world.sync()["deleted"] == 4
    assert sorted(world.ids()) == [
        "base",
        "branch/joint-1ep-s1",
        "branch/joint-1ep-s2",
        "soup-2-s1",
    ]
    tags = world.runs()["branch/joint-1ep-s1"].data.tags
    assert tags["mlflow.parentRunId"] == before["soup-2-s1"]
    assert world.sync() == {"unchanged": 4}
    world.settings = settings
    world.sync()
    assert world.ids() == before


def test_sync_takes_up_a_killed_sync(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    log_batch, calls = mlflow.MlflowClient.log_batch, []
    retrain(world)

    def dies(self: Any, run_id: str, **items: Any) -> None:
        calls.append(run_id)
        if len(calls) == 4:
            raise KeyboardInterrupt
        log_batch(self, run_id, **items)

    monkeypatch.setattr(mlflow.MlflowClient, "log_batch", dies)
    with pytest.raises(KeyboardInterrupt):
        world.sync()
    monkeypatch.setattr(mlflow.MlflowClient, "log_batch", log_batch)
    world.sync()
    found = world.client.get_experiment_by_name("synthetic")
    assert len(world.client.search_runs([found.experiment_id])) == NUM_RUNS
    assert world.sync() == {"unchanged": NUM_RUNS}


def test_a_deleted_database_or_experiment_comes_back(world: World, empty_database: Path) -> None:
    content = world.content()
    found = world.client.get_experiment_by_name("synthetic")
    world.client.delete_experiment(found.experiment_id)
    assert world.sync() == {"unchanged": NUM_RUNS}
    # another file name only because a process keeps a connection to the file it has opened
    shutil.copy(empty_database, world.folder / "again.db")
    world.use(world.folder / "again.db")
    assert world.sync() == {"created": NUM_RUNS}
    assert world.content() == content


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
    ids = world.ids()
    shutil.rmtree(place / "mlruns")
    assert world.sync() == {"updated": NUM_RUNS}
    assert world.ids() == ids
    figure = artifact(world.runs()["base"], "figures/curves.png")
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
        ("sqlite:///{folder}/artifacts", "unable to open database file"),
        ("sqlite:///{folder}/corrupt.db", "not a database"),
        ("sqlite:///{folder}/corrupt.db/below.db", "corrupt.db"),
        ("http://127.0.0.1:9", "127.0.0.1"),
        ("nonsense://x", "nonsense"),
        ("mysql+nodriver://host/x", "nodriver"),
        ("sqlite:///{folder}/locked.db", "database is locked"),
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
    message = str(caught.value)
    assert message.startswith(f"{uri}: ")
    assert found in message
    assert world.sync(timeout=0.2, strict=False) == {}
    holder.close()
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith(f"MLflow at {uri} cannot be reached (")
    assert "results are complete" in line
    assert (world.folder / "mlflow.db").read_bytes() == before


def test_a_full_disk_does_not_stop_the_pipeline(
    world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device", "curves.png")

    monkeypatch.setattr(mlflow.MlflowClient, "log_artifact", full)
    retrain(world)
    world.sync(strict=False)
    assert "([Errno 28] No space left on device: 'curves.png');" in capsys.readouterr().err
    with pytest.raises(MeritError, match="No space left on device"):
        world.sync()


@pytest.mark.parametrize("strict", [True, False])
def test_broken_record_is_named(world: World, strict: bool) -> None:
    path = world.artifacts.branch("merit-1d-s1-g0") / "records.jsonl"
    path.write_text(path.read_text() + "{broken\n")
    with pytest.raises(MeritError, match=r"merit-1d-s1-g0/records\.jsonl, line 5: not valid JSON"):
        world.sync(strict=strict)


# --- the UI -------------------------------------------------------------------------------------


def test_the_ui_prints_links_and_listens_on_the_loopback(
    template: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    started: list[list[str]] = []
    monkeypatch.setattr("os.execv", lambda _, command: started.append(command))
    ui.serve(template.params, 5017)
    place = template.client.get_experiment_by_name("synthetic").experiment_id
    assert capsys.readouterr().out.splitlines() == [
        f"synthetic: http://127.0.0.1:5017/#/experiments/{place}/runs?"
        "workflowType=machine_learning&compareRunsMode=CHART",
        "Ctrl-C stops the server.",
    ]
    (command,) = started
    assert command[command.index("--host") + 1] == "127.0.0.1"
    assert command[command.index("--port") + 1] == "5017"
    assert command[command.index("--backend-store-uri") + 1] == template.params.tracking.uri


def test_the_ui_of_a_server_is_the_server(tmp_path: Path) -> None:
    params = Params(experiments=["x"], tracking=Tracking(uri="http://host:1"))
    with pytest.raises(MeritError, match="a server already: open http://host:1"):
        ui.serve(params, 5000)


def test_the_ui_needs_something_tracked(tmp_path: Path, empty_database: Path) -> None:
    for path in (tmp_path / "none.db", empty_database):
        params = Params(experiments=["x"], tracking=Tracking(uri=f"sqlite:///{path}"))
        with pytest.raises(MeritError, match="nothing has been tracked yet"):
            ui.serve(params, 0)
