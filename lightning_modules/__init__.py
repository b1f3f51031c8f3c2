"""Training of language models with `aggregate_po`, on Lightning.

`__init__.pyi` lists the public names. Each is imported when it is first used, so that the command line can answer a
signal before it has loaded torch.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
