"""Models of one tensor whose scores the test decides, for studies that answer benchmarks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import save_file

from merit.config import Experiment
from merit.eval.measuring.candidates import Candidate
from merit.eval.measuring.scores import Scores
from merit.io.artifacts import Artifacts, write_jsonl

Right = Mapping[str, tuple[int, int]]  # benchmark -> right answers, questions


@dataclass(frozen=True)
class Asked:
    """One call of `score_candidates`: the models by name, and the questions' split."""

    names: list[str]
    split: str


def save_model(folder: Path, w: torch.Tensor, **others: torch.Tensor) -> None:
    """A checkpoint whose tensors are `w` and `others`."""
    folder.mkdir(parents=True)
    save_file({"w": w, **others}, folder / "model.safetensors")


def answers(right: Right) -> dict[str, list[float]]:
    """The first questions of a benchmark are the ones that are answered rightly."""
    return {b: [1.0] * n + [0.0] * (questions - n) for b, (n, questions) in right.items()}


def write_predictions(paths: Artifacts, model: str, right: Right) -> None:
    """What the stage `score` leaves of the model."""
    rows = [
        {"benchmark": benchmark, "index": str(i), "prediction": "A", "score": score}
        for benchmark, scores in answers(right).items()
        for i, score in enumerate(scores)
    ]
    write_jsonl(paths.predictions(model), rows)


def scripted_scores(
    monkeypatch: pytest.MonkeyPatch, study: ModuleType, right: Callable[[Candidate], Right]
) -> list[Asked]:
    """Let `right` say what each model scores in `study`; what was asked, filled as it runs."""
    asked: list[Asked] = []

    def score_candidates(
        experiment: Experiment,
        paths: Artifacts,
        split: str,
        candidates: Sequence[Candidate],
        label: str,
    ) -> dict[str, Scores]:
        assert label
        asked.append(Asked([candidate.name for candidate in candidates], split))
        return {candidate.name: answers(right(candidate)) for candidate in candidates}

    monkeypatch.setattr(study, "score_candidates", score_candidates)
    return asked
