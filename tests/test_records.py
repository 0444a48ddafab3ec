"""Streaming readers: long JSON lists in small chunks, lines, and the rows of parquet files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from public_fixtures import IMAGE, picture

from merit.data import parquet
from merit.data.images import has_image, load_image
from merit.errors import MeritError
from merit.io import texts

VALUES = st.dictionaries(st.text(), st.one_of(st.text(), st.integers(), st.lists(st.text())))


@settings(max_examples=50, deadline=None)
@given(st.lists(VALUES), st.integers(1, 40), st.sampled_from([None, 1]))
def test_a_list_is_read_whatever_the_chunks(
    tmp_path_factory: pytest.TempPathFactory, values: list[Any], chunk: int, indent: int | None
) -> None:
    path = tmp_path_factory.mktemp("records") / "x.json"
    path.write_text(json.dumps(values, ensure_ascii=False, indent=indent), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(texts, "CHUNK", chunk)
        assert list(texts.json_records(path)) == values


def test_a_long_list_is_never_held_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.json"
    path.write_text(json.dumps([{"n": n} for n in range(5000)]))
    monkeypatch.setattr(texts, "CHUNK", 64)
    stream = texts.json_records(path)
    assert next(stream) == {"n": 0}
    path.write_text("")  # what lies beyond the file object's own buffer is not read yet
    seen: list[Any] = []
    with pytest.raises(MeritError, match=r"x\.json, record \d+: truncated"):
        seen.extend(stream)
    assert len(seen) < 1000


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('[{"a": 1}, {"b": 2', r"x\.json, record 2: truncated"),
        ('[{"a": 1}, {b: ?' + " " * 200, r"x\.json, record 2: .*JSON"),
        ('[{"a": 1}, 7]', r"x\.json, record 2: .*7"),
        ("version https://git-lfs.github.com/spec/v1\noid sha256:0", r"x\.json: .*LFS"),
    ],
)
def test_a_broken_list_is_refused_with_its_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str, message: str
) -> None:
    monkeypatch.setattr(texts, "CHUNK", 64)
    monkeypatch.setattr(texts, "LONGEST", 30)  # malformed, without reading all
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(MeritError, match=message):
        list(texts.json_records(tmp_path / "x.json"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"a": 1}\n{"a"\n', r"x\.jsonl, line 2: "),
        (b"[1]\n", r"x\.jsonl, line 1: "),
        (b'{"a": "\xff"}\n', r"x\.jsonl: not UTF-8"),
        (None, r"x\.jsonl: file not found"),
    ],
)
def test_lines_name_their_number(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('{"a": "é"}\n{"a": 2}\n', encoding="utf-8")
    assert list(texts.jsonl_records(path)) == [{"a": "é"}, {"a": 2}]
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(MeritError, match=message):
        list(texts.jsonl_records(path))


# --- parquet ------------------------------------------------------------------------------------


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Five rows in row groups of two; row i has i images, the j-th of shade 10 i + j."""
    rows = [[{"bytes": picture(10 * i + j), "path": None} for j in range(i)] for i in range(5)]
    path = tmp_path / "x.parquet"
    columns = {"images": pa.array(rows, pa.list_(IMAGE)), "name": list("abcde")}
    pq.write_table(pa.table(columns), path, row_group_size=2)
    return path


def test_an_image_of_a_row_is_found_in_any_row_group(table: Path) -> None:
    for i in range(5):
        for j in range(i):
            assert load_image(table / f"{i}/{j}").getpixel((0, 0)) == (10 * i + j,) * 3
    assert has_image(table / "4/3")
    for member in ("5/0", "1/1", "0/0", "a/b", "1/0/0", "x"):
        assert has_image(table / member) == (member in ("1/1", "0/0"))  # the row is not read
        with pytest.raises(MeritError, match=rf"x\.parquet: image '{member}'"):
            load_image(table / member)


def test_rows_are_read_without_their_images(table: Path) -> None:
    found = list(parquet.rows(table, ["images.path", "name"]))
    assert found[0] == {"images": [], "name": "a"}
    assert found[2] == {"images": [{"path": None}] * 2, "name": "c"}
    with pytest.raises(MeritError, match=r"column 'texts' .*'images', 'name'"):
        list(parquet.rows(table, ["texts"]))
    pq.write_table(pa.table({"name": ["a"]}), table)
    with pytest.raises(MeritError, match=r"x\.parquet: no column of images"):
        load_image(table / "0")
