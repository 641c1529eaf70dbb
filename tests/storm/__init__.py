"""Random pipelines on a deployment whose processes are killed all the time; see __main__.py."""
