"""``python -m lowland`` is ``lowland``."""

import sys

from lowland.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
