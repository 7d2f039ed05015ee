"""The statements that keep the slots of a server in order: who is gone, what is missing, how many there should be.

They run on connections of the keeper, never on the one that hands databases out. Only the pool imports this.
"""

from __future__ import annotations

__all__ = [
    "CLAIM",
    "CONNECTED",
    "COUNTS",
    "COUNT_DOOMED",
    "DOOM",
    "EVICT",
    "FINISH",
    "FORGET_GONE",
    "GROW",
    "MARK_MISSING",
    "MARK_STALE",
    "NOTE_CONNECTED",
    "ONE_AT_A_TIME",
    "PLAN",
    "RECLAIM",
    "RECOVER_GONE",
    "RELEASE",
    "SHRINK",
    "USERS",
    "VANISH",
]

MARK_MISSING = """
UPDATE holders h
SET missing_since = CASE WHEN h.missing_since IS NULL THEN clock_timestamp() END
WHERE (h.missing_since IS NULL) = (h.holder NOT IN (SELECT holder FROM live_holders))
"""

# Of holders that are missing for longer than $1, or that ended and yet left something behind: a command that was on its
# way when they closed.
RECOVER_GONE = """
UPDATE slots s
SET state = 'recycling', holder = NULL, may_disconnect = s.may_disconnect AND s.state = 'recycling',
    changed_at = clock_timestamp()
WHERE s.holder IS NOT NULL AND s.holder NOT IN (SELECT holder FROM live_holders)
  AND NOT EXISTS (
      SELECT FROM holders h
      WHERE h.holder = s.holder
        AND (h.missing_since IS NULL OR h.missing_since >= clock_timestamp() - $1::interval))
RETURNING s.template, s.database
"""

FORGET_GONE = """
DELETE FROM holders h
WHERE h.missing_since < clock_timestamp() - $1::interval AND h.holder NOT IN (SELECT holder FROM live_holders)
"""

# $1 template.
MARK_STALE = """
UPDATE slots s SET state = 'recycling', may_disconnect = false, changed_at = clock_timestamp()
WHERE s.template = $1 AND s.state = 'ready'
  AND (s.template_oid IS DISTINCT FROM (SELECT oid FROM pg_database WHERE datname = $1)
       OR NOT EXISTS (SELECT FROM pg_database d WHERE d.datname = s.database))
RETURNING s.database
"""

# `coming` is what is being made or is an open job. $1 template.
COUNTS = """
SELECT count(*) FILTER (WHERE template = $1 AND is_ours AND NOT is_doomed) AS total,
       count(*) FILTER (WHERE template = $1 AND is_ours AND state = 'ready') AS ready,
       count(*) FILTER (WHERE template = $1 AND state = 'leased') AS leased,
       count(*) FILTER (WHERE template = $1 AND state = 'recycling' AND NOT is_doomed) AS recycling,
       count(*) FILTER (WHERE template = $1 AND NOT is_doomed
                        AND (is_open OR (state = 'recycling' AND holder IS NOT NULL))) AS coming,
       count(*) FILTER (WHERE is_open AND (template = $1 OR is_doomed)) AS open_jobs,
       count(*) FILTER (WHERE is_doomed) AS doomed,
       count(*) AS everywhere
FROM jobs
"""

