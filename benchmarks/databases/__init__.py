"""What a database of its own costs a test: by the pool, and by other ways, in one run."""
