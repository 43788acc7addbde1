"""FairOrder: equal shares for tenants, a head start for priorities, and nobody starved."""

from hypothesis import given
from hypothesis import strategies as st

from deployments.order import FairOrder, Place


def serve(order: FairOrder, waiting: list[tuple[Place, str]], n: int) -> str:
    """Take the next `n` by place and return whose they were."""
    taken = []
    for _ in range(n):
        first = min(waiting)
        waiting.remove(first)
        order.began(first[0])
        taken.append(first[1])
    return "".join(taken)


def test_one_tenant_is_served_in_order_of_arrival() -> None:
    order = FairOrder(100)
    ranks = [order.place("", 0, cost).rank for cost in (5, 1, 9, 3)]
    assert ranks == sorted(ranks)
    assert len(set(ranks)) == 4


def test_a_tenant_who_comes_late_does_not_wait_for_anothers_flood() -> None:
    order = FairOrder(100)
    waiting = [(order.place("a", 0, 1), "a") for _ in range(100)]
    serve(order, waiting, 10)
    waiting += [(order.place("b", 0, 1), "b") for _ in range(3)]
    assert serve(order, waiting, 6).count("b") == 3


def test_shares_are_of_cost_not_of_number() -> None:
    order = FairOrder(100)
    waiting = [(order.place("short", 0, 1), "s") for _ in range(100)] + [
        (order.place("long", 0, 10), "l") for _ in range(10)
    ]
    taken = serve(order, waiting, 55)
    assert taken.count("s") - 10 * taken.count("l") in range(-10, 11)


def test_higher_priority_goes_first_even_of_the_same_tenant() -> None:
    order = FairOrder(100)
    waiting = [(order.place("a", 0, 1), "-") for _ in range(50)]
    serve(order, waiting, 5)
    waiting += [(order.place("a", 1, 1), "+") for _ in range(5)]
    assert serve(order, waiting, 5) == "+++++"


def test_low_priority_is_served_under_a_flood_of_higher_one() -> None:
    order = FairOrder(20)
    waiting = [(order.place("", 0, 1), "-") for _ in range(3)]
    taken = ""
    for _ in range(60):
        waiting.append((order.place("", 1, 1), "+"))
        taken += serve(order, waiting, 1)
    assert taken.startswith("+" * 20)
    assert taken.count("-") == 3


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(-1, 2), st.integers(1, 50)), min_size=1, max_size=80))
def test_nothing_ever_waits_longer_than_the_head_starts_allow(work: list[tuple[str, int, int]]) -> None:
    """Serve one, add one, for ever: what is there at first is served within a bounded amount of later work."""
    order, head_start = FairOrder(30), 30
    waiting = [(order.place(*one), str(index)) for index, one in enumerate(work)]
    n_first = len(waiting)
    bound = sum(cost for _, _, cost in work) + 3 * 4 * (3 * head_start + 50) + 50
    spent = 0
    while any(int(name) < n_first for _, name in waiting):
        first = min(waiting)
        waiting.remove(first)
        order.began(first[0])
        tenant, _, cost = work[int(first[1]) % n_first]
        spent += cost
        waiting.append((order.place(tenant, 2, cost), str(n_first + int(first[1]))))
        assert spent <= bound


def test_lines_of_the_past_are_forgotten() -> None:
    order = FairOrder(10)
    for index in range(5000):
        order.began(order.place(f"tenant {index}", 0, 1))
        order.began(order.place("steady", 0, 1))
    assert len(order._ends) < 600
