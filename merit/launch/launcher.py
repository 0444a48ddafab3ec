"""`merit launch`: which branches there are to train, and by what; what comes of them goes to DVC.

DVC runs on one host, since its locks know that host's processes alone. Where branches are trained,
the plain stage command runs, which writes to a temporary folder and renames it. What was trained is
then committed to DVC here, and `dvc repro` goes on with the merges.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from merit.config import Params, load_experiment, load_params
from merit.config.branches import plan
from merit.config.settings import nearest
from merit.errors import MeritError
from merit.io.artifacts import Artifacts, read_json
from merit.io.locks import exclusive, lock_file, lock_owner, try_lock
from merit.launch.jobs import Work, train_command
from merit.launch.local import Local, make_slots, visible_gpus
from merit.launch.slurm import Slurm
from merit.launch.watch import TRAIN_CODE, Backend, Submitted, Watch, code_hash, read_jobs
from merit.plan import PIPELINE, check_planned, folder_of


def launch(experiment: str, names: Sequence[str] = ()) -> None:
    """Train the branches (all by default) that are not finished, and wait for them.

    Raises MeritError that names the branches that failed and their logs.
    """
    check_planned("launch", experiment, None)
    params = load_params()
    todo = chosen(experiment, names, params)
    folder = Artifacts(experiment).launch
    with exclusive(folder, f"the branches of {experiment} are being launched"):
        file = folder / "jobs.json"
        jobs = read_jobs(file, params.launch.backend)
        left = [work for work in todo if work.branch in jobs or not work.finished()]
        if len(left) < len(todo):
            print(f"finished already: {len(todo) - len(left)} of {len(todo)}", file=sys.stderr)
        check_free([work for work in left if work.branch not in jobs])
        watch = Watch(make_backend(params), file, jobs, params.launch.retries)
        try:
            failures = watch.run(left)
        except KeyboardInterrupt:
            print(watch.farewell(left), file=sys.stderr)
            sys.exit(130)
        trained = [work for work in left if work.branch not in failures]
        hand_over(trained, watch.jobs)
        watch.forget(trained)
    if failures:
        lines = [f"  {branch}: {why}" for branch, why in failures.items()]
        first = f"{len(failures)} of {len(left)} branches failed; the same command tries them again"
        raise MeritError("\n".join([first, *lines]))


def chosen(experiment: str, names: Sequence[str], params: Params) -> list[Work]:
    """The branches in the order of the plan. Raises MeritError for one that there is not, and
    where the stages before `train` have not run.
    """
    known = list(plan(load_experiment(experiment)).branches)
    for name in names:
        if name not in known:
            raise MeritError(f"launch: {experiment} has no branch {name!r}.{nearest(name, known)}")
    paths = Artifacts(experiment)
    branches = [branch for branch in known if branch in names or not names]
    for path in (*(paths.manifest(branch) for branch in branches), paths.base / "base.json"):
        read_json(path)
    gpus = params.launch.gpus_per_branch
    if params.launch.backend == "local" and not visible_gpus():
        gpus = 0
    return [Work(experiment, b, train_command(experiment, b, gpus)) for b in branches]


def make_backend(params: Params) -> Backend:
    if params.launch.backend == "slurm":
        return Slurm(params.launch)
    return Local(make_slots(params.launch, visible_gpus(), params.workers))


def check_free(todo: Sequence[Work]) -> None:
    """Raises MeritError where something that was not launched trains one of the branches."""
    for work in todo:
        branch = Artifacts(work.experiment).branch(work.branch)
        if not lock_file(branch).exists():
            continue
        lock = try_lock(lock_file(branch))
        if lock is None:
            raise MeritError(
                f"launch: {work.branch} is being trained by {lock_owner(branch)} already; wait "
                "for it or end it, then run the same command again"
            )
        lock.close()


# --- DVC ----------------------------------------------------------------------------------------


def hand_over(trained: Sequence[Work], jobs: Mapping[str, Submitted]) -> None:
    """Commit to DVC what was trained by the code that is here now."""
    present = code_hash()
    commit([work for work in trained if jobs[work.branch].code == present])
    for work in trained:
        if jobs[work.branch].code != present:
            print(
                f"{work.branch}: {' or '.join(TRAIN_CODE)} has changed since it was launched, so "
                "`dvc repro` will train it again; if the change does not matter: dvc commit "
                f"{stage_name(work)}",
                file=sys.stderr,
            )


def commit(trained: Sequence[Work]) -> None:
    """Have DVC record the branches' outputs as `dvc repro` would have. Raises MeritError."""
    if not trained or not Path(".dvc").is_dir():
        return
    command = ["commit", "--force", *map(stage_name, trained)]
    done = subprocess.run(
        [sys.executable, "-m", "dvc", "--wait-for-lock", *command],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise MeritError(
            f"the branches are trained, but `dvc {' '.join(command)}` failed:\n"
            f"{done.stderr.strip()}\nrun the same launch again when that is mended"
        )


def stage_name(work: Work) -> str:
    """The branch's stage, as DVC calls it."""
    return f"{folder_of(work.experiment) / PIPELINE}:train@{work.branch}"
