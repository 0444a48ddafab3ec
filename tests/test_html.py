"""The static page: Markdown as HTML; self-contained, well-formed, nothing lost."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
from collections import Counter
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from merit.errors import MeritError
from merit.eval.report import html as page_module
from merit.eval.report import study_sections
from merit.eval.report.build import build_index, build_report
from merit.eval.report.markdown import line_to_html, picture, to_html
from merit.eval.stages.study import write_table
from merit.eval.studies.cost import draw as drawings_cost
from merit.eval.studies.hessian import draw as drawings_hessian
from merit.eval.studies.readiness import draw as drawings_readiness
from merit.eval.table_files import markdown_table
from merit.io.artifacts import Artifacts, read_json, write_json
from tests import synthetic

VOID = {"meta", "img", "br", "link", "input"}


class Reader(HTMLParser):
    """Tags with their attributes in order; fails where an end tag does not match."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str]]] = []
        self.open: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> at {self.getpos()}"

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("script", "style"):
            self.text += data


def read(text: str) -> Reader:
    reader = Reader()
    reader.feed(text)
    reader.close()
    assert reader.open == []
    return reader


def save_picture(folder: Path, stem: str) -> None:
    """A black figure where a study's drawing would leave its own."""
    path = folder / "figures" / f"{stem}.png"
    path.parent.mkdir(parents=True)
    Image.fromarray(np.zeros((20, 130, 3), np.uint8)).save(path)


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    root = tmp_path_factory.mktemp("html")
    experiment = synthetic.build(
        root / "artifacts",
        methods=("base", "joint-1ep", "random-8", "merit-3d", "joint-shrunk"),
        seeds=(1, 2),
    )
    studies: dict[str, object] = {"readiness": {}, "cost": {}, "hessian": {}}
    experiment = experiment.model_copy(update={"studies": studies})
    artifacts, reports = Artifacts(experiment.name, root / "artifacts"), root / "reports"
    folder = reports / "studies" / "synthetic" / "cost"
    rows = [{"stage": "train", "seconds": 123.25}]
    write_json(
        folder / "result.json",
        {
            "tables": {"table15_wall_clock": rows},
            "summary": {"overhead_share": 0.987},
            "provenance": {"base_hash": "9" * 64, "commit": "8" * 40},
        },
    )
    write_table(folder, "table15_wall_clock", rows, "Cost", "tab:x")
    folder = reports / "studies" / "synthetic" / "hessian"
    rows = [{"direction": "first </script>", "alignment": 0.25}]
    write_json(
        folder / "result.json",
        {
            "tables": {"table21_hessian_pca_alignment": rows},
            "summary": {"raw_z_score": 4.0, "centered_z_score": 9.0},
            "provenance": {"base_hash": "9" * 64, "commit": "8" * 40},
        },
    )
    write_table(folder, "table21_hessian_pca_alignment", rows, "Curvature", "tab:y")
    readiness = {
        **{"merge_ready": False, "failed": ["c"], "decided_by_d": False, "verdict": "No."},
        **{"relative_displacement": {"joint": 0.28}, "max_barrier_share": 0.004},
        **{"joint": "joint-1ep", "random": "random-8", "random_minus_joint": [-0.5, -1.0, 0.25]},
    }
    write_json(
        reports / "studies" / "synthetic" / "readiness" / "result.json",
        {"tables": {}, "summary": readiness, "provenance": {}},
    )
    said = {"cost": "It took 98.7 % more.", "hessian": "It bends **much** & more."}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(study_sections, "sentences", lambda name, _: said.get(name, "Words."))
        patch.setattr(drawings_cost, "draw", lambda _, out: save_picture(out, "cost"))
        patch.setattr(drawings_hessian, "draw", lambda _, out: save_picture(out, "hessian"))
        patch.setattr(drawings_readiness, "draw", lambda *_: None)
        build_report(experiment, artifacts, reports)
        build_index([experiment], reports, root / "README.md")
        yield reports


@pytest.fixture(scope="module")
def page(reports: Path) -> str:
    return (reports / "index.html").read_text(encoding="utf-8")


# --- Markdown -----------------------------------------------------------------------------------

HERE = Path("up")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a < b & c", "a &lt; b &amp; c"),
        ("**a** *b* `c<d`", "<strong>a</strong> <em>b</em> <code>c&lt;d</code>"),
        ("[x & y](t.csv)", '<a href="up/t.csv">x &amp; y</a>'),
        ("[x](https://a.b)", '<a href="https://a.b">x</a>'),
        ("**bold `code`**", "<strong>bold <code>code</code></strong>"),
        ("_tidy 2 * 3 [1, 2]", "_tidy 2 * 3 [1, 2]"),
        ("<b>text</b>", "&lt;b&gt;text&lt;/b&gt;"),
    ],
)
def test_a_line(text: str, expected: str) -> None:
    assert line_to_html(text, HERE) == expected


