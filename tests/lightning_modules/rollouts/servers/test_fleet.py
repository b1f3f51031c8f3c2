"""Who is asked, how often, and who is left out, by servers that fail on request."""

import pytest

from lightning_modules.rollouts.servers import fleet as fleet_module
from lightning_modules.rollouts.servers.client import ServerFailure, ServerRefusal
from lightning_modules.rollouts.servers.fleet import Fleet


class Server:
    """Takes the place of a client; its answers are used up from the front."""

    def __init__(self, url, *answers):
        self.url, self.answers, self.timeouts = url, list(answers), []

    def state(self, timeout=None):
        self.timeouts.append(timeout)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


@pytest.fixture(autouse=True)
def pauses(monkeypatch):
    pauses = []
    monkeypatch.setattr(fleet_module.time, "sleep", pauses.append)
    return pauses


def failures(count, transient=True):
    return [ServerFailure(f"failure {number}", transient) for number in range(1, count + 1)]


@pytest.mark.parametrize("retries", [0, 1, 3])
def test_a_request_is_tried_as_often_as_allowed_with_growing_pauses(pauses, retries):
    fleet = Fleet([], retries, 0.0)
    assert fleet.attempt(Server("a", *failures(retries), "answer").state) == "answer"
    assert pauses == [0.1, 0.2, 0.4][:retries]
    with pytest.raises(ServerFailure, match=f"failure {retries + 1}"):
        fleet.attempt(Server("a", *failures(retries + 1), "answer").state)


@pytest.mark.parametrize("failure", [*failures(1, transient=False), ServerRefusal("no")])
def test_what_would_fail_again_is_not_tried_again(pauses, failure):
    with pytest.raises(type(failure)):
        Fleet([], 3, 0.0).attempt(Server("a", failure, "answer").state)
    assert not pauses


def test_servers_are_lost_and_come_back(caplog):
    first, second = Server("a", *failures(2), "back"), Server("b", 1, 2, 3)
    fleet = Fleet([first, second], 0, 0.0)
    for expected in ([1], [2]):
        assert fleet.on_all(lambda server: server.state()) == expected
        assert fleet.active == [second]
    assert fleet.lost == {"a": "failure 2"}
    assert fleet.on_all(lambda server: server.state()) == ["back", 3]
    assert (fleet.lost, fleet.losses, fleet.active) == ({}, 1, [first, second])
    assert [record.getMessage() for record in caplog.records] == [
        "failure 1; it is left out until it responds again.",
        "a is back and active again.",
    ]


def test_losses_count_on_from_the_number_that_the_ranks_agreed_on():
    first, second = Server("a"), Server("b")
    fleet = Fleet([first, second], 0, 0.0)
    fleet.lose(first, ServerFailure("gone"))
    fleet.lose(first, ServerFailure("gone"))
    assert (fleet.losses, fleet.newly_lost) == (1, {"a"})
    fleet.agree(["a"], 3)
    fleet.lose(second, ServerFailure("gone"))
    assert (fleet.losses, fleet.newly_lost) == (4, {"b"})


def test_a_refusal_reaches_the_caller():
    with pytest.raises(ServerRefusal, match="no"):
        Fleet([Server("a", ServerRefusal("no")), Server("b", 1)], 0, 0.0).on_all(lambda server: server.state())


def test_when_none_is_left_the_error_says_why():
    fleet = Fleet([Server("a", *failures(2)), Server("b", *failures(2))], 0, 0.0)
    with pytest.raises(RuntimeError, match=r"none of the 2 servers is left:\n  failure 1\n  failure 1\n.*serve`\.$"):
        fleet.on_all(lambda server: server.state())
    fleet.agree([], 0)
    with pytest.raises(RuntimeError, match=r"again; the run resumes from its last checkpoint\.$"):
        fleet.on_all(lambda server: server.state())


def test_the_start_of_a_server_is_waited_for_and_its_return_is_not(pauses):
    server = Server("a", *failures(2), "started", *failures(1), "there", "back")
    fleet = Fleet([server], 1, 60.0)
    assert fleet.state(server) == "started"
    assert pauses == [1.0, 1.0]
    fleet.agree([], 0)
    assert fleet.state(server) == "there"
    fleet.agree(["a"], 1)
    assert fleet.state(server) == "back"
    assert server.timeouts[-1] == 5.0
    assert fleet.lost == {"a": "lost to rank 0"}
