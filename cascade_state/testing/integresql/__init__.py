"""Test databases over HTTP, in the words of IntegreSQL's REST API: the server for suites in any language, and a client.

`names` and `settings` are IntegreSQL's conventions, `tracking` keeps templates in PostgreSQL, `service` is what the API
does, `operations` and `web` put it on HTTP, `serving` runs it. `client` speaks to this server and to the original.
Needs the extra `integresql`; nothing of it is loaded before it is used.
"""
