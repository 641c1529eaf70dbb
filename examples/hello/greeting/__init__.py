"""Greet people politely."""


def greet(name: str) -> str:
    """Return a greeting; a name that is empty or blank is an error."""
    name = name.strip()
    if not name:
        raise ValueError("whom shall I greet? the name is empty")
    return f"Hello, {name}!"
