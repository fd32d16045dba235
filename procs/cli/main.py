"""`hivemind-worker`: the worker in the foreground, its status and history, the owner's wishes.

Reads the bus for `status` and `drain --wait`; publishes nothing.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from procs.cli import foreground, gpus, history, owner, rewards
from procs.cli.core import News, status_json, status_text
from shared.bus import Tap, bus_directory
from shared.gpu_sets import NONE, GpuSetsError
from shared.history import MOST_ROWS, SearchError
from shared.messages import NodePhase
from shared.owner_socket import NoAnswerError, RefusedError
from shared.settings import EXIT_BAD_SETTINGS, Settings, SettingsError, find_home, load
from shared.topics import owned_by

EXIT_NO_WORKER = 3
STATUS_S = 2.0  # two beats: who has not spoken by then is not there
LOOK_S = 0.1

app = typer.Typer(
    help="Runs a HiveMind worker in the foreground, until Ctrl-C.",
    add_completion=False,
    pretty_exceptions_enable=False,
)
image = typer.Typer(help="The image of tasks that name none.", no_args_is_help=True)
app.add_typer(image, name="image")
vpn = typer.Typer(help="The tunnel to the master.", no_args_is_help=True)
app.add_typer(vpn, name="vpn")


def main() -> None:
    app(prog_name="hivemind-worker")


@app.callback(invoke_without_command=True)
def worker(
    context: typer.Context,
    config: Annotated[
        Path | None, typer.Option(metavar="F", help="Settings file, KEY=VALUE lines.")
    ] = None,
    debug: Annotated[bool, typer.Option("--debug", help="LOG_LEVEL=DEBUG.")] = False,
    log_file: Annotated[
        Path | None, typer.Option(metavar="F", help="Append all logs to F too.")
    ] = None,
    master_url: Annotated[
        str | None, typer.Option(metavar="URL", help="The master; MASTER_NODE_URL.")
    ] = None,
) -> None:
    """Start every process in the foreground."""
    environment = dict(os.environ)
    if config is not None:
        environment["HIVEMIND_CONFIG"] = str(config.absolute())
    if debug:
        environment["LOG_LEVEL"] = "DEBUG"
    if master_url is not None:
        environment["MASTER_NODE_URL"] = master_url
    context.obj = environment
    if context.invoked_subcommand is None:
        _start(environment, log_file)


def _start(environment: dict[str, str], log_file: Path | None) -> None:
    settings = _settings(environment)
    environment["HIVEMIND_HOME"] = str(settings.home)
    try:
        configuration = foreground.prepare(settings.home)
        code = foreground.run(configuration, environment, log_file)
    except (foreground.StartError, OSError) as err:
        raise _refused(str(err), 1) from err
    raise typer.Exit(code)


def _settings(environment: dict[str, str]) -> Settings:
    try:
        return load(environment, Path.cwd())
    except SettingsError as err:
        raise _refused(str(err), EXIT_BAD_SETTINGS) from err


def _refused(line: str, code: int) -> typer.Exit:
    print(f"hivemind-worker: {line}", file=sys.stderr)
    return typer.Exit(code)


@app.command()
def status(
    context: typer.Context,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """What the worker says of itself. Exit code 3: no worker runs."""
    home = _home(context.obj)
    news = _listen(home)
    if not news:
        raise _refused(f"no worker runs in {home}", EXIT_NO_WORKER)
    print(status_json(news) if as_json else status_text(news, time.time()))


def _home(environment: dict[str, str]) -> Path:
    try:
        return find_home(environment, Path.cwd())
    except SettingsError as err:
        raise _refused(str(err), EXIT_BAD_SETTINGS) from err


def _listen(home: Path) -> News:
    """Until every process that has a socket has spoken, at most STATUS_S."""
    news, tap = News(), Tap(home)
    deadline_s = time.monotonic() + STATUS_S
    try:
        while time.monotonic() < deadline_s:
            if passed := tap.next(LOOK_S):
                news.take(*passed, time.monotonic())
            elif news and news.has(_expected(home)):
                break
    finally:
        tap.close()
    return news


def _expected(home: Path) -> list[tuple[str, str]]:
    sources = [path.stem for path in bus_directory(home).glob("*.sock")]
    return [(topic, source) for source in sources for topic in owned_by(source)]


@app.command()
def pause(context: typer.Context) -> None:
    """Take no new tasks, for the owner's own work; those that run go on. Exit code 3: no worker."""
    _wish(_home(context.obj), NodePhase.PAUSED)


@app.command()
def resume(context: typer.Context) -> None:
    """Take tasks again, after `pause` or `drain`. Exit code 3: no worker runs."""
    _wish(_home(context.obj), NodePhase.READY)


