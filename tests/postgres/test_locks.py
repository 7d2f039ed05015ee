"""Locks on PostgreSQL: what happens to connections, servers and processes, and who else is in the database."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

from cascade_state import (
    HeldLock,
    LockLost,
    LockNotAcquired,
    SchemaMismatch,
    Store,
    StoreUnavailable,
    UsageError,
    open_store,
)
from cascade_state.postgres import lock_connections, locks
from cascade_state.testing import PostgresServer, factories
from cascade_state.testing.blocking import run_blocking
from cascade_state.testing.contracts import rule
from cascade_state.testing.contracts.locks import in_queue, is_free
from tests.postgres.own_server import own_server
from tests.postgres.pooler import pgbouncer

pytestmark = pytest.mark.postgres

_PATIENCE = timedelta(seconds=30)
_HOLDER = Path(__file__).with_name("lock_holder.py")


@pytest.fixture
async def other_store(database_url: str) -> AsyncIterator[Store]:
    async with open_store(database_url) as store:
        yield store


@pytest.fixture
async def admin(database_url: str) -> AsyncIterator[Any]:
    """A connection that belongs to nobody's store."""
    connection = await asyncpg.connect(database_url)
    yield connection
    await connection.close()


async def _held(store: Store, name: str = "month", **options: Any) -> HeldLock:
    lock = await store.locks.try_acquire(name, timeout=_PATIENCE, **options)
    assert lock is not None
    return lock


async def _holder_pid(store: Store) -> int:
    (pid,) = [info.pid for info in await store.locks.list_held() if info.granted]
    return pid


