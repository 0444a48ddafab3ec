"""VLMEvalKit in a process of its own: builds prompts, scores answers, and nothing else.

`python -m merit.eval.engine FOLDER` is that process; it refuses the network. `ScoringEngine` starts
it and talks to it in JSON lines. `import vlmeval` takes 9 to 13 s and turns TLS verification off,
so the process imports single modules instead, and the rest only for the kit's own benchmarks.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import logging
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from merit.config import Evaluation
from merit.errors import MeritError
from merit.eval.benchmarks import BenchmarkScore, benchmark
from merit.eval.judge import Judge
from merit.io.artifacts import Artifacts

Files = Mapping[str, Path]  # benchmark -> its TSV
Predictions = Mapping[str, Mapping[str, Mapping[str, str]]]  # model -> benchmark -> index -> text

_ENVIRONMENT = {
    "PRED_FORMAT": "tsv",  # VLMEvalKit's intermediate tables; its default is Excel
    "EVAL_FORMAT": "csv",
    "TQDM_DISABLE": "1",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
    "OMP_NUM_THREADS": "1",
}
_NUM_ERROR_LINES = 8


class ScoringEngine:
    """The parent's side, a context manager; entering returns at once.

    VLMEvalKit's files (`$LMUData`) live in a temporary folder that goes when the block ends.
    Args: checked: refuse VLMEvalKit's own files if their MD5 is unknown to it. judge: is asked if
    matching finds no answer; without one, matching is exact and benchmarks that need a judge are
    refused. limit: ask only the first questions of VLMEvalKit's own benchmarks.
    """

    def __init__(
        self, checked: bool = True, judge: Judge | None = None, limit: int | None = None
    ) -> None:
        self.checked, self.judge, self.limit = checked, judge, limit

    @classmethod
    def of(cls, settings: Evaluation, paths: Artifacts) -> ScoringEngine:
        """An experiment's engine; its judge, if any, keeps its answers."""
        judge = Judge(settings.judge, paths.judgements) if settings.judge else None
        return cls(settings.check_files, judge, settings.max_questions)

    def __enter__(self) -> ScoringEngine:
        self._temporary = tempfile.TemporaryDirectory(prefix="merit-engine-")
        self._stderr = open(Path(self._temporary.name) / "stderr", "w+b")
        folder = Path(self._temporary.name) / "data"
        folder.mkdir()
        source = str(Path(__file__).absolute().parents[2])
        paths = [source, *filter(None, [os.environ.get("PYTHONPATH")])]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "merit.eval.engine", str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            env={**_without_keys(), **_ENVIRONMENT, "PYTHONPATH": os.pathsep.join(paths)},
            encoding="utf-8",
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()  # it keeps nothing that could be lost
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(BrokenPipeError):  # it died with a request half written
                pipe.close()  # type: ignore[union-attr]
        self._stderr.close()
        self._temporary.cleanup()

    def prompts(self, files: Files) -> dict[str, dict[str, list[dict[str, Any]]]]:
        """{benchmark: {index: text and images in turn}}, indices as text, in file order.

        A part is {"text": ...}, or {"image": ...}: [index, position] of an image in the TSV's
        column `image`, or the path of a file.

        Raises MeritError for an unknown benchmark, a malformed TSV, or if the process died.
        """
        return self._ask("prompts", files)

    def score(self, files: Files, predictions: Predictions) -> dict[str, dict[str, BenchmarkScore]]:
        """{model: {benchmark: BenchmarkScore}} for every answer given.

        A model may skip a benchmark, but not a question of one. Raises MeritError as `prompts`
        does, and for a missing or surplus answer.
        """
        given = {
            model: {name: dict(answers) for name, answers in benchmarks.items()}
            for model, benchmarks in predictions.items()
        }
        if self.judge is None:
            check_judged(list(files))
            result = self._ask("score", files, predictions=given)
        else:
            with self.judge.serve(self._process.kill) as client:
                result = self._ask("score", files, predictions=given, judge=client)
        return {
            model: {name: BenchmarkScore(**entry) for name, entry in entries.items()}
            for model, entries in result.items()
        }

    def _ask(self, task: str, files: Files, **more: Any) -> Any:
        paths = {name: str(path) for name, path in files.items()}
        how = {"do": task, "files": paths, "checked": self.checked, "limit": self.limit}
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(how | more) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if self.judge is not None and self.judge.failure:
            raise MeritError(self.judge.failure)
        if not line.endswith("\n"):
            status = self._process.wait()
            self._stderr.seek(0)
            lines = self._stderr.read().decode(errors="replace").splitlines()[-_NUM_ERROR_LINES:]
            raise MeritError(
                f"the scoring process (VLMEvalKit) ended with status {status}; it last said:\n  "
                + ("\n  ".join(lines) or "(nothing)")
            )
        reply = json.loads(line)
        if "error" in reply:
            raise MeritError(reply["error"])
        return reply["result"]


