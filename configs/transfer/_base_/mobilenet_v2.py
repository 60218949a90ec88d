"""MobileNetV2 from ImageNet weights that lie below a data root, for two classes (`torchvision://mobilenet_v2` fetches
others).

They were converted from an integer model, in which BatchNorm was folded into the convolutions. Its statistics were
measured again, and where a channel is nearly constant the gradient of BatchNorm's weight is huge: so BatchNorm stays
fixed, statistics (`norm_eval`) and weights (`requires_grad=False`).
"""

model = dict(
    type="ImageClassifier",
    backbone=dict(
        type="MobileNetV2",
        pretrained="weights/mobilenet_v2_tf2_int8deq_flipw.pth",
        norm_cfg=dict(type="BN", requires_grad=False),
        norm_eval=True,
    ),
    neck=dict(type="GlobalAveragePooling"),
    head=dict(type="LinearClsHead", num_classes=2, in_channels=1280),
)