# The counts, and as many new rows as `wanted` (the ready ones that there should be) is short of, up to max_size.
# Whoever grows the same pool at the same moment wants the same numbers, and gets what is left of them: so no lock is
# needed to stay within max_size. $1 template, $2 prefix of the names, $3 the last number to try, $4 wanted,
# $5 max_size.
PLAN = """
WITH counts AS (
    SELECT count(*) FILTER (WHERE template = $1 AND is_ours AND NOT is_doomed) AS total,
           count(*) FILTER (WHERE template = $1 AND is_ours AND state = 'ready') AS ready,
           count(*) FILTER (WHERE template = $1 AND NOT is_doomed
                            AND (is_open OR (state = 'recycling' AND holder IS NOT NULL))) AS coming,
           count(*) FILTER (WHERE is_open AND (template = $1 OR is_doomed)) AS open_jobs
    FROM jobs
),
grown AS (
    INSERT INTO slots (template, number, database, state)
    SELECT $1, free.number, free.database, 'recycling'
    FROM free_names($1, $2, $3) AS free
    LIMIT (SELECT greatest(0, least($4::bigint - ready - coming, $5::bigint - total)) FROM counts)
    ON CONFLICT DO NOTHING
    RETURNING number
)
SELECT counts.*, (SELECT count(*) FROM grown) AS grown FROM counts
"""

# Taken by whoever takes up what is left of the server's budget; ends with the transaction.
ONE_AT_A_TIME = "SELECT pg_advisory_xact_lock(hashtextextended('cascade_state pools grow', 0))"

# Under that lock, a number of rows. $1 template, $2 prefix of the names, $3 the last number to try, $4 how many.
GROW = """
INSERT INTO slots (template, number, database, state)
SELECT $1, free.number, free.database, 'recycling'
FROM free_names($1, $2, $3) AS free
LIMIT greatest(0, $4::bigint)
ON CONFLICT DO NOTHING
RETURNING number
"""

# Of templates none of whose databases is leased, the one first whose last use is longest ago. $1 template that
# needs room, $2 how many.
EVICT = """
WITH idle AS (
    SELECT template, max(changed_at) AS used_at
    FROM slots WHERE template <> $1
    GROUP BY template HAVING bool_and(state <> 'leased')
),
victims AS (
    SELECT s.template, s.number
    FROM slots s JOIN idle ON idle.template = s.template
    WHERE s.holder IS NULL AND NOT s.is_doomed
      AND NOT EXISTS (SELECT FROM users u WHERE u.database = s.database)
      AND s.database NOT IN (SELECT database FROM untouchable)
    ORDER BY idle.used_at, s.number DESC
    LIMIT $2
    FOR UPDATE OF s SKIP LOCKED
)
UPDATE slots s SET state = 'recycling', is_doomed = true
FROM victims WHERE s.template = victims.template AND s.number = victims.number
RETURNING s.database
"""

# $1 template, $2 how many ready ones to keep, $3 for how long the others have not been wanted.
SHRINK = """
WITH victims AS (
    SELECT s.template, s.number
    FROM slots s
    WHERE s.template = $1 AND s.state = 'ready' AND s.changed_at < clock_timestamp() - $3::interval
      AND NOT EXISTS (SELECT FROM users u WHERE u.database = s.database)
    ORDER BY s.number DESC
    LIMIT greatest(0, (SELECT count(*) FROM slots r WHERE r.template = $1 AND r.state = 'ready') - $2::integer)
    FOR UPDATE OF s SKIP LOCKED
)
UPDATE slots s SET state = 'recycling', is_doomed = true
FROM victims WHERE s.template = victims.template AND s.number = victims.number
RETURNING s.database
"""

# Everything that no live session holds. $1 template.
DOOM = """
UPDATE slots s
SET holder = CASE WHEN s.state = 'recycling' THEN s.holder END, state = 'recycling', is_doomed = true,
    may_disconnect = false
WHERE s.template = $1
  AND NOT (s.state = 'leased' AND s.holder IS NOT NULL AND s.holder IN (SELECT holder FROM live_holders))
RETURNING s.database
"""

# $1 database.
CONNECTED = """
SELECT database, process_id, application_name FROM users WHERE database = $1 ORDER BY process_id
"""

# $1 template.
COUNT_DOOMED = "SELECT count(*) AS doomed, min(database) AS database FROM slots WHERE template = $1 AND is_doomed"

