"Public samples by name: the right file or an error that says where it is."

import hashlib
import http.server
import os
import threading

import pytest

from sslpdl_nb.core import DataError
from sslpdl_nb.io.samples import SAMPLES, Sample, fetch_or_skip, fetch_sample, find_real

NOWHERE = "http://localhost:9/"


def sha256(content):
    return hashlib.sha256(content).hexdigest()


def test_real_files_are_found_only_by_the_environment_variable(tmp_path, monkeypatch):
    (tmp_path / "a.grib").touch()
    monkeypatch.setenv("SSLPDL_DATA", str(tmp_path))
    assert find_real("a.grib") == tmp_path / "a.grib" and find_real("b.grib") is None
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SSLPDL_DATA", "")
    assert find_real("a.grib") is None
    monkeypatch.delenv("SSLPDL_DATA")
    assert find_real("a.grib") is None


def test_a_sample_on_this_machine(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SSLPDL_DATA", str(tmp_path))
    known = SAMPLES["wrfout-2005"]
    monkeypatch.setitem(SAMPLES, "wrfout-2005", known._replace(address=NOWHERE))
    with pytest.raises(DataError, match="SSLPDL_DATA.*ci_test_file"):
        fetch_sample("wrfout-2005", tmp_path / "cache")
    files = {"ci_test_file.nc": sha256(b"here")}
    monkeypatch.setitem(SAMPLES, "wrfout-2005", known._replace(address=NOWHERE, files=files))
    path = tmp_path / known.folder / "ci_test_file.nc"
    path.parent.mkdir()
    path.write_bytes(b"here")
    assert fetch_sample("wrfout-2005") == [path] == fetch_or_skip("wrfout-2005")
    path.write_bytes(b"forged")
    with pytest.raises(DataError, match="sha256"):
        fetch_sample("wrfout-2005")
    with pytest.raises(DataError, match="one of"):
        fetch_sample("moon")
    assert fetch_or_skip("moon") is None and "SKIPPED" in capsys.readouterr().out


def test_a_file_that_changes_is_checked_again(tmp_path, monkeypatch):
    monkeypatch.setenv("SSLPDL_DATA", str(tmp_path))
    files = {"a.grib": sha256(b"right")}
    toy = Sample(folder=".", address=NOWHERE, licence="none", files=files)
    monkeypatch.setitem(SAMPLES, "toy", toy)
    for k, content in enumerate((b"wrong", b"right", b"wrong")):
        (tmp_path / "a.grib").write_bytes(content)
        os.utime(tmp_path / "a.grib", (10**9 + k, 10**9 + k))
        if content == b"right":
            assert fetch_sample("toy") == [tmp_path / "a.grib"]
        else:
            with pytest.raises(DataError, match=f"a.grib: sha256.*{sha256(content)}"):
                fetch_sample("toy")


def test_fetch_from_a_server_with_the_right_checksum(tmp_path, monkeypatch):
    pytest.importorskip("pooch")
    monkeypatch.delenv("SSLPDL_DATA", raising=False)
    (tmp_path / "www").mkdir()
    (tmp_path / "www/a.grib").write_bytes(b"content")

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *a):
            super().__init__(*a, directory=str(tmp_path / "www"))

        def log_message(self, *a):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()

    def toy(digest):
        address = f"http://127.0.0.1:{server.server_port}/"
        return Sample(folder="nowhere", address=address, licence="none", files={"a.grib": digest})

    try:
        monkeypatch.setitem(SAMPLES, "toy", toy(sha256(b"content")))
        assert fetch_sample("toy", tmp_path / "cache1")[0].read_bytes() == b"content"
        monkeypatch.setitem(SAMPLES, "toy", toy("0" * 64))
        with pytest.raises(DataError, match="toy"):
            fetch_sample("toy", tmp_path / "cache2")
    finally:
        server.shutdown()
