"""Models that a study makes for itself (other merge weights, scales, mergers), and their scores.

A candidate is only its tensors: the base is loaded once, and each candidate's are put into it.
Models of the tables have been scored: on the test split their scores are read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from merit.config import Experiment
from merit.eval.answering.answers import (
    Answers,
    Questions,
    encode_questions,
    generate_answers,
    question_files,
    stored_questions,
)
from merit.eval.answering.answers import Scores as Scored
from merit.eval.benchmarks import engine_of
from merit.eval.engine import ScoringEngine
from merit.eval.measuring.scores import Scores
from merit.io.artifacts import Artifacts
from merit.io.progress import Progress

if TYPE_CHECKING:
    import torch

Tensors = Mapping[str, "torch.Tensor"]


@dataclass(frozen=True)
class Candidate:
    """A model to be scored: `tensors()` gives what replaces the base's, by the base's names."""

    name: str  # unique among those scored together
    tensors: Callable[[], Tensors] = dict
    model: str | None = None  # the model of the tables that it is, if it is one


def score_candidates(
    experiment: Experiment,
    paths: Artifacts,
    split: str,
    candidates: Sequence[Candidate],
    label: str,
) -> dict[str, Scores]:
    """{candidate: {benchmark: every question's score in 0..1, in file order}}.

    `split` is "test" or "validation". Raises ValueError where two candidates have one name or one
    has a tensor that the base lacks.
    """
    from merit.train.model import load_model, load_processor, use_one_thread

    if len({candidate.name for candidate in candidates}) != len(candidates):
        raise ValueError("two candidates have one name")
    settings = experiment.evaluation
    known: dict[str, Scores] = {
        c.name: stored_questions(paths, c.model)
        for c in candidates
        if c.model and split == "test" and paths.predictions(c.model).is_file()
    }
    candidates = [candidate for candidate in candidates if candidate.name not in known]
    if not candidates:
        return known
    use_one_thread()
    files = question_files(paths, settings, split)
    by_vlmeval = engine_of(settings.benchmarks) == "vlmeval"
    answers: dict[str, Answers] = {}
    scored: dict[str, Scored] = {}
    with ExitStack() as stack:
        # it imports for ten seconds while the first answers are generated
        engine = stack.enter_context(ScoringEngine.of(settings, paths)) if by_vlmeval else None
        base = paths.base
        model = load_model(base, experiment.model, generates=True)
        processor = load_processor(base)
        questions = Questions(settings, files, engine.prompts(files) if engine else {})
        cached = settings.cache_images and by_vlmeval
        encoded = encode_questions(model, processor, questions) if cached else None
        progress = stack.enter_context(Progress(f"{label}, models", len(candidates)))
        for candidate in candidates:
            place(model, base, candidate)
            answers[candidate.name], found = generate_answers(
                model, processor, questions, encoded=encoded
            )
            if found is not None:
                scored[candidate.name] = found
            progress.advance()
        if engine is not None:
            scored = engine.score(files, answers)
    return known | {
        name: {b: list(result.questions.values()) for b, result in results.items()}
        for name, results in scored.items()
    }


def place(model: Any, base: Path, candidate: Candidate) -> None:
    """Put the candidate's tensors into the model, the base's where it has none."""
    import torch

    from merit.io.checkpoints import Checkpoint
    from merit.train.model import stored_tensors

    own, tensors = Checkpoint(base), candidate.tensors()
    unknown = sorted(set(tensors) - set(own.names))
    if unknown:
        raise ValueError(f"{candidate.name}: the base has no tensor {unknown[0]!r}")
    with torch.no_grad():
        for name, parameter in stored_tensors(model, dict(model.named_parameters())).items():
            parameter.copy_(tensors[name] if name in tensors else own.read(name))


def average_files(paths: Sequence[Path], weights: Sequence[float]) -> dict[str, torch.Tensor]:
    """sum_k w_k theta_k of checkpoint files that hold the same tensors."""
    from merit.io.checkpoints import Checkpoint
    from merit.method.average import weighted_average

    branches = [Checkpoint(path) for path in paths]
    return {
        name: weighted_average([branch.read(name) for branch in branches], weights)
        for name in branches[0].names
    }


def moved(base: Path, tensors: Tensors, alpha: float) -> dict[str, torch.Tensor]:
    """theta0 + alpha (theta - theta0), tensor by tensor."""
    from merit.io.checkpoints import Checkpoint
    from merit.method.average import interpolate

    start = Checkpoint(base)
    return {name: interpolate(start.read(name), t, alpha) for name, t in tensors.items()}
