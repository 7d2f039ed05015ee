"""The PostgreSQL back end: the only room that knows SQLAlchemy, asyncpg and Alembic.

How a call travels: a repository takes checked arguments (`abc`), picks a statement (`statements/`), and hands it to its
executor (`executor.py`), which runs it on a driver connection (`direct.py`) and translates errors
(`error_translation.py`).
"""
