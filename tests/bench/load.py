"""The load generator: a process that sends prepared requests over kept connections as fast as they are answered.

It shares the cores with what it measures, so it does as little as can be: it fills two numbers into a request made
beforehand, and reads no more of an answer than its status and its length. It reads a job a line from standard input and
answers with a line each: JSON both.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import sys
import time
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

_END_OF_HEAD: Final = b"\r\n\r\n"
_LENGTH: Final = b"content-length:"
_STATUS: Final = slice(9, 12)
#: How long the generator waits for an answer before it gives the whole slice up.
_PATIENCE_SECONDS: Final = 30.0


@dataclass(frozen=True, slots=True)
class Job:
    """`request` goes over `connections` at once, on each when the one before it was answered.

    `REQUEST` in it becomes the number of the request, in seven digits, and `RUNNUM` that of one of `runs` runs in turn,
    in six. With `seconds` it ends when they have passed, after `warm_up` seconds that are not counted; without, after
    one request a run.
    """

    port: int
    connections: int
    request: str
    runs: int
    seconds: float | None = None
    warm_up: float = 0.0

    def requests(self) -> Iterator[bytes]:
        template = self.request.encode()
        numbers = range(self.runs) if self.seconds is None else itertools.count()
        for number in numbers:
            yield template.replace(b"RUNNUM", b"%06d" % (number % self.runs)).replace(b"REQUEST", b"%07d" % number)


@dataclass(frozen=True, slots=True)
class Answered:
    """`per_second` answers with a 2xx; `statuses` counts the others. Latencies are in milliseconds."""

    per_second: float
    p50: float
    p99: float
    count: int
    statuses: dict[str, int] = field(default_factory=dict)


class _Sender(asyncio.Protocol):
    """One connection: writes a request, and the next when its answer is whole."""

    def __init__(self, requests: Iterator[bytes], answers: list[tuple[float, float]], statuses: dict[str, int]) -> None:
        self._requests = requests
        self._answers = answers
        self._statuses = statuses
        self._transport: asyncio.Transport | None = None
        self._began = 0.0
        self._read = b""
        self.stopping = False
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def send(self) -> None:
        request = None if self.stopping else next(self._requests, None)
        if request is None:
            self.end()
            return
        assert self._transport is not None
        self._began = time.perf_counter()
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        data = self._read = self._read + data if self._read else data
        head = data.find(_END_OF_HEAD)
        if head < 0 or len(data) < head + len(_END_OF_HEAD) + _length_of(data[:head]):
            return
        now = time.perf_counter()
        self._read = b""
        status = data[_STATUS]
        if status[:1] == b"2":
            self._answers.append((now, now - self._began))
        else:
            self._statuses[status.decode()] = self._statuses.get(status.decode(), 0) + 1
        self.send()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - a part of asyncio's protocol
        if not self.ended.done():
            self.ended.set_exception(ConnectionError("the server closed the connection"))

    def end(self) -> None:
        if not self.ended.done():
            self.ended.set_result(None)
        assert self._transport is not None
        self._transport.close()


def _length_of(head: bytes) -> int:
    at = head.lower().find(_LENGTH)
    return int(head[at + len(_LENGTH) :].split(b"\r\n", 1)[0]) if at >= 0 else 0


async def send(job: Job) -> Answered:
    requests = job.requests()
    answers: list[tuple[float, float]] = []
    statuses: dict[str, int] = {}
    loop = asyncio.get_running_loop()
    senders = [
        (await loop.create_connection(lambda: _Sender(requests, answers, statuses), "127.0.0.1", job.port))[1]
        for _ in range(job.connections)
    ]
    began = time.perf_counter() + job.warm_up
    for sender in senders:
        sender.send()
    if job.seconds is not None:
        await asyncio.sleep(job.warm_up + job.seconds)
    ended = time.perf_counter()
    for sender in senders:
        sender.stopping = job.seconds is not None
    async with asyncio.timeout(_PATIENCE_SECONDS):
        await asyncio.gather(*(sender.ended for sender in senders))
    if job.seconds is None:
        ended = time.perf_counter()
    taken = sorted(took for at, took in answers if began <= at <= ended)
    return Answered(
        per_second=len(taken) / (ended - began),
        p50=_share(taken, 0.50),
        p99=_share(taken, 0.99),
        count=len(answers),
        statuses=statuses,
    )


def _share(taken: list[float], share: float) -> float:
    return taken[int(len(taken) * share)] * 1000 if taken else 0.0


def main() -> None:
    for line in sys.stdin:
        print(json.dumps(asdict(asyncio.run(send(Job(**json.loads(line)))))), flush=True)


if __name__ == "__main__":
    main()
