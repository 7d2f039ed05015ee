"""A full cycle with the PyPI package integresql-client-python, unmodified. Arguments: base URL, directory to hash."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import asyncpg
from integresql_client_python import IntegreSQL, errors  # type: ignore[import-not-found]


async def execute(where: Any, statement: str) -> list[Any]:
    connection = await asyncpg.connect(
        host=where.host, port=where.port, user=where.user, password=where.password, database=where.name
    )
    try:
        return [row[0] for row in await connection.fetch(statement)]
    finally:
        await connection.close()


def run(where: Any, statement: str) -> list[Any]:
    return asyncio.run(execute(where, statement))


def main(base_url: str, directory: str) -> None:
    names = "SELECT name FROM pilot ORDER BY name"
    integresql = IntegreSQL(directory, base_url=base_url)
    template = integresql.get_template()
    try:
        template.get_database().open()
    except errors.TemplateNotFound:
        pass
    else:
        raise AssertionError("an unknown template has a database")
    try:
        template.finalize()
    except errors.TemplateNotFound:
        pass
    else:
        raise AssertionError("an unknown template is finalized")
    with integresql as same:
        with same.initialize() as where:
            assert where is not None
            assert where.tpl_hash == str(integresql.tpl_hash)
            run(where, "CREATE TABLE pilot (name text)")
            run(where, "INSERT INTO pilot VALUES ('Mario')")
        with integresql.get_template().initialize() as again:  # made already
            assert again is None
        database = same.get_database()
        with database as first:
            assert run(first, names) == ["Mario"]
            run(first, "INSERT INTO pilot VALUES ('Luigi')")
            second = database.open()
            assert second.db_id != first.db_id
            assert run(second, names) == ["Mario"]
        database.mark_unmodified(second)
        integresql.discard_template(integresql.tpl_hash)
        try:
            database.open()
        except errors.TemplateNotFound:
            pass
        else:
            raise AssertionError("a discarded template has a database")
        integresql.reset_all_tracking()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
