"""`plain.py` that learns from the float model's predictions, without labels."""

_base_ = "plain.py"

distill = dict(
    teacher=dict(checkpoint="work_dirs/resnet20/latest.pth"), loss="kl", temperature=4.0, weight=1.0, label_weight=0.0
)
