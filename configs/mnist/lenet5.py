"""LeNet-5 on MNIST, float: the network that `lenet5_lsq_2w2f.py` quantizes.

    python tools/train.py configs/mnist/lenet5.py --data-root FOLDER_WITH_MNIST
    lbitcls test work_dirs/lenet5/latest.pth --data-root FOLDER_WITH_MNIST

5,000 training images are held out for validation; the test set is for `lbitcls test`. Images are shifted by up to two
pixels in training. For accuracy and time see docs/results/mnist_lenet5.md.
"""

_base_ = "lenet5_lsq_4w4f.py"

data = dict(
    samples_per_gpu=128,
    train=dict(
        pipeline=[
            dict(type="RandomCrop", size=28, padding=2),
            dict(type="Normalize", mean=[0.1307], std=[0.3081]),
            dict(type="ImageToTensor", keys=["img"]),
            dict(type="ToTensor", keys=["gt_label"]),
            dict(type="Collect", keys=["img", "gt_label"]),
        ]
    ),
)
model = dict(head=dict(topk=(1,)))
quant_transformer = None
optimizer = dict(type="SGD", lr=0.1, momentum=0.9, weight_decay=1e-4)
lr_config = dict(policy="CosineAnnealing", min_lr=0.0, by_epoch=False)
total_epochs = 15
checkpoint_config = dict(interval=1, max_keep_ckpts=1)
log_config = dict(interval=200, hooks=[dict(type="TextLoggerHook")])
