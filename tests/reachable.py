"""How much a state machine holds on to."""

import gc
from types import FunctionType, ModuleType

NOT_HELD = type, ModuleType, FunctionType


def reachable_objects(root: object) -> int:
    """How many objects can be reached from one: what is forgotten is not among them."""
    seen = {id(root)}
    waiting = [root]
    while waiting:
        for each in gc.get_referents(waiting.pop()):
            if id(each) not in seen and not isinstance(each, NOT_HELD):
                seen.add(id(each))
                waiting.append(each)
    return len(seen)