# Who is connected to a template's databases, and which live sessions lease one. $1 template.
USERS = """
SELECT u.database, u.process_id, u.application_name
FROM slots s JOIN users u ON u.database = s.database
WHERE s.template = $1
UNION ALL
SELECT s.database, h.process_id, h.application_name
FROM slots s JOIN holders h ON h.holder = s.holder
WHERE s.template = $1 AND s.state = 'leased' AND s.holder IN (SELECT holder FROM live_holders)
ORDER BY 1, 2
"""

# $1 template.
NOTE_CONNECTED = """
UPDATE slots s SET connected_at = clock_timestamp(), session_count = p.sessions
FROM pg_stat_database p
WHERE p.datname = s.database AND s.template = $1 AND s.state = 'leased' AND s.holder IS NULL
  AND (p.sessions > coalesce(s.session_count, 0) OR EXISTS (SELECT FROM users u WHERE u.database = s.database))
"""

# $1 template, $2 how many, $3 after the last connection, $4 when there never was one.
RECLAIM = """
WITH chosen AS (
    SELECT s.template, s.number
    FROM slots s
    WHERE s.template = $1 AND s.state = 'leased' AND s.holder IS NULL
      AND NOT EXISTS (SELECT FROM users u WHERE u.database = s.database)
      AND coalesce(s.connected_at + $3::interval, s.changed_at + $4::interval) < clock_timestamp()
    ORDER BY s.changed_at, s.number
    LIMIT $2
    FOR UPDATE OF s SKIP LOCKED
)
UPDATE slots s SET state = 'recycling', may_disconnect = false, changed_at = clock_timestamp()
FROM chosen WHERE s.template = chosen.template AND s.number = chosen.number
RETURNING s.database
"""

# A database that somebody is connected to waits, unless its holder gave it back. $1 template, $2 who makes it.
CLAIM = """
WITH chosen AS (
    SELECT s.template, s.number
    FROM slots s
    WHERE s.state = 'recycling' AND s.holder IS NULL AND (s.template = $1 OR s.is_doomed)
      AND (s.may_disconnect OR NOT EXISTS (SELECT FROM users u WHERE u.database = s.database))
      AND s.database NOT IN (SELECT database FROM untouchable)
    ORDER BY s.is_doomed DESC, s.changed_at, s.number
    LIMIT 1
    FOR UPDATE OF s SKIP LOCKED
)
UPDATE slots s SET holder = $2
FROM chosen WHERE s.template = chosen.template AND s.number = chosen.number
RETURNING s.template, s.number, s.database, s.generation, s.may_disconnect, s.is_doomed,
          (SELECT oid FROM pg_database WHERE datname = s.template) AS template_oid,
          EXISTS (SELECT FROM pg_database d WHERE d.datname = s.database) AS is_there,
          EXISTS (SELECT FROM users u WHERE u.database = s.template) AS is_template_in_use
"""

# Doomed while it was being made: it goes on to be dropped. A new one keeps its place among the new ones. $1 template,
# $2 number, $3 maker, $4 the template's oid.
FINISH = """
WITH done AS (
    UPDATE slots
    SET state = CASE WHEN is_doomed THEN 'recycling' ELSE 'ready' END, holder = NULL, may_disconnect = false,
        generation = generation + 1, template_oid = $4,
        changed_at = CASE WHEN generation = 0 THEN changed_at ELSE clock_timestamp() END
    WHERE template = $1 AND number = $2 AND holder = $3 AND state = 'recycling'
    RETURNING template
)
SELECT pg_notify('slots', template) IS NOT NULL AS done FROM done
"""

# $1 template, $2 number, $3 maker.
RELEASE = """
UPDATE slots SET holder = NULL, changed_at = clock_timestamp()
WHERE template = $1 AND number = $2 AND holder = $3 AND state = 'recycling'
"""

# $1 template, $2 number, $3 maker.
VANISH = "DELETE FROM slots WHERE template = $1 AND number = $2 AND holder = $3 AND is_doomed"
