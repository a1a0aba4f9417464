"""The command line: `fl-peel run`, `export`, `demo`, `deploy`, `diff`, `compare`, `ablate`, `audit`, and lists.

Exit codes: 0 done; 1 a bug of ours (with a traceback); 2 a mistake of the user's (one line on stderr); 130 Ctrl-C;
143 SIGTERM.
Heavy imports are inside the commands, after the scenario is read: help, lists and mistakes in keys answer at once.
"""

from __future__ import annotations

import errno
import os
import re
import signal
import sys
import threading
from types import FrameType
from typing import Annotated, NoReturn

import click
import typer

from fl_peel import __version__
from fl_peel.errors import FlPeelError
from simulations.cli.console import one_line
from simulations.cli.lists import cache, data_app, profiles_app, scenarios_app
from simulations.cli.model import demo, export, export_onnx, plot, report, serve_device
from simulations.cli.run import deploy, run
from simulations.cli.studies import ablate, audit, bench, compare, diff, reproduce, sweep

USER_ERROR = 2
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
"""Errors of a disk that is full or has become read-only, whatever was written: also what a command prints."""
STOPPED = {130: "interrupted", 143: "terminated"}
"""Codes of Ctrl-C, as typer has it, and of SIGTERM."""
AGAIN_S = 0.05
"""Seconds after which a signal that was dropped is sent again."""

app = typer.Typer(
    help="Federated simulation of personalized elastic embeddings for on-device recommendation, on Flower.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.add_typer(data_app, name="data")
app.add_typer(profiles_app, name="profiles")
app.add_typer(scenarios_app, name="scenarios")
app.command()(compare)
app.command()(ablate)
app.command()(audit)
app.command()(reproduce)
app.command()(run)
app.command()(sweep)
app.command()(diff)
app.command()(demo)
app.command()(export_onnx)
app.command()(bench)
app.command()(export)
app.command(name="serve-device")(serve_device)
app.command()(deploy)
app.command()(report)
app.command()(plot)
app.command()(cache)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"fl-peel {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Entry point of `fl-peel`: runs a command and turns what happens into an exit code."""
    before = signal.signal(signal.SIGTERM, _terminate)
    hook, sys.unraisablehook = sys.unraisablehook, _send_again
    try:
        code = app(prog_name="fl-peel", standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except click.Abort:
        sys.exit("fl-peel: aborted")
    except click.ClickException as mistake:
        if isinstance(mistake, click.exceptions.NoArgsIsHelpError):
            mistake.show()
        else:
            print(f"fl-peel: error: {_usage_line(mistake)}", file=sys.stderr)
        sys.exit(USER_ERROR)
    except FlPeelError as mistake:
        print(f"fl-peel: error: {one_line(mistake)}", file=sys.stderr)
        sys.exit(USER_ERROR)
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what is left to print has no place either
        where = "output" if error.filename is None else error.filename
        print(f"fl-peel: error: {where}: {error.strerror}; make some room, or write elsewhere", file=sys.stderr)
        sys.exit(USER_ERROR)
    except SystemExit as leaving:
        if leaving.code not in STOPPED:
            raise
        print(f"fl-peel: {STOPPED[leaving.code]}", file=sys.stderr)
        _leave(leaving.code)  # the engine's threads may still wait for their workers
    finally:
        signal.signal(signal.SIGTERM, before)
        sys.unraisablehook = hook


def _usage_line(mistake: click.ClickException) -> str:
    """Say what is wrong with what was typed, and what to type: of an option that is a scenario's key, the key."""
    what = " ".join(mistake.format_message().split()).removesuffix(".")
    what = " ".join(dict.fromkeys(re.split(r"(?<=[.?]) ", what)))  # click and typer both guess what was meant
    if isinstance(mistake, click.NoSuchOption):
        from fl_peel.problems import keys_named
        from fl_peel.scenario.scenario import Scenario

        keys = keys_named(Scenario, mistake.option_name.lstrip("-").replace("-", "_"))
        if keys:
            return f"{what}; it is a key of the scenario: write {' or '.join(f'--set {key}=...' for key in keys)}"
    context = mistake.ctx if isinstance(mistake, click.UsageError) else None
    return f"{what}; see {context.command_path if context else 'fl-peel'} --help"


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    """End as at Ctrl-C: all that is open is closed on the way out; a second signal does not disturb that."""
    signal.signal(number, signal.SIG_IGN)
    raise SystemExit(128 + number)


def _send_again(dropped: sys.UnraisableHookArgs) -> None:
    """Send a signal again that came within a destructor: Python drops what is raised there, and would go on."""
    if issubclass(dropped.exc_type, KeyboardInterrupt):
        number = signal.SIGINT
    elif issubclass(dropped.exc_type, SystemExit):
        number = signal.SIGTERM
        signal.signal(number, _terminate)
    else:
        sys.__unraisablehook__(dropped)
        return
    threading.Timer(AGAIN_S, os.kill, (os.getpid(), number)).start()  # when this is over, too


def _leave(code: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
