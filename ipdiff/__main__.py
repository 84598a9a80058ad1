"""`python -m ipdiff VERB ...`: the same as `ipdiff VERB ...`, for torchrun."""

from ipdiff.cli import main

raise SystemExit(main())
