"""`edgeqat chat` and `edgeqat generate --chat`: in a pipe, in a terminal, and refused."""

from __future__ import annotations

import io
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time

import pytest
from marks import needs_kernels

import edgeqat
from edgeqat.cli import run
from edgeqat.hf import float_model
from edgeqat.pipeline.conversation import Conversation
from edgeqat.pipeline.folder_tokenizer import FolderTokenizer
from edgeqat.runtime.engine import Engine

TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('no tools') }}{% endif %}"
    "<s>{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant: {% endif %}"
)
SUMMARY = re.compile(r"(\d+) answers, (\d+) tokens, [\d.]+ tokens/s; (\d+) of (\d+) prompt tokens")
pytestmark = needs_kernels


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The packed demo with a chat template; hardly any text of it ends by itself."""
    place = tmp_path_factory.mktemp("chat") / "packed"
    tokenizer, model = float_model.load_tokenizer("demo"), float_model.load_model("demo")
    tokenizer.chat_template = TEMPLATE
    edgeqat.save(edgeqat.prepare(model, "w4a8kv4"), place, tokenizer=tokenizer)
    return place


@pytest.fixture
def chat(folder, monkeypatch, capsys):
    """Answers and notices of a chat whose turns come from a pipe."""

    def talk(lines, *options, code=0):
        monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
        assert run(["chat", str(folder), "--max-tokens", "8", *options]) == code
        told = capsys.readouterr()
        return told.out, told.err

    return talk


def test_each_line_of_a_pipe_is_a_turn(chat, folder):
    out, err = chat(["hello", "", "the old river"])
    conversation = Conversation(folder, 8)
    expected = ["".join(conversation.answer(words)) for words in ("hello", "the old river")]
    conversation.close()
    assert out == "".join(f"{answer}\n" for answer in expected)
    answers, tokens, reused, read = map(int, SUMMARY.search(err).groups())
    assert (answers, tokens) == (2, 16) and 0 < reused < read


def test_history_is_not_read_again(folder, monkeypatch):
    read, plain = [], Engine.generate
    monkeypatch.setattr(
        Engine,
        "generate",
        lambda self, ids, *a, **k: read.append(list(ids)) or plain(self, ids, *a, **k),
    )
    conversation = Conversation(folder, 8)
    first = "".join(conversation.answer("hello"))
    read.clear()
    second = "".join(conversation.answer("again"))
    prompt = conversation.tokenizer.template(conversation.turns[:-1])
    assert conversation.reused > 0 and len(read[0]) < len(prompt) - 10
    conversation.close()
    monkeypatch.undo()
    alone = Conversation(folder, 8)
    alone.turns = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": first}]
    assert "".join(alone.answer("again")) == second
    alone.close()


def test_commands(chat, folder, monkeypatch):
    asked, plain = [], FolderTokenizer.template
    monkeypatch.setattr(
        FolderTokenizer, "template", lambda self, given: asked.append(given) or plain(self, given)
    )
    lines = ["hello", "/reset", "hello", "/help", "/rest", "/system Be brief.", "hello", "/exit"]
    _, err = chat([*lines, "not read"])
    assert "'/rest' is unknown; did you mean '/reset'?" in err
    assert "/system  what the model is told first" in err
    assert SUMMARY.search(err)[1] == "3"
    roles = [[message["role"] for message in messages] for messages in asked]
    assert roles == [["user"], ["user"], ["system", "user", "assistant", "user"]]
    asked.clear()
    chat(["hello"], "--system", "Be brief.")
    assert asked[0][0] == {"role": "system", "content": "Be brief."}


def test_sampling_has_the_names_of_generate(chat):
    options = ("--temperature", "2", "--top-k", "50", "--top-p", "0.99")
    outs = [chat(["hello", "hello"], *options, "--seed", seed)[0] for seed in "112"]
    assert outs[0] == outs[1] != outs[2]


def test_a_full_context_is_an_error_of_its_turn_alone(chat):
    out, err = chat(["the old river " * 800, "hello"])
    assert " positions; say less, or begin anew with /reset" in err
    assert out and SUMMARY.search(err)[1] == "1"


def test_what_cannot_be_talked_with_is_refused(packed_folder, folder, capsys):
    assert run(["chat", str(packed_folder)]) == 2
    error = capsys.readouterr().err
    assert "has no chat template; use `edgeqat generate`" in error and error.count("\n") == 1
    assert run(["generate", str(packed_folder), "--prompt", "a", "--chat"]) == 2
    assert "has no chat template; leave out --chat" in capsys.readouterr().err
    assert run(["chat", str(folder.parent)]) == 1
    assert capsys.readouterr().err.count("\n") == 1
    assert run(["chat", str(folder), "--temperature", "-1"]) == 2


def test_a_template_that_refuses_is_one_line(folder):
    conversation = Conversation(folder, 8)
    conversation.turns = [{"role": "tool", "content": "x"}]
    with pytest.raises(edgeqat.UsageError, match=r"template refuses the conversation \(no tools\)"):
        list(conversation.answer("hello"))
    assert conversation.turns == [{"role": "tool", "content": "x"}]
    conversation.close()


def test_generate_reads_files_and_templates(folder, tmp_path, monkeypatch, capsys):
    def told(*arguments, code=0):
        assert run(["generate", str(folder), "--max-tokens", "8", *map(str, arguments)]) == code
        captured = capsys.readouterr()
        return captured.out if code == 0 else captured.err

    file = tmp_path / "a.txt"
    file.write_text("the old river\n", encoding="utf-8")
    assert told("--file", file) == told("--prompt", "the old river")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"the old river")))
    assert told("--file", "-") == told("--prompt", "the old river")
    answer = told("--file", file, "--chat")
    conversation = Conversation(folder, 8)
    assert answer == "".join(conversation.answer("the old river")) + "\n"
    conversation.close()
    assert told("--file", file, "--chat", "--engine", "torch") == answer
    assert "prompt, file: both are given" in told("--file", file, "--prompt", "a", code=2)
    assert "prompt, file: neither is given" in told(code=2)
    assert "cannot be read (No such file" in told("--file", tmp_path / "b.txt", code=2)
    file.write_bytes(b"\xff\xfe\x00")
    assert "is not UTF-8 text" in told("--file", file, code=2)
    file.write_bytes(b"")
    assert "prompt: it is empty" in told("--file", file, code=2)


SLOW = (
    "import sys, time\n"
    "from edgeqat.cli import run\n"
    "from edgeqat.native_sequences import NativeGenerator\n"
    "plain = NativeGenerator.next\n"
    "NativeGenerator.next = lambda self: time.sleep(0.1) or plain(self)\n"
    "sys.exit(run(sys.argv[1:]))\n"
)


@pytest.mark.slow
def test_ctrl_c_stops_an_answer_and_sigterm_the_chat(folder):
    control, terminal = pty.openpty()
    command = [sys.executable, "-c", SLOW, "chat", str(folder), "--max-tokens", "300"]
    program = subprocess.Popen(
        command, stdin=terminal, stdout=terminal, stderr=terminal, start_new_session=True,
        preexec_fn=lambda: __import__("fcntl").ioctl(0, __import__("termios").TIOCSCTTY, 0),
    )  # fmt: skip
    os.close(terminal)
    shown = ""

    def until(words, start, keys=b""):
        """Waits for words after a place; keys are pressed until they come."""
        nonlocal shown
        end = time.monotonic() + 120
        while words not in shown[start:]:
            assert time.monotonic() < end, shown
            os.write(control, keys)
            if select.select([control], [], [], 1)[0]:
                shown += os.read(control, 4096).decode(errors="replace")
        return shown.index(words, start) + len(words)

    try:
        at = until("> ", 0)
        os.write(control, b"hello\n")
        at = until("hello\r\n", at)
        time.sleep(1.5)  # some pieces of the answer
        os.write(control, b"\x03")
        at = until("(stopped)", at)
        at = until("> ", at)
        # At the prompt it says how to end. Readline misses a Ctrl-C pressed while it prints it.
        at = until("Ctrl-D or /exit ends the chat", at, b"\x03")
        os.write(control, b"again\n")
        until("again\r\n", at)
        time.sleep(0.5)
        program.send_signal(signal.SIGTERM)  # what stops a service ends more than the answer
        assert program.wait(timeout=60) == 143
    finally:
        program.kill()
        program.wait()
        os.close(control)
