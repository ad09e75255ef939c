"""``python -m lowland`` is ``lowland``."""

import sys

from lowland.cli.main import main

sys.exit(main())
