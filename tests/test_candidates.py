"""Models that a study makes for itself: their tensors in the base's place, and their scores."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close

from merit.eval.answering.answers import Answers, Prompts, Questions, Scores
from merit.eval.engine import BenchmarkScore
from merit.eval.measuring import candidates
from merit.eval.measuring.candidates import Candidate, average_files, moved, place, score_candidates
from merit.io.artifacts import Artifacts
from merit.train.model import load_model, stored_tensors
from tests import synthetic
from tests.conftest import Tiny
from tests.scored import save_model

EMBEDDING = "model.embed_tokens.weight"
NORM = "model.norm.weight"
PROJECTOR = "visual.merger.ln_q.weight"  # in the model called model.visual.merger.ln_q.weight


@pytest.fixture(scope="module")
def paths(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Artifacts:
    """The tiny model as a base."""
    found = Artifacts("tiny", tmp_path_factory.mktemp("candidates"))
    tiny.model.save_pretrained(found.base)
    tiny.processor.save_pretrained(found.base)
    return found


@pytest.fixture(scope="module")
def base(paths: Artifacts) -> dict[str, torch.Tensor]:
    return load_file(paths.base / "model.safetensors")


def held(model: Any) -> dict[str, torch.Tensor]:
    """The model's tensors under the checkpoint's names."""
    found = stored_tensors(model, dict(model.named_parameters()))
    return {name: tensor.detach().clone() for name, tensor in found.items()}


# --- a candidate in the base's place ------------------------------------------------------------


def test_a_candidates_tensors_replace_the_bases_and_no_others(
    paths: Artifacts, base: dict[str, torch.Tensor]
) -> None:
    model, file = load_model(paths.base), paths.base / "model.safetensors"
    changed = {EMBEDDING: base[EMBEDDING] + 1, PROJECTOR: base[PROJECTOR] * 3}
    place(model, file, Candidate("first", lambda: changed))
    assert_close(held(model), base | changed, rtol=0, atol=0)
    # the next one has the base's wherever it has none of its own
    place(model, file, Candidate("second", lambda: {NORM: base[NORM] + 2}))
    assert_close(held(model), base | {NORM: base[NORM] + 2}, rtol=0, atol=0)
    place(model, file, Candidate("base"))
    assert_close(held(model), base, rtol=0, atol=0)


def test_a_tensor_that_the_base_lacks_is_refused(
    paths: Artifacts, base: dict[str, torch.Tensor]
) -> None:
    model = load_model(paths.base)
    odd = Candidate("odd", lambda: {EMBEDDING: base[EMBEDDING] + 1, "no.such": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"^odd: the base has no tensor 'no\.such'$"):
        place(model, paths.base / "model.safetensors", odd)
    assert_close(held(model), base, rtol=0, atol=0)


# --- scores -------------------------------------------------------------------------------------


class FakeEngine:
    """In the place of VLMEvalKit: a question scores 1 where the answer is the base's."""

    @classmethod
    def of(cls, settings: Any, paths: Artifacts) -> FakeEngine:
        return cls()

    def __enter__(self) -> FakeEngine:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def prompts(self, files: Mapping[str, Path]) -> Prompts:
        return {name: {"0": f"{path.parent.name} ?", "1": "say yes ."} for name, path in
                files.items()}  # fmt: skip

    def score(self, files: Mapping[str, Path], answers: Mapping[str, Answers]) -> dict[str, Scores]:
        def right(name: str, texts: Mapping[str, str]) -> dict[str, float]:
            return {i: float(text == answers["base"][name][i]) for i, text in texts.items()}

        return {
            model: {name: BenchmarkScore(0.0, right(name, texts)) for name, texts in given.items()}
            for model, given in answers.items()
        }


def by_sum(
    model: Any, processor: Any, questions: Questions, encoded: Any = None
) -> tuple[Answers, Scores | None]:
    """Answers the first question by what the model's tensors add up to, the others always alike."""
    total = sum(float(tensor.double().sum()) for tensor in held(model).values())
    assert questions.prompts == {
        "mini_mcq": {"0": "validation ?", "1": "say yes ."}
    }  # of the split that was asked for
    return {name: {"0": f"{total:.9f}", "1": "yes"} for name in questions.files}, None


def test_every_candidate_is_scored_by_its_own_answers(
    paths: Artifacts, base: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(candidates, "ScoringEngine", FakeEngine)
    monkeypatch.setattr(candidates, "generate_answers", by_sum)
    found = score_candidates(
        synthetic.experiment(benchmarks=["mini_mcq"]),
        paths,
        "validation",
        [
            Candidate("other", lambda: {EMBEDDING: base[EMBEDDING] + 1}),
            Candidate("base"),  # after another one: it has no tensor of it left
            Candidate("same", lambda: {EMBEDDING: base[EMBEDDING].clone()}),
            Candidate("norm", lambda: {NORM: base[NORM] + 1}),
        ],
        "test",
    )
    assert found == {
        "other": {"mini_mcq": [0.0, 1.0]},
        "base": {"mini_mcq": [1.0, 1.0]},
        "same": {"mini_mcq": [1.0, 1.0]},
        "norm": {"mini_mcq": [0.0, 1.0]},
    }


def by_norm(
    model: Any, processor: Any, questions: Questions, encoded: Any = None
) -> tuple[Answers, Scores]:
    """In the place of lm-eval, which scores as it asks."""
    assert questions.prompts == {}
    scores = {"0": float(held(model)[NORM].mean()), "1": 0.5}
    return (
        {name: dict.fromkeys(scores, "A") for name in questions.files},
        {name: BenchmarkScore(0.0, scores) for name in questions.files},
    )


def test_text_benchmarks_are_scored_without_an_engine(
    paths: Artifacts, base: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(candidates, "ScoringEngine", None)  # VLMEvalKit is not started
    monkeypatch.setattr(candidates, "generate_answers", by_norm)
    scored = [
        Candidate("low", lambda: {NORM: torch.full_like(base[NORM], 0.25)}),
        Candidate("high", lambda: {NORM: torch.full_like(base[NORM], 0.75)}),
    ]
    settings = synthetic.experiment(benchmarks=["mini_places"])
    assert score_candidates(settings, paths, "test", scored, "test") == {
        "low": {"mini_places": [0.25, 0.5]},
        "high": {"mini_places": [0.75, 0.5]},
    }


# --- what candidates are made of ------------------------------------------------------------------


def test_an_average_of_files_and_a_point_on_the_way_to_it(tmp_path: Path) -> None:
    save_model(tmp_path / "base", torch.tensor([1.0, 1.0]), frozen=torch.tensor([7.0]))
    save_model(tmp_path / "a", torch.tensor([2.0, 0.0]))
    save_model(tmp_path / "b", torch.tensor([4.0, 8.0]))
    files = [tmp_path / name / "model.safetensors" for name in ("a", "b")]
    merged = average_files(files, [0.75, 0.25])
    assert_close(merged, {"w": torch.tensor([2.5, 2.0])})
    # (1, 1) + 2 ((2.5, 2) - (1, 1)); what is not trained is no part of a candidate
    assert_close(moved(tmp_path / "base", merged, 2.0), {"w": torch.tensor([4.0, 3.0])})
