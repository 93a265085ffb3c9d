"""``python -m vmlab``: the command line."""

import sys

from vmlab.cli import main

sys.exit(main())
