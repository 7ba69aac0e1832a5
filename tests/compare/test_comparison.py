"""`edgeqat compare` from end to end: rows, files, errors that cost a row, and runs that go on."""

from __future__ import annotations

import json
import xml.etree.ElementTree as xml
from importlib.util import find_spec

import pytest
import tiny

from edgeqat.cli import run
from edgeqat.compare import process, work
from edgeqat.compare.rows import KINDS
from edgeqat.errors import EdgeQATError

LLAMA = {"head_dim": 64, "num_attention_heads": 2, "num_key_value_heads": 1}
BLOCKS = ["--blocks", "3", "--set", "data.context=32", "--threads", "1"]
needs_llama_cpp = pytest.mark.skipif(
    find_spec("llama_cpp") is None, reason="llama-cpp-python is not installed"
)
needs_torchao = pytest.mark.skipif(find_spec("torchao") is None, reason="torchao is not installed")


@pytest.fixture
def here(monkeypatch):
    """Jobs are computed in this process; their names are kept."""
    names = []

    def compute(job, log):
        names.append(job.name)
        return json.loads(json.dumps(work.compute(job)))

    monkeypatch.setattr(process, "run", compute)
    return names


@pytest.fixture
def compare(model_folder, text_file, tmp_path):
    """Run `edgeqat compare` on the tiny model; the rows of compare.json, by row and format."""

    def compare(*arguments, output="compared", code=0):
        place = tmp_path / output
        given = [str(model_folder), "--data", str(text_file), *BLOCKS, "--output", str(place)]
        assert run(["compare", *given, *map(str, arguments)]) == code
        rows = json.loads((place / "compare.json").read_text(encoding="utf-8"))["rows"]
        return {(row["row"], row["format"]): row for row in rows}

    return compare


def test_our_rows_stand_beside_the_float_model(here, compare, packed_folder, tmp_path, capsys):
    arguments = ["--rows", "ours", "--scheme", "w8a8kv8", "--scheme", "w4a8kv4"]
    rows = compare(*arguments, "--qat", packed_folder)
    assert list(rows) == [
        ("float", "fp16"),
        *[(f"ours-{kind}", scheme) for kind in ("ptq", "start") for scheme in arguments[3::2]],
        ("ours-qat", f"w4a8kv4, {packed_folder.name}"),
    ]
    floating = rows[("float", "fp16")]
    assert floating["over_float"] == floating["kl"] == 0 and floating["bits"] == 16
    fine, coarse = rows[("ours-ptq", "w8a8kv8")], rows[("ours-ptq", "w4a8kv4")]
    assert 0 < fine["kl"] < coarse["kl"] < 1
    assert 8 < fine["matrix_bits"] < 8.6 and 4 < coarse["matrix_bits"] < 4.6
    assert fine["seconds"] > 0 and fine["peak_bytes"] > 1e8
    ready = rows[("ours-qat", f"w4a8kv4, {packed_folder.name}")]
    assert ready["bytes"] == (packed_folder / "model.safetensors").stat().st_size
    assert "seconds" not in ready and ready["folder"] == str(packed_folder)
    found = json.loads((tmp_path / "compared" / "compare.json").read_text(encoding="utf-8"))
    assert found["evaluation"]["blocks"] == 3 and found["evaluation"]["context"] == 32
    assert set(found["machine"]) == {"cpu", "threads", "system"} and found["calibration_tokens"]
    picture = xml.parse(tmp_path / "compared" / "compare.svg").getroot()
    assert len(list(picture.iter("{http://www.w3.org/2000/svg}circle"))) == 10  # and the list's
    printed = capsys.readouterr().out
    assert "ours-start" in printed and f"wrote {tmp_path / 'compared'}" in printed
    assert not (tmp_path / "compared.run").exists()


