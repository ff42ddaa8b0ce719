"""Uploading to a Hub that is a small server on this computer: what arrives, what is refused, where the token goes."""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest
from huggingface_hub import HfApi

from surgery.errors import Cancelled, CorruptFile, InputError
from surgery.shipping.checksums import SUMS, write_sums
from surgery.shipping.hub import push

SECRET = "hf_this-is-the-secret-token"


class Hub(ThreadingHTTPServer):
    """Takes every file as a small one, inside the commit; answers `code` to every request instead if it is set."""

    code = 0
    private: Any = None
    repository = ""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.commits = 0
        self.tokens: set[str] = set()


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *_: Any) -> None:
        pass

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.tokens.add(self.headers.get("Authorization", ""))
        if self.server.code:
            self._answer(self.server.code, {"error": f"no, not with {SECRET}"})
        elif self.path == "/api/repos/create":
            wanted = json.loads(body)
            self.server.private = wanted.get("private", wanted.get("visibility"))
            self.server.repository = f"{wanted.get('organization')}/{wanted['name']}"
            self._answer(200, {"url": f"http://127.0.0.1/{self.server.repository}"})
        elif self.path.endswith("/preupload/main"):
            files = json.loads(body)["files"]
            modes = [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False} for file in files]
            self._answer(200, {"files": modes})
        elif self.path.endswith("/commit/main"):
            for line in body.decode().splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    self.server.files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
            self.server.commits += 1
            self._answer(
                200,
                {
                    "commitUrl": f"http://127.0.0.1/{self.server.repository}/commit/0",
                    "commitOid": "0" * 40,
                    "success": True,
                },
            )
        else:
            self._answer(200, {"warnings": [], "errors": []})

    def _answer(self, code: int, document: Any) -> None:
        content = json.dumps(document).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    server = Hub()
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "shipped"
    (made / "verification").mkdir(parents=True)
    (made / "README.md").write_text("---\nlicense: mit\n---\n# Card\n")
    (made / "model.safetensors").write_bytes(bytes(range(256)) * 64)
    (made / "verification" / "sample.safetensors").write_bytes(b"sample")
    write_sums(made)
    (made / "my-notes.txt").write_text("not for everybody")
    return made


def api(hub: Hub) -> HfApi:
    return HfApi(endpoint=f"http://127.0.0.1:{hub.server_port}")


def test_what_the_sums_list_arrives_in_one_commit(hub: Hub, folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    seen: list[float] = []
    address = push(folder, "owner/name", SECRET, report=lambda share, words: seen.append(share), api=api(hub))
    assert address.endswith("owner/name") and hub.repository == "owner/name" and hub.commits == 1
    assert hub.private in (True, "private")
    listed = ("README.md", "model.safetensors", "verification/sample.safetensors", SUMS)
    assert hub.files == {name: (folder / name).read_bytes() for name in listed}
    assert hub.tokens == {f"Bearer {SECRET}"} and seen == sorted(seen) and seen[-1] == 1.0
    written = capfd.readouterr()
    assert SECRET not in written.out + written.err
    assert not any(SECRET.encode() in path.read_bytes() for path in folder.rglob("*") if path.is_file())


def test_a_public_repository_and_a_token_of_the_environment(
    hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", SECRET)
    push(folder, "owner/name", private=False, api=api(hub))
    assert hub.private in (False, "public") and hub.tokens == {f"Bearer {SECRET}"}


@pytest.mark.parametrize(
    ("code", "word"),
    [(401, "does not know this token"), (403, "may not write"), (404, "owner's name"), (400, "HTTP 400")],
)
def test_a_refusal_is_one_sentence_without_the_token(hub: Hub, folder: Path, code: int, word: str) -> None:
    hub.code = code
    with pytest.raises(InputError, match=word) as error:
        push(folder, "owner/name", SECRET, api=api(hub))
    assert SECRET not in str(error.value) and error.value.__cause__ is None and error.value.__suppress_context__


def test_no_network_no_token_no_name(hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="set HF_TOKEN"):
        push(folder, "owner/name", api=api(hub))
    for name in ("name", "a/b/c", "owner/na me", "owner/..", "/x", "owner/"):
        with pytest.raises(InputError, match="owner/name"):
            push(folder, name, SECRET, api=api(hub))
    assert hub.tokens == set()
    hub.shutdown()
    hub.server_close()
    with pytest.raises(InputError, match="network"):
        push(folder, "owner/name", SECRET, api=api(hub))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="network"):
        push(folder, "owner/name", SECRET)


def test_a_folder_that_changed_is_not_uploaded(hub: Hub, folder: Path) -> None:
    (folder / "README.md").write_text("changed")
    with pytest.raises(CorruptFile, match=r"README\.md of shipped changed"):
        push(folder, "owner/name", SECRET, api=api(hub))
    shutil.rmtree(folder / "verification")
    (folder / SUMS).unlink()
    with pytest.raises(InputError, match="SHA256SUMS"):
        push(folder, "owner/name", SECRET, api=api(hub))
    assert hub.tokens == set()


def test_cancelled_between_two_files_nothing_is_committed(hub: Hub, folder: Path) -> None:
    stop = Event()

    def report(share: float, words: str) -> None:
        if "model.safetensors" in words and "Uploading" in words:
            stop.set()

    with pytest.raises(Cancelled):
        push(folder, "owner/name", SECRET, report=report, stop=stop, api=api(hub))
    assert hub.files == {} and hub.commits == 0
