from __future__ import annotations

import time

import pytest

from vmlab.errors import AgentError, AgentTimeout, WaitTimeout
from vmlab.guest.wait import seconds, until


def test_returns_what_the_predicate_returned() -> None:
    tries = iter([None, 0, "", "here"])
    assert until(lambda: next(tries), 5, "something") == "here"


def test_is_tried_at_least_once() -> None:
    assert until(lambda: True, 0, "something")


def test_timeout_carries_elapsed_and_the_last_evidence() -> None:
    with pytest.raises(WaitTimeout) as caught:
        until(
            lambda: False, 0.1, "port 80 to be open", evidence=lambda: "refused", machine="web", hint="look"
        )
    error = caught.value
    assert 0.1 <= error.evidence["elapsed"] < 2
    assert error.evidence["last"] == "refused"
    assert "port 80 to be open" in error.message
    assert error.hint == "look"


def test_some_errors_mean_not_yet() -> None:
    def fails() -> bool:
        raise AgentTimeout("no answer")

    with pytest.raises(WaitTimeout) as caught:
        until(fails, 0.05, "the agent", retry_on=AgentError)
    assert caught.value.evidence["last"] == "no answer"
    assert isinstance(caught.value.__cause__, AgentTimeout)
    with pytest.raises(AgentTimeout):
        until(fails, 5, "the agent")


def test_the_last_try_is_after_the_time_is_up() -> None:
    begin = time.monotonic()
    assert until(lambda: time.monotonic() - begin > 0.2, 0.2, "something", interval=5)


def test_seconds() -> None:
    assert [seconds(0.123), seconds(12.34), seconds(130.4)] == ["0.12 s", "12.3 s", "130 s"]
