"""SqueezeNet 1.1 fine-tuned to ants and bees as in PyTorch's transfer learning tutorial.

    python tools/train.py configs/transfer/tutorial/squeezenet1_1_tutorial_finetune.py --data-root FOLDER

`FOLDER` holds `hymenoptera_256` (or its archive) and `weights/squeezenet1_1_caffe_fp16.pth`.

SGD at 0.001 for everything, momentum 0.9, batches of 4, a tenth of the rate after every 7 of 25 epochs.

Measured: 45.8 % top-1 on the 153 images of `val` after the last epoch (seed 0), in 4.4 minutes of one CPU thread;
`squeezenet1_1_finetune.py` of the folder above reaches 92.2 %.
"""

_base_ = ["../_base_/squeezenet1_1.py", "_base_/crops.py", "_base_/sgd.py"]
