"""The `merit` command: stages of the pipeline, the whole pipeline, tracking and the UI."""

from __future__ import annotations

import argparse
import importlib
import os
import sys

from merit.errors import MeritError

STAGES = {
    "data": "write the mixture, the conversations and the benchmarks",
    "base": "build or load theta0",
    "other_base": "build the regime map's second theta0",
    "encode": "tokenise the mixture and cache its image embeddings",
    "gradients": "mean gradient of every task at theta0",
    "partition": "cosine matrix, PCA, every method's groups and manifests",
    "train": "train one branch",
    "merge": "merge one model",
    "evaluate": "answer and score the benchmarks with every model",
    "study": "one measurement besides the main tables",
    "report": "tables, figures and pages",
}


def main(arguments: list[str] | None = None) -> None:
    """Entry point. A user's mistake is one message and exit status 2, without a traceback."""
    _quiet()
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
    parser = argparse.ArgumentParser(prog="merit", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    for stage, summary in STAGES.items():
        command = commands.add_parser(stage, help=summary)
        command.add_argument("experiment")
        if stage in ("train", "merge", "study"):
            command.add_argument("item", help="the branch's, the model's or the study's name")
    commands.add_parser(
        "readiness", help="is the base merge-ready? (the study of that name)"
    ).add_argument("experiment")
    commands.add_parser("repro", help="bring every result up to date, branches side by side")
    commands.add_parser("smoke", help="the whole pipeline at a tiny size in a temporary folder")
    commands.add_parser("ui", help="MLflow's UI on 127.0.0.1").add_argument(
        "--port", type=int, default=5000
    )
    track = commands.add_parser("track", help="carry the records into MLflow")
    track.add_argument("action", choices=["sync", "follow"])
    tune = commands.add_parser("tune", help="search merge-ready settings on validation")
    tune.add_argument("experiment")
    return parser


def _dispatch(options: argparse.Namespace) -> None:
    if options.command in STAGES:
        from merit.launch import run_stage

        run_stage(options.command, options.experiment, getattr(options, "item", None))
    elif options.command == "readiness":
        from merit.launch import run_stage

        run_stage("study", options.experiment, "readiness")
    elif options.command == "repro":
        from merit.pipeline import repro

        repro()
    elif options.command == "smoke":
        from merit.smoke import smoke

        smoke()
    elif options.command == "tune":
        importlib.import_module("eval.tune").tune(options.experiment)
    else:
        from merit.config import load_experiment, load_params
        from merit.io import tracking

        params = load_params()
        experiments = [load_experiment(name) for name in params.experiments]
        if options.command == "ui":
            from merit.io.ui import serve

            serve(params, options.port)
        elif options.action == "sync":
            tracking.main_sync(params, experiments)
        else:
            tracking.main_follow(params, experiments)


def _quiet() -> None:
    """No telemetry, no hub, no progress bars of libraries, one thread; what is set stays."""
    for name, value in {
        "HF_HUB_OFFLINE": "1",
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
