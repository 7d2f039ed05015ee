"""Slots: what a pool's databases are doing, as rows in the books that all pools of a server share.

    ready ──lease──▶ leased ──back, clean──▶ ready
                        │
                        └─back, dirty; holder gone──▶ recycling ──made anew──▶ ready, one generation on

A slot is one row, its name is that of one database, and each change of state is one statement that says which state
(and which generation, which holder) it expects. So nobody needs a lock for longer than a statement, and whoever comes
second changes nothing. `holder` is the session at work on the slot: of a leased one its user, or nobody when it was
handed out without a session; of a recycling one whoever is making it, or nobody yet. `is_doomed` marks what is
recycling in order to vanish.

A row is written before its database exists, and only when no database has its name. So a database that bears the name
of a slot is ours to drop, and a database that was there before is never touched.

Only the pool imports this.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

__all__ = [
    "GIVE_BACK_CLEAN",
    "GIVE_BACK_DIRTY",
    "LAYOUT",
    "LEASE",
    "LET_GO",
    "LOOK_UP",
    "TAKE_BACK",
    "Slot",
    "SlotState",
    "database_name",
    "database_prefix",
]

_PREFIX_LIMIT = 56  # bytes: 63 of a name, less "_" and six digits

LAYOUT = """
CREATE TABLE holders (
    holder bigint CONSTRAINT pk_holders PRIMARY KEY,
    process_id integer NOT NULL,
    application_name text NOT NULL,
    templates text[] NOT NULL,
    missing_since timestamptz
);
CREATE TABLE slots (
    template text NOT NULL,
    number integer NOT NULL,
    database text NOT NULL CONSTRAINT uq_slots_database UNIQUE,
    state text NOT NULL CONSTRAINT ck_slots_state CHECK (state IN ('ready', 'leased', 'recycling')),
    generation integer NOT NULL DEFAULT 0,
    template_oid oid,
    holder bigint,
    may_disconnect boolean NOT NULL DEFAULT false,
    is_doomed boolean NOT NULL DEFAULT false,
    changed_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    session_count bigint,
    connected_at timestamptz,
    CONSTRAINT pk_slots PRIMARY KEY (template, number)
) WITH (fillfactor = 50);
CREATE VIEW live_holders AS
    SELECT (l.classid::bigint << 32) | l.objid::bigint AS holder
    FROM pg_locks l
    WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1
      AND l.database = (SELECT d.oid FROM pg_database d WHERE d.datname = current_database());
CREATE VIEW users AS
    SELECT a.datname::text AS database, a.pid AS process_id, coalesce(a.application_name, '') AS application_name
    FROM pg_stat_activity a
    WHERE a.datname IS NOT NULL AND a.usesysid IS NOT NULL;
CREATE VIEW untouchable AS
    SELECT d.datname::text AS database FROM pg_database d WHERE NOT pg_has_role(d.datdba, 'USAGE');
CREATE VIEW jobs AS
    SELECT s.*, s.is_ours AND s.state = 'recycling' AND s.holder IS NULL
                AND (s.may_disconnect OR s.database NOT IN (SELECT database FROM users)) AS is_open
    FROM (
        SELECT template, database, state, holder, is_doomed, may_disconnect,
               database NOT IN (SELECT database FROM untouchable) AS is_ours
        FROM slots
    ) AS s;
CREATE FUNCTION free_names(of_template text, prefix text, upto integer)
RETURNS TABLE (number integer, database text) LANGUAGE sql STABLE AS $$
    SELECT n, name
    FROM generate_series(0, upto) AS n,
         concat(prefix, '_', CASE WHEN n < 1000 THEN lpad(n::text, 3, '0') ELSE n::text END) AS name
    WHERE NOT EXISTS (SELECT FROM slots s WHERE s.template = of_template AND s.number = n)
      AND NOT EXISTS (SELECT FROM slots s WHERE s.database = name)
      AND NOT EXISTS (SELECT FROM pg_database d WHERE d.datname = name)
    ORDER BY n
