"""Downloading released weights, from a real server on this machine, once and checked."""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import sys
import threading
import time
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from convert.torch2paddle import main as torch2paddle
from paddle_dense import cdnv2_a, create_model, list_models, load_model, pretrained, released, save_weights
from paddle_dense.__main__ import main
from paddle_dense.errors import WeightsError
from paddle_dense.files import write_torch
from paddle_dense.files.layout import to_torch

pytest.importorskip("pooch", reason="downloads are made with pooch: pip install pooch")

ROOT = Path(__file__).resolve().parents[1]
CONTENT = bytes(range(256)) * 4000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Server:
    """Serves `files` as a server of files does: in parts as well, with a mark of each version.

    Under /short/ it promises more bytes than it sends, under /cut/ it closes each connection after half of what is
    left, under /slow/ it sends in pieces, with pauses, under /moved/ it names another place, under /plain/ it knows
    neither parts nor marks, and anything else is not found.
    """

    def __init__(self) -> None:
        self.files = {"net.pdparams": CONTENT}
        self.requests: list[str] = []
        self.ranges: list[str | None] = []
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
                server.ranges.append(self.headers.get("Range"))
                folder, _, name = self.path.lstrip("/").rpartition("/")
                content = server.files.get(name)
                if content is None:
                    return self.send_error(404)
                if folder == "moved":
                    self.send_response(302)
                    self.send_header("Location", f"/{name}")
                    self.send_header("Content-Length", "0")
                    return self.end_headers()
                begin, mark = self.begin(folder, content), hashlib.md5(content).hexdigest()
                self.send_response(206 if begin else 200)
                if begin:
                    self.send_header("Content-Range", f"bytes {begin}-{len(content) - 1}/{len(content)}")
                if folder != "plain":
                    self.send_header("ETag", f'"{mark}"')
                content = content[begin:]
                self.send_header("Content-Length", str(len(content) * (3 if folder == "short" else 1)))
                self.end_headers()
                if folder == "cut" and len(content) > 200_000:
                    content = content[: len(content) // 2]
                for place in range(0, len(content), 100_000 if folder == "slow" else len(content)):
                    time.sleep(0.02 if folder == "slow" else 0)
                    self.wfile.write(content[place : place + 100_000] if folder == "slow" else content)

            def begin(self, folder: str, content: bytes) -> int:
                wanted, mark = self.headers.get("Range"), self.headers.get("If-Range")
                if not wanted or folder == "plain" or (mark and mark.strip('"') != hashlib.md5(content).hexdigest()):
                    return 0
                return int(wanted.removeprefix("bytes=").rstrip("-"))

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

    (folder / "manifest.json").write_text('{"entries": []}')
    pretrained.manifest.cache_clear()

    def write(*entries: dict) -> None:
        (folder / "manifest.json").write_text(json.dumps({"entries": entries}), encoding="utf-8")
        pretrained.manifest.cache_clear()

    yield write
    pretrained.manifest.cache_clear()


def entry(url: str | None, sha256: str | None = SHA256, **other: object) -> dict:
    return {
        "name": "net",
        "tag": "set",
        "framework": "paddle",
        "file": "net.pdparams",
        "url": url,
        "page": None,
        "sha256": sha256,
        "sha256_prefix": None,
        "md5": None,
        "source": "somewhere",
        "top1_error": 30.0,
        "preprocessing": {
            "input_size": 224,
            "resize": 248,
            "interpolation": "bicubic",
            "mean": [0.5] * 3,
            "std": [0.5] * 3,
        },
        **other,
    }


def files_in(folder) -> list:
    return [path for path in folder.rglob("*") if path.is_file()]


def fetched(name: str = "net"):
    return pretrained.fetch(name)[0]


# One download


@pytest.mark.parametrize("folder", ["", "slow/", "moved/", "plain/"])
@pytest.mark.parametrize("sha256", [SHA256, None], ids=["sha256 known", "sha256 unknown"])
def test_a_file_is_downloaded(sha256, folder, server, cache, release):
    release(entry(f"{server.url}/{folder}net.pdparams", sha256))
    path = fetched()
    assert path == cache / "downloads" / "net.pdparams" and path.read_bytes() == CONTENT
    assert files_in(cache / "downloads") == [path]


@pytest.mark.parametrize("sha256", [SHA256, None], ids=["sha256 known", "sha256 unknown"])
def test_a_download_that_stops_goes_on_where_it_stopped(sha256, server, cache, release):
    release(entry(f"{server.url}/cut/net.pdparams", sha256))
    with pytest.raises(WeightsError, match="could not be downloaded"):
        pretrained.fetch("net")
    assert {path.name for path in files_in(cache)} == {"net.pdparams.part", "net.pdparams.part.json"}
    assert fetched().read_bytes() == CONTENT
    first, *others = server.ranges
    begins = [int(wanted.removeprefix("bytes=").rstrip("-")) for wanted in others]
    assert first is None and begins == sorted(set(begins)) and begins[0] > len(CONTENT) // 3 and len(begins) > 2


def test_parts_of_two_versions_are_not_put_together(server, cache, release):
    release(entry(f"{server.url}/cut/net.pdparams", None))
    with pytest.raises(WeightsError):
        pretrained.fetch("net")
    server.files["net.pdparams"] = new = CONTENT[::-1][:900]
    assert fetched().read_bytes() == new


def test_without_a_mark_or_a_hash_a_download_begins_again(server, cache, release):
    release(entry(f"{server.url}/plain/net.pdparams", None))
    part = cache / "downloads" / "net.pdparams.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(b"something else")
    assert fetched().read_bytes() == CONTENT
    assert server.ranges == [None]


def test_the_beginning_of_a_hash_is_checked(server, cache, release):
    release(entry(f"{server.url}/net.pdparams", None, sha256_prefix=SHA256[:8]))
    assert fetched().read_bytes() == CONTENT
    release(entry(f"{server.url}/net.pdparams", None, sha256_prefix="00000000"))
    assert "00000000 was published" in refused()


def test_the_first_downloads_hash_is_kept_where_none_is_published(server, cache, release):
    release(entry(f"{server.url}/net.pdparams", None))
    fetched().unlink()
    assert json.loads((cache / "hashes.json").read_text()) == {f"{server.url}/net.pdparams": SHA256}
    fetched().unlink()
    server.files["net.pdparams"] = CONTENT[::-1]
    assert SHA256[:16] in refused() and "hashes.json keeps" in refused()
    (cache / "hashes.json").unlink()
    assert fetched().read_bytes() == CONTENT[::-1]


# Where from


def test_a_mirror_has_the_files_by_name(server, cache, release, monkeypatch):
    release(entry("https://example.invalid/x?name=1"))
    monkeypatch.setenv("PADDLE_DENSE_MIRROR", f"{server.url}/a/b/")
    assert fetched().read_bytes() == CONTENT
    assert server.requests == ["/a/b/net.pdparams"]


def test_the_hubs_mirror_is_respected(server, cache, release, monkeypatch):
    release(entry("https://huggingface.co/timm/x/resolve/main/net.pdparams"))
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    assert fetched().read_bytes() == CONTENT
    assert server.requests == ["/timm/x/resolve/main/net.pdparams"]


def test_another_source_of_the_same_weights_is_tried(server, cache, release):
    release(entry(f"{server.url}/gone.pdparams", file="gone.pdparams"), entry(f"{server.url}/net.pdparams", None))
    assert fetched().read_bytes() == CONTENT
    assert server.requests == ["/gone.pdparams", "/net.pdparams"]


def test_a_file_that_the_user_put_there_is_taken(server, cache, release):
    page = {"url": None, "page": "https://drive.example/x"}
    release(entry(**page))
    message = refused()
    assert page["page"] in message and f"put it into {cache} as net.pdparams" in message
    cache.mkdir(parents=True)
    (cache / "net.pdparams").write_bytes(CONTENT)
    assert fetched() == cache / "net.pdparams"
    (cache / "net.pdparams").write_bytes(CONTENT[:-1])
    assert page["page"] in refused()


def test_offline_nothing_is_asked(server, cache, release, monkeypatch):
    release(entry(f"{server.url}/net.pdparams"))
    monkeypatch.setenv("PADDLE_DENSE_OFFLINE", "1")
    assert "PADDLE_DENSE_OFFLINE" in refused() and "paddle-dense pull net" in refused()
    assert server.requests == []
    monkeypatch.setenv("PADDLE_DENSE_OFFLINE", "0")
    assert fetched().read_bytes() == CONTENT


# From a name to a network


def torch_file(model, path) -> bytes:
    with path.open("wb") as file:
        write_torch(to_torch({name: tensor.numpy() for name, tensor in model.state_dict().items()}), file)
    return path.read_bytes()


def zipped(name: str, content: bytes) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, content)
    return packed.getvalue()


