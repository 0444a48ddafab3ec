"""Are the answers right? Questions about scenes made by hand, against answers found by looking."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest

from merit.mini.world.cell_labels import CHARACTERS, HEADS, cell_labels
from merit.mini.world.draw import draw_scene
from merit.mini.world.questions import Question
from merit.mini.world.scene import COLOURS, GROUNDS, Bar, Scene, Thing
from merit.mini.world.skills import SKILLS, skill
from merit.mini.world.world_tasks import lettered

# --- answers ------------------------------------------------------------------------------------

#       column 0            1             2            3
# row 0 large red circle    .             small blue circle .
# row 1 .                   .             .            .
# row 2 small red star      .             .            small green square
# row 3 .                   large red cross .          .
SHAPE_SCENE = Scene(
    "shapes",
    "dotted",
    things=(
        Thing("circle", "red", "large", 0, 0),
        Thing("circle", "blue", "small", 0, 2),
        Thing("star", "red", "small", 2, 0),
        Thing("square", "green", "small", 2, 3),
        Thing("cross", "red", "large", 3, 1),
    ),
)
CHART = Scene(
    "chart",
    "plain",
    bars=(Bar("red", 3, 0), Bar("blue", 7, 1), Bar("green", 1, 2), Bar("yellow", 5, 3)),
)
WORD = Scene("sign", "plain", text="frog")
NUMBER = Scene("sign", "plain", text="47")
SUM = Scene("sum", "checked", digits=(3, 8), things=(Thing("star", "red", "small", 3, 0),))

# what is named in the question: the answer, by looking at the scene above
BY_HAND: tuple[tuple[Scene, str, str], ...] = (
    (SHAPE_SCENE, "count_shape",
     "circles: 2, stars: 1, squares: 1, crosses: 1, triangles: 0, diamonds: 0"),
    (SHAPE_SCENE, "count_colour",
     "red things: 3, blue things: 1, green things: 1, yellow things: 0, purple things: 0, "
     "orange things: 0"),
    (SHAPE_SCENE, "count_size", "small things: 3, large things: 2"),
    (SHAPE_SCENE, "count_all", ": 5"),
    (SHAPE_SCENE, "colour_of", "star: red, square: green, cross: red"),
    (SHAPE_SCENE, "shape_of", "blue thing: circle, green thing: square"),
    (SHAPE_SCENE, "size_of",
     "red circle: large, blue circle: small, red star: small, green square: small, "
     "red cross: large"),
    (SHAPE_SCENE, "place_of",
     "red circle: top left, blue circle: top right, red star: bottom left, "
     "green square: bottom right, red cross: bottom left"),
    (SHAPE_SCENE, "ground", ": dotted"),
    (SHAPE_SCENE, "same_colour", "star: 2, square: 0, cross: 2"),
    (SHAPE_SCENE, "common_colour", ": red"),
    (SHAPE_SCENE, "row_mate",
     "red circle: circle, blue circle: circle, red star: square, green square: star"),
    (CHART, "bar_height", "red: 3, blue: 7, green: 1, yellow: 5"),
    (CHART, "tallest", ": blue"),
    (CHART, "second", ": yellow"),
    (CHART, "shortest", ": green"),
    (CHART, "bars_above", "2: 3, 3: 2, 4: 2, 5: 1, 6: 1"),
    (CHART, "bar_right_of", "red: blue, blue: green, green: yellow"),
    (WORD, "read_word", ": frog"),
    (WORD, "word_kind", ": animal"),
    (NUMBER, "read_number", ": 47"),
    (SUM, "digit_sum", ": 11"),
    (SUM, "digit_difference", ": 5"),
    (SUM, "larger_digit", ": 8"),
    (SUM, "left_digit", ": 3"),
)  # fmt: skip


def ask_often(name: str, scene: Scene) -> list[Question]:
    asked = [skill(name).ask(scene, np.random.default_rng(seed)) for seed in range(150)]
    assert all(question is not None for question in asked)
    return [question for question in asked if question is not None]


@pytest.mark.parametrize(("scene", "name", "table"), BY_HAND)
def test_answers_by_hand(scene: Scene, name: str, table: str) -> None:
    expected = dict(entry.split(": ") for entry in table.split(", "))
    asked = ask_often(name, scene)
    assert {" ".join(q.slots.values()): q.answer for q in asked} == expected
    for question in asked:
        assert question.answer not in question.choices
        assert len(set(question.choices)) == len(question.choices) > 0


HEIGHTS = {bar.colour: bar.height for bar in CHART.bars}
NAMED = {f"{thing.colour} {thing.shape}": thing for thing in SHAPE_SCENE.things}
YES_NO: dict[str, tuple[Scene, Callable[..., bool]]] = {
    "presence": (SHAPE_SCENE, lambda what: what in NAMED),
    "left_of": (SHAPE_SCENE, lambda a, b: NAMED[a].column < NAMED[b].column),
    "above": (SHAPE_SCENE, lambda a, b: NAMED[a].row < NAMED[b].row),
    "taller": (CHART, lambda a, b: HEIGHTS[a] > HEIGHTS[b]),
    "sign_says": (WORD, lambda what: what == "frog"),
}


@pytest.mark.parametrize("name", YES_NO)
def test_yes_and_no(name: str) -> None:
    scene, truth = YES_NO[name]
    asked = ask_often(name, scene)
    answers = {tuple(q.slots.values()): q.answer for q in asked}
    assert len(answers) > 5
    assert answers == {slots: "yes" if truth(*slots) else "no" for slots in answers}
    assert set(answers.values()) == {"yes", "no"}
    assert {q.choices for q in asked} == {("yes",), ("no",)}


def test_sums_over_two_things() -> None:
    number = {"circles": 2, "stars": 1, "squares": 1, "crosses": 1}
    for question in ask_often("count_pair", SHAPE_SCENE):
        first, second = question.slots["what"].split(" and ")
        assert question.answer == str(number[first] + number[second])
    for question in ask_often("bar_difference", CHART):
        heights = [HEIGHTS[question.slots[key]] for key in ("what", "other")]
        assert question.answer == str(abs(heights[0] - heights[1]))
    named = {name for _, name, _ in BY_HAND}  # all skills are checked
    assert {s.name for s in SKILLS} == {*named, *YES_NO, "count_pair", "bar_difference"}


def test_what_cannot_be_asked_is_not() -> None:
    two_alike = Scene("shapes", "plain", things=(SHAPE_SCENE.things[0],) * 2)
    alike = ("colour_of", "shape_of", "size_of", "place_of", "left_of", "count_pair")
    for scene, names in (
        (two_alike, (*alike, "common_colour", "row_mate")),
        (WORD, ("read_number",)),
        (NUMBER, ("read_word", "word_kind", "sign_says")),
        (Scene("sum", "plain", digits=(4, 4)), ("larger_digit",)),
    ):
        for name in names:
            assert skill(name).ask(scene, np.random.default_rng(0)) is None, name


def test_the_letter_is_that_of_the_right_option() -> None:
    letters: Counter[str] = Counter()
    for seed in range(400):
        rng = np.random.default_rng(seed)
        question = skill("place_of").ask(SHAPE_SCENE, rng)
        assert question is not None
        options, letter = lettered(question, rng)
        assert options["ABCD".index(letter)] == question.answer
        assert sorted(options) == ["bottom left", "bottom right", "top left", "top right"]
        letters[letter] += 1
    # 400 draws: 100 each, give or take four standard deviations of 8.7
    assert all(65 < letters[letter] < 135 for letter in "ABCD")


# --- pictures and labels ------------------------------------------------------------------------


def test_pictures_show_the_scene() -> None:
    picture = draw_scene(SHAPE_SCENE).astype(int)
    assert picture.shape == (56, 56, 3)
    middle = picture[5:9, 5:9].mean((0, 1))  # of cell (0, 0): a red circle
    assert np.abs(middle - [214, 39, 40]).max() < 10
    chart = draw_scene(CHART).astype(int)
    column = chart[:, 14 + 4 : 28 - 4].mean(1)  # the blue bar: 7 of 8 half cells
    is_blue = np.abs(column - [40, 80, 200]).max(1) < 30
    assert is_blue.sum() == 7 * 7
    assert is_blue[-49:].all()
    assert draw_scene(CHART).tobytes() == draw_scene(CHART).tobytes()


def test_labels_by_hand() -> None:
    labels = dict(zip(HEADS, cell_labels(SHAPE_SCENE).reshape(len(HEADS), 4, 4), strict=True))
    assert labels["shape"][0].tolist() == [1, 0, 1, 0]  # circles
    assert labels["colour"][2].tolist() == [1, 0, 0, 2]  # red, green
    assert labels["size"].sum() == 2 * 2 + 3 * 1
    assert set(labels["ground"].ravel()) == {GROUNDS.index("dotted")}
    chart = dict(zip(HEADS, cell_labels(CHART).reshape(len(HEADS), 4, 4), strict=True))
    assert chart["bar"].tolist() == [[3, 7, 1, 5]] * 4  # every cell of a column knows its height
    # a cell has the bar's colour where the bar reaches into it: 3 half cells are two cells
    assert (chart["colour"] > 0).sum(0).tolist() == [2, 4, 1, 3]
    assert chart["colour"][3].tolist() == [1 + COLOURS.index(bar.colour) for bar in CHART.bars]
    characters = cell_labels(SUM).reshape(len(HEADS), 4, 4)[list(HEADS).index("character")]
    assert [CHARACTERS[i - 1] for i in characters[0, :3]] == ["3", "+", "8"]