$$;
GRANT SELECT, INSERT, UPDATE, DELETE ON holders, slots TO PUBLIC;
GRANT SELECT ON live_holders, users, untouchable, jobs TO PUBLIC;
"""
# templates: those of whose pools the holder has open.
# template_oid: a template that was dropped and built again has another one, and its old copies are not handed out.
# live_holders: a holder lives while a session holds the advisory lock of its number, in this database.
# users: clients only; an autovacuum worker has no user, and leaves by itself when somebody wants the database.
# untouchable: what the role of this session may not drop. Several roles share the books; each has its own databases.
# jobs: an open one is what somebody could make now.
# free_names: the smallest numbers whose names nobody has; `database_name` says how a name is made.
# session_count, connected_at: of a slot without a session, whether anybody has connected since it was handed out.


class SlotState(StrEnum):
    """What a slot is doing."""

    READY = "ready"
    LEASED = "leased"
    RECYCLING = "recycling"


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """One database of a pool, as it was when this was read."""

    template: str
    number: int
    database: str
    generation: int

    @classmethod
    def of(cls, row: Any) -> Slot:
        """Returns the slot of a row of the books."""
        return cls(
            template=row["template"], number=row["number"], database=row["database"], generation=row["generation"]
        )


def database_prefix(template: str) -> str:
    """Returns the beginning of the names of a template's copies, shortened by a digest where it would be too long."""
    prefix = f"{template}_test"
    if len(prefix.encode()) <= _PREFIX_LIMIT:
        return prefix
    digest = hashlib.sha256(template.encode()).hexdigest()[:16]
    kept = template.encode()[: _PREFIX_LIMIT - len(f"_{digest}_test")].decode(errors="ignore")
    return f"{kept}_{digest}_test"


def database_name(prefix: str, number: int) -> str:
    """Returns the name of a slot's database."""
    return f"{prefix}_{number:03d}"


# ----- On the session's kept connection: one round trip each

# First come, first served, and new ones in the order of their numbers, although they are made side by side: one waits
# a moment for those before it that are still being made for the first time. $1 template, $2 holder or NULL.
LEASE = """
WITH chosen AS (
    SELECT s.template, s.number
    FROM slots s
    WHERE s.template = $1 AND s.state = 'ready'
      AND s.template_oid = (SELECT oid FROM pg_database WHERE datname = $1)
      AND EXISTS (SELECT FROM pg_database d WHERE d.datname = s.database AND pg_has_role(d.datdba, 'USAGE'))
      AND NOT (s.generation = 1 AND EXISTS (
          SELECT FROM slots e
          WHERE e.template = $1 AND e.number < s.number AND e.generation = 0 AND e.holder IS NOT NULL
            AND e.changed_at > clock_timestamp() - interval '1 second'))
    ORDER BY s.changed_at, s.number
    LIMIT 1
    FOR UPDATE OF s SKIP LOCKED
)
UPDATE slots s
SET state = 'leased', holder = $2, changed_at = clock_timestamp(), connected_at = NULL,
    session_count = CASE WHEN $2::bigint IS NULL
        THEN (SELECT sessions FROM pg_stat_database p WHERE p.datname = s.database) END
FROM chosen
WHERE s.template = chosen.template AND s.number = chosen.number
RETURNING s.template, s.number, s.database, s.generation
"""

# What a test left connected is cut off before the next holder comes; it said that it is done.
# $1 template, $2 number, $3 generation, $4 holder, $5 database.
GIVE_BACK_CLEAN = """
WITH cut AS MATERIALIZED (
    SELECT count(pg_terminate_backend(pid, 1000)) AS sessions
    FROM pg_stat_activity WHERE datname = $5 AND pid <> pg_backend_pid()
),
given AS (
    UPDATE slots SET state = 'ready', holder = NULL, changed_at = clock_timestamp()
    WHERE template = $1 AND number = $2 AND generation = $3 AND holder = $4 AND state = 'leased'
      AND (SELECT sessions FROM cut) IS NOT NULL
    RETURNING template
)
SELECT pg_notify('slots', template) IS NOT NULL AS given FROM given
"""

# $1 template, $2 number, $3 generation, $4 holder, $5 whether to end the sessions that are connected.
GIVE_BACK_DIRTY = """
UPDATE slots SET state = 'recycling', holder = NULL, may_disconnect = $5, changed_at = clock_timestamp()
WHERE template = $1 AND number = $2 AND generation = $3 AND holder = $4 AND state = 'leased'
RETURNING true AS given
"""

# The database stays, and its name with it: nobody makes another one that is called so. $1 … $4 as above.
LET_GO = """
DELETE FROM slots
WHERE template = $1 AND number = $2 AND generation = $3 AND holder = $4 AND state = 'leased'
RETURNING true AS given
"""

# ----- Of a database that was handed out without a session

# $1 template, $2 number.
LOOK_UP = """
SELECT s.template, s.number, s.database, s.generation, s.state = 'leased' AND s.holder IS NULL AS is_out
FROM slots s WHERE s.template = $1 AND s.number = $2 AND NOT s.is_doomed
"""

# $1 template, $2 number, $3 generation, $4 the new state.
TAKE_BACK = """
WITH taken AS (
    UPDATE slots SET state = $4, may_disconnect = false, changed_at = clock_timestamp()
    WHERE template = $1 AND number = $2 AND generation = $3 AND state = 'leased' AND holder IS NULL
    RETURNING template
)
SELECT pg_notify('slots', template) IS NOT NULL AS given FROM taken
"""
