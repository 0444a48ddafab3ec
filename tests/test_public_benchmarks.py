"""The public benchmarks: tiny files in the original columns through VLMEvalKit's own classes."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from merit.config import Evaluation, JudgeSettings
from merit.errors import MeritError
from merit.eval.answering.answers import question_files
from merit.eval.benchmarks import BENCHMARKS, engine_of
from merit.eval.engine import BenchmarkScore, ScoringEngine
from merit.eval.judge import Judge
from merit.eval.results import TOLERANCE
from merit.io.artifacts import Artifacts
from tests.tsv import encoded, write_tsv

KEY = "sk-not-a-real-one"
Row = dict[str, Any]


def write(folder: Path, name: str, rows: list[Row]) -> Path:
    """`$LMUData/<dataset>.tsv` of a benchmark."""
    return write_tsv(folder / str(BENCHMARKS[name].file), rows)


@pytest.fixture(scope="module")
def engine() -> Iterator[ScoringEngine]:
    with ScoringEngine(checked=False) as running:
        yield running


def choice(answer: str, **more: Any) -> Row:
    options = {"A": "cat", "B": "dog", "C": "cow", "D": "pig"}
    return {"question": "which one ?", **options, "answer": answer, "category": "c", **more}


ROWS: dict[str, list[Row]] = {
    "seedbench": [choice("A"), choice("B"), choice("C")],
    "ai2d": [choice("A", hint="look"), choice("D", hint="")],
    "mmbench": [
        {"index": i, **choice(answer, split="dev", **{"l2-category": "x"})}
        for i, answer in ((1, "A"), (1000001, "B"), (2, "A"), (1000002, "B"), (3, "C"))
    ],
    "mmmu": [
        choice("A", split="dev"),
        choice("B", split="validation", image=str([encoded("red"), encoded("blue")]))
        | {"question": "is <image 2> like <image 1> ?"},
        {**choice("42", split="validation"), "A": "", "B": "", "C": "", "D": ""},
    ],
    "textvqa": [
        {"question": "what colour ?", "answer": str(["red"] * 2 + ["blue"] * 8)},
        {"question": "what word ?", "answer": str(["stop"] * 10)},
    ],
    "docvqa": [
        {"question": "what name ?", "answer": str(["abcd", "zz"])},
        {"question": "what date ?", "answer": str(["monday"])},
    ],
    "mme": [  # categories of unequal size
        {"question": "so ?", "answer": answer, "category": category, "image_path": f"{image}.png"}
        for category, image in (("OCR", "a"), ("OCR", "b"), ("color", "a"))
        for answer in ("Yes", "No")
    ],
    "hallusion": [
        {"index": f"VD_figure_x_{s}_{f}_{q}", "question": "so ?", "answer": "Yes"}
        | {"category": "VD", "l2-category": "figure"}
        for s, f, q in ((0, 0, 0), (0, 0, 1), (0, 1, 0), (0, 1, 1))
    ],
    "mathvista": [
        {"question": "how many ?", "question_type": "free_form", "answer_type": "integer"}
        | {"answer_option": "", "choices": "", "task": "math", "skills": "['a']", "answer": "7"},
        {"question": "which ?", "question_type": "multi_choice", "answer_type": "text"}
        | {"answer_option": "B", "choices": "['x', 'y']", "task": "math", "skills": "['b']"}
        | {"answer": "y"},
    ],
    "mmvet": [
        {"question": "what is it ?", "answer": "a cat<AND>a dog", "category": "rec,ocr"},
        {"question": "what does it say ?", "answer": "stop<OR>halt"}
        | {"category": "know,gen,spat,math"},
    ],
    "llava_wild": [
        {"question": "describe it .", "gpt4_ans": "a cat", "caption": "cat", "category": c}
        for c in ("conv", "detail")
    ],
    "miabench": [
        {"question": "describe it in two words .", "num_of_component": 2}
        | {"components": "['describe', 'two words']", "component_weight": "[2, 8]"}
        | {"component_type": "['a', 'b']"},
    ],
}  # fmt: skip


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("LMUData")
    return {name: write(folder, name, rows) for name, rows in ROWS.items()}


def of(files: dict[str, Path], *names: str) -> dict[str, Path]:
    return {name: files[name] for name in names}


# --- the table and the files ----------------------------------------------------------------------


def test_records_stand_for_the_papers_columns() -> None:
    image = ["seedbench", "mmbench", "llava_wild", "mmvet", "textvqa", "ai2d", "mathvista", "mmmu"]
    text = ["mmlu", "gpqa", "hellaswag", "winogrande", "boolq", "xnli"]
    text += ["arc_challenge", "humaneval"]
    minis = [b for b in BENCHMARKS.values() if b.name.startswith("mini_")]
    assert [b.paper_column for b in minis] == image + text
    kinds = ["choice"] * 2 + ["open"] * 2 + ["exact"] * 4 + ["likelihood"] * 4 + ["generation"] * 4
    assert [b.kind for b in minis] == kinds
    found = {b.paper_column: b for b in BENCHMARKS.values() if b.public}
    assert set(found) == {*image, *text, "mme_scaled", "hallusion", "docvqa", "miabench"}
    assert {c for c, b in found.items() if b.engine == "lm_eval"} == set(text)
    assert [b.category for b in minis] == [found[column].category for column in image + text]
    judged = {c for c, b in found.items() if b.judge == "required"}
    assert judged == {"llava_wild", "mmvet", "mathvista", "miabench"}


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["mini_chart"], "mini_chart.*`mini_charts`"),
        (["zzz"], "mini_scene, mini_mcq"),
        (["mini_scene", "mini_places"], "mini_scene and mini_places"),
    ],
)
def test_an_unknown_name_and_two_engines_are_refused(names: list[str], message: str) -> None:
    with pytest.raises(MeritError, match=message):
        engine_of(names)


def test_a_missing_or_another_file_is_refused_with_its_address_and_md5(
    engine: ScoringEngine, files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LMUData", str(tmp_path))
    found = question_files(Artifacts("x", tmp_path / "a"), Evaluation(benchmarks=["textvqa"]))
    assert found == {"textvqa": tmp_path / "TextVQA_VAL.tsv"}
    address = r"https://.*/TextVQA_VAL.tsv.* b233b31f551bbf4056f2f955da3a92cd"
    with pytest.raises(MeritError, match=rf"{tmp_path}/TextVQA_VAL.tsv: .* {address}"):
        engine.prompts(found)
    with pytest.raises(MeritError, match=r"mmvet .*`evaluation\.judge`"):
        engine.score(of(files, "mmvet"), {"m": {"mmvet": {"0": "a", "1": "b"}}})
    monkeypatch.setattr(engine, "checked", True)
    with pytest.raises(MeritError, match=r"MMMU_DEV_VAL.tsv: MD5 .* 585e8ad75e73f75dcad265dfd0417"):
        engine.prompts(of(files, "mmmu"))


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("seedbench", {"answer": ""}, "index '1': `answer`"),
        ("seedbench", {"B": ""}, "index '1': `answer` is 'B', which is not the letter of an op"),
        ("ai2d", {"answer": "E"}, "index '1': `answer` is 'E'"),
        ("mathvista", {"skills": None}, "`skills` is missing"),
        ("llava_wild", {"gpt4_ans": ""}, "`gpt4_ans`"),
        ("docvqa", {"index": 0}, "index '0' occurs twice"),
    ],
)
def test_malformed_files_are_refused(
    engine: ScoringEngine, tmp_path: Path, name: str, change: Row, message: str
) -> None:
    rows = [dict(row) for row in ROWS[name][:2]]
    rows[1] |= change
    gone = [column for column, value in change.items() if value is None]
    file = write(tmp_path, name, [{k: v for k, v in r.items() if k not in gone} for r in rows])
    with pytest.raises(MeritError, match=message) as caught:
        engine.prompts({name: file})
    assert str(file) in str(caught.value)


# --- prompts ------------------------------------------------------------------------------------


def test_prompts_are_the_kits_with_images_left_where_they_are(
    engine: ScoringEngine, files: dict[str, Path]
) -> None:
    found = engine.prompts(files)
    options = "Options:\nA. cat\nB. dog\nC. cow\nD. pig\n"
    tail = "Please select the correct answer from the options above. \n"
    assert found["ai2d"]["0"] == [
        {"image": ["0", 0]},
        {"text": f"Hint: look\nQuestion: which one ?\n{options}{tail}"},
    ]
    assert found["mmmu"]["1"] == [
        {"text": "Question: is "},
        {"image": ["1", 1]},
        {"text": " like "},
        {"image": ["1", 0]},
        {"text": f" ?\n{options}{tail}"},
    ]
    assert found["mmmu"]["2"][1] == {"text": "Question: which one ?\n"}  # an open question
    short = "what word ?\nAnswer the question using a single word or phrase."
    assert found["textvqa"]["1"] == [{"image": ["1", 0]}, {"text": short}]
    assert found["llava_wild"]["0"] == [{"image": ["0", 0]}, {"text": "describe it ."}]
    assert set(found["mmbench"]) == {"1", "1000001", "2", "1000002", "3"}


def test_words_that_look_like_missing_values_are_options(
    engine: ScoringEngine, tmp_path: Path
) -> None:
    row = {**choice("D"), "A": "None", "B": "NA", "C": "", "D": "null"}
    found = engine.prompts({"seedbench": write(tmp_path, "seedbench", [row])})
    assert "Options:\nA. None\nB. NA\nD. null\n" in found["seedbench"]["0"][1]["text"]


# --- scores without a judge -----------------------------------------------------------------------


def assert_means(found: dict[str, BenchmarkScore]) -> None:
    """The reported score of a benchmark is its questions' mean, as merit.eval.results asks."""
    means = {n: 100 * sum(s.questions.values()) / len(s.questions) for n, s in found.items()}
    assert means == pytest.approx({name: s.score for name, s in found.items()}, abs=TOLERANCE)


