"""The platform against a small model of what it promises: random people, code, crashes and time."""
