"""What a client is shown of tasks, nodes and logs: plain JSON values. Pure."""

import base64
from typing import Any

from google.protobuf import json_format
from google.protobuf.internal.enum_type_wrapper import EnumTypeWrapper
from google.protobuf.message import Message

from procs.master import core, task_records
from procs.master.core import AttemptPhase, Demand
from shared.pb import hivemind_pb2 as pb

Row = task_records.Row
STREAMS = {pb.LOG_STREAM_STDOUT: "stdout", pb.LOG_STREAM_STDERR: "stderr"}


def state_name(state: int) -> str:
    return _name(pb.TaskState, state, "TASK_STATE_")


def task(row: Row, nodes: list[core.Node]) -> dict[str, Any]:
    """A task with its newest attempt. `state` is a final one once the task has ended."""
    phase = AttemptPhase(row["phase"])
    view: dict[str, Any] = {
        "task_id": row["task_id"],
        "state": _task_state(row, phase),
        "detail": row["detail"],
        "error": row["error"],
        "attempt": row["attempt"],
        "node_id": row["node_id"],
        "priority": row["priority"],
        "cancel_wanted": row["cancel_reason"] is not None,
        "ended": row["state"] != 0,
        "submitted_unix_s": row["submitted_unix_s"],
        "ended_unix_s": row["ended_unix_s"],
        "log_records": row["log_next"],
        "exit_code": None,
        "reward": None,
        "output": None,
    }
    if phase is AttemptPhase.WAITING and not view["ended"]:
        view["detail"] = core.why_waiting(Demand(**row["demand"]), nodes)
    if row["result"] is not None and view["ended"]:
        view |= _result(pb.TaskResultRequest.FromString(row["result"]))
    return view


def spec(request: pb.TaskAssignmentRequest) -> dict[str, Any]:
    """The assignment as it was submitted: no secret is in it, and no content of an input."""
    for one in request.inputs:
        one.ClearField("inline")
    return _json(request)


def node(row: Row, report: bytes | None, given: int, channel_open: bool) -> dict[str, Any]:
    state = "lost" if row["lost"] else _name(pb.NodeState, row["state"], "NODE_STATE_")
    if row["revoked"]:
        state = "revoked"
    return {
        "node_id": row["node_id"],
        "name": row["name"],
        "state": state,
        "trust_level": row["trust_level"],
        "task_endpoint": row["task_endpoint"],
        "channel_open": channel_open,
        "tasks": given,
        "reward_total": row["reward_total"],
        "rewards_wrong": row["rewards_wrong"],
        "worker_version": row["worker_version"],
        "heard_unix_s": row["heard_unix_s"],
        "inventory": _json(pb.NodeInventory.FromString(row["inventory"])),
        "report": _json(pb.NodeStatusRequest.FromString(report)) if report else None,
    }


def applicant(row: Row) -> dict[str, Any]:
    """A node that waits for approval, with the fields of one that is here."""
    return {
        "node_id": row["node_id"],
        "name": row["name"],
        "state": "waiting for approval",
        "trust_level": 0,
        "task_endpoint": "",
        "channel_open": False,
        "tasks": 0,
        "reward_total": 0,
        "rewards_wrong": 0,
        "worker_version": "",
        "heard_unix_s": row["heard_unix_s"],
        "inventory": {},
        "report": None,
        "vpn": None,
    }


def log_record(attempt: int, record: pb.LogRecord) -> dict[str, Any]:
    return {
        "attempt": attempt,
        "sequence": record.sequence,
        "at_unix_s": record.at.ToNanoseconds() / 1e9,
        "stream": STREAMS.get(record.stream, "worker"),
        "data": base64.b64encode(record.data).decode(),
    }


def _task_state(row: Row, phase: AttemptPhase) -> str:
    if row["state"]:
        return state_name(row["state"])
    if phase is AttemptPhase.HELD:
        return state_name(row["node_said"] or pb.TASK_STATE_ACCEPTED)
    return str(phase)


def _result(result: pb.TaskResultRequest) -> dict[str, Any]:
    output = result.output
    return {
        "exit_code": result.exit_code,
        "reward": task_records.earned(result),
        "cause": _name(pb.FailureCause, result.cause, "FAILURE_CAUSE_"),
        "report": _json(result.report),
        "output": {
            "sha256": output.sha256.hex(),
            "size_bytes": output.size_bytes,
            "files": output.files,
            "format": output.format,
        }
        if output.sha256
        else None,
    }


def _name(enum: EnumTypeWrapper, value: int, prefix: str) -> str:
    """The contract's word in lower case; a value that is newer than this master as a number."""
    if value not in enum.values():
        return str(value)
    return str(enum.Name(value)).removeprefix(prefix).lower()


def _json(message: Message) -> dict[str, Any]:
    found: dict[str, Any] = json_format.MessageToDict(message, preserving_proto_field_name=True)
    return found