@pytest.mark.parametrize("container", ["pdparams", "pth", "pth.zip"])
def test_pretrained_true_fills_the_network(container, server, cache, release, tmp_path, randomise, monkeypatch):
    source = randomise(cdnv2_a(num_classes=3))
    save_weights(source, tmp_path / "source.pdparams")
    content = (tmp_path / "source.pdparams").read_bytes()
    if container != "pdparams":
        content = torch_file(source, tmp_path / "source.pth")
    content = zipped("a.pth", content) if container == "pth.zip" else content
    server.files["a"] = content
    framework = "paddle" if container == "pdparams" else "pytorch"
    sha256 = hashlib.sha256(content).hexdigest()
    release(entry(f"{server.url}/a", sha256, name="cdnv2_a", file=f"a.{container}", framework=framework))
    expected = source.state_dict()
    for pretrained_ in (True, "cdnv2_a", "cdnv2_a.set"):
        model = create_model("cdnv2_a", pretrained=pretrained_, num_classes=3)
        assert all(
            np.array_equal(tensor.numpy(), expected[name].numpy()) for name, tensor in model.state_dict().items()
        )
        assert (model.preprocessing.resize, model.preprocessing.mean) == (248, (0.5, 0.5, 0.5))
        monkeypatch.setenv("PADDLE_DENSE_OFFLINE", "1")
    assert cdnv2_a(pretrained=True, num_classes=3).num_classes == 3
    assert server.requests == ["/a"]
    assert sorted(path.name for path in files_in(cache)) == ["cdnv2_a.set.json", "cdnv2_a.set.pdparams"]
    told = json.loads((cache / "cdnv2_a.set.json").read_text())
    assert told["source"]["sha256"] == sha256 and told["arch"] == "cdnv2_a"


