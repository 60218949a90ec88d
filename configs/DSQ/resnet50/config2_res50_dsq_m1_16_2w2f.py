"""ResNet-50 on ImageNet, DSQ W2A2, as the tutorial writes it: 8 bits at both ends, the first layer's input float.

    python tools/train.py configs/DSQ/resnet50/config2_res50_dsq_m1_16_2w2f.py --data-root IMAGENET

Expected top-1: no figure was found; the tutorial gives none. Hyper-parameters: the tutorial's, for one machine.
Time: not measured.

Each value is the tutorial's (Gong et al., arXiv:1908.05033, is the method), but for what names its machines: images are
files below `--data-root`, as `config2_res50_lsq_2w2f.py` says, not a private store; the weights to start from are
torchvision's; the run writes to `work_dirs/`. `config5_res50_dsq_m1_16_2w2f.py` is the tuned recipe,
`config1_res50_dsq_m1_16_32w32f.py` this one in float.
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

quant_transformer = dict(
    type="mTransformerV2",
    quan_policy=dict(
        Conv2d=dict(type="DSQConv", num_bit_w=2, num_bit_a=2, bSetQ=True),
        Linear=dict(type="DSQLinear", num_bit_w=2, num_bit_a=2),
    ),
    special_layers=dict(
        layers_name=["backbone.conv1", "head.fc"],
        convert_type=[
            dict(type="DSQConv", num_bit_w=8, num_bit_a=8, bSetQ=True, quant_activation=False),
            dict(type="DSQLinear", num_bit_w=8, num_bit_a=8),
        ],
    ),
)

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
