"""ResNet-18 from torchvision's ImageNet weights, for two classes; fetched once, on a machine with a network.

BatchNorm stays as published: a batch of 16 images gives poor statistics.
"""

model = dict(
    type="ImageClassifier",
    backbone=dict(
        type="ResNet",
        depth=18,
        pretrained="torchvision://resnet18",
        norm_cfg=dict(type="BN", requires_grad=False),
        norm_eval=True,
    ),
    neck=dict(type="GlobalAveragePooling"),
    head=dict(type="LinearClsHead", num_classes=2, in_channels=512),
)
