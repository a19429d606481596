"""The service, over a real socket with a real server process."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="the service needs the extra `serve`")
import httpx

from applications.unlearning import Forgetter, RetrainFromScratch
from applications.unlearning.service import app
from tests.worlds import logistic

HTTP = httpx.Client(timeout=120, verify=False, trust_env=False, limits=httpx.Limits(max_connections=100))
KEY = "a-key-for-the-tests"
HEADERS = {"X-API-Key": KEY}
SPEC = """
import torch
from recipe import Newton, Setting

torch.set_num_threads(1)
draw = torch.Generator().manual_seed(0)
x = torch.rand(420, 2, generator=draw)
y = (x[:, 0] > x[:, 1]).long()
setting = Setting(lambda: torch.nn.Linear(2, 2), (x[:400], y[:400]), (x[400:], y[400:]), Newton(l2=0.01))
"""


class Server:
    """`recipe serve` in a process of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "spec.py").write_text(SPEC)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.start()

    def start(self) -> None:
        command = [
            sys.executable, "-m", "recipe", "serve", "spec.py:setting", "--method", "parameter-update",
            "--store", "store", "--port", str(self.port),
        ]  # fmt: skip
        environment = {**os.environ, "RECIPE_API_KEY": KEY, "OMP_NUM_THREADS": "1"}
        self.log = open(self.folder / "log", "ab")  # noqa: SIM115
        self.process = subprocess.Popen(command, cwd=self.folder, env=environment, stdout=self.log, stderr=self.log)
        for _ in range(300):
            assert self.process.poll() is None, (self.folder / "log").read_text()
            try:
                if HTTP.get(f"{self.url}/health").status_code == 200:
                    return
            except httpx.TransportError:
                time.sleep(0.5)
        raise AssertionError((self.folder / "log").read_text())

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        self.log.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    running = Server(tmp_path_factory.mktemp("service"))
    yield running
    running.kill()


def test_a_hundred_clients_a_kill_and_a_restart_lose_and_double_nothing(server):
    """Each client forgets points of its own and one that all share, and asks again until it is acknowledged."""
    acknowledged: dict[int, dict] = {}
    first_life = threading.Event()

    def client(number: int) -> None:
        body = {"ids": [3 * number, 3 * number + 1, 399], "request": f"client-{number}"}
        deadline = time.monotonic() + 240
        while time.monotonic() < deadline:
            try:
                answer = HTTP.post(f"{server.url}/forget", json=body, headers=HEADERS)
            except httpx.TransportError:
                time.sleep(0.2)  # killed, or not up again yet
                continue
            assert answer.status_code == 200, answer.text
            acknowledged[number] = answer.json()
            if len(acknowledged) >= 20:
                first_life.set()
            return
        raise AssertionError(f"client {number} was never answered")

    with ThreadPoolExecutor(100) as pool:
        futures = [pool.submit(client, number) for number in range(100)]
        assert first_life.wait(240)
        server.kill()
        before = dict(acknowledged)
        server.start()
        for future in futures:
            future.result()
    assert 20 <= len(before) <= 100
    for number in range(100):  # no acknowledged request is lost, and its receipt is the one that was given
        receipt = HTTP.get(f"{server.url}/receipts/client-{number}", headers=HEADERS).json()
        assert receipt == acknowledged[number]
        assert receipt["ids"] == [3 * number, 3 * number + 1, 399]
    applied = [i for receipt in acknowledged.values() for i in receipt["forgotten"]]
    assert len(applied) == len(set(applied)) == 201  # none was applied twice, the shared one once


def test_predictions_are_those_of_the_unlearned_model(server):
    before = HTTP.post(f"{server.url}/predict", json={"inputs": [[0.2, 0.7]]}, headers=HEADERS)
    assert before.status_code == 200
    HTTP.post(f"{server.url}/forget", json={"ids": list(range(301, 390))}, headers=HEADERS)
    after = HTTP.post(f"{server.url}/predict", json={"inputs": [[0.2, 0.7]]}, headers=HEADERS)
    assert len(after.json()["outputs"][0]) == 2
    assert after.json() != before.json()


JSON = HEADERS | {"content-type": "application/json"}


@pytest.mark.parametrize(
    ("path", "arguments", "status", "message"),
    [
        ("forget", {"json": {"ids": [1]}}, 401, "X-API-Key"),
        ("forget", {"json": {"ids": [1]}, "headers": {"X-API-Key": "wrong"}}, 401, "X-API-Key"),
        ("forget", {"content": b"x" * 2_000_000, "headers": {"X-API-Key": "wrong"}}, 401, "X-API-Key"),
        ("forget", {"content": b"x" * 2_000_000, "headers": HEADERS}, 413, "1048576 bytes at most"),
        ("forget", {"content": iter([b"x" * 600_000] * 2), "headers": HEADERS}, 413, "1048576 bytes at most"),
        ("forget", {"content": b"{not", "headers": HEADERS | {"content-type": "application/json"}}, 422, "JSON"),
        ("forget", {"json": {"ids": ["a"]}, "headers": HEADERS}, 422, "integer"),
        ("forget", {"json": {"ids": [True, False]}, "headers": HEADERS}, 422, "integer"),
        ("forget", {"json": {"ids": ["3"]}, "headers": HEADERS}, 422, "integer"),
        ("forget", {"content": b'{"ids": [NaN]}', "headers": JSON}, 422, "integer"),
        ("forget", {"content": b'{"ids": [1], "request": "\\ud800"}', "headers": JSON}, 422, "request"),
        ("forget", {"content": b"\xff\xfe", "headers": JSON}, 422, "body"),
        ("forget", {"content": b"[" * 100_000, "headers": JSON}, 422, "body"),
        ("predict", {"content": b'{"inputs": NaN}', "headers": JSON}, 422, "inputs"),
        ("forget", {"json": {"ids": []}, "headers": HEADERS}, 422, "at least 1"),
        ("forget", {"json": {"ids": [1], "more": 2}, "headers": HEADERS}, 422, "Extra inputs"),
        ("forget", {"json": {"ids": [400]}, "headers": HEADERS}, 422, r"do not exist"),
        ("forget", {"json": {"ids": list(range(400))}, "headers": HEADERS}, 409, "none of the 400"),
        ("predict", {"json": {"inputs": [[1.0]]}, "headers": HEADERS}, 422, "do not look like the model's"),
        ("predict", {"json": {"inputs": [["a", 1.0]]}, "headers": HEADERS}, 422, "do not look like the model's"),
        ("predict", {"json": {"inputs": []}, "headers": HEADERS}, 422, "do not look like the model's"),
    ],
)  # fmt: skip
def test_bad_requests_have_a_json_answer(server, path, arguments, status, message):
    answer = HTTP.post(f"{server.url}/{path}", **arguments)
    assert answer.status_code == status
    assert message in str(answer.json()["detail"])


def test_receipts_that_are_not_there_and_the_pages(server):
    assert HTTP.get(f"{server.url}/receipts/none", headers=HEADERS).status_code == 404
    assert HTTP.get(f"{server.url}/receipts/none").status_code == 401
    schema = HTTP.get(f"{server.url}/openapi.json").json()
    assert set(schema["paths"]) == {"/health", "/forget", "/predict", "/receipts/{name}"}
    assert schema["components"]["securitySchemes"]["key"]["name"] == "X-API-Key"
    assert HTTP.get(f"{server.url}/docs").status_code == 200


def test_short_keys_are_refused():
    with pytest.raises(ValueError, match="at least 16 characters; got 5"):
        app(Forgetter(logistic(), None, RetrainFromScratch()), "short")
