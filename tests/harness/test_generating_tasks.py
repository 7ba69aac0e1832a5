"""Tasks that generate text, from local files: GSM8K and IFEval on the embedded demo."""

from __future__ import annotations

import json
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from marks import needs_kernels

import edgeqat
from edgeqat.cli import run
from edgeqat.demo import model as demo
from edgeqat.harness import data, ifeval
from edgeqat.harness.backends import Native
from edgeqat.harness.run import task_folder
from edgeqat.hf import float_model

pytestmark = pytest.mark.filterwarnings("ignore")  # of lm-eval and what it imports

TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)
SHORT = "max_gen_toks=8"


@pytest.fixture(autouse=True)
def _environment(monkeypatch):
    """lm-eval asks pip and the compiler about the machine, seconds each time."""
    monkeypatch.setattr("lm_eval.evaluator.add_env_info", lambda storage: None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The demo at w4a8kv4, rounded, with a chat template."""
    place = tmp_path_factory.mktemp("demo") / "packed"
    tokenizer = float_model.load_tokenizer("demo")
    tokenizer.chat_template = TEMPLATE
    prepared = edgeqat.prepare(float_model.load_model("demo"), "w4a8kv4")
    edgeqat.save(prepared, place, tokenizer=tokenizer)
    return place


@pytest.fixture(scope="module")
def data_root(tmp_path_factory):
    """GSM8K in the layout of the hub, and IFEval's one file."""
    root = tmp_path_factory.mktemp("data")
    sums = [
        {"question": f"What is {n} + 1?", "answer": f"Add one.\n#### {n + 1}"} for n in range(8)
    ]
    (root / "gsm8k/main").mkdir(parents=True)
    (root / "ifeval").mkdir()
    write(root / "gsm8k/train.jsonl", sums[:6])
    write(root / "gsm8k/test.jsonl", sums[6:])
    for split, name in (("train", "train"), ("test", "test")):
        whole = data.splits({split: [f"gsm8k/{name}"]}, ["question"], str(root))[split]
        whole.to_parquet(str(root / f"gsm8k/main/{name}-00000-of-00001.parquet"))
        (root / f"gsm8k/{name}.jsonl").unlink()
    asked = [
        ("Say it without commas.", ["punctuation:no_comma"], [{}]),
        (
            "Write at least 2 words, and the word import.",
            ["length_constraints:number_words", "keywords:existence"],
            [{"relation": "at least", "num_words": 2}, {"keywords": ["import"]}],
        ),
    ]
    rows = [
        {"key": n, "prompt": words, "instruction_id_list": names, "kwargs": kwargs}
        for n, (words, names, kwargs) in enumerate(asked)
    ]
    write(root / "ifeval/ifeval_input_data.jsonl", rows)
    (root / "nltk_data/tokenizers/punkt_tab").mkdir(parents=True)
    return root


def write(path: Path, rows: list) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture
def asked(monkeypatch):
    """What backends are asked and answer, (prompt, tokens) each."""
    from edgeqat.harness import backends

    told = []
    for kind in (backends.Torch, backends.Native):
        plain = kind.generate

        def generate(self, prompts, limit, stops, sampling, plain=plain):
            answers = plain(self, prompts, limit, stops, sampling)
            told.extend(zip(map(self.tokenizer.decode, prompts), answers, strict=True))
            return answers

        monkeypatch.setattr(kind, "generate", generate)
    return told


def evaluate(folder, data_root, output, task, backend, *more):
    arguments = [folder, "--tasks", task, "--data-root", data_root, "--backend", backend]
    arguments += ["--gen-kwargs", SHORT, "--output", output, "--threads", "1", *more]
    assert run(["eval", *map(str, arguments)]) == 0
    return json.loads(output.read_text(encoding="utf-8"))


@needs_kernels
def test_backends_write_the_same_answers(folder, data_root, tmp_path, asked):
    results, answers = [], []
    for backend in ("native", "fake-quant", "packed"):
        found = evaluate(folder, data_root, tmp_path / "a.json", "gsm8k", backend)
        results.append(found["results"]["gsm8k"])
        answers.append(sorted(asked))
        asked.clear()
    assert answers[0] == answers[1] == answers[2]
    assert results[0] == results[1] == results[2]
    assert "exact_match,strict-match" in results[0]
    assert found["n-samples"]["gsm8k"]["original"] == 2
    for prompt, tokens in answers[0]:
        assert prompt.count("Question: ") == 6 and prompt.endswith("?\nAnswer:")
        assert 0 < len(tokens) <= 8


@needs_kernels
def test_worked_examples_become_turns_of_a_conversation(folder, data_root, tmp_path, asked):
    found = evaluate(
        folder, data_root, tmp_path / "a.json", "gsm8k", "native", "--chat", "--num-fewshot", "2"
    )
    assert found["edgeqat"]["chat"] is True
    for prompt, _ in asked:
        assert prompt.count("[user] Question: ") == 3 and prompt.count("[assistant] ") == 3
        assert prompt.endswith("[assistant] ")
        assert "[assistant] Add one.\n#### " in prompt


@needs_kernels
@pytest.mark.skipif(
    not all(map(find_spec, ifeval.PACKAGES)), reason="pip install 'edgeqat[ifeval]'"
)
def test_instructions_are_checked(folder, data_root, tmp_path, asked):
    found = evaluate(folder, data_root, tmp_path / "a.json", "ifeval", "native")["results"][
        "ifeval"
    ]
    assert found["inst_level_loose_acc,none"] >= found["inst_level_strict_acc,none"]
    assert 0 <= found["prompt_level_strict_acc,none"] <= 1
    prompts = [prompt for prompt, _ in asked]
    assert sorted(prompts) == prompts and "Say it without commas." in prompts


@needs_kernels
def test_the_engine_reads_a_shared_beginning_once(folder, monkeypatch):
    opened = Native(folder, float_model.load_tokenizer("demo"), 1)
    from edgeqat.harness.backends import Sampling

    read, plain = [], type(opened.engine).generate
    monkeypatch.setattr(
        type(opened.engine), "generate",
        lambda self, ids, *given, **options: read.append(len(ids))
        or plain(self, ids, *given, **options),
    )  # fmt: skip
    stem = list(range(5, 45))
    prompts = [[*stem, 60, 61], [*stem, 70]]
    together = opened.generate(prompts, 4, [], Sampling())
    assert [count for count in read if count > 1] == [42]
    alone = []
    for prompt in prompts:
        opened.score([[1, 2, 3]], [1])  # another use of the engine
        alone += opened.generate([prompt], 4, [], Sampling())
    assert alone == together
    opened.close()


def test_our_gsm8k_is_lm_evals():
    import lm_eval
    import yaml

    theirs = Path(lm_eval.__file__).parent / "tasks"
    for name, same in (
        ("gsm8k", ("doc_to_text", "doc_to_target", "filter_list", "num_fewshot", "metric_list")),
        ("ifeval", ("doc_to_text", "doc_to_target", "num_fewshot")),
    ):
        ours, other = (
            yaml.safe_load(path.read_text(encoding="utf-8").replace("!function ", ""))
            for path in (task_folder() / f"generate/{name}.yaml", theirs / f"{name}/{name}.yaml")
        )
        for field in (*same, "generation_kwargs"):
            assert ours[field] == other[field], (name, field)
        assert ours["metadata"]["version"] == other["metadata"]["version"]


def test_what_is_missing_is_said_in_a_line(folder, data_root, tmp_path, monkeypatch, capsys):
    def refused(*arguments, code=2):
        assert run(["eval", *map(str, arguments)]) == code
        return capsys.readouterr().err.splitlines()[-1]

    def asked(task, root):
        return refused(folder, "--tasks", task, "--data-root", root, "--gen-kwargs", SHORT)

    error = asked("gsm8k", tmp_path)
    assert f"'{tmp_path}/gsm8k/main/train-00000-of-00001' with .jsonl.gz, .jsonl, .parquet" in error
    assert "(or gsm8k/main/train, gsm8k/train)" in error and "README" in error
    for name in ifeval.PACKAGES:
        monkeypatch.setitem(sys.modules, name, None)
    error = asked("ifeval", tmp_path)
    assert "langdetect, immutabledict, nltk, not installed; pip install 'edgeqat[ifeval]'" in error
    monkeypatch.undo()
    if all(map(find_spec, ifeval.PACKAGES)):
        monkeypatch.setattr("nltk.data.path", [])
        error = asked("ifeval", tmp_path)
        assert "needs nltk's punkt_tab" in error and "nltk.downloader -d" in error
    (tmp_path / "gsm8k").mkdir()
    for name in ("train", "test"):
        write(tmp_path / f"gsm8k/{name}.jsonl", [{"question": "a", "answer": "b"}] * 9)
    given = (folder, "--tasks", "gsm8k", "--data-root", tmp_path)
    assert "look at --limit, --num-fewshot" in refused(*given, "--num-fewshot", "30")
    error = refused(*given, "--gen-kwargs", "max_gen_toks=5000")
    assert "5000 new tokens do not fit" in error
    error = refused(
        demo.folder(), "--tasks", "gsm8k", "--backend", "float", "--chat", "--data-root", tmp_path
    )
    assert "chat: the model's tokenizer has no chat template; leave out --chat" in error
    assert "chat: 'True' is for tasks" in refused(folder, "--chat")
    write(tmp_path / "gsm8k/test.jsonl", [{"question": "a"}])
    assert "has no field 'answer'; its rows need question, answer" in asked("gsm8k", tmp_path)
    write(tmp_path / "gsm8k/test.jsonl", [])
    assert "has no field 'question'" in asked("gsm8k", tmp_path)
