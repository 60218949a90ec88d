"""ResNet-50 on ImageNet, APoT W2A2, 8-bit weights and float inputs at the ends (Li et al., arXiv:1909.13144).

    tools/dist_train.sh configs/APoT/resnet50/config3_res50_apot_3w3f.py 8 --data-root IMAGENET
    tools/dist_train.sh configs/APoT/resnet50/config2_res50_apot_2w2f.py 8 --data-root IMAGENET

Expected top-1: 73.38 % in the original project [original]; not yet reproduced here. The authors' table leaves the row
empty [APoT].
Hyper-parameters: the original's, starting from the 3-bit model as there [original]. Time: not measured.
"""

_base_ = [
    "../../_base_/models/resnet50.py",
    "../../_base_/datasets/imagenet.py",
    "../../_base_/schedules/imagenet_cosine120.py",
    "../../_base_/methods/apot.py",
]

quant_transformer = dict(quan_policy=dict(Conv2d=dict(num_bit_w=2, num_bit_a=2)))
optimizer = dict(lr=0.003, weight_decay=2.5e-5)
load_from = "work_dirs/config3_res50_apot_3w3f/latest.pth"
