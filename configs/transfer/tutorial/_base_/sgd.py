"""SGD at 0.001 with momentum, a tenth after every 7 epochs, for 25 epochs."""

optimizer = dict(type="SGD", lr=0.001, momentum=0.9)
lr_config = dict(policy="step", step=7, gamma=0.1)
total_epochs = 25
