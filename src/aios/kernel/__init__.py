"""The kernel decides. It never opens a socket, a file or a model: drivers do, behind the ports."""
