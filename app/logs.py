"""Structured logs on standard error: one fixed name an event, fields instead of prose, secrets cut out.

People at a terminal get coloured lines, machines get one JSON object a line.
"""

from __future__ import annotations

import contextlib
import logging
import sys
from typing import TYPE_CHECKING, Final

import structlog

if TYPE_CHECKING:
    from collections.abc import Sequence

    from structlog.typing import EventDict, FilteringBoundLogger, Processor, WrappedLogger

REDACTED: Final = "[redacted]"
_SECRET_NAMES: Final = ("authorization", "token", "secret", "api_key", "password", "cookie")


class Redaction:
    """Cuts secrets out of an event: every known value wherever it stands, and whatever a telling name carries."""

    def __init__(self, secrets: Sequence[str]) -> None:
        self._secrets = sorted(filter(None, secrets), key=len, reverse=True)

    def __call__(self, _logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
        return {name: self._named(name, value) for name, value in event.items()}

    def text(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, REDACTED)
        return text

    def _named(self, name: str, value: object) -> object:
        return REDACTED if name.lower().endswith(_SECRET_NAMES) else self._clean(value)

    def _clean(self, value: object) -> object:
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, dict):
            return {self.text(str(name)): self._named(str(name), one) for name, one in value.items()}
        if isinstance(value, list | tuple):
            return [self._clean(one) for one in value]
        if isinstance(value, bool | int | float) or value is None:
            return value
        return self.text(str(value))


class _Lines(structlog.WriteLogger):
    """Loses a line that standard error does not take (a full disk, a reader that went away): the work goes on."""

    def msg(self, message: str) -> None:
        with contextlib.suppress(OSError):
            super().msg(message)

    debug = info = warning = error = critical = msg


def configure_logs(secrets: Sequence[str], *, for_people: bool | None = None, quiet: bool = False) -> None:
    """Send our events and the libraries' to standard error in one form; `quiet` keeps all but the fatal ones back.

    Ours go there straight: by way of the standard library each would cost as much as the rest of a small request.
    """
    if for_people is None:
        for_people = sys.stderr.isatty()
    named: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
    ]
    written: list[Processor] = [
        structlog.processors.format_exc_info,
        Redaction(secrets),
        structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
        if for_people
        else structlog.processors.JSONRenderer(ensure_ascii=False),
    ]
    lines = _Lines(sys.stderr)
    structlog.configure(
        processors=[*named, *written],
        logger_factory=lambda *_names: lines,
        wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL if quiet else logging.INFO),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=named,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *written],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("app").setLevel(logging.CRITICAL if quiet else logging.INFO)  # the emulators' own


def get_logger(name: str) -> FilteringBoundLogger:
    logger: FilteringBoundLogger = structlog.get_logger(name)
    return logger
