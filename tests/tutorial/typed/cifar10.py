"""The transfer learning tutorial with CIFAR-10: a new head on a frozen network. Reads `settings.py`.

Settings are those of `transfer.py`, with `num_classes=10`, `num_epochs = 5` and `train_images = dict()` (every image
of the training set).
"""

from lbitcls.apis import test_classifier, train_classifier
from lbitcls.utils import Config
from lbitcls.workflows.analyzing import analyze_logs
from lbitcls.workflows.visualizing import visualize

settings = Config.fromfile("settings.py")

tensors = [
    dict(type="Normalize", mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225]),
    dict(type="ImageToTensor", keys=["img"]),
    dict(type="ToTensor", keys=["gt_label"]),
    dict(type="Collect", keys=["img", "gt_label"]),
]
transform = [
    dict(type="LoadImageFromFile"),
    dict(type="Pad", padding=4),
    dict(type="RandomFlip", flip_prob=0.5),
    dict(type="RandomCrop", size=32),
    *tensors,
]
train_dataset = dict(
    type="ImageFolder", data_prefix="cifar10_jpg/train", pipeline=transform, in_memory=True, **settings.train_images
)
test_dataset = dict(
    type="ImageFolder", data_prefix="cifar10_jpg/test", pipeline=[dict(type="LoadImageFromFile"), *tensors]
)

cfg = Config(
    dict(
        model=dict(
            type="ImageClassifier",
            backbone=dict(**settings.backbone, pretrained=settings.weights, frozen=True),
            neck=settings.neck,
            head=settings.head,
        ),
        data=dict(samples_per_gpu=100, train=train_dataset, test=test_dataset),
        optimizer=dict(type="Adam", lr=0.001),
        total_epochs=settings.num_epochs,
        seed=0,
        log_config=dict(interval=1),
        work_dir="cifar10",
    )
)

visualize("batch", cfg, num_images=16, out="batch.png")
trained = train_classifier(cfg)
results = test_classifier(cfg, trained["checkpoint"])
correct, total = results["correct"], results["total"]
print(f"Accuracy of the model on the test images: {100 * correct / total} %")
analyze_logs(["cifar10"], ["train/loss"], axis="images", out="loss.png")
