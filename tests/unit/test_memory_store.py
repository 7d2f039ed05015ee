from __future__ import annotations

import asyncio
from collections import Counter
from datetime import timedelta
from secrets import token_hex

import pytest

from cascade_state import FlowDefinition, FlowInstance, StepDefinition, Store, open_store
from cascade_state.errors import (
    AlreadyExists,
    FlowInstanceNotFound,
    InvalidArgument,
    SchemaMismatch,
    SerializationError,
    StoreNotOpen,
    UnitOfWorkFinished,
    UsageError,
)
from cascade_state.memory import writing
from cascade_state.memory.data import _named
from cascade_state.memory.store import MemoryStore
from tests.unit.exports import changed_by, every_change

DEFINITION = FlowDefinition(flow_id="order", steps=(StepDefinition(step_id="charge", component_type="http"),))


def a_name() -> str:
    return f"memory://{token_hex(8)}"


async def a_flow(store: Store) -> FlowInstance:
    definition = await store.flow_definitions.deploy(DEFINITION)
    return await store.advance(FlowInstance.create(definition).start())


async def test_a_name_is_shared_until_the_last_opening_is_left() -> None:
    url = a_name()
    async with open_store(url) as one:
        async with open_store(url) as other:
            flow = await a_flow(one)
            assert await other.flow_instances.get(flow.flow_instance_id) == flow
        assert await one.flow_instances.get(flow.flow_instance_id) == flow
    async with open_store(url) as later:
        assert await later.flow_instances.find(flow.flow_instance_id) is None
    assert url.removeprefix("memory://") not in _named


async def test_without_a_name_each_opening_is_private() -> None:
    async with open_store("memory://") as one, open_store("memory://") as other:
        flow = await a_flow(one)
        assert await other.flow_instances.find(flow.flow_instance_id) is None
    assert one.url == "memory://"


async def test_openings_of_one_name_have_one_partition_count() -> None:
    url = a_name()
    async with open_store(url, partition_count=64):
        with pytest.raises(SchemaMismatch) as caught:
            async with open_store(url, partition_count=128):
                pytest.fail("was opened")
    assert caught.value.expected == "128 partitions"
    assert caught.value.found == "64 partitions"


@pytest.mark.parametrize("url", ["memory:", "memory", "other://x"])
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(InvalidArgument):
        MemoryStore(url, open_store("memory://").options)


async def test_the_scheme_may_be_in_capitals() -> None:
    async with open_store("MEMORY://Name") as store:
        assert store.url == "memory://Name"


async def test_it_declares_what_it_cannot_do() -> None:
    async with open_store("memory://") as store:
        capabilities = store.capabilities
        assert (capabilities.durable, capabilities.cross_process) == (False, False)
        assert (capabilities.caller_sql, capabilities.notify) == (False, False)
        await store.migrate()
        await store.check_schema()
        with pytest.raises(UsageError):
            store.enlist(object())  # type: ignore[arg-type]
        async with store.begin() as uow:
            with pytest.raises(UsageError):
                _ = uow.connection
            with pytest.raises(UsageError):
                uow.session()


def test_a_name_that_is_open_in_another_event_loop_is_refused() -> None:
    url = a_name()
    store = open_store(url)

    async def meanwhile() -> None:
        async with open_store(url):
            pytest.fail("was opened")

    loop, other = asyncio.new_event_loop(), asyncio.new_event_loop()
    try:
        loop.run_until_complete(store.__aenter__())
        with pytest.raises(UsageError):
            other.run_until_complete(meanwhile())
        loop.run_until_complete(store.__aexit__(None, None, None))
        with pytest.raises(pytest.fail.Exception):
            other.run_until_complete(meanwhile())
    finally:
        loop.close()
        other.close()


def test_a_name_that_was_left_open_in_a_closed_event_loop_begins_anew() -> None:
    url = a_name()

    async def forget_to_close() -> None:
        await a_flow(await open_store(url).__aenter__())

    async def count() -> int:
        async with open_store(url) as store:
            return await store.flow_instances.count()

    asyncio.run(forget_to_close())
    assert asyncio.run(count()) == 0


async def test_leaving_a_store_ends_its_units_of_work() -> None:
    url = a_name()
    async with open_store(url) as keeper:
        flow = await a_flow(keeper)
        store = open_store(url)
        await store.__aenter__()
        uow = store.begin()
        await uow.__aenter__()
        await uow.advance(flow.complete_step("charge"))
        waiting = asyncio.ensure_future(keeper.advance(flow.fail("stop")))
        await asyncio.sleep(0)
        assert not waiting.done()

        await store.__aexit__(None, None, None)

        async with asyncio.timeout(10):
            assert (await waiting).version == 2
        with pytest.raises(StoreNotOpen):
            await uow.flow_instances.get(flow.flow_instance_id)
        with pytest.raises(StoreNotOpen):
            await uow.__aexit__(None, None, None)
        with pytest.raises(UnitOfWorkFinished):
            await uow.flow_instances.get(flow.flow_instance_id)
        assert (await keeper.flow_instances.get(flow.flow_instance_id)).error == "stop"


