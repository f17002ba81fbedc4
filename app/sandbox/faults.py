"""How a sandbox misbehaves: what is done to one request, and the switchboard that says to which.

Two things are independent, because they are in the world: whether the request took effect, and what its
sender gets to see. Nothing here knows of sockets, nor of Airtable and Apify.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from random import Random

    from app.sandbox.messages import WireRequest, WireResponse


@dataclass(frozen=True, slots=True)
class Reply:
    """Answer with this instead of what the backend says."""

    status: int
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, response: WireResponse) -> Reply:
        return cls(response.status, response.body, response.headers)


@dataclass(frozen=True, slots=True)
class Drop:
    """Close the TCP connection without an answer: the sender gets a connection error at once."""


@dataclass(frozen=True, slots=True)
class Hang:
    """Never answer, and keep the connection until either side closes it: the sender times out."""


@dataclass(frozen=True, slots=True)
class Delay:
    """Give the real answer, `seconds` late.

    With `apply=True` the request takes effect when it comes in; with `apply=False` only after the wait, even
    if its sender has given up by then: a write that lands late.
    """

    seconds: float


@dataclass(frozen=True, slots=True)
class Truncate:
    """Send the real answer's head, with its full Content-Length, and half of its body; then close."""


Then: TypeAlias = Reply | Drop | Hang | Delay | Truncate


@dataclass(frozen=True, slots=True)
class Fault:
    """What to do to one request.

    `apply` says whether the backend gets the request; `then` what its sender gets. `name` stands in the log
    of requests.
    """

    apply: bool
    then: Then
    name: str = ""

    def __post_init__(self) -> None:
        if isinstance(self.then, Truncate) and not self.apply:
            raise ValueError("Truncate cuts the backend's answer, so the backend must get the request: apply=True")
        if not self.name:
            object.__setattr__(self, "name", type(self.then).__name__.lower())


def reply(response: WireResponse, *, applied: bool = False, name: str = "reply") -> Fault:
    """Answer with `response`, whether the request took effect or not."""
    return Fault(applied, Reply.of(response), name)


def server_error(status: int = 500, retry_after: int | None = None, *, applied: bool = False) -> Fault:
    """Answer with a 5xx as a gateway sends it: no JSON, perhaps a `Retry-After` in seconds."""
    headers = {"Content-Type": "text/html; charset=utf-8"}
    if retry_after is not None:
        headers["Retry-After"] = str(retry_after)
    name = f"server_error_{status}{'_applied' if applied else ''}"
    return Fault(applied, Reply(status, b"<html><body>The server is unavailable.</body></html>", headers), name)


def dropped() -> Fault:
    """Close the connection without an answer; the request has no effect."""
    return Fault(apply=False, then=Drop(), name="dropped")


def applied_then_dropped() -> Fault:
    """Let the request take effect, and show its sender only a closed connection."""
    return Fault(apply=True, then=Drop(), name="applied_then_dropped")


def hung() -> Fault:
    """Never answer; the request has no effect."""
    return Fault(apply=False, then=Hang(), name="hung")


def applied_then_hang() -> Fault:
    """Let the request take effect and never answer: the sender's time-out does not tell the outcome."""
    return Fault(apply=True, then=Hang(), name="applied_then_hang")


def slow(seconds: float) -> Fault:
    """Let the request take effect at once, and give the real answer `seconds` later."""
    return Fault(apply=True, then=Delay(seconds), name="slow")


def applied_late(seconds: float) -> Fault:
    """Let the request take effect only after `seconds`, when its sender may have sent it again."""
    return Fault(apply=False, then=Delay(seconds), name="applied_late")


def truncated() -> Fault:
    """Let the request take effect, and keep back half of the answer's body."""
    return Fault(apply=True, then=Truncate(), name="truncated")


def odd_body(body: bytes, status: int = 200, *, applied: bool = True) -> Fault:
    """Answer with a 2xx whose body no client expects, whether the request took effect or not."""
    name = f"odd_body{'' if applied else '_not_applied'}"
    return Fault(applied, Reply(status, body, {"Content-Type": "application/json; charset=utf-8"}), name)


Plan: TypeAlias = "Callable[[WireRequest], Fault | None]"


def mixture(random: Random, weighted: Sequence[tuple[float, Fault]]) -> Plan:
    """Make a plan that gives each request one of the faults with its probability (0 to 1), or none.

    The same seed and the same order of requests give the same faults.
    """

    def plan(_: WireRequest) -> Fault | None:
        point = random.random()
        for probability, fault in weighted:
            if point < probability:
                return fault
            point -= probability
        return None

    return plan


@dataclass(slots=True)
class Rule:
    """One order to the switchboard, and how much of it is left."""

    fault: Fault
    method: str | None
    path_contains: str | None
    where: Callable[[WireRequest], bool] | None
    skip: int
    left: int | None

    def matches(self, request: WireRequest) -> bool:
        return (
            self.left != 0
            and (self.method is None or self.method == request.method)
            and (self.path_contains is None or self.path_contains in request.path)
            and (self.where is None or self.where(request))
        )

    def take(self) -> bool:
        """Count one matching request; True if the fault is for it."""
        if self.skip:
            self.skip -= 1
            return False
        if self.left is not None:
            self.left -= 1
        return True


class Faults:
    """The switchboard: which requests are treated badly, and how.

    Rules come first, in the order they were added: the first one whose turn it is decides. Then the `plan`,
    if there is one. To be used from the event loop of the server that asks it.
    """

    def __init__(self) -> None:
        self.plan: Plan | None = None
        self._rules: list[Rule] = []

    def add(
        self,
        fault: Fault,
        *,
        times: int | None = 1,
        method: str | None = None,
        path_contains: str | None = None,
        where: Callable[[WireRequest], bool] | None = None,
        after: int = 0,
    ) -> Rule:
        """Give `fault` to the next `times` requests that match (None: to all), letting `after` pass first."""
        rule = Rule(fault, method, path_contains, where, after, times)
        self._rules.append(rule)
        return rule

    def clear(self) -> None:
        """Forget every rule and the plan: from now on all goes well."""
        self._rules.clear()
        self.plan = None

    @property
    def pending(self) -> int:
        """How many rules have not yet been used up."""
        return sum(rule.left != 0 for rule in self._rules)

    def choose(self, request: WireRequest) -> Fault | None:
        """Find the fault for this request, and count it as given; None if it is to be treated well."""
        for rule in self._rules:
            if rule.matches(request) and rule.take():
                return rule.fault
        return self.plan(request) if self.plan is not None else None
