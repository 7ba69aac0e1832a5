"""Logging: our lines go to stderr once, however often it is set up."""

from __future__ import annotations

import logging

from edgeqat import log


def test_setting_up_twice_prints_every_line_once(capsys):
    log.setup()
    log.setup()
    logging.getLogger("edgeqat.pipeline").info("one line of %d", 1)
    output, error = capsys.readouterr()
    assert output == ""
    assert [line.strip() for line in error.splitlines()] == ["one line of 1"]


def test_details_are_shown_on_request_only(capsys):
    for debug in (False, True):
        log.setup(debug=debug)
        logging.getLogger("edgeqat.train").debug("a detail")
        assert ("a detail" in capsys.readouterr().err) == debug
