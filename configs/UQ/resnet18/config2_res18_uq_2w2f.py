"""ResNet-18 on ImageNet, UQ W2A2, 8-bit weights and float inputs at the ends (APoT's baseline, arXiv:1909.13144).

    tools/dist_train.sh configs/UQ/resnet18/config3_res18_uq_3w3f.py 8 --data-root IMAGENET
    tools/dist_train.sh configs/UQ/resnet18/config2_res18_uq_2w2f.py 8 --data-root IMAGENET

Expected top-1: 65.80 % in the original project [original]; not yet reproduced here. The authors' table leaves the row
empty [APoT].
Hyper-parameters: the original's, starting from the 3-bit model as there [original]. Time: not measured.
"""

_base_ = [
    "../../_base_/models/resnet18.py",
    "../../_base_/datasets/imagenet.py",
    "../../_base_/schedules/imagenet_cosine120.py",
    "../../_base_/methods/uq.py",
]

data = dict(samples_per_gpu=128)
quant_transformer = dict(quan_policy=dict(Conv2d=dict(num_bit_w=2, num_bit_a=2)))
optimizer = dict(lr=0.003, weight_decay=5e-5)
total_epochs = 150
load_from = "work_dirs/config3_res18_uq_3w3f/latest.pth"