@pytest.mark.parametrize("file", ["cdnv2_a.set.pdparams", "cdnv2_a.set.json"])
def test_what_is_damaged_in_the_cache_is_downloaded_again(file, server, cache, release, tmp_path, randomise):
    source = randomise(cdnv2_a(num_classes=3))
    server.files["a"] = torch_file(source, tmp_path / "source.pth")
    release(entry(f"{server.url}/a", None, name="cdnv2_a", file="a.pth", framework="pytorch"))
    cdnv2_a(pretrained=True, num_classes=3)
    content = bytearray((cache / file).read_bytes())
    content[len(content) // 2] ^= 1
    (cache / file).write_bytes(content)
    model = cdnv2_a(pretrained=True, num_classes=3)
    assert np.array_equal(model.classifier.weight.numpy(), source.classifier.weight.numpy())
    assert server.requests == ["/a", "/a"]


def test_a_file_of_another_network_is_no_presets(server, cache, release, tmp_path, randomise):
    server.files["a"] = torch_file(randomise(create_model("condensenet50")), tmp_path / "source.pth")
    release(entry(f"{server.url}/a", None, name="cdnv2_a", file="a.pth", framework="pytorch"))
    with pytest.raises(WeightsError, match="the tensors are those of a CondenseNet and cdnv2_a is a CondenseNetV2"):
        cdnv2_a(pretrained=True)
    assert [path.name for path in files_in(cache)] == ["hashes.json"]


def test_two_sets_have_tags(server, cache, release, tmp_path, randomise):
    sources = {tag: randomise(create_model("condensenet50"), seed) for seed, tag in enumerate(("one", "two"))}
    for tag, source in sources.items():
        server.files[tag] = torch_file(source, tmp_path / "source.pth")
    common = {"name": "condensenet50", "framework": "pytorch"}
    release(*(entry(f"{server.url}/{tag}", None, tag=tag, file=f"{tag}.pth", **common) for tag in sources))
    assert list_models(pretrained=True) == ["condensenet50.one", "condensenet50.two"]
    for name, tag in (("condensenet50", "one"), ("condensenet50.two", "two")):
        model = create_model(name, pretrained=True)
        assert model.arch == "condensenet50"
        assert np.array_equal(model.features.init_conv.weight.numpy(), sources[tag].features.init_conv.weight.numpy())
    assert server.requests == ["/one", "/two"]
    assert create_model("condensenet50.two").arch == "condensenet50"
    with pytest.raises(
        WeightsError, match=r"'condensenet50\.three': choose one of condensenet50\.one, condensenet50\.two"
    ):
        released.released("condensenet50.three")


def test_the_commands_list_and_pull(server, cache, release, tmp_path, randomise, capsys, monkeypatch):
    server.files["a"] = torch_file(randomise(create_model("condensenet50")), tmp_path / "source.pth")
    common = {"name": "condensenet50", "framework": "pytorch"}
    release(
        entry(f"{server.url}/a", None, file="a.pth", **common),
        entry(f"{server.url}/gone", None, file="b.pth", tag="gone", **common),
    )
    for cached in (False, True):
        assert main(["list", "--pretrained", "condensenet50*", "--json"]) == 0
        first, second = map(json.loads, capsys.readouterr().out.splitlines())
        assert (first["name"], first["default"], first["cached"]) == ("condensenet50.set", True, cached)
        assert (second["name"], second["default"], second["cached"]) == ("condensenet50.gone", False, False)
        assert main(["list", "--pretrained"]) == 0
        assert f"30.00 %     0.9 MB  {'yes' if cached else 'no '}" in capsys.readouterr().out
        assert main(["pull", "condensenet50"]) == 0
        assert f"condensenet50.set: {cache / 'condensenet50.set.pdparams'}, 1" in capsys.readouterr().out
    assert main(["pull", "condensenet50.gone", "condensenet50"]) == 1
    said = capsys.readouterr()
    assert "404" in said.err and said.err.count("\n") == 1 and "condensenet50.set" in said.out
    assert main(["pull", "condensenet51"]) == 2
    assert server.requests.count("/a") == 1


SCRIPT = """
import hashlib, sys
from pathlib import Path
sys.modules["torch"] = None
from paddle_dense import create_model, pretrained
pretrained.shipped_folder = lambda: Path(sys.argv[1])
for name in sys.argv[2:]:
    for _ in range(2):
        model = create_model(name, pretrained=True)
    digest = hashlib.sha256()
    for key, tensor in model.state_dict().items():
        digest.update(key.encode() + tensor.numpy().tobytes())
    print(name, digest.hexdigest())
"""


def start(manifest_folder, *names: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", SCRIPT, str(manifest_folder), *names],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )


def linked() -> list[dict]:
    """The file that each released set of weights would be downloaded from."""
    return [pretrained.sources(name)[0] for name in list_models(pretrained=True)]


QUICK = ("condensenet74_c8.pytorchcv", "cdnv2_a.ppim")


@pytest.mark.parametrize(
    "told",
    [
        pytest.param(
            told,
            id=f"{told['name']}.{told['tag']}",
            marks=[] if f"{told['name']}.{told['tag']}" in QUICK else pytest.mark.slow,
        )
        for told in linked()
    ],
)
def test_every_released_preset_is_had_without_pytorch_and_as_the_converter_writes_it(
    told, server, cache, release, tmp_path, randomise
):
    """Stand-ins of full size, with the names and in the container that the manifest promises."""
    name, source = f"{told['name']}.{told['tag']}", randomise(create_model(told["name"]))
    if told["framework"] == "paddle":
        save_weights(source, tmp_path / "x.pdparams")
        server.files["x"] = (tmp_path / "x.pdparams").read_bytes()
        loaded = source
    else:
        server.files["x"] = torch_file(source, tmp_path / "x.pth")
        assert torch2paddle([str(tmp_path / "x.pth"), "--no-verify", "-o", str(tmp_path / "y.pdparams")]) == 0
        loaded = load_model(tmp_path / "y.pdparams")
        if told["url"].endswith(".zip"):
            server.files["x"] = zipped(told["file"], server.files["x"])
    digest = hashlib.sha256()
    for key, tensor in loaded.state_dict().items():
        digest.update(key.encode() + tensor.numpy().tobytes())
    release({**told, "url": f"{server.url}/x", "sha256": None, "sha256_prefix": None, "md5": None})
    process = start(tmp_path / "weights", name)
    assert process.communicate()[0].split() == [name, digest.hexdigest()]
    assert server.requests == ["/x"]


def test_two_processes_at_once_download_once(server, cache, release, tmp_path, randomise):
    pytest.importorskip("fcntl", reason="locks folders, which only POSIX systems can")
    server.files["a"] = torch_file(randomise(create_model("condensenet50")), tmp_path / "source.pth")
    release(entry(f"{server.url}/slow/a", None, name="condensenet50", file="a.pth", framework="pytorch"))
    processes = [start(tmp_path / "weights", "condensenet50") for _ in range(2)]
    answers = {process.communicate()[0] for process in processes}
    assert len(answers) == 1 and all(process.returncode == 0 for process in processes)
    assert server.requests == ["/slow/a"]


# What goes wrong


def test_the_cache_is_the_users_unless_told_otherwise(monkeypatch):
    monkeypatch.delenv("PADDLE_DENSE_HOME", raising=False)
    assert pretrained.cache_folder().name == "paddle_dense"
    assert pretrained.cache_folder().is_absolute()


def refused(name: str = "net") -> str:
    with pytest.raises(WeightsError) as caught:
        pretrained.fetch(name)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_another_sha256_is_refused(server, cache, release):
    release(entry(f"{server.url}/net.pdparams", "0" * 64))
    message = refused()
    assert "net.pdparams" in message and server.url in message and "hash" in message
    assert files_in(cache) == []


@pytest.mark.parametrize("sha256", [SHA256, None], ids=["sha256 known", "sha256 unknown"])
def test_a_file_that_is_cut_short_is_refused(sha256, server, cache, release):
    release(entry(f"{server.url}/short/net.pdparams", sha256))
    assert "could not be downloaded" in refused()
    assert not (cache / "downloads" / "net.pdparams").exists()


def test_a_file_that_is_not_there_is_refused(server, cache, release):
    release(entry(f"{server.url}/other.pdparams"))
    assert "404" in refused()
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
    for ask in (pretrained.cache_folder, lambda: pretrained.fetch("net")):
        with pytest.raises(
            ImportError, match=r"made with pooch and requests \(.*\): pip install pooch requests, or"
        ) as error:
            ask()
        assert "\n" not in str(error.value)


def test_a_cache_that_is_named_needs_nothing(cache, monkeypatch):
    monkeypatch.setitem(sys.modules, "pooch", None)
    assert pretrained.cache_folder() == cache


def test_a_name_that_nobody_released_is_refused(server, cache, release):
    release(entry(f"{server.url}/net.pdparams"))
    assert "'cdnv2_b'" in refused("cdnv2_b")
    with pytest.raises(WeightsError, match="'cdnv2_b'"):
        create_model("cdnv2_b", pretrained=True)
    assert server.requests == []


def test_the_paddle_file_is_taken_where_there_are_several(server, cache, release):
    release(
        entry(f"{server.url}/net.pth", None, framework="pytorch", file="net.pth", tag="other"),
        entry(None, None, tag="page"),
        entry(f"{server.url}/net.pdparams"),
    )
    assert pretrained.tags("net") == ["set", "other", "page"]
    assert fetched().read_bytes() == CONTENT
