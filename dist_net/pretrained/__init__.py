"""Nets with weights that others trained, which come with packages (the extra ``pretrained``)."""