def test_scores_by_hand(engine: ScoringEngine, files: dict[str, Path]) -> None:
    answers = {
        "seedbench": {"0": "A", "1": "C", "2": "It looks fine to me , I would say so"},
        "ai2d": {"0": "cat", "1": "(D)"},
        "mmbench": {"1": "A", "1000001": "B", "2": "A", "1000002": "C", "3": "cow"},
        "mmmu": {"0": "C", "1": "B", "2": "42"},
        "textvqa": {"0": "Red.", "1": "go"},
        "docvqa": {"0": "abce", "1": "friday!!"},
        "mme": dict(zip("012345", ("Yes", "no .", "No", "No", "Yes", "yes"), strict=True)),
        "hallusion": dict(
            zip((r["index"] for r in ROWS["hallusion"]), ("Yes", "No", "yes", "Yes"), strict=True)
        ),
    }
    found = engine.score(of(files, *answers), {"m": answers})["m"]
    assert found["seedbench"].score == pytest.approx(100 / 3)
    assert found["seedbench"].questions == {"0": 1, "1": 0, "2": 0}
    assert found["ai2d"] == BenchmarkScore(100, {"0": 1, "1": 1})
    # of three questions, the second is wrong with its options in another order
    assert found["mmbench"].score == pytest.approx(200 / 3)
    assert found["mmbench"].questions == {"1": 1, "2": 0, "3": 1}
    # dev's question is wrong and does not count; an open one is matched as "A" for its answer
    assert found["mmmu"] == BenchmarkScore(100, {"1": 1, "2": 1})
    # leaving out one of ten: twice 1/3 and eight times 2/3
    assert found["textvqa"].score == pytest.approx(30)
    assert found["textvqa"].questions == pytest.approx({"0": 0.6, "1": 0})
    # one of four letters differs; less than half alike counts nothing
    assert found["docvqa"].questions == pytest.approx({"0": 0.75, "1": 0})
    assert found["docvqa"].score == pytest.approx(37.5)
    # OCR: 3 of 4 and 1 of 2 pairs, 125; color: 1 of 2 and no pair, 50
    assert found["mme"].also["raw"] == 175
    assert found["mme"].score == pytest.approx(175 / 23)
    # 6/23 (hit/4 + pair/(2 * 2)) in OCR, 6/23 (hit/2 + pair/2) in color
    parts = (3 / 23, 3 / 23, 0, 1.5 / 23, 3 / 23, 0)
    assert found["mme"].questions == pytest.approx(dict(zip("012345", parts, strict=True)))
    assert found["hallusion"].score == 75
    # one figure of two and one question of two are right throughout
    assert found["hallusion"].also == {"kit_mean": pytest.approx((75 + 50 + 50) / 3)}
    assert_means(found)


