"""Certificates that nobody has signed, and servers that speak TLS with them."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import ssl
import subprocess
from typing import TYPE_CHECKING, Final

import pytest

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

needs_openssl = pytest.mark.skipif(
    shutil.which("openssl") is None, reason="needs the openssl command to make a certificate"
)
#: What a certificate says whose it is: this machine's, or somebody else's.
OURS: Final = "DNS:localhost,IP:127.0.0.1"
ANOTHERS: Final = "DNS:elsewhere.test,IP:192.0.2.1"


def make_certificate(folder: Path, names: str = OURS) -> tuple[Path, ssl.SSLContext]:
    """The certificate, and what a server needs to show it."""
    certificate, key = folder / "cert.pem", folder / "key.pem"
    made = ["-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    made += ["-addext", f"subjectAltName={names}", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(["openssl", "req", *made], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    return certificate, context


@contextlib.asynccontextmanager
async def tls_before(there: str, folder: Path, names: str = OURS) -> AsyncIterator[tuple[str, Path]]:
    """A server that speaks TLS, in front of the one at the URL `there` that does not; its own URL and certificate."""
    certificate, context = make_certificate(folder, names)
    host, _, port = there.removeprefix("http://").rpartition(":")

    async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        answers, asked = await asyncio.open_connection(host, int(port))
        await asyncio.gather(pour(reader, asked), pour(answers, writer))

    async def pour(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while some := await reader.read(65_536):
                writer.write(some)
                await writer.drain()
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()

    server = await asyncio.start_server(pass_on, "127.0.0.1", 0, ssl=context)
    try:
        yield f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}", certificate
    finally:
        server.close()
