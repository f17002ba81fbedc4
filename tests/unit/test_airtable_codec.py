"""Airtable's wire as pure functions: what is sent for a claim, and what every answer means."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import TYPE_CHECKING

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from app.airtable_codec import (
    decode_described,
    decode_error_body,
    decode_failure,
    decode_identity,
    decode_listed,
    decode_written,
    records_of,
)
from app.config import Settings
from app.logs import Redaction
from app.model import ErrorKind, Json
from app.policy.delivery import (
    Claim,
    ClaimedRun,
    Denied,
    QuotaExhausted,
    RateLimited,
    Refused,
    Unknown,
    Waiting,
    Written,
)
from tests.support.examples import examples

if TYPE_CHECKING:
    from collections.abc import Callable

    from app.fields import Fold
    from app.policy.delivery import Answer

REGISTRY = Settings().registry()
NO_SECRETS = Redaction([])
REC = "recAAAAAAAAAAAAAA"
#: None of these can be kept, or be asked for again.
ODD_IDS = [
    "",
    "rec",
    "\ud800",
    "rec\ud80000000000000000",
    REC + "\n",
    REC + "A",
    f" {REC}",
    "tblAAAAAAAAAAAAAA",
    "A" * 10**6,
]


def claim(*runs: tuple[str, str | None, Fold], creating: bool) -> Claim:
    claimed = tuple(
        ClaimedRun(run_id, record_id, 10, 0, (Waiting(1, tuple(values), 1),), values)
        for run_id, record_id, values in runs
    )
    return Claim(1, creating, claimed)


CREATE = claim(("j-a", None, {"status": "Running"}), ("j-b", None, {}), creating=True)
UPDATE = claim(("j-a", REC, {"status": "Failed"}), creating=False)


# Requests


def test_a_create_carries_its_run_id_and_no_record_id() -> None:
    wire = [record.to_wire() for record in records_of(CREATE, REGISTRY)]
    assert wire == [{"fields": {"Status": "Running", "Run ID": "j-a"}}, {"fields": {"Run ID": "j-b"}}]


def test_an_update_carries_its_record_id_and_only_what_changed() -> None:
    wire = [record.to_wire() for record in records_of(UPDATE, REGISTRY)]
    assert wire == [{"id": REC, "fields": {"Status": "Failed"}}]


def test_values_are_written_as_json_writes_them_and_unknown_fields_left_out() -> None:
    """A field that a later configuration no longer has must not make Airtable refuse what else waits."""
    values: Fold = {"total_api_cost": Decimal("0.30"), "posts_harvested": 3, "end_time": None, "was_once": "x"}
    wire = records_of(claim(("j-a", REC, values), creating=False), REGISTRY)[0].to_wire()
    assert wire == {"id": REC, "fields": {"Total API Cost": 0.3, "Total Posts Harvested": 3, "End Time": None}}
    assert json.loads(json.dumps(wire)) == wire


# Answers that say yes


def written(answer: Json, of: Claim = CREATE) -> Answer:
    return decode_written(of, answer, REGISTRY)


def test_the_ids_of_created_records_are_found_by_their_run_id_in_any_order() -> None:
    ids = {"b": "recBBBBBBBBBBBBBB", "a": REC}
    records: list[Json] = [
        {"id": id_, "fields": {"Run ID": f"j-{name}"}, "createdTime": "x"} for name, id_ in ids.items()
    ]
    answer = written({"records": records, "createdRecords": [REC], "updatedRecords": []})
    assert answer == Written({"j-a": REC, "j-b": "recBBBBBBBBBBBBBB"})


def test_an_update_is_written_when_the_answer_names_its_record() -> None:
    assert written({"records": [{"id": REC, "fields": {}}]}, UPDATE) == Written({"j-a": REC})
    assert written({"records": [{"id": "recOther000000000", "fields": {}}]}, UPDATE) == Written({})
    assert written({"records": []}, UPDATE) == Written({})


@pytest.mark.parametrize(
    "body",
    [
        *(None, [], {}, "OK", 7, True, {"error": "NOT_FOUND"}, {"records": "told-to-nobody"}),
        *({"records": None}, {"records": {}}, {"records": [None]}, {"records": [{"id": 5}]}),
        *({"records": [{"fields": {}}]}, {"records": [{"id": REC, "fields": []}]}),
        *({"records": [{"id": odd, "fields": {"Run ID": "j-a"}}]} for odd in ODD_IDS),
    ],
)
def test_a_yes_that_makes_no_sense_leaves_the_outcome_unknown(body: Json) -> None:
    for of in (CREATE, UPDATE):
        answer = written(body, of)
        assert isinstance(answer, Unknown)
        assert answer.status == 200
        assert "told-to-nobody" not in answer.cause  # what it says instead may be a secret of ours


def column(**more: Json) -> Json:
    return {"name": "x", "type": "y", **more}


def table(*fields: Json) -> Json:
    return {"id": "tblA", "name": "T", "fields": [*fields]}


@pytest.mark.parametrize(
    ("decode", "sound", "most"),
    [
        pytest.param(lambda many: decode_listed({"records": many}), {"id": REC}, 100, id="a page"),
        pytest.param(lambda many: decode_written(UPDATE, {"records": many}, REGISTRY), {"id": REC}, 10, id="a write"),
        pytest.param(lambda many: decode_described({"tables": many}, "T"), table(), 10_000, id="tables"),
        pytest.param(lambda many: decode_described({"tables": [table(*many)]}, "T"), column(), 10_000, id="columns"),
        pytest.param(
            lambda many: decode_described({"tables": [table(column(options={"choices": many}))]}, "T"),
            {"name": "x"},
            10_000,
            id="choices",
        ),
        pytest.param(lambda many: decode_identity({"body": {"id": "usr", "scopes": many}}), "x", 10_000, id="scopes"),
    ],
)
def test_an_answer_is_read_to_its_first_flaw_and_no_further_than_any_of_airtables_goes(
    decode: Callable[[list[Json]], object], sound: Json, most: int
) -> None:
    assert not isinstance(decode([sound] * most), Unknown)
    too_many = decode([sound] * (most + 1))
    assert isinstance(too_many, Unknown)
    assert f"at most {most} items" in too_many.cause
    flawed = decode([None] * (most + 1))
    assert isinstance(flawed, Unknown)
    assert "at most" not in flawed.cause  # that would have been found out only after all the flaws before it


# Answers that say no


def failure(status: int, body: object, headers: dict[str, str] | None = None) -> Answer:
    octets = body if isinstance(body, bytes) else json.dumps(body).encode()
    return decode_failure(status, headers or {}, octets, REGISTRY, NO_SECRETS)


def error(kind: str, message: str) -> list[Json]:
    """The shapes in which sources show one error."""
    return [{"error": {"type": kind, "message": message}}, {"errors": [{"error": kind, "message": message}]}]


def test_a_rate_limit_is_one_in_every_shape() -> None:
    for body in [
        *error("RATE_LIMIT_REACHED", "wait"),
        {"error": "RATE_LIMIT_REACHED"},
        b"",
        b"slow down",
        b"<html>",
        None,
        5,
    ]:
        assert isinstance(failure(429, body), RateLimited), body


def test_the_monthly_quota_is_told_apart_from_the_rate() -> None:
    for body in [*error("PUBLIC_API_BILLING_LIMIT_EXCEEDED", "month"), {"error": "PUBLIC_API_BILLING_LIMIT_EXCEEDED"}]:
        answer = failure(429, body)
        assert isinstance(answer, QuotaExhausted), body
        assert "PUBLIC_API_BILLING_LIMIT_EXCEEDED" in answer.cause


def test_a_token_base_or_table_that_is_wrong_blames_no_record() -> None:
    for status, body in (
        (401, error("AUTHENTICATION_REQUIRED", "Authentication required")[0]),
        (403, error("INVALID_PERMISSIONS_OR_MODEL_NOT_FOUND", "Invalid permissions")[0]),
        (404, {"error": "NOT_FOUND"}),
        (404, {"error": {"type": "NOT_FOUND"}}),
    ):
        answer = failure(status, body)
        assert isinstance(answer, Denied), body
        assert answer.status == status


def test_an_answer_of_a_stranger_on_the_way_blames_no_record() -> None:
    """A proxy's page, whatever its status: taken for a refusal it would kill every message that it met."""
    for status in (400, 401, 402, 403, 404, 405, 407, 407, 409, 410, 414, 418, 421, 431, 451):
        for body in (b"<html>Pay at the counter</html>", b"", b"[]", b"{}", b'{"error": null}'):
            answer = failure(status, body)
            assert isinstance(answer, Unknown), (status, body)
            assert answer.is_outage
            assert "not Airtable's" in answer.cause
    for status in (402, 407):  # these are of the account and of the way, in whatever shape they come
        assert isinstance(failure(status, error("PAYMENT_REQUIRED", "Pay")[0]), Denied)