def test_a_rehearsal_asks_the_first_questions_that_count(
    engine: ScoringEngine, files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "limit", 1)
    chosen = of(files, "mmbench", "mmmu")
    found = engine.prompts(chosen)
    assert {name: list(prompts) for name, prompts in found.items()} == {
        "mmbench": ["1", "1000001"],  # a question with its rotations
        "mmmu": ["1"],  # the first one is of another split
    }
    answers = {"mmbench": {"1": "A", "1000001": "B"}, "mmmu": {"1": "A"}}
    scores = engine.score(chosen, {"m": answers})["m"]
    assert (scores["mmbench"].score, scores["mmmu"].score) == (100, 0)


# --- a judge ------------------------------------------------------------------------------------


class Handler(BaseHTTPRequestHandler):
    server: Endpoint

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append(body)
        self.server.keys.append(self.headers.get("Authorization"))
        found = self.server.reply(json.dumps(body["messages"]))
        if isinstance(found, float):
            time.sleep(found)
            found = 503
        if isinstance(found, int):
            self.send_error(found)
            return
        content = {"choices": [{"message": {"content": found}}]}
        self.send_response(200)
        self.end_headers()
        self.wfile.write(found if isinstance(found, bytes) else json.dumps(content).encode())

    def log_message(self, *_: Any) -> None:
        pass


