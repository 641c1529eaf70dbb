"""The server's processes: which there are, how they start, drain and are watched over."""
