"""The report: its data by hand, the page, and the page in a real browser."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html import unescape

import numpy as np
import pytest
import tiny
import torch
from marks import BROWSER, needs_browser

import edgeqat
from edgeqat import checkpoint
from edgeqat.bench import chart
from edgeqat.cli import run
from edgeqat.errors import FormatError
from edgeqat.nn.blocks import decoder_layers
from edgeqat.report import page as pages
from edgeqat.report import snapshot, svg
from edgeqat.report.files import read_records

STAGES = {"float": "float", "ptq": "PTQ", "qat": "QAT"}
ENGINES = ("native", "llama.cpp-q4_0", "native-fp16")
# put into a copy of the page: collects errors from the start, and looks at every choice at the end
LISTEN = """<script>window.faults = [];
addEventListener("error", e => faults.push(e.message || "not loaded: " + e.target.src), true);
console.error = (...parts) => faults.push(parts.join(" "));</script>"""
LOOK = """<script>addEventListener("load", () => {
  const seen = [];
  const look = () => document.querySelectorAll("svg, img, .tokens").forEach(own => {
    if (own.closest("[hidden]")) return;
    const box = own.getBoundingClientRect();
    const good = box.width > 60 && box.height > 20 && own.naturalWidth !== 0;
    seen.push([own.tagName, good]);
  });
  for (const own of document.querySelectorAll(".bytes div, .key i"))
    seen.push([own.className, getComputedStyle(own).backgroundColor !== "rgba(0, 0, 0, 0)"]);
  look();
  for (const box of document.querySelectorAll("select"))
    for (const option of box.options) {
      box.value = option.value; box.dispatchEvent(new Event("change")); look();
    }
  const wide = document.documentElement.scrollWidth - innerWidth;
  const paper = getComputedStyle(document.body).backgroundColor;
  document.body.innerHTML = '<pre id="check"></pre>';
  document.getElementById("check").textContent = JSON.stringify({seen, wide, paper, faults});
});</script>"""


def rows():
    """Rows of a bench of three engines."""
    speed = {"mean": 100.0, "sd": 5.0}
    return [
        {
            "engine": engine, "test": test, "tokens_per_second": speed, "model": "tiny",
            "cpu": "a cpu", "threads": 2, "read_bytes_per_second": 2e9, "weight_bytes": 10_000_000,
        }
        for test in ("pp128", "tg64") for engine in ENGINES
    ]  # fmt: skip


@pytest.fixture(scope="module")
def page(packed_folder, tmp_path_factory):
    """What `edgeqat report` writes, with speed."""
    place = tmp_path_factory.mktemp("report")
    (place / "rows.json").write_text(json.dumps(rows()), encoding="utf-8")
    arguments = ["--bench", str(place / "rows.json"), "--output", str(place / "page.html")]
    assert run(["report", str(packed_folder), *arguments]) == 0
    return place / "page.html"


def test_a_packed_folder_holds_its_report(packed_folder):
    html = (packed_folder / "report.html").read_text(encoding="utf-8")
    assert "tiny-llama at w4a8kv4" in html
    metrics = json.loads((packed_folder / "metrics.json").read_text(encoding="utf-8"))
    for row in ("float", "ptq", "qat"):
        assert f"{metrics[row]['perplexity']:.3f}" in html
    assert not re.search(r"(?:src|href)=\"(?!data:)", html)
    assert "report.html" in checkpoint.read_config(packed_folder)["quantization_config"]["sha256"]


def test_the_data_is_small_and_of_all_three(packed_folder):
    data = snapshot.load(packed_folder / snapshot.FILE)
    assert (packed_folder / snapshot.FILE).stat().st_size < 200_000
    for stage in STAGES:
        assert data[f"q_{stage}"].shape == (2, 4, 48)
        assert data[f"k_{stage}"].shape == (2, 2, 48)
        assert data[f"q_{stage}"].sum(-1).max() == 32 * 16  # tokens of a block x head_dim
        attention = data[f"attention_{stage}"].astype(float)
        assert np.allclose(attention.sum(-1), 1, atol=0.01)
        assert not np.triu(attention, 1).any()
    assert not data["error_float"].any()
    assert (data["error_qat"] > 0).all()
    assert len(data["tokens"]) == 32


@torch.no_grad()
def test_a_portrait_is_drawn_in_the_float_models_basis():
    ids, names = tiny.ids(1, 32)[0], decoder_layers(tiny.llama())
    first = snapshot.take(tiny.llama(), ids, names)
    model = edgeqat.prepare(tiny.llama(), "w8a8kv8")
    second = snapshot.take(model, ids, names, first)
    moved = np.abs(first["k"].astype(int) - second["k"].astype(int)).sum() / first["k"].sum()
    assert moved < 0.1  # rotated keys would be another histogram
    assert np.abs(first["attention"] - second["attention"]).max() < 0.02
    assert model.config._attn_implementation == "edgeqat"


def test_a_float_model_keeps_its_attention():
    model = tiny.llama()
    before = model.config._attn_implementation
    snapshot.take(model, tiny.ids(1, 8)[0], decoder_layers(model))
    assert model.config._attn_implementation == before != "edgeqat"


def test_densities_are_percentages_of_the_right_head():
    data = {"q_edges": np.array([[0.0, 1, 2]]), "k_edges": np.array([[0.0, 1, 2]])}
    for stage in STAGES:
        data[f"q_{stage}"] = np.zeros((1, 4, 2))
        data[f"k_{stage}"] = np.array([[[3, 1], [0, 5]]])
    centres, found = pages.densities(data, "k", 0, 2)  # query heads 2 and 3 read key head 1
    assert centres == [0.5, 1.5]
    assert found == {name: [0.0, 100.0] for name in STAGES.values()}
    assert pages.densities(data, "k", 0, 1)[1]["QAT"] == [75.0, 25.0]


def test_loss_terms_are_those_of_qat():
    records = [
        {"stage": stage, "step": step, "terms": {"loss": step / 2, "kl": 1.0}}
        for stage in ("float", "qat") for step in (10, 20)
    ]  # fmt: skip
    assert pages.series(records) == {"loss": ([10, 20], [5.0, 10.0]), "kl": ([10, 20], [1.0, 1.0])}
    assert [name for name, _ in pages.loss_figures(records)] == ["loss", "kl"]
    assert pages.loss_figures(records[:1]) == []


def test_shown_layers_are_spread_over_the_model():
    assert snapshot.shown_layers(2) == [0, 1]
    assert snapshot.shown_layers(8) == [0, 2, 5, 7]


def test_a_map_is_a_png_of_its_values():
    import base64
    import io

    from matplotlib import image

    uri = svg.heat_map(np.array([[0.0, 1.0], [0.25, 0.0]]))
    pixels = image.imread(io.BytesIO(base64.b64decode(uri.partition(",")[2])))
    assert pixels.shape == (2, 2, 3)
    grey = pixels.mean(-1)
    assert grey[0, 1] < grey[1, 0] < grey[0, 0] == grey[1, 1]


def test_a_line_stays_in_its_box():
    drawn = svg.lines([0, 5, 10], {"a": [1.0, float("nan"), 3.0]}, "x", "y")
    points = re.search(r'points="([^"]+)"', drawn)[1].split()
    assert points == ["64.0,180.0", "460.0,20.0"]


def test_the_page_has_speed_where_a_bench_is_given(page):
    html = page.read_text(encoding="utf-8")
    for engine in ENGINES:
        assert f">{engine}</text>" in html
    assert html.count('class="limit"') == 1  # of decoding: 2e9 / 1e7 = 200 tokens/s


def test_figures_are_written_as_png(packed_folder, tmp_path):
    arguments = ["--output", str(tmp_path / "page.html"), "--png", str(tmp_path / "png")]
    assert run(["report", str(packed_folder), *arguments]) == 0
    names = {path.stem for path in (tmp_path / "png").iterdir()}
    # two steps are one record: no curve
    assert names == {"bytes", "errors", "importance", "layer0", "layer1"}


def test_speeds_of_joined_files_are_drawn(tmp_path):
    chart.speed_bars(tmp_path / "speed.png", rows()[:-1])  # an engine lacks the last test
    assert (tmp_path / "speed.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--output", "."], 2, "is a folder; name a file"),
        (["--png", "odd.json"], 2, "'odd.json' is a file; name a folder"),
        (["--output", "no/where.html"], 2, "does not exist; make it first"),
        (["--bench", "rows.json"], 2, "'rows.json' is no readable JSON"),
        (["--bench", "odd.json"], 2, "holds no rows"),
    ],
)
def test_wrong_use_is_one_line(
    packed_folder, tmp_path, monkeypatch, capsys, arguments, code, words
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "odd.json").write_text('[{"a": 1}]', encoding="utf-8")
    assert run(["report", str(packed_folder), *arguments]) == code
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line
    assert [path.name for path in tmp_path.iterdir()] == ["odd.json"]


def test_a_folder_without_results_is_said(tmp_path, capsys):
    edgeqat.save(edgeqat.prepare(tiny.llama(), "w4a8kv4"), tmp_path / "saved")
    page = str(tmp_path / "page.html")
    assert run(["report", str(tmp_path / "saved"), "--output", page]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "metrics.json" in line and "has none; name a folder `edgeqat quantize`" in line


def test_a_packed_folder_is_not_written_into(packed_folder, tmp_path, capsys):
    (tmp_path / "link.html").symlink_to(packed_folder / "b.html")
    for output in (packed_folder / "b.html", tmp_path / "link.html"):
        assert run(["report", str(packed_folder), "--output", str(output)]) == 2
        assert "inside a packed folder" in capsys.readouterr().err


def test_a_page_and_figures_behind_links_are_written_where_those_lead(packed_folder, tmp_path):
    (tmp_path / "disk").mkdir()
    for name in ("page.html", "png"):
        (tmp_path / name).symlink_to(f"disk/{name}")
    given = ["--output", str(tmp_path / "page.html"), "--png", str(tmp_path / "png")]
    assert run(["report", str(packed_folder), *given]) == 0
    assert sorted(path.name for path in (tmp_path / "disk").iterdir()) == ["page.html", "png"]
    assert (tmp_path / "page.html").is_symlink() and (tmp_path / "png" / "bytes.png").is_file()


def test_losses_that_were_no_numbers_are_not_drawn(tmp_path):
    lines = [{"stage": "qat", "step": n, "terms": {"loss": n or None}} for n in range(3)]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "metrics.jsonl").write_text(text, encoding="utf-8")
    assert pages.series(read_records(tmp_path / "metrics.jsonl")) == {"loss": ([1, 2], [1, 2])}


def test_damaged_data_is_said(tmp_path):
    (tmp_path / snapshot.FILE).write_bytes(b"PK nothing")
    with pytest.raises(FormatError, match="cannot be read"):
        snapshot.load(tmp_path / snapshot.FILE)


@needs_browser
@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [1200, 500])  # chromium's own least width
def test_every_figure_is_visible_in_a_browser(page, tmp_path, width, theme):
    assert BROWSER is not None, "EDGEQAT_BROWSER is set and there is no chromium"
    html = page.read_text(encoding="utf-8").replace("<head>", f"<head>{LISTEN}", 1)
    copy = tmp_path / "page.html"
    copy.write_text(html.replace("</body>", f"{LOOK}</body>", 1), encoding="utf-8")
    command = [
        *(BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
        *(f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={width},900"),
        *(f"--blink-settings=preferredColorScheme={0 if theme == 'dark' else 1}",),
        *("--virtual-time-budget=5000", "--dump-dom", copy.as_uri()),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    shutil.rmtree(tmp_path / "profile", ignore_errors=True)
    found = re.search(r'<pre id="check">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found, done.stderr[-2000:]
    result = json.loads(unescape(found[1]))
    assert result["faults"] == []
    assert {good for _, good in result["seen"]} == {True}
    assert {"svg", "IMG", "P"} <= {name for name, _ in result["seen"]}
    assert result["wide"] <= 0
    red = int(re.search(r"\d+", result["paper"])[0])
    assert (red < 60) == (theme == "dark")
