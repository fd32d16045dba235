"""`hivemind`: the command line of those who have tasks to run."""

import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from procs.client import core, run, tables
from procs.client.api import Master, MasterError
from procs.client.core import Malformed
from procs.client.output import OutputError

DEFAULT_MASTER = "http://127.0.0.1:8080"

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, no_args_is_help=True)

nodes_app = typer.Typer(invoke_without_command=True)
token_app = typer.Typer(no_args_is_help=True, help="Join tokens.")
ca_app = typer.Typer(no_args_is_help=True, help="The master's certificate authority.")
app.add_typer(nodes_app, name="nodes")
app.add_typer(token_app, name="token")
app.add_typer(ca_app, name="ca")

MasterUrl = Annotated[
    str, typer.Option("--master", envvar="HIVEMIND_MASTER", help="The master's URL.")
]
AsJson = Annotated[bool, typer.Option("--json", help="For programs.")]
NodeId = Annotated[str, typer.Argument(metavar="NODE")]
TrustLevel = Annotated[int | None, typer.Option(min=0, max=3, help="Default: the master's.")]
TaskId = Annotated[str, typer.Argument(metavar="ID")]


@app.callback()
def _program() -> None:
    """Runs tasks on a HiveMind master's workers.

    A master with https:// wants its admin token: the file that HIVEMIND_ADMIN_TOKEN_FILE names,
    else that of a master of yours on this machine.
    """


