"""Train a config once for each combination of option values; same as `lbitcls sweep`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from lbitcls.commands.main import main

if __name__ == "__main__":
    sys.exit(main(only="sweep"))
