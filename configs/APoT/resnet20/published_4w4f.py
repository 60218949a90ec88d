"""ResNet-20 on CIFAR-10, W4A4: the network that the APoT authors published (Li et al., arXiv:1909.13144), to test it.

    lbitcls convert res20_4bit.pth.tar apot_4bit.pth --format apot-resnet20
    lbitcls test configs/APoT/resnet20/published_4w4f.py apot_4bit.pth --data-root FOLDER --predictions rows.npz

`FOLDER` contains `cifar10_jpg/test`, or `cifar10_jpg.tar.gz`. Expected top-1: 82.89 % on these JPEG files, the same as
with the authors' code; 92.47 % on the lossless images, as the file records [APoT].
Time: 75 s on one CPU core. Source: `CIFAR10/result/res20_4bit.pth.tar` of github.com/yhhhli/APoT_Quantization [APoT].
"""

_base_ = ["../../_base_/models/resnet20_apot_authors.py", "../../_base_/datasets/cifar10_jpg_test.py"]

quant_transformer = dict(quan_policy=dict(Conv2d=dict(num_bit_w=4, num_bit_a=4)))
