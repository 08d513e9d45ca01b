"""A conformance suite of the Open Inference Protocol v2, for any server. It imports no dist_net."""
