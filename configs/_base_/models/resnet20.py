"""ResNet-20 with option-A shortcuts for the 10 classes of CIFAR-10."""

model = dict(
    type="ImageClassifier",
    backbone=dict(type="ResNetCIFAROptionA", depth=20),
    neck=dict(type="GlobalAveragePooling"),
    head=dict(type="LinearClsHead", num_classes=10, in_channels=64, topk=(1,)),
)
