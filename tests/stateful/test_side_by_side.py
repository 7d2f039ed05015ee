from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from cascade_state import Store, open_store
from cascade_state.testing.clock import FrozenClock
from cascade_state.testing.contracts.rule_machine import SideBySideMachine
from cascade_state.testing.server import PostgresServer

# Steps matter more than examples: what goes wrong needs a history. The time is real: each example has its own database.
# So the smallest example is not looked for: that would take minutes, and the printed one can be run again.
SETTINGS = settings(
    max_examples=15,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
    report_multiple_bugs=False,
    stateful_step_count=50,
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


class MemoryBesideMemory(SideBySideMachine):
    def open_stores(
        self, clock: FrozenClock
    ) -> tuple[AbstractAsyncContextManager[Store], AbstractAsyncContextManager[Store]]:
        return (
            open_store("memory://", clock=clock, max_attempts=3),
            open_store("memory://", clock=clock, max_attempts=3),
        )


class MemoryBesidePostgres(SideBySideMachine):
    server: ClassVar[PostgresServer]
    template: ClassVar[str]

    def open_stores(
        self, clock: FrozenClock
    ) -> tuple[AbstractAsyncContextManager[Store], AbstractAsyncContextManager[Store]]:
        return open_store("memory://", clock=clock, max_attempts=3), self._on_a_clone(clock=clock, max_attempts=3)

    @asynccontextmanager
    async def _on_a_clone(self, **options: Any) -> AsyncIterator[Store]:
        name = f"side_{secrets.token_hex(8)}"
        await self.server.create_database_from_template(name, self.template)
        try:
            async with open_store(self.server.url_for(name), **options) as store:
                yield store
        finally:
            await self.server.drop_database(name, force=True)


class MemoryBesideAnotherMemory(SideBySideMachine):
    def open_stores(
        self, clock: FrozenClock
    ) -> tuple[AbstractAsyncContextManager[Store], AbstractAsyncContextManager[Store]]:
        return (
            open_store("memory://", clock=clock, max_attempts=3),
            open_store("memory://", clock=clock, max_attempts=2),
        )


def test_the_machine_finds_two_stores_that_do_the_same_equal() -> None:
    run_state_machine_as_test(MemoryBesideMemory, settings=SETTINGS)


def test_the_machine_finds_a_store_that_does_something_else() -> None:
    only_find = settings(SETTINGS, max_examples=100, database=None, phases=[Phase.generate])
    with pytest.raises(AssertionError, match=r"the stores differ at \$.*max_attempts"):
        run_state_machine_as_test(MemoryBesideAnotherMemory, settings=only_find)


@pytest.mark.postgres
@pytest.mark.timeout(300)
def test_memory_and_postgres_do_the_same(server: PostgresServer, template: str) -> None:
    MemoryBesidePostgres.server, MemoryBesidePostgres.template = server, template
    run_state_machine_as_test(MemoryBesidePostgres, settings=SETTINGS)
