"""Retry rules: whom the next route leaves out, and when a new session helps."""

from __future__ import annotations

from efedllm_client.jobs.retry import accused_by, needs_fresh_session, nodes_to_avoid


def test_a_complaint_is_about_whom_it_names() -> None:
    route = ["0xAa", "0xBb", "0xCc"]
    assert accused_by("the connection to node 0xbb broke", "0xAa", route) == {"0xBb"}
    assert accused_by("out of memory", "0xAa", route) == {"0xAa"}
    assert accused_by("node 0xaa is tired", "0xAa", route) == {"0xAa"}


def test_what_is_wrong_with_the_session_is_not_held_against_the_route() -> None:
    assert needs_fresh_session("payment-required")
    assert needs_fresh_session("session-not-open")
    assert not needs_fresh_session("peer-lost")


def test_retry_leaves_out_the_dead_then_the_accused_then_everyone() -> None:
    route = ["a", "b", "c"]
    assert nodes_to_avoid(route, {"b", "z"}, {"c"}) == {"b"}
    assert nodes_to_avoid(route, {}, {"c"}) == {"c"}
    assert nodes_to_avoid(route, {}, {}) == {"a", "b", "c"}
