"""The sources of models: one module for each kind, and ``named_source`` that tells them apart."""