def check_judged(benchmarks: Sequence[str]) -> None:
    """Raises MeritError if a benchmark cannot be scored without a judge."""
    for name in benchmarks:
        if benchmark(name).judge == "required":
            raise MeritError(f"{name} is scored by a judge; set `evaluation.judge`")


def _without_keys() -> dict[str, str]:
    """This process's environment without what VLMEvalKit would take for a judge's and print."""
    words = ("API_KEY", "API_BASE", "TOKEN", "LOCAL_LLM")
    return {k: v for k, v in os.environ.items() if not any(w in k.upper() for w in words)}


# --- the process itself -----------------------------------------------------------------------


def main() -> None:
    """Answer requests, a JSON line each, until stdin ends."""
    # what vlmeval prints goes to stderr: stdout carries only replies
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    os.environ["LMUData"] = sys.argv[1]  # noqa: SIM112 - the name is VLMEvalKit's
    warnings.simplefilter("ignore")
    logging.disable(logging.ERROR)
    sys.addaudithook(_refuse_network)
    for package in ("vlmeval", "vlmeval.dataset"):
        _leave_empty(package)
    import merit.eval.datasets  # noqa: F401 - now, before the first request

    for line in sys.stdin:
        reply: dict[str, Any]
        try:
            reply = {"result": _reply(json.loads(line))}
        except MeritError as error:
            reply = {"error": str(error)}
        replies.write(json.dumps(reply) + "\n")
        replies.flush()


def _leave_empty(package: str) -> None:
    """Make a package's modules importable without its `__init__`, which would import all of them.

    merit.eval.public_datasets runs it when it is needed.
    """
    spec = importlib.util.find_spec(package)
    assert spec is not None  # a dependency
    sys.modules[package] = importlib.util.module_from_spec(spec)


def _reply(request: dict[str, Any]) -> dict[str, Any]:
    from merit.eval import datasets

    how = (request["checked"], request["limit"])
    built = {n: datasets.build(n, Path(path), *how) for n, path in request["files"].items()}
    if request["do"] == "prompts":
        return {name: datasets.prompts(dataset) for name, dataset in built.items()}
    judge = request.get("judge")
    if judge is not None:
        _allowed.add(int(judge["api_base"].split(":")[2].split("/")[0]))
    scores: dict[str, Any] = {}
    for model, benchmarks in request["predictions"].items():
        scores[model] = {}
        for name, predictions in benchmarks.items():
            if name not in built:
                raise MeritError(f"{model}: {name}: no file was given for this benchmark")
            try:
                found = datasets.score(name, built[name], predictions, judge)
            except MeritError as error:
                raise MeritError(f"{model}: {name}: {error}") from None
            scores[model][name] = dict(zip(("score", "questions", "also"), found, strict=True))
    return scores


_allowed: set[int] = set()  # ports of this machine: the judge's, in the parent process


def _refuse_network(event: str, arguments: tuple[Any, ...]) -> None:
    """An audit hook: with TLS verification off, no connection may leave this process."""
    if event not in ("socket.connect", "socket.getaddrinfo"):
        return
    address = arguments[1] if event == "socket.connect" else arguments
    if tuple(address[:2]) not in {("127.0.0.1", port) for port in _allowed}:
        raise ConnectionRefusedError(f"the scoring process stays offline ({event})")


if __name__ == "__main__":
    main()
