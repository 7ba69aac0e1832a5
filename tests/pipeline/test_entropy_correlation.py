"""Subsets of bands of relative entropy, and their correlation with what was reached from them."""

from __future__ import annotations

import json

import pytest
import torch
from scripts import loaded, needs_scripts

from edgeqat.errors import UsageError

pytestmark = needs_scripts


@pytest.fixture(scope="module")
def script():
    with loaded("entropy_correlation") as module:
        yield module


def test_bands_are_balanced_disjoint_and_rise(script):
    generator = torch.Generator().manual_seed(0)
    scores, classes = torch.rand(600, generator=generator), torch.arange(600) % 5
    found = script.bands(scores, classes, 6, 3, generator)
    assert len(torch.cat(found).unique()) == 6 * 5 * 3
    for index in found:
        assert torch.equal(torch.bincount(classes[index]), torch.full((5,), 3))
        assert torch.equal(index, index.sort().values)
    means = [scores[index].mean().item() for index in found]
    assert means == sorted(means)


def test_the_correlation_is_that_of_the_finished_runs(script, tmp_path):
    means = {f"band{number:02}": number / 10 for number in range(4)}
    (tmp_path / "entropies.json").write_text(json.dumps(means))
    for name, top in (("band00", 40.0), ("band02", 60.0), ("band03", 50.0)):
        folder = tmp_path / f"entropy-w2a32-{name}-s0"
        folder.mkdir()
        (folder / "metrics.json").write_text(json.dumps({"qat": {"top1": top}}))
    text = script.correlate(tmp_path)
    assert "| band02 | 0.2000 | 60.00 |" in text
    assert "band01" not in text
    assert "Spearman +0.500" in text
    assert text.endswith("3 subsets")


def test_correlating_before_preparing_is_one_line(script, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["script", "correlate", "--out", str(tmp_path)])
    with pytest.raises(SystemExit):
        script.main()
    assert "run prepare first" in capsys.readouterr().err


@pytest.mark.parametrize("share, taken", [(0.001, 0), (0.9, 18)])
def test_a_share_that_no_band_can_give_is_one_line(script, share, taken):
    classes = torch.arange(100) % 5
    assert script.per_class(classes, 0.2, 4) == 4
    message = f"--share: {share:g} takes {taken} images of each class, between 1 and 5 can be had"
    with pytest.raises(UsageError, match=message):
        script.per_class(classes, share, 4)
