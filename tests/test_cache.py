"""Cache: per item, keyed by all that decides an answer, joined in flight, bounded in bytes and time."""

import asyncio
import tracemalloc
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from traffic_cases import Clock, Counts, Pool, model, same, settle, texts, vector, work

from deployments.errors import DeadlineExceeded, EngineFailure, InvalidInput
from deployments.spec import ModelSpec
from deployments.types import InferRequest, InferResult, Task, Usage, text_array
from serve_app.cache import ResponseCache
from serve_app.cache_keys import keys_of
from serve_app.cache_rows import split
from serve_app.cache_store import Entry, Store
from serve_app.config import EndpointConfig
from serve_app.policies import Work
from serve_app.traffic_config import CacheConfig


class Case:
    def __init__(self, max_bytes: int = 2**20) -> None:
        self.clock = Clock()
        self.count = Counts()
        self.pool = Pool()
        self.cache = ResponseCache(self.count.metrics, self.clock)
        self.cache.configure(EndpointConfig(cache=CacheConfig(max_bytes=max_bytes)))

    async def ask(self, *values: str, **fields: Any) -> InferResult:
        return await self.answer(work(texts(*values, **fields)))

    async def answer(self, one: Work) -> InferResult:
        self.last = one
        return await self.cache.answer(one, self.pool)

    @property
    def header(self) -> str:
        return self.last.context.headers["x-cache"]


async def test_a_request_of_32_texts_with_30_known_computes_2() -> None:
    case = Case()
    known = [f"text {n}" for n in range(30)]
    await case.ask(*known)
    values = ["new a", *known[:15], "new b", *known[15:]]
    result = await case.ask(*values)
    assert case.pool.asked[1] == ["new a", "new b"]
    assert same(result, model(), *values)
    assert (case.header, case.last.context.headers["x-cache-items"]) == ("partial", "30/32")
    assert case.count("cache_items_total", result="hit") == 30
    assert case.count("cache_items_total", result="miss") == 32


async def test_a_hit_computes_nothing_and_reports_what_it_cost_when_it_was_computed() -> None:
    case = Case()
    first = await case.ask("aa", "bbb")
    second = await case.ask("bbb", "aa")
    assert len(case.pool.asked) == 1
    assert same(second, model(), "bbb", "aa")
    assert second.usage == first.usage == Usage(2, 5)
    assert second.timings.run_s == 0
    assert case.header == "hit"


async def test_the_same_text_twice_in_a_request_is_computed_once() -> None:
    case = Case()
    result = await case.ask("a", "b", "a")
    assert case.pool.asked == [["a", "b"]]
    assert same(result, model(), "a", "b", "a")


async def test_equal_items_in_flight_are_joined() -> None:
    case = Case()
    case.pool.gate = asyncio.Event()
    tasks = [asyncio.create_task(case.ask("a", "b")) for _ in range(20)]
    late = asyncio.create_task(case.ask("b", "c"))
    await settle()
    case.pool.gate.set()
    for result in await asyncio.gather(*tasks):
        assert same(result, model(), "a", "b")
    assert same(await late, model(), "b", "c")
    assert case.pool.asked == [["a", "b"], ["c"]]
    assert case.count("cache_items_total", result="joined") == 39


async def test_requests_that_wait_for_one_another_all_finish() -> None:
    case = Case()
    case.pool.gate = asyncio.Event()
    pairs = [("a", "b"), ("b", "c"), ("c", "a")]
    tasks = [asyncio.create_task(case.ask(*pair)) for pair in pairs]
    await settle()
    case.pool.gate.set()
    for pair, result in zip(pairs, await asyncio.gather(*tasks), strict=True):
        assert same(result, model(), *pair)


async def test_whoever_joined_a_request_whose_client_left_computes_it_himself() -> None:
    case = Case()
    case.pool.gate = asyncio.Event()
    first = asyncio.create_task(case.ask("a"))
    await settle()
    second = asyncio.create_task(case.ask("a"))
    await settle()
    first.cancel()
    await settle()
    case.pool.gate.set()
    assert same(await second, model(), "a")
    assert case.pool.asked == [["a"], ["a"]]
    with pytest.raises(asyncio.CancelledError):
        await first


async def test_a_client_that_joined_and_left_takes_nobody_along() -> None:
    case = Case()
    case.pool.gate = asyncio.Event()
    first, second, third = (asyncio.create_task(case.ask("a")) for _ in range(3))
    await settle()
    second.cancel()
    await settle()
    case.pool.gate.set()
    assert same(await first, model(), "a")
    assert same(await third, model(), "a")
    assert len(case.pool.asked) == 1


