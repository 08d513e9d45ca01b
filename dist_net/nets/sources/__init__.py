"""The sources of models by their kind, and ``named_source`` that tells them apart."""