def test_what_the_request_itself_meets_is_a_refusal_whoever_says_it() -> None:
    """What is too large on the way is too large the next time, too: alone it dies, and the others go on."""
    for status in (413, 422):
        assert isinstance(failure(status, b"<html>Request Entity Too Large</html>"), Refused)


REFUSALS: list[tuple[int, str, str, ErrorKind, str | None, str | None]] = [
    (422, "INVALID_REQUEST_UNKNOWN", "Invalid request", ErrorKind.REJECTED, None, None),
    (422, "UNKNOWN_FIELD_NAME", 'Unknown field name: "Status"', ErrorKind.REJECTED, None, "status"),
    (422, "UNKNOWN_FIELD_NAME", 'Unknown field name: "Nobody\'s"', ErrorKind.REJECTED, None, None),
    (
        422,
        "INVALID_VALUE_FOR_COLUMN",
        'Field "Total Posts Harvested" cannot accept the provided value',
        ErrorKind.REJECTED,
        None,
        "posts_harvested",
    ),
    (
        422,
        "INVALID_MULTIPLE_CHOICE_OPTIONS",
        'Insufficient permissions to create new select option ""x""',
        ErrorKind.REJECTED,
        None,
        None,
    ),
    (422, "CANNOT_UPDATE_READONLY_FIELD", 'Field "Status" is computed', ErrorKind.REJECTED, None, "status"),
    (422, "ROW_DOES_NOT_EXIST", f"Record ID {REC} does not exist in this table", ErrorKind.RECORD_DELETED, REC, None),
    (404, "MODEL_ID_NOT_FOUND", f"Record {REC} was not found", ErrorKind.RECORD_DELETED, REC, None),
    (
        422,
        "INVALID_REQUEST_UNKNOWN",
        "Invalid request: more than one record matches the fields to merge on",
        ErrorKind.DUPLICATE_RECORD,
        None,
        None,
    ),
    (422, "INVALID_RECORDS", "You must provide an array of up to 10 record objects", ErrorKind.REJECTED, None, None),
    (413, "REQUEST_TOO_LARGE", "too large", ErrorKind.REJECTED, None, None),
    (400, "BAD_REQUEST", "", ErrorKind.REJECTED, None, None),
]


