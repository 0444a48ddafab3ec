"""What the studies that train or score share: many runs and many models, in worker processes.

Whatever is finished is kept under artifacts/<experiment>/studies/<study>, filed with the hash of
all that decides it: a study that was stopped goes on where it was.
"""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, as_completed, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from eval.benchmarks import benchmark, engine_of
from eval.engine import ScoringEngine
from eval.lm_engine import task_file
from eval.stages.generate import answer, stored_scores
from eval.studies.compare import Scores
from merit.config import Experiment, Training
from merit.data.encode import Encoded
from merit.errors import MeritError
from merit.io.artifacts import Artifacts, file_hash, read_json, value_hash, write_json
from merit.progress import Progress

if TYPE_CHECKING:
    import torch

Tensors = Mapping[str, "torch.Tensor"]


def study_folder(paths: Artifacts, study: str) -> Path:
    """Where a study keeps its runs and answers."""
    return paths.folder / "studies" / study


# --- training ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Run:
    """One training run from `paths.base`, on the tasks of a manifest (docs/formats.md)."""

    name: str  # unique in the study
    paths: Artifacts  # whose base and encoded mixture are used
    manifest: dict[str, Any]
    training: Training

    @property
    def num_examples(self) -> int:
        """Examples that the run sees, epochs counted: what its time is proportional to."""
        return round(self.manifest["num_samples"] * self.manifest["epochs"])

    @property
    def key(self) -> str:
        """Hash of all that decides the result."""
        return value_hash(
            [
                file_hash(self.paths.base / "model.safetensors"),
                _arrays_hash(self.paths.encoded),
                self.manifest,
                self.training.model_dump(mode="json"),
            ]
        )


@dataclass(frozen=True)
class Trained:
    """What a run left: the trained tensors under the base's names, or why there are none.

    `failure` is set, and nothing else, where the training did not stay finite.
    """

    path: Path
    num_tokens: int  # all that its manifest's tasks hold, times the epochs
    num_loss_tokens: int  # those of them that bear the loss
    num_samples: int
    final_loss: float | None
    displacement: float | None
    failure: str | None


def train_runs(runs: Sequence[Run], folder: Path, workers: int, label: str) -> dict[str, Trained]:
    """Train what `folder` does not hold yet, the longest first; every run's result by its name.

    Raises MeritError where an input is broken or a worker dies; a run whose loss or parameters
    become infinite is a result (`Trained.failure`), since a sweep is to find out where that is.
    """
    if len({run.name for run in runs}) != len(runs):
        raise ValueError("two runs have one name")
    folder.mkdir(parents=True, exist_ok=True)
    keys = {run.name: run.key for run in runs}
    todo = [run for run in runs if not _holds(_record(folder, run.name), keys[run.name])]
    todo.sort(key=lambda run: (-run.num_examples, run.name))
    total = sum(run.num_examples for run in todo)
    with Progress(f"{label}, examples", total) as progress, _pool(workers) as pool:
        jobs = {pool.submit(_train, run, folder, keys[run.name]): run for run in todo}
        for job in as_completed(jobs):
            job.result()
            progress.advance(jobs[job].num_examples)
    return {run.name: _trained(folder, run.name) for run in runs}


