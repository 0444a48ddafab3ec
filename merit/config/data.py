"""The `data` block: a generated world, public sources, or your own files."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from merit.config.settings import Fraction, PositiveFloat, PositiveInt, Seed, Settings

SourceName = Literal[
    "vision_flan_1k",
    "vision_flan",
    "the_cauldron",
    "lvis_instruct4v",
    "llava_preference",
    "lrv_instruction",
    "laion_gpt4v",
    "vlguard",
    "llava_pretrain",
    "llava_mix665k",
    "llava_next",
    "llava_recap_cc3m",
    "flan",
]
OnBadRecord = Literal["error", "skip"]


class TaskRule(Settings):
    """Tasks by rule: all with at least `minimum` examples, or `draw` of them by the seed.

    Those of `exclude` are left out first. `note` goes into the manifest and says why.
    """

    minimum: PositiveInt = 1
    draw: PositiveInt | None = None
    exclude: list[str] = []
    note: str = ""


TaskChoice = Annotated[
    Annotated[Annotated[list[str], Field(min_length=1)], Tag("(list)")]
    | Annotated[TaskRule, Tag("(rule)")],
    Discriminator(lambda value: "(list)" if isinstance(value, list) else "(rule)"),
]


class PublicSource(Settings):
    """One public source of a mixture (merit.data.sources.<name>).

    Its files lie in `folder` as in its hub repository (default: `<data.folder>/<name>`). `images`
    is the folder of the images of a source that ships none (default: `<data.folder>/images`).
    `revision` replaces the pinned one. `prefix` goes before the tasks' names. At most
    `max_examples` per task are drawn; an example of more than `max_turns` turns is split.
    `max_records` ends the reading early, before anything is drawn: for rehearsals.
    """

    name: SourceName
    folder: str | None = None
    images: str | None = None
    revision: str | None = None
    tasks: TaskChoice = TaskRule()
    prefix: str = ""
    max_examples: PositiveInt | None = None
    max_turns: PositiveInt | None = None
    max_records: PositiveInt | None = None


class _Read(Settings):
    """What all data that are read from files share.

    A record that is no example, or whose image is broken, is an error or, with `on_bad_record:
    skip`, left out and listed in the manifest. `check_images: exists` opens no image, so that a
    broken one is found in training. `held_out` is the share of each task kept from training.
    """

    seed: Seed = 42
    held_out: Annotated[Fraction, Field(lt=1)] = 0.0
    on_bad_record: OnBadRecord = "error"
    check_images: Literal["decode", "exists"] = "decode"


class PublicData(_Read):
    """A mixture of public sources; `pretraining` names what the phases of the base read."""

    source: Literal["public"]
    folder: str = "sources"
    download: bool = True  # fetch what is missing from the hub, at the pinned revisions
    sources: Annotated[list[PublicSource], Field(min_length=1)]
    pretraining: dict[str, Annotated[list[PublicSource], Field(min_length=1)]] = {}

    @model_validator(mode="after")
    def _names_are_files(self) -> PublicData:
        for name in self.pretraining:
            if not name.isidentifier():
                raise ValueError(f"pretraining.{name}: letters, digits and _ only")
        return self


class Columns(Settings):
    """A record's keys, where they are not the usual ones (merit.data.forms)."""

    task: str | None = None  # of the task, for data that do not lie in a file or folder per task
    messages: str | None = None
    prompt: str | None = None
    input: str | None = None  # behind the prompt
    answer: str | None = None
    system: str | None = None
    images: str | None = None


class JsonlData(_Read):
    """Your own mixture: files per task, one file, or what `datasets` saved (docs/sources.md)."""

    source: Literal["jsonl"]
    folder: str  # or a file
    columns: Columns = Columns()
    tasks: TaskChoice = TaskRule()
    max_examples: PositiveInt | None = None


class MiniWorldData(Settings):
    """The generated visual world (merit.mini.world)."""

    num_skills: ClassVar[int] = 32

    source: Literal["mini_world", "mini_text"]  # in pictures, or told in words
    seed: int
    units: Literal["tasks", "sources"] = "tasks"  # 136 tasks, or 176 sources that include them
    size_spread: PositiveFloat = 0.6  # standard deviation of the units' log sizes
    num_examples: PositiveInt  # fine-tuning examples over all tasks
    num_images: PositiveInt  # distinct images behind them; tasks share images, as in Vision-FLAN
    # conversations, and as many captions, that a base is built with; a built one needs none
    num_conversations: Annotated[int, Field(ge=0)] = 0
    # of the 32 skills, those that the base has not seen; see merit.mini.world.base_conversations
    num_new_skills: Annotated[int, Field(ge=0, le=16)] = 6
    num_recaptions: Annotated[int, Field(ge=0)] = 0  # further images, of the base's stage 1.5
    num_questions: PositiveInt  # test questions per benchmark
    num_validation_questions: PositiveInt


class ReasoningData(Settings):
    """Tasks that the package reasoning-gym generates, with its own scorers."""

    source: Literal["reasoning_gym"]
    seed: Seed
    tasks: Annotated[list[str], Field(min_length=1)]
    num_examples: PositiveInt  # of each task
    num_questions: PositiveInt  # of each task, none of which is among its examples


DataSettings = Annotated[
    MiniWorldData | PublicData | JsonlData | ReasoningData,
    Field(discriminator="source"),
]
