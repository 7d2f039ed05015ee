"""A pool of test databases: migrated copies of one template, handed out at once, made ahead in the background.

The interface (the code follows; import from here or from `cascade_state.testing`):

    pool = DatabasePool(
        server, template, *, initial_size=cores, max_size=4 × cores,
        max_databases=None,          # budget of all pools of the server
        name_prefix=None,            # databases are f"{name_prefix}_{number:03d}", numbers from 0; None: from template
        owner=None,                  # role that owns the copies
        reclaim_after=1 s, unclaimed_after=30 s,   # for databases handed out without a session, see below
        shrink_after=60 s,
    )
    async with pool:                 # or `await pool.open()` / `await pool.close()`; `pool.blocking` is the twin
        async with pool.lease(timeout=…) as database: ...        # .name .url .number .generation .keep_clean()
        (await pool.statistics()).ready / .leased / .recycling / .waiting / .initial_size / .max_size / …

For holders without a session (HTTP clients), on an open pool:

    database = await pool.hand_out(timeout=…)                    # PooledDatabase: .name .url .number .generation
    await pool.take_back(number, clean=True)                     # unlock: as it is; False: it was not handed out
    await pool.take_back(number, clean=False)                    # recreate, in the background
    #   DatabaseNotFound: no such number;  DatabaseInUse: clean=False and somebody is connected
    await pool.clear()                                           # drops all databases of the pool, returns their names
    #   DatabaseInUse: one is connected to, or leased by a live session; then nothing was dropped

`hand_out` and `lease` raise `PoolTimeout` (a `TimeoutError`), `PoolClosed` (also when waiting while the pool is
closed, or cleared), and what made the copies fail (`DatabaseNotFound` when the template is gone, `DatabaseInUse` when
somebody is connected to it, `ServerUnavailable`). What was handed out stays handed out when the pool or its process
ends, and when another process opens the pool: the truth is a table on the server.
"""