def _train(run: Run, folder: Path, key: str) -> None:
    """One run, in a worker: <name>.safetensors, then <name>.json, which says that it is whole."""
    import torch

    from merit.core.diagnostics import displacement
    from merit.io.checkpoints import Checkpoint, save_tensors
    from merit.models import load_model, set_trainable, stored_tensors, use_one_thread
    from merit.stages.train import branch_order
    from merit.training import train

    use_one_thread()
    data, order = Encoded.load(run.paths.encoded), branch_order(run.paths, run.manifest)
    model = load_model(run.paths.base)
    parameters = set_trainable(model, run.training.trainable)
    losses: list[float] = []
    counts = ("num_tokens", "num_loss_tokens", "num_samples")
    record: dict[str, Any] = {"key": key, **{name: run.manifest[name] for name in counts}}
    record |= {"final_loss": None, "displacement": None, "failure": None}
    target = folder / f"{run.name}.safetensors"
    try:
        train(
            model,
            parameters,
            data,
            order,
            run.training.optimizer,
            what=run.name,
            batch_size=run.manifest["batch_size"],
            num_examples=run.manifest["num_samples"],
            log=lambda step, timing: losses.append(step["loss"]),
        )
    except MeritError as error:
        # the loop's own message: its loss or its parameters are not finite
        write_json(_record(folder, run.name), record | {"failure": str(error)})
        return
    base = Checkpoint(run.paths.base / "model.safetensors")
    with torch.no_grad():
        tensors = stored_tensors(model, parameters)
        half_written = folder / f".{run.name}.{os.getpid()}"
        save_tensors(tensors, half_written)
        os.replace(half_written, target)
        record["displacement"] = displacement((t, base.read(n)) for n, t in tensors.items())
    write_json(_record(folder, run.name), record | {"final_loss": float(np.mean(losses[-10:]))})


def average_runs(parts: Sequence[Trained], reading: str) -> dict[str, torch.Tensor]:
    """The average (METHOD 2.5) of runs with `merge_weights: <reading>`; of one run, itself."""
    from merit.core.merge.average import merge_weights

    weights = merge_weights([vars(part) for part in parts], reading)
    return average_files([part.path for part in parts], weights)


def average_files(paths: Sequence[Path], weights: Sequence[float]) -> dict[str, torch.Tensor]:
    """sum_k w_k theta_k of checkpoint files that hold the same tensors."""
    from merit.core.merge.average import weighted_average
    from merit.io.checkpoints import Checkpoint

    branches = [Checkpoint(path) for path in paths]
    return {
        name: weighted_average([branch.read(name) for branch in branches], weights)
        for name in branches[0].names
    }


def distance(base: Path, tensors: Tensors) -> float:
    """||theta - theta0||_2 of tensors that replace the base folder's."""
    from merit.core.diagnostics import displacement
    from merit.io.checkpoints import Checkpoint

    start = Checkpoint(base / "model.safetensors")
    return displacement((tensor, start.read(name)) for name, tensor in tensors.items())


def moved(base: Path, tensors: Tensors, alpha: float) -> dict[str, torch.Tensor]:
    """theta0 + alpha (theta - theta0), tensor by tensor."""
    from merit.core.merge.average import interpolate
    from merit.io.checkpoints import Checkpoint

    start = Checkpoint(base / "model.safetensors")
    return {name: interpolate(start.read(name), t, alpha) for name, t in tensors.items()}


# --- answering and scoring --------------------------------------------------------------------


@dataclass(frozen=True)
class Candidate:
    """A model to be scored: `tensors()` in the place of the base folder's of the same names."""

    name: str  # unique in the study
    base: Path
    tensors: Callable[[], Tensors] = dict  # made when its turn comes; nothing: the base itself


