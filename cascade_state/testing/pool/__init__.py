"""A pool of test databases: migrated copies of one template, handed out at once, made ahead in the background.

Who has which database is written in the *books*, a small database on the same server. So any number of processes share
one pool, and whoever comes after a restart continues with what is there.

A holder is a process with one open connection to the books and one advisory lock on it. Handing a database out is one
statement on that connection: the row of a ready database goes to this holder. As long as the lock is held nobody takes
it away, whether or not anybody is connected to it at the moment; when the process is gone, however that happened, the
server lets the lock go, and the next keeper that looks makes the database anew. Even then it is dropped without force,
so that a session which is still connected is never cut.

What is handed out without a session (`hand_out`, for HTTP clients) has nobody whose death could be seen. It comes back
when it is given back, or when the pool is exhausted and nobody has been connected to it for a while.

`slots` holds the rows and the short statements, `session` the connection and the lock, `keeper` and `upkeep` the
background work, `database_pool` what users see, `blocking` its twin.
"""

from __future__ import annotations

from cascade_state.testing.pool.blocking import BlockingPool
from cascade_state.testing.pool.database_pool import DatabasePool
from cascade_state.testing.pool.pooled_database import PooledDatabase, PoolStatistics

__all__ = ["BlockingPool", "DatabasePool", "PoolStatistics", "PooledDatabase"]