@app.command("run")
def _run(
    command: Annotated[
        list[str] | None, typer.Argument(help="What to run; none: the image's own.")
    ] = None,
    image: Annotated[str, typer.Option(help="Default: the node's task image.")] = "",
    input_: Annotated[
        list[Path] | None, typer.Option("--input", help="A file or directory, seen at /task.")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Where the task's /output goes.")] = None,
    requirement: Annotated[list[str] | None, typer.Option(help="A pip requirement.")] = None,
    cpus: Annotated[float, typer.Option(help="0: the node's default.")] = 0.0,
    memory: Annotated[str, typer.Option(help="As 512m or 2g.")] = "0",
    gpus: int = 0,
    timeout: Annotated[str, typer.Option(help="Of the run itself, as 10m.")] = "0",
    env: Annotated[list[str] | None, typer.Option(help="KEY=VALUE for the task.")] = None,
    secret: Annotated[list[str] | None, typer.Option(help="As --env; shown nowhere.")] = None,
    label: Annotated[list[str] | None, typer.Option(help="KEY=VALUE that a node has.")] = None,
    network: Annotated[str, typer.Option(help="none or egress.")] = "none",
    priority: Annotated[int, typer.Option(help="Higher goes first.")] = 0,
    master: MasterUrl = DEFAULT_MASTER,
) -> None:
    """Run a command on a node: its log live, its output fetched, its own exit code."""
    with _connected(master) as api:
        body = {
            "image": image,
            "command": command or [],
            "environment": core.pairs(env or [], "--env"),
            "secrets": core.pairs(secret or [], "--secret"),
            "labels": core.pairs(label or [], "--label"),
            "requirements": requirement or [],
            "cpus": cpus,
            "memory_bytes": core.size_bytes(memory),
            "gpus": gpus,
            "timeout_s": core.duration_s(timeout),
            "network": network,
            "priority": priority,
        }
        code = _run_to_the_end(api, body, input_ or [], output)
    raise typer.Exit(code)


@nodes_app.callback()
def _nodes(
    context: typer.Context, as_json: AsJson = False, master: MasterUrl = DEFAULT_MASTER
) -> None:
    """The nodes that have joined, or wait for approval."""
    if context.invoked_subcommand is not None:
        return
    with _connected(master) as api:
        found = api.get("/api/v1/nodes")["nodes"]
    _print_json(found) if as_json else tables.show(tables.nodes(found))


@nodes_app.command("approve")
def _approve(
    node_id: NodeId, trust_level: TrustLevel = None, master: MasterUrl = DEFAULT_MASTER
) -> None:
    """Let a node in that waits, or give one another trust level; a revoked one may come back."""
    body = {} if trust_level is None else {"trust_level": trust_level}
    with _connected(master) as api:
        api.order(f"/api/v1/nodes/{node_id}/approve", body)
    print(f"{node_id} is approved; a node that waits asks again within a minute")


@nodes_app.command("revoke")
def _revoke(node_id: NodeId, master: MasterUrl = DEFAULT_MASTER) -> None:
    """Hear nothing more of a node; its tasks go to others."""
    with _connected(master) as api:
        api.order(f"/api/v1/nodes/{node_id}/revoke", {})
    print(f"{node_id} is revoked")


@nodes_app.command("drain")
def _drain(node_id: NodeId, master: MasterUrl = DEFAULT_MASTER) -> None:
    """Let a node finish what it has, and give it nothing new."""
    _desire(master, node_id, "draining")


@nodes_app.command("pause")
def _pause(node_id: NodeId, master: MasterUrl = DEFAULT_MASTER) -> None:
    """Give a node nothing for now."""
    _desire(master, node_id, "paused")


@nodes_app.command("resume")
def _resume(node_id: NodeId, master: MasterUrl = DEFAULT_MASTER) -> None:
    """Give a node tasks again; what its own owner wishes stays."""
    _desire(master, node_id, "ready")


def _desire(master: str, node_id: str, state: str) -> None:
    with _connected(master) as api:
        api.put(f"/api/v1/nodes/{node_id}/desired-state", state)
    print(f"{node_id} should be {state}; it hears so with its next heartbeat")


@token_app.command("create")
def _create_token(
    ttl: Annotated[str, typer.Option(help="How long it is good for, as 30m or 7d.")] = "1d",
    uses: Annotated[int, typer.Option(min=1, help="How many nodes it lets in.")] = 1,
    trust_level: TrustLevel = None,
    master: MasterUrl = DEFAULT_MASTER,
) -> None:
    """Print a new join token: MASTER_JOIN_TOKEN of the nodes to come. It is shown only now."""
    with _connected(master) as api:
        body = {"ttl_s": int(core.duration_s(ttl)), "uses": uses}
        if trust_level is not None:
            body["trust_level"] = trust_level
        made = api.order("/api/v1/tokens", body)
    print(made["token"])


@ca_app.command("show")
def _show_authority(master: MasterUrl = DEFAULT_MASTER) -> None:
    """The digest of the master's authority, to compare with what a node shows."""
    with _connected(master) as api:
        print(api.get("/api/v1/authority")["digest"])


@ca_app.command("rotate")
def _rotate(master: MasterUrl = DEFAULT_MASTER) -> None:
    """Begin the change to a new authority; it ends by itself after a certificate's life."""
    with _connected(master) as api:
        digest = api.order("/api/v1/authority/rotate", {})["digest"]
    print(f"{digest} takes over in 30 days; nodes learn of it when they renew")


@app.command("tasks")
def _tasks(as_json: AsJson = False, master: MasterUrl = DEFAULT_MASTER) -> None:
    """The tasks, newest first."""
    with _connected(master) as api:
        found = api.get("/api/v1/tasks")["tasks"]
    _print_json(found) if as_json else tables.show(tables.tasks(found, time.time()))


@app.command("logs")
def _logs(
    task_id: TaskId,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Until the task ends.")] = False,
    as_json: AsJson = False,
    master: MasterUrl = DEFAULT_MASTER,
) -> None:
    """A task's log: its stdout to stdout, its stderr to stderr."""
    with _connected(master) as api:
        lines = api.follow(task_id) if follow else api.log(task_id, None, 0, follow=False)
        for line in lines:
            if line is None or "data" not in line:
                continue
            if as_json:
                print(json.dumps(line), flush=True)
            else:
                run.write_record(line)


@app.command("cancel")
def _cancel(task_id: TaskId, as_json: AsJson = False, master: MasterUrl = DEFAULT_MASTER) -> None:
    """Ask for a task's end; what it logged and left so far stays."""
    with _connected(master) as api:
        task = api.post(f"/api/v1/tasks/{task_id}/cancel")
    if as_json:
        _print_json(task)
    else:
        print(core.summary(task) if task["ended"] else f"{task_id} is being cancelled")


def _run_to_the_end(
    api: Master, body: dict[str, Any], inputs: list[Path], output: Path | None
) -> int:
    if output is not None:
        try:
            output.mkdir(parents=True, exist_ok=True)
        except OSError as err:
            raise Malformed(f"--output {output}: {err.strerror}") from err
    task_id = run.submit(api, body, inputs)
    api.patient = True
    with run.cancelling(api, task_id):
        task = run.follow(api, task_id)
        if output is not None:
            run.retried(lambda: run.fetch(api, task, output))
    run.note(core.summary(task))
    return core.exit_code(task)


@contextmanager
def _connected(url: str) -> Iterator[Master]:
    """The master; what goes wrong with it is one line and our own exit code."""
    api = None
    try:
        api = Master(url)
        yield api
    except (MasterError, Malformed, OutputError) as err:
        run.note(str(err))
        raise typer.Exit(core.OWN_FAILURE) from err
    except BrokenPipeError as err:  # who read us is gone: leave quietly
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(core.OWN_FAILURE) from err
    except KeyboardInterrupt as err:
        raise typer.Exit(run.INTERRUPTED) from err
    finally:
        if api is not None:
            api.close()


def _print_json(value: object) -> None:
    print(json.dumps(value, indent=2))


def main() -> None:
    app()
