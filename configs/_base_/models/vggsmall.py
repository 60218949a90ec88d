"""VGG-small for the 10 classes of CIFAR-10. `backbone.conv1` is an alias of its first layer."""

model = dict(
    type="ImageClassifier",
    backbone=dict(type="VGGSmall"),
    head=dict(type="LinearClsHead", num_classes=10, in_channels=8192, topk=(1,)),
)
