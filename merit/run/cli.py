"""The `merit` command."""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from pathlib import Path
from typing import Any

import shtab

from merit import __version__
from merit.errors import BUG, STOPPED, MeritError, Stopped, message_of
from merit.merge.command import add_command as add_merge
from merit.run.stages import STAGES

DESCRIPTION = """\
MERIT: split a mixture by gradient conflict, train branches, average once.

reproduce the paper, in a clone:
  merit run mini_vision           one experiment in miniature; `make repro` runs them all
your own mixture, anywhere:
  merit new mine --data FOLDER --base MODEL
  merit run mine                  groups, branches, merged models, and which of them to ship
merge branches that you have:
  merit merge --base theta0 --branches a b c --out merged
"""
ERROR = "merit: error:"
RED = f"\033[1;31m{ERROR}\033[0m"
EPILOG = f"""\
the stages of `merit run`:
{chr(10).join(f"  {stage.name:12}{stage.summary}" for stage in STAGES.values())}
"""


def main(arguments: list[str] | None = None) -> None:
    """Entry point. A user's mistake is one message and exit status 2, without a traceback."""
    quiet()
    options = _parser().parse_args(arguments)
    try:
        _dispatch(options)
    except BrokenPipeError:  # as in `merit status | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except KeyboardInterrupt:
        print("merit: interrupted; the same command resumes", file=sys.stderr)
        sys.exit(130)
    except Stopped:
        print("merit: stopped; the same command resumes", file=sys.stderr)
        sys.exit(STOPPED)
    except Exception as error:
        if (text := message_of(error)) is None:
            traceback.print_exc()
            print(BUG, file=sys.stderr)
            sys.exit(1)
        coloured = sys.stderr.isatty() and not os.environ.get("NO_COLOR")
        print(f"{RED if coloured else ERROR} {text}", file=sys.stderr)
        sys.exit(2)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="merit",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"merit {__version__}")
    shtab.add_argument_to(parser, "--print-completion")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")

    def add(name: str, summary: str) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=summary, description=summary)

    command = add("new", "write the settings of your own mixture: experiments/NAME.yaml")
    command.add_argument("name", help="of the experiment")
    command.add_argument("--data", required=True, metavar="FOLDER", help="a file per task")
    command.add_argument(
        "--base",
        required=True,
        metavar="MODEL",
        help="a Hugging Face folder, or owner/name[@commit]",
    )
    command = add("run", "bring an experiment up to date: all stages, some, or some items of one")
    _add_experiment(command)
    command.add_argument("stages", nargs="*", help=f"of {', '.join(STAGES)}; all by default")
    command.add_argument(
        "--only", nargs="+", default=[], metavar="ITEM", help="branches, models or studies"
    )
    command.add_argument("--dry-run", action="store_true", help="say what would run, and why")
    command.add_argument(
        "--rehearse", action="store_true", help="a copy cut down to minutes: <experiment>_rehearsal"
    )
    command = add("status", "which results are out of date, and why")
    _add_experiment(command)
    command.add_argument("--json", action="store_true", help="for programs")
    command = add("check", "what an experiment lacks and takes, before anything is computed")
    command.add_argument("experiment", help="as in experiments/<name>.yaml")
    command.add_argument(
        "--gpu-tflops", type=float, default=989.0, help="a GPU's peak; default: %(default)s"
    )
    command.add_argument(
        "--mfu", type=float, default=0.4, help="share of the peak in use; default: %(default)s"
    )
    command.add_argument("--json", action="store_true", help="for programs")
    command = add("partition", "2^axes groups of any tasks, from gradients of your own")
    _add_rows(command)
    command.add_argument("--axes", type=int, default=2, metavar="r", help="default: 2")
    command = add("extend", "add tasks to a folder of `merit partition`")
    command.add_argument("folder", type=Path, help="what is extended; it stays as it is")
    _add_rows(command)
    add_merge(commands)
    add("settings", "write what dvc.yaml's stages depend on; the first stage of dvc.yaml")
    add("index", "the pages over all experiments, and README's table")
    add("track", "carry the records into MLflow").add_argument(
        "--strict", action="store_true", help="fail if MLflow cannot be reached"
    )
    command = add("figures", "redraw an experiment's figures for a paper, from stored results")
    _add_experiment(command)
    command.add_argument("--format", choices=("pdf", "svg"), default="pdf")
    command.add_argument("--out", type=Path, default=Path("figures"), help="default: %(default)s")
    add("smoke", "the whole pipeline at a tiny size in a temporary folder").add_argument(
        "--gpu", action="store_true", help="tiny models through all that a GPU does, instead"
    )
    add("ui", "MLflow's UI on 127.0.0.1").add_argument("--port", type=int, default=5000)
    return parser


def _add_experiment(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "experiment",
        nargs="?",
        help="as in experiments/<name>.yaml; default: all that params.yaml names",
    )


def _add_rows(command: argparse.ArgumentParser) -> None:
    for name, summary in {
        "gradients": "a .npy file, a task's mean gradient per row",
        "tasks": "a JSON list of the rows' tasks: names, or objects with `task` and `num_samples`",
        "out": "the folder to write",
    }.items():
        command.add_argument(f"--{name}", type=Path, required=True, help=summary)


def _dispatch(options: argparse.Namespace) -> None:
    """Imports are made here: `merit --help` should not take seconds."""
    match options.command:
        case "new":
            from merit.run.new import new

            new(options.name, options.data, options.base)
        case "run" | "status":
            _run(options)
        case "check":
            from merit.check.command import check

            check(options.experiment, options.gpu_tflops, options.mfu, options.json)
        case "partition":
            from merit.partition.files import partition_files

            partition_files(options.gradients, options.tasks, options.axes, options.out)
        case "extend":
            from merit.partition.files import extend_files

            extend_files(options.folder, options.gradients, options.tasks, options.out)
        case "merge":
            from merit.merge.command import run

            run(options)
        case "settings":
            from merit.run.execute import write_settings

            write_settings(_params().experiments)
        case "index":
            from merit.eval.stages.index import run as index

            index()
        case "track":
            from merit import track
            from merit.config import load_experiment

            params = _params()
            experiments = [load_experiment(name) for name in params.experiments]
            track.sync(params, experiments, strict=options.strict)
        case "figures":
            from merit.eval.report.figures import export

            for name in [options.experiment] if options.experiment else _params().experiments:
                export(name, options.format, options.out / name)
        case "smoke" if options.gpu:
            from merit.run.smoke_gpu import smoke_gpu

            smoke_gpu()
        case "smoke":
            from merit.run.smoke import smoke

            smoke()
        case "ui":
            from merit.run.ui import serve

            serve(_params(), options.port)


def _run(options: argparse.Namespace) -> None:
    from merit.run import execute

    names = [options.experiment] if options.experiment else _params().experiments
    if options.command == "status":
        execute.status(names, options.json)
        return
    if options.rehearse:
        if not options.experiment:
            raise MeritError("run: name what is to be rehearsed, as in `merit run NAME --rehearse`")
        names = [f"{options.experiment}_rehearsal"]
    if "RANK" in os.environ and options.stages:  # a process of torchrun, for one base or branch
        execute.run_rank(options.experiment, options.stages[0], *(options.only or [None]))
    else:
        execute.run(names, options.stages, options.only, options.dry_run)


def _params() -> Any:
    from merit.config import load_params

    return load_params()


def quiet() -> None:
    """No telemetry, no progress bars of libraries; what is set stays."""
    for name, value in {
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "1",
        "DVC_NO_ANALYTICS": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }.items():
        os.environ.setdefault(name, value)