async def test_a_call_that_waits_while_its_store_is_left_is_turned_away() -> None:
    url = a_name()
    async with open_store(url) as keeper:
        flow = await a_flow(keeper)
        store = open_store(url)
        await store.__aenter__()
        async with keeper.begin() as uow:
            await uow.advance(flow.complete_step("charge"))
            waiting = asyncio.ensure_future(store.advance(flow.fail("stop")))
            await asyncio.sleep(0)
            await store.__aexit__(None, None, None)
        with pytest.raises(StoreNotOpen):
            async with asyncio.timeout(10):
                await waiting


async def test_a_unit_of_work_of_a_store_that_was_left_cannot_be_entered() -> None:
    async with open_store("memory://") as store:
        uow = store.begin()
    with pytest.raises(StoreNotOpen):
        await uow.__aenter__()


async def test_a_store_that_was_not_entered_refuses_calls() -> None:
    store = open_store("memory://")
    with pytest.raises(StoreNotOpen):
        await store.flow_instances.count()
    with pytest.raises(StoreNotOpen):
        store.begin()
    with pytest.raises(StoreNotOpen):
        await store.statistics()


async def test_a_damaged_flow_is_reported_with_its_id_and_blocks_nobody() -> None:
    store = MemoryStore("memory://", open_store("memory://").options)
    async with store:
        definition = await store.flow_definitions.deploy(DEFINITION)
        damaged = await store.advance(FlowInstance.create(definition).start())
        whole = await store.advance(FlowInstance.create(definition).start())
        flows = store._data.tables["flow_instances"]
        key = damaged.flow_instance_id.int
        row = flows.get(key)
        assert row is not None
        flows.set(key, row._replace(trigger_data="{"))

        with pytest.raises(SerializationError) as caught:
            await store.flow_instances.get(damaged.flow_instance_id)
        assert caught.value.key == damaged.flow_instance_id
        page = await store.flow_instances.list_page()
        assert page.items == (whole,)
        assert [error.key for error in page.undecodable] == [damaged.flow_instance_id]
        claimed = await store.flow_instances.claim("w", lease_duration=timedelta(seconds=9))
        assert [flow.flow_instance_id for flow in claimed] == [whole.flow_instance_id]


async def test_a_call_that_breaks_in_the_middle_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    async with open_store("memory://") as store:
        flow = await a_flow(store)
        before = await store.flow_instances.export(flow.flow_instance_id)

        def broken(*arguments: object) -> None:
            raise MemoryError

        monkeypatch.setattr(writing, "_append_events", broken)
        step = flow.complete_step("charge", {"a": 1}).suspend_for_event("charge", "k")
        with pytest.raises(MemoryError):
            await store.advance(step, put_states={"charge": 1})
        async with store.begin() as uow:
            with pytest.raises(MemoryError):
                await uow.advance(step, put_states={"charge": 1})
            await uow.component_states.put(flow.flow_instance_id, "other", 1)
        monkeypatch.undo()

        assert await store.component_states.find(flow.flow_instance_id, "charge") is None
        assert await store.component_states.remove(flow.flow_instance_id, "other")
        assert await store.flow_instances.export(flow.flow_instance_id) == before
        assert not await store.correlations.list_waiting("k")
        assert (await store.advance(step)).version == flow.version + 1


async def test_a_removed_flow_frees_everything() -> None:
    store = MemoryStore("memory://", open_store("memory://").options)
    async with store:
        flow = await a_flow(store)
        flow = await store.advance(
            flow.complete_step("charge", {}).suspend_for_event("a", "k").suspend_for_event("b", "k")
        )
        await store.component_states.put(flow.flow_instance_id, "charge", 1)
        await store.correlations.publish("k", 1)
        assert await store.flow_instances.remove(flow.flow_instance_id)
        with pytest.raises(FlowInstanceNotFound):
            await store.flow_instances.get(flow.flow_instance_id)
        left = {name for name, table in store._data.tables.items() if table._rows}
        assert left == {"flow_definitions", "early_events"}  # the definition, and the id of the event
        assert not store._data.locks.held


async def test_an_export_that_was_tampered_with_is_stored_whole_or_not_at_all() -> None:
    outcomes = Counter[str]()
    for change in every_change():
        store = MemoryStore("memory://", open_store("memory://").options)
        async with store:
            try:
                flow = await store.flow_instances.import_(changed_by(change))
            except (InvalidArgument, AlreadyExists) as error:
                assert not any(table._rows for table in store._data.tables.values())
                outcomes[type(error).__name__] += 1
            else:
                await store.flow_instances.export(flow.flow_instance_id)
                outcomes["stored"] += 1
    assert outcomes["stored"]
    assert outcomes["InvalidArgument"]
