"""Examine a quantized model, or find the bits that a float model can take; same as `lbitcls doctor`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from lbitcls.commands.main import main

if __name__ == "__main__":
    sys.exit(main(only="doctor"))
