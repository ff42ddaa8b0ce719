"""As a ZeroGPU Space: the endpoints compute in another process, with the real package `spaces` and its own protocol.

The service that lends GPUs is played by this test.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from gradio_client import Client

from tests.interface.conftest import running
from tests.interface.test_api_client import SMALL, recipe

pytestmark = pytest.mark.slow
SCRIPT = Path(__file__).parent / "zero_gpu_space.py"


class Lender(ThreadingHTTPServer):
    """Lends a GPU that is not there, and remembers what it was asked."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.asked: list[tuple[str, dict[str, list[str]]]] = []


class Answers(BaseHTTPRequestHandler):
    server: Lender

    def do_POST(self) -> None:
        parts = urlsplit(self.path)
        self.server.asked.append((parts.path, parse_qs(parts.query)))
        lent = {"idle": True, "nvidiaIndex": 0, "nvidiaUUID": "GPU-none", "allowToken": "token"}
        body = json.dumps(lent if parts.path == "/schedule" else {}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: Any) -> None:
        pass


@pytest.fixture
def lender() -> Iterator[Lender]:
    with Lender() as lender:
        Thread(target=lender.serve_forever, daemon=True).start()
        yield lender
        lender.shutdown()


def test_a_recipe_goes_to_another_process_and_numbers_come_back(
    server: str, lender: Lender, tmp_path_factory: pytest.TempPathFactory
) -> None:
    here = Client(server, verbose=False)
    settings = {
        "SPACES_ZERO_GPU": "true",
        "SPACES_ZERO_DEVICE_API_URL": f"http://127.0.0.1:{lender.server_port}",
        "PYTHONPATH": str(SCRIPT.parents[2]),
    }
    with running(SCRIPT, tmp_path_factory.mktemp("zero"), settings) as (address, process):
        assert [path for path, _ in lender.asked] == ["/startup-report"], "the Space has reported that it can borrow"
        client = Client(address, verbose=False)
        assert client.predict(api_name="/inspect")["blocks"] == 30
        assert len(lender.asked) == 1, "what needs no GPU borrows none"
        for _ in range(2):
            found = client.predict(recipe=recipe(5), **SMALL, api_name="/evaluate")
            expected = here.predict(recipe=recipe(5), **SMALL, api_name="/evaluate")
            assert found["perplexity"] == pytest.approx(expected["perplexity"], rel=1e-5)
            assert found["parameters"] == expected["parameters"]
        paths = [path for path, _ in lender.asked[1:]]
        assert paths == ["/schedule", "/allow", "/release", "/schedule", "/release"], "the process is used again"
        assert int(lender.asked[2][1]["pid"][0]) != process.pid
        with pytest.raises(Exception, match="no files of its own"):
            client.predict(model="/etc/passwd", **SMALL, api_name="/evaluate")
        assert len(lender.asked) == 6, "a model that is refused borrows no GPU"
        with pytest.raises(Exception, match="out of range"):
            client.predict(recipe=recipe(99), **SMALL, api_name="/evaluate")
        assert lender.asked[-1][1]["fail"] == ["true"]
        again = client.predict(recipe=recipe(6), **SMALL, api_name="/evaluate")
        assert again["perplexity"] > again["dense_perplexity"] > 1
