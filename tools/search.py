"""Choose the bits of each layer under a budget; same as `lbitcls search`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from lbitcls.commands.main import main

if __name__ == "__main__":
    sys.exit(main(only="search"))
