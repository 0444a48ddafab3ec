"""Mixtures as people have them: forms of records, and files and folders in which they lie."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from public_fixtures import IMAGE, picture, save, save_lines

from merit.config.data import Columns, JsonlData
from merit.data.examples import BadRecord, Example, read_examples
from merit.data.forms import to_example
from merit.data.images import load_image
from merit.data.sources import writer
from merit.errors import MeritError
from merit.io.artifacts import atomic_folder, read_json

TURNS = [("user", "q"), ("assistant", "a")]
SYSTEM = [("system", "s"), *TURNS]
CHAT = [{"role": role, "content": text} for role, text in SYSTEM]


def write(place: str, **settings: Any) -> dict[str, list[Example]]:
    """The mixture of a place, by task, as the data stage writes it."""
    data = JsonlData.model_validate({"source": "jsonl", "folder": place, **settings})
    with atomic_folder(Path("out")) as folder:
        writer("jsonl")(data, folder)
    tasks = [entry["task"] for entry in read_json(Path("out/mixture/tasks.json"))]
    files = sorted(Path("out/mixture").glob("*.jsonl"))
    return dict(zip(tasks, map(read_examples, files), strict=True))


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


# --- forms ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("record", "columns", "turns"),
    [
        ({"messages": CHAT, "source": "web"}, {}, SYSTEM),
        ({"messages": [{**m, "content": [{"type": "text", "text": m["content"]}]} for m in CHAT]},
         {}, SYSTEM),
        ({"conversations": [{"from": "system", "value": "s"}, {"from": "human", "value": "q"},
                            {"from": "gpt", "value": "a"}]}, {}, SYSTEM),
        ({"conversations": CHAT[1:], "system": "s"}, {}, SYSTEM),
        ({"instruction": "q", "input": "", "output": "a"}, {}, TURNS),
        ({"instruction": "q", "input": "i", "output": "a"}, {}, [("user", "q\ni"), TURNS[1]]),
        ({"instruction": "q", "output": "a", "history": [["p", "b"]]}, {},
         [("user", "p"), ("assistant", "b"), *TURNS]),
        ({"prompt": "q", "completion": "a", "system": "s"}, {}, SYSTEM),
        ({"prompt": CHAT[:2], "completion": CHAT[2:]}, {}, SYSTEM),
        ({"question": "q", "response": "a"}, {}, TURNS),
        ({"Frage": "q", "Antwort": "a", "prompt": "x"},
         {"prompt": "Frage", "answer": "Antwort"}, TURNS),
        ({"dialogue": CHAT}, {"messages": "dialogue"}, SYSTEM),
    ],
)  # fmt: skip
def test_forms_of_records(
    record: dict[str, Any], columns: dict[str, str], turns: list[tuple[str, str]]
) -> None:
    example, images = to_example("x", "t", record, Columns(**columns))
    assert [(m["role"], m["content"]) for m in example.messages] == turns
    assert images == []


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"text": "x", "label": 1}, "found the keys `text`, `label`, expected `messages`"),
        ({"instruction": "x"}, "found the keys `instruction`, expected"),
        ({}, r"found the keys \(none\), expected"),
        ({"mesages": CHAT}, "unknown key `mesages`; did you mean `messages`"),
        ({"messages": CHAT[:1]}, "without an answer"),
        ({"messages": CHAT[:2]}, "without an answer"),
        ({"messages": CHAT[1:] + CHAT[:1]}, "turn 3 is from system, expected user"),
        ({"conversations": [{"from": "human", "value": "q"}, {"from": "tool", "value": "a"}]},
         r"`conversations\[1\]` has from 'tool'"),
        ({"messages": [{"role": "user", "content": {"a": 1}}]},
         r"`messages\[0\]\.content` must be text, found {'a': 1}"),
        ({"prompt": "<image>", "completion": "a"}, "1 `<image>` in the prompts, but 0 images"),
        ({"prompt": 3, "completion": "a"}, "`prompt` must be text, found 3"),
    ],
)  # fmt: skip
def test_what_a_record_lacks_is_said_with_its_own_keys(record: Any, message: str) -> None:
    with pytest.raises(BadRecord, match=message):
        to_example("x", "t", record, Columns())


def test_a_key_that_the_settings_name_is_needed() -> None:
    with pytest.raises(BadRecord, match=r"key `b` \(`data.columns.answer`\) .* `a`, `c`"):
        to_example("x", "t", {"a": "q", "c": "a"}, Columns(prompt="a", answer="b"))


def test_images_without_marks_stand_before_the_first_prompt() -> None:
    record = {"instruction": "what?", "output": "<image>", "image": "x.png"}
    example, images = to_example("x", "t", record, Columns())
    assert [m["content"] for m in example.messages] == ["<image>\nwhat?", "< image>"]
    assert images == ["x.png"]


# --- places ---------------------------------------------------------------------------------------

ROWS = [{"prompt": "q", "completion": f"{i}"} for i in range(3)]
TABLE = {key: [row[key] for row in ROWS] for key in ROWS[0]}


def answers(found: dict[str, list[Example]]) -> dict[str, str]:
    return {t: " ".join(e.messages[1]["content"] for e in found[t]) for t in found}


def table(path: str, **more: list[Any]) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(TABLE | more), path)


def test_a_folder_of_files_of_several_kinds() -> None:
    """Names hold what they like; a blank line and a byte order mark are no records."""
    lines = "\ufeff" + "\n\n".join(json.dumps(row) for row in ROWS) + "\n\n"
    save(Path("mine/my [task] 100%|?.jsonl"), lines)
    table("mine/tables.parquet")
    for i in range(2):
        table(f"mine/parts-0000{i}-of-00002.parquet")
    found = write("mine")
    assert answers(found) == {
        **{"my [task] 100%|?": "0 1 2", "parts": "0 1 2 0 1 2", "tables": "0 1 2"}
    }
    assert [example.id for example in found["parts"]][2:4] == [
        *("parts-00000-of-00002-2", "parts-00001-of-00002-0")
    ]
    (Path("mine") / "parts-00001-of-00002.parquet").unlink()
    with pytest.raises(MeritError, match="1 part"):
        write("mine")


def test_one_file_with_a_field_for_the_task() -> None:
    save_lines(Path("all.jsonl"), [{**row, "kind": f"k{i % 2}"} for i, row in enumerate(ROWS)])
    assert answers(write("all.jsonl", columns={"task": "kind"})) == {"k0": "0 2", "k1": "1"}
    with pytest.raises(MeritError, match=r"line 1: no key of its task .*found `prompt`, `comp"):
        write("all.jsonl")
    save(Path("list.json"), [{**row, "task": "t"} for row in ROWS])
    assert answers(write("list.json", tasks=["t"])) == {"t": "0 1 2"}


@pytest.mark.parametrize("kind", ["saved", "splits", "hub", "folders", "folders of saved"])
def test_folders_of_datasets(kind: str) -> None:
    datasets = pytest.importorskip("datasets")
    made = datasets.Dataset.from_dict({**TABLE, "task": ["x", "x", "y"]})
    other = datasets.DatasetDict({"train": made, "test": made})
    match kind:
        case "saved":
            made.save_to_disk("mine", num_shards=2)
        case "splits":
            other.save_to_disk("mine")
        case "hub":
            for name in ("train-00000-of-00001", "test-00000-of-00001"):
                table(f"mine/data/{name}.parquet", task=["x", "x", "y"])
        case "folders":
            for task in "xy":
                table(f"mine/{task}/train-00000-of-00001.parquet")
                table(f"mine/{task}/test-00000-of-00001.parquet")
        case _:
            made.remove_columns("task").save_to_disk("mine/x")
            other.remove_columns("task").save_to_disk("mine/y")
    each = "folders" in kind
    assert answers(write("mine")) == {
        "x": "0 1 2" if each else "0 1",
        "y": "0 1 2" if each else "2",
    }


def test_images_in_rows_and_beside_them() -> None:
    images = [{"bytes": picture(i), "path": None} for i in range(3)]
    table("rows/a.parquet", image=pa.array(images, IMAGE))
    lists = pa.array([images[:1], images[1:], []], pa.list_(IMAGE))
    table("rows/b.parquet", images=lists)
    save(Path("rows/x.png"), picture(9))
    table("rows/c.parquet", image=["x.png", "x.png", None])
    found = write("rows")
    shades = {
        task: [
            [load_image(Path("out/mixture") / image).getpixel((0, 0))[0] for image in e.images]
            for e in examples
        ]
        for task, examples in found.items()
    }
    assert shades == {"a": [[0], [1], [2]], "b": [[0], [1, 2], []], "c": [[9], [9], []]}
    assert found["b"][1].messages[0]["content"] == "<image>\n<image>\nq"


def test_an_empty_file_is_as_one_of_bad_lines() -> None:
    save_lines(Path("mine/a.jsonl"), ROWS)
    save(Path("mine/b.jsonl"), "\n")
    with pytest.raises(MeritError, match=r"(?s)task 'b'.*b\.jsonl: the file holds no record"):
        write("mine")
    with pytest.raises(MeritError, match="task 'b': no example is left of 1 records"):
        write("mine", on_bad_record="skip")


def test_a_place_without_data_or_with_two_files_of_a_task_is_refused() -> None:
    Path("mine/pictures").mkdir(parents=True)
    with pytest.raises(MeritError, match="mine: found no data; expected"):
        write("mine")
    save_lines(Path("mine/a b.jsonl"), ROWS)
    save_lines(Path("mine/a%20b.jsonl"), ROWS)
    with pytest.raises(
        MeritError, match=r"a b\.jsonl and a%20b\.jsonl are both of task 'a b'; rename one"
    ):
        write("mine")