def test_blocks() -> None:
    out = to_html("- one\n- two\n\nwords\nmore\n\n#### head\n", HERE)
    assert out == ("<ul>\n<li>one</li>\n<li>two</li>\n</ul>\n<p>words\nmore</p>\n<h4>head</h4>\n")


def test_tables_have_heads_and_scroll() -> None:
    out = to_html("| a | b |\n|---|---:|\n| x \\| y | 1 |\n", HERE)
    assert out.startswith('<div class="scroll"')
    assert '<table class="numbers">' in out
    assert '<th scope="col">a</th>\n<th scope="col">b</th>' in out
    assert '<th scope="row">x | y</th>\n<td>1</td>' in out
    assert '<table class="words">' in to_html("| a | b |\n|---|---|\n| x | y |\n", HERE)


def test_published_columns_are_marked() -> None:
    out = to_html(markdown_table([["method", "avg", "paper's avg"], ["base", "1.0", "2.0"]]), HERE)
    assert out.count('class="published"') == 2
    assert '<td class="published">2.0</td>' in out


def test_a_picture_takes_the_paragraph_after_it_as_caption(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((20, 130, 3), np.uint8)).save(tmp_path / "f.png")
    uri, _ = picture(tmp_path / "f.png")
    out = to_html("![See `a`](f.png)\n\nSee `a` [PDF](a.pdf)\n\nwords", tmp_path)
    start = f'<figure style="max-width:100px"><img src="{uri}" alt='
    assert out == (
        f'{start}"See a"><figcaption>See <code>a</code> <a href="{tmp_path.name}/a.pdf">PDF</a>'
        "</figcaption>\n</figure>\n<p>words</p>\n"
    )
    assert to_html("![a](f.png)", tmp_path) == f'{start}"a"></figure>\n'


def test_pictures_keep_their_pixels(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 2, (60, 130, 3)).astype(np.uint8) * 255
    Image.fromarray(pixels).save(tmp_path / "a.png")
    uri, width = picture(tmp_path / "a.png")
    kind, data = uri.split(";base64,")
    assert kind in ("data:image/webp", "data:image/png")
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))), pixels)
    assert width == 100
    with pytest.raises(MeritError, match=r"b\.png: file not found"):
        picture(tmp_path / "b.png")


# --- the page -----------------------------------------------------------------------------------


def test_well_formed_and_self_contained(page: str) -> None:
    found = read(page).found
    ids = [attributes["id"] for _, attributes in found if "id" in attributes]
    assert len(ids) == len(set(ids))
    sources = [attributes["src"] for _, attributes in found if "src" in attributes]
    assert len(sources) == 8  # seven figures and one study's; not the timed study's
    assert all(source.startswith("data:image/") for source in sources)
    assert not [tag for tag, _ in found if tag in ("link", "iframe", "object")]
    assert "url(" not in page
    assert "@import" not in page
    assert "http://" not in page
    assert "https://" not in page
    assert all(attributes.get("alt") for tag, attributes in found if tag == "img")
    assert len(page) < 4_000_000


def test_links_lead_somewhere(page: str, reports: Path) -> None:
    found = read(page).found
    ids = {attributes["id"] for _, attributes in found if "id" in attributes}
    targets = {attributes["href"] for tag, attributes in found if tag == "a"}
    assert len(targets) > 15
    assert [t for t in targets if t.startswith("#") and t[1:] not in ids] == []
    files = [t for t in targets if not t.startswith("#")]
    assert [t for t in files if not (reports / t).is_file()] == []


def test_every_claim_stands_there_with_its_verdict(page: str, reports: Path) -> None:
    records = read_json(reports / "synthetic" / "claims.json")
    rows = [a["data-verdict"] for tag, a in read(page).found if tag == "tr" and "data-verdict" in a]
    assert rows == [r["verdict"] if r["role"] == "claim" else r["role"] for r in records]
    assert len(rows) == 20
    counts = Counter(rows)
    assert (counts["precondition"], counts["outside of the tally"]) == (1, 1)
    for verdict, mark in page_module.MARKS.items():
        assert f"{mark} {verdict} ({counts[verdict]})</button>" in page
    found = {record["id"]: record for record in records}
    assert f"precondition: {found['C2']['verdict']}</span>" in page
    assert (found["C14"]["verdict"], found["C14"]["value"]) == ("does not hold", 4.0)
    assert "measured on an earlier/other base 99999999" in found["C14"]["note"]


