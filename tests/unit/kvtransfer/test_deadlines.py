from kvtransfer.deadlines import Deadlines, renew_every_s


def test_a_term_ends_when_its_time_is_over() -> None:
    terms: Deadlines[str] = Deadlines()
    terms.set("a", now_s=10.0, remaining_s=6.0)
    assert terms.expired(15.9) == [] and terms.expired(16.0) == ["a"]


def test_an_ended_term_stays_until_it_is_dropped() -> None:
    terms: Deadlines[str] = Deadlines()
    terms.set("a", now_s=0.0, remaining_s=1.0)
    assert terms.expired(2.0) == terms.expired(3.0) == ["a"]
    terms.drop("a")
    assert terms.expired(3.0) == [] and terms.next_in_s(3.0) is None


def test_a_renewal_extends_and_never_shortens() -> None:
    terms: Deadlines[str] = Deadlines()
    terms.set("a", now_s=0.0, remaining_s=6.0)
    assert terms.renew("a", now_s=1.0, remaining_s=2.0)
    assert terms.expired(5.9) == []
    assert terms.renew("a", now_s=5.0, remaining_s=6.0)
    assert terms.expired(10.9) == [] and terms.expired(11.0) == ["a"]


def test_what_has_ended_or_never_began_is_not_renewed() -> None:
    terms: Deadlines[str] = Deadlines()
    terms.set("a", now_s=0.0, remaining_s=1.0)
    assert not terms.renew("a", now_s=1.0, remaining_s=6.0)
    assert not terms.renew("b", now_s=0.0, remaining_s=6.0)


def test_the_next_end_is_the_earliest_whatever_the_order() -> None:
    terms: Deadlines[int] = Deadlines()
    assert terms.next_in_s(0.0) is None
    terms.set(1, now_s=0.0, remaining_s=9.0)
    terms.set(2, now_s=0.0, remaining_s=3.0)
    assert terms.next_in_s(1.0) == 2.0
    assert terms.next_in_s(5.0) == 0.0


def test_a_lease_survives_two_lost_renewals() -> None:
    assert 2 * renew_every_s(6.0) < 6.0
