"""MobileNetV2 on ImageNet, DoReFa W4A4, first and last layers in float (Zhou et al., arXiv:1606.06160).

    tools/dist_train.sh configs/DoReFa/mobilenetv2/config4_mobilenetv2_dorefa_4w4f.py 8 --data-root IMAGENET

Expected top-1: no figure was found.
Hyper-parameters: the paper's hyper-parameters could not be consulted; these are the project's defaults, the original's
for DSQ on this network [original]. Time: not measured.
Deviates from the original: its ends have 8-bit weights; here they stay float, as in the code of the method's authors.
The schedule is the paper's, like the expected results.
"""

_base_ = [
    "../../_base_/models/mobilenetv2.py",
    "../../_base_/datasets/imagenet.py",
    "../../_base_/schedules/imagenet_cosine120.py",
    "../../_base_/methods/dorefa.py",
]

quant_transformer = dict(quan_policy=dict(Conv2d=dict(num_bit_w=4, num_bit_a=4)))
optimizer = dict(lr=0.016)
lr_config = dict(warmup_iters=600, warmup_ratio=0.025)
total_epochs = 100
load_from = "torchvision://mobilenet_v2.IMAGENET1K_V1"
