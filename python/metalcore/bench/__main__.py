"""`python -m metalcore.bench`."""

import sys

from . import main

sys.exit(main())
