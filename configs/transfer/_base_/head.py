"""Only the head is trained, on features that are computed once."""

feature_cache = True
optimizer = dict(type="SGD", lr=0.01, momentum=0.9, weight_decay=1e-4)
lr_config = dict(policy="step", step=7, gamma=0.1)
total_epochs = 25
