"""Engines that run exported models, one file each."""
