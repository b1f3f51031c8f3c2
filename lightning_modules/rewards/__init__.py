"""Verifiable rewards: functions of a completion and its example.

`__init__.pyi` lists the public names. Each is imported when it is first used, so that the workers of a `RewardPool`
load no more than their reward needs.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
