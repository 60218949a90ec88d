"""ResNet-18 for the 1,000 classes of ImageNet."""

model = dict(
    type="ImageClassifier",
    backbone=dict(type="ResNet", depth=18),
    neck=dict(type="GlobalAveragePooling"),
    head=dict(type="LinearClsHead", num_classes=1000, in_channels=512, topk=(1, 5)),
)
