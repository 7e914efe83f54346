"""`python -m diffstategrad`: the command."""

import sys

from diffstategrad.cli import main

sys.exit(main())
