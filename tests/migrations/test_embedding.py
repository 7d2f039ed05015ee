"""Our revisions in somebody else's tree, and the recipe for a concurrent index that NOTES.md gives."""

from __future__ import annotations

import asyncio
import re
import sys
from pathlib import Path

import asyncpg
import pytest
from alembic import command
from alembic.config import Config

from cascade_state import open_store
from cascade_state.postgres.schema import alembic_config, head_revision, migrate_database, migrations_directory
from tests.migrations.catalog import describe, table_names
from tests.migrations.locking import WAIT, migration_lock, waiting

pytestmark = pytest.mark.postgres

WAITING_PROCESS = """
from alembic import command
from cascade_state.postgres.schema import alembic_config
config = alembic_config(url={url!r})
config.set_main_option("path_separator", "newline")
config.set_main_option("version_locations", {locations!r})
command.upgrade(config, "head")
"""

THEIR_ENV = """
import asyncio
from alembic import context
from sqlalchemy.ext.asyncio import create_async_engine

def run(connection):
    context.configure(connection=connection, target_metadata=None)
    with context.begin_transaction():
        context.run_migrations()

async def main():
    engine = create_async_engine(context.config.get_main_option("sqlalchemy.url"))
    async with engine.begin() as connection:
        await connection.run_sync(run)
    await engine.dispose()

asyncio.run(main())
"""

THEIR_REVISION = """
from alembic import op

revision = "0001"
down_revision = None
branch_labels = ("theirs",)
depends_on = ({head!r},)

def upgrade():
    op.execute("CREATE TABLE invoices (n integer)")

def downgrade():
    op.execute("DROP TABLE invoices")
"""


@pytest.fixture
def their_config(tmp_path: Path, empty_database_url: str) -> Config:
    """The Alembic configuration of an application that embeds our revisions."""
    (tmp_path / "versions").mkdir()
    (tmp_path / "env.py").write_text(THEIR_ENV, encoding="utf-8")
    (tmp_path / "versions" / "0001_invoices.py").write_text(
        THEIR_REVISION.format(head=head_revision()), encoding="utf-8"
    )
    config = Config()
    config.set_main_option("script_location", str(tmp_path))
    config.set_main_option("path_separator", "newline")
    config.set_main_option("version_locations", f"{tmp_path / 'versions'}\n{migrations_directory() / 'versions'}")
    url = empty_database_url.replace("postgresql://", "postgresql+asyncpg://")
    config.set_main_option("sqlalchemy.url", url.replace("%", "%%"))
    return config


def test_our_revisions_work_in_their_tree_and_version_table(
    their_config: Config, empty_database_url: str, database_url: str
) -> None:
    command.upgrade(their_config, "cascade_state@head")
    ours = asyncio.run(describe(empty_database_url, without=("alembic_version",)))
    assert ours == asyncio.run(describe(database_url, without=("cascade_state_version",)))
    asyncio.run(_check(empty_database_url))

    command.upgrade(their_config, "heads")
    assert "invoices" in asyncio.run(table_names(empty_database_url))

    command.downgrade(their_config, "theirs@base")
    command.downgrade(their_config, "cascade_state@base")
    assert asyncio.run(table_names(empty_database_url)) == {
        "alembic_version",
        "_alembic_version",
        "alembic_version_pkc",
    }


def test_the_application_chooses_the_partition_count(their_config: Config, empty_database_url: str) -> None:
    their_config.attributes["partition_count"] = 512
    command.upgrade(their_config, "cascade_state@head")
    asyncio.run(_check(empty_database_url, 512))


async def _check(url: str, partition_count: int = 256) -> None:
    async with open_store(url, partition_count=partition_count) as store:
        await store.check_schema()


@pytest.fixture
def with_recipe(tmp_path: Path, empty_database_url: str) -> Config:
    """Our own environment with one more revision: the recipe of NOTES.md for an index on a table that exists."""
    notes = (migrations_directory() / "NOTES.md").read_text(encoding="utf-8")
    (recipe,) = re.findall(r"```python\n(.*?)```", notes, flags=re.DOTALL)
    head = f'from alembic import op\n\nrevision = "cascade_state_9999"\ndown_revision = "{head_revision()}"\n\n\n'
    (tmp_path / "cascade_state_9999_index.py").write_text(head + recipe, encoding="utf-8")
    config = alembic_config(url=empty_database_url)
    config.set_main_option("path_separator", "newline")
    config.set_main_option("version_locations", f"{migrations_directory() / 'versions'}\n{tmp_path}")
    return config


def test_a_concurrent_index_replaces_the_invalid_one_of_a_failed_attempt(
    with_recipe: Config, empty_database_url: str
) -> None:
    asyncio.run(migrate_database(empty_database_url))
    asyncio.run(_leave_an_invalid_index(empty_database_url))
    command.upgrade(with_recipe, "head")
    assert asyncio.run(_is_valid(empty_database_url)) is True
    command.downgrade(with_recipe, head_revision())
    assert asyncio.run(_is_valid(empty_database_url)) is None


def test_a_concurrent_index_does_not_wait_for_those_who_wait_for_the_migration(
    with_recipe: Config, empty_database_url: str
) -> None:
    asyncio.run(migrate_database(empty_database_url))
    asyncio.run(_upgrade_while_another_waits(with_recipe, empty_database_url))
    assert asyncio.run(_is_valid(empty_database_url)) is True


async def _upgrade_while_another_waits(config: Config, url: str) -> None:
    """Lets a second process ask for the lock for as long as the build takes."""
    locations = config.get_main_option("version_locations")
    program = WAITING_PROCESS.format(url=url, locations=locations)
    async with migration_lock(url) as holder:
        process = await asyncio.create_subprocess_exec(sys.executable, "-c", program)
        await waiting(holder, 1)
        # Builds as the revision would, in the session that holds the lock, while the process asks for it.
        await asyncio.wait_for(holder.execute("CREATE INDEX CONCURRENTLY ix_timers_step ON timers (step_id)"), WAIT)
        await holder.execute("SELECT pg_advisory_unlock_all()")
        assert await asyncio.wait_for(process.wait(), WAIT) == 0


async def _leave_an_invalid_index(url: str) -> None:
    """Interrupts a concurrent build while it waits for a transaction that has written to the table."""
    connection, other = await asyncpg.connect(url), await asyncpg.connect(url)
    try:
        transaction = other.transaction()
        await transaction.start()
        await other.execute("LOCK TABLE timers IN ROW EXCLUSIVE MODE")
        await connection.execute("SET lock_timeout = '50ms'")
        with pytest.raises(asyncpg.LockNotAvailableError):
            await connection.execute("CREATE INDEX CONCURRENTLY ix_timers_step ON timers (step_id)")
        await transaction.rollback()
        assert await _is_valid(url) is False
    finally:
        await connection.close()
        await other.close()


async def _is_valid(url: str) -> bool | None:
    connection = await asyncpg.connect(url)
    try:
        valid: bool | None = await connection.fetchval(
            "SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass('ix_timers_step')"
        )
        return valid
    finally:
        await connection.close()
