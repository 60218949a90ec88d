"""Settings of every run of the library: keep the newest and the best checkpoint; text logs, TensorBoard."""

checkpoint_config = dict(interval=1, max_keep_ckpts=1)
log_config = dict(interval=100, hooks=[dict(type="TextLoggerHook"), dict(type="TensorboardLoggerHook")])
cudnn_benchmark = True
