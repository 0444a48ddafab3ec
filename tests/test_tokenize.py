"""Chat templates taken apart, the loss mask, and limits on length."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from PIL import Image

from merit.config import Encoding
from merit.data.examples import make_example
from merit.errors import MeritError
from merit.mini.nets import build_tokenizer
from merit.train.dataset import TokenizedDataset
from merit.train.images import ImageReader
from merit.train.model import load_processor
from merit.train.tokenize import Template, encode_examples, template_of
from tests import tiny_models
from tests.conftest import Tiny

WORDS = ["say", "yes", "no", "red", "blue", "what", "color", "is", "it"]
SYSTEM = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nBe good.<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
)

SKIP = "{% for m in messages if m['role'] != 'system' %}"


def words(template: str | None = None) -> Any:
    tokenizer = build_tokenizer(WORDS)
    tokenizer.chat_template = template
    return tokenizer


def test_a_chat_template_is_taken_apart() -> None:
    template = template_of(words(SYSTEM), "chat")
    assert template == Template(
        opening="<|im_start|>system\nBe good.<|im_end|>\n<|im_start|>user\n",
        to_answer="<|im_end|>\n<|im_start|>assistant\n",
        to_prompt="\n<|im_start|>user\n",
        closing="\n",
        end="<|im_end|>",
        system=("<|im_start|>system\n", "<|im_end|>\n<|im_start|>user\n"),
    )
    example = make_example("x", "t", [("say yes", "yes"), ("what", "no")], ())
    segments = list(template.segments(example))
    written = "".join(text for pieces, _ in segments for text, _ in pieces)
    assert written == words(SYSTEM).apply_chat_template(list(example.messages), tokenize=False)
    supervised = [pieces for pieces, supervised in segments if supervised]
    assert supervised == [[(word, True), ("<|im_end|>", False)] for word in ("yes", "no")]


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (  # Llama 2: a space before the end mark, a beginning at every question
            "{% for m in messages %}{% if m['role'] == 'user' %}{{ bos_token }}[INST] "
            "{{ m['content'] }} [/INST]{% else %} {{ m['content'] }} {{ eos_token }}{% endif %}"
            "{% endfor %}",
            Template(
                *("<s>[INST] ", " [/INST] ", "<s>[INST] ", "", " </s>"), (" ", " </s><s>[INST] ")
            ),
        ),
        (  # an end mark that is special, but neither of the tokenizer's own
            "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}<turn_end>{% endfor %}",
            Template(
                *("user: ", "<turn_end>assistant: ", "user: ", "", "<turn_end>"),
                ("system: ", "<turn_end>user: "),
            ),
        ),
    ],
)
def test_templates_of_llamas(tmp_path: Path, template: str, expected: Template) -> None:
    """And the plain template begins as the tokenizer does."""
    marks = ("<unk>", "<s>", "</s>", "<turn_end>")
    kind = "PreTrainedTokenizerFast"
    tiny_models.tokenizer(tmp_path, marks, kind, eos="</s>", bos="<s>", template=template)
    processor = load_processor(tmp_path)
    assert template_of(processor, "chat") == expected
    assert template_of(processor, "plain") == Template("<s>", "\n", "\n", "", "</s>", ("<s>", "\n"))


@pytest.mark.parametrize(
    "broken",
    [
        None,
        "{{ messages[-1]['content'] }}",
        "{% for m in messages %}{{ m['content'] }}{% endfor %}",
    ],
)
def test_a_template_that_cannot_be_taken_apart_is_refused(broken: str | None) -> None:
    with pytest.raises(MeritError, match="chat template"):
        template_of(words(broken), "chat")


def test_plain_text_is_prompt_answer_and_end_mark() -> None:
    example = make_example("x", "t", [("say yes", "yes no")], ())
    data = encode_examples([example], words(), {}, np.zeros((0, 3)), Encoding(template="plain"))
    tokens = words().convert_ids_to_tokens(data.tokens.tolist())
    assert tokens == ["say", "yes", "yes", "no", "<|im_end|>"]
    assert data.loss_mask.tolist() == [False, False, True, True, True]


def long_example(tiny: Tiny, settings: Encoding, images: tuple[str, ...] = ()) -> TokenizedDataset:
    example = make_example("q7", "t", [("what color ?", "red . yes . yes .")], images)
    grids = np.array([[1, 8, 8]])
    return encode_examples([example], tiny.processor, {"x.png": 0}, grids, settings)


@pytest.mark.parametrize("family", [tiny_models.qwen, tiny_models.qwen_vl, tiny_models.llama])
@pytest.mark.parametrize("system", ["", " Be brief.\n"])
@pytest.mark.parametrize("mark", ["", "<|im_end|>", "<|eot_id|>", "<|image_pad|>"])
def test_tokens_are_those_of_the_model_s_own_template(
    tmp_path: Path, family: Any, system: str, mark: str
) -> None:
    """With its filters (Llama 3 trims), a system turn; and what people wrote is text.

    Bytes are tokens here, so a mark that is text is its own letters.
    """
    family(tmp_path)
    processor = load_processor(tmp_path)
    tokenizer = getattr(processor, "tokenizer", processor)
    tokenizer.chat_template = tokenizer.chat_template or tiny_models.QWEN_TEMPLATE
    example = make_example("x", "t", [(f" a{mark}\n", f"{mark} b "), ("c", f"{mark}\t")], ())
    if system:
        turn = {"role": "system", "content": f"{system}{mark}"}
        example = replace(example, messages=(turn, *example.messages))
    data = encode_examples([example], processor, {}, np.zeros((0, 3)))
    plain = [{**m, "content": m["content"].replace(mark, "@")} for m in example.messages if mark]
    text = processor.apply_chat_template(plain or list(example.messages), tokenize=False)
    expected = tokenizer(text, add_special_tokens=False)["input_ids"]
    letters = tokenizer(mark, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    (place,) = tokenizer("@", add_special_tokens=False)["input_ids"]
    filled = [letters if mark and token == place else [token] for token in expected]
    assert data.tokens.tolist() == [token for part in filled for token in part]
    said = bytes(tokenizer.decode(data.tokens[data.loss_mask]), "utf-8").decode()
    end = tokenizer.eos_token if family is tiny_models.llama else "<|im_end|>"
    answers = [f"{mark} b ", f"{mark}\t"]
    if family is tiny_models.llama:
        answers = [answer.strip() for answer in answers]
    assert said == "".join(f"{answer}{end}" for answer in answers)


def test_a_template_without_a_place_for_a_system_turn_names_the_example() -> None:
    refusing = SYSTEM.replace("{% if", "{% if messages[0]['role'] == 'system' %}"
                              "{{ raise_exception('no') }}{% endif %}{% if", 1)  # fmt: skip
    for template in (refusing, SYSTEM.replace("{% for m in messages %}", SKIP)):
        example = make_example("q7", "t", [("say", "yes")], ())
        turn = {"role": "system", "content": "no"}
        example = replace(example, messages=(turn, *example.messages))
        with pytest.raises(MeritError, match="task 't', example 'q7': a system turn"):
            encode_examples([example], words(template), {}, np.zeros((0, 3)))


def test_a_long_example_is_named_or_cut(tiny: Tiny) -> None:
    whole = long_example(tiny, Encoding())
    length = int(whole.num_tokens()[0])
    with pytest.raises(MeritError, match=rf"task 't', example 'q7': {length} tokens.*max_tokens"):
        long_example(tiny, Encoding(max_tokens=length - 1))
    cut = long_example(tiny, Encoding(max_tokens=length - 3, on_long_example="cut"))
    assert_array_equal(cut.tokens, whole.tokens[:-3])
    assert cut.num_loss_tokens()[0] == whole.num_loss_tokens()[0] - 3
    with pytest.raises(MeritError, match="'q7'"):
        long_example(tiny, Encoding(max_tokens=10, on_long_example="cut"), ("x.png",))


def test_images_that_the_model_cannot_see_are_refused(tiny: Tiny, tmp_path: Path) -> None:
    example = make_example("q7", "t", [("what color ?", "red")], ("x.png",))
    with pytest.raises(MeritError, match=r"'q7' has images.*text model"):
        encode_examples([example], words(SYSTEM), {"x.png": 0}, np.array([[1, 8, 8]]))
    Image.new("RGB", (2010, 10)).save(tmp_path / "x.png")
    with pytest.raises(MeritError, match=r"x.png: 2010 x 10 pixels: .*aspect ratio"):
        ImageReader(tmp_path, tiny.processor.image_processor).grid("x.png")
