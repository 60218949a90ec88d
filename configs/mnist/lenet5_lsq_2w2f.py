"""LeNet-5 on MNIST, LSQ W2A2, first and last layers at 8 bits, initialized from the float network.

    python tools/train.py configs/mnist/lenet5.py --data-root FOLDER_WITH_MNIST
    python tools/train.py configs/mnist/lenet5_lsq_2w2f.py --data-root FOLDER_WITH_MNIST
    lbitcls test work_dirs/lenet5_lsq_2w2f/latest.pth --data-root FOLDER_WITH_MNIST

For accuracy and time, and all methods at 4, 3 and 2 bits, see docs/results/mnist_lenet5.md.
"""

_base_ = "lenet5.py"

quant_transformer = dict(
    type="mTransformerV2",
    quan_policy=dict(
        Conv2d=dict(type="LSQConv", num_bit_w=2, num_bit_a=2, per_channel=True),
        Linear=dict(type="LSQLinear", num_bit_w=2, num_bit_a=2, per_channel=True),
    ),
    special_layers=dict(
        layers_name=["backbone.features.0", "head.fc"],
        convert_type=[
            dict(type="LSQConv", num_bit_w=8, num_bit_a=8, per_channel=True),
            dict(type="LSQLinear", num_bit_w=8, num_bit_a=8, per_channel=True),
        ],
    ),
)
calibration = dict(num_batches=8, method="mse")
load_from = "work_dirs/lenet5/latest.pth"
optimizer = dict(lr=0.05)
total_epochs = 6
