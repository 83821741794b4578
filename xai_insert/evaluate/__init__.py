"""Measure how good saliency maps are, and compare those of two models; the command is `xai-evaluate`."""