def test_the_top_begins_with_the_precondition(reports: Path) -> None:
    summary = (reports / "synthetic" / "summary.md").read_text(encoding="utf-8")
    assert summary.splitlines()[0] == (
        "- **Precondition, measured first: not merge-ready** (fails: c). Joint training moves the "
        "weights by 28.0% of their norm, the largest barrier between branches is 0.4% of their "
        "loss, and random-8 minus joint-1ep on validation is -0.5 [-1.0, +0.2]."
    )


def test_the_claims_begin_with_merge_readiness(page: str, reports: Path) -> None:
    claims = page[page.index('id="synthetic-claims"') :]
    assert claims.index("<strong>Not merge-ready</strong>") < claims.index("At mini scale, of the")
    assert claims.index("At mini scale, of the") < claims.index('<div class="filter"')
    line = (reports / "synthetic" / "verdicts.md").read_text(encoding="utf-8")
    assert "**Not merge-ready** (condition that fails: c: joint training that ends too far" in line


def test_seconds_stand_in_no_page(page: str, reports: Path) -> None:
    texts = {"index.html": page} | {
        str(path): path.read_text(encoding="utf-8")
        for path in (reports / "README.md", *(reports / "synthetic").rglob("*.*"))
        if path.suffix in (".md", ".json", ".csv", ".tex")
    }
    assert len(texts) > 10
    assert [name for name, text in texts.items() if "123.25" in text or "98.7" in text] == []
    assert "Its numbers differ from run to run" in read(page).text
    assert '<a href="synthetic/../studies/synthetic/cost/table15_wall_clock.md">' in page
    # a picture of seconds is one of them, too: other seconds leave the page as it is
    assert '<a href="synthetic/studies/cost/figures/cost.png">' in page


def test_numbers_are_those_of_the_tables(page: str, reports: Path) -> None:
    text = read(page).text
    wide = (reports / "synthetic" / "table02.md").read_text(encoding="utf-8")
    cells = {
        cell.strip() for line in wide.splitlines() if line[:1] == "|" for cell in line.split("|")
    }
    assert [cell for cell in cells if re.match(r"[\d\[]", cell) and cell not in text] == []
    assert "another scale" in text
    assert "It bends much & more." in text
    assert "first </script>" in text  # as text, not as an end tag
    assert "Measured on an earlier/other base 99999999." in text


def test_the_explorer_holds_the_partition(page: str, reports: Path) -> None:
    content = re.search(r'id="synthetic-explorer">(.*?)</script>', page, re.DOTALL)
    assert content is not None
    data: dict[str, Any] = json.loads(content[1])
    assert data == read_json(reports / "synthetic" / "explorer.json")
    assert list(data["partitions"]) == ["random-8-s1", "random-8-s2", "merit-3d"]
    assert sorted(data["partitions"]["merit-3d"]) == list(range(8))
    assert len(data["tasks"]) == 8
    cosines = [cosine for _, cosine in data["similar"][0]]
    assert cosines == sorted(cosines, reverse=True)
    assert len(cosines) == 5


def test_a_missing_report_is_named(reports: Path) -> None:
    with pytest.raises(MeritError, match=r"other/section\.md: file not found"):
        page_module.write_html([("other", "Other")], reports)


def test_comparison_stands_as_a_file_and_on_the_page(page: str, reports: Path) -> None:
    lines = (reports / "synthetic" / "comparison.csv").read_text(encoding="utf-8").splitlines()
    assert lines[0].split(",")[:6] == [
        *("method", "other", "benchmark", "difference", "ci_low", "ci_high")
    ]
    assert len(lines) == 1 + 3 * 8  # joint-1ep, random-8, joint-shrunk
    shares = [float(line.split(",")[-1]) for line in lines[1:9]]
    assert sum(shares) == pytest.approx(1.0, abs=1e-3)
    assert "Benchmark by benchmark" in read(page).text


def test_a_full_run_stands_beside_the_default_one(reports: Path, tmp_path: Path) -> None:
    both = tmp_path / "reports"
    shutil.copytree(reports, both)
    shutil.copytree(both / "synthetic", both / "synthetic-full")
    experiment = synthetic.build(tmp_path / "artifacts", methods=("base", "joint-1ep"), seeds=(1,))
    build_index([experiment], both, tmp_path / "README.md")
    page = (both / "index.html").read_text(encoding="utf-8")
    ids = {attributes.get("id") for _, attributes in read(page).found}
    assert {"synthetic", "synthetic-full", "synthetic-full-studies"} <= ids
    # the studies, and with them their pictures, stand in the full run's part alone
    assert page.count("It bends <strong>much</strong>") == 1
    assert '<a href="#synthetic-full-studies">' in page
    assert "all rows and studies" in (both / "README.md").read_text(encoding="utf-8")
