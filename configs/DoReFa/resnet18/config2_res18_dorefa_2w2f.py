"""ResNet-18 on ImageNet, DoReFa W2A2, first and last layers in float (Zhou et al., arXiv:1606.06160).

    tools/dist_train.sh configs/DoReFa/resnet18/config3_res18_dorefa_3w3f.py 8 --data-root IMAGENET
    tools/dist_train.sh configs/DoReFa/resnet18/config2_res18_dorefa_2w2f.py 8 --data-root IMAGENET

Expected top-1: 64.7 % as quoted in a later paper's README [N2UQ], 48.95 % in the original project, whose first and last
layer have 8 bits [original]; not yet reproduced here.
Hyper-parameters: the original's; it starts from a W2A4 model, here from the 3-bit one [original]. Time: not measured.
Deviates from the original: its ends have 8-bit weights; here they stay float, as in the code of the method's authors.
"""

_base_ = [
    "../../_base_/models/resnet18.py",
    "../../_base_/datasets/imagenet.py",
    "../../_base_/schedules/imagenet_cosine120.py",
    "../../_base_/methods/dorefa.py",
]

data = dict(samples_per_gpu=128)
quant_transformer = dict(quan_policy=dict(Conv2d=dict(num_bit_w=2, num_bit_a=2)))
optimizer = dict(lr=0.005)
lr_config = dict(warmup_iters=313)
total_epochs = 100
load_from = "work_dirs/config3_res18_dorefa_3w3f/latest.pth"