@app.command()
def drain(
    context: typer.Context,
    wait: Annotated[
        bool, typer.Option("--wait", help="Until the last is delivered; Ctrl-C: it goes on.")
    ] = False,
    timeout: Annotated[
        float | None, typer.Option(metavar="S", min=0, help="Wait at most so many seconds.")
    ] = None,
) -> None:
    """Finish what the node has and take nothing new, as before an update or a shutdown.

    Exit code 1: tasks are left, or someone called it off; 3: no worker runs.
    """
    home = _home(context.obj)
    _wish(home, NodePhase.DRAINING)
    if not wait:
        return
    try:
        owner.wait_for_the_last(home, timeout)
    except (owner.CalledOffError, owner.TooLateError) as err:
        raise _refused(str(err), 1) from err


def _wish(home: Path, phase: NodePhase) -> None:
    _ask(home, lambda: owner.wish(home, phase))


def _ask(home: Path, ask: Callable[[], None]) -> None:
    try:
        ask()
    except NoAnswerError as err:
        said = f"no worker runs in {home}, or its web process is away: {err}"
        raise _refused(said, EXIT_NO_WORKER) from err
    except RefusedError as err:
        raise _refused(str(err), 1) from err


@app.command(name="history")
def show_history(
    context: typer.Context,
    text: Annotated[
        list[str] | None,
        typer.Argument(help="Words in a task's name, image, command or error; all must be there."),
    ] = None,
    state: Annotated[
        list[str] | None, typer.Option(metavar="S", help="succeeded, failed, …; may be repeated.")
    ] = None,
    since: Annotated[
        str, typer.Option(metavar="T", help="Ended since: 90m, 2d, or 2026-11-25T08:00.")
    ] = "",
    limit: Annotated[int, typer.Option(metavar="N", help=f"At most so many, {MOST_ROWS}.")] = 20,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Tasks that ended on this machine, the newest first. Exit code 1: there is no history."""
    home = _settings(context.obj).home
    try:
        wanted = history.search(" ".join(text or ()), state or (), since, limit, time.time())
        history.show(home, wanted, as_json=as_json)
    except SearchError as err:
        raise _refused(str(err), EXIT_BAD_SETTINGS) from err
    except history.NothingError as err:
        raise _refused(str(err), 1) from err


@app.command(name="rewards")
def show_rewards(
    context: typer.Context,
    since: Annotated[
        str, typer.Option(metavar="T", help="Earned since: 90m, 2d, or 2026-11-25T08:00.")
    ] = "",
    limit: Annotated[int, typer.Option(metavar="N", min=1, help="At most so many.")] = 20,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """What each report interval and each task earned, the newest first; 30 days are listed."""
    try:
        since_unix_s = history.unix_s(since, time.time()) if since else 0.0
        rewards.show(_home(context.obj), since_unix_s, limit, as_json=as_json)
    except SearchError as err:
        raise _refused(str(err), EXIT_BAD_SETTINGS) from err
    except history.NothingError as err:
        raise _refused(str(err), 1) from err


@app.command()
def debug(
    context: typer.Context,
    task: Annotated[str, typer.Argument(help="A task's id, or ID.ATTEMPT.")],
) -> None:
    """Where what is left of a failed task lies: its output, its container's last state."""
    settings = _settings(context.obj)
    try:
        history.show_debug(settings.home, task, settings.debug_retention_h)
    except history.NothingError as err:
        raise _refused(str(err), 1) from err


@app.command()
def configure(
    context: typer.Context,
    gpu_sets: Annotated[
        str | None,
        typer.Option(metavar="S", help="As 0,1;2,3: indices or UUIDs; none. Default: GPU_SETS."),
    ] = None,
) -> None:
    """Write down which GPUs the worker watches, in sets with a process for each."""
    settings = _settings(context.obj)
    wanted = settings.gpu_sets if gpu_sets is None else gpu_sets.strip()
    try:
        cards = gpus.look(foreground.ROOT, context.obj) if wanted != NONE else []
        sets = gpus.chosen(wanted, cards)
        changed = gpus.write(settings.home, sets, foreground.ROOT)
    except GpuSetsError as err:
        raise _refused(f"GPU_SETS={wanted} {err}", EXIT_BAD_SETTINGS) from err
    except (gpus.NoCardsError, OSError) as err:
        raise _refused(f"{err}; which GPUs are watched stays as it was", 1) from err
    print("\n".join(gpus.told(sets, cards)))
    if changed:
        print(f"a worker that runs heeds it after: {gpus.reload(settings.home, foreground.ROOT)}")


@vpn.command()
def rotate(context: typer.Context) -> None:
    """Make a new key for the tunnel and tell the master; nothing is cut.

    Exit code 1: there is no key to change; 3: no worker runs.
    """
    home = _home(context.obj)
    _ask(home, lambda: owner.rotate(home))


@image.command()
def build(
    context: typer.Context,
    tag: Annotated[
        str | None, typer.Option(metavar="T", help="Name it so; default: TASK_IMAGE.")
    ] = None,
) -> None:
    """Build the task image on the worker's Docker engine."""
    settings = _settings(context.obj)
    script = foreground.ROOT / "procs" / "executor" / "image" / "build.sh"
    done = subprocess.run(
        [script, tag or settings.task_image],
        env=context.obj | {"DOCKER_HOST": settings.docker_host},
        check=False,
    )
    raise typer.Exit(done.returncode)
