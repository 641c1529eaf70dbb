"""`python -m ci_platform.cli`: the same as `sluice`."""

from ci_platform.cli.main import main

main()
