"""`python -m metalcore.demo`."""

import sys

from . import main

sys.exit(main())
