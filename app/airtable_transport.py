"""How requests to Airtable leave: nothing of a call goes out once its caller has given it up, by no way.

Written by hand because neither `requests` nor the kernel takes anything back. A request whose sender is gone would
still be sent after its name was looked up, or after the first of its addresses stayed silent; and what a closed socket
holds the kernel sends for minutes, to land after the newer write that took its place. Knows nothing of records.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final, NoReturn, Protocol

import requests
from requests.adapters import HTTPAdapter
from urllib3 import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.connection import HTTPConnection, HTTPSConnection

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Self

    from urllib3 import BaseHTTPResponse, HTTPResponse

#: Bytes, unpacked. A page on which all three log columns are full of three-byte characters has 86 MiB: a cell holds
#: 100,000 of them (a documented limit).
LARGEST_ANSWER: Final = 128 << 20
#: What is not yet acknowledged when a socket is closed is thrown away (socket(7)), also at the end of the process. A
#: connection ends with a reset for it, which nobody reads any more.
_KEEP_NOTHING: Final = (socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
_SOCKET_OPTIONS: Final = [*HTTPConnection.default_socket_options, _KEEP_NOTHING]


class GivenUp(Exception):
    """The call was to send something after its caller had given it up."""


class _HasDescriptor(Protocol):
    def fileno(self) -> int: ...


class Line:
    """What one call sends and receives over, and its caller may cut. Entered by the thread that makes the call.

    One lock decides whether a call began to send or was given up before. What was begun ends: reads and writes that
    wait return at once, and the connection is closed, with all that it holds.
    """

    _here: ContextVar[Line] = ContextVar("line")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._is_cut = False
        #: A descriptor of its own, so that none can be cut that the thread has closed and another part has got since.
        self._held: socket.socket | None = None

    @classmethod
    def of_this_thread(cls) -> Line:
        return cls._here.get()

    def __enter__(self) -> Self:
        self._token = self._here.set(self)
        return self

    def __exit__(self, *_: object) -> None:
        self._here.reset(self._token)
        with self._lock:
            self._let_go()

    def lead_over(self, connected: _HasDescriptor) -> None:
        """Something is about to be sent over `connected`. Raises `GivenUp`."""
        with self._lock:
            if self._is_cut:
                raise GivenUp
            self._let_go()
            self._held = socket.fromfd(connected.fileno(), socket.AF_INET, socket.SOCK_STREAM)

    def cut(self) -> None:
        """From any thread: nothing more is sent. Does nothing to a call that is over."""
        with self._lock:
            self._is_cut = True
            if self._held is not None:
                with contextlib.suppress(OSError):  # the other side was quicker
                    self._held.shutdown(socket.SHUT_RDWR)

    def _let_go(self) -> None:
        if self._held is not None:
            self._held.close()
            self._held = None


class _Connection(HTTPConnection):
    """Everything that `http.client` sends goes through `send`, a tunnel's request included."""

    def send(self, data: Any) -> None:  # as in http.client
        if self.sock is None:
            self.connect()  # may take as long as the name's servers and its addresses like
        Line.of_this_thread().lead_over(self.sock)
        super().send(data)


class _TLSConnection(_Connection, HTTPSConnection):
    """The same over TLS, which is there before anything is sent."""


class _Pool(HTTPConnectionPool):
    ConnectionCls = _Connection


class _TLSPool(HTTPSConnectionPool):
    ConnectionCls = _TLSConnection


_POOLS: Final = {"http": _Pool, "https": _TLSPool}


class LineAdapter(HTTPAdapter):
    """What a session of `requests` sends with, straight or through a proxy; it tries nothing twice."""

    def init_poolmanager(self, *args: Any, **options: Any) -> None:  # as in requests
        super().init_poolmanager(*args, socket_options=_SOCKET_OPTIONS, **options)
        self.poolmanager.pool_classes_by_scheme = _POOLS

    def proxy_manager_for(self, proxy: str, **options: Any) -> Any:  # as in requests
        manager = super().proxy_manager_for(proxy, socket_options=_SOCKET_OPTIONS, **options)
        manager.pool_classes_by_scheme = _POOLS
        return manager

    def build_response(self, req: requests.PreparedRequest, resp: BaseHTTPResponse) -> requests.Response:
        """Called with the head of an answer, before any of its body is read."""
        response = super().build_response(req, resp)
        response.raw = _Bounded(response.raw)
        return response


class _Bounded:
    """A body that is not read any further than any of Airtable's can go: `requests` itself reads one to its end."""

    def __init__(self, raw: HTTPResponse) -> None:
        self._raw = raw
        self.close = raw.close
        self.release_conn = raw.release_conn

    def stream(self, amount: int, decode_content: bool | None = None) -> Iterator[bytes]:
        size = 0
        while piece := self._raw.read1(amount, decode_content):  # what is there, and not all of `amount`
            size += len(piece)
            if size > LARGEST_ANSWER:
                self._refuse(f"an answer of more than {LARGEST_ANSWER >> 20} MiB")
            yield piece

    def _refuse(self, cause: str) -> NoReturn:
        self._raw.close()
        raise requests.RequestException(cause)