async def test_one_requests_fault_does_not_reach_those_who_joined_it() -> None:
    case = Case()
    case.pool.gate = asyncio.Event()

    def poison(one: Work) -> EngineFailure | None:
        return EngineFailure("poison") if b"poison" in one.request.inputs["text"] else None

    case.pool.error = poison
    bad = asyncio.create_task(case.ask("a", "poison"))
    await settle()
    good = asyncio.create_task(case.ask("a"))
    await settle()
    case.pool.gate.set()
    with pytest.raises(EngineFailure):
        await bad
    assert same(await good, model(), "a")


async def test_an_item_under_way_elsewhere_is_awaited_no_longer_than_the_deadline() -> None:
    case = Case()
    case.pool.gate = asyncio.Event()
    first = asyncio.create_task(case.ask("a"))
    await settle()
    with pytest.raises(DeadlineExceeded):
        await case.answer(work(texts("a"), deadline=case.clock() + 0.01))
    case.pool.gate.set()
    assert same(await first, model(), "a")


async def test_an_error_about_a_reduced_request_names_the_clients_row() -> None:
    case = Case()
    await case.ask("a", "b")

    def refuse(one: Work) -> InvalidInput | None:
        values = list(one.request.inputs["text"])
        if b"bad" not in values:
            return None
        field = f"text[{values.index(b'bad')}]"
        return InvalidInput(f"{field} is bad", field=field)

    case.pool.error = refuse
    with pytest.raises(InvalidInput, match=r"text\[2\] is bad"):
        await case.ask("a", "b", "bad")


async def test_errors_are_not_kept() -> None:
    case = Case()
    case.pool.error = EngineFailure("once")
    with pytest.raises(EngineFailure):
        await case.ask("a")
    case.pool.error = None
    assert same(await case.ask("a"), model(), "a")


async def test_an_answer_is_kept_for_its_time() -> None:
    case = Case()
    await case.ask("a")
    case.clock.now += 59.9
    await case.answer(work(texts("a"), deadline=5000))
    assert len(case.pool.asked) == 1
    case.clock.now += 0.2
    await case.answer(work(texts("a"), deadline=5000))
    assert len(case.pool.asked) == 2


async def test_a_changed_configuration_leaves_nothing_of_the_old_one() -> None:
    case = Case()
    await case.ask("a")
    changed = model(digest="d2")
    assert same(await case.answer(work(texts("a"), changed)), changed, "a")


async def test_an_answer_of_another_configuration_than_asked_for_is_not_kept() -> None:
    """During a change one replica answers by the old one while the catalog tells of the new one, or the reverse."""
    case = Case()
    case.pool.digest = "d0"
    await case.ask("a")
    assert len(case.cache.store) == 0


async def test_only_models_marked_cacheable_are_kept() -> None:
    case = Case()
    plain = model(cache_ttl_s=None)
    for _ in range(2):
        await case.answer(work(texts("a"), plain))
    assert len(case.pool.asked) == 2
    assert "x-cache" not in case.last.context.headers


async def test_tenants_share_only_on_purpose() -> None:
    case = Case()
    for shared, computed in ((False, 2), (True, 3)):
        status = model(is_cache_shared=shared)
        for tenant in ("one", "two"):
            await case.answer(work(texts("a", tenant=tenant), status))
        assert len(case.pool.asked) == computed


@pytest.mark.parametrize(("wish", "header", "computed"), [("no-cache", "miss", 2), ("no-store", "bypass", 2)])
async def test_a_client_may_ask_for_a_fresh_answer(wish: str, header: str, computed: int) -> None:
    case = Case()
    await case.ask("a")
    one = work(texts("a"))
    one.context.metadata = {"cache-control": wish}
    await case.answer(one)
    assert (case.header, len(case.pool.asked)) == (header, computed)


async def test_no_room_no_cache() -> None:
    case = Case(max_bytes=0)
    await case.ask("a")
    await case.ask("a")
    assert len(case.pool.asked) == 2


async def test_a_model_without_independent_rows_is_kept_whole() -> None:
    case = Case()
    status = model(rows=())
    await case.answer(work(texts("a", "b"), status))
    assert same(await case.answer(work(texts("a", "b"), status)), status, "a", "b")
    assert case.header == "hit"
    assert same(await case.answer(work(texts("b", "a"), status)), status, "b", "a")
    assert len(case.pool.asked) == 2


