"""How Airtable says no: its error bodies, and the faults that carry them.

Where sources disagree on a body, both forms are here and `ErrorForms` chooses. Statuses and types that no
source tells are marked as choices of the sandbox.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from app.sandbox.faults import Fault, reply
from app.sandbox.messages import WireResponse

if TYPE_CHECKING:
    from app.model import Json


class RateLimitForm(StrEnum):
    OBJECT = "error"
    """`{"error": {"type": …, "message": …}}`"""
    LIST = "errors"
    """`{"errors": [{"error": …, "message": …}]}`"""


class NotFoundForm(StrEnum):
    TEXT = "text"
    """`{"error": "NOT_FOUND"}`"""
    OBJECT = "object"
    """`{"error": {"type": "NOT_FOUND"}}`"""


class MissingRecordForm(StrEnum):
    MODEL = "model"
    """404 of the type `MODEL_ID_NOT_FOUND`."""
    NOT_FOUND = "not_found"
    """404 as for an unknown address."""


class ComputedForm(StrEnum):
    INVALID_VALUE = "invalid_value"
    """422 `INVALID_VALUE_FOR_COLUMN`."""
    READ_ONLY = "read_only"
    """422 `CANNOT_UPDATE_READONLY_FIELD`."""


@dataclass(frozen=True, slots=True)
class ErrorForms:
    """Which of the known forms of a body to answer with."""

    rate_limit: RateLimitForm = RateLimitForm.OBJECT
    not_found: NotFoundForm = NotFoundForm.TEXT
    missing_record: MissingRecordForm = MissingRecordForm.MODEL
    computed: ComputedForm = ComputedForm.INVALID_VALUE


class Refusal(Exception):
    """A request that is answered with an error, and has changed nothing."""

    def __init__(self, status: int, kind: str, message: str | None) -> None:
        super().__init__(f"{status} {kind}: {message}")
        self.status = status
        self.kind = kind
        self.message = message

    def response(self, forms: ErrorForms) -> WireResponse:
        return WireResponse.json(self.status, self._body(forms))

    def _body(self, forms: ErrorForms) -> Json:
        kind, message = self._form(forms)
        if kind in _BARE and not (kind == "NOT_FOUND" and forms.not_found is NotFoundForm.OBJECT):
            return {"error": kind}
        if kind in _LISTED or (kind == "RATE_LIMIT_REACHED" and forms.rate_limit is RateLimitForm.LIST):
            return {"errors": [{"error": kind, "message": message}]}
        return {"error": {"type": kind} if message is None else {"type": kind, "message": message}}

    def _form(self, forms: ErrorForms) -> tuple[str, str | None]:
        """The type and message by which this refusal goes, where it has two names."""
        if self.kind == _MISSING_RECORD and forms.missing_record is MissingRecordForm.NOT_FOUND:
            return "NOT_FOUND", None
        if self.kind == _COMPUTED and forms.computed is ComputedForm.INVALID_VALUE:
            return "INVALID_VALUE_FOR_COLUMN", self.message
        return self.kind, self.message


_COMPUTED = "CANNOT_UPDATE_READONLY_FIELD"
_MISSING_RECORD = "MODEL_ID_NOT_FOUND"
#: Types that stand alone, without a message, and types that come in a list of errors.
_BARE = frozenset({"NOT_FOUND", "BAD_REQUEST"})
_LISTED = frozenset({"PUBLIC_API_BILLING_LIMIT_EXCEEDED"})


# --- what is refused, and in which words ---


def unauthenticated() -> Refusal:
    return Refusal(401, "AUTHENTICATION_REQUIRED", "Authentication required")


def forbidden() -> Refusal:
    """Refuse a well-formed base or table id that is unknown, or a token that lacks a scope: one answer for all."""
    return Refusal(
        403,
        "INVALID_PERMISSIONS_OR_MODEL_NOT_FOUND",
        "Invalid permissions, or the requested model was not found. Check that both your user and your token have "
        "the required permissions, and that the model names and/or ids are correct.",
    )


def not_found() -> Refusal:
    return Refusal(404, "NOT_FOUND", None)


def record_not_found(record_id: str) -> Refusal:
    """Refuse a record that is named in the URL and is not there."""
    return Refusal(404, _MISSING_RECORD, f"Record {record_id} was not found")


def row_does_not_exist(record_id: str) -> Refusal:
    """Refuse a record that is named in a body or a list and is not there."""
    return Refusal(422, "ROW_DOES_NOT_EXIST", f"Record ID {record_id} does not exist in this table")


def bad_json() -> Refusal:
    """Refuse a body that is no JSON: 400 is documented, the body is this sandbox's choice."""
    return Refusal(400, "BAD_REQUEST", None)