@pytest.mark.parametrize(("status", "kind", "message", "expected", "record_id", "field"), REFUSALS)
def test_a_refusal_names_its_kind_and_what_it_is_about(
    status: int, kind: str, message: str, expected: ErrorKind, record_id: str | None, field: str | None
) -> None:
    for body in error(kind, message):
        answer = failure(status, body)
        assert isinstance(answer, Refused)
        assert (answer.status, answer.kind, answer.record_id, answer.field) == (status, expected, record_id, field)
        assert kind in answer.cause
        assert message in answer.cause


def test_a_5xx_leaves_the_outcome_unknown_and_says_when_to_come_back() -> None:
    for status in (500, 502, 503, 504, 408):
        for body in (b"", b"<html>", {"error": {"type": "SERVER_ERROR", "message": "x"}}):
            assert isinstance(failure(status, body), Unknown)
    for value, seconds in (("3", 3.0), ("0", 0.0), ("", None), ("soon", None), ("-1", None), ("1.5", None)):
        answer = failure(503, b"", {"Retry-After": value})
        assert isinstance(answer, Unknown)
        assert answer.retry_after == seconds


def test_a_retry_after_beyond_all_reason_is_cut_down() -> None:
    """A date in the year 300,000 would overflow, and end the loop."""
    for value in ("9" * 12, "9" * 400):
        answer = failure(503, b"", {"Retry-After": value})
        assert isinstance(answer, Unknown)
        assert answer.retry_after is not None
        assert answer.retry_after <= 86_400


def test_a_cause_is_kept_short() -> None:
    for body in (
        b"x" * 100_000,
        *error("T", "m" * 100_000),
        {"error": {"type": "T" * 100_000}},
        {"error": "T" * 100_000},
    ):
        answer = failure(422, body)
        assert isinstance(answer, Refused)
        assert len(answer.cause) <= 500


texts = st.text(st.characters(codec=None), max_size=20) | st.just(REC) | st.sampled_from(ODD_IDS)
json_values: st.SearchStrategy[Json] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["error", "errors", "type", "message", "records", "id", "fields"]), inner, max_size=4
        )
    ),
    max_leaves=15,
)
bodies = st.binary(max_size=100) | json_values.map(lambda value: json.dumps(value).encode())


@given(status=st.integers(100, 999), body=bodies, retry_after=st.none() | st.text(max_size=20))
@example(status=422, body=b"[" * 100_000, retry_after=None)
@example(status=429, body=b"9" * 5_000, retry_after="9" * 500)
@example(status=422, body=rb'{"error": {"type": "T", "message": "\ud800"}}', retry_after=None)
@example(status=422, body=b'{"errors": ""}', retry_after=None)
@example(status=422, body=b'{"error": {"type": ""}}', retry_after=None)
@example(status=503, body=b'{"errors": []}', retry_after="\u0663")
@settings(max_examples=examples(200), deadline=None)
def test_any_status_and_body_decode_to_an_answer(status: int, body: bytes, retry_after: str | None) -> None:
    headers = {} if retry_after is None else {"Retry-After": retry_after}
    answer = decode_failure(status, headers, body, REGISTRY, NO_SECRETS)
    assert isinstance(answer, Refused | RateLimited | QuotaExhausted | Denied | Unknown)
    assert len(answer.cause.encode()) < 3_000  # and it can be stored
    assert decode_error_body(body, status).type


@given(answer=json_values)
@settings(max_examples=examples(150), deadline=None)
def test_any_yes_decodes_to_an_answer(answer: Json) -> None:
    for of in (CREATE, UPDATE):
        said = decode_written(of, answer, REGISTRY)
        assert isinstance(said, Written | Unknown)
        assert not isinstance(said, Written) or set(said.record_ids.values()) <= {REC}
