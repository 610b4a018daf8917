"`make lab` starts JupyterLab, which serves the notebooks."

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

ROOT = Path(__file__).parent.parent
TOKEN = "only-for-this-test"


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def get(address, process, log, seconds=120):
    "The answer of a server that may still be starting."
    end = time.monotonic() + seconds
    while True:
        assert process.poll() is None, log.read_text()
        try:
            with urlopen(address, timeout=10) as answer:
                return answer.read().decode()
        except (URLError, ConnectionError):
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.5)


def test_make_lab_serves_a_notebook(tmp_path):
    port = free_port()
    options = f"--no-browser --allow-root --port={port} --IdentityProvider.token={TOKEN}"
    # this Python instead of the one in .venv, which need not be there
    here = [f"BIN={Path(sys.executable).parent}", "-o", ".venv/.installed"]
    command = ["make", "lab", f"LAB={options}", *here]
    log = tmp_path / "log.txt"
    with open(log, "w") as file:
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        address = f"http://127.0.0.1:{port}"
        tour = get(f"{address}/api/contents/00_tour.ipynb?token={TOKEN}", process, log)
        assert json.loads(tour)["content"]["cells"][0]["source"].startswith("# tour")
        assert "JupyterLab" in get(f"{address}/lab?token={TOKEN}", process, log)
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(timeout=60)