class Endpoint(ThreadingHTTPServer):
    """A tiny OpenAI-compatible server; `reply` gives a text, a status, raw bytes or a delay."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.reply: Callable[[str], str | int | float | bytes] = lambda text: "hello"
        self.url = f"http://127.0.0.1:{self.server_port}/v1"
        threading.Thread(target=self.serve_forever, args=[0.02], daemon=True).start()


Judging = Callable[..., Endpoint]


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[Endpoint]:
    monkeypatch.setattr("merit.eval.judge.WAITS", (0.0,))
    monkeypatch.setenv("TEST_KEY", KEY)
    found = Endpoint()
    yield found
    found.shutdown()
    found.server_close()


def judge(endpoint: Endpoint, record: Path, **values: Any) -> Judge:
    given = {"url": endpoint.url, "model": "m-1", "key_variable": "TEST_KEY", "timeout": 5.0}
    return Judge(JudgeSettings(**{**given, **values}), record)


def asked(text: str = "so ?", **more: Any) -> dict[str, Any]:
    return {"model": "judge", "messages": [{"role": "user", "content": text}], **more}


def test_answers_are_recorded_and_replayed(endpoint: Endpoint, tmp_path: Path) -> None:
    record = tmp_path / "judgements.jsonl"
    image = f"data:image/jpeg;base64,{encoded('red')}"
    shown = [{"type": "text", "text": "see"}, {"type": "image_url", "image_url": {"url": image}}]
    first = judge(endpoint, record)
    for body in (asked(max_tokens=3), asked(max_tokens=3), asked(shown), asked(temperature=0.5)):
        assert first.answer(body) == "hello"
    assert judge(endpoint, record, temperature=0.25).answer(asked(temperature=2.0)) == "hello"
    # the second one was known; the experiment's temperature goes before the kit's
    assert [body["temperature"] for body in endpoint.asked] == [0.0, 0.0, 0.5, 0.25]
    assert [body["model"] for body in endpoint.asked] == ["m-1"] * 4
    assert endpoint.keys == [f"Bearer {KEY}"] * 4
    assert endpoint.asked[1]["messages"][0]["content"] == shown  # the image itself
    assert not [part for part in (KEY, "base64", endpoint.url) if part in record.read_text()]
    endpoint.reply = lambda text: 500
    again = judge(endpoint, record, replay_only=True, key_variable="NO_SUCH_VARIABLE")
    assert again.answer(asked(max_tokens=3)) == "hello"
    assert again.failure is None
    assert again.answer(asked("never asked")) is None
    assert again.failure
    record.write_text(record.read_text() + '{"request"')
    with pytest.raises(MeritError, match="jsonl, line 5: "):
        judge(endpoint, record)
    keyless = judge(endpoint, tmp_path / "j", key_variable="NO_SUCH_VARIABLE")
    assert keyless.answer(asked()) is None
    assert "NO_SUCH_VARIABLE" in str(keyless.failure)


@pytest.mark.parametrize(
    ("reply", "message", "tries"),
    [
        (401, "401", 1),
        (503, "503", 2),
        ("  ", "empty", 2),
        (b"<html>", "no chat completion", 1),
        (0.5, "timed out", 2),
    ],
)
def test_no_answer_is_a_failure(
    endpoint: Endpoint, tmp_path: Path, reply: Any, message: str, tries: int
) -> None:
    endpoint.reply = lambda text: reply
    failing = judge(endpoint, tmp_path / "j", timeout=0.2)
    assert failing.answer(asked()) is None
    assert message in str(failing.failure)
    assert endpoint.url in str(failing.failure)
    assert KEY not in str(failing.failure)
    assert failing.answer(asked("another")) is None  # nobody is asked any more
    assert len(endpoint.asked) == tries
    assert not (tmp_path / "j").exists()


JUDGED = {
    "seedbench": {"0": "A", "1": "woof , it says , as they do", "2": "no idea at all about this"},
    "mathvista": {"0": "there are seven of them", "1": "B"},
    "mmvet": {"0": "a cat", "1": "halt"},
    "llava_wild": {"0": "a cat .", "1": "a dog ."},
    "miabench": {"0": "a cat"},
    "hallusion": {r["index"]: "it seems so" for r in ROWS["hallusion"]},
}


def verdict(text: str) -> str:
    """What a judge says to each of the kit's requests."""
    if "match an answer with several options" in text:
        return "B" if "woof" in text else "A"
    if "extract the answer" in text:
        return "7"
    if "correctness score" in text or "Correctness" in text:
        return "0.8" if "halt" in text else "0.4"
    if "two AI assistants" in text:
        return "6 9\nGood ." if "a dog" in text else "9 2\nBad ."
    if "You need to grade" in text:
        return "score of component 1: 1/2, score of component 2: 6/8, total score: 7/10. Fine."
    return "Yes" if "Yes / No" in text else "hello"


