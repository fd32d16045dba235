"""Discovery and the client's API."""

import asyncio
import hashlib
import json
from pathlib import Path
from typing import Any

from procs.master.main import Addresses
from shared.pb import hivemind_pb2 as pb
from tests.fakes.running_master import Http, with_master
from tests.fakes.toy_worker import Play, ToyWorker

OUT = pb.LOG_STREAM_STDOUT
NO_DIGEST = "0" * 64


def test_discovery_names_the_grpc_address(tmp_path: Path) -> None:
    async def scenario(addresses: Addresses, http: Http) -> None:
        assert await http.get("/.well-known/hivemind") == {"grpc": addresses.grpc}
        assert (await http.call("GET", "/api/v1/vpn/public-key")).status_code == 404

    with_master(tmp_path, scenario)


CALLERS = [
    ({"Host": "localhost:8080"}, 200),
    ({"Host": "[::1]:8080"}, 200),
    ({"Host": "evil.example"}, 403),  # a name that was rebound to us
    ({"Host": "127.0.0.1.evil.example"}, 403),
    ({"Origin": "http://127.0.0.1:8080"}, 403),
    ({"Sec-Fetch-Site": "none"}, 403),
]


def test_browsers_are_kept_out(tmp_path: Path) -> None:
    async def scenario(_: Addresses, http: Http) -> None:
        for headers, status in CALLERS:
            response = await http.call("GET", "/api/v1/tasks", headers=headers)
            assert response.status_code == status, headers
            assert status == 200 or set(response.json()) == {"error"}

    with_master(tmp_path, scenario)


MALFORMED: list[tuple[Any, str]] = [
    ("no JSON", "the body is no task"),
    ({"comand": []}, "comand"),
    ({"priority": "high"}, "$.priority"),
    ({"cpus": -1}, "cpus is -1"),
    ({"gpus": 2**32}, "gpus is"),
    ({"priority": 2**31}, "priority is"),
    ({"network": "lan"}, "network is 'lan'"),
    ({"task_id": "a/b"}, "task_id"),
    (
        {"inputs": [{"path": "a", "sha256": NO_DIGEST, "size_bytes": 1}]},
        "input 'a' was not uploaded",
    ),
    ({"inputs": [{"path": "../a", "sha256": NO_DIGEST, "size_bytes": 1}]}, "input '../a'"),
    ({"inputs": [{"path": "a", "sha256": "../x", "size_bytes": 1}]}, "sha256 must be"),
    ({"environment": {"A": "x" * (12 * 2**20)}}, "12582912 are the most"),
    ({"secrets": {"A": "x" * (12 * 2**20)}}, "12582912 are the most"),
]


def test_a_malformed_task_is_refused_in_one_sentence(tmp_path: Path) -> None:
    async def scenario(_: Addresses, http: Http) -> None:
        for body, error in MALFORMED:
            data = body if isinstance(body, str) else json.dumps(body)
            response = await http.call("POST", "/api/v1/tasks", data=data)
            assert response.status_code == 400, error
            assert error in response.json()["error"]
        assert await http.get("/api/v1/tasks") == {"tasks": []}

    with_master(tmp_path, scenario)


def test_a_large_task_within_the_limit_reaches_its_node(tmp_path: Path) -> None:
    async def scenario(addresses: Addresses, http: Http) -> None:
        async with ToyWorker(addresses.grpc) as worker:
            value = "x" * (12 * 2**20 - 4096)
            await http.submit(environment={"A": value})
            request = await asyncio.wait_for(worker.assigned.get(), 20)
            assert request.environment["A"] == value

    with_master(tmp_path, scenario)


def test_submitting_again_is_the_same_task_and_another_one_is_refused(tmp_path: Path) -> None:
    async def scenario(_: Addresses, http: Http) -> None:
        body = {"task_id": "t", "command": ["a"], "environment": {"A": "1", "B": "2"}}
        first = await http.call("POST", "/api/v1/tasks", json=body)
        again = await http.call("POST", "/api/v1/tasks", json=body)
        other = await http.call("POST", "/api/v1/tasks", json=body | {"command": ["b"]})
        assert [r.status_code for r in (first, again, other)] == [201, 200, 409]
        assert len((await http.get("/api/v1/tasks"))["tasks"]) == 1

    with_master(tmp_path, scenario)


def test_an_input_is_kept_only_if_its_digest_holds(tmp_path: Path) -> None:
    async def scenario(_: Addresses, http: Http) -> None:
        sha256 = hashlib.sha256(b"right").hexdigest()
        path = f"/api/v1/inputs/{sha256}"
        assert (await http.call("HEAD", path)).status_code == 404
        assert (await http.call("PUT", path, data=b"wrong")).status_code == 400
        assert (await http.call("HEAD", path)).status_code == 404
        assert (await http.call("PUT", path, data=b"right")).status_code == 201
        assert (await http.call("HEAD", path)).status_code == 200
        assert (await http.call("PUT", "/api/v1/inputs/x", data=b"")).status_code == 400
        kept = [p.name for p in (tmp_path / "master" / "inputs").iterdir()]
        assert kept == [sha256]

    with_master(tmp_path, scenario)


def test_what_is_not_there_is_a_404_with_a_sentence(tmp_path: Path) -> None:
    async def scenario(_: Addresses, http: Http) -> None:
        for method, path in (
            ("GET", "/api/v1/tasks/none"),
            ("POST", "/api/v1/tasks/none/cancel"),
            ("GET", "/api/v1/tasks/none/log"),
            ("GET", "/api/v1/tasks/none/output"),
            ("GET", "/nowhere"),
        ):
            response = await http.call(method, path)
            assert response.status_code == 404, path
            assert response.json()["error"]

    with_master(tmp_path, scenario)


def test_a_followed_log_crosses_attempts_and_ends_with_the_task(tmp_path: Path) -> None:
    async def scenario(addresses: Addresses, http: Http) -> None:
        plays = [
            Play([(OUT, b"first")], b"", pb.TASK_STATE_FAILED, -1, "", pb.FAILURE_CAUSE_NODE),
            Play([(OUT, b"second"), (pb.LOG_STREAM_STDERR, b"\xff")]),
        ]
        async with ToyWorker(addresses.grpc) as worker:
            worker.play = lambda request: plays[request.attempt - 1]
            await http.submit(task_id="t")
            followed = await http.call("GET", "/api/v1/tasks/t/log?follow=1")
        lines = [json.loads(line) for line in followed.iter_lines() if line]
        shown = [
            (line["attempt"], line["sequence"], line["stream"], line["data"])
            for line in lines
            if "data" in line
        ]
        assert shown == [
            (1, 0, "stdout", "Zmlyc3Q="),
            (2, 0, "stdout", "c2Vjb25k"),
            (2, 1, "stderr", "/w=="),
        ]
        assert lines[-1]["task"]["state"] == "succeeded"
        rest = await http.call("GET", "/api/v1/tasks/t/log?attempt=2&sequence=1")
        assert [json.loads(line).get("data") for line in rest.iter_lines()] == ["/w==", None]

    with_master(tmp_path, scenario)
