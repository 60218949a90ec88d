"""SqueezeNet 1.1 from ImageNet weights, for two classes; the weights lie below a data root."""

model = dict(
    type="ImageClassifier",
    backbone=dict(type="SqueezeNet", version="1_1", pretrained="weights/squeezenet1_1_caffe_fp16.pth"),
    head=dict(type="ConvClsHead", num_classes=2, in_channels=512),
)
