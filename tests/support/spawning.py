"""Processes of the program without two seconds of imports each: a server imports once, and forks for each command.

A forked child is a process like another: it has its own environment, standard streams, signals and end; from
`app.cli.main` on it runs what `python -m app` runs, and it ends as an interpreter does. What it cannot tell is whether
the program starts from nothing: `tests.support.process` starts it afresh where that is the point.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import gc
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence

# The side of the tests ------------------------------------------------------------------------------------------------


class Spawned:
    """A forked process, as `asyncio.subprocess.Process` shows one."""

    def __init__(
        self, pid: int, stdout: asyncio.StreamReader, stderr: asyncio.StreamReader, told: asyncio.StreamReader
    ) -> None:
        self.pid = pid
        self.stdout = stdout
        self.stderr = stderr
        self.returncode: int | None = None
        self._told = told
        self._ending = asyncio.create_task(self._end())

    async def _end(self) -> int:
        self.returncode = int(await self._told.readline())
        return self.returncode

    async def wait(self) -> int:
        return await asyncio.shield(self._ending)

    async def communicate(self) -> tuple[bytes, bytes]:
        out, err, _ = await asyncio.gather(self.stdout.read(), self.stderr.read(), self.wait())
        return out, err

    def send_signal(self, number: int) -> None:
        if self.returncode is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class _Pipe(NamedTuple):
    reader: asyncio.StreamReader
    transport: asyncio.ReadTransport


async def _pipe() -> tuple[_Pipe, int]:
    """A pipe to read from, and the file descriptor to write to."""
    reading, writing = os.pipe()
    reader = asyncio.StreamReader()
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(reading, "rb", buffering=0)
    )
    return _Pipe(reader, transport), writing


class _Server:
    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-u", "-W", "ignore", "-m", "tests.support.spawning"], stdin=theirs.fileno()
            )
        atexit.register(self.end)

    def end(self) -> None:
        self._socket.close()
        self._process.wait()

    def ask(self, request: bytes, descriptors: Sequence[int]) -> None:
        socket.send_fds(self._socket, [request], list(descriptors))


_servers: list[_Server] = []


@contextlib.asynccontextmanager
async def spawned(
    words: Sequence[str], environment: Mapping[str, str], *, module: str = "app.cli", orders: int | None = None
) -> AsyncIterator[Spawned]:
    """Run `words` as `python -m app` would, with no more environment than this; killed at the end if it still lives.

    It is the `main` of `module` that is run; it reads from `orders`, a file descriptor that is taken over, or nothing.
    """
    if not _servers:
        _servers.append(_Server())
    (out, their_out), (err, their_err), (told, their_told) = await _pipe(), await _pipe(), await _pipe()
    their_in = os.open(os.devnull, os.O_RDONLY) if orders is None else orders
    request = json.dumps({"module": module, "words": list(words), "environment": dict(environment)}).encode() + b"\n"
    theirs = (their_in, their_out, their_err, their_told)
    _servers[0].ask(request, theirs)
    for descriptor in theirs:
        os.close(descriptor)
    try:
        async with asyncio.timeout(60):
            process = Spawned(int(await told.reader.readline()), out.reader, err.reader, told.reader)
        try:
            yield process
        finally:
            process.kill()
            await process.wait()
    finally:
        for pipe in (out, err, told):
            pipe.transport.close()


# The side of the server -----------------------------------------------------------------------------------------------

_MOST_BYTES: Final = 1 << 16


def serve() -> None:
    """Fork for each request on standard input, which is a socket, until it ends."""
    from app import cli, operate, process  # noqa: F401, PLC0415
    from app.doctor import diagnose  # noqa: F401, PLC0415
    from app.sandbox import demo  # noqa: F401, PLC0415
    from tests.support import forked  # noqa: F401, PLC0415

    gc.freeze()  # what is shared is not written to
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those who watch
    with socket.socket(fileno=os.dup(sys.stdin.fileno())) as listener:
        while True:
            request, descriptors, _, _ = socket.recv_fds(listener, _MOST_BYTES, 4)
            if not request:
                return
            while not request.endswith(b"\n"):
                request += listener.recv(_MOST_BYTES)
            if os.fork() == 0:
                listener.close()
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                _watch_or_run(json.loads(request), *descriptors)
            for descriptor in descriptors:
                os.close(descriptor)


def _watch_or_run(request: dict[str, object], in_: int, out: int, err: int, told: int) -> None:
    """Fork once more: the child is the command, and this process says its id and its exit code."""
    child = os.fork()
    if child == 0:
        os.close(told)
        _become(request, in_, out, err)
        importlib.import_module(str(request["module"])).main()
        sys.exit()
    for descriptor in (in_, out, err):
        os.close(descriptor)
    os.write(told, f"{child}\n".encode())
    _, status = os.waitpid(child, 0)
    os.write(told, f"{os.waitstatus_to_exitcode(status)}\n".encode())
    os._exit(0)


def _become(request: dict[str, object], in_: int, out: int, err: int) -> None:
    words, environment = request["words"], request["environment"]
    assert isinstance(words, list)
    assert isinstance(environment, dict)
    for ours, standard in ((in_, 0), (out, 1), (err, 2)):
        os.dup2(ours, standard)
        os.close(ours)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = ["app", *words]


if __name__ == "__main__":
    serve()
