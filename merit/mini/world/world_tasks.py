"""The 136 tasks: 32 skills in four answer styles, and two captions for each kind of scene.

`all_sources` adds 40 units that pool several of them, as subsets of The Cauldron and whole data
sets do in the paper's mixture of 176 sources.

Tasks of one skill share questions and differ in the style of their answers, which makes their
gradients conflict. Each task has its own instruction, as in Vision-FLAN.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from merit.mini.world.questions import Question
from merit.mini.world.scene import KINDS, Scene, phrase
from merit.mini.world.skills import SKILLS, Skill, skill

STYLES = ("short", "option", "sentence", "rationale")
CAPTIONS = ("brief", "list")
SHORT = (
    "answer the question using a single word or phrase .",
    "give a short answer .",
    "reply with one word .",
)
SENTENCE = ("answer in a full sentence .", "reply with a sentence .", "say it in a sentence .")
RATIONALE = ("explain your answer .", "give the reason first .", "say why .")
BRIEF = ("write a brief caption .", "caption this image .")
LIST = ("list what is shown .", "make a list of all you see .")


@dataclass(frozen=True)
class Task:
    """One task unit: `subject` is a skill, or for captions a kind of scene.

    In pooled units, style "mixed" draws a style per example, subject "all" a skill that the scene
    allows.
    """

    name: str
    family: str
    style: str
    subject: str
    variant: int  # which of the style's instructions this task uses

    @property
    def kinds(self) -> tuple[str, ...]:
        if self.subject == "all":
            return KINDS
        return (self.subject,) if self.subject in KINDS else skill(self.subject).kinds


def all_tasks() -> list[Task]:
    """The 136 tasks, sorted by name."""
    tasks = [
        Task(
            f"{s.name}-{style}", s.family if style != "rationale" else "rationale", style, s.name, i
        )
        for i, s in enumerate(SKILLS)
        for style in STYLES
    ]
    tasks += [
        Task(f"{kind}-{style}", "captioning" if style == "brief" else "description", style, kind, i)
        for i, kind in enumerate(KINDS)
        for style in CAPTIONS
    ]
    return sorted(tasks, key=lambda task: task.name)


def all_sources() -> list[Task]:
    """176 units: the 136 tasks, 35 pooled over styles, and 5 single sources pooled over skills."""
    pooled = [Task(f"{s.name}-pool", "pooled", "mixed", s.name, i) for i, s in enumerate(SKILLS)]
    pooled += [Task(f"{k}-pool", "pooled", "captions", k, 0) for k in KINDS if k != "sum"]
    single = [Task(f"source-{style}", "single source", style, "all", 0) for style in STYLES]
    single.append(Task("source-captions", "single source", "captions", "all", 0))
    return sorted([*all_tasks(), *pooled, *single], key=lambda task: task.name)


def task_sizes(
    tasks: list[Task], num_examples: int, spread: float, rng: np.random.Generator
) -> list[int]:
    """Unequal sizes that add up to about `num_examples`; at least 8 per task.

    Log-normal shares; `spread` is the standard deviation of their logarithm.
    """
    shares = rng.lognormal(0.0, spread, len(tasks))
    shares /= shares.sum()
    return [max(8, round(num_examples * share)) for share in shares]


def ask_task(task: Task, scene: Scene, rng: np.random.Generator) -> tuple[str, str] | None:
    """(prompt, answer) of one example, or None if the scene does not allow the question."""
    task = _unpooled(task, scene, rng)
    if task.style in CAPTIONS:
        instructions = BRIEF if task.style == "brief" else LIST
        prompt = instructions[int(rng.integers(len(instructions)))]
        return prompt, brief_caption(scene) if task.style == "brief" else list_caption(scene)
    subject = skill(task.subject)
    question = subject.ask(scene, rng)
    if question is None:
        return None
    text = training_wording(subject, question, rng)
    if task.style == "short":
        # any of the three: benchmarks ask for short answers in one way, whatever the skill
        return f"{text} {SHORT[int(rng.integers(3))]}", question.answer
    if task.style == "option":
        return option_turn(text, question, task.variant % 3, rng)
    if task.style == "sentence":
        return f"{text} {SENTENCE[task.variant % 3]}", f"{question.statement} ."
    return (
        f"{text} {RATIONALE[task.variant % 3]}",
        f"{question.evidence} , so the answer is {question.answer} .",
    )


def _unpooled(task: Task, scene: Scene, rng: np.random.Generator) -> Task:
    """The task from which one example of a pooled unit is drawn; other tasks unchanged."""
    style, subject, variant = task.style, task.subject, task.variant
    if style == "captions":
        style = CAPTIONS[int(rng.integers(len(CAPTIONS)))]
        return replace(task, style=style, subject=scene.kind)
    if style == "mixed":
        style, variant = STYLES[int(rng.integers(len(STYLES)))], int(rng.integers(3))
    if subject == "all":
        known = [s.name for s in SKILLS if scene.kind in s.kinds]
        subject, variant = known[int(rng.integers(len(known)))], int(rng.integers(3))
    return replace(task, style=style, subject=subject, variant=variant)


def training_wording(subject: Skill, question: Question, rng: np.random.Generator) -> str:
    """One of the skill's training wordings, filled in."""
    wordings = subject.wordings[1:]
    return wordings[int(rng.integers(len(wordings)))].format(**question.slots)


def lettered(question: Question, rng: np.random.Generator) -> tuple[list[str], str]:
    """Up to four options in a random order, and the letter of the right one."""
    wrong = [question.choices[int(i)] for i in rng.permutation(len(question.choices))[:3]]
    options = [question.answer, *wrong]
    order = [int(i) for i in rng.permutation(len(options))]
    return [options[i] for i in order], "ABCD"[order.index(0)]


def option_turn(
    text: str, question: Question, variant: int, rng: np.random.Generator
) -> tuple[str, str]:
    """A multiple-choice prompt, and the words of the right option.

    Words, not the letter: a decoder of this size does not learn to look up a letter (measured), and
    VLMEvalKit's exact matching accepts an option's words.
    """
    options, _ = lettered(question, rng)
    return option_prompt(text, options, variant), question.answer


def option_prompt(text: str, options: list[str], variant: int) -> str:
    """The question with its options, in one of three layouts in common use."""
    listed = "\n".join(f"{letter}. {o}" for letter, o in zip("ABCD", options, strict=False))
    if variant == 0:
        return (
            f"Question: {text}\nOptions:\n{listed}\n"
            "Please select the correct answer from the options above."
        )
    if variant == 1:
        return f"{text}\n{listed}\nanswer with the correct option ."
    return f"{text} choose one .\n{listed}"


def brief_caption(scene: Scene) -> str:
    """One short phrase."""
    if scene.kind == "shapes":
        return f"{len(scene.things)} things on {scene.ground} ground ."
    if scene.kind == "sign":
        return f"a sign with {scene.text} ."
    if scene.kind == "chart":
        return "a chart with 4 bars ."
    return f"a sum of {scene.digits[0]} and {scene.digits[1]} ."


def list_caption(scene: Scene) -> str:
    """What is shown, as a list without positions."""
    parts = [phrase(thing) for thing in scene.things]
    if scene.text:
        parts.insert(0, f"sign {scene.text}")
    if scene.digits:
        parts.insert(0, f"digits {scene.digits[0]} {scene.digits[1]}")
    parts += [f"{bar.colour} {bar.height}" for bar in scene.bars]
    return " , ".join(parts) + " ."
