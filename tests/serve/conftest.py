"""One packed folder and one server for all tests that change neither."""

from __future__ import annotations

import openai
import pytest
from serving import pack, served


@pytest.fixture(scope="session")
def chat_folder(tmp_path_factory):
    return pack(tmp_path_factory.mktemp("served") / "demo")


@pytest.fixture(scope="session")
def server(chat_folder):
    with served(chat_folder) as running:
        yield running


@pytest.fixture
def client(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0) as made:
        yield made
