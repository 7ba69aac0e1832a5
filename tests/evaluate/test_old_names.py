"""Commands by the names they had."""

import logging

from edgeqat.evaluate import harness
from edgeqat.harness import lm


def test_the_old_name_of_lm_eval_s_command_line_says_the_new_one(monkeypatch, caplog):
    ran = []
    monkeypatch.setattr(lm, "main", lambda: ran.append(True))
    with caplog.at_level(logging.WARNING, "edgeqat"):
        harness.main()
    assert ran and "write python -m edgeqat.harness.lm" in caplog.text
