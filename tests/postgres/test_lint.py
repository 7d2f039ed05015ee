"""The rules for schema, migrations and statements: kept by ours, and seen to catch what breaks them."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import Column, ForeignKeyConstraint, Index, Integer, MetaData, PrimaryKeyConstraint, Table, Text, event

import cascade_state.postgres.statements
from cascade_state import FlowDefinition, FlowInstance, FlowInstanceFilter, StepDefinition, Store
from cascade_state.postgres import direct
from cascade_state.postgres.direct import CompiledStatement, Statement
from cascade_state.postgres.schema import dump_schema, migrations_directory
from cascade_state.postgres.statements import flow_instances as instance_statements
from cascade_state.postgres.statements.advance import advance_statement
from cascade_state.postgres.statements.advance_shape import PART_COLUMNS, Shape
from cascade_state.postgres.tables import metadata
from cascade_state.testing.metadata_lint import lint_metadata
from cascade_state.testing.sql_lint import ALLOWED, lint_statement
from tests.statement_watch import ForbiddenStatement, watched_statements

ROOT = Path(__file__).resolve().parents[2]
VERSIONS = sorted((migrations_directory() / "versions").glob("*.py"))


def own_statements() -> Iterator[Statement]:
    """The statements of the store; of those that are built for a shape, the one with everything."""
    yield from _built_statements()
    for module in pkgutil.iter_modules(cascade_state.postgres.statements.__path__):
        found = importlib.import_module(f"cascade_state.postgres.statements.{module.name}")
        for value in vars(found).values():
            yield from (item for item in _members(value) if isinstance(item, Statement))


def _built_statements() -> Iterator[Statement]:
    every_filter = frozenset(field.name for field in fields(FlowInstanceFilter))
    every_part = frozenset({*PART_COLUMNS, "terminal", "lease"})
    for is_new in (True, False):
        for is_batch in (True, False):
            yield advance_statement(Shape(is_new=is_new, is_batch=is_batch, parts=every_part))
    for continued in (True, False):
        yield instance_statements.list_statement(every_filter, continued=continued)
        yield instance_statements.find_by_correlation_statement(continued=continued)
    yield instance_statements.count_statement(every_filter)
    yield instance_statements.claim_statement(every_filter)


def _members(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return list(value.values())
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _text(statement: Statement) -> str:
    """The text as it would be sent; compiled without those who watch, so that this test reports a broken rule."""
    watching, direct.on_statement[:] = direct.on_statement[:], []
    try:
        return CompiledStatement(statement, None).text
    finally:
        direct.on_statement[:] = watching


def rules(sql: str, name: str = "x") -> set[str]:
    return {violation.rule for violation in lint_statement(sql, name=name)}


class TestTables:
    def test_ours_keep_the_rules(self) -> None:
        assert lint_metadata(metadata) == []

    @pytest.mark.parametrize(
        ("items", "info", "expected"),
        [
            ([Column("partition_id", Integer, nullable=False)], {}, "D1 t: has no primary key"),
            ([], {"distribution": None}, "D1 t: does not say how it is distributed"),
            ([PrimaryKeyConstraint("other", "partition_id", name="pk_t")], {}, "D1 t.pk_t: does not begin"),
            ([sa.UniqueConstraint("other", name="uq_t_other")], {}, "D1 t.uq_t_other: does not begin"),
            ([Index("uq_t_other", "other", unique=True)], {}, "D1 t.uq_t_other: is unique"),
            ([Index("index_on_t", "other")], {}, "D3 t.index_on_t: is not named ix_t"),
            ([sa.CheckConstraint("other > ''", name="odd")], {}, "D3 t.odd: is not named ck_t"),
            ([Index("ix_t_" + "é" * 30, "other")], {}, "is longer than 63 bytes"),
            ([Column("kind", sa.Enum("a", "b", name="kinds"))], {}, "D4 t.kind: is a native enum"),
            ([Column("n", Integer, sa.Sequence("numbers"))], {}, "D4 t.n: takes its value from a sequence"),
            ([Column("n", Integer, sa.Identity())], {}, "D4 t.n: takes its value from a sequence"),
        ],
    )
    def test_a_table_that_breaks_one_is_found(self, items: list[Any], info: dict[str, Any], expected: str) -> None:
        keyed = any(isinstance(item, PrimaryKeyConstraint) for item in items) or "no primary key" in expected
        columns: list[Any] = (
            [] if "no primary key" in expected else [_partition(), Column("other", Text, nullable=False)]
        )
        key = [] if keyed else [PrimaryKeyConstraint("partition_id", "other", name="pk_t")]
        tables = MetaData()
        Table("t", tables, *columns, *key, *items, info={"distribution": "x", **info})
        assert any(expected in str(violation) for violation in lint_metadata(tables))

    @pytest.mark.parametrize(
        ("partition", "expected"),
        [
            (Column("partition_id", sa.BigInteger, nullable=False), "is not an integer"),
            (Column("partition_id", Integer, nullable=True), "is not an integer"),
            (Column("partition_id", Integer, nullable=False, server_default="1"), "is filled by the database"),
            (Column("partition_id", Integer, sa.Computed("1"), nullable=False), "is filled by the database"),
            (Column("partition_id", Integer, nullable=False, default=1), "is filled by itself"),
            (Column("other", Integer), "has no partition_id"),
        ],
    )
    def test_a_partition_that_is_not_plain_is_found(self, partition: Column[Any], expected: str) -> None:
        tables = MetaData()
        Table(
            "t",
            tables,
            partition,
            Column("n", Integer),
            PrimaryKeyConstraint("n", name="pk_t"),
            info={"distribution": 1},
        )
        assert any(
            f"D2 t{'.partition_id' if 'is' in expected else ''}" in str(found) for found in lint_metadata(tables)
        )
        assert any(expected in str(found) for found in lint_metadata(tables))

    @pytest.mark.parametrize(
        ("columns", "ondelete", "owner", "expected"),
        [
            (("partition_id", "flow_instance_id"), "CASCADE", "flow instance", None),
            (("partition_id", "flow_instance_id"), "SET NULL", "flow instance", "sets columns"),
            (("partition_id", "flow_instance_id"), None, "flow instance", "is neither"),
            (("partition_id", "parent_id"), "CASCADE", "flow instance", "is neither"),
            (("partition_id", "flow_instance_id"), "CASCADE", "correlation key", "may lie on another node"),
        ],
    )
    def test_a_foreign_key_leads_to_the_flow_of_its_own_partition(
        self, columns: tuple[str, str], ondelete: str | None, owner: str, expected: str | None
    ) -> None:
        tables = MetaData()
        _flow_instances(tables)
        target = ["flow_instances.partition_id", "flow_instances.flow_instance_id"]
        Table(
            "t",
            tables,
            _partition(),
            Column(columns[1], Integer, autoincrement=False),
            PrimaryKeyConstraint(*columns, name="pk_t"),
            ForeignKeyConstraint(columns, target, name="fk_t_flow_instances", ondelete=ondelete),
            info={"distribution": "x", "partition_of": owner},
        )
        found = [violation.reason for violation in lint_metadata(tables)]
        assert any(expected in reason for reason in found) if expected else found == []

    def test_a_schema_and_a_trigger_are_found(self) -> None:
        tables = MetaData()
        table = Table(
            "t", tables, Column("name", Text, primary_key=True), schema="public", info={"distribution": "reference"}
        )
        event.listen(table, "after_create", sa.DDL("CREATE TRIGGER x"))  # type: ignore[no-untyped-call]
        found = {violation.rule for violation in lint_metadata(tables)}
        assert found == {"D3", "D4", "D5"}


def _partition() -> Column[int]:
    return Column("partition_id", Integer, nullable=False, autoincrement=False)


def _flow_instances(tables: MetaData) -> None:
    Table(
        "flow_instances",
        tables,
        _partition(),
        Column("flow_instance_id", Integer, autoincrement=False),
        PrimaryKeyConstraint("partition_id", "flow_instance_id", name="pk_flow_instances"),
        info={"distribution": "x", "partition_of": "flow instance"},
    )


_FOREIGN_KEY = r"ALTER TABLE (\w+) ADD CONSTRAINT \w+ FOREIGN KEY\s?\([^)]*\) REFERENCES (\w+)"


def _places(pattern: str, script: str) -> dict[str, int]:
    """Returns where each table is first named in this way."""
    return {match[1]: match.start() for match in reversed(list(re.finditer(pattern, script)))}


class TestMigrations:
    def test_tables_come_before_their_distribution_and_that_before_the_foreign_keys(self) -> None:
        script = dump_schema()
        made = _places(r"CREATE TABLE (\w+) ", script)
        distributed = _places(r"create_(?:distributed|reference)_table\('(\w+)'", script)
        assert set(metadata.tables) == set(distributed) <= set(made)
        keys = [(key[1], key[2], key.start()) for key in re.finditer(_FOREIGN_KEY, script)]
        assert len(keys) == sum(len(table.foreign_key_constraints) for table in metadata.tables.values())
        for table, place in distributed.items():
            assert made[table] < place
            assert all(place < key for *related, key in keys if table in related)

    def test_each_transaction_keeps_its_ddl_in_sequence(self) -> None:
        transactions = dump_schema().split("BEGIN;\n")[1:]
        assert len(transactions) >= 4
        for transaction in transactions:
            first = next(line for line in transaction.splitlines() if line and not line.startswith("--"))
            if first.startswith("CREATE TABLE cascade_state_version"):
                transaction = transaction.split(");", 1)[1]
            statements = [line for line in transaction.splitlines() if line and not line.startswith("--")]
            assert statements[0] == "SET LOCAL citus.multi_shard_modify_mode TO 'sequential';"

    def test_no_schema_trigger_enum_or_sequence_is_made(self) -> None:
        forbidden = r"\b(TRIGGER|(BIG)?SERIAL|GENERATED|CREATE SEQUENCE|CREATE TYPE|PUBLIC)\b"
        assert re.findall(forbidden, dump_schema(), re.IGNORECASE) == []

    @pytest.mark.parametrize("path", VERSIONS, ids=lambda path: path.stem)
    def test_each_execute_sends_one_statement(self, path: Path) -> None:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        described = (ast.Module, ast.FunctionDef, ast.ClassDef)
        docstrings = {ast.get_docstring(node, clean=False) for node in ast.walk(tree) if isinstance(node, described)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value not in docstrings:
                assert "$$" in node.value or not re.search(r";\s*\S", node.value), node.value


class TestStatements:
    @pytest.mark.parametrize("statement", sorted(own_statements(), key=repr), ids=lambda statement: statement.name)
    def test_ours_keep_the_rules(self, statement: Statement) -> None:
        assert lint_statement(_text(statement), name=statement.name) == []

    def test_every_excuse_is_needed(self) -> None:
        broken = {
            (violation.rule, statement.name)
            for statement in own_statements()
            for violation in lint_statement(_text(statement), name="")  # no excuse is for a statement without a name
        } | {("S6", "sqlalchemy.settings")}  # shown by every test that migrates
        unused = {
            (rule, pattern)
            for rule, pattern in ALLOWED
            if not any(rule == found and re.match(pattern.replace("*", ".*"), name) for found, name in broken)
        }
        assert unused == set()

    @pytest.mark.parametrize(
        ("sql", "rule"),
        [
            ("SELECT * FROM timers WHERE due_at <= now() FOR UPDATE SKIP LOCKED", "S1"),
            ("SELECT * FROM timers WHERE partition_id = ANY($1) FOR SHARE", "S1"),
            ("SELECT * FROM timers t WHERE t.partition_id = other.partition_id FOR NO KEY UPDATE", "S1"),
            ("WITH d AS (SELECT 1 FROM timers FOR UPDATE) UPDATE timers SET n = 1 WHERE partition_id = $1", "S1"),
            ("UPDATE timers SET due_at = clock_timestamp()", "S2"),
            ("DELETE FROM timers WHERE id = gen_random_uuid()", "S2"),
            ("WITH x AS (UPDATE timers SET n = (random() * 2)::int RETURNING 1) SELECT * FROM x", "S2"),
            ("INSERT INTO t VALUES (1) ON CONFLICT (k) DO UPDATE SET at = now()", "S2"),
            ("INSERT INTO t VALUES (1) ON CONFLICT (k) DO UPDATE SET n = (SELECT 1) RETURNING k", "S2"),
            ("INSERT INTO t VALUES (1) ON CONFLICT (k) DO UPDATE SET n = excluded.n WHERE t.at < lower(t.x)", "S2"),
            ("INSERT INTO t VALUES (1) ON CONFLICT (k) DO UPDATE SET n = coalesce(lower(t.x), excluded.n)", "S2"),
            ("MERGE INTO t USING s ON t.id = s.id WHEN MATCHED THEN DELETE", "S2"),
            ("DELETE FROM t WHERE ctid = ANY($1)", "S2"),
            ("SELECT now(), statement_timestamp()", "S3"),
            ("SELECT clock_timestamp()", "S3"),
            ("UPDATE t SET a = CURRENT_TIMESTAMP WHERE b < now()", "S3"),
            ("WITH u AS (UPDATE t SET a = 1 RETURNING 1) SELECT pg_notify($1, $2) FROM u", "S4"),
            ("SELECT * FROM timers WHERE step_id = 'charge'", "S6"),
            ("SELECT * FROM timers WHERE step_id = 'it''s'", "S6"),
            ("SET TRANSACTION ISOLATION LEVEL SERIALIZABLE", "S7"),
            ("UPDATE t SET n = 1, partition_id = $1 WHERE partition_id = $2", "D2"),
            ("CREATE TRIGGER x AFTER INSERT ON t EXECUTE FUNCTION f()", "D4"),
        ],
    )
    def test_a_statement_that_breaks_one_is_found(self, sql: str, rule: str) -> None:
        assert rule in rules(sql)

    @pytest.mark.parametrize(
        "sql",
        [
            "SELECT * FROM timers WHERE partition_id = $1 AND status = 'PENDING' FOR UPDATE SKIP LOCKED LIMIT $2",
            "WITH due AS (SELECT id FROM t WHERE t.partition_id = $1 FOR UPDATE) DELETE FROM t USING due WHERE x = 1",
            "UPDATE t SET at = statement_timestamp() + $1 WHERE until <= statement_timestamp()",
            "INSERT INTO t SELECT gen_random_uuid(), now() ON CONFLICT (k) DO UPDATE SET at = excluded.at, n = t.n + 1",
            "INSERT INTO t VALUES ($1) ON CONFLICT (k) DO UPDATE SET n = coalesce(excluded.n, 1) RETURNING lower(x)",
            "INSERT INTO t VALUES ($1) ON CONFLICT DO NOTHING",
            "SELECT pg_notify($1, $2)",
            "WITH l AS (SELECT pg_advisory_xact_lock($1)) INSERT INTO t SELECT $2 FROM l",
            'SELECT "FOR UPDATE" FROM t -- FOR UPDATE',
            "WITH d AS (SELECT 1 FROM flow_definitions WHERE flow_id = $1 FOR KEY SHARE) SELECT * FROM d",
        ],
    )
    def test_a_statement_that_keeps_them_passes(self, sql: str) -> None:
        assert rules(sql) == set()

    def test_an_excuse_is_for_its_rule_and_its_statements_only(self) -> None:
        claim = "SELECT * FROM timers WHERE due_at <= clock_timestamp() FOR UPDATE"
        assert rules(claim, "timers.claim_due") == {"S3"}
        assert rules(claim, "timers.peek") == {"S1", "S3"}


class TestWatch:
    @pytest.mark.postgres
    async def test_every_statement_of_a_store_is_seen(
        self, postgres_store: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(postgres_store._statements, "_compiled", {})  # type: ignore[attr-defined]
        with watched_statements() as seen:
            order = FlowDefinition(flow_id="o", name="O", steps=(StepDefinition(step_id="a", component_type="c"),))
            order = await postgres_store.flow_definitions.deploy(order)
            await postgres_store.advance(FlowInstance.create(order).start())
            async with postgres_store.begin() as uow:
                await uow.connection.execute(sa.select(metadata.tables["timers"].c.timer_id))
        assert any(name.startswith("flow_instances.") for name in seen)
        assert "FROM timers" in seen["sqlalchemy"]

    @pytest.mark.postgres
    async def test_a_forbidden_statement_fails_the_test_that_sends_it(self, postgres_store: Store) -> None:
        async with postgres_store.begin() as uow:
            with pytest.raises(ForbiddenStatement, match="S2 sqlalchemy"):
                await uow.connection.execute(sa.text("UPDATE timers SET due_at = clock_timestamp()"))

    def test_a_forbidden_statement_of_our_own_cannot_be_compiled(self) -> None:
        bad = Statement("bad", lambda: sa.text("DELETE FROM timers WHERE due_at < clock_timestamp()"))
        with pytest.raises(ForbiddenStatement, match="S2 bad"):
            CompiledStatement(bad, None)


class TestErrors:
    def test_errors_are_told_apart_by_sqlstate_only(self) -> None:
        """S5: a distributed engine leaves these fields empty, and puts shard numbers into the text."""
        named = {"constraint_name", "table_name", "column_name", "detail"}
        for path in (ROOT / "cascade_state" / "postgres").rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                assert not (isinstance(node, ast.Attribute) and node.attr in named), f"{path}:{node.lineno}"
