"""The 66 tasks: each imitates the FLAN task of its name (the paper's text study, table 4).

A task is a row: its items, its wordings and its style of answer. Similar tasks answer in different
styles ("yes" / "true" / "it is true"), so that gradients conflict.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from merit.mini.text import inference, knowledge, reading, stories, writing
from merit.mini.text.items import Item, Make, Part, draw, pick

SIZE_EXPONENT = 0.5  # sizes grow with the square root of FLAN's, which span a factor of 120
MIN_EXAMPLES = 12


@dataclass(frozen=True)
class Task:
    """`words` translates canonical answers; `thousands` is FLAN's size, at most 30."""

    name: str
    family: str
    thousands: float
    make: Make
    templates: tuple[str, ...]
    style: str
    words: Mapping[str, str] = field(default_factory=dict)


YES_NO: dict[str, str] = {}
TRUE_FALSE = {"yes": "true", "no": "false", "maybe": "unclear"}
FORMAL = {"yes": "entailment", "maybe": "neutral", "no": "contradiction"}
LONG = {"yes": "it is true .", "no": "it is not true .", "maybe": "we can not tell ."}

_BOTH = ("{premise} {claim} same ?", "first : {premise} second : {claim} do they mean the same ?")
_NLI = ("{premise} so {claim} is it so ?", "text : {premise} claim : {claim}")
_READ = ("{passage} {question}", "read this : {passage} then answer : {question}")
_PICK = ("{question} {options} ?", "pick one : {question} {options}")
_TO_OTHER = ("translate : {text}", "say in the other language : {text}")
_TO_FIRST = ("translate : {text}", "say in our language : {text}")

