from protocol.messages import Load
from worker.reported.uncounted import UncountedRequests

IDLE = Load(running=0, waiting=0, waiting_tokens=0)


def test_what_the_engine_has_not_looked_at_waits() -> None:
    requests = UncountedRequests()
    requests.add_request(num_tokens=100)
    requests.add_request(num_tokens=30)
    load = requests.added_to(IDLE, num_counted=0)
    assert (load.running, load.waiting, load.waiting_tokens) == (0, 2, 130)


def test_what_it_counts_is_not_counted_twice() -> None:
    requests = UncountedRequests()
    requests.add_request(num_tokens=100)
    requests.add_request(num_tokens=30)
    counted = Load(running=1, waiting=0, waiting_tokens=80, context_tokens=7)
    load = requests.added_to(counted, num_counted=1)
    assert load == Load(running=1, waiting=1, waiting_tokens=110, context_tokens=7)
    assert requests.added_to(counted, num_counted=2) == counted
