"""ResNet-20 (option-A shortcuts) on CIFAR-10 as JPEG files in class folders, float.

    lbitcls convert resnet20-12fca82f.th resnet20.pth
    python tools/train.py configs/cifar10/resnet20.py --load-from resnet20.pth --data-root FOLDER

`FOLDER` holds `cifar10_jpg/train` and `cifar10_jpg/test`, or their archive `cifar10_jpg.tar.gz`. Every tenth training
image is held out for validation; the test set is for `lbitcls test`. The other configs of ResNet-20 in this folder
begin with the weights that this one trains. It runs under bfloat16 autocast, compiled, which is faster where the
processor has bfloat16 (`--options amp=None compile=False` switches both off).
"""

model = dict(
    type="ImageClassifier",
    backbone=dict(type="ResNetCIFAROptionA", depth=20),
    neck=dict(type="GlobalAveragePooling"),
    head=dict(
        type="LinearClsHead",
        num_classes=10,
        in_channels=64,
        loss=dict(type="CrossEntropyLoss", loss_weight=1.0),
        topk=(1,),
    ),
)

normalize = dict(type="Normalize", mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])
test_pipeline = [
    dict(type="LoadImageFromFile"),
    normalize,
    dict(type="ImageToTensor", keys=["img"]),
    dict(type="Collect", keys=["img"]),
]
held_out = range(0, 50_000, 10)
test_set = dict(type="ImageFolder", pipeline=test_pipeline, in_memory=True)
data = dict(
    samples_per_gpu=128,
    workers_per_gpu=0,
    train=dict(
        type="ImageFolder",
        data_prefix="cifar10_jpg/train",
        exclude_indices=held_out,
        in_memory=True,
        pipeline=[
            dict(type="LoadImageFromFile"),
            dict(type="RandomCrop", size=32, padding=4),
            dict(type="RandomFlip", flip_prob=0.5, direction="horizontal"),
            normalize,
            dict(type="ImageToTensor", keys=["img"]),
            dict(type="ToTensor", keys=["gt_label"]),
            dict(type="Collect", keys=["img", "gt_label"]),
        ],
    ),
    val=dict(**test_set, data_prefix="cifar10_jpg/train", indices=held_out),
    test=dict(**test_set, data_prefix="cifar10_jpg/test"),
)
evaluation = dict(interval=1, metric="accuracy")

optimizer = dict(type="SGD", lr=0.05, momentum=0.9, weight_decay=1e-4)
optimizer_config = dict(grad_clip=None)
lr_config = dict(policy="CosineAnnealing", min_lr=0.0, by_epoch=False, warmup="linear", warmup_iters=100)
total_epochs = 20
checkpoint_config = dict(interval=1, max_keep_ckpts=1)
log_config = dict(interval=100)
amp = dict(dtype="bfloat16")
compile = True
channels_last = True
seed = 0
