"""The command line: a thin client of the API, and what runs without a server."""
