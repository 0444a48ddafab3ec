"""Benchmarks, the judge, and what the report shows."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from merit.config.settings import PositiveFloat, PositiveInt, Settings

# left out of the hash of the parameters of the experiments that do not have them
_UNLESS_EMPTY = Field(exclude_if=lambda value: not value)


class JudgeSettings(Settings):
    """A judge behind an OpenAI-compatible endpoint, which scores what matching cannot.

    `model` is the snapshot. `key_variable` names the environment variable with the key; null if the
    endpoint asks for none. `temperature` replaces VLMEvalKit's own, which rises with every retry
    for MM-Vet and MathVista. With `replay_only` nothing is asked: answers come from the record of
    an earlier run.
    """

    url: str  # up to and with /v1
    model: str
    temperature: Annotated[float, Field(ge=0)] | None = None
    key_variable: str | None = "OPENAI_API_KEY"
    timeout: PositiveFloat = 60.0  # seconds
    num_parallel: PositiveInt = 4
    replay_only: bool = False


class Evaluation(Settings):
    """Which benchmarks (records in merit.eval.benchmarks), and how answers are generated.

    Images are scaled to between `min_pixels` and `max_pixels`, by default the checkpoint's; a
    benchmark's record may have its own limits. `cache_images` encodes the images once for all
    models, if fine-tuning leaves the vision part as it is. With `generator: vllm`, `vllm_python` is
    the Python of an environment that has vLLM; by default the one that runs. `check_files` refuses
    files of VLMEvalKit whose MD5 it does not know.

    For lm-eval's own tasks: `text_data` is a folder with their repositories as on the hub, null
    for the hub; `chat_template` puts their questions into the model's; `run_model_code` allows
    HumanEval, in a sandbox.
    """

    benchmarks: list[str] = []  # without any, models are judged only on held-out examples
    batch_size: PositiveInt = 64
    max_new_tokens: PositiveInt = 64
    generator: Literal["transformers", "vllm"] = "transformers"
    vllm_python: Annotated[str | None, _UNLESS_EMPTY] = None
    min_pixels: PositiveInt | None = None
    max_pixels: PositiveInt | None = None
    cache_images: bool = False
    check_files: bool = True
    judge: JudgeSettings | None = None
    text_data: str | None = None
    chat_template: bool = True
    run_model_code: bool = False
    max_questions: PositiveInt | None = None  # the first of every public benchmark: a rehearsal's

    @model_validator(mode="after")
    def _pixels_are_a_range(self) -> Evaluation:
        low, high = self.min_pixels, self.max_pixels
        if (low is None) != (high is None) or (low and high and low > high):
            raise ValueError(f"`min_pixels` {low} and `max_pixels` {high}: give both, least first")
        if self.cache_images and self.generator == "vllm":
            raise ValueError("`cache_images` is for `generator: transformers`")
        if self.vllm_python and self.generator != "vllm":
            raise ValueError("`vllm_python` is for `generator: vllm`")
        return self


class Report(Settings):
    """What the report shows, and beside which of the paper's tables.

    `benchmarks` are those of the report's own table, all by default. `also_tables` are further
    tables of the paper, each with its benchmarks: {stem: [names]}. `family` is the experiment whose
    differences are pooled over bases with this one's (reports/bases): the same but for the base.
    """

    title: str
    family: str | None = None  # the experiment's own name by default
    brief: bool = False  # only the scores of every question and a summary: another base of a family
    paper_table: str | None = None  # file stem in reports/paper/; null for your own
    paper_build: str | None = None  # which of that table's models, if it has several
    curves: list[str] = []  # methods whose training curves are drawn
    partition: str | None = None  # the method whose groups order the heat map and the PCA scatter
    benchmarks: Annotated[list[str], _UNLESS_EMPTY] = []
    also_tables: Annotated[dict[str, list[str]], _UNLESS_EMPTY] = {}

    @property
    def stem(self) -> str:
        """The name of the report's own table: "table02", or "results" without a paper's."""
        return self.paper_table.split("_")[0] if self.paper_table else "results"