TASKS: tuple[Task, ...] = (
    # inference
    Task("anli_r1", "inference", 17, inference.entailment, _NLI, "formal", FORMAL),
    Task("anli_r2", "inference", 30, inference.entailment, ("{premise} {claim} what is it ?",), "formal", FORMAL),
    Task("anli_r3", "inference", 30, inference.entailment, ("claim : {claim} text : {premise}",), "true or false", TRUE_FALSE),
    Task("cb", "inference", 0.25, inference.entailment, _NLI, "yes or no", YES_NO),
    Task("mnli_matched", "inference", 30, inference.entailment, ("if {premise} then {claim} ?", *_NLI), "sentence", LONG),
    Task("mnli_mismatched", "inference", 30, inference.entailment, ("if {premise} then {claim} ?",), "true or false", TRUE_FALSE),
    Task("qnli", "inference", 30, inference.answers, ("{premise} does it answer : {question}",), "yes or no", YES_NO),
    Task("rte", "inference", 2.5, inference.two_way, _NLI, "true or false", TRUE_FALSE),
    Task("snli", "inference", 30, inference.entailment, ("{premise} can we say {claim}", *_NLI), "yes or no", YES_NO),
    Task("wnli", "inference", 0.6, inference.phrase_entailment, _NLI, "sentence", LONG),
    # commonsense
    Task("copa", "commonsense", 0.4, stories.cause, ("{passage} {question} {options} ?",), "phrase"),
    Task("hellaswag", "commonsense", 30, stories.ending, ("{passage} what comes next ?", "go on : {passage}"), "sentence"),
    Task("piqa", "commonsense", 16, knowledge.tool_for, _PICK, "word"),
    Task("story_cloze", "commonsense", 1.9, stories.two_endings, ("{passage} which end ? {options} ?",), "sentence"),
    Task("cosmos_qa", "commonsense", 25, stories.feeling, ("{passage} {question} {options} ?", "{passage} {question}"), "word"),
    Task("record", "commonsense", 30, reading.cloze, ("{passage} who is missing ? {question}",), "word"),
    # sentiment
    Task("imdb_reviews", "sentiment", 25, writing.review, ("{text} what is the review like ?", "review : {text}"), "word", {"good": "positive", "bad": "negative"}),
    Task("sentiment140", "sentiment", 30, writing.review, ("{text} how did they feel ?",), "word", {"good": "happy", "bad": "sad"}),
    Task("sst2", "sentiment", 30, writing.review, ("{text} good or bad ?",), "word"),
    Task("yelp_polarity_reviews", "sentiment", 30, writing.review, ("{text} would they come again ?",), "sentence", {"good": "yes , they would .", "bad": "no , they would not ."}),
    # paraphrase
    Task("glue_mrpc", "paraphrase", 3.7, inference.paraphrase, _BOTH, "yes or no"),
    Task("glue_qqp", "paraphrase", 30, inference.same_question, _BOTH, "true or false", TRUE_FALSE),
    Task("paws_wiki", "paraphrase", 30, inference.swapped, _BOTH, "sentence", LONG),
    Task("stsb", "paraphrase", 5.7, inference.similarity, ("{premise} {claim} how much is the same ?",), "number"),
    # closed-book questions
    Task("arc_challenge", "closed-book", 1.1, knowledge.which_can, _PICK, "word"),
    Task("arc_easy", "closed-book", 2.3, knowledge.which_made, _PICK, "word"),
    Task("natural_questions", "closed-book", 30, knowledge.closed_book, ("{question}", "answer : {question}"), "word"),
    Task("trivia_qa", "closed-book", 30, knowledge.which_lives, _PICK, "word"),
    # structure to text
    Task("common_gen", "structure to text", 30, writing.from_words, ("say it with {text}",), "sentence"),
    Task("dart", "structure to text", 30, writing.from_triples, ("put into words : {text}",), "sentence"),
    Task("e2e_nlg", "structure to text", 30, writing.from_table, ("write : {text}", "put into words : {text}"), "sentence"),
    Task("web_nlg_en", "structure to text", 30, writing.from_triples, ("write a sentence : {text}",), "sentence"),
    # reading
    Task("bool_q", "reading", 9.4, reading.yes_no, _READ, "yes or no"),
    Task("drop", "reading", 30, reading.how_many, _READ, "number"),
    Task("multirc", "reading", 27, reading.is_answer, ("{passage} {question} is it {proposed} ?",), "true or false", TRUE_FALSE),
    Task("openbookqa", "reading", 5, reading.open_book, ("{passage} {question} {options} ?",), "word"),
    Task("squad_v1", "reading", 30, reading.span, _READ, "word"),
    Task("squad_v2", "reading", 30, reading.span_or_nothing, ("{passage} {question} or none ?",), "word"),
    Task("coqa", "reading", 7, reading.dialogue, ("{passage} {history} {question}",), "word"),
    Task("quac", "reading", 30, reading.dialogue, ("{history} {question} {passage}",), "word"),
    # who is meant
    Task("definite_pronoun_resolution", "coreference", 1.3, stories.who, ("{passage} who is {pronoun} ?", "{passage} who is {pronoun} ? {options} ?"), "word"),
    Task("wsc", "coreference", 0.5, stories.is_meant, ("{passage} is {pronoun} {claimed} ?",), "yes or no"),
    # translation
    Task("para_crawl_enes", "translation", 30, writing.translate, _TO_OTHER, "sentence"),
    Task("wmt14_enfr", "translation", 30, writing.long_translate, _TO_OTHER, "sentence"),
    Task("wmt16_translate_csen", "translation", 30, writing.translate_back, _TO_FIRST, "sentence"),
    Task("wmt16_translate_deen", "translation", 30, writing.long_translate_back, _TO_FIRST, "sentence"),
    Task("wmt16_translate_fien", "translation", 30, writing.translate_phrase_back, _TO_FIRST, "phrase"),
    Task("wmt16_translate_roen", "translation", 30, writing.translate_back, ("what does it say ? {text}",), "sentence"),
    Task("wmt16_translate_ruen", "translation", 30, writing.translate_phrase, _TO_OTHER, "phrase"),
    Task("wmt16_translate_tren", "translation", 30, writing.translate_phrase_back, ("what is it ? {text}",), "phrase"),
    # shorter
    Task("aeslc", "summary", 14, reading.request, ("{letter} subject ?", "write the subject : {letter}"), "phrase"),
    Task("cnn_dailymail", "summary", 30, writing.first_news, ("make it short : {text}",), "sentence"),
    Task("gigaword", "summary", 30, writing.headline, ("headline : {text}", "{text} headline ?"), "phrase"),
    Task("multi_news", "summary", 30, writing.topics, ("what is it about ? {text}",), "list"),
    Task("opinion_abstracts_idebate", "summary", 1.7, writing.opinion, ("{text} what do they say ?",), "phrase"),
    Task("opinion_abstracts_rotten_tomatoes", "summary", 3, writing.opinion, ("reviews : {text} in short ?",), "phrase"),
    Task("samsum", "summary", 15, reading.reported, ("{talk} in short ?",), "sentence"),
    Task("wiki_lingua_english_en", "summary", 30, writing.steps, ("title : {text}", "{text} title ?"), "phrase"),
    Task("ag_news_subset", "summary", 30, knowledge.topic, ("topic : {text}", "{text} topic ?"), "word"),
    # form, words and numbers
    Task("cola", "form", 8.5, writing.acceptable, ("{text} is it right ?",), "yes or no"),
    Task("fix_punct", "form", 27, writing.punctuate, ("add the stops : {text}",), "sentence"),
    Task("true_case", "form", 29, writing.capitals, ("add the capitals : {text}",), "sentence"),
    Task("word_segment", "form", 29, writing.segment, ("add the commas : {text}",), "list"),
    Task("math_dataset", "numbers", 30, writing.calculate, ("{question} =", "what is {question} ?"), "number"),
    Task("trec", "words", 5.4, writing.question_type, ("{question} which type ?",), "word"),
    Task("wic", "words", 5.4, writing.same_sense, ("{word} : {premise} ; {claim} same ?",), "yes or no"),
)  # fmt: skip


def task_sizes(tasks: Sequence[Task], total: int) -> list[int]:
    """Examples of each task: at least `MIN_EXAMPLES`, about `total` together."""
    weights = np.array([task.thousands for task in tasks]) ** SIZE_EXPONENT
    return [max(MIN_EXAMPLES, round(float(x))) for x in total * weights / weights.sum()]


def ask(task: Task, rng: np.random.Generator, part: Part = "train") -> tuple[str, str]:
    """One (prompt, answer) of a task."""
    item = draw(task.make, rng, part)
    return prompt(item, pick(rng, task.templates)), task.words.get(item.answer, item.answer)


def prompt(item: Item, template: str) -> str:
    """The template with the item's slots. Raises KeyError for a slot that the item lacks."""
    return template.format(**item.slots)