def too_large() -> Refusal:
    """Refuse too large a body: 413 is documented, the type is this sandbox's choice."""
    return Refusal(413, "REQUEST_TOO_LARGE", "The request body is too large")


def url_too_long(limit: int) -> Refusal:
    """Refuse too long a URL: the limit is documented, the status and type are this sandbox's choice."""
    return Refusal(414, "INVALID_REQUEST_UNKNOWN", f"The URL is longer than {limit} characters")


def invalid_request(what: str = "parameter validation failed. Check your request data.") -> Refusal:
    return Refusal(422, "INVALID_REQUEST_UNKNOWN", f"Invalid request: {what}")


def invalid_records() -> Refusal:
    return Refusal(422, "INVALID_RECORDS", "You must provide an array of up to 10 record objects")


def unknown_field(name: str) -> Refusal:
    return Refusal(422, "UNKNOWN_FIELD_NAME", f'Unknown field name: "{name}"')


def invalid_value(name: str) -> Refusal:
    return Refusal(422, "INVALID_VALUE_FOR_COLUMN", f'Field "{name}" cannot accept the provided value')


def computed_field(name: str) -> Refusal:
    return Refusal(422, _COMPUTED, f'Field "{name}" cannot accept the provided value')


def unknown_option(option: str) -> Refusal:
    """Refuse a new select option, in the double quotes that Airtable really writes."""
    return Refusal(
        422,
        "INVALID_MULTIPLE_CHOICE_OPTIONS",
        f'Insufficient permissions to create new select option ""{option}""',
    )


def base_is_full(limit: int) -> Refusal:
    """Refuse a record too many for the plan: the limit is documented, the answer is this sandbox's choice."""
    return Refusal(422, "INVALID_REQUEST_UNKNOWN", f"This base holds its {limit} records; no more can be created")


def invalid_formula(why: str) -> Refusal:
    return Refusal(422, "INVALID_FILTER_BY_FORMULA", f"The formula for filtering records is invalid: {why}")


def iterator_gone() -> Refusal:
    return Refusal(422, "LIST_RECORDS_ITERATOR_NOT_AVAILABLE", "The iterator is no longer available")


def rate_limit_reached() -> Refusal:
    return Refusal(429, "RATE_LIMIT_REACHED", "Rate limit exceeded. Please try again in 30 seconds.")


def billing_limit_exceeded() -> Refusal:
    return Refusal(
        429,
        "PUBLIC_API_BILLING_LIMIT_EXCEEDED",
        "The monthly API call limit of this workspace has been reached.",
    )


# --- the same answers as faults, for tests that want one at a given moment ---


def rate_limited(form: RateLimitForm = RateLimitForm.OBJECT) -> Fault:
    """Answer 429 as if somebody else had used up the base's rate; the request has no effect."""
    return reply(rate_limit_reached().response(ErrorForms(rate_limit=form)), name="rate_limited")


def quota_exceeded() -> Fault:
    """Answer 429 as if the month's calls were used up; the request has no effect."""
    return reply(billing_limit_exceeded().response(ErrorForms()), name="quota_exceeded")