def score_models(
    experiment: Experiment,
    benchmarks: Path,
    models: Sequence[Candidate],
    folder: Path,
    workers: int,
    label: str,
) -> dict[str, Scores]:
    """Every model's score on every question of `benchmarks`/<benchmark>.tsv.

    Answers are kept in `folder`; a model's weights exist as a folder only while it answers.
    lm-eval scores where it asks, VLMEvalKit in a process of its own.
    """
    if len({model.name for model in models}) != len(models):
        raise ValueError("two models have one name")
    names = experiment.evaluation.benchmarks
    tables = {name: benchmarks / benchmark(name).file for name in names}
    by_lm_eval = engine_of(names) == "lm_eval"
    with (
        contextlib.nullcontext() if by_lm_eval else ScoringEngine() as engine,
        Progress(f"{label}, models", len(models)) as progress,
        _pool(workers) as pool,
    ):
        if engine is None:
            asked = [task_file(name) for name in names]
        else:
            asked = [folder / "prompts.json"]
            write_json(asked[0], engine.prompts(tables))
        questions = [file_hash(path) for path in [*asked, *tables.values()]]
        settings = experiment.evaluation.model_dump(mode="json")
        pending: set[Future[None]] = set()
        for model in models:
            weights = folder / "weights" / model.name
            checkpoint_hash = write_model(model, weights)
            key = value_hash([checkpoint_hash, questions, settings])
            target = folder / f"{model.name}.json"
            if _holds(target, key):
                shutil.rmtree(weights)
                progress.advance()
                continue
            pending.add(pool.submit(_answer, experiment, benchmarks, weights, target, key))
            if len(pending) > workers:  # so many models lie on the disk at once, not all
                pending = _collect(pending, progress, FIRST_COMPLETED)
        while pending:
            pending = _collect(pending, progress, FIRST_COMPLETED)
        shutil.rmtree(folder / "weights", ignore_errors=True)
        files = {model.name: folder / f"{model.name}.json" for model in models}
        if engine is None:
            scored = {name: stored_scores(file) for name, file in files.items()}
        else:
            answers = {name: read_json(file)["answers"] for name, file in files.items()}
            scored = engine.score(tables, answers)
    return {
        model: {name: list(result.questions.values()) for name, result in results.items()}
        for model, results in scored.items()
    }


def _collect(pending: set[Future[None]], progress: Progress, until: str) -> set[Future[None]]:
    done, rest = wait(pending, return_when=until)
    for job in done:
        job.result()
        progress.advance()
    return rest


def _answer(experiment: Experiment, benchmarks: Path, model: Path, target: Path, key: str) -> None:
    """One model's answers, in a worker."""
    answer(experiment, benchmarks, model, target, key)
    shutil.rmtree(model)


def write_model(model: Candidate, folder: Path) -> str:
    """The model as a Hugging Face folder; the hash of its weights."""
    from merit.io.checkpoints import Checkpoint, save_tensors

    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for source in sorted(model.base.iterdir()):
        if source.name not in ("model.safetensors", "records.jsonl", "base.json"):
            shutil.copyfile(source, folder / source.name)
    base, tensors = Checkpoint(model.base / "model.safetensors"), model.tensors()
    unknown = sorted(set(tensors) - set(base.names))
    if unknown:
        raise ValueError(f"{model.name}: the base has no tensor {unknown[0]!r}")
    whole = {name: tensors.get(name, tensor) for name, tensor in base.items()}
    save_tensors(whole, folder / "model.safetensors")
    return file_hash(folder / "model.safetensors")


# --- shared -----------------------------------------------------------------------------------


@contextlib.contextmanager
def _pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    """Single-threaded, quiet worker processes; after an error no further job starts."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "TQDM_DISABLE"):
        os.environ[name] = "1"  # read when a worker first imports numpy, torch or tqdm
    pool = ProcessPoolExecutor(workers, get_context("spawn"), _follow_parent)
    try:
        yield pool
    except BrokenProcessPool:
        raise MeritError(
            "a worker process of the study died (is there enough memory?); run the study again: "
            "what it has finished is kept"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _follow_parent() -> None:
    """Let the worker end with the study, however that ended: a killed one leaves none behind."""
    parent = parent_process()

    def wait_for_end() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=wait_for_end, daemon=True).start()


@functools.cache
def _arrays_hash(encoded: Path) -> str:
    names = [*Encoded.__dataclass_fields__, "task_of_example"]
    return value_hash([file_hash(encoded / f"{name}.npy") for name in names])


def _record(folder: Path, name: str) -> Path:
    return folder / f"{name}.json"


def _holds(path: Path, key: str) -> bool:
    return path.is_file() and read_json(path)["key"] == key


def _trained(folder: Path, name: str) -> Trained:
    record = read_json(_record(folder, name))
    del record["key"]
    return Trained(path=folder / f"{name}.safetensors", **record)
