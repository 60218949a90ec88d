#!/usr/bin/env bash
# A researcher, in an empty folder: compares LSQ, DSQ and a quantizer of their own at 3 bits, over two seeds.
set -euo pipefail
. "$(dirname "$0")/advice.sh"

lbitcls list methods > methods.txt  # no pipe: `grep -q` closes it early, which pipefail reports
grep -q '^DSQ ' methods.txt
lbitcls list configs quickstart > configs.txt
grep -q digits_lsq_4w4f configs.txt

cat > power_of_two.py <<'PYTHON'
"""LSQ with steps that are powers of two."""

import torch
from torch import Tensor

from lbitcls.quant import register_method
from lbitcls.quant.quantizers.lsq import LSQ


class PowerOfTwo(LSQ):
    """LSQ whose step is rounded to a power of two; gradients pass the rounding."""

    def grid(self, x: Tensor) -> tuple[Tensor, ...]:
        scale, low, high = super().grid(x)
        rounded = torch.exp2(torch.round(torch.log2(scale)))
        return rounded.detach() + (scale - scale.detach()), low, high


register_method("PowerOfTwo", weight=PowerOfTwo, input=PowerOfTwo)
PYTHON

for method in LSQ DSQ PowerOfTwo; do
    cat > "$method.py" <<PYTHON
_base_ = 'configs/quickstart/digits_lsq_4w4f.py'
custom_imports = dict(imports=['power_of_two'])
quant_transformer = dict(
    quan_policy=dict(
        Conv2d=dict(type='${method}Conv', num_bit_w=3, num_bit_a=3),
        Linear=dict(type='${method}Linear', num_bit_w=3, num_bit_a=3)))
total_epochs = 4
calibration = dict(epoch=2)
export = None
PYTHON
done

# Slips of the keyboard: each is refused, with advice, before anything trains.
advised "Did you mean 'train'?" lbitcls trian LSQ.py
advised "Did you mean 'optimizer.lr'?" lbitcls train LSQ.py --options lr=0.1
advised "Did you mean 'optimizer.lr'?" lbitcls train LSQ.py --options +lr=0.5
advised "--options optimizer.momentum=0.9" lbitcls train LSQ.py --momentum 0.9
advised "Did you mean 'LSQ.py'?" lbitcls train LSQQ.py
advised "Use --options calibration.epoch=N with N ≤ 0" lbitcls train LSQ.py --epochs 1 --name slip

lbitcls plan PowerOfTwo.py > plan.txt
grep -q 'PowerOfTwoConv  *3 ' plan.txt
for seed in 0 1; do
    for method in LSQ DSQ; do
        lbitcls train "$method.py" --seed "$seed" --name "${method}_$seed"
    done
done
lbitcls train PowerOfTwo.py --seed 0 --name PowerOfTwo_0

lbitcls analyze work_dirs/*_[01] --format markdown | tee runs.md

# Images of the test set as files: what the analysis of the layers runs on.
python - <<'PYTHON'
from pathlib import Path

from PIL import Image

from lbitcls.datasets.digits import Digits

digits = Digits(split="test")
for index in range(64):
    path = Path("digits", digits.CLASSES[digits.labels[index]], f"{index}.png")
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(digits.images[index, 0].numpy()).save(path)
PYTHON
lbitcls compare digits work_dirs/PowerOfTwo_0
