#!/usr/bin/env bash
# A lecturer, in an empty folder: runs a notebook as shipped, and derives a config, in a folder of its own, from the package's.
# Usage: lecturer.sh NOTEBOOK
set -euo pipefail
. "$(dirname "$0")/advice.sh"

python - "$1" <<'PYTHON'
import sys

import nbclient
import nbformat

notebook = nbformat.read(sys.argv[1], as_version=4)
nbclient.NotebookClient(notebook, timeout=300).execute()
nbformat.write(notebook, "executed.ipynb")

outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
shown = [output["data"] for output in outputs if output.output_type in ("display_data", "execute_result")]
tables = [data["text/html"] for data in shown if "val top-1" in data["text/plain"]]
assert tables and all("<table" in table and "<img src=" in table for table in tables), "no live table with its curves"
assert "30/30" in tables[0].replace("<b>", "").replace("</b>", ""), "the table has a row per epoch"
streams = "".join(output["text"] for output in outputs if output.output_type == "stream")
assert "Traceback" not in streams and "\x1b[" not in streams
print(f"{len(tables)} live tables")
PYTHON

mkdir -p course/week1
cat > course/week1/two_bits.py <<'PYTHON'
_base_ = 'configs/quickstart/digits_lsq_4w4f.py'
quant_transformer = dict(quan_policy=dict(Conv2d=dict(num_bit_w=2, num_bit_a=2)))
total_epochs = 2
calibration = dict(epoch=1)
export = None
PYTHON
cd course
lbitcls plan week1/two_bits.py > plan.txt
grep -q 'LSQConv  *2  2' plan.txt
advised "Did you mean" lbitcls train week1/two_bit.py
lbitcls train week1/two_bits.py --name two_bits
