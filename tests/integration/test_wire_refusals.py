"""There is no way to the base: its name is not found, or the other side is not who it should be. Then there is one."""

from __future__ import annotations

import socket

import pytest

from tests.support.certificates import ANOTHERS, needs_openssl, tls_before
from tests.support.harness import AIRTABLE_KEY, Harness
from tests.support.watching import calls, rows, until

NAME = "airtable.test"
FAILED = "SELECT DISTINCT error FROM airtable_calls WHERE outcome = 'unknown'"
TRIES = "SELECT count(*) FROM airtable_calls WHERE outcome = 'unknown'"


def point_at(house: Harness, url: str) -> None:
    airtable = house.settings.airtable.model_copy(update={"endpoint_url": url})
    house.settings = house.settings.model_copy(update={"airtable": airtable})


async def work_without_a_way(house: Harness, says: str) -> str:
    """What comes is accepted and kept, the failure is said, and no key is told."""
    run_id = await house.kick_off()
    assert (await house.call("PATCH", f"/runs/{run_id}", {"add": {"posts_harvested": 7}})).status == 202
    await until(lambda: int(str(rows(house.store_path, TRIES)[0][0])) >= 3, timeout=30)
    ready = await house.call("GET", "/readyz", token=None)
    assert (ready.status, says in ready.text) == (503, True), ready.text
    assert all(says in str(error) and AIRTABLE_KEY not in str(error) for (error,) in rows(house.store_path, FAILED))
    assert rows(house.store_path, "SELECT count(*) FROM outbox WHERE state IN ('delivered', 'dead')") == [(0,)]
    assert house.airtable_server.log == []
    return run_id


async def assert_it_arrived(house: Harness, run_id: str) -> None:
    await house.synced()
    assert house.records()[run_id]["Total Posts Harvested"] == 7
    assert rows(house.store_path, "SELECT count(*) FROM errors") == [(0,)]
    assert all(call.upsert == (None in call.ids) for call in calls(house.airtable_server.log))


@pytest.mark.parametrize("code", [socket.EAI_NONAME, socket.EAI_AGAIN])
async def test_a_name_that_is_not_found_is_waited_for(
    house: Harness, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    find = socket.getaddrinfo
    is_found = False

    def look_up(host: str | bytes | None, *rest: object, **more: object) -> object:
        if host == NAME and not is_found:
            raise socket.gaierror(code, "the name is not known here")
        return find("127.0.0.1" if host == NAME else host, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    point_at(house, f"http://{NAME}:{house.airtable_server.port}")
    async with house.running():
        run_id = await work_without_a_way(house, "the name is not known here")
        is_found = True
        await assert_it_arrived(house, run_id)


async def test_what_does_not_speak_tls_gets_nothing_and_the_right_address_gets_it_all(house: Harness) -> None:
    right = house.airtable_server.url
    point_at(house, right.replace("http:", "https:"))
    async with house.running():
        run_id = await work_without_a_way(house, "SSL")
    point_at(house, right)
    async with house.running():
        await assert_it_arrived(house, run_id)


@pytest.fixture
def no_bundle(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the environment names a bundle, `requests` checks whatever it was told."""
    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)


@needs_openssl
@pytest.mark.usefixtures("no_bundle")
async def test_a_stranger_with_an_unknown_certificate_gets_nothing_until_it_is_trusted(
    house: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with tls_before(house.airtable_server.url, house.folder) as (url, certificate):
        point_at(house, url)
        async with house.running():
            run_id = await work_without_a_way(house, "CERTIFICATE_VERIFY_FAILED")
            monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate))
            await assert_it_arrived(house, run_id)


@needs_openssl
@pytest.mark.usefixtures("no_bundle")
async def test_who_is_trusted_by_another_name_gets_nothing(house: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    async with tls_before(house.airtable_server.url, house.folder, ANOTHERS) as (url, certificate):
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate))
        point_at(house, url)
        async with house.running():
            await work_without_a_way(house, "certificate is not valid for '127.0.0.1'")
