"""A zoo around a real pretrained model, and the questions asked of it; docs/real.md."""
