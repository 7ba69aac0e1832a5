"""lm-eval with our models: the numbers of its `hf`, our task files, its command line."""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path

import pytest
import tiny

from edgeqat.cli import run
from edgeqat.errors import DataError, UsageError
from edgeqat.harness import data
from edgeqat.harness.run import task_folder

pytestmark = pytest.mark.filterwarnings("ignore")  # of lm-eval and what it imports

PARADIGMS = sorted(path.stem for path in (task_folder() / "blimp").glob("*.yaml"))
PARADIGMS.remove("all")
WORDS = tiny.text(400, seed=5).split()


@pytest.fixture(scope="module")
def data_root(tmp_path_factory):
    """Two rows of every paradigm, and small files of the other layouts."""
    root = tmp_path_factory.mktemp("data")
    for number, name in enumerate(PARADIGMS):
        good = [" ".join(WORDS[number + n : number + n + 7]) for n in range(2)]
        rows = [
            {"sentence_good": own, "sentence_bad": own[: len(own) // 2] + " mill wheel"}
            for own in good
        ]
        write(root / f"blimp/{name}.jsonl.gz", rows)
    write(
        root / "piqa/validation.jsonl",
        [{"goal": "the old", "sol1": "river", "sol2": "mill", "label": 0}] * 2,
    )
    arc = {
        "question": "the old",
        "choices": {"text": ["river", "past a mill"], "label": ["A", "B"]},
    }
    write(root / "arc/ARC-Easy-test.jsonl", [{**arc, "answerKey": "B"}])
    swag = {"activity_label": "River", "ctx_a": "the old", "ctx_b": "mill", "label": "1"}
    write(root / "hellaswag/validation.jsonl", [{**swag, "endings": ["runs [step] on.", "sings"]}])
    write(root / "wikitext/test.jsonl", [{"page": " ".join(WORDS[:150])}])
    write(root / "lambada/test.jsonl", [{"text": "the old river runs"}])
    (root / "text").mkdir()
    lines = [" ".join(WORDS[n : n + 60]).replace(".", "") + "." for n in range(0, 300, 60)]
    (root / "text/novels-valid.txt").write_text("\n\n".join(lines), encoding="utf-8")
    return root


def write(path: Path, rows: list) -> None:
    path.parent.mkdir(exist_ok=True)
    text = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)


def requests(kind, arguments):
    from lm_eval.api.instance import Instance

    return [Instance(kind, {}, own, n, ("task", n, 1)) for n, own in enumerate(arguments)]


@pytest.fixture(scope="module")
def pair(model_folder):
    """lm-eval's own class and ours on the same float model."""
    from lm_eval.models.huggingface import HFLM

    from edgeqat.harness.lm import EdgeQATLM

    reference = HFLM(pretrained=str(model_folder), device="cpu", dtype="float32", batch_size=2)
    return reference, EdgeQATLM(str(model_folder), backend="float", batch_size=3)


def test_log_likelihoods_are_those_of_lm_eval(pair):
    texts = [
        ("", "the old river"), ("the old", " river runs"), ("the old", " mill"), ("a ", "b c"),
        ("the old river runs past", " some birds"), ("", " ".join(WORDS[:90])),
        (" ".join(WORDS[:200]), " every morning"),
    ]  # fmt: skip
    reference, ours = pair
    expected = reference.loglikelihood(requests("loglikelihood", texts), disable_tqdm=True)
    found = ours.loglikelihood(requests("loglikelihood", texts), disable_tqdm=True)
    assert [v for v, _ in found] == pytest.approx([v for v, _ in expected], abs=2e-4)
    assert [g for _, g in found] == [g for _, g in expected]
    assert ours.cut == 1
    assert ours.prefix_token_id == reference.prefix_token_id == 1


def test_rolling_log_likelihoods_are_those_of_lm_eval(pair):
    texts = [(" ".join(WORDS[:200]),), ("the old river",)]
    reference, ours = pair
    expected = reference.loglikelihood_rolling(requests("x", texts), disable_tqdm=True)
    found = ours.loglikelihood_rolling(requests("x", texts), disable_tqdm=True)
    assert found == pytest.approx(expected, rel=1e-5)


def test_generated_text_is_that_of_lm_eval(pair):
    options = {"until": ["old", "\n"], "max_gen_toks": 12}
    texts = [("the old river", options), ("some birds sing near", options), ("a", options)]
    reference, ours = pair
    reference.tokenizer.pad_token_id = 0
    expected = reference.generate_until(requests("x", texts), disable_tqdm=True)
    found = ours.generate_until(requests("x", texts), disable_tqdm=True)
    assert found == expected


def test_a_sequence_longer_than_the_model_is_refused(model_folder, pair):
    from edgeqat.harness.lm import EdgeQATLM

    with pytest.raises(UsageError, match="max-length: 500 is not within the model's 128 positions"):
        EdgeQATLM(str(model_folder), backend="float", max_length=500)
    answer = requests("x", [("a", " ".join(WORDS[:300]))])
    with pytest.raises(UsageError, match=r"an answer of .* tokens exceeds the 128 positions"):
        pair[1].loglikelihood(answer, disable_tqdm=True)
    wide = requests("x", [("a", {"max_gen_toks": 200})])
    with pytest.raises(UsageError, match="200 new tokens do not fit into the 128 positions"):
        pair[1].generate_until(wide, disable_tqdm=True)


def test_the_command_scores_all_of_blimp(packed_folder, data_root, tmp_path, capsys):
    output = tmp_path / "blimp.json"
    arguments = ["eval", packed_folder, "--tasks", "blimp", "--data-root", data_root]
    assert run([str(a) for a in [*arguments, "--limit", 1, "--output", output]]) == 0
    found = json.loads(output.read_text(encoding="utf-8"))
    assert set(found["results"]) == {"blimp", *(f"blimp_{name}" for name in PARADIGMS)}
    assert len(PARADIGMS) == 67
    each = [found["results"][f"blimp_{name}"]["acc,none"] for name in PARADIGMS]
    assert found["groups"]["blimp"]["acc,none"] == pytest.approx(sum(each) / 67)
    assert found["n-samples"]["blimp_adjunct_island"] == {"original": 2, "effective": 1}
    assert found["config"]["bos"]["prefix_token"] == "<s>"
    assert found["config"]["max_length"] == 128
    assert found["config"]["scored_sequences"] == 134
    assert found["config"]["scoring_cpu_seconds"] > 0
    own = found["edgeqat"]
    assert (own["scheme"], own["backend"]) == ("w4a8kv4", "fake-quant")
    assert len(own["recipe"]["sha256"]) == 64
    printed = capsys.readouterr().out
    assert "|blimp " in printed
    assert f"wrote {output}" in printed
    assert [path.name for path in tmp_path.iterdir()] == ["blimp.json"]


def test_the_other_layouts_are_read(model_folder, data_root, monkeypatch, tmp_path):
    names = "piqa,arc_easy,hellaswag,wikitext_raw,lambada_openai,novels,novels_last_word"
    monkeypatch.setenv("EDGEQAT_DATA", str(data_root))
    output = tmp_path / "found.json"
    arguments = ["eval", model_folder, "--backend", "float", "--tasks", names]
    assert run([str(a) for a in [*arguments, "--output", output]]) == 0
    found = json.loads(output.read_text(encoding="utf-8"))
    assert set(found["results"]) == set(names.split(","))
    assert found["edgeqat"]["scheme"] == "w16a16kv16"
    assert found["results"]["novels"]["word_perplexity,none"] > 1
    assert found["n-samples"]["novels_last_word"]["original"] == 5
    assert found["results"]["hellaswag"]["acc_norm,none"] in (0, 1)


def test_rows_are_read_from_parquet_too(data_root, tmp_path):
    expected = data.rows("piqa/validation", str(data_root))["test"]
    (tmp_path / "piqa").mkdir()
    expected.to_parquet(str(tmp_path / "piqa" / "validation.parquet"))
    assert data.rows("piqa/validation", str(tmp_path))["test"][:] == expected[:]


@pytest.mark.parametrize("raw", [b"{", b"[1]\n", b"\xff\xfe"], ids=["cut off", "no rows", "bytes"])
def test_damaged_data_is_refused(tmp_path, raw):
    (tmp_path / "one.jsonl").write_bytes(raw)
    with pytest.raises(DataError, match=r"one.jsonl' cannot be read"):
        data.rows("one", str(tmp_path))


def test_hellaswag_loses_its_marks(data_root):
    (row,) = data.endings("hellaswag/validation", str(data_root))["test"]
    assert row["query"] == "River: the old Mill"
    assert row["choices"] == ["runs on.", "sings"]
    assert row["gold"] == 1


@pytest.fixture
def few_tasks(monkeypatch):
    """lm-eval without its own thousands of task files, which take seconds to list."""
    from lm_eval.tasks import _index

    listed = _index.TaskIndex._iter_yaml_files
    ours = lambda root: listed(root) if root == task_folder() else iter(())  # noqa: E731
    monkeypatch.setattr(_index.TaskIndex, "_iter_yaml_files", staticmethod(ours))


@pytest.mark.parametrize("model", ["edgeqat", "hf"])
def test_lm_evals_command_line_knows_our_model_and_its_own(
    model, model_folder, data_root, tmp_path, monkeypatch, capsys, few_tasks
):
    from edgeqat.harness import lm

    command = [
        *("harness", "run", "--model", model, "--tasks", "piqa", "--device", "cpu"),
        *("--model_args", f"pretrained={model_folder}{',backend=float' * (model == 'edgeqat')}"),
        *("--include_path", str(task_folder()), "--metadata", f"data_root={data_root}"),
        *("--output_path", str(tmp_path / "out.json")),
    ]
    monkeypatch.setattr(sys, "argv", command)
    lm.main()
    assert "|piqa" in capsys.readouterr().out
    (written,) = tmp_path.rglob("*.json")
    found = json.loads(written.read_text(encoding="utf-8"))["config"]
    assert (found["model"], found.get("backend")) in (("edgeqat", "float"), ("hf", None))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--tasks", "blimpp"], ["tasks: 'blimpp' is unknown; did you mean 'blimp"]),
        (["--tasks", ","], ["tasks: none is named"]),
        (["--tasks", "piqa"], ["tasks: no data root for 'piqa/validation'", "--data-root"]),
        (["--tasks", "piqa", "--data-root", "nowhere"], ["nowhere/piqa/validation", "README"]),
        (["--tasks", "piqa", "--blocks", "3"], ["blocks: '3' is for held-out text"]),
        (["--limit", "3"], ["limit: '3.0' is for tasks; add --tasks"]),
        (["--tasks", "piqa", "--limit", "0"], ["limit: 0 examples are none"]),
        (["--tasks", "piqa", "--backend", "gpu"], ["backend: 'gpu' is unknown", "fake-quant"]),
        (["--backend", "float"], ["backend: 'float' is for --tasks", "--against"]),
        (["--tasks", "piqa", "--max-length", "999"], ["max-length: 999", "128 positions"]),
        (["--tasks", "piqa", "--output", "no/where.json"], ["output", "no/where.json", "make it"]),
    ],
    ids=lambda own: " ".join(own) if own and own[0].startswith("--") else "",
)
def test_wrong_use_is_one_line(
    packed_folder, capsys, monkeypatch, tmp_path, few_tasks, arguments, words
):
    monkeypatch.delenv("EDGEQAT_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    assert run(["eval", str(packed_folder), *arguments]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1].startswith("error: ")
    assert [word for word in words if word not in lines[-1]] == [], lines[-1]


def test_a_misspelt_argument_is_refused(packed_folder):
    from edgeqat.errors import UsageError
    from edgeqat.harness.lm import EdgeQATLM

    with pytest.raises(UsageError, match="model_args: 'bakend' is unknown; did you mean 'backend'"):
        EdgeQATLM(str(packed_folder), bakend="native")


def test_without_a_data_root_tasks_are_lm_evals_own(monkeypatch, tmp_path):
    from edgeqat.harness.lm import _manager

    monkeypatch.delenv("EDGEQAT_DATA", raising=False)
    ours = str(task_folder())
    found = [_manager(["piqa"], task_folder(), root) for root in (None, str(tmp_path))]
    places = [str(manager.task_index["piqa"]) for manager in found]
    assert [ours in place for place in places] == [False, True], places


def test_greedy_is_what_lm_eval_calls_so():
    from edgeqat.harness.lm import _sampling

    assert _sampling({"do_sample": False, "temperature": 0.7}).temperature == 0
    assert _sampling({"temperature": 0.7}).temperature == 0.7
    assert _sampling({"do_sample": True}).temperature == 1
    assert _sampling({}).temperature == 0
    with pytest.raises(UsageError, match=r"gen-kwargs: .*abc"):
        _sampling({"temperature": "abc"})


@pytest.mark.parametrize("given", [{"repetition_penalty": 5.0}, {"max_gen_tokens": 3}])
def test_settings_that_not_every_backend_knows_are_refused(pair, given):
    _, ours = pair
    (name,) = given
    with pytest.raises(UsageError, match=rf"gen-kwargs: '{name}' \({given[name]}\).*leave it out"):
        ours.generate_until(requests("x", [("a", {"until": ["b"], **given})]), disable_tqdm=True)
    neutral = {"until": ["b"], "max_gen_toks": 2, "num_beams": 1, "repetition_penalty": 1.0}
    assert ours.generate_until(requests("x", [("a", neutral)]), disable_tqdm=True)


def test_a_folder_that_is_not_packed_is_refused(model_folder, capsys):
    assert run(["eval", str(model_folder), "--tasks", "piqa"]) == 1
    assert "quantization_config" in capsys.readouterr().err