async def test_outputs_that_are_not_by_row_are_computed_whole_each_time() -> None:
    case = Case()

    async def odd(one: Work) -> InferResult:
        result = await case.pool(one)
        return replace(result, outputs={"total": np.array(len(one.request.inputs["text"]))})

    assert (await case.cache.answer(work(texts("a")), odd)).outputs["total"] == 1
    result = await case.cache.answer(work(texts("a", "b", "a")), odd)
    assert result.outputs["total"] == 3


async def test_broken_requests_pass_through_to_who_can_say_why() -> None:
    for inputs in (
        {"text": np.array([], dtype=object)},
        {"text": np.array(["not bytes"], dtype=object)},
        {"text": text_array(["a"]), "text_pair": text_array(["b", "c"])},
        {"text": np.array(b"scalar", dtype=object)},
    ):
        assert keys_of(model(rows=("text", "text_pair")), InferRequest("m", inputs)) is None
    assert keys_of(model(), texts("a", params={"x": object()})) is None  # type: ignore[dict-item]


def test_usage_of_rows_adds_up() -> None:
    keys = keys_of(model(), texts("a", "b", "c"))
    assert keys is not None
    outputs = {"score": np.zeros(3, dtype=np.float32)}
    by_item = InferResult("m", "1", outputs, Usage(3, 10), item_tokens=(4, 1, 2, 3))  # a query, then three texts
    assert [entry.n_tokens for entry in split(by_item, keys, 3)] == [5, 2, 3]
    pairs = InferResult("m", "1", outputs, Usage(3, 21), item_tokens=(1, 2, 3, 4, 5, 6))  # two labels a text
    assert [entry.n_tokens for entry in split(pairs, keys, 3)] == [3, 7, 11]
    unknown = InferResult("m", "1", outputs, Usage(3, 10))
    assert [entry.n_tokens for entry in split(unknown, keys, 3)] == [4, 3, 3]


def test_what_is_kept_cannot_be_changed_from_outside() -> None:
    keys = keys_of(model(), texts("a"))
    assert keys is not None
    array = np.ones((1, 3), dtype=np.float32)
    (entry,) = split(InferResult("m", "1", {"embedding": array}), keys, 1)
    with pytest.raises(ValueError, match="read-only"):
        entry.outputs["embedding"][0, 0] = 2


@given(
    sizes=st.lists(st.integers(0, 2000), min_size=1, max_size=60),
    max_bytes=st.integers(0, 20_000),
    touched=st.lists(st.integers(0, 59), max_size=30),
)
def test_the_store_never_holds_more_than_it_may(sizes: list[int], max_bytes: int, touched: list[int]) -> None:
    store = Store(Clock())
    store.resize(max_bytes)
    held: dict[bytes, Entry] = {}
    for number, size in enumerate(sizes):
        key = bytes([number % 40])
        held[key] = Entry({"y": np.zeros(size, dtype=np.uint8)}, 1)
        store.put(key, held[key], 60)
        for other in touched[:3]:
            store.get(bytes([other]))
        assert store.size_bytes <= max_bytes
    known = [entry for key, entry in held.items() if store.get(key) is entry]
    assert sum(entry.size_bytes for entry in known) == store.size_bytes
    assert len(known) == len(store)
    store.resize(0)
    assert (len(store), store.size_bytes) == (0, 0)


def test_the_least_recently_used_leaves_first() -> None:
    store = Store(Clock())
    one = Entry({"y": np.zeros(10)}, 1)
    store.resize(2 * one.size_bytes)
    store.put(b"a", one, 60)
    store.put(b"b", one, 60)
    store.get(b"a")
    store.put(b"c", one, 60)
    assert [key for key in (b"a", b"b", b"c") if store.get(key)] == [b"a", b"c"]
    assert store.n_evicted == 1


def test_what_an_entry_is_said_to_take_is_what_it_takes() -> None:
    keys = keys_of(model(), texts("a"))
    assert keys is not None
    store = Store(Clock())
    store.resize(2**30)
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for number in range(2000):
        outputs = {"embedding": np.ones((1, 384), dtype=np.float32), "label": text_array([f"label {number}"])}
        (entry,) = split(InferResult("m", "1", outputs), keys, 1)
        store.put(number.to_bytes(20, "little"), entry, 60)
    taken = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert taken <= store.size_bytes <= 1.3 * taken


