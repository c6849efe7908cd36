"""One paper per file. Importing this package imports every file in it, which registers its method;
its class is then ``sparsekern.prune.<Class>``. So adding a method is adding one file."""

import importlib
import pkgutil

from sparsekern.prune.method import METHODS

for _file in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_file.name}")

__all__ = [METHODS[_name].__name__ for _name in METHODS]
globals().update({METHODS[_name].__name__: METHODS[_name] for _name in METHODS})
