"""``python -m momentum_gs`` is ``momentum-gs`` (torchrun starts modules, not scripts)."""

import sys

from momentum_gs.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
