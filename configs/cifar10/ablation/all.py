"""`resnet20_w2a2.py` in five epochs: LSQ's default steps and their factor, and the float model's predictions."""

_base_ = "../resnet20_w2a2.py"

total_epochs = 5