def test_a_packed_folder_scores_as_eval_says(here, compare, packed_folder, model_folder, text_file):
    rows = compare("--rows", "ours-qat", "--qat", packed_folder)
    from edgeqat.pipeline.evaluate import evaluate

    against = str(model_folder)
    found = evaluate(packed_folder, mode="one-pass", against=against, blocks=3, exact=False)
    row = rows[("ours-qat", f"w4a8kv4, {packed_folder.name}")]
    assert row["kl"] == pytest.approx(found["kl"]["mean"], rel=1e-3)
    assert row["same_top"] == pytest.approx(100 * found["same_top_float"], abs=1.1)
    assert row["perplexity"] == pytest.approx(found["perplexity"]["one_pass"], rel=1e-4)


def test_training_is_a_row(here, compare):
    rows = compare("--rows", "ours-qat", "--steps", 1, "--set", "train.batch_size=2")
    assert rows[("ours-qat", "w4a8kv4")]["kl"] > 0


def test_a_row_that_fails_costs_itself_only(here, compare, monkeypatch, capsys):
    compute = process.run

    def fail(job, log):
        if job.name == "ours-ptq":
            raise EdgeQATError("its process died of signal 11 (Segmentation fault)")
        return compute(job, log)

    monkeypatch.setattr(process, "run", fail)
    rows = compare("--rows", "ours")
    assert "signal 11" in rows[("ours-ptq", "w4a8kv4")]["error"]
    assert rows[("ours-start", "w4a8kv4")]["kl"] > 0
    assert "signal 11" in "".join(capsys.readouterr().out.split("\n"))
    compare("--rows", "ours-ptq", output="other", code=1)
    assert "error: rows: ours-ptq failed (its process died" in capsys.readouterr().err


def test_a_stopped_run_continues(here, compare, monkeypatch, tmp_path, capsys):
    compute = process.run

    def stop(job, log):
        if job.name == "ours-start":
            raise KeyboardInterrupt
        return compute(job, log)

    monkeypatch.setattr(process, "run", stop)
    with pytest.raises(FileNotFoundError):  # nothing is written
        compare("--rows", "ours", code=130)
    assert "the same command continues" in capsys.readouterr().err
    monkeypatch.setattr(process, "run", compute)
    here.clear()
    rows = compare("--rows", "ours")
    assert here == ["ours-start"] and len(rows) == 3
    assert not (tmp_path / "compared.run").exists()


def test_a_process_answers_or_says_why(tmp_path, model_folder):
    """A job in a process of its own, and one that cannot be computed."""
    counts = work.Counts(1, 1, ())
    with pytest.raises(EdgeQATError, match=r"inputs\.json"):
        process.run(work.Job("float", str(tmp_path), 1, counts), tmp_path / "log")
    assert "Traceback" in (tmp_path / "log").read_text(encoding="utf-8")


@needs_llama_cpp
def test_files_of_llama_cpp_are_scored_on_the_same_blocks(here, text_file, tmp_path):
    folder = tmp_path / "float"
    tiny.llama(**LLAMA, hidden_size=256, intermediate_size=512).save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    given = [str(folder), "--data", str(text_file), *BLOCKS, "--output", str(tmp_path / "out")]
    assert run(["compare", *given, "--rows", "llama.cpp"]) == 0
    found = json.loads((tmp_path / "out" / "compare.json").read_text(encoding="utf-8"))
    rows = {row["row"]: row for row in found["rows"]}
    assert set(rows) == {"float", *(n for n in KINDS if n.startswith("llama.cpp"))}
    assert not [row for row in found["rows"] if "error" in row]
    assert rows["llama.cpp-f16"]["kl"] < 1e-4
    order = [rows[f"llama.cpp-{kind}"] for kind in ("f16", "q8_0", "q4_k_m", "q2_k")]
    assert [row["kl"] for row in order] == sorted(row["kl"] for row in order)
    assert [row["bytes"] for row in order] == sorted((r["bytes"] for r in order), reverse=True)
    assert rows["llama.cpp-f16"]["kl"] < rows["llama.cpp-f16-kv4"]["kl"]
    assert rows["llama.cpp-q2_k-imatrix"]["kl"] != rows["llama.cpp-q2_k"]["kl"]
    assert here.count("F16.gguf") == here.count("importance") == 1
    assert "llama-cpp-python" in found["versions"]


