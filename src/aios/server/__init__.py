"""The way in over HTTP: bytes become calls, keys become pids, errors become statuses.

A request passes daemon (sockets), app (edge, key, route), then native or openai (data), and ends in
``kernel.trap``. Nothing here decides anything about processes.
"""
