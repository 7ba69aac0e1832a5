"""The chat page in a browser, driven over the DevTools pipe."""

from __future__ import annotations

import json
import os
import subprocess

import pytest
from marks import BROWSER, needs_browser, needs_kernels
from serving import served, until

pytestmark = [needs_kernels, needs_browser]
ANSWER = "document.querySelector('.assistant:last-child')?.textContent"


class Browser:
    """Headless chromium with one page; commands are JSON that ends with NUL, on pipes 3 and 4."""

    def __init__(self, profile):
        assert BROWSER is not None, "EDGEQAT_BROWSER is set and there is no chromium"
        theirs_in, self.out = os.pipe()
        self.inward, theirs_out = os.pipe()
        command = [
            *("bash", "-c", f'exec "$@" 3<&{theirs_in} 4>&{theirs_out}', "sh", BROWSER),
            *("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
            *(f"--user-data-dir={profile}", "--remote-debugging-pipe", "about:blank"),
        ]
        self.process = subprocess.Popen(
            command, pass_fds=(theirs_in, theirs_out), stderr=subprocess.DEVNULL
        )
        os.close(theirs_in)
        os.close(theirs_out)
        self.held, self.number, self.session, self.events = b"", 0, None, []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)[
            "sessionId"
        ]
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method, **parameters):
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.out, json.dumps(message).encode() + b"\0")
        while True:
            while b"\0" not in self.held:
                read = os.read(self.inward, 65536)
                assert read, "chromium has ended"
                self.held += read
            one, _, self.held = self.held.partition(b"\0")
            answer = json.loads(one)
            if answer.get("id") == self.number:
                assert "error" not in answer, answer
                return answer["result"]
            self.events.append(answer)

    def open(self, url):
        self.call("Page.navigate", url=url)
        until(lambda: self.value("document.readyState") == "complete")

    def value(self, script):
        given = self.call("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in given, given
        return given["result"].get("value")

    def say(self, words):
        self.value(f"document.getElementById('text').value = {json.dumps(words)}")
        self.value("document.getElementById('send').click()")

    def faults(self):
        """What the console and the policy complained of; advice is none of it."""
        thrown = [one for one in self.events if one.get("method") == "Runtime.exceptionThrown"]
        logged = [one for one in self.events if one.get("method") == "Log.entryAdded"]
        return thrown + [one for one in logged if one["params"]["entry"]["level"] != "verbose"]

    def close(self):
        self.process.kill()
        self.process.wait()
        os.close(self.out)
        os.close(self.inward)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    made = Browser(tmp_path_factory.mktemp("profile"))
    yield made
    made.close()


def test_a_conversation(browser, server):
    browser.events.clear()
    browser.open(server.url)
    until(lambda: browser.value("document.getElementById('model').textContent") == "demo")
    browser.value("document.getElementById('temperature').value = '0'")
    browser.value("document.getElementById('most').value = '12'")
    browser.value("document.getElementById('system').value = 'Be brief.'")
    state = "document.getElementById('state').textContent"
    markup = "<b>hello</b><script>window.broken = 1</script>"
    browser.say(markup)
    until(lambda: "12 tokens" in (browser.value(state) or ""))
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": markup}]
    body = {"messages": messages, "temperature": 0, "max_tokens": 12}
    told = server.post("chat/completions", body).json()["choices"][0]["message"]
    assert browser.value(ANSWER) == told["content"] != ""
    assert browser.value("document.querySelector('.user').textContent") == markup
    assert browser.value("window.broken") is None
    browser.say("again")
    until(lambda: browser.value("document.querySelectorAll('.assistant').length") == 2)
    until(lambda: "12 tokens" in (browser.value(state) or ""))
    body["messages"] += [told, {"role": "user", "content": "again"}]
    second = server.post("chat/completions", body).json()["choices"][0]["message"]["content"]
    assert browser.value(ANSWER) == second
    browser.value("document.getElementById('new').click()")
    assert browser.value("document.getElementById('log').childElementCount") == 0
    assert browser.faults() == []


def test_stop_ends_an_answer_where_it_is(browser, chat_folder):
    with served(chat_folder) as slow:
        slow.slow_down(0.05)
        browser.open(slow.url)
        browser.say("hello")
        until(lambda: browser.value(ANSWER))
        assert browser.value("document.getElementById('send').hidden") is True
        browser.value("document.getElementById('stop').click()")
        until(lambda: browser.value("document.getElementById('state').textContent") == "stopped")
        slow.wait_until_idle()
        assert browser.value("document.getElementById('send').hidden") is False
        assert browser.value("messages.length") == 2


def test_a_key_is_asked_for_and_kept(browser, chat_folder):
    with served(chat_folder, api_key="secret") as locked:
        browser.open(locked.url)
        state = "document.getElementById('state').textContent"
        until(lambda: "API key is missing or wrong" in (browser.value(state) or ""))
        assert browser.value("document.getElementById('settings').open") is True
        browser.value(
            "const key = document.getElementById('key'); key.value = 'secret'; "
            "key.dispatchEvent(new Event('change'))"
        )
        until(lambda: browser.value("document.getElementById('model').textContent") == "demo")
        browser.open(locked.url)
        until(lambda: browser.value("document.getElementById('model').textContent") == "demo")
        browser.say("hello")
        until(lambda: browser.value(ANSWER))
