"""Which run was probably meant: the slips that callers really make."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from app.policy.similar import MOST, Candidates, client_of, job_of, possible_clients, similar_runs

JOB = "251007-070457"
GUY = f"{JOB}-Guy-Wilson"
ANN = f"{JOB}-Ann"


def candidates(*, of_job: list[str] | None = None, of_client: list[str] | None = None) -> Candidates:
    latest = [*(of_job or []), *(of_client or [])]
    return Candidates(of_job or [], of_client or [], latest)


def test_a_client_named_twice_means_the_run_that_it_starts_with() -> None:
    assert similar_runs(f"{GUY}-Guy-Wilson", candidates(of_job=[ANN, GUY]))[0] == GUY


def test_the_bare_job_id_means_the_runs_of_the_job() -> None:
    assert similar_runs(JOB, candidates(of_job=[ANN, GUY])) == (ANN, GUY)
    many = [f"{JOB}-client{number}" for number in range(20)]
    assert similar_runs(JOB, candidates(of_job=many)) == tuple(many)


def test_a_part_of_the_clients_name_means_the_whole() -> None:
    assert similar_runs(f"{JOB}-Guy", candidates(of_job=[ANN, GUY]))[0] == GUY


def test_a_typo_means_the_closest_run_of_the_job() -> None:
    assert similar_runs(f"{JOB}-Guy-Wislon", candidates(of_job=[ANN, GUY]))[0] == GUY


def test_another_second_means_the_same_clients_run() -> None:
    assert similar_runs("251007-070458-Guy-Wilson", candidates(of_client=[GUY]))[0] == GUY


def test_nothing_is_guessed_where_nothing_is_near() -> None:
    assert similar_runs("quite-another-thing", Candidates([], [], [GUY, ANN])) == ()


def test_the_parts_of_a_run_id_are_told_apart() -> None:
    assert (job_of(GUY), client_of(GUY)) == (JOB, "Guy-Wilson")
    assert (job_of("hello"), client_of("hello")) == ("hello", None)
    assert client_of(JOB) is None
    assert possible_clients(GUY) == ("Guy-Wilson", "Wilson")
    assert possible_clients(f"{JOB}-Guy-Guy") == ("Guy-Guy", "Guy")
    assert possible_clients("my-job-Guy") == ("my-job-Guy", "job-Guy", "Guy")


NAMES = st.text(alphabet="abG-0125", min_size=1, max_size=20)


@given(NAMES, st.lists(NAMES, max_size=20), st.lists(NAMES, max_size=20))
def test_at_most_five_are_named_each_once_and_all_exist(missing: str, of_job: list[str], of_client: list[str]) -> None:
    found = similar_runs(missing, candidates(of_job=of_job, of_client=of_client))
    assert len(found) <= MOST
    assert len(set(found)) == len(found)
    assert set(found) <= {*of_job, *of_client}
