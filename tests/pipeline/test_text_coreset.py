"""Coresets and layer correction of a language model: a sample is a packed block."""

import json
from types import SimpleNamespace

import pytest
import torch

from edgeqat.cli import run
from edgeqat.train import processes


@pytest.fixture
def quantize(model_folder, text_file, tmp_path):
    def quantize(*more, data=text_file):
        chosen = ["--set", "data.context=32", "--set", "train.batch_size=4", "--steps", "6",
                  "--set", "train.compare_float=false", "--set", "train.log_steps=1"]  # fmt: skip
        given = ["--model", str(model_folder), "--data", str(data), "--w2a8kv4"]
        out = ["--output", str(tmp_path / "out")]
        return run(["quantize", *given, *chosen, *out, *more])

    return quantize


def test_blocks_are_selected_and_corrected(quantize, tmp_path):
    more = ["--coreset", "0.1", "--set", "correct.weight=1", "--set", "coreset.every_steps=4"]
    assert quantize(*more, "--set", "coreset.selector=res") == 0
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    coreset, train = metrics["coreset"], metrics["train"]
    assert coreset["size"] == round(0.1 * coreset["samples"])
    assert len(coreset["selections"]) == 2
    assert coreset["selections"][0]["accuracy"] is not None
    assert train["selection_seconds"] > 0 and train["tokens_per_second"] > 0
    lines = (tmp_path / "out" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    terms = [json.loads(line)["terms"] for line in lines]
    assert terms[-1]["correction"] > 0
    assert terms[-1]["loss"] == pytest.approx(terms[-1]["kl"] + terms[-1]["correction"], rel=1e-4)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["coreset.selector=moderate"], "needs samples with classes"),
        (["coreset.balanced=true"], "needs labelled images"),
        (["correct.weight=1", "correct.blocks=layers.9"], "correct.blocks: 'layers.9' matches no"),
    ],
)
def test_wrong_use(quantize, capsys, tmp_path, given, words):
    sets = [word for entry in given for word in ("--set", entry)]
    assert quantize("--coreset", "0.5", *sets) == 2
    assert words in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_streams_have_no_samples(quantize, text_file, capsys):
    stream = ["--set", "data.streaming=true", "--set", f"data.valid={text_file}",
              "--set", f"data.train={text_file}"]  # fmt: skip
    assert quantize("--coreset", "0.5", *stream, data=text_file.parent) == 2
    assert "streamed text has no samples" in capsys.readouterr().err


@pytest.mark.parametrize("count", [1, 7, 9])
def test_shards_cover_everything_and_are_equally_long(monkeypatch, count):
    shards = []
    for rank in range(3):
        state = SimpleNamespace(num_processes=3, process_index=rank)
        monkeypatch.setattr(processes, "_state", lambda state=state: state)
        shards.append(processes.shard(count))
    assert len({len(shard) for shard in shards}) == 1
    assert torch.cat(shards)[:count].tolist() == list(range(count))


def test_what_one_process_gathers_is_its_own():
    assert torch.equal(processes.gathered(torch.arange(4), 3), torch.arange(3))
