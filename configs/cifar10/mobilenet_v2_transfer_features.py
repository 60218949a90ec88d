"""CIFAR-10 with a network pretrained on photos: MobileNetV2, frozen, as feature extractor with a new head.

    python tools/train.py configs/cifar10/mobilenet_v2_transfer_features.py --data-root FOLDER
    python tools/analyze_logs.py work_dirs/mobilenet_v2_transfer_features work_dirs/mobilenet_v2_transfer_finetune \\
        --keys loss top-1 --x images --out transfer.png

`FOLDER` holds `cifar10_jpg/train` and `cifar10_jpg/test`, or their archive `cifar10_jpg.tar.gz`, and
`weights/mobilenet_v2_tf2_int8deq_flipw.pth`. Of the images every tenth is used, enlarged to 96 pixels. The second
command draws the losses of training and test of both ways against the images seen.

Measured: 67.8 % top-1 on 1,000 test images after the last epoch (seed 0), in 40 s of one CPU thread. The rate was
chosen on 1,000 other training images.
"""

_base_ = ["../transfer/_base_/mobilenet_v2.py", "_base_/transfer.py"]

model = dict(backbone=dict(frozen=True), head=dict(num_classes=10))
feature_cache = True
optimizer = dict(type="SGD", lr=0.001, momentum=0.9, weight_decay=1e-4)
lr_config = dict(policy="CosineAnnealing", min_lr=0.0, by_epoch=False)
total_epochs = 20
