"""MobileNetV2 for the 1,000 classes of ImageNet. `backbone.conv1` is an alias of its first layer."""

model = dict(
    type="ImageClassifier",
    backbone=dict(type="MobileNetV2"),
    neck=dict(type="GlobalAveragePooling"),
    head=dict(type="LinearClsHead", num_classes=1000, in_channels=1280, topk=(1, 5)),
)
