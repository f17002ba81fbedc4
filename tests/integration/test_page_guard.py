"""Who may see the page and act on it: sessions, forms, origins, headers and addresses, over a real socket."""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING
from urllib.parse import quote, urlencode

import pytest

from app.sandbox.hand_clock import HandClock
from app.sandbox.messages import WireResponse
from app.sandbox.wire import reply
from app.web.session import FREE_ATTEMPTS, SESSION_SECONDS
from tests.support.harness import INTERNAL_TOKEN, Answered, Harness, harness
from tests.support.watching import raw_request, rows, send_raw, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping
    from pathlib import Path

RUN = "251007-070457-Guy-Wilson"
REFUSED = WireResponse.json(422, {"error": {"type": "INVALID_VALUE_FOR_COLUMN", "message": "no"}})
PAGES = ["/", "/page/runs", f"/page/runs/{RUN}", "/page/errors", "/page/errors/1", "/page/outbox", "/page/outbox/1"]
PAGES += ["/page/check", "/page/outbox/retry"]
FORMS = ["/page/errors/1/resolve", "/page/outbox/1/retry", "/page/outbox/retry", "/page/check", "/page/sign-out"]


@dataclass
class Visitor:
    """A browser without a face: keeps the cookie, says its origin, follows no redirect."""

    house: Harness
    cookie: str | None = None
    seen: list[Answered] = field(default_factory=list)

    @property
    def origin(self) -> str:
        assert self.house.service is not None
        return self.house.service.url

    async def ask(
        self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> Answered:
        assert self.house.http is not None
        sent = {**({"Cookie": self.cookie} if self.cookie else {}), **(headers or {})}
        async with self.house.http.request(
            method, self.origin + path, data=body, headers=sent, allow_redirects=False
        ) as answer:
            got = Answered(answer.status, dict(answer.headers), await answer.text())
        if "Set-Cookie" in got.headers:
            self.cookie = got.headers["Set-Cookie"].split(";")[0]
        self.seen.append(got)
        return got

    async def get(self, path: str) -> Answered:
        return await self.ask("GET", path)

    async def post(self, path: str, form: Mapping[str, str], **headers: str) -> Answered:
        sent = {"Origin": self.origin, "Content-Type": "application/x-www-form-urlencoded"}
        sent |= {name.replace("_", "-"): value for name, value in headers.items()}
        body = urlencode(form).encode()
        return await self.ask("POST", path, body, {name: value for name, value in sent.items() if value})

    async def sign_in(self, token: str = INTERNAL_TOKEN, name: str = "Ana", wanted: str = "/") -> Answered:
        return await self.post("/page/sign-in", {"token": token, "name": name, "next": wanted})

    async def csrf(self) -> str:
        found = re.search(r'name="csrf" value="([^"]+)"', (await self.get("/page/check")).text)
        assert found is not None
        return found[1]


@pytest.fixture
async def clocked(tmp_path: Path) -> AsyncIterator[Harness]:
    async with harness(tmp_path, clock=HandClock()) as made:
        yield made


@pytest.fixture
async def troubled(house: Harness) -> AsyncIterator[Harness]:
    """A service with a dead message (1) and its error (1), and a missing record (2)."""
    async with house.running():
        house.airtable_server.faults.add(reply(REFUSED))
        await house.kick_off(client_name="</td><script>alert(1)</script>\u202eevil\x07")
        await until(lambda: rows(house.store_path, "SELECT state FROM outbox") == [("dead",)])
        await house.call("PATCH", "/runs/nobody", {"add": {"posts_scored": 1}})
        yield house


def untouched(house: Harness) -> bool:
    return rows(house.store_path, "SELECT state FROM outbox UNION ALL SELECT state FROM errors") == [
        ("dead",), ("open",), ("open",),
    ] and rows(house.store_path, "SELECT count(*) FROM decisions") == [(0,)]  # fmt: skip


# Closed by default ----------------------------------------------------------------------------------------------


async def test_nothing_is_shown_or_done_without_a_session(troubled: Harness) -> None:
    someone = Visitor(troubled)
    await someone.sign_in()
    whole = someone.cookie
    assert whole is not None
    body, _, signature = whole.partition("=")[2].partition(".")
    forged = (
        base64.urlsafe_b64encode(base64.urlsafe_b64decode(body + "==").replace(b"Ana", b"Bob")).decode().rstrip("=")
    )
    cookies = [
        None,
        "runrecords=",
        f"runrecords={body}",
        f"runrecords={forged}.{signature}",
        f"runrecords={body}.AAAA",
        f"runrecords={body}",
        f"runrecords={body}==.{signature}",
    ]
    cookies += [
        f"runrecords={INTERNAL_TOKEN}",
        f"runrecords={body}.{signature}.x",
        "runrecords=" + "A" * 5000,
        f"x{whole}",
    ]
    for cookie in cookies:
        nobody = Visitor(troubled, cookie)
        for path in PAGES:
            answer = await nobody.get(f"{path}?token={INTERNAL_TOKEN}")
            assert answer.status == 303, (cookie, path)
            assert answer.headers["Location"].startswith("/page/sign-in?next=")
            assert "nobody" not in answer.text
        for path in FORMS:
            nobody.cookie = cookie
            assert (await nobody.post(path, {"csrf": "x"})).status == 403, (cookie, path)
    assert (
        await Visitor(troubled).ask("GET", "/", headers={"Authorization": f"Bearer {INTERNAL_TOKEN}"})
    ).status == 303
    assert untouched(troubled)


async def test_the_cookie_tells_no_secret_and_goes_nowhere_else(house: Harness) -> None:
    async with house.running():
        one = Visitor(house)
        answer = await one.sign_in(name="  Ana \u202e\x00 Petrov\n" + "x" * 100)
        assert (answer.status, answer.headers["Location"]) == (303, "/")
        set_cookie = answer.headers["Set-Cookie"]
        assert {"HttpOnly", "SameSite=Strict", "Path=/"} <= set(set_cookie.split("; "))
        assert "Secure" not in set_cookie
        plain = base64.urlsafe_b64decode(set_cookie.partition("=")[2].partition(".")[0] + "==")
        assert INTERNAL_TOKEN not in set_cookie + plain.decode()
        assert f'"Ana Petrov {"x" * 49}"'.encode() in plain
        assert (await one.get("/")).status == 200
    https = house.settings.server.model_copy(update={"public_url": "https://runs.example.com"})
    house.settings = house.settings.model_copy(update={"server": https})
    async with house.running():
        one = Visitor(house)
        set_cookie = (await one.sign_in()).headers["Set-Cookie"]
        assert set_cookie.startswith("__Host-runrecords=")
        assert "Secure" in set_cookie.split("; ")
        # A proxy may say another Host than the browser's: public_url is our origin too, and nothing else is.
        csrf = await one.csrf()
        for origin, status in (("https://runs.example.com.evil.example", 403), ("https://runs.example.com", 303)):
            assert (await one.post("/page/check", {"csrf": csrf}, Origin=origin)).status == status


async def test_a_session_ends_with_its_time_its_sign_out_and_its_token(clocked: Harness) -> None:
    clock = clocked.sources.clock
    assert isinstance(clock, HandClock)
    clocked.secrets = replace(clocked.secrets, internal_tokens=("old-one", "new-one"))
    async with clocked.running():
        early, leaving, old, new = (Visitor(clocked) for _ in range(4))
        await early.sign_in("old-one")
        clock.pass_time(SESSION_SECONDS - 1)
        assert (await early.get("/")).status == 200
        clock.pass_time(1)
        assert (await early.get("/")).status == 303
        await leaving.sign_in("new-one")
        assert (await leaving.post("/page/sign-out", {"csrf": await leaving.csrf()})).headers[
            "Location"
        ] == "/page/sign-in"
        assert (await leaving.get("/")).status == 303  # though the cookie was kept
        await old.sign_in("old-one")
        await new.sign_in("new-one")
        assert [(await one.get("/")).status for one in (old, new)] == [200, 200]
    clocked.secrets = replace(clocked.secrets, internal_tokens=("new-one",))
    async with clocked.running():
        assert [(await one.get("/")).status for one in (old, new)] == [303, 200]


async def test_tokens_are_not_to_be_guessed(clocked: Harness, capsys: pytest.CaptureFixture[str]) -> None:
    clock = clocked.sources.clock
    assert isinstance(clock, HandClock)
    async with clocked.running():
        one = Visitor(clocked)
        guesses = ["", "wrong", INTERNAL_TOKEN[:-1], INTERNAL_TOKEN + "x", INTERNAL_TOKEN.upper()]
        assert len(guesses) == FREE_ATTEMPTS
        for guess in guesses:
            answer = await one.sign_in(guess)
            assert (answer.status, "Set-Cookie" in answer.headers) == (403, False), guess
        refused = await one.sign_in()
        assert (refused.status, refused.headers["Retry-After"], "Set-Cookie" in refused.headers) == (429, "1", False)
        clock.pass_time(1)
        assert (await one.sign_in("wrong")).status == 403
        clock.pass_time(1)
        assert (await one.sign_in()).status == 429  # twice as long now
        clock.pass_time(1)
        assert (await one.sign_in()).status == 303
    said = capsys.readouterr().out
    assert said.count("page.sign_in_failed") == FREE_ATTEMPTS + 1
    assert INTERNAL_TOKEN[:-1] not in said


async def test_on_this_machine_it_is_open_at_once_to_no_other_name(house: Harness) -> None:
    house.secrets = replace(house.secrets, internal_tokens=())
    async with house.running():
        one = Visitor(house)
        assert (await one.get("/")).status == 200
        assert one.cookie is not None
        await one.sign_in(token="", name="Ana")
        assert "Ana" in (await one.get("/")).text
        for path in [*PAGES[:2], "/page/sign-in"]:
            assert (await one.ask("GET", path, headers={"Host": "evil.example"})).status == 403
        answer = await one.post(
            "/page/check", {"csrf": await one.csrf()}, Host="evil.example", Origin="http://evil.example"
        )
        assert answer.status == 403
        assert rows(house.store_path, "SELECT count(*) FROM decisions") == [(0,)]
        assert (await one.post("/page/check", {"csrf": await one.csrf()})).status == 303
        assert rows(house.store_path, "SELECT action, who FROM decisions") == [("check", "Ana")]


# Forms ----------------------------------------------------------------------------------------------------------


async def test_a_form_is_taken_only_from_its_own_session_and_origin(troubled: Harness) -> None:
    one, other = Visitor(troubled), Visitor(troubled)
    await one.sign_in()
    await other.sign_in()
    csrf, foreign = await one.csrf(), await other.csrf()
    assert csrf != foreign
    strange: list[tuple[dict[str, str], dict[str, str], int]] = [
        ({}, {}, 403),
        ({"csrf": ""}, {}, 403),
        ({"csrf": foreign}, {}, 403),
        ({"csrf": csrf[:-2]}, {}, 403),
        ({"csrf": "é\ud800".encode("utf-8", "surrogatepass").decode("latin-1")}, {}, 403),
        ({"csrf": csrf}, {"Origin": ""}, 403),
        ({"csrf": csrf}, {"Origin": "null"}, 403),
        ({"csrf": csrf}, {"Origin": "http://evil.example"}, 403),
        ({"csrf": csrf}, {"Origin": f"{one.origin}.evil.example"}, 403),
        ({"csrf": csrf}, {"Origin": "http://127.0.0.1"}, 403),
        ({"csrf": csrf}, {"Origin": "http://["}, 403),
        ({"csrf": csrf}, {"Sec_Fetch_Site": "cross-site"}, 403),
        ({"csrf": csrf}, {"Sec_Fetch_Site": "same-site"}, 403),
        ({"csrf": csrf}, {"Content_Type": "text/plain"}, 415),
        ({"csrf": csrf}, {"Content_Type": "application/json"}, 415),
    ]
    for form, headers, status in strange:
        for path in FORMS:
            assert (await one.post(path, form, **headers)).status == status, (form, headers, path)
    assert (await one.sign_in("x", wanted="/")).status == 403
    assert (await one.post("/page/sign-in", {"token": INTERNAL_TOKEN}, Origin="http://evil.example")).status == 403
    for path in FORMS:
        assert (await one.ask("GET", f"{path}?csrf={csrf}")).status in {200, 404, 405}
    assert untouched(troubled)
    assert (await one.get("/")).status == 200


async def test_what_is_done_is_kept_with_who_and_when(troubled: Harness) -> None:
    one = Visitor(troubled)
    await one.sign_in(name="Ana <b>")
    csrf = await one.csrf()
    note = "it was <script>renamed</script>"
    answer = await one.post("/page/errors/2/resolve", {"csrf": csrf, "note": note, "discard": "yes"})
    assert answer.headers["Location"] == "/page/errors/2?done=resolved"
    shown = (await one.get(answer.headers["Location"])).text
    assert "Ana &lt;b&gt;" in shown
    assert "it was &lt;script&gt;renamed&lt;/script&gt;" in shown
    assert "/page/runs/nobody" not in shown  # which is still no run
    assert f"/page/runs/{RUN}" in (await one.get("/page/errors/1")).text
    again = await one.post("/page/errors/2/resolve", {"csrf": csrf})
    assert (again.status, "resolved already" in again.text) == (409, True)
    answer = await one.post("/page/outbox/1/retry", {"csrf": csrf})
    assert answer.headers["Location"] == "/page/outbox/1?done=retried"
    await troubled.synced()
    assert (await one.post("/page/outbox/1/retry", {"csrf": csrf})).status == 409
    assert (await one.post("/page/errors/1/resolve", {"csrf": csrf, "note": "x" * 2001})).status == 400
    assert rows(troubled.store_path, "SELECT action, who, run_id, message_id, error_id, note FROM decisions") == [
        ("resolve", "Ana <b>", "nobody", None, 2, note),
        ("retry", "Ana <b>", RUN, 1, None, None),
    ]
    assert rows(troubled.store_path, "SELECT state FROM held_updates") == [("discarded",)]
    timeline = "SELECT what, detail FROM run_timeline WHERE run_id = ? AND what = 'retry asked for'"
    assert rows(troubled.store_path, timeline, RUN) == [("retry asked for", "message 1, by Ana <b>")]


async def test_all_of_one_kind_is_retried_and_what_is_resolved_stays_held_unless_discarded(troubled: Harness) -> None:
    one = Visitor(troubled)
    await one.sign_in()
    csrf = await one.csrf()
    await one.post("/page/outbox/retry", {"csrf": csrf, "kind": "record_deleted"})
    assert rows(troubled.store_path, "SELECT state FROM outbox") == [("dead",)]
    answer = await one.post("/page/outbox/retry", {"csrf": csrf, "kind": ""})
    assert answer.headers["Location"] == "/page/outbox?done=all_retried"
    await troubled.synced()
    assert rows(troubled.store_path, "SELECT state FROM outbox") == [("delivered",)]
    await one.post("/page/errors/2/resolve", {"csrf": csrf, "discard": "no"})
    assert rows(troubled.store_path, "SELECT state FROM held_updates") == [("held",)]
    assert rows(troubled.store_path, "SELECT action, who FROM decisions") == [("retry", "Ana"), ("resolve", "Ana")]


async def test_the_outbox_says_which_messages_it_shows_and_keeps_to_them(troubled: Harness) -> None:
    one = Visitor(troubled)
    await one.sign_in()
    for path in ("/page/outbox", "/page/outbox?state=&kind=create"):
        assert "What is not in Airtable yet" in (await one.get(path)).text, path
    await troubled.call("POST", "/outbox/retry", {})
    await troubled.synced()
    assert "1, create" not in (await one.get("/page/outbox?state=&kind=create")).text
    shown = (await one.get("/page/outbox?state=any&kind=create&cursor=99")).text
    assert "1, create" in shown
    assert '<option value="any" selected>' in shown
    assert "/page/outbox?state=any&amp;kind=create" in shown  # the link to the newest is of the same choice


async def test_what_a_call_does_is_kept_without_a_name(troubled: Harness) -> None:
    await troubled.call("POST", "/outbox/retry", {})
    await troubled.call("POST", "/errors/2/resolve", {"note": "seen"})
    assert rows(troubled.store_path, "SELECT action, who, note FROM decisions") == [
        ("retry", None, None), ("resolve", None, "seen"),
    ]  # fmt: skip


# Answers --------------------------------------------------------------------------------------------------------


async def test_every_answer_is_fenced_in_and_nothing_written_by_others_is_markup(troubled: Harness) -> None:
    one = Visitor(troubled)
    await one.get("/page/sign-in")
    await one.sign_in()
    odd = quote("<script>alert(2)</script>")
    more = [
        f"/page/runs?client_id={odd}&cursor={odd}&sync={odd}",
        f"/page/runs/{odd}",
        "/page/errors/x",
        f"/?span={odd}",
    ]
    more += [f"/?done={odd}", f"/page/outbox?state={odd}&run_id={odd}", "/page/errors/99", "/page/outbox/" + "9" * 40]
    for path in [
        *PAGES,
        *more,
        "/page/elsewhere",
        "/page/static/page.css",
        "/page/static/page.js",
        "/page/static/icon.svg",
    ]:
        await one.get(path)
    await one.post("/page/check", {"csrf": "wrong"})
    for answer in one.seen:
        policy = answer.headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'none'; ")
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Referrer-Policy"] == "same-origin"
        assert answer.headers["Cache-Control"] in {"no-store", "no-cache"}
        assert not re.search(r"<script>|\son\w+=|\sstyle=|<style|javascript:|\u202e|\x07", answer.text)
        assert not re.search(r"(src|href|action)=.(https?:)?//", answer.text)
        assert INTERNAL_TOKEN not in answer.text
        if "page.css" not in answer.text and answer.status != 303:
            assert answer.headers["Content-Type"].split(";")[0] in {"text/css", "text/javascript", "image/svg+xml"}
    assert [answer.status for answer in one.seen if answer.status >= 500] == []


async def test_a_sign_in_leads_to_a_page_of_ours_and_nowhere_else(house: Harness) -> None:
    async with house.running():
        one = Visitor(house)
        for wanted in ("/page/runs?sync=failed", "/"):
            assert (await one.sign_in(wanted=wanted)).headers["Location"] == wanted
        already = await one.get("/page/sign-in?next=/page/runs")
        assert (already.status, already.headers["Location"]) == (303, "/page/runs")
        assert (await one.get("/page/sign-in?next=//[x")).headers["Location"] == "/"
        for wanted in (
            "//evil.example",
            "https://evil.example/",
            "/\\evil.example",
            "/page/\\\\evil",
            "javascript:alert(1)",
            "//[x",
            "",
        ):
            assert (await one.sign_in(wanted=wanted)).headers["Location"] == "/", wanted
        answer = await one.sign_in(wanted="/page/runs\r\nSet-Cookie: a=b")
        assert (answer.headers["Location"], "a=b" in str(answer.headers)) == ("/", False)
        answer = await one.get("/page/runs?x=%0d%0aSet-Cookie:%20a=b")
        assert "a=b" not in str(answer.headers.get("Set-Cookie"))


async def test_no_file_but_the_three_is_given_out(house: Harness) -> None:
    async with house.running():
        assert house.service is not None
        for path in (
            b"/page/static/../page.py",
            b"/page/static/..%2fpage.py",
            b"/page/static/%2e%2e/page.py",
            b"/page/static/",
        ):
            answer = await send_raw(house.service.url, raw_request(b"GET", path))
            assert answer.status == 404, path
            assert "import" not in answer.body
