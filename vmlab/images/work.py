"""Run the programs that build images, never as root if the account is another one."""

from __future__ import annotations

import os
import signal
import subprocess
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from vmlab.errors import BuildFailed, HostError
from vmlab.hypervisor.account import Account, find_program


def need(program: str, package: str) -> str:
    """Return the path of ``program``, or say which Debian package has it.

    Raises
    ------
    HostError
        If it is not installed.
    """
    path = find_program(program)
    if path is None:
        raise HostError(f"The program '{program}' is not installed.", hint=f"sudo apt-get install {package}")
    return path


def run(
    account: Account,
    argv: Sequence[str | Path],
    *,
    what: str,
    on_line: Callable[[str], None] | None = None,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    hint: str | None = None,
    as_root: bool = False,
) -> str:
    """Run a program as the account to its end and return what it printed (stdout and stderr together).

    Parameters
    ----------
    what
        What it failed to do, for the error: "mke2fs could not make the disk".
    on_line
        Called with each line as it comes.
    as_root
        Stay root if we are root: only for the builder's last resort.

    Raises
    ------
    BuildFailed
        If it ends with a status other than 0; carries the last lines it printed.
    """
    words = [str(word) for word in argv]
    proxies = {key: value for key, value in os.environ.items() if key.lower().endswith("_proxy")}
    extra = {"LC_ALL": "C.UTF-8", **proxies, **(env or {})}
    options = {
        "stdin": subprocess.DEVNULL,
        "stdout": subprocess.PIPE,
        "stderr": subprocess.STDOUT,
        "text": True,
        "errors": "replace",
        "cwd": cwd or "/",
        # A group of its own, so that an interrupt of ours can end it with all its children.
        "start_new_session": True,
        "umask": 0o077,
    }
    if as_root:
        process = subprocess.Popen(words, env=account.environment() | extra | {"HOME": "/root"}, **options)  # type: ignore[call-overload]
    else:
        process = account.popen(words, env=extra, **options)
    lines: deque[str] = deque(maxlen=2000)
    try:
        for line in process.stdout:
            lines.append(line.rstrip("\n"))
            if on_line is not None:
                on_line(lines[-1])
        status = process.wait()
    except BaseException:
        end(process)
        raise
    finally:
        process.stdout.close()
    output = "\n".join(lines)
    if status != 0:
        raise BuildFailed(
            f"{what}.", hint=hint, command=" ".join(words)[:300], exit_status=status, output=output
        )
    return output


def end(process: subprocess.Popen[str]) -> None:
    """End a program of ours with all its children: ask first, insist after five seconds."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
            process.wait(timeout=5)
            return
        except ProcessLookupError:
            process.wait()
            return
        except subprocess.TimeoutExpired:
            continue
