"""The `merit` command: a sub-command a stage, the plan, the whole pipeline, tracking and the UI."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import time
from pathlib import Path

from merit.errors import MeritError
from merit.merge import command as merge_folders

# stage -> (its module, what it does, what it is run for besides an experiment)
STAGES = {
    "settings": ("merit.plan", "every stage's settings, defaults filled in", ""),
    "data": ("merit.data.stage", "mixture, conversations and benchmarks", ""),
    "base": ("merit.train.base", "build or load theta0", ""),
    "encode": ("merit.train.encode", "tokenise the mixture, cache its image embeddings", ""),
    "gradients": ("merit.train.task_gradients", "mean gradient of every task at theta0", ""),
    "partition": ("merit.partition.stage", "cosines, PCA, groups, branches' manifests", ""),
    "train": ("merit.train.branch", "train one branch", "branch"),
    "merge": ("merit.merge.model", "merge one model from its branches", "model"),
    "prompts": (
        "merit.eval.stages.prompts",
        "the benchmarks' questions as models are asked them",
        "",
    ),
    "evaluate": ("merit.eval.stages.evaluate", "one model's answers to all benchmarks", "model"),
    "score": ("merit.eval.stages.score", "score all answers", ""),
    "study": ("merit.eval.stages.study", "one measurement besides the main tables", "study"),
    "report": ("merit.eval.stages.report", "tables, figures and pages of an experiment", ""),
}


def main(arguments: list[str] | None = None) -> None:
    """Entry point. A user's mistake is one message and exit status 2, without a traceback."""
    quiet()
    options = _parser().parse_args(arguments)
    try:
        _dispatch(options)
    except MeritError as error:
        print(f"merit: error: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        if error.errno != 28:
            raise
        print(
            f"merit: error: no space left on the disk ({error.filename}); free some and run the "
            "same command again: what was finished is kept",
            file=sys.stderr,
        )
        sys.exit(2)
    except KeyboardInterrupt:
        print("merit: interrupted; the same command goes on from here", file=sys.stderr)
        sys.exit(130)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="merit",
        description="MERIT: split a mixture by gradient conflict, train branches, average once.",
        epilog="The stages of pipeline.yaml; `dvc repro` or `make repro` runs them in order.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")

    def add(name: str, summary: str) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=summary, description=summary)

    add("plan", "write every experiment's plan.yaml from params.yaml and the experiments")
    for stage, (_, summary, item) in STAGES.items():
        if stage == "merge":
            merge_folders.add_command(commands)
            continue
        command = add(stage, summary)
        command.add_argument(
            "experiment",
            nargs="?" if stage == "partition" else None,
            help="as in experiments/<name>.yaml, or <name>-<base>",
        )
        if item:
            command.add_argument("item", help=f"the {item}'s name in its plan.yaml")
        if stage == "gradients":
            command.add_argument(
                "--shard",
                dest="item",
                metavar="i/n",
                help="only the i-th of n shares of the tasks, beside other processes; a last call "
                "without --shard finishes the stage",
            )
        if stage == "partition":
            group = command.add_argument_group(
                "without an experiment", "2^axes groups of any tasks, from gradients of your own"
            )
            _add_rows(group)
            group.add_argument("--axes", type=int, default=2, metavar="r", help="default: 2")
    extend = add("extend", "add tasks to a folder of `merit partition --gradients`")
    extend.add_argument("folder", type=Path, help="what is extended; it stays as it is")
    _add_rows(extend, required=True)
    command = add(
        "launch", "train branches on this host's GPUs or through Slurm, as params.yaml says"
    )
    command.add_argument("experiment", help="as in experiments/<name>.yaml, or <name>-<base>")
    command.add_argument("branches", nargs="*", help="all that are not finished by default")
    command = add(
        "preflight", "what an experiment takes and lacks, before anything is fetched or trained"
    )
    command.add_argument("experiment", help="as in experiments/<name>.yaml, or <name>-<base>")
    command.add_argument(
        "--gpu", metavar="h100x8", help="a card and how many; default: what is here"
    )
    command.add_argument(
        "--after", action="store_true", help="what was predicted beside what it took"
    )
    command.add_argument(
        "--judge-price",
        type=float,
        nargs=2,
        metavar=("READ", "WRITTEN"),
        help="dollars a million tokens",
    )
    add("index", "the pages over all experiments, and README's tables")
    add("track", "carry the records into MLflow, as the last stage does").add_argument(
        "action", nargs="?", choices=["sync"], help="sync: fail where MLflow cannot be reached"
    )
    command = add("repro", "bring every result up to date, stages side by side")
    command.add_argument(
        "experiments",
        nargs="*",
        metavar="experiment",
        help="these alone, which params.yaml names from then on; default: all that it names",
    )
    command.add_argument(
        "--rehearse",
        action="store_true",
        help="the same cut down to minutes: 3 tasks, 50 examples, two branches, 20 questions",
    )
    command = add("run", "bring experiments, or one stage of one, up to date")
    command.add_argument("experiment", nargs="?", help="default: all that params.yaml names")
    command.add_argument("stage", nargs="?")
    command.add_argument("--only", nargs="+", default=[], metavar="ITEM")
    command.add_argument("--dry-run", action="store_true")
    add("status", "which results are out of date, and why").add_argument("experiment", nargs="?")
    add("smoke", "the whole pipeline at a tiny size in a temporary folder")
    add("ui", "MLflow's UI on 127.0.0.1").add_argument("--port", type=int, default=5000)
    return parser


