"""SqueezeNet 1.1 at 4-bit weights and 4-bit inputs without training: block reconstruction with QDrop, LSQ's grids.

    lbitcls calibrate configs/calibration/squeezenet1_1_4w4f_qdrop.py squeezenet1_1.pth \\
        --out squeezenet1_1_4w4f_qdrop.pth --data-root FOLDER

`FOLDER` holds `imagenet1000_256`: 1,000 images, one of each class, in the order of their classes. Every fifth is
calibrated on, the other 800 are the test set. The first and the last layer have 8 bits. Results of all folds, and the
weights: docs/results/ptq.md.
"""

_base_ = "./squeezenet1_1_8w8f.py"

quant_transformer = dict(
    quan_policy=dict(
        Conv2d=dict(num_bit_w=4, num_bit_a=4),
    ),
    special_layers=dict(
        layers_name=["backbone.features.0", "head.conv"],
        convert_type=[
            dict(type="LSQConv", num_bit_w=8, num_bit_a=8, per_channel=True),
            dict(type="LSQConv", num_bit_w=8, num_bit_a=8, per_channel=True),
        ],
    ),
)

calibration = dict(reconstruct=dict(rounding="qdrop"))
