"""ResNet-50 for the 1,000 classes of ImageNet."""

model = dict(
    type="ImageClassifier",
    backbone=dict(type="ResNet", depth=50),
    neck=dict(type="GlobalAveragePooling"),
    head=dict(type="LinearClsHead", num_classes=1000, in_channels=2048, topk=(1, 5)),
)
