"""Downloading released weights, from a real server on this machine, once and checked."""

from __future__ import annotations

import hashlib
import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from paddle_dense import cdnv2_a, create_model, pretrained, save_weights
from paddle_dense.errors import WeightsError

pytest.importorskip("pooch", reason="downloads are made with pooch: pip install pooch")

CONTENT = bytes(range(256)) * 40
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Server:
    """Serves `files`; under /short/ it promises more bytes than it sends, anything else is not found."""

    def __init__(self) -> None:
        self.files = {"net.pdparams": CONTENT}
        self.requests: list[str] = []
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._http.server_port}"

    def stop(self) -> None:
        self._http.shutdown()
        self._http.server_close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.requests.append(self.path)
                folder, _, name = self.path.lstrip("/").rpartition("/")
                content = server.files.get(name)
                if content is None:
                    return self.send_error(404)
                self.send_response(200)
                self.send_header("Content-Length", str(len(content) * (3 if folder == "short" else 1)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: object) -> None:
                pass

        return Handler


@pytest.fixture
def server():
    server = Server()
    yield server
    server.stop()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The folder that downloads are kept in; it does not exist yet."""
    monkeypatch.setenv("PADDLE_DENSE_HOME", str(tmp_path / "cache" / "weights"))
    return tmp_path / "cache" / "weights"


@pytest.fixture
def release(tmp_path, monkeypatch):
    """``release(entry, ...)``: a manifest with these entries in place of the real one."""
    folder = tmp_path / "weights"
    folder.mkdir()
    monkeypatch.setattr(pretrained, "shipped_folder", lambda: folder)

    def write(*entries: dict) -> None:
        (folder / "manifest.json").write_text(json.dumps({"entries": entries}), encoding="utf-8")
        pretrained.manifest.cache_clear()

    yield write
    pretrained.manifest.cache_clear()


def entry(url: str, sha256: str | None = SHA256, **other: object) -> dict:
    return {
        "name": "net",
        "framework": "paddle",
        "file": "net.pdparams",
        "url": url,
        "sha256": sha256,
        "source": "somewhere",
        **other,
    }


def files_in(folder) -> list:
    return [path for path in folder.rglob("*") if path.is_file()]


@pytest.mark.parametrize("sha256", [SHA256, None], ids=["sha256 known", "sha256 unknown"])
def test_a_file_is_downloaded_once(sha256, server, cache, release):
    release(entry(f"{server.url}/net.pdparams", sha256))
    path = pretrained.download("net")
    assert path == cache / "net.pdparams" and path.read_bytes() == CONTENT
    server.stop()
    assert pretrained.download("net") == path
    assert server.requests == ["/net.pdparams"]
    assert files_in(cache) == [path]


def test_pretrained_true_fills_the_network(server, cache, release, tmp_path, randomise, difference):
    source = randomise(cdnv2_a(num_classes=3))
    save_weights(source, tmp_path / "source.pdparams")
    server.files["a.pdparams"] = (tmp_path / "source.pdparams").read_bytes()
    sha256 = hashlib.sha256(server.files["a.pdparams"]).hexdigest()
    release(entry(f"{server.url}/a.pdparams", sha256, name="cdnv2_a", file="a.pdparams"))
    expected = source.state_dict()
    for model in (cdnv2_a(pretrained=True, num_classes=3), create_model("cdnv2_a", pretrained=True, num_classes=3)):
        for name, tensor in model.state_dict().items():
            assert difference(tensor.numpy(), expected[name].numpy()) == 0, name
    assert server.requests == ["/a.pdparams"]


def test_a_damaged_file_in_the_cache_is_fetched_again(server, cache, release):
    release(entry(f"{server.url}/net.pdparams"))
    cache.mkdir(parents=True)
    (cache / "net.pdparams").write_bytes(CONTENT[:100])
    assert pretrained.download("net").read_bytes() == CONTENT


def test_what_a_killed_download_left_is_swept(server, cache, release):
    release(entry(f"{server.url}/net.pdparams"))
    left = cache / ".paddle_dense-0123456789abcdef.tmp"
    left.mkdir(parents=True)
    (left / "net.pdparams").write_bytes(CONTENT[:100])
    assert pretrained.download("net").read_bytes() == CONTENT
    assert [path.name for path in cache.iterdir()] == ["net.pdparams"]


def test_the_cache_is_the_users_unless_told_otherwise(monkeypatch):
    monkeypatch.delenv("PADDLE_DENSE_HOME", raising=False)
    assert pretrained.cache_folder().name == "paddle_dense"
    assert pretrained.cache_folder().is_absolute()


def refused(name: str = "net") -> str:
    with pytest.raises(WeightsError) as caught:
        pretrained.download(name)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("file", "sha256", "said"),
    [
        pytest.param("short/net.pdparams", SHA256, "could not be downloaded", id="cut short, sha256 known"),
        pytest.param("short/net.pdparams", None, "could not be downloaded", id="cut short, sha256 unknown"),
        pytest.param("other.pdparams", SHA256, "404", id="not there"),
        pytest.param("net.pdparams", "0" * 64, "hash", id="another sha256"),
    ],
)
def test_a_bad_file_is_refused(file, sha256, said, server, cache, release):
    release(entry(f"{server.url}/{file}", sha256))
    message = refused()
    assert "net.pdparams" in message and server.url in message and said in message
    assert files_in(cache) == []


def test_a_server_that_does_not_answer_is_named(server, cache, release):
    release(entry(f"{server.url}/net.pdparams"))
    server.stop()
    assert server.url in refused()
    assert files_in(cache) == []


def test_a_cache_that_cannot_be_made_is_refused(server, release, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PADDLE_DENSE_HOME", str(tmp_path / "file" / "cache"))
    release(entry(f"{server.url}/net.pdparams"))
    assert "net.pdparams" in refused()


@pytest.mark.parametrize("missing", ["pooch", "requests"])
def test_without_what_downloads_one_sentence_says_what_to_install(missing, release, monkeypatch):
    release(entry("https://example.org/net.pdparams"))
    monkeypatch.delenv("PADDLE_DENSE_HOME", raising=False)
    monkeypatch.setitem(sys.modules, missing, None)
    for ask in (pretrained.cache_folder, lambda: pretrained.download("net")):
        with pytest.raises(
            ImportError, match=r"made with pooch and requests \(.*\): pip install pooch requests, or"
        ) as error:
            ask()
        assert "\n" not in str(error.value)


def test_a_cache_that_is_named_needs_nothing(cache, monkeypatch):
    monkeypatch.setitem(sys.modules, "pooch", None)
    assert pretrained.cache_folder() == cache


def test_weights_released_for_pytorch_only_are_sent_to_the_converter(server, cache, release):
    release(entry("", None, framework="torch", source="the authors' page"))
    message = refused()
    assert "'net'" in message and "the authors' page" in message and "convert.torch2paddle" in message
    assert server.requests == [] and files_in(cache) == []


def test_a_name_that_nobody_released_is_refused(server, cache, release):
    release(entry(f"{server.url}/net.pdparams"))
    assert "'cdnv2_b'" in refused("cdnv2_b")
    with pytest.raises(WeightsError, match="'cdnv2_b'"):
        create_model("cdnv2_b", pretrained=True)
    assert server.requests == []


def test_the_paddle_file_is_taken_where_there_are_several(server, cache, release):
    release(
        entry(f"{server.url}/net.pth", None, framework="torch", file="net.pth"),
        entry("", None),
        entry(f"{server.url}/net.pdparams"),
    )
    assert pretrained.download("net").read_bytes() == CONTENT
