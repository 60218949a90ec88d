"""ResNet-20 on CIFAR-10, float: the network that the APoT authors published (Li et al., arXiv:1909.13144), to test it.

    lbitcls convert res20_32bit.pth.tar apot_32bit.pth --format apot-resnet20
    lbitcls test configs/APoT/resnet20/published_32w32f.py apot_32bit.pth --data-root FOLDER --predictions rows.npz

`FOLDER` contains `cifar10_jpg/test`, or `cifar10_jpg.tar.gz`. Expected top-1: 82.36 % on these JPEG files, the same as
with the authors' code; 92.96 % on the lossless images, as the file records [APoT].
Time: 25 s on one CPU core. Source: `CIFAR10/result/res20_32bit.pth.tar` of github.com/yhhhli/APoT_Quantization [APoT].
"""

_base_ = ["../../_base_/models/resnet20_apot_authors.py", "../../_base_/datasets/cifar10_jpg_test.py"]

quant_transformer = dict(quan_policy=dict(Conv2d=dict(num_bit_w=32, num_bit_a=32)))
