"""Entry of `python benchmarks/stress`."""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])  # the folder of the package, not the package itself

from stress.run import main

if __name__ == "__main__":
    sys.exit(main())
