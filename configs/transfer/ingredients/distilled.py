"""`mobilenet_v2_lsq_4w4f.py` that learns from the float model's predictions, without labels.

For its accuracy see docs/results/transfer_ingredients.md.
"""

_base_ = "../mobilenet_v2_lsq_4w4f.py"

distill = dict(
    teacher=dict(checkpoint="work_dirs/mobilenet_v2_finetune/latest.pth"),
    loss="kl",
    temperature=4.0,
    weight=1.0,
    label_weight=0.0,
)