@needs_torchao
def test_rows_of_torchao_are_scored_and_one_that_does_not_fit_says_why(compare, capsys):
    """In processes of their own: torchao warns when it is imported."""
    rows = compare("--rows", "torchao")
    for group in (128, 64):  # layers have 64 and 96 inputs
        assert "divisible" in rows[(f"torchao-int4-g{group}", f"w4 group {group}")]["error"]
    row = rows[("torchao-int8dq", "w8a8 per row")]
    assert 0 < row["kl"] < 0.01 and 8 < row["matrix_bits"] < 8.3


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--rows", "llama"], ["rows: 'llama' is unknown", "llama.cpp"]),
        (["--rows", "ours-qat"], ["ours-qat", "--qat FOLDER or --steps N"]),
        (["--scheme", "w16a16kv16"], ["scheme", "leaves everything in float"]),
        (["--scheme", "w9"], ["scheme", "w9"]),
        (["--data", "nothing.txt"], ["data", "nothing.txt", "does not exist"]),
        (["--set", "data.context=100000"], ["data.context", "100000", "positions"]),
        (["--set", "data.streaming=true"], ["data.streaming", "false"]),
        (["--qat", "nowhere"], ["nowhere", "does not exist"]),
        (["--blocks", "-1"], ["--blocks"]),
    ],
)
def test_wrong_use_is_one_line(model_folder, text_file, tmp_path, capsys, arguments, words):
    given = ["compare", str(model_folder), "--data", str(text_file), *BLOCKS, *arguments]
    assert run([*given, "--output", str(tmp_path / "out")]) in (1, 2)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert not [word for word in words if word not in line], line
    assert not list(tmp_path.iterdir())


def test_a_model_that_is_none_is_one_line(packed_folder, text_file, tmp_path, capsys):
    def refused(model, *arguments, data=text_file):
        given = [str(model), "--data", str(data), *map(str, arguments)]
        assert run(["compare", *given]) in (1, 2)
        (line,) = capsys.readouterr().err.splitlines()
        return line

    assert "is a packed folder; name its float model" in refused(packed_folder)
    assert "is an image classifier" in refused("mobilenetv2-cifar100")
    short = tmp_path / "short.txt"
    short.write_text("too short", encoding="utf-8")
    assert "less than one block" in refused("demo", data=short)
    taken = tmp_path / "taken"
    taken.mkdir()
    assert "exists; choose another --output" in refused("demo", "--output", taken)
    assert run(["compare"]) == 2
    assert "model: none is named" in capsys.readouterr().err


def test_the_rows_are_listed(capsys):
    assert run(["compare", "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(KINDS)
    assert lines[0].split() == ["row", "float", "available"]


def test_mixed_widths_are_those_of_every_row(here, compare):
    rows = compare("--rows", "ours", "--steps", 1, "--set", "quant.average_bits=5")
    bits = {row["row"]: row["matrix_bits"] for row in rows.values() if row["row"] != "float"}
    assert max(bits.values()) - min(bits.values()) < 0.2
    assert [name[1] for name in rows][1:3] == ["w4a8kv4, 5 bits a weight"] * 2


def test_a_folder_of_another_model_is_refused(packed_folder, text_file, tmp_path, capsys):
    tiny.llama(num_hidden_layers=3).save_pretrained(tmp_path / "other")
    tiny.tokenizer().save_pretrained(tmp_path / "other")
    arguments = ["compare", tmp_path / "other", "--data", text_file, "--qat", packed_folder]
    assert run([*map(str, arguments), *BLOCKS, "--rows", "ours-qat"]) == 2
    assert "num_hidden_layers of" in capsys.readouterr().err


def test_a_row_without_numbers_fails_alone(here, compare, monkeypatch, capsys):
    monkeypatch.setattr(work, "scored", lambda *_: {"perplexity": 9.0, "kl": float("nan")})
    compare("--rows", "ours", "--steps", 1, code=1)
    assert "its kl is not a finite number" in capsys.readouterr().err