async def _connections(admin: Any) -> int:
    count: int = await admin.fetchval(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    return count


async def _terminated(url: str, pid: int) -> None:
    """Ends a session and returns when it is gone."""
    connection = await asyncpg.connect(url)
    try:
        assert await connection.fetchval("SELECT pg_terminate_backend($1, 20000)", pid)
    finally:
        await connection.close()


async def _at_most(admin: Any, count: int) -> None:
    """Returns when no more than so many are connected."""
    connected = count + 1
    async with asyncio.timeout(_PATIENCE.total_seconds()):
        while connected > count:
            await asyncio.sleep(0)
            connected = await _connections(admin)


@rule("LCK-14")
async def test_whatever_became_of_a_lock_nothing_is_left_in_the_servers_list(
    postgres_store: Store, other_store: Store, admin: Any
) -> None:
    async def left() -> int:
        count: int = await admin.fetchval(
            "SELECT count(*) FROM pg_locks JOIN pg_database ON pg_database.oid = database "
            "WHERE locktype = 'advisory' AND datname = current_database()"
        )
        return count

    released, shared, lost = (
        await _held(postgres_store, "released"),
        await _held(postgres_store, "shared", shared=True),
        await _held(other_store, "lost"),
    )
    waiting = asyncio.create_task(other_store.locks.try_acquire("released", timeout=None))
    async with postgres_store.begin() as uow:
        await uow.lock("in a transaction")
        await in_queue(postgres_store, 1)
        assert await left() == 5  # so it would be seen
    assert await other_store.locks.try_acquire("released", timeout=timedelta(milliseconds=1)) is None
    waiting.cancel()
    await asyncio.wait([waiting])
    (pid,) = [info.pid for info in await postgres_store.locks.list_held() if info.lock_name == "lost"]
    assert await admin.fetchval("SELECT pg_terminate_backend($1, 20000)", pid)
    assert not await lost.release()
    assert await released.release()
    assert await shared.release()
    assert await left() == 0


class TestLostLocks:
    @rule("LCK-03")
    async def test_a_holder_whose_connection_was_killed_is_told(
        self, postgres_store: Store, other_store: Store, admin: Any
    ) -> None:
        lock = await _held(postgres_store)
        await admin.execute("SELECT pg_terminate_backend($1)", await _holder_pid(postgres_store))
        next_one = await _held(other_store)
        with pytest.raises(LockLost) as lost:
            await lock.check()
        assert isinstance(lost.value.__cause__, StoreUnavailable)
        with pytest.raises(LockLost):
            await lock.check()
        assert not await lock.release()
        await next_one.check()
        assert next_one.fencing_token > lock.fencing_token

    @rule("LCK-12")
    async def test_a_release_of_a_lost_lock_says_so(self, postgres_store: Store, admin: Any) -> None:
        async with postgres_store.locks.hold("month") as lock:
            await admin.execute("SELECT pg_terminate_backend($1)", await _holder_pid(postgres_store))
            assert not await lock.release()
        assert await is_free(postgres_store, "month")

    async def test_a_session_that_does_not_answer_is_lost(
        self, postgres_store: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(lock_connections, "ANSWER_SECONDS", 0.1)
        lock = await _held(postgres_store)
        pid = await _holder_pid(postgres_store)
        os.kill(pid, signal.SIGSTOP)
        try:
            with pytest.raises(LockLost) as lost:
                await lock.check()
            assert isinstance(lost.value.__cause__, TimeoutError)
        finally:
            os.kill(pid, signal.SIGCONT)
        await (await _held(postgres_store)).release()

    @rule("LCK-03")
    async def test_a_lock_of_a_killed_process_is_free(self, database_url: str, postgres_store: Store) -> None:
        process = await asyncio.create_subprocess_exec(
            sys.executable, str(_HOLDER), database_url, "month", stdout=asyncio.subprocess.PIPE
        )
        assert process.stdout is not None
        token = int(await asyncio.wait_for(process.stdout.readline(), 30))
        assert await postgres_store.locks.try_acquire("month") is None
        process.kill()
        async with postgres_store.locks.hold("month", timeout=_PATIENCE) as lock:
            assert lock.fencing_token > token
        await process.wait()

    @pytest.mark.parametrize("way", ["stop", "crash"])
    @rule("LCK-15")
    async def test_fencing_tokens_grow_over_a_restart_of_the_server(self, way: str) -> None:
        with own_server() as server:
            async with open_store(server.url) as store:
                await store.migrate()
                waiting = await _held(store)
                lock = await _held(store, "year")
                await {"stop": server.stop, "crash": server.crash}[way]()
                for lost in (lock, waiting):
                    with pytest.raises(LockLost):
                        await lost.check()
                with pytest.raises(StoreUnavailable):
                    await store.locks.try_acquire("week")
                await server.start()
                async with store.locks.hold("year") as later:
                    assert later.fencing_token > lock.fencing_token

    @rule("LCK-15")
    async def test_fencing_tokens_grow_although_their_row_is_gone_or_the_clock_was_ahead(
        self, postgres_store: Store, admin: Any
    ) -> None:
        first = await _held(postgres_store)
        await first.release()
        await admin.execute("DELETE FROM lock_tokens")
        second = await _held(postgres_store)
        await second.release()
        assert second.fencing_token > first.fencing_token
        await admin.execute("UPDATE lock_tokens SET token = token + 1000000000000")
        third = await _held(postgres_store)
        await third.release()
        assert third.fencing_token == second.fencing_token + 1_000_000_000_001


class TestOthersInTheServer:
    @rule("LCK-05")
    async def test_other_databases_do_not_interfere(
        self, server: PostgresServer, template: str, postgres_store: Store
    ) -> None:
        async with await server.temporary_database_from_template(template) as database:
            async with open_store(database.url) as elsewhere:
                assert elsewhere.locks.key_of("month") == postgres_store.locks.key_of("month")
                async with postgres_store.locks.hold("month"):
                    assert not await elsewhere.locks.is_held("month")
                    assert await elsewhere.locks.list_held() == []
                    async with elsewhere.locks.hold("month", timeout=timedelta(0)), elsewhere.begin() as uow:
                        await uow.lock("year")
                        assert [info.lock_name for info in await postgres_store.locks.list_held()] == ["month"]

    @rule("LCK-05")
    async def test_other_schemas_do_not_meet(self, database_url: str, postgres_store: Store) -> None:
        async with open_store(database_url, schema="Else where") as elsewhere:
            await elsewhere.migrate()
            async with postgres_store.locks.hold("month") as here:
                async with elsewhere.locks.hold("month", timeout=timedelta(0)) as there, elsewhere.begin() as uow:
                    await uow.lock("year", timeout=timedelta(0))
                    assert here.key != there.key
                    assert await elsewhere.locks.is_held("year")
                    assert not await postgres_store.locks.is_held("year")
                    names = {info.key: info.lock_name for info in await elsewhere.locks.list_held()}
            assert names == {here.key: None, there.key: "month", elsewhere.locks.key_of("year"): "year"}

    @rule("LCK-08")
    async def test_locks_of_other_programs_are_listed_without_a_name(self, postgres_store: Store, admin: Any) -> None:
        numbers = (0, 1, -1, 2**63 - 1, -(2**63), 2**32, -(2**32))
        for number in numbers:
            await admin.execute("SELECT pg_advisory_lock_shared($1)", number)
        await admin.execute("SELECT pg_advisory_lock(7, 9)")  # another kind of lock
        infos = await postgres_store.locks.list_held()
        assert [info.key for info in infos] == sorted(numbers)
        for info in infos:
            assert (info.lock_name, info.mode, info.granted) == (None, "shared", True)
            assert info.pid == admin.get_server_pid()
            assert info.since is not None

    async def test_two_numbers_are_not_one_number(self, postgres_store: Store, admin: Any) -> None:
        key = postgres_store.locks.key_of("month")
        upper, lower = key >> 32, key & 0xFFFFFFFF
        await admin.execute("SELECT pg_advisory_lock($1, $2)", upper, lower - 2**32 if lower >= 2**31 else lower)
        assert not await postgres_store.locks.is_held("month")
        assert await is_free(postgres_store, "month")

    async def test_settings_of_the_role_neither_end_a_lock_nor_a_wait(
        self, postgres_store: Store, database_url: str, admin: Any
    ) -> None:
        for setting in ("statement_timeout", "lock_timeout", "idle_session_timeout"):
            await admin.execute(
                f"ALTER DATABASE {await admin.fetchval('SELECT current_database()')} SET {setting} = 60"
            )
        async with open_store(database_url) as hasty, postgres_store.locks.hold("month") as lock:
            waiting = asyncio.create_task(hasty.locks.try_acquire("month", timeout=None))
            async with hasty.locks.hold("year") as other:
                await in_queue(postgres_store, 1)
                await admin.execute("SELECT pg_sleep(0.2)")
                await other.check()
            assert not waiting.done()
            await lock.release()
            got = await asyncio.wait_for(waiting, _PATIENCE.total_seconds())
            assert got is not None

    async def test_a_wait_in_a_unit_of_work_leaves_its_settings_alone(
        self, postgres_store: Store, other_store: Store
    ) -> None:
        async with postgres_store.begin() as uow:
            await uow.connection.exec_driver_sql("SET LOCAL lock_timeout = '7s'")
            async with other_store.locks.hold("month") as lock:
                with pytest.raises(LockNotAcquired):
                    await uow.lock("month", timeout=timedelta(milliseconds=5))
                waiting = asyncio.create_task(uow.lock("month", timeout=_PATIENCE))
                await in_queue(other_store, 1)
                await lock.release()
                await waiting
            setting = (await uow.connection.exec_driver_sql("SHOW lock_timeout")).scalar_one()
        assert setting == "7s"


class TestConnections:
    async def test_a_held_lock_takes_no_connection_of_the_pool(self, database_url: str, admin: Any) -> None:
        async with open_store(database_url, pool_size=1, pool_timeout_seconds=5) as store:
            async with store.locks.hold("a"), store.locks.hold("b"), store.begin() as uow:
                await factories.add_flow(uow)
            async with store.begin() as uow:
                assert await uow.connection.exec_driver_sql("SELECT 1")
                (pid,) = (await uow.connection.exec_driver_sql("SELECT pg_backend_pid()")).one()
                async with store.locks.hold("a"):
                    assert await _holder_pid(store) != pid

    async def test_a_burst_of_locks_leaves_few_connections(self, postgres_store: Store, admin: Any) -> None:
        before = await _connections(admin)
        async with AsyncExitStack() as stack:
            for number in range(8):
                await stack.enter_async_context(postgres_store.locks.hold(f"lock {number}"))
            assert await _connections(admin) >= before + 8
        await _at_most(admin, before + lock_connections._KEPT)

    async def test_a_kept_connection_that_broke_is_not_used(self, postgres_store: Store, admin: Any) -> None:
        before = await _connections(admin)
        lock = await _held(postgres_store)
        pid = await _holder_pid(postgres_store)
        await lock.release()
        await admin.execute("SELECT pg_terminate_backend($1)", pid)
        await _at_most(admin, before + 1)  # the one that listed the locks
        assert await is_free(postgres_store, "month")

    async def test_a_kept_connection_that_broke_unnoticed_is_replaced(
        self, database_url: str, postgres_store: Store
    ) -> None:
        lock = await _held(postgres_store)
        pid = await _holder_pid(postgres_store)
        await lock.release()
        run_blocking(_terminated(database_url, pid))  # meanwhile this loop stands still, and hears nothing of it
        assert await is_free(postgres_store, "month")

    async def test_without_the_schema_no_lock_is_left(self, empty_database_url: str) -> None:
        async with open_store(empty_database_url) as store:
            with pytest.raises(SchemaMismatch):
                await store.locks.try_acquire("month")
            assert not await store.locks.is_held("month")
            async with store.begin() as uow:
                await uow.lock("month", timeout=timedelta(0))

    async def test_the_callers_transaction_holds_a_lock_too(self, database_url: str, postgres_store: Store) -> None:
        engine = create_async_engine(database_url.replace("postgresql://", "postgresql+asyncpg://", 1))
        async with AsyncSession(engine) as session:
            async with postgres_store.enlist(session) as uow:
                await uow.lock("month")
            assert not await is_free(postgres_store, "month")
            await session.commit()
            assert await is_free(postgres_store, "month")
        await engine.dispose()


class TestWaiting:
    async def test_a_long_wait_is_made_of_short_statements(
        self, postgres_store: Store, other_store: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(locks, "_LONGEST_WAIT_SECONDS", 0.02)
        async with postgres_store.locks.hold("month") as lock:
            assert await other_store.locks.try_acquire("month", timeout=timedelta(milliseconds=70)) is None
            waiting = asyncio.create_task(other_store.locks.try_acquire("month", timeout=None))
            starts: set[datetime | None] = set()
            async with asyncio.timeout(_PATIENCE.total_seconds()):
                while len(starts) < 4:
                    starts |= {info.since for info in await postgres_store.locks.list_held() if not info.granted}
            await lock.release()
            got = await asyncio.wait_for(waiting, _PATIENCE.total_seconds())
            assert got is not None

    async def test_who_waits_does_not_hold_up_the_building_of_an_index(
        self, postgres_store: Store, other_store: Store, admin: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It waits for every older snapshot; and who waits for a lock has one."""
        monkeypatch.setattr(locks, "_LONGEST_WAIT_SECONDS", 0.05)
        async with postgres_store.locks.hold("migration"):
            waiting = asyncio.create_task(other_store.locks.try_acquire("migration", timeout=None))
            await in_queue(postgres_store, 1)
            async with asyncio.timeout(_PATIENCE.total_seconds()):
                await admin.execute("CREATE INDEX CONCURRENTLY ix_new ON timers (step_id)")
            assert not waiting.done()
        lock = await waiting
        assert lock is not None
        await lock.release()

    async def test_an_error_while_waiting_leaves_nothing(
        self, postgres_store: Store, other_store: Store, admin: Any
    ) -> None:
        async with postgres_store.locks.hold("month"):
            waiting = asyncio.create_task(other_store.locks.try_acquire("month", timeout=None))
            await in_queue(postgres_store, 1)
            (pid,) = [info.pid for info in await postgres_store.locks.list_held() if not info.granted]
            await admin.execute("SELECT pg_cancel_backend($1)", pid)
            with pytest.raises(StoreUnavailable):
                await asyncio.wait_for(waiting, _PATIENCE.total_seconds())
            assert [info.granted for info in await postgres_store.locks.list_held()] == [True]


class TestBehindAPooler:
    @asynccontextmanager
    async def _pooled(self, database_url: str, **options: Any) -> AsyncIterator[Store]:
        with pgbouncer(database_url) as url:
            async with open_store(url, pooler="pgbouncer", **options) as store:
                yield store

    async def test_held_locks_are_refused_and_those_of_a_transaction_work(
        self, database_url: str, postgres_store: Store
    ) -> None:
        async with self._pooled(database_url) as store:
            with pytest.raises(UsageError, match="direct_url"):
                await store.locks.try_acquire("month")
            with pytest.raises(UsageError, match="direct_url"):
                async with store.locks.hold("month"):
                    pytest.fail("the block must not run")
            async with store.begin() as uow:
                await uow.lock("month")
                assert await postgres_store.locks.try_acquire("month") is None
                assert await store.locks.is_held("month")
                (info,) = await store.locks.list_held()
                assert info.lock_name == "month"
            async with postgres_store.locks.hold("month"), store.begin() as uow:
                with pytest.raises(LockNotAcquired):
                    await uow.lock("month", timeout=timedelta(milliseconds=5))
                await factories.add_flow(uow)

    async def test_with_a_direct_address_they_go_around_it(self, database_url: str, postgres_store: Store) -> None:
        async with self._pooled(database_url, direct_url=database_url) as store:
            async with store.locks.hold("month") as lock:
                assert await postgres_store.locks.try_acquire("month") is None
                await lock.check()
            assert await is_free(postgres_store, "month")

    async def test_a_direct_address_that_leads_through_a_pooler_is_refused(self, database_url: str) -> None:
        with pgbouncer(database_url, ignores_settings=True) as url:
            async with open_store(url, pooler="pgbouncer", direct_url=url) as store:
                with pytest.raises(UsageError, match="pooler"):
                    await store.locks.try_acquire("month")
