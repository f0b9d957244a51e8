"""`python -m ce_fx.cli` is `ce-fx`."""

import sys

from ce_fx.cli import main

if __name__ == "__main__":
    sys.exit(main())
