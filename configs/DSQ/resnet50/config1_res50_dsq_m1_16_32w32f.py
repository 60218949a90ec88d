"""ResNet-50 on ImageNet in float: the partner of the tutorial's `config2_res50_dsq_m1_16_2w2f.py`.

    python tools/train.py configs/DSQ/resnet50/config1_res50_dsq_m1_16_32w32f.py --data-root IMAGENET

Expected top-1: no figure was found; the tutorial names this config, but does not show it. Hyper-parameters:
those of its partner, for one machine. Time: not measured.

Each value is the tutorial's, except references to its machines: images are files below `--data-root`, as
`config2_res50_lsq_2w2f.py` says, not a private store; the initial weights are torchvision's; the run writes to
`work_dirs/`.

The tutorial's analysis compares the two: `python tools/model_analysis_tool.py IMAGE` and then the two configs, the
float checkpoint, the quantized one, `gpu:0`, and the page to write.
"""

model = dict(
    type="ImageClassifier",
    backbone=dict(type="ResNet", depth=50, num_stages=4, out_indices=(3,), style="pytorch"),
    neck=dict(type="GlobalAveragePooling"),
    head=dict(
        type="LinearClsHead",
        num_classes=1000,
        in_channels=2048,
        loss=dict(type="CrossEntropyLoss", loss_weight=1.0),
        topk=(1, 5),
    ),
)

dataset_type = "ImageNetV1"
img_norm_cfg = dict(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225], to_rgb=True)
train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="RandomResizedCrop", size=224),
    dict(type="RandomFlip", flip_prob=0.5, direction="horizontal"),
    dict(type="Normalize", **img_norm_cfg),
    dict(type="ImageToTensor", keys=["img"]),
    dict(type="ToTensor", keys=["gt_label"]),
    dict(type="Collect", keys=["img", "gt_label"]),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", size=(256, -1)),
    dict(type="CenterCrop", crop_size=224),
    dict(type="Normalize", **img_norm_cfg),
    dict(type="ImageToTensor", keys=["img"]),
    dict(type="Collect", keys=["img"]),
]
data = dict(
    samples_per_gpu=16,
    workers_per_gpu=3,
    train=dict(type=dataset_type, data_prefix="train", ann_file="meta/train.txt", pipeline=train_pipeline),
    val=dict(type=dataset_type, data_prefix="val", ann_file="meta/val.txt", pipeline=test_pipeline),
    test=dict(type=dataset_type, data_prefix="val", ann_file="meta/val.txt", pipeline=test_pipeline),
)
evaluation = dict(interval=2, metric="accuracy")

checkpoint_config = dict(interval=2)
num_nodes = 1
optimizer = dict(type="SGD", lr=0.001 * num_nodes, momentum=0.9, weight_decay=0.0001)
optimizer_config = dict(grad_clip=None)
lr_config = dict(policy="step", step=[30, 60, 90])
total_epochs = 100
log_level = "INFO"
log_config = dict(interval=200, hooks=[dict(type="TextLoggerHook")])
dist_params = dict(backend="nccl")
workflow = [("train", 1)]
load_from = "torchvision://resnet50.IMAGENET1K_V1"
resume_from = None
cpu_only = False
find_unused_parameters = True
sycbn = False
