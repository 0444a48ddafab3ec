"""prompts, evaluate and score: what is refused early, and how models are held while they answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from merit.config import Evaluation, JudgeSettings, Runtime
from merit.config.branches import plan
from merit.errors import MeritError
from merit.eval.answering.answers import Questions, load_for_answers
from merit.eval.stages import prompts, score
from merit.io.artifacts import Artifacts, write_json
from tests import synthetic


def test_a_judge_without_its_key_is_refused_before_training(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("JUDGE_KEY", raising=False)
    base = synthetic.experiment(benchmarks=["mini_mcq"])

    def run(**values: Any) -> None:
        judge = JudgeSettings(url="http://here/v1", model="j", key_variable="JUDGE_KEY", **values)
        evaluation = base.evaluation.model_copy(update={"judge": judge})
        found = base.model_copy(update={"evaluation": evaluation})
        monkeypatch.setattr(prompts, "load_experiment", lambda name: found)
        prompts.run("synthetic")

    with pytest.raises(MeritError, match=r"j at http://here/v1: .*JUDGE_KEY"):
        run()
    with pytest.raises(FileNotFoundError, match=r"benchmarks/mini_.*\.tsv"):  # past the check
        run(replay_only=True)


def test_with_every_model_diverged_there_is_nothing_to_score(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    experiment = synthetic.experiment()
    monkeypatch.setattr(score, "load_experiment", lambda name: experiment)
    for model in plan(experiment).models:
        answers = {"answers": None, "scores": None, "failure": f"{model}: the loss is nan"}
        write_json(Artifacts("synthetic").answers(model), answers)
    with pytest.raises(MeritError, match=r"^synthetic: .*base: the loss is nan"):
        score.run("synthetic")


def test_models_answer_as_the_experiment_holds_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    found: list[Any] = []
    monkeypatch.setattr("merit.train.model.load_model", lambda *a, **k: found.append((*a, k)))
    settings = Evaluation(benchmarks=["mini_mcq"])
    runtime = Runtime(dtype="bfloat16", device="cpu", spread=True, attention="varlen")
    load_for_answers(tmp_path, runtime, Questions(settings, {}, {}))
    assert found == [(tmp_path, runtime, {"generates": True})]
