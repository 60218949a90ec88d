"""`uniform_3.py` with the bits of each layer chosen: as large as 3 bits everywhere, 2 to 5 bits.

    python tools/train.py configs/cifar10/resnet20.py --load-from resnet20.pth --data-root FOLDER
    lbitcls search configs/cifar10/bits/uniform_3.py work_dirs/resnet20/latest.pth --budget size=3bit \\
        --out by_layer_3.py --data-root FOLDER
    python tools/train.py by_layer_3.py --data-root FOLDER

This is the config that `lbitcls search` wrote. For accuracy and time see docs/results/cifar10_resnet20.md.
"""

_base_ = "uniform_3.py"

quant_transformer = dict(
    special_layers=dict(
        layers_name=[
            "backbone.conv1",
            "head.fc",
            "backbone.layer1.0.conv1",
            "backbone.layer1.0.conv2",
            "backbone.layer1.1.conv1",
            "backbone.layer1.1.conv2",
            "backbone.layer1.2.conv1",
            "backbone.layer1.2.conv2",
            "backbone.layer2.0.conv1",
            "backbone.layer2.0.conv2",
            "backbone.layer2.1.conv1",
            "backbone.layer2.1.conv2",
            "backbone.layer2.2.conv1",
            "backbone.layer2.2.conv2",
            "backbone.layer3.0.conv1",
            "backbone.layer3.0.conv2",
            "backbone.layer3.1.conv1",
            "backbone.layer3.1.conv2",
            "backbone.layer3.2.conv1",
            "backbone.layer3.2.conv2",
        ],
        convert_type=[
            dict(type="LSQConv", num_bit_w=8, num_bit_a=8, per_channel=True),
            dict(type="LSQLinear", num_bit_w=8, num_bit_a=8, per_channel=True),
            dict(type="LSQConv", per_channel=True, num_bit_w=4, num_bit_a=4),
            dict(type="LSQConv", per_channel=True, num_bit_w=4, num_bit_a=4),
            dict(type="LSQConv", per_channel=True, num_bit_w=4, num_bit_a=4),
            dict(type="LSQConv", per_channel=True, num_bit_w=3, num_bit_a=3),
            dict(type="LSQConv", per_channel=True, num_bit_w=5, num_bit_a=5),
            dict(type="LSQConv", per_channel=True, num_bit_w=4, num_bit_a=4),
            dict(type="LSQConv", per_channel=True, num_bit_w=4, num_bit_a=4),
            dict(type="LSQConv", per_channel=True, num_bit_w=4, num_bit_a=4),
            dict(type="LSQConv", per_channel=True, num_bit_w=3, num_bit_a=3),
            dict(type="LSQConv", per_channel=True, num_bit_w=3, num_bit_a=3),
            dict(type="LSQConv", per_channel=True, num_bit_w=4, num_bit_a=4),
            dict(type="LSQConv", per_channel=True, num_bit_w=3, num_bit_a=3),
            dict(type="LSQConv", per_channel=True, num_bit_w=3, num_bit_a=3),
            dict(type="LSQConv", per_channel=True, num_bit_w=3, num_bit_a=3),
            dict(type="LSQConv", per_channel=True, num_bit_w=3, num_bit_a=3),
            dict(type="LSQConv", per_channel=True, num_bit_w=3, num_bit_a=3),
            dict(type="LSQConv", per_channel=True, num_bit_w=3, num_bit_a=3),
            dict(type="LSQConv", per_channel=True, num_bit_w=2, num_bit_a=2),
        ],
    ),
)