ROW = st.text(alphabet="ab\0", max_size=3)
WHO = st.tuples(
    st.sampled_from(["m", "n"]),  # model
    st.sampled_from(["1", "2"]),  # version
    st.sampled_from(["d1", "d2"]),  # configuration
    st.sampled_from(["", "one", "two"]),  # tenant
    st.sampled_from([{}, {"normalize": True}, {"normalize": False}, {"normalize": 1}, {"adapter": "x"}]),
    st.sampled_from([None, ("embedding",), ()]),
    st.sampled_from([Task.FEATURE_EXTRACTION, Task.CUSTOM]),
)


@given(one=WHO, other=WHO, rows=st.lists(ROW, min_size=1, max_size=3), others=st.lists(ROW, min_size=1, max_size=3))
def test_keys_are_equal_only_where_everything_is(
    one: tuple[Any, ...], other: tuple[Any, ...], rows: list[str], others: list[str]
) -> None:
    def keys(who: tuple[Any, ...], values: list[str]) -> list[bytes]:
        name, version, digest, tenant, params, outputs, task = who
        request = texts(*values, tenant=tenant, params=params, outputs=outputs)
        found = keys_of(model(name, version, digest=digest, task=task), request)
        assert found is not None
        return list(found.keys)

    for key, value in zip(keys(one, rows), rows, strict=True):
        for key_of_other, value_of_other in zip(keys(other, others), others, strict=True):
            is_same = repr((one, value)) == repr((other, value_of_other))
            assert (key == key_of_other) == is_same


@given(
    st.lists(
        st.tuples(st.sampled_from(["m", "n"]), st.sampled_from("12"), st.sampled_from("xy"), st.sampled_from("abcd")),
        max_size=40,
    )
)
async def test_an_answer_never_crosses_models_versions_or_tenants(asked: list[tuple[str, str, str, str]]) -> None:
    """Each tenant has texts of its own meaning: the fake pool answers by tenant, so a crossing would show."""
    case = Case()

    async def by_tenant(one: Work) -> InferResult:
        values = [element.decode() + one.request.tenant for element in one.request.inputs["text"]]
        outputs = {"embedding": np.stack([vector(one.plan.primary, value) for value in values])}
        return InferResult(one.plan.primary.name, one.plan.primary.version, outputs, digest="d1")

    for name, version, tenant, value in asked:
        status = model(name, version)
        result = await case.cache.answer(work(texts(value, tenant=tenant), status), by_tenant)
        assert same(result, status, value + tenant)
        assert (result.model, result.version) == (name, version)


def test_tensors_that_differ_in_shape_or_datatype_only_are_different() -> None:
    status = model(rows=("x",), task=Task.TENSOR)
    variants = [
        np.zeros((1, 2, 3), dtype=np.float32),
        np.zeros((1, 3, 2), dtype=np.float32),
        np.zeros((1, 6), dtype=np.int32),
        np.zeros((1, 12), dtype=np.float16),
        np.array([[b"a", b"bc"]], dtype=object),
        np.array([[b"ab", b"c"]], dtype=object),
    ]
    keys = [keys_of(status, InferRequest("m", {"x": array})) for array in variants]
    assert len({found.keys[0] for found in keys if found}) == len(variants)


def test_inputs_that_all_rows_share_are_part_of_the_key() -> None:
    def key(query: str) -> bytes:
        found = keys_of(model(), InferRequest("m", {"text": text_array(["a"]), "query": text_array([query])}))
        assert found is not None
        return found.keys[0]

    assert key("q") != key("r")


def test_each_query_and_its_text_have_one_key_whatever_stands_beside_them() -> None:
    ranker = model(rows=("queries", "text"))

    def keys(queries: list[str], texts: list[str]) -> Sequence[bytes]:
        found = keys_of(ranker, InferRequest("m", {"queries": text_array(queries), "text": text_array(texts)}))
        assert found is not None
        return found.keys

    first, second = keys(["q", "r"], ["a", "b"])
    assert keys(["r", "q"], ["b", "a"]) == [second, first]
    assert keys(["q"], ["b"])[0] not in (first, second)


def test_a_generating_model_is_not_to_be_marked() -> None:
    entry = {"name": "chat", "task": "text-generation", "source": {"path": "x"}, "cache": {}}
    with pytest.raises(ValueError, match="answers differently each time"):
        ModelSpec.model_validate(entry)
