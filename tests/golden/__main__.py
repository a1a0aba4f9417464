"""``python -m tests.golden``: what ``make golden`` runs."""

import sys

from tests.golden.run import main

sys.exit(main())