def _add_rows(parser: argparse._ActionsContainer, required: bool = False) -> None:
    for name, summary in {
        "gradients": "a .npy file, a task's mean gradient a row",
        "tasks": "a JSON list of the rows' tasks: names, or objects with `task` and `num_samples`",
        "out": "the folder to write",
    }.items():
        parser.add_argument(f"--{name}", type=Path, required=required, help=summary)


def _dispatch(options: argparse.Namespace) -> None:
    name = options.command
    if name == "plan":
        from merit.plan import write_plan

        for path in (changed := write_plan()):
            print(f"{path}: {'written' if path.is_file() else 'removed'}")
        if not changed:
            print("every plan is unchanged")
    elif name == "partition" and options.experiment is None:
        from merit.partition.files import partition_files

        files = options.gradients, options.tasks
        if None in (*files, options.out):
            raise MeritError(
                "partition: name an experiment, or give --gradients, --tasks and --out"
            )
        partition_files(*files, options.axes, options.out)
    elif name == "extend":
        from merit.partition.files import extend_files

        extend_files(options.folder, options.gradients, options.tasks, options.out)
    elif name == "merge" and options.item is None:
        merge_folders.run(options)
    elif name in STAGES:
        run_stage(name, options.experiment, getattr(options, "item", None))
    elif name == "launch":
        importlib.import_module("merit.launch.launcher").launch(
            options.experiment, options.branches
        )
    elif name == "preflight":
        from merit.config import load_experiment
        from merit.run.access import set_access, uses_hub

        set_access(uses_hub(load_experiment(options.experiment)))
        run = importlib.import_module("merit.check.account")
        run.preflight(options.experiment, options.gpu, options.after, options.judge_price)
    elif name in ("run", "status"):
        from merit.config import load_params
        from merit.run import execute

        names = [options.experiment] if options.experiment else load_params().experiments
        if name == "status":
            execute.status(names)
        else:
            execute.run(names, options.stage, options.only, options.dry_run)
    elif name == "index":
        from merit.plan import check_plans

        check_plans()
        importlib.import_module("merit.eval.stages.index").run()
    elif name == "repro":
        importlib.import_module("merit.repro").repro(options.experiments, options.rehearse)
    elif name == "smoke":
        importlib.import_module("merit.run.smoke").smoke()
    else:
        from merit import track
        from merit.config import load_params
        from merit.plan import planned_experiments
        from merit.run import ui

        params = load_params()
        if name == "ui":
            ui.serve(params, options.port)
        else:
            track.sync(params, planned_experiments(params), strict=options.action == "sync")


def run_stage(stage: str, experiment: str, item: str | None) -> None:
    """Run one stage in this process, unless the plan is stale; write its time and memory."""
    from merit.config import load_experiment
    from merit.io.artifacts import Artifacts
    from merit.io.progress import write_timing
    from merit.plan import check_planned
    from merit.run.access import needs_hub, set_access

    began = time.monotonic()
    check_planned(stage, experiment, item)
    set_access(needs_hub(load_experiment(experiment), stage))
    if stage == "train" and item is not None:
        become_ranks(experiment, item)
    importlib.import_module(STAGES[stage][0]).run(experiment, item)
    write_timing(Artifacts(experiment).folder, stage, item and item.replace("/", "-of-"), began)


def become_ranks(experiment: str, branch: str) -> None:
    """Where a branch is to have several GPUs of this host, start it anew as so many processes.

    One of these processes, which torchrun starts, goes on; so does a training on the CPU. Raises
    MeritError where fewer GPUs are visible than a branch is to have.
    """
    from merit.config import load_experiment, load_params

    wanted = load_params().launch.gpus_per_branch
    if wanted < 2 or "RANK" in os.environ or load_experiment(experiment).model.device == "cpu":
        return
    from merit.launch.jobs import train_command
    from merit.launch.local import visible_gpus

    visible = visible_gpus()
    if not visible:
        return
    if len(visible) < wanted:
        raise MeritError(
            f"params.yaml: key `launch.gpus_per_branch`: {wanted} GPUs are asked for, "
            f"{len(visible)} are visible here; lower it"
        )
    command = train_command(experiment, branch, wanted)
    os.execv(command[0], command)


def quiet() -> None:
    """No telemetry, no progress bars of libraries, one thread; what is set stays."""
    for name, value in {
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "1",
        "DVC_NO_ANALYTICS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        # two processes of one thread beat one of two, and two of two on two cores are eight times
        # slower; besides, sums in another order would be other bytes
        "OMP_NUM_THREADS": "1",
    }.items():
        os.environ.setdefault(name, value)
