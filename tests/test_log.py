"""Logging: our lines go to stderr once, however often it is set up."""

from __future__ import annotations

import logging
import os
import subprocess
import sys

from edgeqat import log


def test_setting_up_twice_prints_every_line_once(capsys):
    log.setup()
    log.setup()
    logging.getLogger("edgeqat.pipeline").info("one line of %d", 1)
    output, error = capsys.readouterr()
    assert output == ""
    assert [line.strip() for line in error.splitlines()] == ["one line of 1"]


def test_the_hub_s_retries_stay_off_stderr():
    # in a process of its own: the library sets its level when it is imported
    code = (
        "from edgeqat import log; log.setup(); from huggingface_hub import file_download; "
        "import logging; "
        "logging.getLogger('huggingface_hub.utils._http').warning('Retrying in 1s [Retry 1/5].')"
    )
    environment = {name: own for name, own in os.environ.items() if name != "HF_HUB_VERBOSITY"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_details_are_shown_on_request_only(capsys):
    for debug in (False, True):
        log.setup(debug=debug)
        logging.getLogger("edgeqat.train").debug("a detail")
        assert ("a detail" in capsys.readouterr().err) == debug