@pytest.fixture
def judging(
    engine: ScoringEngine, endpoint: Endpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Judging:
    """Give the engine a judge that replies so."""

    def start(reply: Callable[[str], Any], **values: Any) -> Endpoint:
        endpoint.reply = reply
        monkeypatch.setattr(engine, "judge", judge(endpoint, tmp_path / "j", **values))
        return endpoint

    return start


def test_a_judge_scores_and_is_replayed(
    engine: ScoringEngine, files: dict[str, Path], judging: Judging
) -> None:
    endpoint = judging(verdict)
    chosen = of(files, *JUDGED)
    found = engine.score(chosen, {"m": JUDGED})["m"]
    # "woof" is read as B, and what says nothing as the judge's A, which is wrong
    assert found["seedbench"].questions == {"0": 1, "1": 1, "2": 0}
    assert found["mathvista"] == BenchmarkScore(100, {"0": 1, "1": 1})
    assert found["mmvet"].score == pytest.approx(60)
    assert found["mmvet"].questions == pytest.approx({"0": 0.4, "1": 0.8})
    # GPT-4's answers have 7.5 on average: 2 and 9 of it, 5.5 of 7.5 together, rounded by the kit
    assert found["llava_wild"].score == 73.3
    assert found["llava_wild"].questions == pytest.approx({"0": 2 / 7.5, "1": 9 / 7.5})
    assert found["miabench"].score == pytest.approx(70)
    assert found["hallusion"].score == 100
    assert {body["model"] for body in endpoint.asked} == {"m-1"}
    assert_means(found)
    num_asked = len(endpoint.asked)
    judging(verdict, replay_only=True)
    assert engine.score(chosen, {"m": JUDGED})["m"] == found
    assert len(endpoint.asked) == num_asked


@pytest.mark.parametrize("name", ["seedbench", "llava_wild", "miabench"])
def test_a_judge_that_talks_nonsense_is_an_error(
    engine: ScoringEngine, files: dict[str, Path], judging: Judging, name: str
) -> None:
    judging(lambda text: "well , who knows")
    with pytest.raises(MeritError, match=rf"m: {name}: .*index '\d'"):
        engine.score(of(files, name), {"m": {name: JUDGED[name]}})


def test_a_judge_that_does_not_answer_ends_the_scoring(
    engine: ScoringEngine, files: dict[str, Path], judging: Judging
) -> None:
    """The last test: the scoring process is ended, too, or it would go on by exact matching."""
    judging(lambda text: 401)
    with pytest.raises(MeritError, match=r"m-1 at http.*401") as caught:
        engine.score(of(files, "seedbench"), {"m": {"seedbench": JUDGED["seedbench"]}})
    assert KEY not in str(caught.value)
